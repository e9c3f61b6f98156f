"""Stage evaluate: teacher, untrained student, twin and student on the held-out rows, one model in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.files import write_atomic, write_json
from limbeck.interfaces import Prompt, Sampling
from limbeck.runs.contents import Contents
from limbeck.runs.label import folder_of
from limbeck.runs.prepare import HOLDOUT
from limbeck.runs.samples import SAMPLES, sample
from limbeck.runs.stage import Figures, Run
from limbeck.runs.train import first_student

if TYPE_CHECKING:
    from limbeck.data import Tokenizer, TokenSequence
    from limbeck.report.evaluation import Aim, Evaluation, ModelFigures
    from limbeck.signals import SignalStore

EVALUATION = "evaluation/evaluation.json"


class Evaluate:
    """Measures each model and writes its part, so that a killed evaluation goes on with the next model."""

    name, version = "evaluate", 2
    outputs: tuple[str, ...] = ("evaluation",)
    work: tuple[str, ...] = ()
    after: tuple[str, ...] = ("prepare", "label", "train", "twin")

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        spec = contents.recipe.evaluation.model_dump(mode="json")
        return {"evaluation": spec, "teacher": contents.teacher, "student": contents.student}

    def run(self, run: Run) -> Figures:
        from limbeck.data import read_sequences
        from limbeck.report.evaluation import Evaluation, Holdout, ModelFigures, Sample
        from limbeck.v1 import event_pb2

        sequences = read_sequences(run.path / HOLDOUT)
        tokenizer = run.contents.loaded_tokenizer
        prompts = [s for s in sequences if s.chosen][: run.recipe.evaluation.samples]
        tokens = sum(len(sequence.kept) for sequence in sequences)
        speakers = _speakers(run)
        reference = "teacher" if _wrote_the_rows(run) else "reference"
        parts: dict[str, dict[str, Any]] = {}
        ready = sum((run.path / _part(name)).is_file() for name in speakers)
        with run.progress("tokens", tokens * len(speakers), tokens * ready) as advance:
            for name, measure in speakers.items():
                file = run.path / _part(name)
                if not file.is_file():
                    figures, texts = measure(run, sequences, prompts, tokenizer, advance)
                    run.check_stop()
                    write_json(file, {"figures": figures.model_dump(mode="json"), "texts": texts})
                parts[name] = json.loads(file.read_text("utf-8"))
                known = {key: float(value) for key, value in parts[name]["figures"].items() if value is not None}
                run.log.emit(event_pb2.Evaluation(model=name, figures=known))
        evaluation = Evaluation(
            models={name: ModelFigures(**part["figures"]) for name, part in parts.items()},
            holdout=Holdout(
                rows=len(sequences),
                tokens=tokens,
                pairs=len({s.pair for s in sequences if s.pair >= 0}),
                unsaid_tokens=_unsaid(sequences, _store(run)),
            ),
            aim=_aim(run),
            samples=[
                Sample(
                    prompt=tokenizer.decode(prompt.ids[: prompt.first_row + 1]),
                    **{reference: tokenizer.decode(_answer(prompt))},
                    **{name: part["texts"][number] for name, part in parts.items() if part["texts"]},
                )
                for number, prompt in enumerate(prompts)
            ],
            sampling={"temperature": 0.0, "max_new_tokens": run.recipe.evaluation.max_new_tokens},
        )
        write_atomic(run.path / EVALUATION, evaluation.model_dump_json(indent=2) + "\n")
        _show(run, evaluation)
        student = evaluation.models["student"].model_dump()
        named = ("perplexity", "forward_kl", "top1_agreement", "preference_accuracy", "preference_margin")
        return {"rows": len(sequences), "tokens": tokens} | {k: student[k] for k in named if student[k] is not None}


def _show(run: Run, evaluation: Evaluation) -> None:
    """Tell what the teacher and the student make of the first prompts."""
    for texts in evaluation.samples[:SAMPLES]:
        for model in ("teacher", "student"):
            if (text := getattr(texts, model)) is not None:
                run.log.emit(sample(model, texts.prompt, text))


Measured = tuple["ModelFigures", list[str]]
Measure = Callable[
    [Run, "Sequence[TokenSequence]", "Sequence[TokenSequence]", "Tokenizer", Callable[[int], None]], Measured
]


def _speakers(run: Run) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    if run.recipe.teacher is not None and run.contents.text_teacher is None:  # an API is known by its text alone
        found["teacher"] = _teacher
    found["untrained"] = lambda run, *rest: _model(run, first_student(run.contents).model, *rest)
    if run.recipe.evaluation.twin:
        found["twin"] = lambda run, *rest: _model(run, _load(run, run.path / "twin"), *rest)
    found["student"] = lambda run, *rest: _model(run, _load(run, run.path / "student"), *rest)
    return found


def _aim(run: Run) -> Aim:
    """Preferences, where a loss is on pairs and none asks the student to be like the teacher.

    The teacher's text, where it wrote the rows and said nothing of their tokens.
    """
    losses = run.recipe.losses
    like = any(loss.needs.primitive != "none" and not loss.needs.pairs for loss in losses)
    if any(loss.needs.pairs for loss in losses) and not like:
        return "preferences"
    return "text" if _wrote_the_rows(run) and _store(run) is None else "teacher"


def _wrote_the_rows(run: Run) -> bool:
    """Whether the rows are answers of a teacher that is asked with text: it is not asked, and paid, again."""
    generator = run.recipe.generator
    return run.contents.text_teacher is not None and generator is not None and bool(generator.make().needs_teacher)


def _part(name: str) -> Path:
    return Path("evaluation", "parts", f"{name}.json")


def _store(run: Run) -> SignalStore | None:
    from limbeck.signals import SignalStore

    folder = folder_of(run.path, HOLDOUT)
    return SignalStore(folder) if (folder / "header.json").is_file() else None


def _load(run: Run, folder: Path) -> Any:
    from limbeck.recipe import StudentSpec
    from limbeck.training import build_student

    student = run.recipe.student
    spec = StudentSpec.model_validate({"model": str(folder), "dtype": student.dtype, "attention": student.attention})
    return build_student(spec, None).model


def _model(
    run: Run,
    model: Any,
    sequences: Sequence[TokenSequence],
    prompts: Sequence[TokenSequence],
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> Measured:
    import torch

    from limbeck.report.evaluation import ModelFigures
    from limbeck.training import evaluate

    if torch.cuda.is_available():
        model = model.to("cuda")
    spec = run.recipe.evaluation
    figures = evaluate(model, sequences, _store(run), batch_tokens=spec.batch_tokens, advance=advance, stop=run.stop)
    texts = [tokenizer.decode(greedy(model, s, tokenizer.eos_ids, spec.max_new_tokens, run.stop)) for s in prompts]
    return ModelFigures(**figures), texts


def _teacher(
    run: Run,
    sequences: Sequence[TokenSequence],
    prompts: Sequence[TokenSequence],
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> Measured:
    """The teacher by what it said of the held-out rows; its speed by the same loop where its weights are here."""
    from limbeck.report.evaluation import ModelFigures
    from limbeck.training import teacher_figures

    store = _store(run)
    said = teacher_figures(sequences, store) if store is not None and len(sequences) else {}
    known = {name: value for name, value in said.items() if value is not None}
    if run.contents.teacher_folder is not None:
        figures, texts = _model(run, _load(run, run.contents.teacher_folder), sequences, prompts, tokenizer, advance)
        return figures.model_copy(update=known), texts
    advance(sum(len(sequence.kept) for sequence in sequences))
    info = run.desk.teacher.info()
    texts = []
    if "generate" in info.capabilities and prompts:
        asked = [Prompt(number, s.ids[: s.first_row + 1]) for number, s in enumerate(prompts)]
        sampling = Sampling(max_new_tokens=run.recipe.evaluation.max_new_tokens)
        texts = run.desk.ask(_continue(run, asked, sampling, tokenizer))
    return ModelFigures(parameters=info.parameters, **known), texts


async def _continue(run: Run, prompts: Sequence[Prompt], sampling: Sampling, tokenizer: Tokenizer) -> list[str]:
    async with aclosing(run.desk.teacher.generate(prompts, sampling)) as answers:
        said = {answer.item_id: tokenizer.decode(answer.ids) async for answer in answers}
    return [said[prompt.item_id] for prompt in prompts]


def greedy(
    model: Any, sequence: TokenSequence, eos_ids: Sequence[int], most: int, stop: Callable[[], str | None]
) -> list[int]:
    """The likeliest next ids [at most `most`] after a sequence's prompt, without the end token.

    A loop of our own: nothing of a model folder's generation_config can leak in.
    """
    import inspect

    import torch

    from limbeck.teachers.model import cache_name

    name = cache_name(inspect.signature(model.forward).parameters)
    device = next(model.parameters()).device
    ids = torch.tensor(sequence.ids[None, : sequence.first_row + 1].astype("int64"), device=device)
    found: list[int] = []
    cache = None
    with torch.inference_mode():
        while len(found) < most and stop() is None:
            output = model(input_ids=ids, use_cache=True, **{name: cache})
            likeliest = int(output.logits[0, -1].argmax())
            if likeliest in eos_ids:
                break
            found.append(likeliest)
            cache, ids = getattr(output, name), torch.tensor([[likeliest]], device=device)
    return found


def _answer(sequence: TokenSequence) -> Any:
    """The ids of the sequence's trained tokens."""
    return sequence.ids[sequence.kept + 1]


def _unsaid(sequences: Sequence[TokenSequence], store: SignalStore | None) -> int:
    """Trained tokens of which the teacher said nothing."""
    if store is None or not store.header.partial:
        return 0
    signals = ((sequence, store.get(sequence)) for sequence in sequences)
    return sum(int((sequence.kept >= signal.first_row + signal.n).sum()) for sequence, signal in signals)
