"""The server as a whole: its unary calls, health, reflection, metrics, errors, and what is thrown at its port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import urllib.request
from io import StringIO
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.config import ServeConfig, Timing
from limbeck.service.logs import start_logging
from limbeck.service.server import Server
from limbeck.service.translate import status_of, wire_error
from limbeck.v1 import error_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .served import INFO, ScriptedHost, error_from, item, serving, soon

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
TEACHERS = "limbeck.v1.TeacherService"


async def health_of(channel, service: str = TEACHERS) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


# ---------------------------------------------------------------------------------------------------------- unary calls


def test_teachers_are_listed_with_what_they_can_and_what_a_client_may(echo):
    async def check():
        async with serving(echo) as served:
            (teacher,) = (await served.stub.ListTeachers(pb.ListTeachersRequest())).teachers
            assert (teacher.name, teacher.state, teacher.vocab_size) == ("t", pb.Teacher.STATE_READY, INFO.vocab_size)
            assert set(teacher.capabilities) == INFO.capabilities - {"full"}
            assert (teacher.limits.tokens_in_flight, teacher.limits.answer_bytes) == (262_144, 256 << 20)
            assert teacher.limits.streams == 64
            got = await served.stub.GetTeacher(pb.GetTeacherRequest(name="t"))
            assert got.teacher == teacher

    asyncio.run(check())


def test_full_rows_are_named_where_they_are_allowed(echo):
    async def check():
        async with serving(echo, allow_full=True) as served:
            got = await served.stub.GetTeacher(pb.GetTeacherRequest(name="t"))
            assert "full" in got.teacher.capabilities

    asyncio.run(check())


def test_an_unknown_teacher_is_told_with_the_nearest_name(echo):
    async def check():
        async with serving(echo) as served:
            code, error = await error_from(served.stub.GetTeacher(pb.GetTeacherRequest(name="tt")))
            assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.TEACHER_UNKNOWN)
            assert error.problems[0].hint == "did you mean t?"

    asyncio.run(check())


def test_a_name_of_any_length_is_refused_at_once(echo):
    async def check():
        async with serving(echo) as served:
            _, error = await error_from(served.stub.GetTeacher(pb.GetTeacherRequest(name="t" * 4_000_000)))
            assert error.reason is Reason.TEACHER_UNKNOWN
            assert len(error.problems[0].message) < 200

    asyncio.run(check())


def test_the_output_head_comes_as_the_host_gives_it(echo):
    async def check():
        async with serving(echo) as served:
            got = [response async for response in served.stub.GetOutputHead(pb.GetOutputHeadRequest(teacher="t"))]
            assert [response.chunk.data for response in got] == [b"head"]
            _, error = await error_from(served.stub.GetOutputHead(pb.GetOutputHeadRequest(teacher="x")))
            assert error.reason is Reason.TEACHER_UNKNOWN

    asyncio.run(check())


def test_a_teacher_without_hidden_states_has_no_head(echo):
    async def check():
        async with serving(echo, host=None) as served:
            code, error = await error_from(served.stub.GetOutputHead(pb.GetOutputHeadRequest(teacher="t")))
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.CAPABILITY_MISSING)

    asyncio.run(check())


# --------------------------------------------------------------------------------------------------- health, reflection


def test_health_follows_the_teachers(echo):
    async def check():
        async with serving(echo, timing=Timing(poll=0.02)) as served:
            watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service=TEACHERS))
            seen = [(await watch.read()).status]
            for state, status in (("ready", SERVING), ("starting", NOT_SERVING), ("failed", NOT_SERVING)):
                served.host.state = state
                while seen[-1] != status:
                    seen.append((await watch.read()).status)
                assert await health_of(served.channel) == await health_of(served.channel, "") == status

    asyncio.run(check())


def test_health_is_not_serving_before_a_worker_is_ready_and_while_draining(echo):
    async def check():
        async with serving(echo, host=Starting, timing=Timing(poll=0.02)) as served:
            assert await health_of(served.channel) == NOT_SERVING
            served.host.state = "ready"
            served.host.ready.set()
            async with asyncio.timeout(10):
                while await health_of(served.channel) != SERVING:
                    await asyncio.sleep(0.01)
            call, waiting = served.stub.Score(), served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1), credit=1000)))
            await call.write(pb.ScoreRequest(items=pb.ScoreItems(items=[item(1)])))
            await soon(lambda: served.host.asked == [1])
            stopping = asyncio.ensure_future(served.server.stop(0.5))
            _, error = await error_from(waiting)
            assert error.reason is Reason.SERVER_UNAVAILABLE, "nothing of it is under way"
            assert await health_of(served.channel) == NOT_SERVING
            assert not await stopping
            _, error = await error_from(call)
            assert error.reason is Reason.SERVER_UNAVAILABLE

    asyncio.run(check())


class Starting(ScriptedHost):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.state = "starting"
        self.ready.clear()


def test_calls_wait_for_a_teacher_that_starts(echo):
    async def check():
        async with serving(echo, host=Starting) as served:
            call = served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1))))
            reading = asyncio.ensure_future(call.read())
            await asyncio.sleep(0.1)
            assert not reading.done()
            served.host.ready.set()
            assert (await reading).HasField("started")

    asyncio.run(check())


def test_the_services_can_be_asked_for(echo):
    async def check():
        async with serving(echo) as served:
            stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
            call = stub.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {service.name for service in (await call.read()).list_services_response.service}
            assert {TEACHERS, "grpc.health.v1.Health"} <= names
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=TEACHERS))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto

    asyncio.run(check())


def test_reflection_is_off_for_strangers(echo):
    async def check():
        config = ServeConfig(teachers={"t": echo}, listen="0.0.0.0:0", insecure=True)
        server = Server(config)
        address = await server.start()
        async with grpc.aio.insecure_channel(
            address.replace("0.0.0.0", "127.0.0.1"), options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            assert await call.code() == grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)

    asyncio.run(check())


# ----------------------------------------------------------------------------------------------------- metrics and logs


def figures(address: str) -> dict[str, float]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as response:
        text = response.read().decode()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_what_happens(echo, caplog):
    caplog.set_level(logging.INFO)

    async def check():
        async with serving(echo, metrics="127.0.0.1:0") as served:
            call = served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1), credit=1 << 20)))
            bad = pb.ScoreItem(item_id=9, ids=b"a", n=1)
            await call.write(pb.ScoreRequest(items=pb.ScoreItems(items=[item(1), item(2), bad])))
            await soon(lambda: served.host.asked == [1, 2])
            served.host.answer(1, 10)
            await call.read()
            where = next(m for m in caplog.messages if m.startswith("metrics at")).removeprefix("metrics at ")
            served.host.lanes["score"].waiting = 3
            served.host.restarts = 2
            open_ = await asyncio.to_thread(figures, where)
            assert open_['limbeck_streams{method="Score"}'] == 1
            assert open_['limbeck_queue_items{method="score",teacher="t"}'] == 3
            assert open_['limbeck_worker_restarts_total{teacher="t"}'] == 2
            assert open_['limbeck_teacher_ready{teacher="t"}'] == 1
            await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=2)))
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            await error_from(served.stub.GetTeacher(pb.GetTeacherRequest(name="x")))
            after = await asyncio.to_thread(figures, where)
            assert after['limbeck_streams{method="Score"}'] == 0
            for outcome in ("answered", "failed", "dropped"):
                assert after[f'limbeck_items_total{{method="Score",outcome="{outcome}",teacher="t"}}'] == 1
            assert after['limbeck_tokens_total{method="Score",teacher="t"}'] == 4
            assert after['limbeck_calls_total{code="OK",method="Score"}'] == 1
            assert after['limbeck_calls_total{code="NOT_FOUND",method="GetTeacher"}'] == 1
            assert after['limbeck_errors_total{reason="TEACHER_UNKNOWN"}'] == 1
            assert after['limbeck_errors_total{reason="REQUEST_INVALID"}'] == 1
            assert after['limbeck_sent_bytes_total{method="Score"}'] > 10

    asyncio.run(check())


def test_the_log_is_one_json_object_a_line_and_says_who_and_how(echo):
    stream = StringIO()
    former = logging.root.handlers[:], logging.root.level
    start_logging(stream)
    try:

        async def check():
            async with serving(echo) as served:
                await served.stub.ListTeachers(pb.ListTeachersRequest())
                await error_from(served.stub.GetTeacher(pb.GetTeacherRequest(name="x\ny")))

        asyncio.run(check())
    finally:
        logging.root.handlers[:] = former[0]
        logging.root.setLevel(former[1])
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    ended = [line for line in lines if line["message"] == "call ended"]
    assert [(line["method"], line["code"]) for line in ended] == [("ListTeachers", "OK"), ("GetTeacher", "NOT_FOUND")]
    assert all({"time", "level", "client", "seconds"} <= set(line) for line in ended)


def test_on_a_terminal_the_log_is_for_people():
    class Terminal(StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    former = logging.root.handlers[:], logging.root.level
    try:
        start_logging(stream)
        logging.getLogger("x").warning("worker ended %s", "badly", extra={"teacher": "t"})
    finally:
        logging.root.handlers[:] = former[0]
        logging.root.setLevel(former[1])
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning worker ended badly  teacher=t\n", stream.getvalue())


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_fault_of_the_server_says_nothing_of_its_inside(echo, monkeypatch, caplog):
    async def check():
        async with serving(echo) as served:

            async def broken():
                raise RuntimeError("secret at /srv/key")

            monkeypatch.setattr(served.host, "wait_ready", broken)
            call = served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1))))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
            assert "secret" not in str(error)

    asyncio.run(check())
    assert "secret" in caplog.text


@pytest.mark.parametrize("text", ["x" * 10_000, "ü🙂" * 5_000, "🙂" * 10_000, "a\nb\0" * 900])
def test_errors_of_any_size_fit_the_trailers_of_a_call(text):
    problems = [Problem(text, f"x{text}", 2**32 - 1, 2**32 - 1, text, text) for _ in range(100)]
    error = LimbeckError(Reason.REQUEST_INVALID, text, problems)
    for placed in (False, True):
        assert wire_error(error, placed=placed).ByteSize() <= 5 << 10
        assert "more problems" in wire_error(error, placed=placed).problems[-1].message
        assert wire_error(error, placed=placed).problems[0].line == (2**32 - 1 if placed else 0)
    status = status_of(error, placed=True)
    (key, raw), *none = status.trailing_metadata
    # the message is percent-encoded and the details are base64 on the wire
    assert len(key) + len(raw) * 4 / 3 + 3 * len(status.details.encode()) < 8 << 10
    assert not none


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("cannot read /srv/models/gemma/config.json: gone", "cannot read …/config.json: gone"),
        ("'/home/ann/x y' is not there", "'…/x y' is not there"),
        ("it is ~/models/a", "it is …/a"),
        ("1/2 of the rows, tokens/s and http://host/path stay", "1/2 of the rows, tokens/s and http://host/path stay"),
    ],
)
def test_paths_of_the_server_stay_at_home(text, public):
    error = LimbeckError(Reason.MODEL_INVALID, text, [Problem(text, "/srv/secret/f", 3, 9, text, text)])
    for placed in (False, True):
        message = wire_error(error, placed=placed)
        (problem,) = message.problems
        assert {message.message, problem.message, problem.field, problem.hint} == {public}
        assert (problem.file, problem.line, problem.column) == (("…/f", 3, 9) if placed else ("", 0, 0))
        assert "secret" not in str(message)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        *((name, name) for name in ("recipe", "rows.jsonl", "data/a b/..c.jsonl", "…/rows.jsonl")),
        *((name, "…/rows") for name in ("/rows", "/srv/a b/rows", "~/rows", "~ann/rows", "../rows", "a/../../rows")),
        ("", ""),
        (None, ""),
    ],
)
def test_files_are_told_by_services_whose_clients_know_them_alone(file, told):
    error = LimbeckError(Reason.DATA_INVALID, problems=[Problem("is bad", file, 3, 9)])
    (problem,) = wire_error(error, placed=True).problems
    assert (problem.file, problem.line, problem.column) == ((told, 3, 9) if told else ("", 0, 0))
    (problem,) = wire_error(error).problems
    assert (problem.file, problem.line, problem.column) == ("", 0, 0)


def test_calls_of_a_teacher_tell_no_file(echo, monkeypatch):
    async def check():
        async with serving(echo) as served:

            async def broken():
                raise LimbeckError(Reason.MODEL_INVALID, problems=[Problem("is bad", "models/secret.json", 3, 9)])

            monkeypatch.setattr(served.host, "wait_ready", broken)
            call = served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1))))
            _, error = await error_from(call)
            assert error.problems == (Problem("is bad"),)
            assert "secret" not in f"{await call.details()} {await call.trailing_metadata()}"

    asyncio.run(check())


# --------------------------------------------------------------------------------------------------------- at the port


JUNK = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0" * 5000,
    b"\xff" * 100_000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x04\x01\0\0\0\x01" + b"\0" * 300,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"",
]


def test_raw_bytes_at_the_port_do_not_keep_the_next_client_from_its_answer(echo):
    def throw(host: str, port: int, junk: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2) as plain:
            plain.sendall(junk)
            plain.settimeout(0.2)
            plain.recv(100)

    async def check():
        async with serving(echo) as served:
            host, _, port = served.address.rpartition(":")
            for junk in JUNK:
                await asyncio.to_thread(throw, host, int(port), junk)
                await served.stub.ListTeachers(pb.ListTeachersRequest())
            assert not served.server.service.busy

    asyncio.run(check())


METHODS = ("Score", "Generate", "ListTeachers", "GetTeacher", "GetOutputHead", "StreamSignals")


def told(address: str, method: str, messages: list[bytes]) -> tuple[list[bytes], str | None]:
    """All answers to all messages, and the reason of the error. The plain client, whose own writes hide no error."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        make = channel.stream_stream if method in ("Score", "Generate") else channel.unary_stream
        call = make(f"/{TEACHERS}/{method}")(iter(messages) if make == channel.stream_stream else messages[0])
        answers = []
        try:
            answers += call
        except grpc.RpcError:
            status = status_pb2.Status.FromString(dict(call.trailing_metadata())["grpc-status-details-bin"])
            error = error_pb2.Error()
            assert status.details[0].Unpack(error)
            return answers, error.reason
        return answers, None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_any_bytes_as_messages_end_in_an_error_of_the_catalogue_or_an_answer(echo, many):
    async def check():
        async with serving(echo) as served:
            for name in METHODS:
                _, reason = await asyncio.to_thread(told, served.address, name, many)
                assert reason in {None, *Reason} - {Reason.INTERNAL}

    asyncio.run(check())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    want=st.builds(
        pb.Want,
        top_k=st.sampled_from([0, 1, 300, 301, 2**32 - 1]),
        temperatures=st.lists(st.floats(), max_size=3),
        target=st.booleans(),
        token_ids=st.booleans(),
        samples=st.sampled_from([0, 1, 2**32 - 1]),
        layers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        hidden_dtype=st.integers(0, 9),
        full=st.booleans(),
    ),
    scored=st.builds(
        pb.ScoreItem,
        item_id=st.integers(0, 2**64 - 1),
        ids=st.binary(max_size=40),
        first_row=st.sampled_from([0, 1, 2**32 - 1]),
        n=st.sampled_from([0, 1, 2, 2**32 - 1]),
        token_ids=st.binary(max_size=40),
        offsets=st.binary(max_size=40),
        seed=st.integers(0, 2**64 - 1),
    ),
)
def test_any_request_is_answered_or_refused_by_its_own_fault(echo, want, scored):
    async def check():
        async with serving(echo) as served:
            served.host.at_once = True
            start = pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=want))
            items = pb.ScoreRequest(items=pb.ScoreItems(items=[scored]))
            messages = [start.SerializeToString(), items.SerializeToString()]
            answers, reason = await asyncio.to_thread(told, served.address, "Score", messages)
            kinds = [pb.ScoreResponse.FromString(answer).WhichOneof("kind") for answer in answers]
            if reason is None:
                assert kinds in (["started", "fragment"], ["started", "failed"])
            else:
                assert reason in (Reason.REQUEST_INVALID, Reason.CAPABILITY_MISSING)
                assert kinds == []

    asyncio.run(check())


