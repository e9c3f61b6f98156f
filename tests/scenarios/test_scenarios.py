"""The scenarios of clients/scenarios.json with limbeck.client: a test for each of its names."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from limbeck.client import Client, Expectation, ScoreItem, Want
from limbeck.client.errors import error_of_call
from limbeck.client.link import Times
from limbeck.client.records import STATES
from limbeck.errors import Reason
from limbeck.plugins import load_plugins
from limbeck.signals.messages import error_of
from limbeck.testing.teachers import ask, scores
from limbeck.v1 import teacher_service_pb2 as teacher_pb
from limbeck.v1 import training_service_pb2 as pb

from .conftest import CLIENTS, Done, Served, in_background, refused, states, until

pytestmark = pytest.mark.xdist_group("scenarios")  # one server for all of them


def test_names_equal_the_list() -> None:
    listed = [scenario["name"] for scenario in json.loads((CLIENTS / "scenarios.json").read_text())]
    here = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    here.remove("names_equal_the_list")
    assert len(set(listed)) == len(listed)
    assert set(here) == set(listed)


# ---------------------------------------------------------------------------------------------------------- plugins


def test_list_plugins(client: Client) -> None:
    found = client.plugins()
    kinds = {(plugin.kind, plugin.name) for plugin in found.plugins}
    assert {("loss", "forward_kl"), ("teacher", "transformers"), ("generator", "prompts")} <= kinds
    assert {kind for kind, _ in kinds} == {"teacher", "generator", "loss", "scheduler"}
    assert all(plugin.distribution and plugin.version and plugin.summary for plugin in found.plugins)
    assert found.recipe_schema["$defs"]


BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def form(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Field by name with its type, default, bounds and description: all that a form wants."""
    definitions = schema.get("$defs", {})

    def plain(part: Mapping[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            return {
                **plain(definitions[part["$ref"].rpartition("/")[2]]),
                **{k: v for k, v in part.items() if k[0] != "$"},
            }
        return dict(part)

    fields = {}
    for name, raw in schema["properties"].items():
        part = plain(raw)
        kinds = [plain(option) for option in part.get("anyOf", [part])]
        fields[name] = {
            "types": [kind.get("type", "object") for kind in kinds],
            "required": name in schema.get("required", ()),
            "default": part.get("default"),
            "bounds": {bound: kind[bound] for kind in [part, *kinds] for bound in BOUNDS if bound in kind},
            "choices": [choice for kind in kinds for choice in kind.get("enum", ())],
            "description": part.get("description", ""),
        }
    return fields


def test_draw_form(client: Client) -> None:
    (plugin,) = (plugin for plugin in client.plugins().plugins if plugin.name == "forward_kl")
    fields = form(plugin.config_schema)
    assert {"weight", "temperature", "top_k"} <= fields.keys()
    assert fields["plugin"]["required"]
    assert fields["weight"]["types"] == ["number", "object"]  # or a scheduler
    assert fields["tail"]["choices"] == ["bucket", "renormalise", "drop"]
    assert fields["weight"]["default"] == 1.0
    assert fields["weight"]["bounds"]["minimum"] == 0
    assert fields["temperature"]["bounds"]["exclusiveMinimum"] == 0
    assert fields["top_k"]["types"] == ["integer"]
    assert all(one["description"] for one in fields.values())


# ------------------------------------------------------------------------------------------------------------- runs


def test_validate_recipe(served: Served, client: Client) -> None:
    good = client.validate(served.recipe("tiny"))
    assert good.error is None
    assert good.resolved["training"]["max_steps"] == 200
    assert good.resolved["data"]["max_length"] == 256
    assert good.facts
    bad = client.validate(served.recipe("invalid"))
    assert bad.error is not None
    assert bad.error.reason is Reason.RECIPE_INVALID
    assert [problem.line for problem in bad.error.problems] == served.invalid_lines
    assert all(problem.column for problem in bad.error.problems)


ORDER = [state for state in STATES if state not in ("pausing", "paused", "cancelling", "cancelled", "failed")]


def test_create_run(client: Client, done: Done) -> None:
    run = client.run(done.run_id)
    seen = states(done.events)
    assert run.state == seen[-1] == "succeeded"
    assert seen == [state for state in ORDER if state != "generating"]
    assert [one.state for one in run.states] == seen
    assert run.attempt == 1
    assert run.last_sequence == len(done.events)
    assert run.metrics["losses.forward_kl"] >= 0


def test_create_is_idempotent(served: Served, client: Client) -> None:
    request_id, recipe = uuid.uuid4().hex, served.recipe("long")
    first = client.create_run(recipe, request_id)
    try:
        assert client.create_run(recipe, request_id).run_id == first.run_id
        with refused(Reason.RUN_EXISTS):
            client.create_run(recipe + "# another\n", request_id)
    finally:
        client.cancel(first.run_id)
    assert client.create_run(recipe, request_id).run_id == first.run_id
    until(client, first.run_id, "cancelled")


def test_watch_across_drops(done: Done) -> None:
    assert done.drops == 3
    assert [event.sequence for event in done.events] == list(range(1, len(done.events) + 1))
    assert {event.run_id for event in done.events} == {done.run_id}
    assert states(done.events)[-1] == "succeeded"


def test_watch_from_a_cursor(client: Client, done: Done) -> None:
    assert list(client.watch(done.run_id, 0)) == done.events
    assert list(client.watch(done.run_id)) == done.events
    assert list(client.watch(done.run_id, 5)) == done.events[5:]


def test_list_runs(served: Served, client: Client, done: Done) -> None:
    found = list(client.runs())
    assert done.run_id in [run.run_id for run in found]
    assert [run.created for run in found] == sorted((run.created for run in found), reverse=True)
    with served.calls() as calls:
        token, paged = "", []
        while not paged or token:
            request = pb.ListRunsRequest(page_size=1, page_token=token)
            page = calls.training.ListRuns(request, metadata=calls.metadata)
            assert len(page.runs) <= 1
            paged += [run.run_id for run in page.runs]
            token = page.next_page_token
    assert paged == [run.run_id for run in found]
    assert {run.state for run in client.runs(["succeeded"])} == {"succeeded"}
    run = client.run(done.run_id)
    assert run.recipe == done.recipe
    times = [one.time for one in run.states]
    assert times == sorted(times)


def test_steer_a_knob(client: Client, trains: Callable[[], str]) -> None:
    run_id, name = trains(), "losses.forward_kl.weight"
    before = client.run(run_id).last_sequence
    value = 0.25 if client.run(run_id).metrics.get(f"knobs.{name}") != 0.25 else 0.5
    client.set_knobs(run_id, {name: value})
    changed = None
    with closing(client.watch(run_id, before)) as events:
        for event in events:
            if event.WhichOneof("kind") == "knob_changed":
                assert (event.knob_changed.knob, event.knob_changed.after) == (name, value)
                changed = event.step
            elif changed is not None and event.WhichOneof("kind") == "metrics" and event.step > changed:
                assert event.metrics.values[f"knobs.{name}"] == value
                break
    knobs = {knob.name: knob for knob in client.run(run_id).knobs}
    assert knobs[name].value == value
    assert knobs[name].at_least == 0


def test_save_checkpoint(client: Client, trains: Callable[[], str]) -> None:
    run_id = trains()
    saved = client.save_checkpoint(run_id)
    assert saved.step > 0
    assert saved.bytes > 0
    assert (saved.path, saved.step, saved.bytes) in [(c.path, c.step, c.bytes) for c in client.checkpoints(run_id)]


def test_pause_and_resume(client: Client, trains: Callable[[], str]) -> None:
    run_id = trains()
    before = client.run(run_id).last_sequence
    seen: list[Any] = []

    def watch() -> None:
        with closing(client.watch(run_id, before)) as events:
            for event in events:
                seen.append(event)
                if event.state_changed.state and states(seen).count("training") == 1:
                    break

    watcher = in_background(watch)
    client.pause(run_id)
    until(client, run_id, "paused", before)
    stopped = max(event.step for event in until(client, run_id, "paused", 0))
    assert client.run(run_id).state == "paused"
    client.pause(run_id)  # again: nothing
    client.resume(run_id)
    watcher.join(120)
    assert not watcher.is_alive()
    told = states(seen)
    assert told[:3] == ["pausing", "paused", "queued"]
    assert told[-1] == "training"
    assert [event.sequence for event in seen] == list(range(before + 1, before + 1 + len(seen)))
    with closing(client.watch(run_id, seen[-1].sequence)) as events:
        assert next(event.step for event in events if event.WhichOneof("kind") == "metrics") == stopped + 1


def test_cancel_run(client: Client, trains: Callable[[], str]) -> None:
    run_id = trains()
    before = client.run(run_id).last_sequence
    seen: list[Any] = []
    watcher = in_background(lambda: seen.extend(client.watch(run_id, before)))
    client.cancel(run_id)
    watcher.join(120)
    assert not watcher.is_alive()
    assert states(seen) == ["cancelling", "cancelled"]
    assert client.cancel(run_id).state == "cancelled"
    assert client.run(run_id).last_sequence == seen[-1].sequence


# ------------------------------------------------------------------------------------------------------------ files


def test_fetch_student(served: Served, done: Done, tmp_path: Path) -> None:
    client = served.client(address=served.proxy)
    dropped: list[str] = []

    def told(fetching: Any) -> None:
        if fetching.path not in dropped and len(dropped) < 3:
            dropped.append(fetching.path)
            served.drop()

    student = client.fetch(done.run_id, tmp_path, told=told)
    assert dropped
    listed = {one.path: one for one in client.artifacts(done.run_id)}
    there = Path(served.workspace) / client.run(done.run_id).output
    files = [path for path in student.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)) for path in files} == {one for one in listed if one.startswith("student/")}
    for path in files:
        name = str(path.relative_to(tmp_path))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name].sha256
        assert path.read_bytes() == (there / name).read_bytes()
    assert not any(name.startswith("checkpoints/") for name in listed)


