"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """tests/data: tiny tokenizers (tok_a, tok_a_adds_bos, tok_b) and the inputs of the cases (C16, C28, …)."""
    return DATA


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four layers with peaked predictions and the tokenizer tok_a."""
    from limbeck.testing.tiny import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("teacher"), DATA / "tok_a", layers=4, seed=1, scale=3.0)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of two layers with the tokenizer tok_a."""
    from limbeck.testing.tiny import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("student"), DATA / "tok_a", layers=2, seed=2)