# -------------------------------------------------------------------------------------------------------------- config


def problems_of(**config) -> list[str]:
    with pytest.raises(LimbeckError) as caught:
        Server(ServeConfig(**config))
    assert caught.value.reason is Reason.SERVER_INVALID
    return [f"{problem.field or ''}: {problem.message}" for problem in caught.value.problems]


def test_a_workspace_that_cannot_be_made_is_refused():
    with pytest.raises(LimbeckError) as caught:
        Server(ServeConfig(workspace=Path("/proc/runs")))
    (problem,) = caught.value.problems
    assert (caught.value.reason, problem.field, problem.file) == (Reason.SERVER_INVALID, "--workspace", "/proc/runs")


def test_a_server_without_anything_to_serve_is_refused():
    assert problems_of() == [": there is nothing to serve: no teacher, no signals and no runs"]


@pytest.mark.parametrize(
    "listen",
    ["", "7411", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:a", "::1:7411", ":1"],
)
def test_addresses_that_are_none_are_refused(echo, listen):
    (problem,) = problems_of(teachers={"t": echo}, listen=listen)
    assert problem.startswith("--listen: ")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7411", "example.org:7411"])
def test_an_address_that_others_reach_needs_tls_or_a_word(echo, listen):
    (problem,) = problems_of(teachers={"t": echo}, listen=listen)
    assert "without TLS" in problem


def test_all_problems_are_told_at_once(echo, tmp_path: Path):
    (tmp_path / "key.pem").write_text("no key")
    (tmp_path / "tokens.yaml").write_text("tokens: 3\n")
    found = problems_of(
        teachers={"a b": echo},
        signals={"s": tmp_path / "nothing"},
        listen="0.0.0.0:0",
        metrics="x",
        tls_key=tmp_path / "key.pem",
        client_ca=tmp_path / "gone.pem",
        tokens=tmp_path / "tokens.yaml",
    )
    assert len(found) == 7


def test_certificates_that_cannot_be_used_are_refused(echo, tmp_path):
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).write_text("nothing")
    found = problems_of(
        teachers={"t": echo},
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        client_ca=tmp_path / "ca.pem",
    )
    assert [problem.partition(":")[0] for problem in found] == ["--tls-cert", "--client-ca"]


def test_a_port_that_is_taken_is_refused(echo):
    async def check():
        async with serving(echo) as served:
            other = Server(ServeConfig(teachers={"t": echo}, listen=served.address))
            with pytest.raises(LimbeckError) as caught:
                await other.start()
            assert caught.value.reason is Reason.SERVER_INVALID
            assert served.address in caught.value.problems[0].message
            await other.stop(0)

    asyncio.run(check())
