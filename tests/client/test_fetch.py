"""Files of a run: whole and checked or not there, resumed where they stopped, never outside of the folder."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.client import Fetching, connect
from limbeck.errors import LimbeckError, Reason
from limbeck.v1 import training_service_pb2 as pb

from .proxy import between
from .scripted import client_of
from .scripted_training import RUN, Runs, hosting

DRAW = random.Random(3)
WEIGHTS = DRAW.randbytes(50_500)
FILES = {
    "events.jsonl": b'{"sequence": "1"}\n',
    "recipe.yaml": b"output: mine\n",
    "report/report.json": b"{}",
    "student/config.json": b'{"a": 1}',
    "student/empty": b"",
    "student/model.safetensors": WEIGHTS,
}


def served(*most: int, files: dict[str, bytes] | None = None, growing: tuple[str, ...] = ()) -> Runs:
    runs = Runs()
    runs.keep(FILES if files is None else files, growing)
    runs.download = runs.sending(*most)
    return runs


def tree(folder: Path) -> dict[str, bytes]:
    """All files below, hidden ones too."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def part(prefix: str) -> dict[str, bytes]:
    return {path: content for path, content in FILES.items() if path.startswith(prefix)}


def partial_of(folder: Path, name: str = "model.safetensors", content: bytes = WEIGHTS) -> Path:
    return folder / "student" / f".{name}.{hashlib.sha256(content).hexdigest()[:16]}.partial"


def refused(runs: Runs, folder: Path, path: str = "student", **times: float) -> LimbeckError:
    with hosting(runs) as address, client_of(address, **times) as client, pytest.raises(LimbeckError) as caught:
        client.fetch(RUN, folder, path)
    return caught.value


def test_a_student_is_fetched_whole_and_progress_is_told(tmp_path):
    told: list[Fetching] = []
    with hosting(served()) as address, connect(address) as client:
        found = client.fetch(RUN, tmp_path, told=told.append)
    assert found == tmp_path / "student"
    assert tree(tmp_path) == part("student/")
    total = sum(map(len, part("student/").values()))
    assert {one.total for one in told} == {total}
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert (told[0].done, told[-1].done) == (0, total)
    assert len(told) > 50


@pytest.mark.parametrize("names", ["n" * 255, "ü" * 127, "n" * 201, "n" * 200])
def test_names_as_long_as_a_disk_takes_them(names, tmp_path):
    files = {f"student/{names}": b"one", f"student/{names[:-1]}m": b"two"}
    runs = served(files=files)
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path)
    assert tree(tmp_path) == files


@pytest.mark.parametrize(
    ("path", "prefix"), [(".", ""), ("", ""), ("report/report.json", "report/"), ("student/", "student/")]
)
def test_a_file_a_folder_or_all(path, prefix, tmp_path):
    with hosting(served()) as address, connect(address) as client:
        assert client.fetch(RUN, tmp_path / "new" / "folder", path) == tmp_path / "new" / "folder" / path.strip("/.")
    assert tree(tmp_path / "new" / "folder") == part(prefix)


@pytest.mark.parametrize("path", ["stud", "student/model", "checkpoints", "../student", "/etc/passwd"])
def test_what_is_not_there_is_told_with_what_is(path, tmp_path):
    error = refused(served(), tmp_path, path)
    assert error.reason is Reason.ARTIFACT_UNKNOWN
    assert "there are events.jsonl, recipe.yaml, report, student" in str(error)
    assert not tree(tmp_path)


def test_a_lost_connection_goes_on_where_it_was(tmp_path):
    runs = served(7_500, 0, 13_000)
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path, "student/model.safetensors")
    assert tree(tmp_path) == part("student/model")
    asked = runs.asked("DownloadArtifact")
    assert [one.offset for one in asked] == [0, 7_500, 7_500, 20_500]
    assert [bool(one.sha256) for one in asked] == [False, True, True, True]
    assert asked[1].sha256 == hashlib.sha256(WEIGHTS).digest()


