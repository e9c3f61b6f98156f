"""kill -9 of server, runs and watchers at random points for a minute (ten: benchmarks/service_faults.py)."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

from limbeck.hosting.public import Public
from limbeck.runs.events import to_json
from limbeck.v1.event_pb2 import Event, Log

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_faults.py"


def test_no_event_is_lost_doubled_out_of_order_or_sent_before_it_is_written_and_no_process_is_left() -> None:
    command = [sys.executable, str(SCRIPT), "--minutes", "1", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for what in ("kill -9: server", "kill -9: run", "kill -9: client", "create", "events compared after a kill"):
        assert what in done.stdout  # it was done


def test_an_event_that_was_sent_and_is_not_written_is_found(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    events = [Event(sequence=number, log=Log(message=f"{number}")) for number in (1, 2)]
    seen = [(event.sequence, script["packed"](event)) for event in events]
    lines = [to_json(event) for event in events]

    def found(lines: list[str]) -> list[str]:
        return list(script["unwritten"](seen, lines, Public()))

    (tmp_path / "events.jsonl").write_text(f"{lines[0]}\n{lines[1]}")  # it is just being written
    is_written = script["_looker"](tmp_path / "events.jsonl", 0)
    assert [is_written(event) for event in events] == [True, False]
    assert found(lines) == []
    assert found(lines[:1]) == ["event 2 was sent, and the history ends with 1"]
    events[1].log.message = "another"
    assert found([lines[0], to_json(events[1])]) == ["event 2 was sent, and the history has another one"]
