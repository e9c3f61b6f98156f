"""HTTP to one server: bounded, tried again while that may help, and every fault told in words."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, TypeVar

import httpx

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck_vllm.server_config import VllmServerConfig

T = TypeVar("T")
Read = Callable[[AsyncIterator[bytes]], Awaitable[T]]

CONNECT = 10.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries, where the server does not ask for more
PASSING = (408, 425, 429)  # and all from 500 on
WORDS = 300  # characters of a server's own words that are told, and bytes of them that are read at most
MOST_WORDS = 1 << 16


class WrongAnswer(Exception):
    """An answer that is whole, and not what was asked for: asking again would not help."""


class _Fault(Exception):
    """Why a try failed. `reason` None: that of the caller. `pause`: seconds that the server asks for."""

    def __init__(
        self, message: str, reason: Reason | None, *, hint: str | None = None, passing: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(message)
        self.message, self.reason, self.hint, self.passing, self.pause = message, reason, hint, passing, pause


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the server does not take (HTTP 400), in its words."""

    words: str


async def whole(chunks: AsyncIterator[bytes]) -> Any:
    """A body as JSON."""
    return json.loads(b"".join([chunk async for chunk in chunks]))


class Endpoint:
    """The server of a config; used in one event loop."""

    def __init__(self, config: VllmServerConfig) -> None:
        self._config = config
        self._key = _key(config)
        self._slots = asyncio.Semaphore(config.concurrency)
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = httpx.AsyncClient(
            base_url=config.address, headers=headers, limits=limits, timeout=httpx.Timeout(None, connect=CONNECT)
        )

    async def close(self) -> None:
        """End the connections. A second call does nothing."""
        await self._client.aclose()

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        read: Read[T] = whole,
        reason: Reason = Reason.TEACHER_REFUSED,
        field: str | None = None,
        tries: int | None = None,
    ) -> T:
        """What `read` makes of the answer to a GET, or to a POST of `body`.

        Raises SERVER_UNAVAILABLE where nothing answers after all `tries`, TEACHER_REFUSED for a key or a model that
        the server does not take, else `reason`, with `field` as the place.
        """
        most = tries or self._config.tries
        tried = 0
        while True:
            tried += 1
            try:
                async with self._slots:
                    return await self._once(path, body, read)
            except _Fault as fault:
                if not fault.passing or tried >= most:
                    raise self._told(fault, reason, field, tried) from None
                pause = max(fault.pause, min(FIRST_PAUSE * 2.0 ** (tried - 1), LONGEST_PAUSE))
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def takes(self, path: str, body: dict[str, Any]) -> Any | Refusal:
        """The answer to a POST, or the server's words where it does not take it."""
        try:
            async with self._slots:
                return await self._once(path, body, whole)
        except _Fault as fault:
            if fault.reason is None and not fault.passing:
                return Refusal(fault.message)
        return await self.ask(path, body)

    async def _once(self, path: str, body: dict[str, Any] | None, read: Read[T]) -> T:
        seconds = self._config.timeout
        try:
            async with asyncio.timeout(seconds):
                request = self._client.build_request("GET" if body is None else "POST", path, json=body)
                response = await self._client.send(request, stream=True)
                try:
                    if response.status_code != httpx.codes.OK:
                        raise await self._refused(response)
                    return await read(response.aiter_bytes())
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException) as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise _Fault("no connection came about", Reason.SERVER_UNAVAILABLE, passing=True) from None
            hint = "raise `timeout`, or lower `concurrency`"
            message = f"no answer within {seconds:g} s"
            raise _Fault(message, Reason.SERVER_UNAVAILABLE, hint=hint, passing=True) from None
        except httpx.ConnectError as error:
            hint = "see that the server runs there: vllm serve MODEL --port PORT"
            message = f"no connection: {self._safe(str(error))}"
            raise _Fault(message, Reason.SERVER_UNAVAILABLE, hint=hint, passing=True) from None
        except httpx.HTTPError as error:  # cut bodies, broken lines
            message = f"the connection was lost: {self._safe(str(error) or type(error).__name__)}"
            raise _Fault(message, Reason.SERVER_UNAVAILABLE, passing=True) from None
        except WrongAnswer as error:
            raise _Fault(str(error), None) from None
        except ValueError as error:  # json's, and of text that is no UTF-8
            raise _Fault(f"its answer is no JSON: {self._safe(str(error))}", None, passing=True) from None

    async def _refused(self, response: httpx.Response) -> _Fault:
        status, words = response.status_code, self._safe(await _words(response))
        said = f"HTTP {status}" + (f": {words}" if words else "")
        if status in (401, 403):
            name = self._config.key_env
            hint = f"see that {name} holds the server's key" if name else "name the variable with its key in `key_env`"
            return _Fault(f"it refuses the key ({said})", Reason.TEACHER_REFUSED, hint=hint)
        if status == 404:
            hint = "see that `address` is the root of a vLLM server, and `model` a model of it"
            return _Fault(f"it does not know this ({said})", Reason.TEACHER_REFUSED, hint=hint)
        if 300 <= status < 400:
            where = self._safe(response.headers.get("location", "?"))
            return _Fault(f"it is elsewhere: {where}", Reason.TEACHER_REFUSED, hint="give that `address`")
        if status in PASSING or status >= 500:
            hint = "lower `concurrency`" if status == 429 else "see the server's log"
            pause = _seconds(response.headers.get("retry-after"))
            return _Fault(
                f"it answers {said}",
                Reason.SERVER_UNAVAILABLE,
                hint=hint,
                passing=True,
                pause=min(pause, self._config.timeout),
            )
        return _Fault(f"it does not take the request ({said})", None)

    def _told(self, fault: _Fault, reason: Reason, field: str | None, tried: int) -> LimbeckError:
        times = f", tried {tried} times" if tried > 1 else ""
        problem = Problem(f"{self._config.address}: {fault.message}{times}", field=field, hint=fault.hint)
        return LimbeckError(fault.reason or reason, problems=[problem])

    def _safe(self, words: str) -> str:
        """A server's words, short and without the key, which some repeat."""
        text = words if self._key is None else words.replace(self._key, "(the key)")
        return shorten(text, WORDS, placeholder=" …")


def _key(config: VllmServerConfig) -> str | None:
    name = config.key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if key and key.isascii() and key.isprintable() and " " not in key:
        return key
    fault = "holds what can be no key (white space, or other than ASCII)" if key else "is not set"
    problem = Problem(f"the environment variable {name} {fault}", field="key_env", hint=f"export {name}=…")
    raise LimbeckError(Reason.TEACHER_REFUSED, problems=[problem])


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
