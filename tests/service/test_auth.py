"""Who may call: every method with no, wrong, expired and too weak credentials; files of tokens; certificates."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from limbeck.errors import LimbeckError, Reason
from limbeck.service import auth
from limbeck.service.auth import METHOD_ROLES, Role, Tokens, read_tokens
from limbeck.service.config import Timing
from limbeck.v1 import plugin_service_pb2, training_service_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .scripted_runs import RUN, ScriptedRuns
from .served import error_from, item, serving, soon

FIRST = {
    "ListTeachers": pb.ListTeachersRequest(),
    "GetTeacher": pb.GetTeacherRequest(name="t"),
    "Score": pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(top_k=1))),
    "Generate": pb.GenerateRequest(start=pb.GenerateStart(teacher="t", sampling=pb.Sampling(max_new_tokens=1))),
    "GetOutputHead": pb.GetOutputHeadRequest(teacher="t"),
    "StreamSignals": pb.StreamSignalsRequest(dataset="d"),
    "ValidateRecipe": training_service_pb2.ValidateRecipeRequest(recipe="a: 1"),
    "CreateRun": training_service_pb2.CreateRunRequest(request_id="r", recipe="a: 1"),
    "ListRuns": training_service_pb2.ListRunsRequest(),
    "UpdateKnobs": training_service_pb2.UpdateKnobsRequest(run_id=RUN, values={"losses.kl.weight": 1.0}),
    "DownloadArtifact": training_service_pb2.DownloadArtifactRequest(run_id=RUN, path="log.txt"),
    **{
        name: getattr(training_service_pb2, f"{name}Request")(run_id=RUN)
        for name in (
            *("GetRun", "CancelRun", "PauseRun", "ResumeRun", "SaveCheckpoint", "WatchRun"),
            *("ListCheckpoints", "ListArtifacts"),
        )
    },
    "ListPlugins": plugin_service_pb2.ListPluginsRequest(),
    "Check": health_pb2.HealthCheckRequest(),
    "Watch": health_pb2.HealthCheckRequest(),
    "ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(list_services=""),
}
GUARDED = sorted(method for method, role in METHOD_ROLES.items() if role is not None)
YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def entry(name: str, token: str, role: str = "score", expires: str | None = None) -> str:
    more = f", expires: {expires}" if expires else ""
    return f"  - {{name: {name}, token_sha256: {sha256(token)}, role: {role}{more}}}\n"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(
        "tokens:\n"
        + entry("ann", "good", "score", TOMORROW)
        + entry("bob", "old", "admin", YESTERDAY)
        + entry("tom", "trainer", "train")
        + entry("eve", "chief", "admin")
    )
    return file


def methods_there() -> set[str]:
    """Every method of every service that the server offers, from the descriptors."""
    pool = descriptor_pool.Default()
    ours = ("TeacherService", "TrainingService", "PluginService")
    names = [*(f"limbeck.v1.{name}" for name in ours), "grpc.health.v1.Health"]
    names.append("grpc.reflection.v1alpha.ServerReflection")
    return {f"/{name}/{method.name}" for name in names for method in pool.FindServiceByName(name).methods}


def test_the_table_has_every_method_there_is():
    assert methods_there() - set(METHOD_ROLES) == set()
    assert {method for method in METHOD_ROLES if "limbeck" in method} <= methods_there()


async def called(channel: grpc.aio.Channel, method: str, *metadata: tuple[str, str], say: bool = True):
    """Call any method with its first message; whatever it says comes back as bytes.

    `say` False: a client's stream stays silent, since a message that crosses a refusal hides it from this client.
    """
    service, _, name = method[1:].partition("/")
    kind = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    up, down = ("stream" if s else "unary" for s in (kind.client_streaming, kind.server_streaming))
    make = getattr(channel, f"{up}_{down}")(method)
    raw = FIRST[name].SerializeToString() if name in FIRST else b""
    if kind.client_streaming:
        call = make(metadata=metadata)
        if say:
            await call.write(raw)
            await call.done_writing()
    else:
        call = make(raw, metadata=metadata)
    return call


WRONG = {
    "none": ((), Reason.UNAUTHENTICATED),
    "wrong": ((("authorization", "Bearer bad"),), Reason.UNAUTHENTICATED),
    "empty": ((("authorization", "Bearer "),), Reason.UNAUTHENTICATED),
    "basic": ((("authorization", "Basic good"),), Reason.UNAUTHENTICATED),
    "bare": ((("authorization", "good"),), Reason.UNAUTHENTICATED),
    "two": ((("authorization", "Bearer good"), ("authorization", "Bearer good")), Reason.UNAUTHENTICATED),
    "hash": ((("authorization", f"Bearer {sha256('good')}"),), Reason.UNAUTHENTICATED),
    "expired": ((("authorization", "Bearer old"),), Reason.UNAUTHENTICATED),
    "too weak": ((("authorization", "Bearer good"),), Reason.PERMISSION_DENIED),
}


@pytest.mark.parametrize("credentials", WRONG)
def test_no_method_lets_in_who_may_not(echo, tokens, tmp_path, monkeypatch, credentials):
    metadata, reason = WRONG[credentials]
    if credentials == "too weak":
        monkeypatch.setattr(auth, "METHOD_ROLES", {m: r and Role.train for m, r in METHOD_ROLES.items()})

    async def check():
        runs = ScriptedRuns(tmp_path)
        async with serving(echo, tokens=tokens, workspace=tmp_path / "runs", runs=runs) as served:
            for method in GUARDED:
                code, error = await error_from(await called(served.channel, method, *metadata, say=False))
                assert (code.name, error.reason) == (str(reason), reason), method
                assert "good" not in str(error)
            assert served.host.asked == []
            assert runs.asked == []

    asyncio.run(check())


@pytest.mark.parametrize("token", ["good", "trainer", "chief"])
def test_every_method_lets_in_who_may_and_only_them(echo, tokens, tmp_path, token):
    may = Role.score if token == "good" else Role.train

    async def check():
        runs = ScriptedRuns(tmp_path)
        runs.past.say("it ended", over=True)
        (tmp_path / "log.txt").write_text("lines")
        async with serving(echo, tokens=tokens, workspace=tmp_path / "runs", runs=runs) as served:
            for method in GUARDED:
                call = await called(served.channel, method, ("authorization", f"Bearer {token}"))
                if (METHOD_ROLES[method] or may) > may:
                    _, error = await error_from(call)
                    assert error.reason is Reason.PERMISSION_DENIED
                elif method.endswith("StreamSignals"):
                    _, error = await error_from(call)
                    assert error.reason is Reason.DATASET_UNKNOWN
                elif not hasattr(call, "read"):
                    await call
                else:
                    assert await call.read() is not grpc.aio.EOF
                    call.cancel()
            called_runs = {what[0] for what in runs.asked}
            assert ("create" in called_runs) == (token != "good")

    asyncio.run(check())


def test_health_is_open_to_all(echo, tokens):
    async def check():
        async with serving(echo, tokens=tokens) as served:
            await (await called(served.channel, "/grpc.health.v1.Health/Check"))
            watch = await called(served.channel, "/grpc.health.v1.Health/Watch")
            assert await watch.read() is not grpc.aio.EOF
            listed = await called(served.channel, "/grpc.health.v1.Health/List")
            assert await listed.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED)  # by grpcio's version

    asyncio.run(check())


def test_a_method_without_a_rule_is_denied(echo, tokens, monkeypatch):
    rules = {name: role for name, role in METHOD_ROLES.items() if not name.endswith("/GetTeacher")}
    monkeypatch.setattr(auth, "METHOD_ROLES", rules)

    async def check():
        async with serving(echo, tokens=tokens) as served:
            method = "/limbeck.v1.TeacherService/GetTeacher"
            call = await called(served.channel, method, ("authorization", "Bearer chief"))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, Reason.PERMISSION_DENIED)
            unknown = served.channel.unary_unary("/limbeck.v1.TeacherService/Nothing")(b"")
            assert await unknown.code() == grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(check())


def test_clients_are_known_by_the_names_of_their_tokens(echo, tokens):
    async def check():
        async with serving(echo, tokens=tokens) as served:
            call = served.stub.Score(metadata=(("authorization", "Bearer good"),))
            await call.write(FIRST["Score"])
            await call.read()
            await call.write(
                pb.ScoreRequest(items=pb.ScoreItems(items=[pb.ScoreItem(item_id=1, ids=b"\5\0\0\0", n=1)]))
            )
            await call.done_writing()
            async with asyncio.timeout(10):
                while not served.host.calls:
                    await asyncio.sleep(0.01)
            assert served.host.calls[0][0] == "ann"

    asyncio.run(check())


def renewed(file: Path, text: str) -> None:
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def test_the_file_is_read_again_when_it_changes_and_kept_when_it_breaks(tokens):
    known = Tokens(tokens)
    presented = hashlib.sha256(b"new").digest()
    with pytest.raises(LimbeckError):
        known.authorise(presented, Role.score)
    renewed(tokens, "tokens:\n" + entry("neo", "new"))
    assert known.authorise(presented, Role.score).name == "neo"
    with pytest.raises(LimbeckError):
        known.authorise(hashlib.sha256(b"good").digest(), Role.score)
    renewed(tokens, "tokens: [")
    assert known.authorise(presented, Role.score).name == "neo"
    tokens.unlink()
    assert known.authorise(presented, Role.score).name == "neo"


@pytest.mark.parametrize("kind", ["Score", "StreamSignals"])
def test_a_token_that_is_withdrawn_ends_the_open_call(echo, tokens, tmp_path, kind):
    from .test_replay import capture

    made = capture(tmp_path / "run")
    made.label(0)

    async def check():
        timing = Timing(alive=0.05, poll=0.02)
        async with serving(echo, tokens=tokens, timing=timing, signals={"d": made.folder}) as served:
            metadata = (("authorization", "Bearer good"),)
            if kind == "Score":
                call = served.stub.Score(metadata=metadata)
                await call.write(FIRST[kind])
                await call.write(pb.ScoreRequest(items=pb.ScoreItems(items=[item(1)])))
                await call.write(pb.ScoreRequest(grant=pb.Grant(bytes=1 << 20)))
            else:
                call = served.stub.StreamSignals(FIRST[kind], metadata=metadata)
            assert (await call.read()).HasField("started")
            renewed(tokens, "tokens:\n" + entry("neo", "new"))
            if kind == "Score":
                await soon(lambda: served.host.asked)
            ended = asyncio.ensure_future(error_from(call))
            while not ended.done():  # however busy it is
                if kind == "Score":
                    served.host.sinks[1].answer(1, pb.ScoreResponse(alive=pb.Alive()).SerializeToString(), 0, False)
                await asyncio.sleep(0.001)
            code, error = await ended
            assert (code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED)

    asyncio.run(check())


def test_every_problem_of_a_file_is_told_at_its_place(tmp_path):
    file = tmp_path / "tokens.yaml"
    file.write_text(
        "tokens:\n"
        "  - {name: a b, token_sha256: 12, role: boss, expires: soon}\n"
        f"  - {{name: c, token_sha256: {'z' * 64}, role: score}}\n"
        "  - {name: d, token: secret, role: score}\n"
    )
    with pytest.raises(LimbeckError) as caught:
        read_tokens(file)
    assert caught.value.reason is Reason.SERVER_INVALID
    found = {(problem.line, problem.field) for problem in caught.value.problems}
    assert found >= {
        (2, "tokens[0].name"),
        (2, "tokens[0].token_sha256"),
        (2, "tokens[0].role"),
        (2, "tokens[0].expires"),
        (3, "tokens[1].token_sha256"),
        (4, "tokens[2].token"),
    }
    assert "secret" not in str(caught.value)


def test_two_entries_may_not_share_a_name_or_a_token(tmp_path):
    file = tmp_path / "tokens.yaml"
    file.write_text("tokens:\n" + entry("a", "one") + entry("a", "two") + entry("b", "one"))
    with pytest.raises(LimbeckError) as caught:
        read_tokens(file)
    assert [(p.line, p.field) for p in caught.value.problems] == [(3, "tokens[1].name"), (4, "tokens[2].token_sha256")]


@pytest.mark.parametrize("text", ["", "tokens: []\n", "tokens: 3\n", "- a\n", "other: 1\n", "tokens: [\n"])
def test_a_file_without_tokens_is_refused(tmp_path, text):
    file = tmp_path / "tokens.yaml"
    file.write_text(text)
    with pytest.raises(LimbeckError) as caught:
        read_tokens(file)
    assert caught.value.reason is Reason.SERVER_INVALID
    assert caught.value.problems
    assert "student" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's certificate for localhost, a client's by the CA, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(line: str) -> None:
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)

    new = "-newkey rsa:2048 -nodes -keyout"
    names = "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    for name, subject in (("ca", "our-CA"), ("server", "localhost"), ("stranger", "mallory")):
        openssl(f"req -x509 {new} {name}.key -out {name}.pem -days 2 -subj /CN={subject} {names}")
    openssl(f"req {new} client.key -out client.csr -subj /CN=trainer-7")
    openssl("x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out client.pem")
    return folder


def secure(folder: Path, address: str, who: str | None = None) -> grpc.aio.Channel:
    pair = ((folder / f"{who}.key").read_bytes(), (folder / f"{who}.pem").read_bytes()) if who else (None, None)
    credentials = grpc.ssl_channel_credentials((folder / "server.pem").read_bytes(), *pair)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.enable_http_proxy", 0)])


def test_calls_are_encrypted_where_there_is_a_certificate(echo, certificates, tokens):
    tls = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key", "tokens": tokens}

    async def check():
        async with serving(echo, **tls) as served:
            async with secure(certificates, served.address) as channel:
                method = "/limbeck.v1.TeacherService/ListTeachers"
                await (await called(channel, method, ("authorization", "Bearer good")))
                _, error = await error_from(await called(channel, method))
                assert error.reason is Reason.UNAUTHENTICATED
            plain = await called(served.channel, "/grpc.health.v1.Health/Check")
            assert await plain.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(check())


def test_only_clients_with_a_certificate_of_the_ca_are_let_in_and_known_by_it(echo, certificates):
    tls = {f"tls_{kind}": certificates / f"server.{end}" for kind, end in (("cert", "pem"), ("key", "key"))}

    async def check():
        async with serving(echo, **tls, client_ca=certificates / "ca.pem") as served:
            for who in (None, "stranger"):
                async with secure(certificates, served.address, who) as channel:
                    call = await called(channel, "/grpc.health.v1.Health/Check")
                    assert await call.code() == grpc.StatusCode.UNAVAILABLE
            async with secure(certificates, served.address, "client") as channel:
                call = channel.stream_stream("/limbeck.v1.TeacherService/Score")()
                for message in (FIRST["Score"], pb.ScoreRequest(items=pb.ScoreItems(items=[item(1)]))):
                    await call.write(message.SerializeToString())
                await call.done_writing()
                async with asyncio.timeout(10):
                    while not served.host.calls:
                        await asyncio.sleep(0.01)
                assert served.host.calls[0][0] == "trainer-7"

    asyncio.run(check())
