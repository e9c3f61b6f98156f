"""A run's process for tests, which does what `script.json` in its workspace says. Started as limbeck.hosting.child is.

{"check": "good" | "bad" | "die" | "hang" | "odd", "run": [step …]}; a step is a list: ["state", NAME],
["metrics", {…}], ["progress", DONE], ["print", TEXT], ["touch", FILE], ["wait", FILE], ["deaf", FILE] (as
`wait`, but stops are not obeyed), ["checkpoints"] (answer what is asked for), ["fail", REASON], ["exit", CODE],
["kill"], ["mute"] (say `ended`, but no last state). Steps that an earlier attempt has done are passed over.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import AppendLog, FolderLock
from limbeck.hosting.channel import Decoder, Start, encode, error_fields

STOPPED = {"pause": "paused", "cancel": "cancelled", "server": "queued"}


class Stopped(Exception):
    """Asked to stop."""


class Line:
    """The channel."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.stopped: str | None = None
        self.asked: list[int] = []
        self.start: Start | None = None
        self.started = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, **message: Any) -> None:
        """To the server."""
        with suppress(OSError):
            self.socket.sendall(encode(message))

    def _read(self) -> None:
        decoder = Decoder()
        while data := self.socket.recv(1 << 16):
            for message in decoder.feed(data):
                if "start" in message:
                    self.start = Start.of(message)
                    self.started.set()
                self.stopped = message.get("stop", self.stopped)
                if "checkpoint" in message:
                    self.asked.append(message["checkpoint"])
                if "knobs" in message:
                    assert self.start is not None
                    with (self.start.workspace / "knobs").open("a") as notes:
                        notes.write(json.dumps(message["knobs"]) + "\n")
                    self.say(knobs=message["knobs"]["id"])
        os._exit(1)


class Play:
    """A run."""

    def __init__(self, line: Line, log: AppendLog, folder: Path, root: Path) -> None:
        self.line, self.log, self.folder, self.root = line, log, folder, root
        last = log.last or {}
        self.sequence, self.attempt = int(last["sequence"]), last.get("attempt", 0) + 1
        self.run_id = json.loads((folder / "run.json").read_text())["run_id"]

    def say(self, stage: str = "", **kind: Any) -> None:
        """An event. As JSON, since what the real one imports takes its time."""
        self.sequence += 1
        said = {"sequence": str(self.sequence), "attempt": self.attempt, "run_id": self.run_id, "stage": stage}
        self.log.append({**said, "time": datetime.now(UTC).isoformat(), **kind})
        self.line.say(tick=self.sequence)

    def state(self, name: str, error: LimbeckError | None = None) -> None:
        """A state."""
        told = {"reason": error.reason, "message": error.message} if error is not None else None
        self.say(state_changed={"state": f"RUN_STATE_{name.upper()}", **({"error": told} if told else {})})

    def obey(self) -> None:
        """Stop where that was asked."""
        if self.line.stopped is not None:
            raise Stopped

    def play(self, steps: list[list[Any]]) -> None:
        """All that is not done."""
        place = self.folder / "place"
        done = int(place.read_text()) if place.exists() else 0
        for number, (kind, *rest) in enumerate(steps[done:], done + 1):
            self.obey()
            getattr(self, kind)(*rest)
            place.write_text(str(number))

    def metrics(self, values: dict[str, float]) -> None:
        """Figures."""
        self.say("train", metrics={"values": values})

    def progress(self, done: int) -> None:
        """How far."""
        self.say(progress={"done": str(done), "total": "100", "unit": "steps"})

    def print(self, text: str) -> None:
        """Into the log."""
        print(text.replace("ROOT", str(self.root)), flush=True)

    def touch(self, name: str) -> None:
        """Tell the test."""
        (self.root / name).touch()

    def wait(self, name: str) -> None:
        """For the test, or a stop."""
        while not (self.root / name).exists():
            self.obey()
            time.sleep(0.002)

    def deaf(self, name: str) -> None:
        """For the test alone."""
        while not (self.root / name).exists():
            time.sleep(0.002)

    def checkpoints(self) -> None:
        """Answer one that is asked for."""
        while not self.line.asked:
            time.sleep(0.002)
        path = "checkpoints/student/checkpoint-3"
        (self.folder / path).mkdir(parents=True)
        (self.folder / path / "weights").write_bytes(b"0123456789")
        (self.folder / path / "manifest.json").write_text('{"files": {"weights": {"bytes": 10}}}')
        self.line.say(checkpoint=self.line.asked.pop(0), path=path, step=3, bytes=10)

    def fail(self, reason: str) -> None:
        """An error that is told."""
        raise LimbeckError(Reason(reason), problems=[Problem("it does not work")])

    def exit(self, code: int) -> None:
        """An end without a word."""
        os._exit(code)

    def kill(self) -> None:
        """As the system does where memory runs out."""
        os.kill(os.getpid(), signal.SIGKILL)

    def mute(self) -> None:
        """The history cannot be written any more."""
        print("no space left for step 7", file=sys.stderr, flush=True)
        self.line.say(ended="failed", signal=None, error=error_fields(LimbeckError(Reason.DISK_FULL)))
        os._exit(1)


def run(line: Line, start: Start, script: dict[str, Any]) -> None:
    """A whole attempt."""
    written = next(row for row in start.recipe.read_text().splitlines() if row.startswith("output:"))
    folder = start.workspace / written.split()[1]
    with FolderLock(folder), AppendLog(folder / "events.jsonl") as log:
        play = Play(line, log, folder, start.workspace)
        play.say(run_started={"limbeck_version": "0"})
        try:
            play.play(script["run"])
            play.say(run_finished={})
            play.state("succeeded")
            line.say(ended="succeeded", signal=None, error=None)
        except Stopped:
            assert line.stopped is not None
            if line.stopped != "server":
                play.state("pausing" if line.stopped == "pause" else "cancelling")
            play.say(run_interrupted={"signal": line.stopped})
            play.state(STOPPED[line.stopped])
            line.say(ended="interrupted", signal=line.stopped, error=None)
        except LimbeckError as error:
            play.state("failed", error)
            line.say(ended="failed", signal=None, error=error_fields(error))


def main() -> None:
    """As the real one."""
    line = Line(int(sys.argv[1]))
    line.started.wait()
    start = line.start
    assert start is not None
    script = json.loads((start.workspace / "script.json").read_text())
    if start.do == "run":
        run(line, start, script)
        return
    how = script.get("check", "good")
    while how == "hang" and not (start.workspace / "go").exists():
        time.sleep(0.002)
    if how == "die":
        print(f"no {start.workspace}/model.bin here", flush=True)
        os._exit(7)
    if how == "odd":
        line.say(checked={"warnings": [], "resolved": {}, "facts": {}})
        return
    bad = LimbeckError(Reason.DATA_INVALID, problems=[Problem("no rows", file=str(start.workspace / "rows"), line=3)])
    error = error_fields(bad) if how == "bad" else None
    line.say(checked={"error": error, "warnings": [], "resolved": {"output": str(start.workspace / "a")}, "facts": {}})
    line.say(ended="failed" if error else "succeeded", signal=None, error=error)


if __name__ == "__main__":
    main()
