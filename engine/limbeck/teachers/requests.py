"""Checks of a request before any work, for every teacher."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, TeacherInfo, Want


def check_score(info: TeacherInfo, items: Sequence[ScoreItem], want: Want) -> None:
    """Refuse what the teacher cannot answer: CAPABILITY_MISSING for `want`, SCORING_FAILED for the items."""
    _refuse(Reason.CAPABILITY_MISSING, _faults_of_want(info, want))
    _refuse(
        Reason.SCORING_FAILED, [*_repeated(items), *(p for item in items for p in _faults_of_item(info, item, want))]
    )


def check_prompts(info: TeacherInfo, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Refuse what the teacher cannot continue: CAPABILITY_MISSING, or GENERATION_FAILED for prompts and sampling."""
    needed = {"generate"} | ({"generate_top_k"} if sampling.logprobs else set())
    _refuse(Reason.CAPABILITY_MISSING, [_missing(info, name) for name in sorted(needed - info.capabilities)])
    _refuse(
        Reason.GENERATION_FAILED,
        [
            *_faults_of_sampling(sampling, info),
            *_repeated(prompts),
            *(p for prompt in prompts for p in _faults_of_ids(info, prompt, sampling.max_new_tokens)),
        ],
    )


def _refuse(reason: Reason, problems: Sequence[Problem]) -> None:
    if problems:
        raise LimbeckError(reason, problems=problems)


def _missing(info: TeacherInfo, primitive: str) -> Problem:
    have = ", ".join(sorted(info.capabilities))
    return Problem(f"teacher {info.name} has no {primitive}; it has {have}", hint="use another teacher or another loss")


def _faults_of_want(info: TeacherInfo, want: Want) -> list[Problem]:
    problems = [_missing(info, name) for name in sorted(want.primitives() - info.capabilities)]
    if not want.primitives():
        problems.append(Problem("nothing is asked of the teacher"))
    if not 0 <= want.top_k <= _most(info):
        problems.append(Problem(f"top_k is {want.top_k}, allowed is {_up_to(info)}", field="top_k"))
    if want.samples < 0:
        problems.append(Problem(f"samples is {want.samples}, allowed is 0 or more"))
    for temperature in want.temperatures if want.top_k else ():  # the tails' alone
        if not (temperature > 0 and math.isfinite(temperature)):
            problems.append(Problem(f"temperature {temperature} is not a finite number above 0", field="temperature"))
        elif info.temperatures is not None and temperature not in info.temperatures:
            allowed = ", ".join(map(str, info.temperatures))
            text = f"teacher {info.name} cannot give temperature {temperature}; it gives {allowed}"
            problems.append(Problem(text, field="temperature"))
    layers = info.num_layers
    if layers is not None:
        problems += [
            Problem(f"layer {layer} is not one of the teacher's 0 … {layers}, or −1 for the last", field="layers")
            for layer in want.layers
            if not -1 <= layer <= layers
        ]
    return problems


def _repeated(items: Sequence[ScoreItem] | Sequence[Prompt]) -> Iterator[Problem]:
    counts = Counter(item.item_id for item in items)
    return (
        Problem(f"item_id {name} is given {count} times", field=f"item {name}")
        for name, count in counts.items()
        if count > 1
    )


def _faults_of_ids(info: TeacherInfo, item: ScoreItem | Prompt, more: int = 0) -> Iterator[Problem]:
    field = f"item {item.item_id}"
    if item.ids.ndim != 1 or len(item.ids) == 0:
        yield Problem(f"ids have shape {list(item.ids.shape)}, one row of at least 1 token is allowed", field=field)
        return
    if len(item.ids) + more > info.max_length:
        wanted = f"{len(item.ids):,} tokens" + (f" and {more:,} new ones" if more else "")
        yield Problem(f"{wanted}, the teacher reads up to {info.max_length:,}", field=field, hint="shorten the row")
    low, high = int(item.ids.min()), int(item.ids.max())
    if low < 0 or high >= info.vocab_size:
        bad = low if low < 0 else high
        hint = "the ids are probably of another tokenizer"
        yield Problem(f"id {bad} is not in the vocabulary of {info.vocab_size:,}", field=field, hint=hint)


def _faults_of_item(info: TeacherInfo, item: ScoreItem, want: Want) -> Iterator[Problem]:
    yield from _faults_of_ids(info, item)
    field = f"item {item.item_id}"
    last = len(item.ids) - want.target
    if item.first_row < 0 or item.n < 1 or item.first_row + item.n > last:
        asked = f"rows {item.first_row} … {item.first_row + item.n - 1}"
        why = ", the last of them with a next token" if want.target else ""
        yield Problem(f"{asked} of {len(item.ids)} tokens are asked, allowed are 0 … {last - 1}{why}", field=field)
    if want.token_ids:
        yield from _faults_of_token_ids(info, item)


def _faults_of_token_ids(info: TeacherInfo, item: ScoreItem) -> Iterator[Problem]:
    field = f"item {item.item_id}"
    asked, offsets = item.token_ids, item.offsets
    if asked is None:
        yield Problem("token_ids are wanted and the item says none", field=field)
        return
    if offsets is None:
        if asked.ndim != 2 or len(asked) != item.n:
            yield Problem(f"token_ids have shape {list(asked.shape)}, [{item.n}, m] is needed", field=field)
    elif (
        asked.ndim != 1
        or offsets.shape != (item.n + 1,)
        or offsets[0] != 0
        or offsets[-1] != len(asked)
        or (offsets[1:] < offsets[:-1]).any()
    ):
        yield Problem(f"offsets do not cut {asked.size} token_ids in {item.n} rows", field=field)
    if asked.size and not (int(asked.min()) >= 0 and int(asked.max()) < info.vocab_size):
        yield Problem(f"token_ids leave the vocabulary of {info.vocab_size:,}", field=field)


def _most(info: TeacherInfo) -> int:
    return info.vocab_size if info.max_top_k is None else info.max_top_k


def _up_to(info: TeacherInfo) -> str:
    if info.max_top_k is None:
        return f"up to the vocabulary's {info.vocab_size:,}"
    return f"up to {info.max_top_k:,}, the most that teacher {info.name} tells"


def _faults_of_sampling(sampling: Sampling, info: TeacherInfo) -> Iterator[Problem]:
    allowed = {
        "max_new_tokens": (sampling.max_new_tokens >= 1, "1 or more"),
        "temperature": (sampling.temperature >= 0 and math.isfinite(sampling.temperature), "0 (greedy) or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, up to 1 (off)"),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "logprobs": (0 <= sampling.logprobs <= _most(info), f"0 (off), {_up_to(info)}"),
    }
    for name, (good, range_) in allowed.items():
        if not good:
            yield Problem(f"is {getattr(sampling, name)}, allowed is {range_}", field=name)