def test_fetch_refuses_another_file(served: Served, done: Done) -> None:
    with served.calls() as calls, refused(Reason.STORE_DAMAGED):
        path = "student/config.json"
        request = pb.DownloadArtifactRequest(run_id=done.run_id, path=path, offset=10, sha256=bytes(32))
        told(lambda: list(calls.training.DownloadArtifact(request, metadata=calls.metadata)))


def told(call: Callable[[], object]) -> None:
    """Make a call of the stub; its error becomes that of a client."""
    try:
        call()
    except grpc.RpcError as error:
        raise error_of_call(error, "there") from None


# ------------------------------------------------------------------------------------------------- signals and scores


def test_signal_vectors(served: Served) -> None:
    """A decoder of its own, as another language would write it from docs/signals.md."""
    files = sorted(Path(served.vectors).glob("*.json"))
    assert files
    for file in files:
        said = json.loads(file.read_text())
        data, at = file.with_suffix(".bin").read_bytes(), 0
        parts = {}
        for name, size in said["bytes"].items():
            parts[name], at = data[at : at + size], at + size
        assert at == len(data)
        n, k, size = said["n"], said["header"]["k"], said["header"]["vocab_size"]
        if k:
            high = max(0, (size - 1).bit_length() - 16)
            width = (k * high + 7) // 8
            rows = [int.from_bytes(parts["ids_high"][i * width : (i + 1) * width], "little") for i in range(n)]
            low, codes = (struct.unpack(f"<{n * k}H", parts[name]) for name in ("ids_low", "logprobs"))
            for row in range(n):
                upper = [(rows[row] >> (i * high)) & ((1 << high) - 1) for i in range(k)]
                ids = [low[row * k + i] | upper[i] << 16 for i in range(k)]
                assert ids == said["ids"][row]
                assert list(codes[row * k : (row + 1) * k]) == said["codes"][row]
            tails = np.frombuffer(parts["tails"], "<f4").reshape(n, -1).astype(float)
            u = np.array(codes, float).reshape(n, k)
            raw = np.where(u < 32768, -u / 2048, -16 - (u - 32768) / 512)
            for column, temperature in enumerate(said["header"]["temperatures"]):
                tail = tails[:, column : column + 1]
                scaled = raw / temperature
                kept = np.log(-np.expm1(np.minimum(tail, 0.0))) if np.isfinite(tail).all() else np.zeros((n, 1))
                found = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True) + kept
                expected = np.array([[float(value) for value in row] for row in said["normalised"][f"{temperature:g}"]])
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=file.stem)
        if "target" in parts:
            np.testing.assert_array_equal(np.frombuffer(parts["target"], "<f4"), np.float32(said["target"]))


