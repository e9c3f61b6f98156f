"""StreamSignals over a raw stub: from any cursor, while the capture grows, and over damage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from limbeck.data import TokenSequence, write_sequences
from limbeck.errors import LimbeckError, Reason
from limbeck.service import replay as replay_module
from limbeck.service.config import ServeConfig, Timing
from limbeck.service.replay import Dataset
from limbeck.service.server import Server
from limbeck.signals import Signal, SignalHeader, SignalWriter, TopK
from limbeck.signals.codec import Packed, decode
from limbeck.signals.journal import read_journal
from limbeck.v1 import teacher_service_pb2 as pb
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub

from .served import error_from, serving_signals

HEADER = SignalHeader(
    vocab_size=1000,
    k=2,
    temperatures=(1.0,),
    target=True,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    teacher="made",
)
QUICK = Timing(alive=0.1, poll=0.02)


@dataclass
class Capture:
    """A run's folder whose label stage a test plays."""

    folder: Path
    sequences: list[TokenSequence]

    @property
    def store(self) -> Path:
        return self.folder / "signals" / "train"

    def label(self, *indexes: int, header: SignalHeader = HEADER) -> None:
        """Capture these rows, as one shard."""
        with SignalWriter(self.store, header, shard_bytes=1 << 40) as writer:
            for index in indexes:
                writer.add(self.sequences[index], signal_of(self.sequences[index]))

    def finish(self) -> None:
        (self.folder / "stages").mkdir(exist_ok=True)
        (self.folder / "stages" / "label.json").write_text(json.dumps({"complete": True}))


def signal_of(sequence: TokenSequence) -> Signal:
    rng = np.random.default_rng(sequence.index)
    ids = np.sort(rng.choice(1000, (sequence.n, 2)), axis=1).astype(np.int32)
    u = np.tile(np.array([500, 900], np.uint16), (sequence.n, 1))
    tails = rng.uniform(-3, -1, (sequence.n, 1)).astype(np.float32)
    target = rng.uniform(-3, -1, sequence.n).astype(np.float32)
    return Signal(sequence.first_row, sequence.n, top_k=TopK(ids, u, tails, (1.0,)), target=target)


def capture(folder: Path, rows: int = 12, length: int = 10) -> Capture:
    sequences = []
    for index in range(rows):
        ids = np.random.default_rng(1000 + index).integers(0, 1000, length + index).astype(np.int32)
        trained = np.zeros(len(ids), bool)
        trained[3:] = True
        offsets, pair = np.zeros((len(ids), 2), np.int32), (index - 4) // 2 if index >= 4 else -1
        chosen = pair < 0 or index % 2 == 0
        sequences.append(TokenSequence(index, ids, trained, offsets, "rows.jsonl", index + 1, pair, chosen))
    folder.mkdir(exist_ok=True)
    write_sequences(folder / "sequences" / "train.arrow", sequences)
    return Capture(folder, sequences)


@pytest.fixture
def whole(tmp_path: Path) -> Capture:
    """Twelve rows, captured in three shards, the last rows first."""
    made = capture(tmp_path / "run")
    for indexes in ((8, 9, 10, 11), (0, 1, 2), (3, 4, 5, 6, 7)):
        made.label(*indexes)
    made.finish()
    return made


async def replayed(stub, **request) -> list[pb.StoredSignal]:
    """All signals of a call that ends well."""
    call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d", **request))
    messages = [message async for message in call]
    assert messages[0].WhichOneof("kind") == "started"
    assert messages[0].started.dataset.total == 12
    return [signal for message in messages[1:] for signal in message.signals.signals]


@pytest.mark.parametrize("after", [None, 0, 1, 4, 11, 12])
def test_signals_come_in_order_from_any_cursor(whole, after):
    async def check():
        async with serving_signals(whole.folder) as stub:
            got = await replayed(stub, after_sequence=after)
            assert [signal.sequence for signal in got] == list(range((after or 0) + 1, 13))
            for signal in got:
                sequence = whole.sequences[signal.sequence - 1]
                names = ("ids_low", "ids_high", "logprobs", "tails", "target")
                fields = {name: getattr(signal.signal, name) for name in names}
                read = decode(Packed(signal.signal.first_row, signal.signal.n, fields), HEADER)
                made = signal_of(sequence)
                assert (read.first_row, read.n) == (made.first_row, made.n)
                assert (read.top_k.ids == made.top_k.ids).all()
                assert (read.target == made.target).all()
                assert signal.ids_sha256 == hashlib.sha256(sequence.ids.tobytes()).digest()
                assert not signal.HasField("tokens")

    asyncio.run(check())


