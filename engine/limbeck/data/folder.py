"""What a tokenizer's folder says: its tokenizer, its template, its first and its last tokens."""

from __future__ import annotations

import copy
import json
import os
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from limbeck.data.chat import Template
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest

Files = tuple[tuple[str, int, int], ...]  # name, bytes and time of change of each


class Source:
    """The tokenizer of a folder, shared by all in this process who read it, by whatever rules: not to be changed."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf

    def hf(self) -> Any:
        """The transformers tokenizer, with a chat template of its own."""
        return copy.copy(self._hf)

    @cached_property
    def json(self) -> str:
        """All of it."""
        return str(self._hf.backend_tokenizer.to_str())

    @cached_property
    def digest(self) -> str:
        """sha256 of what turns text into ids: all of the tokenizer but post-processor, padding and truncation."""
        content = json.loads(self.json)
        for key in ("post_processor", "padding", "truncation", "version"):
            content.pop(key, None)
        return digest(content)

    @cached_property
    def byte_level(self) -> bool:
        """Whether its tokens are spelled in signs that stand for bytes."""
        decoder = self._hf.backend_tokenizer.decoder
        return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()  # its JSON


def read_source(folder: Path) -> Source:
    """The tokenizer of a folder, read again only where its files have changed. Raises MODEL_INVALID, EXTRA_MISSING."""
    files: Files = ()
    with suppress(OSError), os.scandir(folder) as entries:  # what cannot be read is told by who reads it
        files = tuple(sorted(_file(entry) for entry in entries if entry.is_file()))
    return _source(folder.absolute(), files)


def _file(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    stat = entry.stat()
    return entry.name, stat.st_size, stat.st_mtime_ns


@lru_cache(1)  # one: each takes hundreds of megabytes, and mostly teacher and student share it
def _source(folder: Path, files: Files) -> Source:
    return Source(_load_hf(folder))


def _load_hf(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        problem = Problem(f"reading a tokenizer needs {error.name}", hint='pip install "limbeck[train]"')
        raise LimbeckError(Reason.EXTRA_MISSING, problems=[problem]) from error
    try:
        if not folder.is_dir():
            raise FileNotFoundError("there is no such folder")
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises a dozen kinds for a broken folder
        said = shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise invalid(folder, f"no tokenizer can be read here: {said}") from error
    if not getattr(hf, "is_fast", False):
        raise invalid(folder, "only fast tokenizers (with a tokenizer.json) are supported")
    return hf


def invalid(folder: Path, message: str, hint: str | None = None) -> LimbeckError:
    """MODEL_INVALID about a folder."""
    return LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, file=str(folder), hint=hint)])


def template_text(hf: Any, folder: Path, file: Path | None) -> str | None:
    """The chat template of a file, else of the folder; None for none. Raises MODEL_INVALID."""
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = Problem(f"the chat template cannot be read: {error}", file=str(file), field="data.chat_template")
            raise LimbeckError(Reason.MODEL_INVALID, problems=[problem]) from error
    found: Any = hf.chat_template
    if isinstance(found, dict):
        if "default" not in found:
            hint = "name one of them as a file in data.chat_template"
            raise invalid(folder, f"several chat templates and none is the default: {', '.join(found)}", hint)
        found = found["default"]
    return str(found) if found else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def eos_ids(hf: Any, folder: Path, template: Template | None) -> tuple[int, ...]:
    """The tokenizer's end token, those of the model's own configs, and the one that closes an answer."""
    found: list[Any] = [hf.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    if template is not None and (end := template.end_token()) is not None:
        found.append(hf.convert_tokens_to_ids(end))
    size = len(hf)
    ids = tuple(dict.fromkeys(i for i in found if isinstance(i, int) and 0 <= i < size))
    if not ids:
        raise invalid(folder, "the tokenizer has no end token", "set eos_token in tokenizer_config.json")
    return ids


def bos_rule(hf: Any, folder: Path, rule: str, template: Template | None) -> tuple[int | None, bool]:
    """(the id that leads every sequence, whether a template's own first one is taken off)."""
    bos = hf.bos_token_id
    if rule == "never":
        return None, True
    if rule == "always":
        if bos is None:
            problem = Problem("data.bos is always, but the tokenizer has no <bos>", file=str(folder))
            raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
        return int(bos), True
    told_not = _read_json(folder / "tokenizer_config.json").get("add_bos_token") is False
    opens_turns = template is not None and bos is not None and template.opens_turns(hf.bos_token)
    if bos is None or bos == hf.eos_token_id or told_not or opens_turns:
        return None, False
    return int(bos), True
