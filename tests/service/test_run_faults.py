"""kill -9 of server, runs and watchers at random points for a minute (ten: benchmarks/service_faults.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_faults.py"


def test_no_event_is_lost_doubled_or_out_of_order_and_no_process_is_left() -> None:
    command = [sys.executable, str(SCRIPT), "--minutes", "1", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for what in ("kill -9: server", "kill -9: run", "kill -9: client", "create", "events"):
        assert what in done.stdout  # it was done