def test_tokens_come_where_asked(whole):
    async def check():
        async with serving_signals(whole.folder) as stub:
            for signal in await replayed(stub, with_tokens=True):
                sequence = whole.sequences[signal.sequence - 1]
                assert signal.tokens.ids == sequence.ids.tobytes()
                assert signal.tokens.trained == bytes(sequence.trained.astype("u1"))
                assert (signal.tokens.pair if signal.tokens.HasField("pair") else -1) == sequence.pair
                assert signal.tokens.rejected is not sequence.chosen

    asyncio.run(check())


def test_messages_are_cut_at_about_a_mebibyte(whole, monkeypatch):
    monkeypatch.setattr(replay_module, "PART_BYTES", 400)

    async def check():
        async with serving_signals(whole.folder) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d"))
            sizes = [len(message.signals.signals) async for message in call if message.HasField("signals")]
            assert sum(sizes) == 12
            assert 1 < len(sizes) < 12

    asyncio.run(check())


def test_a_cursor_beyond_the_end_is_refused(whole):
    async def check():
        async with serving_signals(whole.folder) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d", after_sequence=13))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, Reason.CURSOR_INVALID)
            assert "12" in error.problems[0].message

    asyncio.run(check())


def test_unknown_datasets_are_refused_with_the_nearest_name(whole):
    async def check():
        async with serving_signals(whole.folder, name="gemma") as stub:
            code, error = await error_from(stub.StreamSignals(pb.StreamSignalsRequest(dataset="gema")))
            assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.DATASET_UNKNOWN)
            assert error.problems[0].hint == "did you mean gemma?"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tokenizer_digest", "c" * 64, Reason.TOKENIZER_MISMATCH),
        ("weights_digest", "c" * 64, Reason.TEACHER_MISMATCH),
        ("vocab_size", 999, Reason.TEACHER_MISMATCH),
    ],
)
def test_what_is_not_expected_is_refused_before_the_first_signal(whole, field, value, reason):
    async def check():
        async with serving_signals(whole.folder) as stub:
            request = pb.StreamSignalsRequest(dataset="d", expectation=pb.Expectation(**{field: value}))
            code, error = await error_from(stub.StreamSignals(request))
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
            assert [problem.field for problem in error.problems] == [field]

    asyncio.run(check())


def test_a_dataset_is_listed_with_its_header(whole):
    async def check():
        async with serving_signals(whole.folder) as stub:
            listed = await stub.ListTeachers(pb.ListTeachersRequest())
            assert [(d.name, d.total, d.header.k) for d in listed.datasets] == [("d", 12, 2)]

    asyncio.run(check())


def test_a_growing_store_is_followed_to_its_end(tmp_path):
    made = capture(tmp_path / "run")
    made.label(0, 1)

    async def check():
        async with serving_signals(made.folder, timing=QUICK) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d"))
            got, alive = [], []
            for step in ((4, 5), (2, 3), tuple(range(6, 12))):
                while not alive:
                    message = await call.read()
                    if message.HasField("alive"):
                        alive.append(message.alive.position)
                    else:
                        got += [signal.sequence for signal in message.signals.signals]
                assert alive[-1] == len(got)
                made.label(*step)
                alive.clear()
            made.finish()
            while (message := await call.read()) is not grpc.aio.EOF:
                got += [signal.sequence for signal in message.signals.signals]
            assert got == list(range(1, 13))

    asyncio.run(check())


def test_an_idle_replay_is_ended_for_the_client_to_ask_again(tmp_path):
    made = capture(tmp_path / "run")
    made.label(0, 1)

    async def check():
        async with serving_signals(made.folder, timing=Timing(alive=0.05, poll=0.02, idle=0.3)) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d"))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)

    asyncio.run(check())


def test_a_drain_sends_an_open_replay_away(tmp_path):
    made = capture(tmp_path / "run")
    made.label(0, 1)

    async def check():
        server = Server(ServeConfig(signals={"d": made.folder}, listen="127.0.0.1:0", timing=QUICK))
        channel = grpc.aio.insecure_channel(await server.start(), options=[("grpc.enable_http_proxy", 0)])
        call = TeacherServiceStub(channel).StreamSignals(pb.StreamSignalsRequest(dataset="d"))
        assert (await call.read()).HasField("started")
        assert len((await call.read()).signals.signals) == 2
        stopping = asyncio.ensure_future(server.stop(10))
        code, error = await error_from(call)
        assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)
        assert await stopping
        await channel.close()

    asyncio.run(check())


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [flipped, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_shard_is_told_after_what_comes_before_it(whole, harm):
    harm(whole.store / next(name for name, shard in read_journal(whole.store).items() if 3 in shard.indexes))

    async def check():
        async with serving_signals(whole.folder) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d"))
            assert (await call.read()).HasField("started")
            assert [signal.sequence for signal in (await call.read()).signals.signals] == [1, 2, 3]
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.DATA_LOSS, Reason.STORE_DAMAGED)
            assert "sequences 4–8" in error.problems[0].message
            assert str(whole.folder) not in str(error)

    asyncio.run(check())