def test_over_a_network_that_drops_every_connection(tmp_path):
    files = {"student/a": DRAW.randbytes(200_000), "student/b/c": DRAW.randbytes(150_000)}
    runs = served(files=files)
    with (
        hosting(runs) as address,
        between(address, most=60_000, seed=1) as (proxy, reached),
        client_of(reached, retry_for=60) as client,
    ):
        client.fetch(RUN, tmp_path)
    assert proxy.dropped >= 5
    assert tree(tmp_path) == files


def test_another_process_goes_on_where_one_was_killed_and_fetches_nothing_twice(tmp_path):
    runs = served(30_000, *[0] * 1000)  # the rest never comes
    script = "import sys; from limbeck.client import connect\nconnect(sys.argv[1]).fetch(sys.argv[2], sys.argv[3])"
    with hosting(runs) as address:
        runs.download = lambda request, context: stuck(request, context)
        send = runs.sending()

        async def stuck(request, context):
            sent = 0
            async for response in send(request, context):
                yield response
                sent += len(response.data)
                if request.path.endswith("safetensors") and sent >= 30_000:
                    await grpc_forever()

        command = [sys.executable, "-c", script, address, RUN, str(tmp_path)]
        process = subprocess.Popen(command)
        try:
            wait_for(lambda: partial_of(tmp_path).exists() and partial_of(tmp_path).stat().st_size >= 16_000)
        finally:
            process.kill()
            process.wait()
        assert set(tree(tmp_path)) == {"student/config.json", "student/empty", str(partial_of(Path()))}
        kept = partial_of(tmp_path).stat().st_size
        runs.requests.clear()
        runs.download = runs.sending()
        with connect(address) as client:
            client.fetch(RUN, tmp_path)
    (request,) = runs.asked("DownloadArtifact")
    assert (request.path, request.offset) == ("student/model.safetensors", kept)
    assert tree(tmp_path) == part("student/")


async def grpc_forever() -> None:
    import asyncio

    await asyncio.Event().wait()


def wait_for(what) -> None:
    import time

    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_is_there_is_not_fetched_again_and_one_that_changed_is(tmp_path):
    runs = served()
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path)
        (tmp_path / "student" / "config.json").write_bytes(b'{"a": 2}')
        runs.requests.clear()
        client.fetch(RUN, tmp_path)
    assert [one.path for one in runs.asked("DownloadArtifact")] == ["student/config.json"]
    assert tree(tmp_path) == part("student/")


def test_what_is_kept_of_a_file_that_is_another_now_goes_away(tmp_path):
    (tmp_path / "student").mkdir()
    old = partial_of(tmp_path, content=b"what it was")
    old.write_bytes(b"what it")
    with hosting(served()) as address, connect(address) as client:
        client.fetch(RUN, tmp_path)
    assert tree(tmp_path) == part("student/")


@pytest.mark.parametrize("kept", [b"x" * 20_000, WEIGHTS[:-1] + b"!", WEIGHTS + b"more"])
def test_what_is_kept_and_wrong_is_fetched_from_the_start(kept, tmp_path):
    (tmp_path / "student").mkdir()
    partial_of(tmp_path).write_bytes(kept)
    runs = served()
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path, "student/model.safetensors")
    assert tree(tmp_path) == part("student/model")
    assert [one.offset for one in runs.asked("DownloadArtifact")][-1] == 0


def damaging(runs: Runs, times: int):
    """Flip a byte of the first `times` downloads."""
    send, left = runs.sending(), [times]

    async def reply(request, context):
        async for response in send(request, context):
            if response.data and left[0]:
                left[0] -= 1
                response.data = bytes([response.data[0] ^ 1]) + response.data[1:]
            yield response

    return reply


def test_a_damaged_file_is_fetched_once_more(tmp_path):
    runs = served()
    runs.download = damaging(runs, 1)
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path, "student/model.safetensors")
    assert tree(tmp_path) == part("student/model")
    assert [one.offset for one in runs.asked("DownloadArtifact")] == [0, 0]


