"""A real server for the tests of clients in any language: `limbeck serve` with a tiny real model, made here.

    python clients/serve.py

Prints one line of JSON when all is ready. Ends with everything that it started when its stdin closes, or at SIGTERM or
SIGINT; where it is killed its servers end too, and only its folder of temporary files is left. Needs the environment of
`make test`, and openssl. See README.md for what the line says.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
    os.environ.pop(name, None)  # a client's test may set them; the server is not what is tested

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data"
TEACHER = "echo"
DATASET = "tiny"
SILENT_AFTER = 2.0  # seconds that a connection through `silent` is good

_HEAD = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 4, max_length: 256}
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 16, temperature: 2.0}
  - {plugin: cross_entropy, weight: 0.1}
"""
# OUTPUT is for the client to replace: each run has a folder of its own.
RECIPES = {
    "tiny": _HEAD
    + """\
training: {learning_rate: 1.0e-3, max_steps: 200, per_device_train_batch_size: 4, save_steps: 100}
evaluation: {twin: false, samples: 1, max_new_tokens: 8}
output: runs/OUTPUT
""",
    "long": _HEAD
    + """\
training: {learning_rate: 1.0e-5, max_steps: 100000, per_device_train_batch_size: 16}
evaluation: {twin: false, samples: 1, max_new_tokens: 8}
output: runs/OUTPUT
""",
    "invalid": """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [3, 0]}
data: {path: rows.jsonl, holdout: 4, max_length: 256}
losses:
  - {plugin: forward_kll, weight: 0.9}
training: {learning_rate: -1}
output: runs/OUTPUT
""",
    "outside": _HEAD.replace("rows.jsonl", "../outside/rows.jsonl") + "output: runs/OUTPUT\n",
    "broken": _HEAD.replace("rows.jsonl", "broken.jsonl") + "output: runs/OUTPUT\n",
    "absent": _HEAD.replace("rows.jsonl", "../absent/rows.jsonl") + "output: runs/OUTPUT\n",
}
INVALID_LINES = [2, 5, 6]


class Relay:
    """Passes connections on to `address`, whole HTTP/2 frames at a time, until they are dropped or fall silent."""

    def __init__(self, address: str, silent_after: float | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._to, self._silent_after = (host, int(port)), silent_after
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self) -> str:
        """Its own address."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._pass_on(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return await self._listen(accept)

    async def close(self) -> None:
        """End all connections."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def doorbell(self) -> str:
        """An address; whoever connects to it has all connections dropped, and is hung up on when that is done."""

        async def ring(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for end in list(self._open):
                end.transport.abort()
            self._open.clear()
            writer.close()

        return await self._listen(ring)

    async def _listen(
        self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
    ) -> str:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._open |= ends
        silent = asyncio.Event()
        if self._silent_after is not None:
            asyncio.get_running_loop().call_later(self._silent_after, silent.set)
        ways = [_pass(reader, back, silent, answer=writer, preface=24), _pass(there, writer, silent)]
        running = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if silent.is_set():  # the client hears nothing of the server's end either
                await running[0]
        finally:
            for way in running:
                way.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for end in ends:
                end.transport.abort()
            self._open -= ends


async def _pass(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    silent: asyncio.Event,
    *,
    answer: asyncio.StreamWriter | None = None,
    preface: int = 0,
) -> None:
    """Pass frames on until `silent`; from then on none, and pings get their `answer` here, as some proxies do."""
    try:
        if preface:
            sink.write(await source.readexactly(preface))
        while True:
            head = await source.readexactly(9)
            body = await source.readexactly(int.from_bytes(head[:3], "big"))
            if not silent.is_set():
                sink.write(head + body)
                await sink.drain()
            elif answer is not None and head[3] == 6 and not head[4] & 1:
                answer.write(head[:4] + b"\1" + head[5:] + body)
    except (asyncio.IncompleteReadError, OSError):
        return


def make_workspace(base: Path) -> Path:
    """The workspace: a tiny model with the tokenizer tok_a, rows, and rows with a fault in line 3.

    Beside it `outside`, which no recipe may read.
    """
    from limbeck.testing.tiny import tiny_model_folder

    workspace = base / "workspace"
    tiny_model_folder(workspace / "teacher", DATA / "tok_a", layers=4, seed=1, scale=3.0)
    numbers = [(i, 7 * i % 13) for i in range(40)]
    rows = [{"prompt": f"What is {a} plus {b}?\n", "completion": f"{a} plus {b} is {a + b}."} for a, b in numbers]
    (base / "outside").mkdir()
    for folder in (workspace, base / "outside"):
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workspace / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:2], [], *rows]))
    return workspace


def label(base: Path, workspace: Path) -> Path:
    """The folder of a run whose rows are labelled, at two temperatures, by the real command in this process."""
    from limbeck.cli.main import run

    recipe = base / "label.yaml"
    text = RECIPES["tiny"].replace("model: teacher", f"model: {workspace / 'teacher'}")
    text = text.replace("rows.jsonl", str(workspace / "rows.jsonl")).replace("runs/OUTPUT", "labelled")
    recipe.write_text(
        text.replace("temperature: 2.0", "temperature: {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}")
    )
    with redirect_stdout(sys.stderr):
        if run(["label", str(recipe)]):
            sys.exit("the rows could not be labelled")
    return base / "labelled"