def test_stream_signals(served: Served) -> None:
    expected = [json.loads(line) for line in Path(served.signals).read_text().splitlines()]
    found = []
    for stored in served.client("score", served.proxy).signals(served.dataset, tokens=True):
        found.append(stored)
        if stored.sequence in (5, 20):
            served.drop()
    assert [stored.sequence for stored in found] == [one["sequence"] for one in expected]
    for stored, one in zip(found, expected, strict=True):
        assert (stored.signal.first_row, stored.signal.n) == (one["first_row"], one["n"])
        assert stored.tokens.ids.tolist() == one["tokens"]
        for temperature, at in one["at"].items():
            ids, logprobs, tails = stored.signal.top_k.at(float(temperature))
            assert ids.tolist() == one["ids"]
            assert logprobs.tolist() == at["logprobs"]
            assert tails.tolist() == at["tails"]


def items(count: int, tokens: int = 200) -> list[ScoreItem]:
    rng = np.random.default_rng(0)
    return [ScoreItem(i, rng.integers(5, 261, tokens).astype(np.int32), 0, tokens - 1, seed=i) for i in range(count)]


WANT = Want(top_k=64, target=True)


def test_score_with_credits(served: Served) -> None:
    asked, credit = items(100), 1 << 20
    found = list(served.client("score").score(served.teacher, asked, WANT, credit=credit))
    assert sorted(name for name, _ in found) == list(range(100))

    def requests() -> Any:
        want = teacher_pb.Want(top_k=64, temperatures=[1.0], target=True)
        yield teacher_pb.ScoreRequest(start=teacher_pb.ScoreStart(teacher=served.teacher, want=want, credit=credit))
        sent = [teacher_pb.ScoreItem(item_id=i.item_id, ids=i.ids.tobytes(), first_row=0, n=i.n) for i in asked]
        yield teacher_pb.ScoreRequest(items=teacher_pb.ScoreItems(items=sent))
        before = -1
        while not taken or taken != before:  # until nothing more comes: the credit is used up
            before = taken
            time.sleep(1.0)
        full.set()
        yield teacher_pb.ScoreRequest(grant=teacher_pb.Grant(bytes=1 << 30))

    full, taken, early, complete = threading.Event(), 0, set(), set()
    with served.calls("score") as calls:
        for answer in calls.teachers.Score(requests(), metadata=calls.metadata):
            if answer.WhichOneof("kind") == "fragment":
                taken += answer.fragment.cost
                assert full.is_set() or taken <= credit + (1 << 20)
                complete |= {answer.fragment.item_id} if answer.fragment.last else set()
                early |= complete if not full.is_set() else set()
    assert 0 < len(early) < 100
    assert complete == set(range(100))


