"""Tokenizers and rules for the tests of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.data import Row, Tokenizer
from limbeck.recipe import DataSpec


@pytest.fixture(scope="session")
def tok(data: Path) -> Callable[..., Tokenizer]:
    """A tokenizer of tests/data by name, with one of its templates."""

    def load(name: str = "tok_a", template: str | None = None, **more: Any) -> Tokenizer:
        file = None if template is None else data / name / "templates" / f"{template}.jinja"
        return Tokenizer.load(data / name, chat_template=file, **more)

    return load


@pytest.fixture(scope="session")
def spec() -> Callable[..., DataSpec]:
    """The rules of a recipe, nothing held out unless asked."""

    def make(**more: Any) -> DataSpec:
        return DataSpec(**({"path": "rows.jsonl", "holdout": 0} | more))

    return make


@pytest.fixture
def variant(data: Path, tmp_path: Path) -> Callable[..., Tokenizer]:
    """tok_a's bytes with other control tokens and another template, as a folder that transformers loads."""

    def make(
        template: str | None,
        special: tuple[str, ...],
        bos: str | None,
        eos: str,
        plain: tuple[str, ...] = (),
        **config: Any,
    ) -> Tokenizer:
        content = json.loads((data / "tok_a" / "tokenizer.json").read_text())
        for number, name in enumerate((*special, *plain), 261):
            content["model"]["vocab"][name] = number
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            content["added_tokens"].append({"id": number, "content": name, "special": name in special, **flags})
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": "<pad>", **config}
        if bos is not None:
            told["bos_token"] = bos
        if template is not None:
            told["chat_template"] = template
        folder = tmp_path / "variant"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        return Tokenizer.load(folder)

    return make


@pytest.fixture(scope="session")
def chat() -> Callable[..., Row]:
    """A row of messages from (role, content) pairs."""

    def make(*turns: tuple[str, str], line: int = 1, **more: Any) -> Row:
        messages = [{"role": role, "content": content} for role, content in turns]
        return Row("rows.jsonl", line, {"messages": messages, **more}, "messages")

    return make
