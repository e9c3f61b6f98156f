"""What a server is and can do, asked of it with requests of a token or two."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Problem, Reason, nearest
from limbeck.files import digest
from limbeck.interfaces import TeacherInfo
from limbeck.teachers.folder import eos_ids, model_folder, text_config
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_http import Endpoint, Refusal

COMPLETIONS = "/v1/completions"
PROBE = "Zwölf Boxkämpfer jagen 12 Wölfe,\n\tquer über den Deich: 'naïve' <tag> {x_1 += 3.5};"
MOST_IDS = 1 << 22  # a vocabulary is no larger
APART = 0.05  # log-probabilities of two ways to the same number, in bfloat16, may be so far from each other
Takes = Callable[[int], Awaitable[bool | str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """`model`: its name at the server. `most`: the largest k of its log-probabilities."""

    model: str
    info: TeacherInfo
    most: int


async def learn(endpoint: Endpoint, config: VllmServerConfig) -> Facts:
    """Ask the server what it is. Raises SERVER_UNAVAILABLE, TEACHER_REFUSED, TOKENIZER_MISMATCH, MODEL_INVALID."""
    model = await _model(endpoint, config)
    folder = model_folder(config.tokenizer, weights=False)
    tokenizer = Tokenizer.load(folder)
    asking = _Asking(endpoint, model["id"], 0 if tokenizer.bos_id is None else tokenizer.bos_id)
    await _check_tokenizer(endpoint, config, model["id"], tokenizer)
    vocab_size = await asking.vocab_size(folder, tokenizer)
    most = await asking.most_logprobs(vocab_size)
    capabilities = {"generate", "target"} | ({"top_k"} if most else set())
    if most and await asking.tells_raw(config):
        capabilities.add("generate_top_k")
    info = TeacherInfo(
        name="vllm-server",
        vocab_size=vocab_size,
        tokenizer_digest=tokenizer.digest,
        template_digest=tokenizer.template_digest,
        weights_digest=digest(["vllm-server", model["id"], model.get("root"), tokenizer.digest]),
        max_length=int(model["max_model_len"]) - 1,  # vLLM writes a token behind whatever it reads
        capabilities=frozenset(capabilities),
        eos_ids=tuple(sorted({*eos_ids(folder), *tokenizer.eos_ids})),
        bos_id=tokenizer.bos_id,
        temperatures=(1.0,),
        tail_exact=False,
    )
    return Facts(model["id"], info, most)


async def _model(endpoint: Endpoint, config: VllmServerConfig) -> dict[str, Any]:
    """The entry of the model at `/v1/models`, with `max_model_len`, which adapters have from their base."""
    answer: Any = await endpoint.ask("/v1/models", tries=1)
    try:
        models = {str(entry["id"]): entry for entry in answer["data"]}
    except (KeyError, TypeError):
        raise _refused(config, "its list of models cannot be read", "see that `address` is a vLLM server") from None
    name = config.model
    bases = [key for key, entry in models.items() if entry.get("parent") is None]
    if name is None and len(bases) == 1:
        name = bases[0]
    if name not in models:
        known = ", ".join(models) or "none"
        if name is None:
            raise _refused(config, f"it has several models: {known}", "name one of them", "model")
        guess = nearest(name, list(models))
        hint = f"did you mean {guess!r}?" if guess else "name one of these"
        raise _refused(config, f"it has no model {name!r}; it has {known}", hint, "model")
    model = models[name]
    length = model.get("max_model_len") or models.get(str(model.get("parent")), {}).get("max_model_len")
    if not isinstance(length, int) or length < 2:
        raise _refused(config, f"it tells no max_model_len of {name!r}", "see that `address` is a vLLM server")
    return {**model, "max_model_len": length}


async def _check_tokenizer(endpoint: Endpoint, config: VllmServerConfig, model: str, tokenizer: Tokenizer) -> None:
    """Compare a text's ids with the server's, where it tells them: another tokenizer gives plausible nonsense."""
    body = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    try:
        answer: Any = await endpoint.ask("/tokenize", body, tries=1)
        theirs = [int(token) for token in answer["tokens"]]
    except (LimbeckError, KeyError, TypeError, ValueError):  # not every gateway lets it through
        return
    ours = tokenizer.hf.encode(PROBE, add_special_tokens=False)
    if theirs != ours:
        message = (
            f"{config.tokenizer} is not the tokenizer of {model!r} at {config.address}: the same text has other ids"
        )
        hint = "name the folder that the server was started with"
        raise LimbeckError(Reason.TOKENIZER_MISMATCH, problems=[Problem(message, field="tokenizer", hint=hint)])


class _Asking:
    """Requests of a token, for what the server tells nowhere else."""

    def __init__(self, endpoint: Endpoint, model: str, token: int) -> None:
        self._endpoint, self._model, self._token = endpoint, model, token

    async def vocab_size(self, folder: Path, tokenizer: Tokenizer) -> int:
        """Rows of the model's head: of the folder's config.json, else the ids that the server takes in a prompt."""
        if (folder / "config.json").exists():
            return max(int(text_config(folder).vocab_size), tokenizer.vocab_size)

        async def takes(last: int) -> bool | str:
            return await self._takes(prompt=[last])

        return 1 + await _largest(takes, tokenizer.vocab_size - 1, MOST_IDS)

    async def most_logprobs(self, vocab_size: int) -> int:
        """The largest k that the server allows (`--max-logprobs`)."""

        async def takes(k: int) -> bool | str:
            return await self._takes(prompt=[self._token], prompt_logprobs=k)

        return await _largest(takes, 0, vocab_size)

    async def tells_raw(self, config: VllmServerConfig) -> bool:
        """Whether written tokens come with log-probabilities at temperature 1 whatever the temperature.

        Raises TEACHER_REFUSED where it gives logits instead (`--logprobs-mode`).
        """
        answers: list[Any] = []
        for temperature in (1.0, 2.0):
            body = request(self._model, [self._token] * 2, temperature=temperature, seed=0, logprobs=1)
            answers.append(await self._endpoint.ask(COMPLETIONS, body))
        try:
            best = [answer["choices"][0]["logprobs"]["top_logprobs"][0] for answer in answers]
            one, other = (float(max(entries.values())) for entries in best)
        except (KeyError, TypeError, ValueError, IndexError):
            raise _refused(
                config, "its log-probabilities cannot be read", "see that `address` is a vLLM server"
            ) from None
        if one > APART:
            message = f"it gives {one:.3g} as a log-probability"
            raise _refused(config, message, "start it without --logprobs-mode")
        return abs(one - other) < APART

    async def _takes(self, **fields: Any) -> bool | str:
        """True, or the words of the refusal."""
        prompt = fields.pop("prompt")
        answer = await self._endpoint.takes(COMPLETIONS, request(self._model, prompt, **fields))
        return answer.words if isinstance(answer, Refusal) else True


async def _largest(takes: Takes, low: int, high: int) -> int:
    """The largest number in `low` … `high` that is taken; `low` is taken unasked.

    A refusal often names the limit: where that proves right, two requests are enough.
    """
    said = await takes(high)
    if said is True or low >= high:
        return high if said is True else low
    for word in re.findall(r"\d+", str(said)):
        guess = int(word)
        if low <= guess < high and await takes(guess) is True:
            low = guess
            if await takes(guess + 1) is not True:
                return guess
            low = guess + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await takes(middle) is True else (low, middle)
    return low


def request(model: str, prompt: list[int], **fields: Any) -> dict[str, Any]:
    """A body for the completions endpoint.

    Every field of sampling is there: what is left out, a server takes from the model's generation_config.json.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "n": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop": [],
        "stop_token_ids": [],
        "ignore_eos": False,
        "min_tokens": 0,
        "stream": False,
        "echo": False,
        "add_special_tokens": False,
        "skip_special_tokens": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "watermarking": False,
    }
    return body | fields


def _refused(config: VllmServerConfig, message: str, hint: str, field: str | None = None) -> LimbeckError:
    problem = Problem(f"{config.address}: {message}", field=field, hint=hint)
    return LimbeckError(Reason.TEACHER_REFUSED, problems=[problem])
