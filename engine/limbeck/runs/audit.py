"""What a recipe's signals cost and lose, measured on its own rows with its own student and losses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import HeadTeacher, ScoreItem, Teacher, TeacherInfo, Want
from limbeck.runs.contents import Contents, row_files
from limbeck.runs.prepare import TRAIN

if TYPE_CHECKING:
    from limbeck.data import TokenSequence
    from limbeck.recipe import Recipe
    from limbeck.signals import OutputHead, Signal
    from limbeck.training.audit import Audit

KS = (4, 16, 64, 256)  # supports that are compared, beside the recipe's own


def audit_recipe(recipe: Recipe, teacher: Teacher, rows: int, advance: Callable[[int], object]) -> Audit:
    """Audit the first `rows` training rows, by the losses of `recipe` that read a top k, at their first values.

    Raises CAPABILITY_MISSING where no loss reads one, or the teacher gives neither hidden states with its output head
    nor the whole vocabulary; DATA_INVALID where rows are still to be generated; what teacher and student raise.
    """
    from limbeck.functional import Term
    from limbeck.interfaces import LossContext
    from limbeck.training import build_student
    from limbeck.training.audit import audit
    from limbeck.training.knobs import Knobs

    losses = [loss for loss in recipe.losses if loss.needs.primitive == "top_k" and loss.kind == "token"]
    if not losses:
        message = "no loss of this recipe reads a teacher's top_k; there is nothing to compare"
        raise _missing(recipe, message, "losses", "audit a recipe with forward_kl, reverse_kl or jsd")
    contents = Contents(recipe)
    sequences = _sequences(recipe, contents)[:rows]
    knobs = Knobs(losses, max_steps=1)
    knobs.advance(0, {})
    values = knobs.values()
    temperatures = sorted({1.0, *(value.temperature for value in values.values())})
    info = teacher.info()
    own = {int(loss.config.top_k) for loss in losses}
    ks = sorted({k for k in (*KS, *own) if k <= (info.max_top_k or info.vocab_size)}, reverse=True)
    want = _want(recipe, info, teacher, ks[0], temperatures)
    signals, head = asyncio.run(_ask(teacher, sequences, want))
    student = build_student(recipe.student, contents.teacher_folder, tokenizer_folder=contents.tokenizer_folder)
    context = LossContext(student.model.config.get_text_config().hidden_size, info.hidden_size, info.vocab_size)
    terms = [Term.of_recipe(loss, context) for loss in losses]
    costs = _costs(info, ks, temperatures)
    return audit(student.model, terms, values, sequences, signals, head, costs, ks, advance=advance)


def _sequences(recipe: Recipe, contents: Contents) -> Sequence[TokenSequence]:
    from limbeck.data import prepare, read_rows, read_sequences

    path = recipe.output / TRAIN
    if path.is_file():
        return read_sequences(path)
    if recipe.generator is not None:
        problem = Problem(
            "the rows are not generated yet", str(recipe.path), field="data.generator", hint="run `limbeck label` first"
        )
        raise LimbeckError(Reason.DATA_INVALID, problems=[problem])
    rows, problems = read_rows(row_files(recipe))
    return prepare(rows, problems, contents.loaded_tokenizer, recipe.data).train


def _want(recipe: Recipe, info: TeacherInfo, teacher: Teacher, k: int, temperatures: Sequence[float]) -> Want:
    """A top k, and the whole vocabulary by the cheaper of the two ways that the teacher has."""
    asked: dict[str, Any] = {"top_k": k, "temperatures": tuple(temperatures)}
    if "hidden_states" in info.capabilities and isinstance(teacher, HeadTeacher):
        return Want(layers=(-1,), **asked)
    if "full" in info.capabilities:
        return Want(full=True, **asked)
    have = ", ".join(sorted(info.capabilities))
    message = f"teacher {info.name} gives neither hidden states nor the whole vocabulary; it has {have}"
    raise _missing(recipe, message, "teacher", "a server gives `full` where it was started with --allow-full")


async def _ask(
    teacher: Teacher, sequences: Sequence[TokenSequence], want: Want
) -> tuple[Mapping[int, Signal], OutputHead | None]:
    items = [ScoreItem(item_id=s.index, ids=s.ids, first_row=s.first_row, n=s.n) for s in sequences]
    try:
        head = await teacher.output_head() if want.layers and isinstance(teacher, HeadTeacher) else None
        async with aclosing(teacher.score(items, want)) as answers:
            return {item_id: signal async for item_id, signal in answers}, head
    finally:
        await teacher.close()


def _costs(info: TeacherInfo, ks: Sequence[int], temperatures: Sequence[float]) -> dict[str, float]:
    """Bytes a token on the wire of each signal, by its name in the audit."""
    from limbeck.signals.messages import header_for

    costs = {"full": 4.0 * info.vocab_size}
    if info.hidden_size is not None:
        costs |= {"hidden states f32": 4.0 * info.hidden_size, "hidden states bf16": 2.0 * info.hidden_size}
    for k in ks:
        header = header_for(info, Want(top_k=k, temperatures=tuple(temperatures)))
        assert header is not None  # k is not 0
        costs[f"top_k {k}"] = float(sum(header.row_bytes.values()))
    return costs


def _missing(recipe: Recipe, message: str, field: str, hint: str) -> LimbeckError:
    problem = Problem(message, str(recipe.path), field=field, hint=hint)
    return LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
