"""What a server is and can do, asked of it with requests of a token or two."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest
from limbeck.interfaces import TeacherInfo
from limbeck.teachers.folder import eos_ids, model_folder, text_config
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_tries import Refusal
from limbeck_vllm.server_wire import Served, Wire, refused

MOST_IDS = 1 << 22  # a vocabulary is no larger
APART = 0.05  # log-probabilities of two ways to the same number, in bfloat16, may be so far from each other
Takes = Callable[[int], Awaitable[Refusal | None]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `model`: its name at the server. `most`: the largest k; the server allows `spare` more."""

    model: str
    info: TeacherInfo
    most: int
    spare: int


async def learn(wire: Wire, config: VllmServerConfig) -> Facts:
    """Ask the server what it is. Raises SERVER_UNAVAILABLE, TEACHER_REFUSED, TOKENIZER_MISMATCH, MODEL_INVALID."""
    served = await wire.served()
    folder = model_folder(config.tokenizer, weights=False)
    tokenizer = Tokenizer.load(folder)
    if not await wire.same(tokenizer):
        message = f"{config.tokenizer} is not the tokenizer of {served.model!r}: the same text has other ids"
        hint = "name the folder that the server was started with"
        problem = Problem(f"{config.address}: {message}", field="tokenizer", hint=hint)
        raise LimbeckError(Reason.TOKENIZER_MISMATCH, problems=[problem])
    token = 0 if tokenizer.bos_id is None else tokenizer.bos_id
    vocab_size = await _vocab_size(wire, served, folder, tokenizer)
    most = await _largest(lambda k: wire.takes(token, k), 0, vocab_size)
    most = most if most == vocab_size else max(most - wire.spare, 0)
    capabilities = {"generate", "target"} | ({"top_k"} if most else set())
    if most and await _tells_raw(wire, config, token):
        capabilities.add("generate_top_k")
    info = TeacherInfo(
        name="vllm-server",
        vocab_size=vocab_size,
        tokenizer_digest=tokenizer.digest,
        template_digest=tokenizer.template_digest,
        weights_digest=digest(["vllm-server", served.model, served.root, tokenizer.digest]),
        max_length=served.max_model_len - 1,  # vLLM writes a token behind whatever it reads
        capabilities=frozenset(capabilities),
        eos_ids=tuple(sorted({*eos_ids(folder), *tokenizer.eos_ids})),
        bos_id=tokenizer.bos_id,
        temperatures=(1.0,),
        max_top_k=None if most == vocab_size else most,
        tail_exact=False,
    )
    return Facts(served.model, info, most, wire.spare)


async def _vocab_size(wire: Wire, served: Served, folder: Path, tokenizer: Tokenizer) -> int:
    """Rows of the model's head: as the server or config.json says, else by the ids that the server takes."""
    if served.vocab_size or (folder / "config.json").exists():
        return max(served.vocab_size or int(text_config(folder).vocab_size), tokenizer.vocab_size)
    return 1 + await _largest(lambda token: wire.takes(token, 0), tokenizer.vocab_size - 1, MOST_IDS)


async def _tells_raw(wire: Wire, config: VllmServerConfig, token: int) -> bool:
    """Whether written tokens come with log-probabilities at temperature 1 whatever the temperature.

    Raises TEACHER_REFUSED where the server gives logits instead.
    """
    one, other = await wire.best(token, 1.0), await wire.best(token, 2.0)
    if one > APART:
        raise refused(config, f"it gives {one:.3g} as a log-probability", "start it without --logprobs-mode")
    return abs(one - other) < APART


async def _largest(takes: Takes, low: int, high: int) -> int:
    """The largest number in `low` … `high` that is taken; `low` is taken unasked.

    A refusal often names the limit: where that proves right, three requests are enough.
    """
    said = await takes(high) if low < high else None
    if said is None:
        return high
    for word in re.findall(r"\d+", said.words):
        guess = int(word)
        if low <= guess < high and await takes(guess) is None:
            low = guess
            if await takes(guess + 1) is not None:
                return guess
            low = guess + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await takes(middle) is None else (low, middle)
    return low
