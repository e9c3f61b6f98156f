"""Four ways of sending stored signals: for each a server, and a reader that gives (ids, log-probabilities) a sequence.

Readers decode to int32 [n, 64] and float64 [n, 64]. The servers other than Limbeck's hold everything in memory.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.signals import SignalHeader, SignalStore
from limbeck.signals.codec import Packed, decode
from limbeck.signals.shard import Shard
from limbeck.signals.topk import dequantise
from streaming.processes import ready
from streaming.rows import json_text, prompt_logprobs

Arrays = tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]
Reader = Callable[[str, int, SignalHeader], Iterator[Arrays]]
AHEAD = 2  # HTTP answers that are asked for while one is parsed
MESSAGE = 1 << 20  # bytes of a record batch of Flight
_PREFIX = struct.Struct("<II")


def arrays(packed: Packed, header: SignalHeader) -> Arrays:
    """The decoding that all packed transports share."""
    top = decode(packed, header).top_k
    assert top is not None
    return top.ids, dequantise(top.u)


def stored(run: Path) -> Iterator[Packed]:
    """The signals of a run's folder, in order."""
    signals = SignalStore(run / "signals" / "train")
    shards = [Shard(signals.folder / name) for name in signals.shards]
    places = sorted((int(index), shard) for shard in shards for index in shard.indexes)
    return (shard.entry(index).packed for index, shard in places)


# ------------------------------------------------------------------------------------------------------------- Limbeck


def read_limbeck(address: str, count: int, header: SignalHeader, *, normalised: bool = False) -> Iterator[Arrays]:
    """`normalised`: by `TopK.at`, as losses want them."""
    from limbeck.client import connect

    with connect(address) as client, closing(client.signals("bench")) as signals:
        for _, found in zip(range(count), signals, strict=False):
            top = found.signal.top_k
            assert top is not None
            yield top.at(1.0)[:2] if normalised else (top.ids, dequantise(top.u))


# ------------------------------------------------------------------------------------------------------------- raw TCP


def serve_raw(pipe: Connection, run: Path) -> None:
    messages = [
        _PREFIX.pack(packed.first_row, packed.n) + b"".join(map(bytes, packed.fields.values()))
        for packed in stored(run)
    ]
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                for message in messages[: int.from_bytes(connection.recv(8), "little")]:
                    connection.sendall(message)

    threading.Thread(target=answer, daemon=True).start()
    ready(pipe, f"127.0.0.1:{listener.getsockname()[1]}", sum(map(len, messages)) - len(messages) * _PREFIX.size)


def read_raw(address: str, count: int, header: SignalHeader) -> Iterator[Arrays]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(count.to_bytes(8, "little"))
        for _ in range(count):
            first_row, n = _PREFIX.unpack(_exactly(connection, _PREFIX.size))
            raw, start, fields = memoryview(_exactly(connection, n * sum(header.row_bytes.values()))), 0, {}
            for name, size in header.row_bytes.items():
                fields[name] = raw[start : start + n * size]
                start += n * size
            yield arrays(Packed(first_row, n, fields), header)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    raw = bytearray(size)
    rest = memoryview(raw)
    while rest:
        got = connection.recv_into(rest)
        if not got:
            raise EOFError("the server closed the connection")
        rest = rest[got:]
    return raw


# -------------------------------------------------------------------------------------------------------- Arrow Flight


def serve_flight(pipe: Connection, run: Path) -> None:
    import pyarrow as pa
    from pyarrow import flight

    packed = list(stored(run))
    each = max(1, MESSAGE // sum(memoryview(raw).nbytes for raw in packed[0].fields.values()))
    columns = {
        name: pa.array([memoryview(p.fields[name]) for p in packed], pa.large_binary()) for name in packed[0].fields
    }
    numbers = {name: pa.array([getattr(p, name) for p in packed], pa.int32()) for name in ("first_row", "n")}
    table = pa.table(numbers | columns)

    class Server(flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, context: Any, ticket: Any) -> Any:
            batches = table.slice(0, int(ticket.ticket)).to_batches(max_chunksize=each)
            return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(table.schema, batches))

    server = Server("grpc+tcp://127.0.0.1:0")
    ready(pipe, f"127.0.0.1:{server.port}", sum(table.column(name).nbytes for name in columns))


def read_flight(address: str, count: int, header: SignalHeader) -> Iterator[Arrays]:
    from pyarrow import flight

    with flight.connect(f"grpc+tcp://{address}") as client:
        for chunk in client.do_get(flight.Ticket(str(count).encode())):
            columns = {name: chunk.data.column(name) for name in ("first_row", "n", *header.row_bytes)}
            for row in range(chunk.data.num_rows):
                fields = {name: columns[name][row].as_buffer() for name in header.row_bytes}
                yield arrays(Packed(columns["first_row"][row].as_py(), columns["n"][row].as_py(), fields), header)


# ----------------------------------------------------------------------------------------------------- JSON over HTTP


def serve_json(pipe: Connection, run: Path, count: int, kept: bool) -> None:
    """`kept`: all texts are made beforehand, else each when it is asked for."""
    texts = {int(number): text for number, text in json.loads((run / "texts.json").read_text()).items()}
    header = SignalStore(run / "signals" / "train").header
    numbers = [arrays(packed, header) for _, packed in zip(range(count), stored(run), strict=False)]

    def text(place: int) -> bytes:
        choice = {"index": 0, "text": "", "finish_reason": "length"}
        choice["prompt_logprobs"] = prompt_logprobs(*numbers[place], texts)
        return json_text({"id": f"cmpl-{place}", "object": "text_completion", "choices": [choice]})

    texts_kept = [text(place) for place in range(count)]
    size = sum(map(len, texts_kept))
    if not kept:
        texts_kept.clear()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            place = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sequence"]
            body = texts_kept[place] if kept else text(place)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ready(pipe, f"127.0.0.1:{server.server_port}", size)


def read_json(address: str, count: int, header: SignalHeader) -> Iterator[Arrays]:
    """With AHEAD connections, so that the server makes the next text while one is parsed."""
    with ThreadPoolExecutor(AHEAD) as pool:
        connections = [http.client.HTTPConnection(address) for _ in range(AHEAD)]
        asked = deque(pool.submit(_body, connections[place % AHEAD], place) for place in range(min(AHEAD, count)))
        for place in range(count):
            positions = json.loads(asked.popleft().result())["choices"][0]["prompt_logprobs"][1:]
            if place + AHEAD < count:  # this connection has just been read to its end
                asked.append(pool.submit(_body, connections[place % AHEAD], place + AHEAD))
            ids = [int(number) for position in positions for number in position]
            values = [entry["logprob"] for position in positions for entry in position.values()]
            shape = len(positions), header.k
            yield np.array(ids, np.int32).reshape(shape), np.array(values, np.float64).reshape(shape)
        for connection in connections:
            connection.close()


def _body(connection: http.client.HTTPConnection, place: int) -> bytes:
    connection.request("POST", "/v1/completions", json_text({"sequence": place}))
    return connection.getresponse().read()


READERS: dict[str, Reader] = {
    "limbeck": read_limbeck,
    "normalised": partial(read_limbeck, normalised=True),
    "raw": read_raw,
    "flight": read_flight,
    "json": read_json,
}