def test_a_file_that_is_damaged_twice_is_refused_and_not_there(tmp_path):
    runs = served()
    runs.download = damaging(runs, 1000)
    error = refused(runs, tmp_path, "student/model.safetensors")
    assert error.reason is Reason.STORE_DAMAGED
    assert "have the checksum" in str(error)
    assert len(runs.asked("DownloadArtifact")) == 2
    assert not (tmp_path / "student" / "model.safetensors").exists()


def test_a_server_that_finds_its_file_damaged_is_believed(tmp_path):
    async def reply(request, context):
        await runs.refuse(Reason.STORE_DAMAGED, context)
        yield

    runs = served()
    runs.download = reply
    assert refused(runs, tmp_path).reason is Reason.STORE_DAMAGED
    assert len(runs.asked("DownloadArtifact")) == 1


def test_a_file_that_changes_between_list_and_fetch_is_told(tmp_path):
    runs = served()
    runs.files["student/config.json"] = b'{"a": 7}'
    error = refused(runs, tmp_path)
    assert error.reason is Reason.STORE_DAMAGED
    assert "it is another file now" in str(error)
    assert "student/config.json" not in tree(tmp_path)


def test_a_file_that_grows_is_fetched_as_it_is_then(tmp_path):
    runs = served(files={"log.txt": b"1" * 10_000}, growing=("log.txt",))
    runs.files["log.txt"] += b"2" * 4_000
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path, "log.txt")
    assert tree(tmp_path) == {"log.txt": runs.files["log.txt"]}


def test_a_file_that_grows_while_connections_are_lost_begins_anew(tmp_path):
    runs = served(files={"log.txt": b"1" * 10_000}, growing=("log.txt",))
    send = runs.sending(5_000, 5_000, 5_000)

    async def reply(request, context):
        runs.files["log.txt"] += b"2" * 500
        async for response in send(request, context):
            yield response

    runs.download = reply
    with hosting(runs) as address, connect(address) as client:
        client.fetch(RUN, tmp_path, "log.txt")
    assert tree(tmp_path) == {"log.txt": runs.files["log.txt"]}


@pytest.mark.parametrize(
    "responses",
    [
        [pb.DownloadArtifactResponse(data=b"early")],
        [
            pb.DownloadArtifactResponse(
                started=pb.Artifact(path="student/empty", size=0, sha256=hashlib.sha256(b"").digest())
            ),
        ],
        [pb.DownloadArtifactResponse(started=pb.Artifact(path="student/config.json", size=8))],
        [
            pb.DownloadArtifactResponse(
                started=pb.Artifact(
                    path="student/config.json", size=8, sha256=hashlib.sha256(FILES["student/config.json"]).digest()
                )
            ),
            pb.DownloadArtifactResponse(data=b"far more than eight"),
        ],
    ],
    ids=["no start", "another file", "no checksum", "too much"],
)
def test_a_server_that_sends_what_cannot_be_is_refused(responses, tmp_path):
    async def reply(request, context):
        for response in responses:
            yield response

    runs = served()
    runs.download = reply
    assert refused(runs, tmp_path, "student/config.json").reason is Reason.STORE_DAMAGED
    assert "student/config.json" not in tree(tmp_path)


def test_a_silent_server_is_left_and_asked_again(tmp_path):
    runs = served()
    send, calls = runs.sending(), []

    async def reply(request, context):
        calls.append(request.offset)
        async for response in send(request, context):
            yield response
            if len(calls) == 1 and response.data:
                await grpc_forever()

    runs.download = reply
    with hosting(runs) as address, client_of(address, silence=0.3) as client:
        client.fetch(RUN, tmp_path, "student/model.safetensors")
    assert calls == [0, 1000]
    assert tree(tmp_path) == part("student/model")


# ----------------------------------------------------------------------------------------------------- hostile servers

