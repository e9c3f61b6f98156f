"""Digests of what a run reads: weights, tokenizers, templates, rows. Of contents, never of paths; light to import."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from limbeck.files import sha256_file
from limbeck.interfaces import JudgingMark, MadeMark, ModelMark, PathMark, TextTeacher, TextTeacherInfo
from limbeck.teachers.folder import model_folder, weights_digest

if TYPE_CHECKING:
    from limbeck.data import Tokenizer
    from limbeck.recipe import Bound, Recipe

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


class Contents:
    """What a recipe reads, as digests of contents; each is computed at the first question and then remembered."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._models: dict[tuple[Path, bool], dict[str, Any]] = {}

    @cached_property
    def teacher_folder(self) -> Path | None:
        """The folder with the teacher's weights; None without a teacher, or where it is no model of this machine."""
        found = (folder for mark, folder in self._teacher_folders if mark.weights)
        return next((folder for folder in found if any(folder.glob("*.safetensors"))), None)

    @cached_property
    def _teacher_folders(self) -> list[tuple[ModelMark, Path]]:
        """Folders that the teacher's config names as models: its weights, its tokenizer."""
        teacher = self.recipe.teacher
        if teacher is None:
            return []
        config = teacher.config
        named = [(mark, getattr(config, name)) for name, mark in _marks(type(config)).items()]
        return [
            (mark, model_folder(str(value), weights=mark.weights))
            for mark, value in named
            if isinstance(mark, ModelMark) and value is not None
        ]

    @cached_property
    def teacher_tokenizer_folder(self) -> Path | None:
        """The first folder of the teacher's config that holds a tokenizer."""
        return next((folder for _, folder in self._teacher_folders if any(folder.glob("tokenizer*"))), None)

    @cached_property
    def student_folder(self) -> Path | None:
        """The folder with the weights that the student starts from; None for one from scratch."""
        student = self.recipe.student
        if student.model is not None:
            return model_folder(student.model)
        return self.teacher_folder if student.from_ is not None else None

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """The folder with the student's tokenizer: its own, or the teacher's for a student made from nothing."""
        if self.recipe.student.tokenizer is not None:
            return model_folder(self.recipe.student.tokenizer)
        if self.student_folder is not None:
            return self.student_folder
        return self.teacher_tokenizer_folder

    @cached_property
    def text_teacher(self) -> TextTeacherInfo | None:
        """What a teacher that is asked with text says of itself; None for one on token ids, and without any."""
        if self.recipe.teacher is None or self.teacher_folder is not None:
            return None
        made = self.recipe.teacher.make()
        return made.info() if isinstance(made, TextTeacher) else None

    @cached_property
    def teacher(self) -> dict[str, Any] | None:
        """The teacher's identity: its plugin, its config with contents in the place of paths.

        One that is asked with text says itself what its answers depend on: another price or budget makes nothing anew.
        """
        teacher = self.recipe.teacher
        if teacher is None:
            return None
        if (text := self.text_teacher) is not None:
            return {"plugin": teacher.name, "model": text.model, "info": text.digest}
        identity = self.plugin(teacher)
        if self.teacher_folder is None:
            info = teacher.make().info()
            identity["info"] = [info.weights_digest, info.tokenizer_digest, info.template_digest, info.vocab_size]
        return identity

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """The student's tokenizer and the rules of the recipe that bear on it."""
        data = self.recipe.data
        template = None if data.chat_template is None else sha256_file(Path(data.chat_template))
        folder = self.tokenizer_folder
        files = None if folder is None else self.model(folder)["tokenizer"]
        return {"files": files, "template": template, "bos": data.bos}

    @cached_property
    def loaded_tokenizer(self) -> Tokenizer:
        """The tokenizer that teacher and student share, by the rules of the recipe. Imports transformers."""
        from limbeck.data import Tokenizer

        folder, data = self.tokenizer_folder, self.recipe.data
        assert folder is not None, "the preflight sees to it that there is a tokenizer"
        template = None if data.chat_template is None else Path(data.chat_template)
        return Tokenizer.load(folder, bos=data.bos, chat_template=template)

    @cached_property
    def student(self) -> dict[str, Any]:
        """What the student is before the first step."""
        spec = self.recipe.student
        found = spec.model_dump(mode="json", by_alias=True, exclude={"model", "tokenizer", "config"})
        if isinstance(spec.config, str):
            path = Path(spec.config)
            found["config"] = sha256_file(path / "config.json" if path.is_dir() else path)
        elif spec.config is not None:
            found["config"] = dict(spec.config)
        if self.student_folder is not None:
            found |= self.model(self.student_folder)
        return found

    @cached_property
    def rows(self) -> list[str]:
        """Digests of the files of `data.path`, in order."""
        return [sha256_file(path) for path in row_files(self.recipe)]

    def model(self, folder: Path, *, weights: bool = True) -> dict[str, Any]:
        """Digests of a model folder: weights (None without `weights`), config, tokenizer."""
        if (folder, weights) not in self._models:
            tokenizer = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})
            skip = (*CONFIG_FILES, "model.safetensors.index.json")
            there = weights and any(folder.glob("*.safetensors"))
            self._models[folder, weights] = {
                "weights": weights_digest(folder) if there else None,
                "config": {name: sha256_file(folder / name) for name in CONFIG_FILES if (folder / name).is_file()},
                "tokenizer": {file.name: sha256_file(file) for file in tokenizer if file.name not in skip},
            }
        return self._models[folder, weights]

    def plugin(self, bound: Bound) -> dict[str, Any]:
        """A plugin's name and config, with digests of contents in the place of paths."""
        return {"plugin": bound.name, "config": self.config(bound.config)}

    def config(self, config: BaseModel) -> dict[str, Any]:
        """A config as JSON with digests of contents in the place of paths."""
        found = config.model_dump(mode="json")
        for name, mark in _marks(type(config)).items():
            if isinstance(mark, MadeMark | JudgingMark):
                del found[name]  # what is made there is no input, and what only judges changes no output
                continue
            value = getattr(config, name)
            paths = [value] if isinstance(value, str) else value or []
            found[name] = [self._content(str(path), mark) for path in paths]
        return found

    def _content(self, path: str, mark: PathMark | ModelMark) -> Any:
        if isinstance(mark, ModelMark):
            return self.model(model_folder(path, weights=mark.weights), weights=mark.weights)
        place = Path(path)
        if place.is_dir():
            return {
                str(file.relative_to(place)): sha256_file(file) for file in sorted(place.rglob("*")) if file.is_file()
            }
        return sha256_file(place) if place.is_file() else None


def row_files(recipe: Recipe) -> list[Path]:
    """The files of `data.path`, in order; none where a generator makes the rows."""
    path = recipe.data.path
    return [Path(item) for item in ([path] if isinstance(path, str) else path or [])]


_Mark = MadeMark | PathMark | ModelMark | JudgingMark


def _marks(config: type[BaseModel]) -> Mapping[str, _Mark]:
    """The fields of `config` that are marked, each with its mark."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {name: _mark(hints[name]) for name in config.model_fields}
    return {name: mark for name, mark in found.items() if mark is not None}


def _mark(annotation: Any) -> _Mark | None:
    metadata: Sequence[Any] = getattr(annotation, "__metadata__", ())
    marks = [item for item in metadata if isinstance(item, _Mark)]
    inner = (_mark(part) for part in typing.get_args(annotation) if part is not annotation)
    return next((mark for mark in (*marks, *inner) if mark is not None), None)
