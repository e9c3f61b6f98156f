"""`limbeck teachers compare`: candidates and student on the same held-out rows, one model in memory at a time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import LimbeckError, Problem, Reason, told
from limbeck.interfaces import Sampling, Teacher, TextTeacher
from limbeck.runs.contents import Contents
from limbeck.runs.questions import Question, questions
from limbeck.runs.stage import Interrupted

if TYPE_CHECKING:
    from limbeck.recipe import Recipe
    from limbeck.runs.contest import Outcome
    from limbeck.runs.contestants import Contestant

T = TypeVar("T")
Told = Callable[[str, str, int, int], object]  # who, what is being done, how far it is, of how much
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Entry:
    """A contestant and what was found out, or why nothing could be."""

    contestant: Contestant
    outcome: Outcome | None
    failed: LimbeckError | None = None


@dataclass(frozen=True)
class Contest:
    """Everything that was measured. `held_out`: rows that are held out, of which those of `asked` were drawn."""

    recipe: Recipe
    asked: list[Question]
    held_out: int
    sampling: Sampling
    entries: list[Entry]


def compare(recipe: Recipe, rows: int, *, stop: Callable[[], str | None], told: Told) -> Contest:
    """Ask every contestant about up to `rows` held-out rows. Writes nothing.

    A contestant that fails is an entry with its error; where no teacher is left, raises the first one's, with the
    problems of all. Raises DATA_INVALID where there are no rows, Interrupted when `stop` names a signal.
    """
    from limbeck.runs.contestants import contestants, students_tokenizer

    if not recipe.candidates:
        hint = "add teachers: {NAME: {plugin: …}, …}"
        problem = Problem("there is no teacher to compare", str(recipe.path), field="teachers", hint=hint)
        raise LimbeckError(Reason.RECIPE_INVALID, problems=[problem])
    if here := [one for one in recipe.missing_paths() if (one.field or "").startswith("data.")]:
        raise LimbeckError(Reason.RECIPE_INVALID, problems=here)
    contents = Contents(recipe)
    asked, held_out = questions(recipe, students_tokenizer(contents), rows)
    sampling = Sampling(max_new_tokens=_most_new_tokens(recipe))
    entries: list[Entry] = []
    for contestant in contestants(recipe, contents):
        if contestant.kind == "student":  # the teachers come first
            _refuse_none(entries)
        work = _contend(recipe, contestant, asked, sampling, told)
        entries.append(asyncio.run(_unless(stop, work)))
        gc.collect()  # models hold cycles, and the next one needs the memory now
    _refuse_none(entries)
    return Contest(recipe, asked, held_out, sampling, entries)


def _refuse_none(entries: list[Entry]) -> None:
    """Raise the first teacher's error, with the problems of all, where every one has failed."""
    errors = [one.failed for one in entries if one.contestant.kind == "teacher"]
    failed = [error for error in errors if error is not None]
    if len(failed) == len(errors):
        problems = [problem for error in failed for problem in error.problems]
        message = failed[0].message if len(failed) == 1 else "None of the teachers could be compared."
        raise LimbeckError(failed[0].reason, message, problems)


def _most_new_tokens(recipe: Recipe) -> int:
    """As many as the generator asks for, else as the evaluation does."""
    own = getattr(recipe.generator.config, "max_new_tokens", None) if recipe.generator else None
    return own if isinstance(own, int) else recipe.evaluation.max_new_tokens


async def _unless(stop: Callable[[], str | None], work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but give it up when a signal comes."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if (name := stop()) is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise Interrupted(name)
        await asyncio.wait([task], timeout=POLL_SECONDS)
    return task.result()


async def _contend(
    recipe: Recipe, contestant: Contestant, asked: list[Question], sampling: Sampling, say: Told
) -> Entry:
    from limbeck.runs.contest import contend, contend_by_text
    from limbeck.teachers.selfcheck import self_check

    teacher: Teacher | TextTeacher | None = None

    def report(what: str, done: int, total: int) -> None:
        say(contestant.name, what, done, total)

    try:
        report("being loaded", 0, 0)
        teacher = await asyncio.to_thread(contestant.make)
        if isinstance(teacher, TextTeacher):
            return Entry(contestant, await contend_by_text(teacher, asked, sampling, report))
        info = await asyncio.to_thread(teacher.info)
        tokenizer = await asyncio.to_thread(contestant.tokenizer, info)
        if contestant.kind == "teacher":  # as before a run; a student may be untrained, and says nothing to check by
            await self_check(teacher, tokenizer)
        return Entry(contestant, await contend(teacher, tokenizer, asked, sampling, recipe.data, report))
    except LimbeckError as error:
        return Entry(contestant, None, _placed(recipe, contestant, error))
    except ModuleNotFoundError as error:
        problem = Problem(f"the package {error.name} is not installed", hint="install what its plugin says it needs")
        return Entry(contestant, None, _placed(recipe, contestant, LimbeckError(Reason.EXTRA_MISSING, None, [problem])))
    except Exception as error:  # a fault of its plugin's must not take the others down
        problem = Problem(told(error))
        return Entry(
            contestant, None, _placed(recipe, contestant, LimbeckError(Reason.PLUGIN_INVALID, None, [problem]))
        )
    finally:
        if teacher is not None:
            await teacher.close()


def _placed(recipe: Recipe, contestant: Contestant, error: LimbeckError) -> LimbeckError:
    """An error with its places in the recipe: of the candidate, or of the student."""
    bound = recipe.candidates[contestant.name] if contestant.kind == "teacher" else None
    own = "student" if bound is None else bound.field
    read = recipe if bound is None else recipe.taught_by(contestant.name)
    problems = []
    for problem in error.problems or (Problem(error.message),):
        field = problem.field
        if problem.line is None and field in (None, "teacher"):
            field = own
        elif bound is not None and str(field).partition(".")[0] in type(bound.config).model_fields:
            field = f"{own}.{field}"
        problems.append(read.place(replace(problem, field=field)))
    return LimbeckError(error.reason, error.message, problems)
