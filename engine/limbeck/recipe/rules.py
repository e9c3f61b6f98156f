"""Rules that hold between the parts of a recipe, and what its losses ask of the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from limbeck.errors import Problem, nearest
from limbeck.interfaces import Want
from limbeck.recipe.binding import step_values
from limbeck.recipe.bound import BoundLoss
from limbeck.recipe.document import Document, Path_, field_path
from limbeck.recipe.problems import fields_of
from limbeck.recipe.schema import DataSpec, RecipeFile, SignalsSpec, StudentSpec

STORED = ("top_k", "target")  # what cached signals hold
WITHOUT_SIGNAL = "none"


def cross_check(document: Document, losses: Sequence[BoundLoss], *, undecided: bool = False) -> list[Problem]:
    """Problems between parts that may be valid by themselves. `losses` are those that could be bound.

    Looks at what is written, so that faults elsewhere hide nothing; a misspelt field counts as given. With `undecided`,
    any of `teachers` will do where a teacher is needed.
    """
    return [
        *_student(document),
        *_data(document),
        *_names(document),
        *_weights(document, losses),
        *_pick(document, losses, undecided),
        *_teacher(document, losses),
        *_signals(document, losses),
        *_rationale(document, losses),
    ]


def _at(loss: BoundLoss) -> Path_:
    return field_path(loss.field)


def given(document: Document, at: Path_, model: type[BaseModel]) -> bool:
    """Whether there is a value at `at`, in a mapping of `model`, or at a name beside it that was probably meant."""
    if document.at(at) is not None:
        return True
    beside, known = document.at(at[:-1]), fields_of(model)
    if not isinstance(beside, dict):
        return beside is not None  # a fault of its own
    return any(key not in known and nearest(key, known) == at[-1] for key in beside)


def _student(document: Document) -> Iterator[Problem]:
    at = ("student",)
    if not isinstance(document.at(at), dict):
        return
    origins = [name for name in ("from", "model", "config") if given(document, (*at, name), StudentSpec)]
    if len(origins) != 1:
        named = " and ".join(origins) or "none of them"
        yield document.problem(at, f"give exactly one of from, model and config, not {named}")
        return
    for name, origin in {"layers": "from", "tokenizer": "config", "seed": "config"}.items():
        if document.at((*at, name)) is not None and origins != [origin]:
            yield document.problem((*at, name), f"{name} goes with {origin} only, not with {origins[0]}")


def _data(document: Document) -> Iterator[Problem]:
    if not isinstance(document.at(("data",)), dict):
        return
    path, generator = (given(document, ("data", name), DataSpec) for name in ("path", "generator"))
    if path == generator:
        yield document.problem(
            ("data",), f"give exactly one of path and generator, not {'both' if path else 'neither'}"
        )


def _names(document: Document) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    losses = document.at(("losses",))
    for index, written in enumerate(losses if isinstance(losses, list) else ()):
        name = (written.get("name") or written.get("plugin")) if isinstance(written, dict) else None
        if isinstance(name, str) and (first := seen.setdefault(name, index)) != index:
            hint = f"give one of them another name, e.g. name: {name}_2"
            yield document.problem(("losses", index, "name"), f"the name {name!r} is taken by losses[{first}]", hint)


def _weights(document: Document, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    written = document.at(("losses",))
    weights = [loss.knobs.get("weight") for loss in losses]
    if isinstance(written, list) and len(weights) == len(written) and weights and all(w == 0 for w in weights):
        message = "nothing would be trained: the weight of every loss is 0"
        yield document.problem((*_at(losses[0]), "weight"), message, "give one of them a weight above 0")


def _pick(document: Document, losses: Sequence[BoundLoss], undecided: bool) -> Iterator[Problem]:
    """What is wrong with the choice among `teachers`."""
    picked, names = document.at(("teacher",)), _names_of_teachers(document)
    if isinstance(picked, str) and picked not in names:
        if not names:
            hint = f"write {{plugin: {picked}}} if that is the plugin's name, or add teachers:"
            yield document.problem(("teacher",), f"names a teacher {picked!r}, but there are no teachers:", hint)
            return
        guess = nearest(picked, names)
        hint = f"did you mean {guess}?" if guess else f"there are: {', '.join(names)}"
        yield document.problem(("teacher",), f"{picked!r} is none of teachers", hint)
    if undecided or not names or given(document, ("teacher",), RecipeFile):
        return
    needs = [loss.plugin.name for loss in losses if loss.needs.primitive != WITHOUT_SIGNAL]
    if document.at(("student", "from")) == "teacher":
        needs.append("the student")
    if needs:
        message = f"none of {', '.join(names)} is picked, and {needs[0]} needs a teacher"
        hint = f"pick one, e.g. teacher: {names[0]}; `limbeck teachers compare {document.path.name}` tells which"
        yield document.problem(("teachers",), message, hint, key=True)


def _names_of_teachers(document: Document) -> list[str]:
    several = document.at(("teachers",))
    return list(several) if isinstance(several, dict) else []


def _teacher(document: Document, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    teacher = given(document, ("teacher",), RecipeFile) or bool(_names_of_teachers(document))  # see _pick
    for loss in losses:
        if loss.needs.primitive != WITHOUT_SIGNAL and not teacher:
            yield document.problem(_at(loss), f"{loss.plugin.name} needs a teacher's signal", "add teacher:")
        if loss.needs.teacher_text and document.at(("data", "path")) and not document.at(("data", "generator")):
            message = f"{loss.plugin.name} trains on text that a teacher wrote, but data.path is a file"
            hint = "add data.generator, or use cross_entropy if that file is a teacher's text"
            yield document.problem(_at(loss), message, hint)
    if teacher:
        return
    if document.at(("student", "from")) == "teacher":
        yield document.problem(("student", "from"), "there is no teacher to make a student from", "add teacher:")
    at = ("student", "tokenizer")
    if document.at(("student", "config")) is not None and not given(document, at, StudentSpec):
        message = "is missing: a student from scratch without a teacher needs a tokenizer"
        yield document.problem(at, message, "name a folder or a hub id")


def _signals(document: Document, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    at = ("signals", "source")
    cached = document.at(at) == "cached" if given(document, at, SignalsSpec) else not _misspelt_signals(document)
    for loss in losses:
        primitive = loss.needs.primitive
        if cached and primitive not in (*STORED, WITHOUT_SIGNAL):
            message = f"{loss.plugin.name} needs {primitive}, which is not stored"
            yield document.problem(_at(loss), message, "write signals: {source: online}")
        temperature = loss.knobs.get("temperature")
        if primitive == "top_k" and temperature is not None and step_values(temperature) is None:
            message = "a temperature over the top k must be a number or a step function: the tail is stored for each"
            hint = "use {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}"
            yield document.problem((*_at(loss), "temperature"), message, hint)


def _rationale(document: Document, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    at = ("data", "rationale", "weight")
    weight, whole = document.at(at), next((loss for loss in losses if loss.kind == "sequence"), None)
    if whole is not None and isinstance(weight, int | float) and weight != 1:
        message = f"{whole.plugin.name} looks at whole rows, and knows no weights of single tokens"
        yield document.problem(at, message, "leave weight out, or take the rationale out by keep: false")


def _misspelt_signals(document: Document) -> bool:
    return document.at(("signals",)) is None and given(document, ("signals",), RecipeFile)


def wanted(losses: Sequence[BoundLoss]) -> Want:
    """The union of what losses ask about a position: one request serves them all.

    `temperatures` are those of the losses on the top k, and 1.0, rising.
    """
    temperatures = {1.0}
    top_k = 0
    for loss in losses:
        if loss.needs.primitive == "top_k":
            top_k = max(top_k, int(getattr(loss.config, "top_k", 0)))
            temperatures.update(step_values(loss.knobs.get("temperature", 1.0)) or ())
    asked = [loss.needs.primitive for loss in losses]
    return Want(
        top_k=top_k,
        temperatures=tuple(sorted(temperatures)),
        target="target" in asked,
        token_ids="token_ids" in asked,
        samples=max((loss.needs.samples for loss in losses), default=0),
        layers=tuple(sorted({layer for loss in losses for layer in loss.needs.teacher_layers})),
        full="full" in asked,
    )