def test_error_item(served: Served) -> None:
    asked = items(3)
    asked[1] = ScoreItem(1, np.full(600, 70, np.int32), 0, 5)
    with refused(Reason.REQUEST_INVALID) as kept:
        list(served.client("score").score(served.teacher, asked, WANT))
    assert [problem.field for problem in kept[0].problems] == ["item 1"]
    assert "512" in str(kept[0])
    start = teacher_pb.ScoreStart(teacher=served.teacher, want=teacher_pb.Want(target=True), credit=1 << 20)
    sent = [teacher_pb.ScoreItem(item_id=i.item_id, ids=i.ids.tobytes(), n=i.n) for i in asked]
    requests = [
        teacher_pb.ScoreRequest(start=start),
        teacher_pb.ScoreRequest(items=teacher_pb.ScoreItems(items=sent)),
    ]
    answered, failed = set(), {}
    with served.calls("score") as calls:
        for answer in calls.teachers.Score(iter(requests), metadata=calls.metadata):
            if answer.WhichOneof("kind") == "fragment" and answer.fragment.last:
                answered.add(answer.fragment.item_id)
            elif answer.WhichOneof("kind") == "failed":
                failed[answer.failed.item_id] = answer.failed.error.reason
    assert answered == {0, 2}
    assert failed == {1: Reason.REQUEST_INVALID}


