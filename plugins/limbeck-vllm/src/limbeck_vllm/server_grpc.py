"""A server by the engine protocol of vLLM and its gateway (`vllm serve --grpc`; package smg-grpc-proto).

One answer is one message. In it an entry j of `top_logprobs` speaks of token j and holds the first k of what the engine
has: the token that stands there, then the best. A token that is not among the k best takes the place of the last of
them, so that one more is asked for.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import uuid
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_rows import Best, Rows, best_of, checked, completion, seed_of
from limbeck_vllm.server_tries import Fault, Refusal, Tries, WrongAnswer
from limbeck_vllm.server_wire import Served, refused

try:
    from smg_grpc_proto import vllm_engine_pb2 as pb
    from smg_grpc_proto import vllm_engine_pb2_grpc as stubs
    from smg_grpc_proto.generated import common_pb2 as common
except ModuleNotFoundError as missing:
    raise LimbeckError(
        Reason.EXTRA_MISSING,
        problems=[
            Problem(
                f"the protocol `grpc` needs {missing.name}",
                field="protocol",
                hint='pip install "limbeck-vllm[grpc]"',
            )
        ],
    ) from missing

T = TypeVar("T")

OPTIONS = (("grpc.max_receive_message_length", -1),)  # 64 log-probabilities of 8,192 positions pass the usual 4 MiB
MOST_TOKENIZER = 1 << 28  # bytes of a tokenizer's files
_Code = grpc.StatusCode
PASSING = (_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED, _Code.ABORTED, _Code.INTERNAL, _Code.UNKNOWN, _Code.CANCELLED)
KEY = (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED)
ELSEWHERE = (_Code.UNIMPLEMENTED, _Code.NOT_FOUND)


class GrpcWire:
    """Implements :class:`limbeck_vllm.server_wire.Wire`. Raises TEACHER_REFUSED for an address with a path."""

    spare = 1

    def __init__(self, config: VllmServerConfig) -> None:
        self.model = ""  # one server has one model, which needs no name
        self._config = config
        self._tries = Tries(config)
        parts = urlsplit(config.address)
        if parts.path:
            raise refused(config, "has a path, which gRPC has not", "write it like http://10.0.0.7:50051", "address")
        secure = parts.scheme == "https"
        target = f"{parts.hostname}:{parts.port or (443 if secure else 80)}"
        if ":" in (parts.hostname or ""):
            target = f"[{parts.hostname}]:{parts.port or (443 if secure else 80)}"
        self._channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=OPTIONS)
            if secure
            else grpc.aio.insecure_channel(target, options=OPTIONS)
        )
        self._stub = stubs.VllmEngineStub(self._channel)
        self._metadata = () if self._tries.key is None else (("authorization", f"Bearer {self._tries.key}"),)

    async def served(self) -> Served:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        call = self._stub.GetModelInfo
        found = await self._run(lambda: call(pb.GetModelInfoRequest(), metadata=self._metadata), tries=1)
        name = found.served_model_name or found.model_path
        if self._config.model not in (None, name, found.model_path):
            message = f"it has no model {self._config.model!r}; it has {name}"
            raise refused(self._config, message, "name this one, or leave it out", "model")
        length = found.max_context_length or found.max_req_input_len
        if not found.is_generation or length < 2:
            raise refused(self._config, f"{name!r} writes no text", "serve a language model", "model")
        return Served(name, found.model_path, length, found.vocab_size)

    async def same(self, tokenizer: Tokenizer) -> bool:
        """Compares the files that the server gives; one that has them from the hub gives none."""
        archive = io.BytesIO()
        try:
            async for chunk in self._stub.GetTokenizer(common.GetTokenizerRequest(), metadata=self._metadata):
                archive.write(chunk.data)
                if archive.tell() > MOST_TOKENIZER:
                    return True
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as files:
                for name in files.namelist():
                    (Path(folder) / Path(name).name).write_bytes(files.read(name))
                return Tokenizer.load(Path(folder)).digest == tokenizer.digest
        except (grpc.aio.AioRpcError, zipfile.BadZipFile, OSError, LimbeckError):
            return True

    async def takes(self, token: int, k: int) -> Refusal | None:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        answer = await self._tries.taken(lambda: self._generate([token], prompt_logprobs=k))
        return answer if isinstance(answer, Refusal) else None

    async def best(self, token: int, temperature: float) -> float:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        answer = await self._tries.run(lambda: self._generate([token], temperature=temperature, seed=0, logprobs=2))
        try:
            return float(max(answer.output_logprobs.top_logprobs[0].values))
        except (IndexError, ValueError):
            raise refused(self._config, "its log-probabilities cannot be read", "see the server's log") from None

    async def score(self, item: ScoreItem, k: int, vocab_size: int) -> Rows:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        behind = item.first_row + item.n == len(item.ids)
        more = _more(k, vocab_size)
        fields = {"prompt_logprobs": more} | ({"logprobs": more} if behind else {})

        async def once() -> Rows:
            answer = await self._generate(item.ids.tolist(), **fields)
            said = answer.input_logprobs
            if list(said.token_ids) != item.ids.tolist():
                raise WrongAnswer(f"it answers {len(said.token_ids):,} positions of {len(item.ids):,}, or other tokens")
            rows = Rows(item.n, k, vocab_size)
            for at in range(item.n - behind):
                position = item.first_row + at + 1
                best = _entries(said.top_logprobs[position]) if k else []
                rows.put(at, best_of(best, k), said.token_logprobs[position].value)
            if behind:
                rows.put(item.n - 1, best_of(_entries(_first(answer.output_logprobs.top_logprobs)), k))
            return rows

        return await self._tries.run(once, Reason.SCORING_FAILED, f"item {item.item_id}")

    async def write(self, prompt: Prompt, sampling: Sampling, eos_ids: tuple[int, ...], vocab_size: int) -> Completion:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        k = sampling.logprobs
        fields: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed_of(sampling.seed, prompt.item_id, 31),
            "stop_token_ids": list(eos_ids),
        } | ({"logprobs": _more(k, vocab_size)} if k else {})

        async def once() -> Completion:
            answer = await self._generate(prompt.ids.tolist(), **fields)
            ids = checked(list(answer.output_ids), vocab_size)
            rows = None
            if k:
                said = answer.output_logprobs
                if list(said.token_ids) != ids:
                    raise WrongAnswer(f"it tells log-probabilities of {len(said.token_ids)} tokens of {len(ids)}")
                rows = Rows(len(ids), k, vocab_size)
                for at, (top, target) in enumerate(zip(said.top_logprobs, said.token_logprobs, strict=True)):
                    rows.put(at, best_of(_entries(top), k), target)
            ends = {*eos_ids} | ({answer.matched_token_id} if answer.HasField("matched_token_id") else set())
            return completion(prompt, ids, answer.finish_reason, sampling, ends, rows)

        return await self._tries.run(once, Reason.GENERATION_FAILED, f"item {prompt.item_id}")

    async def close(self) -> None:
        """See :class:`limbeck_vllm.server_wire.Wire`."""
        await self._channel.close()

    async def _generate(self, prompt: list[int], **fields: Any) -> Any:
        """The whole answer to one prompt; of sampling, every field is sent."""
        settings = {"max_tokens": 1, "n": 1, "temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0} | fields
        request = pb.GenerateRequest(
            request_id=uuid.uuid4().hex,
            tokenized=pb.TokenizedInput(input_ids=prompt),
            sampling_params=pb.SamplingParams(**settings),
            stream=False,
        )

        async def whole() -> Any:
            answer = None
            async for message in self._stub.Generate(request, metadata=self._metadata):
                answer = message.complete if message.HasField("complete") else answer
            if answer is None:
                raise Fault("it ended without an answer", Reason.SERVER_UNAVAILABLE, passing=True)
            return answer

        return await self._told(whole)

    async def _run(self, once: Callable[[], Awaitable[Any]], tries: int | None = None) -> Any:
        return await self._tries.run(lambda: self._told(once), tries=tries)

    async def _told(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` gives; what gRPC raises becomes a Fault."""
        try:
            return await once()
        except grpc.aio.AioRpcError as error:
            words = self._tries.safe(error.details() or "")
            said = f"{error.code().name}: {words}"
            if error.code() in KEY:
                raise self._tries.refused_key(said) from None
            if error.code() in ELSEWHERE:
                hint = "see that `address` is that of a vLLM server started with --grpc"
                raise Fault(f"it does not know this ({said})", Reason.TEACHER_REFUSED, hint=hint) from None
            if error.code() in PASSING:
                hint = "see that the server runs there: vllm serve MODEL --grpc --port PORT"
                raise Fault(f"it answers {said}", Reason.SERVER_UNAVAILABLE, hint=hint, passing=True) from None
            raise Fault(f"it does not take the request ({said})") from None


def _more(k: int, vocab_size: int) -> int:
    """One more than wanted, see above; none where none are wanted."""
    return min(k + 1, vocab_size) if k else 0


def _entries(top: Any) -> Best:
    return list(zip(top.token_ids, top.values, strict=True))


def _first(messages: Any) -> Any:
    for message in itertools.islice(messages, 1):
        return message
    raise WrongAnswer("it says nothing of what comes behind the last token")
