"""What each fault of a service costs: calls made, retried, answered, and what was paid for twice.

A scripted server plays the faults of the case C38 and some more. 10 prompts, one worker. `written twice` counts prompts
whose whole answer the server wrote out more than once: one without a finish_reason is no answer, so it is asked again;
of a kill -9, the call that was under way.

    python benchmarks/api_faults.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.errors import LimbeckError
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.teacher import OpenAITeacher

PROMPTS = [TextPrompt(i, f"prompt {i}") for i in range(10)]
LIMIT = {"status": 429, "headers": {"retry-after": "1"}}
HTML = {"status": 200, "body": "<html>gateway</html>"}
FAULTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "stream cut after 3 parts": [{"parts": 3, "then": "cut"}],
    "stream stalls after 3 parts": [{"parts": 3, "then": "stall"}],
    "no byte": [{"silent": True}],
    "429, wait 1 s, twice": [LIMIT, LIMIT],
    "500, 502, 503": [{"status": status} for status in (500, 502, 503)],
    "200 with HTML": [HTML],
    "200 with half a JSON": [{"status": 200, "body": '{"choices": ['}],
    "no finish_reason": [{"finish": None}],
    "finish_reason length": [{"finish": "length"}],
    "finish_reason content_filter": [{"finish": "content_filter", "message": {"content": None}}],
    "the same id in all answers": [{"id": "same"}] * 10,
    "400 of one prompt": [{"status": 400, "body": {"error": {"message": "maximum context length"}}}],
    "another model, in answer 3": [{}, {}, {"model": "other"}],
    "401, in answer 3": [{}, {}, {"status": 401}],
    "an outage after answer 3": [{}, {}, {}, *[{"status": 503}] * 99],
}


def scripted() -> ModuleType:
    """The server of the plugin's tests."""
    file = Path(__file__).parents[1] / "plugins" / "limbeck-openai" / "tests" / "scripted.py"
    spec = spec_from_file_location("scripted", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(teacher: OpenAITeacher) -> tuple[list[TextCompletion], str]:
    """The answers, and how it ended."""
    came, end = [], ""
    try:
        async with aclosing(teacher.complete(PROMPTS, Sampling())) as answers:
            async for answer in answers:
                came.append(answer)
                if "--worker" in sys.argv:
                    print("got", answer.item_id, file=sys.stderr, flush=True)
    except LimbeckError as error:
        end = str(error.reason)
    await teacher.close()
    return came, end


def teacher_of(base_url: str, cache: str, *, stream: bool = False) -> OpenAITeacher:
    config = OpenAIConfig(
        base_url=base_url, model="small", cache=cache, concurrency=1, timeout=1.0, tries=4, stream=stream
    )
    return OpenAITeacher(config)


def killed(server: Any, cache: str) -> None:
    """A process that is killed while its fifth call is under way."""
    command = [sys.executable, __file__, "--worker", server.base_url, cache]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for _ in range(4):
            process.stderr.readline()
        while not server.now:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("ADDRESS", "CACHE"), help=argparse.SUPPRESS)
    if options := parser.parse_args().worker:
        asyncio.run(run(teacher_of(*options)))
        return
    table = Table(
        "fault", "calls", "retries", "answers", "rejected", "written twice", "asked by the next run", "ends with"
    )
    module = scripted()
    for name, steps in [*FAULTS.items(), ("kill -9 in call 5, and on", [])]:
        with (
            module.Server(*steps, slow=0.1 if "kill" in name else 0.0) as server,
            tempfile.TemporaryDirectory() as cache,
        ):
            if "kill" in name:
                killed(server, cache)
            teacher = teacher_of(server.base_url, cache, stream="stream" in name)
            came, end = asyncio.run(run(teacher))
            good = [answer for answer in came if answer.rejected is None]
            calls, twice = len(server.asked), sum(count > 1 for count in Counter(server.paid).values())
            server.steps.clear()
            asyncio.run(run(teacher_of(server.base_url, cache)))  # the same command once more
            rejected = (
                json.dumps(Counter(a.rejected.split(":")[0] for a in came if a.rejected)).strip("{}").replace('"', "")
            )
            figures = [calls, int(teacher.usage()["retries"]), len(good), rejected, twice, len(server.asked) - calls]
            table.add_row(name, *map(str, figures), end)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