# ----------------------------------------------------------------------------------------------------------- errors


def test_error_recipe_invalid(served: Served, client: Client) -> None:
    with refused(Reason.RECIPE_INVALID) as kept:
        client.create_run(served.recipe("invalid"))
    fields = [problem.field for problem in kept[0].problems]
    assert fields == ["student.layers", "losses[0].plugin", "training.learning_rate"]
    assert [(one.file, one.line) for one in kept[0].problems] == [("recipe", line) for line in served.invalid_lines]
    assert all(problem.column for problem in kept[0].problems)


def test_error_rows_invalid(served: Served, client: Client) -> None:
    run_id = client.create_run(served.recipe("broken")).run_id
    events = list(client.watch(run_id))
    assert states(events) == ["created", "validating", "failed"]
    run = client.run(run_id)
    said = error_of(events[-1].state_changed.error)
    assert run.error is not None
    assert run.error.reason is said.reason is Reason.DATA_INVALID
    assert run.error.problems == said.problems
    assert [(one.file, one.line) for one in said.problems] == [("broken.jsonl", 3)]
    assert str(Path(served.workspace).parent) not in f"{said} {run!r} {events}"


def test_error_path_outside(served: Served, client: Client) -> None:
    texts = []
    for name in ("outside", "absent"):
        with refused(Reason.RECIPE_INVALID) as kept:
            client.create_run(served.recipe(name))
        texts.append(str(kept[0]).replace(name, "…"))
        assert str(Path(served.workspace).parent) not in texts[-1]
    assert texts[0] == texts[1]


def calls_of(client: Client, run_id: str, folder: Path) -> list[Callable[[], object]]:
    """All calls that take a run's id."""
    return [
        lambda: client.run(run_id),
        lambda: client.pause(run_id),
        lambda: client.resume(run_id),
        lambda: client.cancel(run_id),
        lambda: client.set_knobs(run_id, {"losses.forward_kl.weight": 1.0}),
        lambda: client.save_checkpoint(run_id),
        lambda: client.checkpoints(run_id),
        lambda: list(client.watch(run_id)),
        lambda: client.artifacts(run_id),
        lambda: client.fetch(run_id, folder),
    ]


def test_error_run_unknown(client: Client, tmp_path: Path) -> None:
    for call in calls_of(client, uuid.uuid4().hex, tmp_path):
        with refused(Reason.RUN_UNKNOWN):
            call()


def test_error_run_state(client: Client, done: Done) -> None:
    for call in (client.resume, client.pause, client.save_checkpoint, client.cancel):
        with refused(Reason.RUN_STATE):
            call(done.run_id)
    assert client.run(done.run_id).last_sequence == len(done.events)


def test_error_run_exists(served: Served, client: Client, done: Done) -> None:
    with refused(Reason.RUN_EXISTS):
        client.create_run(done.recipe)


def test_error_knob_invalid(client: Client, trains: Callable[[], str]) -> None:
    run_id = trains()
    before = {knob.name: knob.value for knob in client.run(run_id).knobs}
    with refused(Reason.KNOB_INVALID) as kept:
        client.set_knobs(
            run_id, {"losses.nothing.weight": 1.0, "losses.cross_entropy.weight": 0.3, "losses.forward_kl.weight": -1.0}
        )
    assert "losses.nothing.weight" in str(kept[0])
    assert "losses.forward_kl.weight" in str(kept[0])
    assert {knob.name: knob.value for knob in client.run(run_id).knobs} == before


def test_error_cursor_invalid(served: Served, client: Client, done: Done) -> None:
    with refused(Reason.CURSOR_INVALID):
        list(client.watch(done.run_id, len(done.events) + 1))
    with refused(Reason.CURSOR_INVALID):
        list(client.signals(served.dataset, after=1_000_000))


