"""One try of one request by the official client."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import httpx2
import openai

from limbeck_openai.answers import Answer, Parts, read_answer
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.faults import Fault, of_error_event, of_status, shown
from limbeck_openai.gate import Gate, told_wait
from limbeck_openai.keys import Key
from limbeck_openai.requests import Request
from limbeck_openai.tally import Usage

_PROMPT = {"chat": "messages", "responses": "input", "completions": "prompt"}


def is_here(host: str) -> bool:
    """Whether a host is this machine: no proxy stands between."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Caller:
    """Sends requests, each once: the client's own retries are off, since they would be paid for unseen."""

    def __init__(self, config: OpenAIConfig, key: Key, gate: Gate) -> None:
        self._config, self._key, self._gate = config, key, gate
        key.hide_in_logs()
        # given with each call, as OPENAI_CUSTOM_HEADERS in the environment may name another
        self._headers: dict[str, Any] = {"Authorization": f"Bearer {key.value}" if key.value else openai.Omit()}
        self._client = openai.AsyncOpenAI(
            api_key=key.value,
            admin_api_key="",
            base_url=config.base_url,
            max_retries=0,
            timeout=None,  # by asyncio below: httpx would count from one byte to the next
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_here(config.host)),
        )
        if config.host != "api.openai.com":  # the client takes these from the environment; they concern OpenAI alone
            self._client.organization = self._client.project = None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def call(self, request: Request) -> Answer:
        """The answer to one try. Raises Fault."""
        silence = f"no answer within {self._config.timeout:g} s"
        try:
            if self._config.stream:
                return self._checked(await self._streamed(request))
            async with asyncio.timeout(self._config.timeout):
                raw = await self._send(request, stream=False)
            self._gate.heard(raw.headers)
            return self._checked(read_answer(request, raw.http_response.content, self._key))
        except (TimeoutError, openai.APITimeoutError):
            raise Fault("failed", silence, paid=True, pause=False) from None
        except openai.APIStatusError as error:
            self._gate.heard(error.response.headers)
            wait = told_wait(error.response.headers)
            raise of_status(error.status_code, self._key.hide(error.response.text), wait, self._key) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            words = shown(self._key.hide(str(cause or error)) or type(cause).__name__)
            if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
                raise Fault("nobody", words) from None
            raise Fault("failed", f"the connection was cut: {words}", paid=True) from None
        except openai.APIError as error:  # an error as an event of a stream
            raise of_error_event(self._key.hide_in(error.body or error.message), self._key) from None

    async def _send(self, request: Request, *, stream: bool) -> Any:
        api: Any = {
            "chat": self._client.chat.completions,
            "responses": self._client.responses,
            "completions": self._client.completions,
        }[request.api]
        prompt = _PROMPT[request.api]
        rest = {name: value for name, value in request.body.items() if name not in ("model", prompt)}
        if stream and request.api != "responses":
            rest["stream_options"] = {"include_usage": True}
        named = {"model": request.body["model"], prompt: request.body[prompt]}
        return await api.with_raw_response.create(**named, stream=stream, extra_body=rest, extra_headers=self._headers)

    async def _streamed(self, request: Request) -> Answer:
        async with asyncio.timeout(self._config.timeout):
            raw = await self._send(request, stream=True)
        self._gate.heard(raw.headers)
        if not raw.headers.get("content-type", "").startswith("text/event-stream"):  # it takes no notice of `stream`
            async with asyncio.timeout(self._config.timeout):
                whole = await raw.http_response.aread()
            return read_answer(request, whole, self._key)
        parts = Parts(request, self._key)
        stream = raw.parse()
        try:
            while True:
                async with asyncio.timeout(self._config.timeout):
                    part = await anext(stream, None)
                if part is None:
                    return parts.answer()
                parts.add(part.to_dict(mode="json", warnings=False) if isinstance(part, openai.BaseModel) else part)
                self._of_model(parts.model)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8
            raise Fault("failed", f"not an answer: {shown(self._key.hide(str(error)))}", paid=True) from None
        finally:
            await stream.close()

    def _checked(self, answer: Answer) -> Answer:
        self._of_model(answer.model, answer.usage)
        return answer

    def _of_model(self, reported: str | None, usage: Usage | None = None) -> None:
        if not self._config.serves(reported):
            raise Fault("mismatch", reported or "", paid=True, usage=usage)
