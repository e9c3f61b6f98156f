"""A third party's plugin cannot break the loading of recipes, nor of others' plugins."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field, field_validator

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Config, LocalPath, LossConfig, LossPlugin, Needs, Scheduled, SchedulerPlugin
from limbeck.plugins import Entry, Failure, Registry
from limbeck.recipe import load_recipe
from limbeck.schedulers import Constant, ConstantConfig


class Inner(Config):
    """A nested mapping."""

    files: list[LocalPath] = Field(description="Files.")
    ratio: float = Field(gt=0, description="A ratio.")


class OddConfig(LossConfig):
    """A config with most of what a config may have."""

    inner: Inner | None = Field(None, description="Nested.")
    sharpness: Annotated[Scheduled, Field(ge=1, lt=10)] = Field(2.0, description="A knob.")
    word: str = Field("", description="A word.")

    @field_validator("word")
    @classmethod
    def _raises(cls, word: str) -> str:
        if word == "bug":
            raise RuntimeError("a fault of the plugin")
        if word == "bad":
            raise ValueError("bad is not a good word")
        return word


class Broken(Constant):
    """A scheduler whose values cannot be had."""

    def values(self) -> list[float]:
        raise RuntimeError("no values today")


def entry(kind: Any, plugin: Any) -> Entry:
    return Entry(plugin, kind, "limbeck-odd", "3.1")


def odd(**changes: Any) -> LossPlugin:
    needs: Callable[[Any], Needs] = lambda config: Needs()  # noqa: E731
    fields = {"name": "odd", "kind": "token", "config": OddConfig, "factory": lambda config, context: None}
    return LossPlugin(**{**fields, "summary": "Odd.", "needs": needs, **changes})


@pytest.fixture
def load_with(registry, tmp_path):
    def call(losses: str, *, plugin: LossPlugin | None = None):
        broken = SchedulerPlugin(name="broken", config=ConstantConfig, factory=Broken, summary="Broken.")
        more = (entry("loss", plugin or odd()), entry("scheduler", broken))
        (tmp_path / "a").touch()
        path = tmp_path / "recipe.yaml"
        head = "teacher: {plugin: transformers, model: a/b}\nstudent: {model: a/b}\ndata: {path: a}\noutput: o\n"
        path.write_text(head + "losses:\n" + textwrap.indent(textwrap.dedent(losses), "  "))
        failure = Failure("bad", "limbeck-bad", "0.2", "ImportError: no")
        return load_recipe(path, Registry((*registry.entries, *more), (failure,)))

    return call


def problems(load_with, losses: str, **more: Any):
    with pytest.raises(LimbeckError) as caught:
        load_with(losses, **more)
    assert caught.value.reason is Reason.RECIPE_INVALID
    return caught.value.problems


def test_nested_paths_are_resolved_and_knobs_bound(load_with, tmp_path):
    loss = load_with("- {plugin: odd, inner: {files: [x, ../y], ratio: 2}, sharpness: {plugin: constant, value: 3}}")
    (first,) = loss.losses
    assert first.config.inner.files == [str(tmp_path.resolve() / "x"), str(tmp_path.resolve().parent / "y")]
    assert first.knobs["sharpness"].make().value(0.0, {}) == 3.0
    assert [use.field for use in loss.paths] == ["data.path", "losses[0].inner.files[0]", "losses[0].inner.files[1]"]


def test_nested_faults_have_their_place_and_the_nearest_name(load_with):
    found = problems(load_with, "- plugin: odd\n  inner:\n    fles: [x]\n    ratio: 0\n  sharpness: 10\n")
    assert [(one.line, one.field, one.message) for one in found] == [
        (7, "losses[0].inner.files", "is missing"),
        (8, "losses[0].inner.fles", "there is no such field"),
        (9, "losses[0].inner.ratio", "must be above 0, not 0"),
        (10, "losses[0].sharpness", "must be below 10, not 10"),
    ]
    assert found[1].hint == "did you mean files?"


def test_a_validators_own_words_are_shown(load_with):
    (problem,) = problems(load_with, "- {plugin: odd, word: bad}")
    assert (problem.field, problem.message) == ("losses[0].word", "bad is not a good word")


def test_a_config_that_raises_is_named_with_its_distribution(load_with):
    found = problems(load_with, "- {plugin: odd, word: bug}\n- {plugin: jsd, weight: -1}\n")
    assert found[0].message == "the config of 'odd' (limbeck-odd 3.1) raised RuntimeError: a fault of the plugin"
    assert found[1].field == "losses[1].weight"


@pytest.mark.parametrize(
    ("needs", "said"),
    [(lambda config: 1 / 0, "ZeroDivisionError"), (lambda config: "top_k", "must return Needs, not 'top_k'")],
)
def test_needs_that_break_are_named_with_their_distribution(load_with, needs, said):
    (problem,) = problems(load_with, "- {plugin: odd}", plugin=odd(needs=needs))
    assert "the needs of 'odd' (limbeck-odd 3.1) raised" in problem.message
    assert said in problem.message


def test_a_scheduler_that_breaks_is_named_at_its_place(load_with):
    (problem,) = problems(load_with, "- {plugin: odd, sharpness: {plugin: broken, value: 3}}")
    assert problem.field == "losses[0].sharpness"
    assert "the schedule of 'broken' (limbeck-odd 3.1) raised RuntimeError: no values today" in problem.message


def test_an_unknown_plugin_lists_what_failed(load_with):
    found = problems(load_with, "- {plugin: od}")
    assert "did you mean 'odd'?" in found[0].hint
    assert "limbeck-bad 0.2 (bad): ImportError: no" in found[1].message
    assert {one.line for one in found} == {6}


def test_a_clash_is_told_only_to_recipes_that_use_the_name(load_with):
    clash = odd(name="jsd")
    assert load_with("- {plugin: forward_kl}", plugin=clash)
    (problem,) = problems(load_with, "- {plugin: jsd}", plugin=clash)
    assert "claimed by limbeck 0.1.0 and limbeck-odd 3.1" in problem.message