def test_error_artifact_unknown(served: Served, client: Client, done: Done, tmp_path: Path) -> None:
    (saved, *_) = client.checkpoints(done.run_id)
    texts = set()
    for path in ("student/nothing", f"{saved.path}/manifest.json", "../../rows.jsonl", "/etc/hostname", "student/.."):
        request = pb.DownloadArtifactRequest(run_id=done.run_id, path=path)
        with served.calls() as calls, refused(Reason.ARTIFACT_UNKNOWN) as kept:
            told(lambda: list(calls.training.DownloadArtifact(request, metadata=calls.metadata)))  # noqa: B023
        texts.add(re.sub(r"'.*?'", "…", str(kept[0])))
        assert served.workspace not in str(kept[0])
    assert len(texts) == 1
    with refused(Reason.ARTIFACT_UNKNOWN):
        client.fetch(done.run_id, tmp_path, "student/nothing")
    assert not list(tmp_path.iterdir())


def test_error_quota_exceeded(served: Served) -> None:
    client = served.client("greedy")
    made: list[str] = []
    try:
        with refused(Reason.QUOTA_EXCEEDED):
            for _ in range(40):
                made.append(client.create_run(served.recipe("long")).run_id)
    finally:
        for run_id in made:
            client.cancel(run_id)
    assert made
    for run_id in made:
        until(client, run_id, "cancelled")
    again = client.create_run(served.recipe("long"))
    client.cancel(again.run_id)
    until(client, again.run_id, "cancelled")


def test_error_request_invalid(served: Served, client: Client) -> None:
    for request_id in ("", "x" * 129):
        with refused(Reason.REQUEST_INVALID):
            client.create_run(served.recipe("tiny"), request_id)
    with served.calls() as calls, refused(Reason.REQUEST_INVALID):
        told(lambda: calls.training.ListRuns(pb.ListRunsRequest(page_token="none"), metadata=calls.metadata))


def test_error_teacher_unknown(client: Client) -> None:
    with refused(Reason.TEACHER_UNKNOWN):
        client.teacher("nobody")
    with refused(Reason.TEACHER_UNKNOWN):
        list(client.score("nobody", items(1), WANT))


def test_error_teacher_mismatch(served: Served, client: Client) -> None:
    for expect, reason in (
        (Expectation(tokenizer_digest="0" * 64), Reason.TOKENIZER_MISMATCH),
        (Expectation(weights_digest="0" * 64), Reason.TEACHER_MISMATCH),
    ):
        answers = []
        with refused(reason):
            answers += list(client.score(served.teacher, items(2), WANT, expect=expect))
        assert not answers


def test_error_capability_missing(served: Served, client: Client) -> None:
    with refused(Reason.CAPABILITY_MISSING):
        list(client.score(served.teacher, items(1), Want(layers=(-1,))))


def test_error_dataset_unknown(client: Client) -> None:
    with refused(Reason.DATASET_UNKNOWN):
        list(client.signals("nothing"))


def test_error_unauthenticated(served: Served) -> None:
    for token in (None, "unknown", "expired"):
        client = served.client(token)
        for call in (client.teachers, client.plugins, lambda: list(client.runs()), lambda: client.create_run("{}")):  # noqa: B023
            with refused(Reason.UNAUTHENTICATED) as kept:
                call()
            if token is not None:
                assert Path(served.tokens[token]).read_text() not in str(kept[0])


def test_error_permission_denied(served: Served, done: Done, tmp_path: Path) -> None:
    client = served.client("score")
    assert len(list(client.score(served.teacher, items(2), WANT))) == 2
    assert next(client.signals(served.dataset)).sequence == 1
    others = [
        client.plugins,
        lambda: list(client.runs()),
        lambda: client.validate("{}"),
        lambda: client.create_run("{}"),
    ]
    for call in [*calls_of(client, done.run_id, tmp_path), *others]:
        with refused(Reason.PERMISSION_DENIED):
            call()


