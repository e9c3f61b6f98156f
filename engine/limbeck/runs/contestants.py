"""Who takes part in a comparison: every teacher of a recipe, and the student as it starts and as it was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Teacher, TeacherInfo, TextTeacher
from limbeck.runs.contents import Contents
from limbeck.runs.findings import told_as_fault
from limbeck.runs.stage import Record
from limbeck.runs.train import first_student
from limbeck.teachers import folder as folders
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.model import LoadedModel
from limbeck.teachers.transformers import TransformersTeacher

if TYPE_CHECKING:
    from limbeck.data import Tokenizer
    from limbeck.recipe import Recipe

STARTING, TRAINED = "student (start)", "student (trained)"


@dataclass(frozen=True)
class Contestant:
    """`make` gives it as a teacher that can be asked; `tokenizer(info)`: what its ids are read and written with."""

    name: str
    kind: Literal["teacher", "student"]
    plugin: str | None
    picked: bool
    make: Callable[[], Teacher | TextTeacher]
    tokenizer: Callable[[TeacherInfo], Tokenizer]


def contestants(recipe: Recipe, contents: Contents) -> Iterator[Contestant]:
    """The teachers in the order of the recipe, then the student, where it can be told what it is made of."""
    for name, bound in recipe.candidates.items():
        yield Contestant(
            name=name,
            kind="teacher",
            plugin=bound.name,
            picked=recipe.teacher is bound,
            make=partial(_make, recipe, name),
            tokenizer=partial(_tokenizer_of, recipe, name, contents),
        )
    if knows_student(recipe):
        yield _student(STARTING, contents, lambda: _starting(contents))
    if (recipe.output / "student").is_dir() and Record(recipe.output, "train").complete:
        yield _student(TRAINED, contents, lambda: _saved(recipe, recipe.output / "student"))


def knows_student(recipe: Recipe) -> bool:
    """Whether the student's start does not wait for a teacher to be picked."""
    spec = recipe.student
    return recipe.teacher is not None or spec.model is not None or spec.tokenizer is not None


def _student(name: str, contents: Contents, make: Callable[[], Teacher]) -> Contestant:
    return Contestant(name, "student", None, False, make, lambda info: contents.loaded_tokenizer)


def _make(recipe: Recipe, name: str) -> Teacher | TextTeacher:
    bound = recipe.candidates[name]
    gone = recipe.taught_by(name).missing_paths()
    own = [problem for problem in gone if (problem.field or "").startswith(f"{bound.field}.")]
    if own:
        raise LimbeckError(Reason.MODEL_INVALID, problems=own)
    with told_as_fault(bound):
        made: Teacher | TextTeacher = bound.make()
        return made


def students_tokenizer(contents: Contents) -> Tokenizer | None:
    """None where it cannot be had, which is told when the student is asked."""
    try:
        return None if contents.tokenizer_folder is None else contents.loaded_tokenizer
    except LimbeckError:
        return None


def _tokenizer_of(recipe: Recipe, name: str, contents: Contents, info: TeacherInfo) -> Tokenizer:
    """The student's tokenizer where the teacher reads the same ids, as in a run; else the teacher's own folder's.

    Raises TOKENIZER_MISMATCH where neither gives the ids that the teacher reads.
    """
    from limbeck.data import Tokenizer

    shared = students_tokenizer(contents)
    if shared is not None and shared.digest == info.tokenizer_digest:
        return shared
    own = Contents(recipe.taught_by(name)).teacher_tokenizer_folder
    for candidate in [own] if own is not None else _folders(recipe):
        tokenizer = Tokenizer.load(candidate)
        if tokenizer.digest == info.tokenizer_digest:
            return tokenizer
    hint = "name a student or another teacher with its tokenizer, whose folder is then used"
    problem = Problem(f"the tokenizer of {info.name} is not on this machine", hint=hint)
    raise LimbeckError(Reason.TOKENIZER_MISMATCH, "What the teacher reads cannot be told.", [problem])


def _folders(recipe: Recipe) -> Iterator[Path]:
    """Tokenizers of the other candidates, as far as they can be had."""
    for name in recipe.candidates:
        try:
            folder = Contents(recipe.taught_by(name)).teacher_tokenizer_folder
        except LimbeckError:  # that it cannot be had is told where it is asked
            continue
        if folder is not None:
            yield folder


def _starting(contents: Contents) -> Teacher:
    spec = contents.recipe.student
    return _saved(contents.recipe, Path(spec.model)) if spec.model is not None else _Unsaved(contents)


def _saved(recipe: Recipe, folder: Path) -> Teacher:
    spec = recipe.student
    return TransformersTeacher(TransformersConfig(model=str(folder), dtype=spec.dtype, attention=spec.attention))


class _Unsaved(TransformersTeacher):
    """A student that is on no disk yet: made of layers of the teacher, or from scratch."""

    def __init__(self, contents: Contents) -> None:
        super().__init__(TransformersConfig(model=str(contents.tokenizer_folder)))
        self._contents = contents

    def info(self) -> TeacherInfo:
        """What it is; makes the model. Raises MODEL_INVALID."""
        if self._info is None:
            model = first_student(self._contents).model
            self._model = LoadedModel(model.to("cuda") if torch.cuda.is_available() else model, "the student")
            tokenizer = self._contents.loaded_tokenizer
            self._info = TeacherInfo(
                name="student",
                vocab_size=self._model.vocab_size,
                tokenizer_digest=tokenizer.digest,
                template_digest=tokenizer.template_digest,
                weights_digest="",
                max_length=folders.max_length(model.config.get_text_config()),
                capabilities=frozenset({"generate", "target", "top_k"}),
                eos_ids=tuple(sorted({*folders.eos_ids(self.folder), *tokenizer.eos_ids})),
                bos_id=tokenizer.bos_id,
            )
        return self._info

    def _load(self) -> LoadedModel:
        self.info()
        assert self._model is not None, "made by info"
        return self._model
