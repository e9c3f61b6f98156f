"""A server by its OpenAI protocol: `/v1/completions` of vLLM, with ids in and ids out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Reason, nearest
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem
from limbeck.teachers.selfcheck import TEXTS
from limbeck_vllm.server_answers import Entries, choice_of, ids_of, written
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_http import Endpoint, whole
from limbeck_vllm.server_rows import Rows, checked, completion, seed_of
from limbeck_vllm.server_tries import Refusal, Tries
from limbeck_vllm.server_wire import Served, refused

COMPLETIONS = "/v1/completions"
PROBE = "Zwölf Boxkämpfer jagen 12 Wölfe,\n\tquer über den Deich: 'naïve' <tag> {x_1 += 3.5};"
SPREAD = 64  # ids from all over a vocabulary whose text is compared too


class OpenAIWire:
    """Implements :class:`limbeck_vllm.server_wire.Wire`."""

    spare = 0

    def __init__(self, config: VllmServerConfig) -> None:
        self._config = config
        self._tries = Tries(config)
        self._endpoint = Endpoint(config, self._tries)
        self.model = ""

    async def served(self) -> Served:
        """The entry of the model at `/v1/models`; an adapter's length is its base's."""
        answer: Any = await self._tries.run(lambda: self._endpoint.once("/v1/models", None), tries=1)
        try:
            models = {str(entry["id"]): dict(entry) for entry in answer["data"]}
        except (KeyError, TypeError, ValueError):
            raise self._refused("its list of models cannot be read") from None
        name = self._config.model
        bases = [key for key, entry in models.items() if entry.get("parent") is None]
        if name is None and len(bases) == 1:
            name = bases[0]
        if name is None or name not in models:
            known = ", ".join(models) or "none"
            if name is None:
                raise refused(self._config, f"it has several models: {known}", "name one of them", "model")
            guess = nearest(name, list(models))
            hint = f"did you mean {guess!r}?" if guess else "name one of these"
            raise refused(self._config, f"it has no model {name!r}; it has {known}", hint, "model")
        model = models[name]
        length = model.get("max_model_len") or models.get(str(model.get("parent")), {}).get("max_model_len")
        if not isinstance(length, int) or length < 2:
            raise self._refused(f"it tells no max_model_len of {name!r}")
        self.model = name
        return Served(name, str(model.get("root")), length)

    async def same(self, tokenizer: Tokenizer) -> bool:
        """Compares the ids of some texts, where the server (or a gateway before it) tells them."""
        return all([await self._same(tokenizer, text) for text in _probes(tokenizer)])

    async def _same(self, tokenizer: Tokenizer, text: str) -> bool:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            answer: Any = await self._tries.run(lambda: self._endpoint.once("/tokenize", body), tries=1)
            theirs = [int(token) for token in answer["tokens"]]
        except (LimbeckError, KeyError, TypeError, ValueError):
            return True
        return theirs == list(tokenizer.hf.encode(text, add_special_tokens=False))

    async def takes(self, token: int, k: int) -> Refusal | None:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        body = self._body([token], prompt_logprobs=k)
        answer = await self._tries.taken(lambda: self._endpoint.once(COMPLETIONS, body))
        return answer if isinstance(answer, Refusal) else None

    async def best(self, token: int, temperature: float) -> float:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        body = self._body([token], temperature=temperature, seed=0, logprobs=1)
        answer: Any = await self._tries.run(lambda: self._endpoint.once(COMPLETIONS, body))
        try:
            return float(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise self._refused("its log-probabilities cannot be read") from None

    async def score(self, item: ScoreItem, k: int, vocab_size: int) -> Rows:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        behind = item.first_row + item.n == len(item.ids)
        body = self._body(item.ids.tolist(), prompt_logprobs=k, logprobs=k if behind else None)

        async def read(chunks: AsyncIterator[bytes]) -> Rows:
            rows = Rows(item.n, k, vocab_size)
            answer = await Entries(item, rows).read(chunks)
            if behind:
                written(choice_of(answer), rows, item.n - 1)
            return rows

        return await self._tries.run(
            lambda: self._endpoint.once(COMPLETIONS, body, read), Reason.SCORING_FAILED, f"item {item.item_id}"
        )

    async def write(self, prompt: Prompt, sampling: Sampling, eos_ids: tuple[int, ...], vocab_size: int) -> Completion:
        """See :class:`limbeck_vllm.server_wire.Wire`. The server may know more ends: it tells with which it stopped."""
        k = sampling.logprobs
        body = self._body(
            prompt.ids.tolist(),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed_of(sampling.seed, prompt.item_id, 63),
            stop_token_ids=list(eos_ids),
            logprobs=k or None,
        )

        async def read(chunks: AsyncIterator[bytes]) -> Completion:
            choice = choice_of(await whole(chunks))
            ids = checked(ids_of(choice), vocab_size)
            rows = Rows(len(ids), k, vocab_size) if k else None
            if rows is not None:
                written(choice, rows)
            reason = choice.get("stop_reason")
            ends = {*eos_ids, reason} if isinstance(reason, int) else {*eos_ids}
            return completion(prompt, ids, choice.get("finish_reason"), sampling, ends, rows)

        return await self._tries.run(
            lambda: self._endpoint.once(COMPLETIONS, body, read), Reason.GENERATION_FAILED, f"item {prompt.item_id}"
        )

    async def close(self) -> None:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        await self._endpoint.close()

    def _body(self, prompt: list[int], **fields: Any) -> dict[str, Any]:
        """A question. Every field of sampling is there: others a server takes from the model's generation config."""
        body = {
            "model": self.model,
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
            "logprobs": None,
            "prompt_logprobs": None,
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "watermarking": False,
        }
        return body | fields

    def _refused(self, message: str) -> LimbeckError:
        return refused(self._config, message, "see that `address` is the root of a vLLM server")


def _probes(tokenizer: Tokenizer) -> list[str]:
    """Texts that two tokenizers hardly give the same ids: in several languages, and of ids from all over the first."""
    spread = range(0, tokenizer.vocab_size, max(tokenizer.vocab_size // SPREAD, 1))
    return [*TEXTS, PROBE, tokenizer.decode(spread)]
