"""Loads a recipe: reads, validates, binds its plugins, and tells every problem at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from limbeck import files
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.plugins import Registry
from limbeck.recipe.binding import Binder
from limbeck.recipe.bound import Bound, BoundLoss, dump
from limbeck.recipe.document import Document, Path_, field_path, read_document
from limbeck.recipe.paths import Guard, PathUse, Resolver, absolute, missing
from limbeck.recipe.problems import places_of, problems_of
from limbeck.recipe.rules import cross_check, given
from limbeck.recipe.schema import DataSpec, EvaluationSpec, RecipeFile, SignalsSpec, StudentSpec
from limbeck.recipe.training import TrainingSpec, why_refused


@dataclass(frozen=True)
class Recipe:
    """A valid recipe. `path` is the file itself (links followed); every path in it is absolute."""

    path: Path
    text: str
    teacher: Bound | None
    student: StudentSpec
    data: DataSpec
    generator: Bound | None
    losses: tuple[BoundLoss, ...]
    signals: SignalsSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    output: Path
    document: Document = field(repr=False, compare=False)
    uses: tuple[PathUse, ...] = field(default=(), repr=False)
    candidates: dict[str, Bound] = field(default_factory=dict, repr=False)  # every teacher that is named, by name

    @property
    def paths(self) -> tuple[PathUse, ...]:
        """The paths that a run reads. Those of teachers that are not picked are left out."""
        own = f"{self.teacher.field}." if self.teacher else "teacher."
        return tuple(use for use in self.uses if not use.field.startswith("teachers.") or use.field.startswith(own))

    def taught_by(self, name: str | None) -> Recipe:
        """This recipe with another of its candidates as the teacher, or with none."""
        return replace(self, teacher=None if name is None else self.candidates[name])

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON values with every default and with absolute paths. It is a valid recipe of its own."""
        student = dump(self.student)
        if self.student.config is None:
            del student["seed"]
        data = dump(self.data)
        if self.generator:
            data["generator"] = self.generator.dump()
        return {
            **({"teacher": self.teacher.dump()} if self.teacher else {}),
            "student": student,
            "data": data,
            "losses": [loss.dump() for loss in self.losses],
            "signals": dump(self.signals),
            "training": dump(self.training),
            "evaluation": dump(self.evaluation),
            "output": str(self.output),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the resolved recipe."""
        return files.digest(self.resolved())

    def missing_paths(self) -> list[Problem]:
        """A problem for each input of the recipe that is not there, with the path as written and as resolved."""
        return missing(self.path, self.paths)

    def place(self, problem: Problem) -> Problem:
        """`problem` with the file, line and column of the field of the recipe that it is about.

        One with a line (of a row) and one about no field and no path of the recipe stay as they are. A file that it
        names (a model's folder) goes into its message.
        """
        document, file = self.document, problem.file
        at = self._by_index(field_path(problem.field or ""))
        if problem.line is not None or (at and at[0] not in RecipeFile.model_fields):
            return problem
        named: list[Path_] = []
        if file is not None:
            inside = (Path(file), *Path(file).parents)  # a file of a model's folder is told at the folder
            uses = [field_path(use.field) for use in self.paths if use.resolved in inside]
            named = [one for one in (*document.find(at, file), *uses) if one[: len(at)] == at]
        if not at and not named:
            return problem
        placed = document.problem(named[0] if named else at, problem.message, problem.hint)
        known = file is None or file == placed.file or file in problem.message
        return placed if known else replace(placed, message=f"{file}: {problem.message}")

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Give the problems of what is raised inside their places in the recipe."""
        try:
            yield
        except LimbeckError as error:
            error.problems = tuple(self.place(problem) for problem in error.problems)
            raise

    def _by_index(self, at: Path_) -> Path_:
        """`losses.NAME.FIELD`, as a knob is called in events, by its place in the list."""
        names = [loss.name for loss in self.losses]
        if len(at) > 1 and at[0] == "losses" and at[1] in names:
            return ("losses", names.index(str(at[1])), *at[2:])
        return at


@dataclass(frozen=True)
class Draft:
    """What a file says: every problem, and the recipe without what has faults (None where no sense is left)."""

    path: Path
    recipe: Recipe | None
    problems: tuple[Problem, ...]

    @property
    def error(self) -> LimbeckError:
        """RECIPE_INVALID with every problem."""
        count = len(self.problems)
        message = f"{self.path.name} is not a valid recipe: {count} {'problem' if count == 1 else 'problems'}."
        return LimbeckError(Reason.RECIPE_INVALID, message, self.problems)


def load_recipe(path: Path, registry: Registry, *, undecided: bool = False) -> Recipe:
    """Load a recipe with the plugins of `registry`.

    Relative paths are relative to the folder of the recipe itself (links are followed). Whether they exist is not
    asked of a valid recipe: see :meth:`Recipe.missing_paths`. With `undecided`, `teacher` need not have picked one of
    `teachers` yet. Raises RECIPE_INVALID with every problem, those of missing paths too, each with its place.
    """
    draft = read_recipe(path, registry, undecided=undecided)
    if draft.problems or draft.recipe is None:
        raise draft.error
    return draft.recipe


def read_recipe(
    path: Path,
    registry: Registry,
    *,
    undecided: bool = False,
    text: str | None = None,
    guard: Guard | None = None,
) -> Draft:
    """As :func:`load_recipe`, but a recipe with faults comes back as far as it is sound: its data can be checked too.

    With `text` it is read as if it stood in a file at `path`, whose folder is a real one; nothing is written. `guard`
    says which paths it may name. Raises RECIPE_INVALID where the file cannot be read.
    """
    file = Path(path).resolve() if text is None else Path(path)
    document = read_document(file, text=text)
    binder = Binder(document, registry, guard)
    content = _validate(document, binder)
    sections = document.value
    candidates = binder.bind_teachers()
    picked = sections.get("teacher")
    own = next((bound for bound in candidates.values() if bound.field == "teacher"), None)
    teacher = candidates.get(picked) if isinstance(picked, str) else own
    generator_at: Path_ = ("data", "generator")
    generator = binder.bind("generator", generator_at) if isinstance(document.at(generator_at), dict) else None
    written = sections.get("losses") if isinstance(sections.get("losses"), list) else []
    losses = [
        binder.bind_loss(("losses", index)) if isinstance(mapping, dict) else None
        for index, mapping in enumerate(written or [])
    ]
    good = tuple(loss for loss in losses if loss is not None)
    crossed = cross_check(document, good, undecided=undecided)
    problems = [*document.problems, *binder.problems, *crossed]
    if guard is not None:
        told = {use.field for use in binder.resolver.uses} | {problem.field or "" for problem in binder.problems}
        problems += guard.problems(document, told)
    if problems:
        problems += missing(file, tuple(binder.resolver.uses))
        problems = sorted(dict.fromkeys(problems), key=lambda one: (one.line or 0, one.column or 0))
    doubtful = document.problems or any((one.field or "").startswith(("student", "data")) for one in crossed)
    if content is None or doubtful or not _makes_sense(document, content, teacher, generator):
        return Draft(file, None, tuple(problems))
    recipe = Recipe(
        path=file,
        text=document.text,
        teacher=teacher,
        student=content.student,
        data=content.data,
        generator=generator,
        losses=good,
        signals=content.signals,
        training=content.training,
        evaluation=content.evaluation,
        output=absolute(file.parent, content.output),
        document=document,
        uses=tuple(binder.resolver.uses),
        candidates=candidates,
    )
    return Draft(file, recipe, tuple(problems))


def _validate(document: Document, binder: Binder) -> RecipeFile | None:
    """The fixed part of the recipe, without the fields that have faults; None where too little is left."""
    try:
        return RecipeFile.model_validate(document.value, context=binder.resolver.below(()))
    except ValidationError as error:
        plugin_problems = ("plugin",)  # a missing `plugin:` is told by the binder, with the names that there are
        for problem in problems_of(error, document, (), RecipeFile):
            if (problem.field or "").split(".")[-1] in plugin_problems and problem.message == "is missing":
                continue
            binder.problems.append(_with_a_word(problem))
        rest = {name: dict(value) if isinstance(value, dict) else value for name, value in document.value.items()}
        for place in places_of(error, document, ()):
            holder = rest if len(place) == 1 else rest.get(str(place[0]))
            if place and isinstance(holder, dict):
                holder.pop(place[:2][-1], None)
    try:
        return RecipeFile.model_validate(rest, context=Resolver(document, binder.resolver.guard).below(()))
    except ValidationError:
        return None


def _makes_sense(document: Document, content: RecipeFile, teacher: Bound | None, generator: Bound | None) -> bool:
    """Whether there is enough to check: one student, rows, and every teacher and generator that is written.

    No field may be left out for its faults by which rows and tokenizer are judged.
    """
    student, data = content.student, content.data
    origins = [origin for origin in (student.from_, student.model, student.config) if origin is not None]
    bound = given(document, ("teacher",), RecipeFile) == (teacher is not None)
    bound = bound and (data.generator is None) == (generator is None)
    if not bound or len(origins) != 1 or (data.path is None) == (data.generator is None):
        return False
    decisive: list[tuple[str, BaseModel, str]] = [
        ("data", data, name) for name in ("chat_template", "bos", "on_bad_row")
    ]
    decisive += [("student", student, "tokenizer")]
    return not any(
        given(document, (section, name), type(part)) and name not in part.model_fields_set
        for section, part, name in decisive
    )


def _with_a_word(problem: Problem) -> Problem:
    """Say more about fields that somebody may expect with good reason."""
    section, _, name = (problem.field or "").partition(".")
    if problem.message == "there is no such field" and section == "training" and (why := why_refused(name)):
        return Problem(f"is not taken: {why}", problem.file, problem.line, problem.column, problem.field)
    return problem
