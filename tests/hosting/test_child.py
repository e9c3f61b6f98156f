"""The process of a run, as its server meets it over the channel."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.hosting.channel import Decoder, Start, encode
from limbeck.hosting.child import Child, Line
from limbeck.runs.events import append_event, read_events
from limbeck.runs.folder import RunFolder
from limbeck.testing.tiny import tiny_model_folder
from limbeck.v1 import event_pb2 as pb

RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0]}
data:
  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 4, temperature: 1.0, min_success_ratio: 0.1}
  holdout: 2
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 8}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 2000, per_device_train_batch_size: 2, save_steps: 100000}
evaluation: {samples: 1, max_new_tokens: 4}
output: runs/one
"""


@pytest.fixture(scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("project").resolve()
    tiny_model_folder(folder / "teacher", data / "tok_a", layers=2, seed=1, scale=3.0)
    prompts = [{"prompt": f"Question {i}?\n"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def project(_project: Path, tmp_path: Path) -> Path:
    """A workspace with a recipe that trains for long: it is to be stopped."""
    import shutil

    return Path(shutil.copytree(_project, tmp_path / "project")).resolve()


class Process:
    """A child, from the server's side. What it prints goes to `log`."""

    def __init__(self, project: Path, *, do: Any = "run", resume: bool = False, limit: int | None = None) -> None:
        self.run, self.log = project / "runs" / "one", project / "log.txt"
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(120)
        self._decoder = Decoder()

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        with self.log.open("a+b") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "limbeck.hosting.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=project,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                preexec_fn=limited,
            )
        theirs.close()
        self.say(Start(do, project / "recipe.yaml", project, (), resume).message())

    def say(self, message: Any) -> None:
        self._ours.sendall(encode(message))

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says until it has ended."""
        while data := self._receive():
            yield from self._decoder.feed(data)

    def _receive(self) -> bytes:
        try:
            return self._ours.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def until(self, wanted: Callable[[pb.Event], bool]) -> None:
        """Read until an event that is wanted is on disk."""
        for message in self.messages():
            if "tick" in message and any(wanted(event) for event in read_events(self.run / "events.jsonl")):
                return
        raise AssertionError(f"it ended before: {self.log.read_text()}")

    def answer(self, key: str) -> dict[str, Any]:
        """The next message of a kind."""
        return next(message for message in self.messages() if key in message)

    def hang_up(self) -> None:
        self._ours.close()

    def ended(self) -> tuple[dict[str, Any], int]:
        """Its last message, and its exit code."""
        last = list(self.messages())[-1]
        return last, self.process.wait(60)

    def events(self) -> list[pb.Event]:
        return list(read_events(self.run / "events.jsonl"))

    def states(self) -> list[str]:
        said = (event.state_changed.state for event in self.events() if event.HasField("state_changed"))
        return [pb.RunState.Name(state).removeprefix("RUN_STATE_") for state in said]


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., Process]]:
    """Start a child in the project; what is left of it is ended."""
    started: list[Process] = []

    def call(**options: Any) -> Process:
        started.append(Process(project, **options))
        return started[-1]

    yield call
    for one in started:
        one.hang_up()
        one.process.kill()
        one.process.wait()


def in_training(event: pb.Event) -> bool:
    return event.stage == "train" and event.HasField("progress")


def test_a_run_is_steered_paused_resumed_and_cancelled(start: Any, project: Path) -> None:
    with RunFolder(project / "runs" / "one") as folder:  # as a server makes it, or a process leaves it that died early
        append_event(folder.path, folder.run_id, pb.StateChanged(state=pb.RUN_STATE_QUEUED))
    child = start(resume=True)
    child.say({"knobs": {"id": 1, "values": {"losses.cross_entropy.weight": 0.5}}})
    child.say({"checkpoint": "early"})
    refused = child.answer("checkpoint")
    assert (refused["checkpoint"], refused["error"]["reason"]) == ("early", "RUN_STATE")
    child.until(in_training)
    child.say({"checkpoint": 7})
    saved = child.answer("checkpoint")
    manifest = json.loads((child.run / saved["path"] / "manifest.json").read_text())
    assert (saved["checkpoint"], manifest["step"]) == (7, saved["step"])
    assert saved["bytes"] == sum(file["bytes"] for file in manifest["files"].values())
    child.say({"knobs": {"id": 2, "values": {"losses.cross_entropy.weight": -1.0, "losses.other.weight": 1.0}}})
    assert child.answer("knobs") == {"knobs": 2}
    child.say({"stop": "pause"})
    assert child.ended() == ({"ended": "interrupted", "signal": "pause", "error": None}, 130)
    assert child.states() == ["QUEUED", "GENERATING", "PREPARING", "LABELLING", "TRAINING", "PAUSING", "PAUSED"]
    events = child.events()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.attempt for event in events[:2]] == [0, 1]
    changed = [
        (event.step, event.knob_changed.knob, event.knob_changed.after)
        for event in events
        if event.HasField("knob_changed")
    ]
    assert changed == [(0, "losses.cross_entropy.weight", 0.5)]
    warnings: list[Any] = [event.warning for event in events if event.HasField("warning")]
    (refusal,) = [warning.message for warning in warnings if warning.reason == "KNOB_REFUSED"]
    assert "losses.other.weight is no knob" in refusal
    assert "must be at least 0" in refusal

    again = start(resume=True)
    again.until(lambda event: event.attempt == 2 and in_training(event))
    again.say({"knobs": {"id": 1, "values": {"losses.cross_entropy.weight": 0.7}}})  # it was not heard that it is known
    assert again.answer("knobs") == {"knobs": 1}
    again.say({"stop": "server"})
    again.say({"stop": "cancel"})
    assert again.ended() == ({"ended": "interrupted", "signal": "cancel", "error": None}, 130)
    assert again.states()[-2:] == ["CANCELLING", "CANCELLED"]
    after = [event for event in again.events() if event.attempt == 2]
    (rewound,) = [event.rewound for event in after if event.HasField("rewound")]
    assert rewound.to_step > saved["step"]
    assert not any(event.HasField("knob_changed") for event in after)
    metrics = [event.metrics.values for event in after if event.HasField("metrics")]
    assert {values["knobs.losses.cross_entropy.weight"] for values in metrics} == {0.5}


def test_a_steered_run_that_is_killed_and_resumed_leaves_the_student_of_one_that_is_not(
    start: Any, project: Path
) -> None:
    short = RECIPE.replace("max_steps: 2000", "max_steps: 40").replace("save_steps: 100000", "save_steps: 7")
    (project / "recipe.yaml").write_text(short)
    knobs = {"knobs": {"id": 1, "values": {"losses.cross_entropy.weight": 0.5}}}
    whole = start()
    whole.say(knobs)
    assert whole.ended() == ({"ended": "succeeded", "signal": None, "error": None}, 0)
    assert whole.states()[-1] == "SUCCEEDED"
    student = (whole.run / "student" / "model.safetensors").read_bytes()
    whole.run.rename(project / "whole")
    killed = start()
    killed.say(knobs)
    killed.until(lambda event: event.stage == "train" and event.step == 17)
    killed.process.kill()
    assert killed.process.wait(60) == -signal.SIGKILL
    resumed = start(resume=True)
    assert resumed.ended()[0]["ended"] == "succeeded"
    assert (resumed.run / "student" / "model.safetensors").read_bytes() == student
    rewound = [event.rewound.to_step for event in resumed.events() if event.HasField("rewound")]
    assert len(rewound) == 1
    assert rewound[0] >= 14


def test_a_process_whose_server_is_gone_ends_at_once_with_what_it_started(start: Any) -> None:
    child = start()
    child.until(in_training)
    child.hang_up()
    assert child.process.wait(60) == 1
    assert child.states()[-1] == "TRAINING"  # not a word more


def test_a_signal_to_the_process_alone_is_a_pause(start: Any) -> None:
    child = start()
    child.until(lambda event: event.HasField("run_started"))
    child.process.send_signal(signal.SIGTERM)
    last, code = child.ended()
    assert (last["ended"], last["signal"], code) == ("interrupted", "SIGTERM", 143)
    assert child.states()[-1] == "PAUSED"


def test_a_crash_leaves_its_last_words(start: Any) -> None:
    child = start()
    child.until(lambda event: event.HasField("run_started"))
    child.process.send_signal(signal.SIGSEGV)
    assert not any("ended" in message for message in child.messages())
    assert child.process.wait(60) == -signal.SIGSEGV
    assert "Segmentation fault" in child.log.read_text()


BROKEN = """\
from limbeck.hookspecs import hookimpl
from limbeck.interfaces import LossPlugin, Needs, TokenLossConfig


def fail(student, teacher, knobs):
    raise RuntimeError("a fault of the plugin")


@hookimpl
def limbeck_losses():
    yield LossPlugin(
        name="broken", kind="token", config=TokenLossConfig, needs=lambda config: Needs("top_k"),
        factory=lambda config, context: fail, summary="Fails.",
    )
"""


def test_a_plugin_that_raises_fails_the_run_with_the_last_lines_of_its_log(
    start: Any, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "installed" / "broken-1.dist-info"
    about.mkdir(parents=True)
    (about.parent / "broken_plugin.py").write_text(BROKEN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[limbeck.plugins]\nbroken = broken_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(about.parent))
    (project / "recipe.yaml").write_text(RECIPE.replace("plugin: cross_entropy", "plugin: broken"))
    (project / "log.txt").write_text("of an attempt before\n")
    child = start()
    last, code = child.ended()
    assert (last["ended"], last["error"]["reason"], code) == ("failed", "INTERNAL", 1)
    error = list(read_events(child.run / "events.jsonl"))[-1].state_changed.error
    assert "a fault of the plugin" in error.message
    (lines,) = [problem.message for problem in error.problems if problem.field == "log.txt"]
    assert "broken_plugin.py" in lines
    assert "RuntimeError: a fault of the plugin" in lines
    assert "of an attempt before" not in lines
    assert child.log.read_text().count("Traceback") == 1


def test_a_full_disk_is_told_where_the_history_cannot_tell_it(start: Any) -> None:
    last, code = start(limit=700).ended()
    assert (last["ended"], last["error"]["reason"], code) == ("failed", "DISK_FULL", 1)


def test_a_recipe_that_is_not_valid_fails_with_every_problem_and_no_folder(start: Any, project: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE.replace("top_k: 8", "top_k: x").replace("holdout: 2", "holdout: -1"))
    last, code = start().ended()
    assert (last["ended"], last["error"]["reason"], code) == ("failed", "RECIPE_INVALID", 2)
    assert [problem["line"] for problem in last["error"]["problems"]] == [5, 7]
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("error", "ended", "signal_name", "reason", "words", "code"),
    [
        (MemoryError(), "failed", None, "INTERNAL", "not enough memory", 1),
        (RuntimeError("torch says: can't allocate memory"), "failed", None, "INTERNAL", "not enough memory", 1),
        (RuntimeError("a fault"), "failed", None, "INTERNAL", "RuntimeError: a fault", 1),
        (SystemExit(0), "failed", None, "INTERNAL", "SystemExit", 1),
        (ModuleNotFoundError("no", name="torch"), "failed", None, "EXTRA_MISSING", "limbeck[train]", 2),
        (KeyboardInterrupt(), "interrupted", "SIGINT", None, "", 130),
    ],
)
def test_whatever_is_raised_is_told(
    error: BaseException,
    ended: str,
    signal_name: str | None,
    reason: str | None,
    words: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Child) -> None:
        raise error

    monkeypatch.setattr(Child, "_begin", fail)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Child(Line(theirs), Start("run", Path("recipe.yaml"), Path())).work() == code
        (told,) = Decoder().feed(ours.recv(1 << 16))
    assert (told["ended"], told["signal"]) == (ended, signal_name)
    assert (told["error"] or {}).get("reason") == reason
    assert words in json.dumps(told, ensure_ascii=False)
    assert ("Traceback" in capsys.readouterr().err) == (reason == "INTERNAL")


@pytest.mark.parametrize("fault", [None, "holdout: -1"])
def test_a_look_tells_what_check_tells_and_makes_nothing(start: Any, project: Path, fault: str | None) -> None:
    from click.testing import CliRunner

    from limbeck.cli.check import command
    from limbeck.errors import LimbeckError

    if fault:
        (project / "recipe.yaml").write_text(RECIPE.replace("holdout: 2", fault))
    child = start(do="check")
    *_, found, last = list(child.messages())
    shown = CliRunner().invoke(command, [str(project / "recipe.yaml"), "--json"])
    checked = found["checked"]
    if fault:
        assert isinstance(shown.exception, LimbeckError)
        assert [problem["message"] for problem in checked["error"]["problems"]] == [
            problem.message for problem in shown.exception.problems
        ]
        assert (checked["resolved"], last["ended"]) == ({}, "failed")
        assert last["error"] == checked["error"]
    else:
        told = json.loads(shown.output)
        assert checked["error"] is None
        assert checked["resolved"] == told["recipe"]
        assert checked["facts"].keys() == told["facts"].keys()
        assert checked["facts"]["teacher"] == told["facts"]["teacher"]
        assert last == {"ended": "succeeded", "signal": None, "error": None}
    assert not (project / "runs").exists()


def test_a_server_that_does_not_read_holds_nothing_up_and_misses_ticks_only() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = Line(theirs)
        for sequence in range(1, 100_001):
            line.tick(SimpleNamespace(sequence=sequence))  # type: ignore[arg-type]
        decoder, ticks = Decoder(), list[int]()
        ours.setblocking(False)
        while True:
            try:
                ticks += [message["tick"] for message in decoder.feed(ours.recv(1 << 16))]
            except BlockingIOError:
                break
        assert ticks == list(range(1, len(ticks) + 1))
        assert len(ticks) < 100_000
        line.tick(SimpleNamespace(sequence=200_000))  # type: ignore[arg-type]
        assert decoder.feed(ours.recv(1 << 16)) == [{"tick": 200_000}]
