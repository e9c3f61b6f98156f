"""The first Ctrl-C is remembered and told of, the second one is not waited for."""

from __future__ import annotations

import os
import signal

import pytest

from limbeck.runs.stopping import StopSignal


@pytest.mark.parametrize(("name", "told"), [("SIGTERM", 0), ("SIGINT", 1)])
def test_the_first_signal_is_remembered(capfd: pytest.CaptureFixture[str], name: str, told: int) -> None:
    with StopSignal() as stop:
        assert stop() is None
        os.kill(os.getpid(), signal.Signals[name])
        assert stop() == name
    assert capfd.readouterr().err.count("stopping where the run can go on; Ctrl-C again stops at once") == told


def test_a_second_interrupt_stops_at_once() -> None:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