def write_expected(labelled: Path, file: Path) -> None:
    """What the dataset decodes to, by Limbeck's own decoder: what clients compare theirs with."""
    from limbeck.data import read_sequences
    from limbeck.signals import SignalStore

    store = SignalStore(labelled / "signals" / "train")
    with file.open("w") as lines:
        for sequence, row in enumerate(read_sequences(labelled / "sequences" / "train.arrow"), 1):
            signal = store.get(row)
            assert signal.top_k is not None
            at = {}
            for temperature in signal.top_k.temperatures:
                _, logprobs, tails = signal.top_k.at(temperature)
                at[f"{temperature:g}"] = {"logprobs": logprobs.tolist(), "tails": tails.tolist()}
            value = {"sequence": sequence, "first_row": signal.first_row, "n": signal.n, "tokens": row.ids.tolist()}
            lines.write(json.dumps(value | {"ids": signal.top_k.ids.tolist(), "at": at}) + "\n")


def make_tokens(base: Path) -> tuple[Path, dict[str, str]]:
    """The server's file of tokens, and the clients' files."""
    folder = base / "tokens"
    folder.mkdir()
    values = {name: secrets.token_hex(16) for name in ("train", "score", "greedy", "expired", "unknown")}
    values["odd"] = f"odd-{secrets.token_hex(8)}"
    roles = {"train": "train", "score": "score", "greedy": "train", "expired": "train", "odd": "train"}
    lines = ["tokens:\n"]
    for name, role in roles.items():
        digest = hashlib.sha256(values[name].encode()).hexdigest()
        until = ", expires: 2020-01-01" if name == "expired" else ""
        lines.append(f"  - {{name: {name}, token_sha256: {digest}, role: {role}{until}}}\n")
    (base / "tokens.yaml").write_text("".join(lines))
    odd = values.pop("odd")
    values |= {"newline": odd + "\n", "crlf_bom": f"\ufeff{odd}\r\n", "two_lines": f"{odd}\nsecond\n"}
    for name, value in values.items():
        (folder / name).write_bytes(value.encode())
    return base / "tokens.yaml", {name: str(folder / name) for name in values}


def make_certificate(base: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost and 127.0.0.1, which is its own authority, and its key."""
    certificate, key = base / f"{name}.pem", base / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return certificate, key


class Server:
    """`limbeck serve` in a process of its own."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", "127.0.0.1:0", *arguments]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                preexec_fn=_die_with(os.getpid()),
            )

    def address(self) -> str:
        """Where it listens, as soon as it does."""
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first.startswith("listening on "):
            sys.exit(f"the server did not start:\n{self.log.read_text()}")
        return first.split()[-1]

    def stop(self) -> None:
        """End it and all that it started."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _die_with(parent: int) -> Callable[[], None]:
    """What a process does at its start to be killed when its parent ends, however it does; on Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def prepare() -> None:
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # too late
                os._exit(1)

    return prepare


async def serve(base: Path, workspace: Path, labelled: Path, stack: ExitStack) -> None:
    """Start everything, say what is there, and wait for the end of stdin or a signal."""
    from limbeck.client import connect

    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    (base / "workspace-tls").mkdir()
    (base / "teacher.yaml").write_text(f"plugin: echo\ntokenizer: {workspace / 'teacher'}\nmax_length: 512\n")
    tokens, token_files = make_tokens(base)
    certificate, key = make_certificate(base, "server")
    other_certificate, _ = make_certificate(base, "other")
    common = ["--teacher", f"{TEACHER}={base / 'teacher.yaml'}", "--signals", f"{DATASET}={labelled}"]
    common += ["--tokens", str(tokens), "--max-runs", "2"]
    tls = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    plain = Server(base / "serve.log", *common, "--workspace", str(workspace))
    stack.callback(plain.stop)
    safe = Server(base / "serve-tls.log", *common, *tls, "--workspace", str(base / "workspace-tls"))
    stack.callback(safe.stop)
    write_expected(labelled, base / "signals.jsonl")
    address, tls_address = plain.address(), safe.address()
    with connect(address, token_file=token_files["train"]) as client:
        client.teacher(TEACHER, wait=120)
    proxy, silent = Relay(address), Relay(address, SILENT_AFTER)
    line = {
        "address": address,
        "tls_address": tls_address,
        "ca": str(certificate),
        "other_ca": str(other_certificate),
        "tokens": token_files,
        "workspace": str(workspace),
        "recipes": RECIPES,
        "invalid_lines": INVALID_LINES,
        "teacher": TEACHER,
        "dataset": DATASET,
        "proxy": await proxy.start(),
        "drop": await proxy.doorbell(),
        "silent": await silent.start(),
        "vectors": str(DATA / "signal_vectors"),
        "signals": str(base / "signals.jsonl"),
        "integers": str(DATA / "C47" / "values.json"),
        "log": str(plain.log),
    }

    def listen() -> None:
        while os.read(0, 1 << 16):
            pass
        with suppress(RuntimeError):  # the loop is closed: it ends already
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=listen, daemon=True).start()
    print(json.dumps(line), flush=True)
    await over.wait()
    await asyncio.gather(proxy.close(), silent.close())


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the folder is removed
    with tempfile.TemporaryDirectory(prefix="limbeck-clients-") as folder, ExitStack() as stack:
        base = Path(folder).resolve()
        workspace = make_workspace(base)
        asyncio.run(serve(base, workspace, label(base, workspace), stack))


if __name__ == "__main__":
    main()
