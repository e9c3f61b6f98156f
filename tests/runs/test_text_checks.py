"""What the pre-flight says of losses on the tokens of a teacher that is asked with text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.generators import PromptsConfig
from limbeck.generators.prompts import Prompts
from limbeck.interfaces import TextTeacherInfo
from limbeck.plugins import load_plugins
from limbeck.recipe import Recipe, load_recipe
from limbeck.runs.text_checks import cost_at_most, loss_problems

CAN = frozenset({"generate", "generate_top_k"})


def info(max_logprobs: int = 20, price: tuple[float, float] | None = None) -> TextTeacherInfo:
    can = CAN if max_logprobs else frozenset({"generate"})
    return TextTeacherInfo("api", "m", "0" * 64, can, max_logprobs, price, "EUR")


@pytest.fixture
def recipe(tmp_path: Path, tiny_student: Path) -> Callable[..., Recipe]:
    def call(loss: str, data: str = "{generator: {plugin: prompts, path: p.jsonl}}", source: str = "cached") -> Recipe:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        (tmp_path / "recipe.yaml").write_text(
            f"teacher: {{plugin: echo-text}}\nstudent: {{model: {tiny_student}}}\ndata: {data}\n"
            f"losses: [{{plugin: cross_entropy}}, {loss}]\nsignals: {{source: {source}}}\noutput: out\n"
        )
        return load_recipe(tmp_path / "recipe.yaml", load_plugins())

    return call


def told(recipe: Recipe, info: TextTeacherInfo) -> list[tuple[str | None, str]]:
    return [(problem.field, problem.message) for problem in loss_problems(recipe, info)]


def test_a_top_k_of_what_it_writes_is_taken(recipe: Callable[..., Recipe]) -> None:
    assert told(recipe("{plugin: forward_kl, top_k: 20}"), info()) == []


@pytest.mark.parametrize(
    ("loss", "more", "field", "message"),
    [
        ("{plugin: forward_kl, top_k: 21}", {}, "losses[1].top_k", "is 21, and teacher api tells of 20 tokens at most"),
        (
            "{plugin: contrastive}",
            {},
            "losses[1]",
            "contrastive needs what is said of every token, and teacher api tells nothing of the one that ends",
        ),
        (
            "{plugin: forward_kl, top_k: 8, temperature: 2.0}",
            {},
            "losses[1].temperature",
            "teacher api tells of temperature 1 alone",
        ),
        (
            "{plugin: forward_kl, top_k: 8}",
            {"source": "online"},
            "signals.source",
            "teacher api tells of tokens while it writes them, not while the student trains",
        ),
        (
            "{plugin: forward_kl, top_k: 8}",
            {"data": "{path: p.jsonl}"},
            "data",
            "teacher api tells of tokens that it writes itself, not of rows that exist",
        ),
    ],
)
def test_what_it_cannot_tell_is_refused_at_its_field(
    recipe: Callable[..., Recipe], loss: str, more: dict[str, str], field: str, message: str
) -> None:
    assert told(recipe(loss, **more), info()) == [(field, message)]


def test_a_teacher_that_tells_nothing_of_its_tokens_serves_no_such_loss(recipe: Callable[..., Recipe]) -> None:
    (problem,) = loss_problems(recipe("{plugin: forward_kl, top_k: 8}"), info(0))
    assert problem.message == "forward_kl needs top_k of each token, and teacher api answers with text alone"
    assert "cross_entropy" in (problem.hint or "")


def test_the_cost_at_most_follows_from_tokens_and_price(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    generator = Prompts(PromptsConfig(path=str(tmp_path / "p.jsonl"), max_new_tokens=100))
    known = {"calls": 2, "prompt_tokens": 50, "completion_tokens_at_most": 200}
    assert cost_at_most(generator, 50, info()) == known
    assert cost_at_most(generator, 50, info(price=(2.0, 10.0))) == {
        **known,
        "cost_at_most": pytest.approx(0.0021),
        "currency": "EUR",
    }
