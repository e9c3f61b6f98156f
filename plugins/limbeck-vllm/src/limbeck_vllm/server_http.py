"""One request by HTTP, and what can go wrong with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import httpx

from limbeck.errors import Reason
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_tries import CONNECT, Fault, Tries

T = TypeVar("T")
Read = Callable[[AsyncIterator[bytes]], Awaitable[T]]

PASSING = (408, 425, 429)  # and all from 500 on
TLS = "see that it speaks https there; SSL_CERT_FILE in the environment names the authorities to trust"
MOST_WORDS = 1 << 16  # bytes of a refusal that are read


async def whole(chunks: AsyncIterator[bytes]) -> Any:
    """A body as JSON."""
    return json.loads(b"".join([chunk async for chunk in chunks]))


class Endpoint:
    """The server of a config; used in one event loop."""

    def __init__(self, config: VllmServerConfig, tries: Tries) -> None:
        self._timeout, self._tries = config.timeout, tries
        headers = {} if tries.key is None else {"Authorization": f"Bearer {tries.key}"}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = httpx.AsyncClient(
            base_url=config.address, headers=headers, limits=limits, timeout=httpx.Timeout(None, connect=CONNECT)
        )

    async def close(self) -> None:
        """End the connections. A second call does nothing."""
        await self._client.aclose()

    async def once(self, path: str, body: dict[str, Any] | None, read: Read[T] = whole) -> T:
        """What `read` makes of the answer to a GET, or to a POST of `body`. Raises Fault."""
        safe = self._tries.safe
        try:
            request = self._client.build_request("GET" if body is None else "POST", path, json=body)
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code != httpx.codes.OK:
                    raise await self._refused(response)
                return await read(response.aiter_bytes())
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            hint = TLS if "SSL" in str(error) else "see that the server runs there: vllm serve MODEL --port PORT"
            message = f"no connection: {safe(str(error)) or 'it took too long'}"
            raise Fault(message, Reason.SERVER_UNAVAILABLE, hint=hint, passing=True) from None
        except httpx.HTTPError as error:  # cut bodies, broken lines
            message = f"the connection was lost: {safe(str(error) or type(error).__name__)}"
            raise Fault(message, Reason.SERVER_UNAVAILABLE, passing=True) from None
        except ValueError as error:  # json's, and of text that is no UTF-8
            raise Fault(f"its answer is no JSON: {safe(str(error))}", passing=True) from None

    async def _refused(self, response: httpx.Response) -> Fault:
        status, words = response.status_code, self._tries.safe(await _words(response))
        said = f"HTTP {status}" + (f": {words}" if words else "")
        if status in (401, 403):
            return self._tries.refused_key(said)
        if status == 404:
            hint = "see that `address` is the root of a vLLM server, and `model` a model of it"
            return Fault(f"it does not know this ({said})", Reason.TEACHER_REFUSED, hint=hint)
        if 300 <= status < 400:
            where = self._tries.safe(response.headers.get("location", "?"))
            return Fault(f"it is elsewhere: {where}", Reason.TEACHER_REFUSED, hint="give that `address`")
        if status in PASSING or status >= 500:
            hint = "lower `concurrency`" if status == 429 else "see the server's log"
            pause = min(_seconds(response.headers.get("retry-after")), self._timeout)
            return Fault(f"it answers {said}", Reason.SERVER_UNAVAILABLE, hint=hint, passing=True, pause=pause)
        return Fault(f"it does not take the request ({said})")


async def _words(response: httpx.Response) -> str:
    """What the body says in the place where vLLM puts it, else its beginning."""
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MOST_WORDS:
            break
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
        error = said.get("error", said)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, AttributeError, KeyError):
        return text


def _seconds(header: str | None) -> float:
    """Seconds that a header `retry-after` asks for; 0 for none and for a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
