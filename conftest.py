"""What all tests share: how they are dealt to processes, and servers of vLLM, without which tests of it are skipped."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
GEMMA = Path(os.environ.get("LIMBECK_GEMMA", ROOT / "examples" / "demo" / ".cache" / "gemma-3-270m"))
START = 300  # seconds that a server of vLLM may take
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script: what tests start, heeds it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `vllm` where vLLM is not installed: `make vllm` runs them in an environment of its own.

    And keep tests that share something that takes long to make in one process, so that it is made once.
    """
    skip = pytest.mark.skip(reason="vLLM is not installed here: make vllm")
    for item in items:
        if find_spec("vllm") is None and item.get_closest_marker("vllm"):
            item.add_marker(skip)
        if item.get_closest_marker("xdist_group") is None and (name := _group(item)):
            item.add_marker(pytest.mark.xdist_group(name))


def _group(item: pytest.Item) -> str | None:
    """The name of what an item shares with others."""
    if item.get_closest_marker("vllm") and item.get_closest_marker("gemma") and hasattr(item, "callspec"):
        return "gemma_server"
    found = getattr(item, "_fixtureinfo", None)
    fixtures = {name: definition[-1].scope for name, definition in (found.name2fixturedefs if found else {}).items()}
    for name in DEAR:
        if name in fixtures:
            return name
    return item.nodeid.partition("::")[0] if "module" in fixtures.values() else None


DEAR = ("finished", "vllm_teacher")  # fixtures of a session that take long to make


@dataclass
class VllmServer:
    """A server of vLLM's own."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it and what it started, without giving it time."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Serve = Callable[..., AbstractContextManager[VllmServer]]


@contextmanager
def _served(
    folder: Path, log: Path, *options: str, module: str = "vllm.entrypoints.openai.api_server"
) -> Iterator[VllmServer]:
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, "--model", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "one", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--dtype", "float32", *options],
            env=os.environ | quiet,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = VllmServer(port, process, log)
    end = time.monotonic() + START
    try:
        while not _answers(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield server
    finally:
        server.stop()


def _answers(port: int) -> bool:
    """Whether somebody listens, and says that all is well where it is asked by HTTP."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except urllib.error.URLError as error:
        return not isinstance(error.reason, OSError)
    except (OSError, http.client.HTTPException):
        return True


@pytest.fixture(scope="session")
def serve_vllm() -> Serve:
    """Starts a server: `with serve_vllm(folder, log, *options) as server`."""
    return _served


@pytest.fixture(scope="session")
def gemma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server of the real Gemma 3 270M, for the tests of all plugins."""
    if not (GEMMA / "model.safetensors").is_file():
        pytest.skip("no Gemma: python examples/demo/prepare.py, or LIMBECK_GEMMA=FOLDER")
    work = tmp_path_factory.mktemp("gemma_server")
    (work / "chat.jinja").write_text(TEMPLATE)
    options = ["--max-logprobs", "80", "--chat-template", str(work / "chat.jinja"), "--generation-config", "vllm"]
    with _served(GEMMA, work / "log", *options) as server:
        yield server
