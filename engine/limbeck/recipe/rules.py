"""Rules that hold between the parts of a recipe, and what its losses ask of the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limbeck.errors import Problem
from limbeck.interfaces import Want
from limbeck.recipe.binding import step_values
from limbeck.recipe.bound import BoundLoss
from limbeck.recipe.document import Document, Path_
from limbeck.recipe.schema import RecipeFile

STORED = ("top_k", "target")  # what cached signals hold
WITHOUT_SIGNAL = "none"


def cross_check(document: Document, content: RecipeFile | None, losses: Sequence[BoundLoss]) -> list[Problem]:
    """Problems between parts that are valid by themselves. `content` is None where the fixed part has faults."""
    problems = list(_names(document, losses))
    if content is not None:
        problems += _teacher(document, content, losses)
        problems += _signals(document, content, losses)
    return problems


def _at(loss: BoundLoss) -> Path_:
    return ("losses", int(loss.field.removeprefix("losses[").removesuffix("]")))


def _names(document: Document, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    seen: dict[str, BoundLoss] = {}
    for loss in losses:
        first = seen.setdefault(loss.name, loss)
        if first is not loss:
            message = f"the name {loss.name!r} is taken by {first.field}"
            hint = f"give one of them another name, e.g. name: {loss.name}_2"
            yield document.problem((*_at(loss), "name"), message, hint)


def _teacher(document: Document, content: RecipeFile, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    for loss in losses:
        if loss.needs.primitive != WITHOUT_SIGNAL and content.teacher is None:
            yield document.problem(_at(loss), f"{loss.plugin.name} needs a teacher's signal", "add teacher:")
        if loss.needs.teacher_text and content.data.generator is None:
            message = f"{loss.plugin.name} trains on text that a teacher wrote, but data.path is a file"
            hint = "add data.generator, or use cross_entropy if that file is a teacher's text"
            yield document.problem(_at(loss), message, hint)
    student = content.student
    if content.teacher is None and student.from_ == "teacher":
        yield document.problem(("student", "from"), "there is no teacher to make a student from", "add teacher:")
    if content.teacher is None and student.config is not None and student.tokenizer is None:
        message = "is missing: a student from scratch without a teacher needs a tokenizer"
        yield document.problem(("student", "tokenizer"), message, "name a folder or a hub id")


def _signals(document: Document, content: RecipeFile, losses: Sequence[BoundLoss]) -> Iterator[Problem]:
    for loss in losses:
        primitive = loss.needs.primitive
        if content.signals.source == "cached" and primitive not in (*STORED, WITHOUT_SIGNAL):
            message = f"{loss.plugin.name} needs {primitive}, which is not stored"
            yield document.problem(_at(loss), message, "write signals: {source: online}")
        temperature = loss.knobs.get("temperature")
        if primitive == "top_k" and temperature is not None and step_values(temperature) is None:
            at = (*_at(loss), "temperature")
            message = "a temperature over the top k must be a number or a step function: the tail is stored for each"
            yield document.problem(at, message, "use {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}")


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
