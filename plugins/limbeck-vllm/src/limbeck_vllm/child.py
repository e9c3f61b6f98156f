"""The process of an engine: `python -m limbeck_vllm.child FD`, started by its teacher with one end of a socket.

It leads a process group of its own, which all that vLLM starts belongs to. It ends with the whole group as soon as the
other end of the socket is gone, whatever it is doing; what it prints is read by the teacher.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import threading
import time
from functools import partial
from typing import Any

from limbeck_vllm.frames import PREFIX, Abort, Answer, Ended, Question, Ready, Refused, Start, packed, unpacked
from limbeck_vllm.rows import rows_of

GRACE = 5.0  # seconds for vLLM to end its processes itself, which also gives back shared memory
LOOK = 0.5  # seconds between looks whether an idle engine still lives


def main(fd: int) -> None:
    """Be the engine of whoever holds the other end."""
    os.set_inheritable(fd, False)
    threading.Thread(target=_end_with, args=(fd,), daemon=True).start()
    asyncio.run(_serve(socket.socket(fileno=fd)))
    end_group()


def end_group() -> None:
    """Kill this process and all others of its group."""
    os.killpg(0, signal.SIGKILL)


def _end_with(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # of hang-ups one is always told
    poll.poll()
    time.sleep(GRACE)
    end_group()


async def _serve(end: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=end)
    start = await _read(reader)
    if not isinstance(start, Start):
        return
    try:
        engine = Engine(start)
        await engine.warm_up()
    except Exception as error:
        writer.write(packed(Ended(f"{type(error).__name__}: {error}")))
        await writer.drain()
        return
    writer.write(packed(Ready()))
    work = asyncio.ensure_future(_answer(engine, reader, writer))
    try:
        while not work.done() and not engine.dead:
            await asyncio.wait([work], timeout=LOOK)
    finally:
        work.cancel()
        await asyncio.wait([work])
        engine.shutdown()


async def _answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer questions until the other end is gone."""
    under_way: dict[int, asyncio.Task[None]] = {}

    async def answer(question: Question) -> None:
        try:
            found: Answer | Refused = await engine.ask(question)
        except Exception as error:
            if engine.dead:
                return  # the end of this process says it
            found = Refused(question.number, " ".join(str(error.__cause__ or error).split()))
        writer.write(packed(found))
        await writer.drain()

    def gone(number: int, _: object) -> None:
        del under_way[number]

    try:
        while (message := await _read(reader)) is not None:
            if isinstance(message, Question):
                task = asyncio.ensure_future(answer(message))
                under_way[message.number] = task
                task.add_done_callback(partial(gone, message.number))
            elif isinstance(message, Abort):
                for number in message.numbers:
                    if number in under_way:
                        under_way[number].cancel()
    finally:
        for task in list(under_way.values()):
            task.cancel()


async def _read(reader: asyncio.StreamReader) -> Any:
    """The next message, None where the other end is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(PREFIX), "little")
        return unpacked(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Engine:
    """vLLM's engine, asked with token ids. Raises what vLLM raises where it cannot be made."""

    def __init__(self, start: Start) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = dict(start.arguments)
        if current_platform.is_cpu():
            arguments = start.defaults_on_cpu | arguments
        self._lora = LoRARequest("adapter", 1, start.lora) if start.lora else None
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    @property
    def dead(self) -> bool:
        """Whether it answers nothing any more."""
        return bool(self._llm.errored)

    async def warm_up(self) -> None:
        """Write one token with the adapter, where there is one: a broken adapter is told here."""
        import numpy as np

        await self.ask(Question(0, np.zeros(2, np.int32), sampling={"max_tokens": 1, "temperature": 0.0}))

    async def ask(self, question: Question) -> Answer:
        """The answer to one question; cancelled, it is taken from the engine. Raises what vLLM raises."""
        import numpy as np
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params: dict[str, Any] = dict(question.sampling or {})
        if question.token_ids is not None:
            params |= {"prompt_logprob_token_ids": question.token_ids, "prompt_logprob_start": question.first}
        sampling = SamplingParams(
            **params,
            logprobs=question.logprobs,
            prompt_logprobs=question.prompt_logprobs,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(question.ids.tolist())
        result = None
        async for output in self._llm.generate(prompt, sampling, str(question.number), lora_request=self._lora):
            result = output  # the only one
        if result is None or result.outputs[0].finish_reason not in ("stop", "length"):
            reason = "nothing" if result is None else f"finish_reason {result.outputs[0].finish_reason}"
            raise RuntimeError(f"the engine ended the request with {reason}")
        output = result.outputs[0]
        prompt_rows = said = None
        if question.prompt_logprobs is not None:
            first = question.first + 1
            prompt_rows = rows_of(result.prompt_logprobs, question.prompt_logprobs, first, first + question.n)
        if question.logprobs is not None:
            said = rows_of(output.logprobs, question.logprobs, 0, len(output.token_ids))
        return Answer(
            question.number,
            np.array(output.token_ids, dtype=np.int32),
            output.finish_reason == "stop",
            prompt_rows,
            said,
            result.prompt_token_id_logprobs,
        )

    def shutdown(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
