"""What teachers are compared by: held-out rows of a recipe, each with what is asked and the answer that is wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Generator
from limbeck.runs.contents import row_files

if TYPE_CHECKING:
    from limbeck.data import Row, Tokenizer
    from limbeck.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out row. `prompt`: None for a text, which asks nothing. `reference`: None where no answer is known.

    `scored`: the row by which a model's likelihood of the text, or of the reference after the prompt, is measured.
    """

    prompt: str | list[dict[str, Any]] | None
    reference: str | None
    scored: Row | None


def questions(recipe: Recipe, tokenizer: Tokenizer | None, most: int) -> tuple[list[Question], int]:
    """Up to `most` of the held-out rows, drawn by `data.seed`, in order; and how many are held out.

    The split is that of the run, as `tokenizer`, the student's, lets rows through. Where a generator makes the rows,
    its prompts are split alike, and have no reference: what it wrote is a teacher's own text. Raises DATA_INVALID.
    """
    from limbeck.data import prepare, read_rows
    from limbeck.data.split import held_out, split_groups

    data = recipe.data
    rows, problems = read_rows(_prompt_files(recipe) if recipe.generator else row_files(recipe))
    if problems and (recipe.generator or data.on_bad_row == "error"):
        raise LimbeckError(Reason.DATA_INVALID, problems=problems)
    if recipe.generator or tokenizer is None:
        held = held_out(split_groups(rows), data.holdout, data.seed)
        found = [row for row, out in zip(rows, held, strict=True) if out]
    else:
        places = {(one.source, one.line) for one in prepare(rows, problems, tokenizer, data).holdout}
        found = [row for row in rows if (row.source, row.line) in places]
    if not found:
        hint = "set data.holdout to a share or a number of rows: no row may be both trained on and judged by"
        problem = Problem("nothing is held out to compare on", str(recipe.path), field="data.holdout", hint=hint)
        raise LimbeckError(Reason.DATA_INVALID, problems=[problem])
    drawn = sorted(random.Random(data.seed).sample(range(len(found)), min(most, len(found))))
    return [_question(found[place]) for place in drawn], len(found)


def _prompt_files(recipe: Recipe) -> Sequence[Path]:
    assert recipe.generator is not None
    generator: Generator = recipe.generator.make()
    files = [Path(name) for name in generator.inputs() if name.endswith(".jsonl")]
    if not files:
        message = f"the generator {recipe.generator.name} reads no prompts that teachers could be asked"
        problem = Problem(message, field=recipe.generator.field, hint="compare on rows: name them in data.path")
        raise LimbeckError(Reason.DATA_INVALID, problems=[problem])
    return files


def _question(row: Row) -> Question:
    from limbeck.data import Row, prompt_of

    if row.format == "text":
        return Question(None, None, row)
    prompt, reference = prompt_of(row), _reference(row)
    if reference is None:
        return Question(prompt, None, None)
    value = {"prompt": prompt, "completion": reference}
    return Question(prompt, reference, Row(row.source, row.line, value, "completion"))


def _reference(row: Row) -> str | None:
    """The answer that is wanted: the completion, the preferred one, or a conversation's last."""
    if row.format == "messages":
        last = row.value["messages"][-1]
        return str(last["content"]) if last["role"] == "assistant" and last.get("weight", 1) else None
    answer = row.value.get("completion", row.value.get("chosen"))
    return str(answer[0]["content"]) if isinstance(answer, list) else answer