def test_error_server_unavailable(served: Served) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = served.client(address=f"127.0.0.1:{nobody.getsockname()[1]}", timeout=1.0)
        with refused(Reason.SERVER_UNAVAILABLE):
            client.teachers()
        with refused(Reason.SERVER_UNAVAILABLE):
            list(client.watch(uuid.uuid4().hex))


# ------------------------------------------------------------------------------------------------------- connections


def test_tls_and_token(served: Served) -> None:
    client = served.client(address=served.tls_address, tls_ca=served.ca)
    assert client.teacher(served.teacher, wait=60).state == "ready"
    assert list(client.runs()) == []
    other = served.client(address=served.tls_address, tls_ca=served.other_ca, timeout=2.0)
    with refused(Reason.SERVER_UNAVAILABLE):
        other.teachers()


def test_token_files(served: Served) -> None:
    for name in ("newline", "crlf_bom"):
        assert served.client(name).plugins().plugins
    with refused(Reason.REQUEST_INVALID) as kept:
        served.client("two_lines")
    assert not any(line in str(kept[0]) for line in Path(served.tokens["two_lines"]).read_text().split())


def test_proxy_environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert served.client().teachers()
    assert served.client(address=served.tls_address, tls_ca=served.ca).teachers()


def test_silent_peer(served: Served, client: Client, trains: Callable[[], str]) -> None:
    run_id = trains()
    hears = served.client(address=served.silent)
    hears._client._link.times = Times(silence=3.0)  # 80 s are a promise, and too long for a test
    first = client.run(run_id).last_sequence
    seen = []
    times = []
    with closing(hears.watch(run_id, first)) as events:
        for event in events:
            seen.append(event.sequence)
            times.append(event.time.ToNanoseconds())
            if (times[-1] - times[0]) > 8e9:  # three connections at least, each of which passes 2 s on
                break
    assert seen == list(range(first + 1, first + 1 + len(seen)))


def test_wide_integers(served: Served, client: Client, done: Done) -> None:
    wide = {name: int(value) for name, value in json.loads(Path(served.integers).read_text()).items()}
    with refused(Reason.CURSOR_INVALID) as kept:
        list(client.watch(done.run_id, wide["sequence"]))
    assert str(wide["sequence"]) in re.sub(r"[,_]", "", str(kept[0]))
    for after in (float(wide["sequence"]), -1, 1 << 64):
        with refused(Reason.REQUEST_INVALID):
            list(client.watch(done.run_id, after))  # type: ignore[arg-type]
    with served.calls() as calls, refused(Reason.CURSOR_INVALID, Reason.REQUEST_INVALID) as kept:
        request = pb.DownloadArtifactRequest(run_id=done.run_id, path="recipe.yaml", offset=wide["offset"])
        told(lambda: list(calls.training.DownloadArtifact(request, metadata=calls.metadata)))
    assert str(wide["offset"]) in re.sub(r"[,_]", "", str(kept[0]))
    registry = load_plugins()
    entry = registry.entry("teacher", "echo")
    config = entry.plugin.config.model_validate({"tokenizer": f"{served.workspace}/teacher", "max_length": 512})
    local = entry.plugin.factory(config)
    ids = np.arange(5, 40, dtype=np.int32)
    for seed in (wide["seed"], wide["seed"] + 1):
        item, want = ScoreItem(wide["sequence"], ids, 0, 30, seed=seed), Want(samples=8)
        ((name, signal),) = client.score(served.teacher, [item], want)
        assert name == wide["sequence"]
        np.testing.assert_array_equal(signal.samples.ids, ask(scores(local, [item], want))[name].samples.ids)
    assert next(iter(client.watch(done.run_id, wide["zero"]))).sequence == 1


def test_example(served: Served, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(served.recipe("tiny"))
    example = CLIENTS.parent / "examples" / "training" / "distil_from_python.py"
    command = [sys.executable, str(example), served.address, "recipe.yaml", "here"]
    done = subprocess.run(
        [*command, "--token-file", served.tokens["train"]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 200: loss " in done.stdout
    assert (tmp_path / "here" / "student" / "model.safetensors").is_file()