def test_a_signal_that_a_finished_capture_lacks_is_damage(tmp_path):
    made = capture(tmp_path / "run")
    made.label(0, 1, 3)
    made.finish()

    async def check():
        async with serving_signals(made.folder, timing=QUICK) as stub:
            code, error = await error_from(stub.StreamSignals(pb.StreamSignalsRequest(dataset="d")))
            assert (code, error.reason) == (grpc.StatusCode.DATA_LOSS, Reason.STORE_DAMAGED)
            assert "sequence 3" in error.problems[0].message

    asyncio.run(check())


def test_a_dataset_that_is_made_anew_never_goes_on_in_an_open_call(tmp_path):
    made = capture(tmp_path / "run")
    made.label(0, 1)

    async def check():
        async with serving_signals(made.folder, timing=QUICK) as stub:
            call = stub.StreamSignals(pb.StreamSignalsRequest(dataset="d"))
            assert (await call.read()).HasField("started")
            made.store.rename(tmp_path / "former")
            made.label(*range(12), header=HEADER)
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.TEACHER_MISMATCH)
            assert len(await replayed(stub)) == 12

    asyncio.run(check())


def test_many_streams_share_open_shards_and_encoded_messages(whole, monkeypatch):
    opened = []

    class Counted(replay_module.Shard):
        def __init__(self, path):
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(replay_module, "Shard", Counted)
    encoded = []
    real = replay_module.stored_signal
    monkeypatch.setattr(replay_module, "stored_signal", lambda entry, t: encoded.append(entry.index) or real(entry, t))

    async def check():
        async with serving_signals(whole.folder) as stub:
            got = await asyncio.gather(*(replayed(stub) for _ in range(16)))
            assert all([s.sequence for s in signals] == list(range(1, 13)) for signals in got)

    asyncio.run(check())
    assert sorted(opened) == sorted(path.name for path in whole.store.glob("shard-*.arrow"))
    assert sorted(encoded) == list(range(12))


def test_streams_that_are_given_up_never_mix_what_others_get(whole, monkeypatch):
    real = replay_module.stored_signal
    monkeypatch.setattr(replay_module, "KEPT_PARTS", 1)
    monkeypatch.setattr(replay_module, "PART_BYTES", 400)
    monkeypatch.setattr(replay_module, "stored_signal", lambda *about: time.sleep(0.001) or real(*about))
    working = []

    async def check():
        dataset = Dataset("d", whole.folder)
        part = dataset._part

        def watched(*about):
            working.append(1)
            assert len(working) == 1, "one thread at a time, also after a cancel"
            try:
                return part(*about)
            finally:
                working.pop()

        monkeypatch.setattr(dataset, "_part", watched)
        shelf = await dataset.current()
        for after in range(12):
            asking = [asyncio.ensure_future(dataset.part(shelf, after, tokens)) for tokens in (True, False)]
            await asyncio.sleep(0.0005 * (after % 3))
            asking[0].cancel()
            assert (await asking[1]).last > after

    asyncio.run(check())


def test_what_a_stream_has_no_place_for_is_refused(tmp_path):
    """Clients would take tokens of which nothing was said for covered ones, and weights for 1."""
    partial = capture(tmp_path / "partial")
    partial.label(*range(12), header=replace(HEADER, partial=True))
    weighed = capture(tmp_path / "weighed")
    weighed.label(*range(12))
    sequences = [replace(s, weights=np.ones(len(s.ids), np.float32)) for s in weighed.sequences]
    write_sequences(weighed.folder / "sequences" / "train.arrow", sequences)
    for made, what in ((partial, "said nothing of some"), (weighed, "weights of their own")):
        with pytest.raises(LimbeckError, match=what) as caught:
            Dataset("d", made.folder)
        assert caught.value.reason is Reason.CAPABILITY_MISSING


def test_a_folder_without_signals_is_no_dataset(tmp_path):
    capture(tmp_path / "run")
    with pytest.raises(LimbeckError) as caught:
        Dataset("d", tmp_path / "run")
    assert caught.value.reason is Reason.STORE_DAMAGED
