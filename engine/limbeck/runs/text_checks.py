"""The pre-flight of a teacher that is asked with text: what its losses ask, and what its answers will cost at most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from limbeck.errors import Problem
from limbeck.interfaces import Generator, Sampling, TextTeacherInfo

if TYPE_CHECKING:
    from limbeck.recipe import BoundLoss, Recipe

_TEXT = "train on its text: {plugin: cross_entropy}"


def loss_problems(recipe: Recipe, info: TextTeacherInfo) -> Iterator[Problem]:
    """What losses ask that such a teacher cannot give: all but the likeliest tokens of what it writes, where it tells.

    Each is CAPABILITY_MISSING.
    """
    from limbeck.recipe import wanted

    for loss in recipe.losses:
        asked = wanted([loss]).primitives()
        if asked:
            yield from _problems(recipe, loss, asked, info)


def _problems(recipe: Recipe, loss: BoundLoss, asked: frozenset[str], info: TextTeacherInfo) -> Iterator[Problem]:
    from limbeck.recipe import wanted

    who, want = f"teacher {info.name}", wanted([loss])
    if info.max_logprobs < 1 or "generate_top_k" not in info.capabilities:
        message = f"{loss.plugin.name} needs {_listed(asked)} of each token, and {who} answers with text alone"
        yield Problem(message, field=loss.field, hint=_TEXT)
        return
    if others := asked - {"top_k", "target"}:
        message = f"{loss.plugin.name} needs {_listed(others)}, and {who} tells the likeliest tokens alone"
        hint = f"{_TEXT}, or take forward_kl with top_k up to {info.max_logprobs}"
        yield Problem(message, field=loss.field, hint=hint)
        return
    if loss.kind == "sequence":
        message = f"{loss.plugin.name} needs what is said of every token, and {who} tells nothing of the one that ends"
        yield Problem(message, field=loss.field, hint=_TEXT)
        return
    if want.top_k > info.max_logprobs:
        message = f"is {want.top_k}, and {who} tells of {info.max_logprobs} tokens at most"
        yield Problem(message, field=f"{loss.field}.top_k", hint=f"set it to {info.max_logprobs} or less")
    if want.top_k and want.temperatures != (1.0,):
        hint = "leave it out: what lies outside of the told tokens is known at temperature 1 alone"
        yield Problem(f"{who} tells of temperature 1 alone", field=f"{loss.field}.temperature", hint=hint)
    if recipe.signals.source != "cached":
        message = f"{who} tells of tokens while it writes them, not while the student trains"
        yield Problem(message, field="signals.source", hint="write cached")
    if recipe.generator is None or not recipe.generator.make().needs_teacher:
        message = f"{who} tells of tokens that it writes itself, not of rows that exist"
        hint = "add data.generator, or train on the rows by {plugin: cross_entropy}"
        yield Problem(message, field="data", hint=hint)


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))


def cost_at_most(generator: Generator, prompt_tokens: int, info: TextTeacherInfo) -> dict[str, Any]:
    """Calls, tokens and money that a generator's answers take at most; what cannot be told is left out.

    `prompt_tokens` by the student's tokenizer, which may cut text otherwise than the service does.
    """
    count = generator.count()
    sampling = getattr(generator, "sampling", None)
    found: dict[str, Any] = {"calls": count, "prompt_tokens": prompt_tokens}
    if count is None or not isinstance(sampling, Sampling):
        return found
    written = count * sampling.max_new_tokens
    found["completion_tokens_at_most"] = written
    if info.price is not None:
        read_price, written_price = info.price
        found["cost_at_most"] = (read_price * prompt_tokens + written_price * written) / 1e6
        found["currency"] = info.currency
    return found
