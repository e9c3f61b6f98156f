"""Stages train and twin: checkpoints/NAME while they work, then the exported model in student/ and twin/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.files import digest
from limbeck.runs.contents import Contents
from limbeck.runs.label import checked_teacher, folder_of, stored_want
from limbeck.runs.prepare import TRAIN
from limbeck.runs.stage import Figures, Interrupted, Record, Run

if TYPE_CHECKING:
    from limbeck.recipe import BoundLoss, Recipe
    from limbeck.training import BatchSource, Student

TWIN_CARD = """# Twin

The twin of the student beside it: the same model, rows, seed and steps, trained by cross-entropy on the same text
without the teacher's signals. It is here to be compared with.
"""


class Train:
    """Trains the student by the recipe's losses."""

    name, version = "train", 1
    outputs: tuple[str, ...] = ("student",)
    work: tuple[str, ...] = ("checkpoints/student",)
    after: tuple[str, ...] = ("prepare", "label")

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        recipe = contents.recipe
        online = recipe.signals.source == "online" and needs_signal(recipe)
        return {
            **_common(contents),
            "losses": [{"plugin": loss.plugin.name, "config": contents.config(loss.config)} for loss in recipe.losses],
            "online": contents.teacher if online else None,
        }

    def run(self, run: Run) -> Figures:
        from limbeck.report import model_card

        source = _source(run)
        if run.steering is not None:
            run.steering.begin()
        return _train(run, self, source, None, model_card(run.path))


class Twin:
    """Trains the same student by cross-entropy alone: what the rows give without the teacher's signals."""

    name, version = "twin", 1
    outputs: tuple[str, ...] = ("twin",)
    work: tuple[str, ...] = ("checkpoints/twin",)
    after: tuple[str, ...] = ("prepare",)

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        return _common(contents)

    def run(self, run: Run) -> Figures:
        from limbeck.training import NoSource

        run.desk.release()
        return _train(run, self, NoSource(), [plain_cross_entropy()], TWIN_CARD)


def needs_signal(recipe: Recipe) -> bool:
    """Whether a loss of the recipe looks at a teacher while training."""
    from limbeck.recipe import wanted

    return recipe.teacher is not None and bool(wanted(recipe.losses).primitives())


def first_student(contents: Contents) -> Student:
    """The student before its first step, the same numbers at each call."""
    from limbeck.training import build_student

    folder = contents.tokenizer_folder
    return build_student(contents.recipe.student, contents.teacher_folder, tokenizer_folder=folder)


def plain_cross_entropy() -> BoundLoss:
    """The twin's only loss, as a recipe would bind it."""
    from limbeck.losses import PLUGINS
    from limbeck.plugins import Entry
    from limbeck.recipe import BoundLoss
    from limbeck.recipe.bound import knob_bounds

    plugin = next(plugin for plugin in PLUGINS if plugin.name == "cross_entropy")
    config = plugin.config(name=plugin.name)
    return BoundLoss(
        name=plugin.name,
        entry=Entry(plugin, "loss", "limbeck", ""),
        config=config,
        needs=plugin.needs(config),
        field="losses[0]",
        knobs={"weight": 1.0},
        bounds=knob_bounds(plugin.config),
    )


def _common(contents: Contents) -> dict[str, Any]:
    arguments = contents.recipe.training.arguments()
    numbers = {name: value for name, value in arguments.items() if not name.startswith(("logging_", "save_"))}
    return {"student": contents.student, "training": numbers}


def _source(run: Run) -> BatchSource:
    """Where the trainer gets signals from. Lets the teacher go where it is not asked any more."""
    from limbeck.recipe import wanted
    from limbeck.signals import SignalStore
    from limbeck.training import CachedSource, NoSource, OnlineSource

    if run.recipe.signals.source == "online" and needs_signal(run.recipe):
        teacher = checked_teacher(run, run.contents.loaded_tokenizer)
        return OnlineSource(teacher, wanted(run.recipe.losses))
    run.desk.release()
    if stored_want(run.recipe) is None:
        return NoSource()
    return CachedSource(SignalStore(folder_of(run.path, TRAIN)))


def _train(
    run: Run, stage: Train | Twin, source: BatchSource, losses: Sequence[BoundLoss] | None, card: str
) -> Figures:
    from limbeck.data import read_sequences
    from limbeck.training import TrainJob, export_student, train

    job = TrainJob(
        recipe=run.recipe,
        sequences=read_sequences(run.path / TRAIN),
        source=source,
        folder=run.path / stage.work[0],
        student=lambda: first_student(run.contents),
        losses=losses,
        teacher_hidden_size=_teacher_hidden_size(run) if losses is None else None,
        data_digest=digest([Record(run.path, name).digest for name in stage.after]),
        allow_changed=run.allow_changed,
        run_folder=run.path,
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    steering = run.steering if losses is None else None  # a twin takes the values of its recipe
    result = train(job, run.log, run.stop, steering)
    if result.interrupted is not None:
        raise Interrupted(result.interrupted)
    if steering is not None:
        steering.finish(run.log)
    export_student(result.model, result.tokenizer_folder, run.path / stage.outputs[0], card)
    return dict(result.figures)


def _teacher_hidden_size(run: Run) -> int | None:
    from limbeck.recipe import wanted

    return run.desk.teacher.info().hidden_size if wanted(run.recipe.losses).layers else None
