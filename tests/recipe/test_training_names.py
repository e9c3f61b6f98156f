"""The table of training arguments against the installed transformers."""

from __future__ import annotations

import dataclasses

import pytest

from limbeck.recipe import TrainingSpec
from limbeck.recipe.training import REFUSED, why_refused

transformers = pytest.importorskip("transformers")
KNOWN = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
TAKEN = set(TrainingSpec.model_fields)


def test_every_name_that_is_taken_exists():
    assert TAKEN <= KNOWN


def test_every_name_that_exists_is_taken_or_refused_with_a_word():
    assert {name for name in KNOWN - TAKEN if why_refused(name) is None} == set()


def test_no_name_is_taken_and_refused_or_refused_twice():
    names = [name for group in REFUSED for name in group.split()]
    assert len(names) == len(set(names))
    assert not TAKEN & set(names)


def test_the_defaults_make_valid_arguments(tmp_path):
    made = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **TrainingSpec().arguments())
    assert made.learning_rate == 5e-5
    assert made.get_warmup_steps(1000) == 0


def test_warmup_below_one_is_a_share(tmp_path):
    arguments = TrainingSpec(warmup_steps=0.1).arguments()
    made = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
    assert made.get_warmup_steps(1000) == 100