HOSTILE = [
    "../outside",
    "student/../../outside",
    "/tmp/outside",
    "student//x",
    "./student/x",
    "student/./x",
    "student/..",
    "..",
    "",
    "student/",
    "student\\..\\x",
    "student/a\nb",
    "student/\x00",
    "student/" + "n" * 256,
    "student/" + "ü" * 128,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_lead_elsewhere_are_refused_before_anything_is_written(path, tmp_path):
    target = tmp_path / "target"
    runs = served(files={"student/good": b"good", path: b"evil"})
    error = refused(runs, target, ".")
    assert error.reason is Reason.INTERNAL
    assert repr(path)[:20] in str(error)
    assert not runs.asked("DownloadArtifact")
    assert not tree(tmp_path)


def test_one_name_for_two_files_or_a_file_and_a_folder_is_refused(tmp_path):
    for pair in ({"student/a": b"", "student/a/b": b""}, {"a": b"", "a/b/c": b""}):
        assert refused(served(files=pair), tmp_path, ".").reason is Reason.INTERNAL
    runs = served(files={"a": b"x"})
    runs.answers["ListArtifacts"].artifacts.append(runs.answers["ListArtifacts"].artifacts[0])
    assert refused(runs, tmp_path, ".").reason is Reason.INTERNAL
    assert not tree(tmp_path)


def test_a_link_in_the_folder_that_leads_out_is_refused(tmp_path):
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "student").symlink_to(outside)
    error = refused(served(), target)
    assert error.reason is Reason.FOLDER_NOT_OURS
    assert "is a link" in str(error)
    assert not tree(outside)


def test_links_in_the_place_of_files_are_replaced_and_not_followed(tmp_path):
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.write_bytes(b"mine")
    (target / "student").mkdir(parents=True)
    (target / "student" / "config.json").symlink_to(outside)
    with hosting(served()) as address, connect(address) as client:
        client.fetch(RUN, target)
    assert outside.read_bytes() == b"mine"
    assert tree(target) == part("student/")
    partial_of(target, "other", b"y").symlink_to(outside)
    error = refused(served(files={"student/other": b"y"}), target)
    assert error.reason is Reason.FOLDER_NOT_OURS
    assert outside.read_bytes() == b"mine"


def test_a_folder_that_is_itself_a_link_is_the_callers_choice(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with hosting(served()) as address, connect(address) as client:
        client.fetch(RUN, tmp_path / "link")
    assert tree(tmp_path / "real") == part("student/")


@pytest.mark.parametrize("make", ["student is a file", "a folder has a file's name", "the folder is a file"])
def test_a_folder_that_holds_something_else_is_told(make, tmp_path):
    target = tmp_path / "target"
    if make == "the folder is a file":
        target.write_bytes(b"mine")
    elif make == "student is a file":
        target.mkdir()
        (target / "student").write_bytes(b"mine")
    else:
        (target / "student" / "config.json").mkdir(parents=True)
    error = refused(served(), target)
    assert error.reason is Reason.FOLDER_NOT_OURS
    assert str(target) in str(error)


def test_two_at_once_do_not_write_one_file(tmp_path):
    import fcntl

    (tmp_path / "student").mkdir()
    with partial_of(tmp_path).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        error = refused(served(), tmp_path, "student/model.safetensors")
    assert error.reason is Reason.RUN_LOCKED


def test_a_disk_that_is_full_is_told(tmp_path):
    script = (
        "import resource, sys; from limbeck.client import connect; from limbeck.errors import LimbeckError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: connect(sys.argv[1]).fetch(sys.argv[2], sys.argv[3])\n"
        "except LimbeckError as error: print(error.reason, error)\n"
    )
    with hosting(served()) as address:
        command = [sys.executable, "-c", script, address, RUN, str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        )
    assert done.stdout.startswith("DISK_FULL"), done.stderr
    assert "50,500 bytes were to be written" in done.stdout
    assert not (tmp_path / "student" / "model.safetensors").exists()


@pytest.mark.parametrize("reason", [Reason.RUN_UNKNOWN, Reason.PERMISSION_DENIED, Reason.ARTIFACT_UNKNOWN])
def test_the_servers_errors_are_the_callers(reason, tmp_path):
    runs = served()
    runs.answers["ListArtifacts"] = reason
    assert refused(runs, tmp_path).reason is reason
