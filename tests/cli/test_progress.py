"""What a run shows: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.cli import progress
from limbeck.runs.events import KINDS
from limbeck.v1 import event_pb2 as pb
from limbeck.v1.error_pb2 import Error, Problem
from limbeck.v1.event_pb2 import (
    Evaluation,
    Event,
    KnobChanged,
    Log,
    Metrics,
    Progress,
    Rewound,
    RunFinished,
    Sample,
    StageFinished,
    StageStarted,
    StateChanged,
    TeacherStarting,
    Warning,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def event(message: Any, stage: str = "train", step: int = 0) -> Event:
    return Event(sequence=1, stage=stage, step=step, **{KINDS[message.DESCRIPTOR.name]: message})


def show(display: progress.Display, clock: list[float], steps: int = 200, seconds: float = 0.5) -> None:
    display(event(Rewound(to_step=20, checkpoint="c", rejected=["checkpoint-30: it is empty"])))
    display(event(StageStarted(total=steps, unit="steps", done=20)))
    for step in range(21, steps + 1):
        clock[0] += seconds
        display(event(Metrics(values={"loss": 1.25}), step=step))
        display(event(Progress(done=step, total=steps, unit="steps")))
    display(event(KnobChanged(knob="losses.forward_kl.temperature", before=2, after=1), step=100))
    display(event(Warning(reason="LOG_MENDED", message="a line was torn")))
    display(event(StageFinished(digest="d", seconds=90.0, figures={"steps": float(steps), "loss": 1.25})))
    display(event(StageFinished(digest="d", skipped=True), stage="report"))
    display(event(RunFinished(seconds=91.0), stage=""))


def test_plain_lines_are_few_and_carry_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress.Lines() as display:
        show(display, clock)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "train: goes on from step 20",
        "  passed over checkpoint-30: it is empty",
        "train: 200 steps, 20 done before",
        "train: 50 of 200 steps, 2 steps/s, 1 min 15 s left, loss 1.25",
        "train: 100 of 200 steps, 2 steps/s, 50 s left, loss 1.25",
        "train: 150 of 200 steps, 2 steps/s, 25 s left, loss 1.25",
        "train: losses.forward_kl.temperature 2 → 1 at step 100",
        "warning: a line was torn [LOG_MENDED]",
        "train: done in 1 min 30 s (loss 1.25, steps 200)",
        "report: there already",
    ]


def test_a_slow_stage_speaks_once_a_minute(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with progress.Lines() as display:
        display(event(StageStarted(total=10_000, unit="tokens")))
        for done in range(1, 181):
            clock[0] += 1
            display(event(Progress(done=done, total=10_000, unit="tokens")))
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


def test_bars_show_rate_time_left_and_loss_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(progress.output, "console", lambda: terminal)
    with progress.Bars() as display:
        display(event(StageStarted(total=100, unit="steps", done=0)))
        clock[0] += 10
        display(event(Metrics(values={"loss": 0.5})))
        display(event(Progress(done=20, total=100, unit="steps")))
        display._progress.refresh()
        assert "20 of 100 steps, 2 steps/s, 40 s left, loss 0.5" in screen.getvalue()
        assert "━" in screen.getvalue()
        display(event(StageFinished(seconds=50.0)))
    assert "train: done in 50 s" in screen.getvalue()


def test_a_start_is_told_phase_by_phase(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with progress.Lines() as display:
        for phase in ("loading the weights", "warming up", ""):
            display(event(TeacherStarting(phase=phase), "label"))
    assert capsys.readouterr().out.splitlines() == [
        "label: the teacher starts: loading the weights",
        "label: the teacher starts: warming up",
        "label: the teacher is ready",
    ]


def test_bars_show_for_how_long_a_start_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(progress.output, "console", lambda: terminal)
    with progress.Bars() as display:
        now = display._progress.get_time()
        monkeypatch.setattr(display._progress, "get_time", lambda: now)
        display(event(TeacherStarting(phase="loading the weights"), "label"))
        now += 75
        display._progress.refresh()
        assert "the teacher starts: loading the weights, 1 min 15 s" in screen.getvalue()
        display(event(TeacherStarting(phase="warming up"), "label"))
        display._progress.refresh()
        assert "the teacher starts: warming up, 0.0 s" in screen.getvalue()
        display(event(TeacherStarting(), "label"))
        assert not display._progress.tasks
        display(event(StageStarted(total=100, unit="tokens"), "evaluate"))
        display(event(TeacherStarting(phase="loading the weights"), "evaluate"))  # a line: the stage's bar stays
        display._progress.refresh()
        assert len(display._progress.tasks) == 1
    assert "evaluate: the teacher starts: loading the weights" in screen.getvalue()


def test_a_bar_moves_from_the_state_on_until_its_stage_begins(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    from rich.console import Console

    terminal = Console(file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(progress.output, "console", lambda: terminal)
    with progress.Bars(remote=True) as display:

        def shown() -> list[tuple[str, str]]:
            return [(task.description, task.fields["text"]) for task in display._progress.tasks]

        def enter(state: str) -> list[tuple[str, str]]:
            display(event(StateChanged(state=pb.RunState.Value(f"RUN_STATE_{state.upper()}")), ""))
            return shown()

        assert enter("validating") == [("check", "looks at the recipe")]
        assert enter("queued") == []
        assert enter("generating") == [("generate", "begins")]
        display(event(TeacherStarting(phase="warming up"), "generate"))
        assert shown() == [("generate", "the teacher starts: warming up")]
        display(event(StageStarted(total=8, unit="rows"), "generate"))
        assert shown() == [("generate", "0 of 8 rows")]
        assert enter("pausing") == [("generate", "0 of 8 rows")]  # it works until it has stopped
        display(event(StageFinished(seconds=1.0), "generate"))
        assert enter("preparing") == [("prepare", "begins")]
        assert enter("cancelled") == []


def test_json_lines_are_the_events_and_stop_when_nobody_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    with progress.JsonLines() as display:
        show(display, clock, steps=22)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["rewound"] == {"to_step": "20", "checkpoint": "c", "rejected": ["checkpoint-30: it is empty"]}
    assert lines[-1]["run_finished"] == {"seconds": 91.0}

    def closed(*args: object, **options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(progress.output, "emit_json", closed)
    with progress.JsonLines() as display:
        display(event(RunFinished()))
        assert display.gone


def test_without_a_total_there_is_no_time_left(clock: list[float]) -> None:
    stage = progress.Clock(0, 0, "rows")
    clock[0] += 2
    stage.done = 3000
    assert progress.progress_text(stage) == "3,000 rows, 1,500 rows/s"


def test_one_of_a_kind_is_told_in_the_singular(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with progress.Lines() as display:
        display(event(StageStarted(total=1, unit="pages"), "report"))
    assert capsys.readouterr().out == "report: 1 page\n"
    assert progress.progress_text(progress.Clock(0, 1, "pages")) == "0 of 1 page"


def test_a_ramp_is_told_once_and_a_step_function_at_each_step(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress.Lines() as display:
        for stage in ("train", "twin"):
            for step in range(1, 50):
                display(event(KnobChanged(knob="losses.a.weight", before=step, after=step + 1), stage, step))
                if step % 20 == 0:
                    display(event(KnobChanged(knob="losses.b.weight", before=step, after=0), stage, step))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "losses.a" in line] == [
        f"{stage}: losses.a.weight 1 → 2 at step 1" for stage in ("train", "twin")
    ]
    assert [line[-2:] for line in lines if "losses.b" in line] == ["20", "40", "20", "40"]


SPENT = {"teacher.calls": 10.0, "teacher.prompt_tokens": 900.0, "teacher.completion_tokens": 80.0}


def test_what_a_paid_teacher_takes_is_told_with_the_whole_that_it_will_take(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress.Lines() as display:
        display(event(StageStarted(total=40, unit="rows"), "generate"))
        clock[0] += 5
        display(event(Metrics(values={**SPENT, "teacher.cost.USD": 0.01, "teacher.expected.USD": 0.04}), "generate"))
        display(event(Progress(done=10, total=40, unit="rows"), "generate"))
        clock[0] += 61  # an answer that is long in coming
        more = {"teacher.calls": 11.0, "teacher.cost.USD": 0.011, "teacher.expected.USD": 0.044}
        display(event(Metrics(values={**SPENT, **more}), "generate"))
        figures = {"rows": 38.0, "rejected": 2.0, "rejected.refused": 2.0, "teacher.calls": 42.0}
        display(event(StageFinished(seconds=90.0, figures={**figures, "teacher.cost.USD": 0.04}), "generate"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "generate: 10 of 40 rows, 2 rows/s, 15 s left, $0.010 of about $0.040, 10 calls, 900 tokens read, 80 written",
        "generate: 10 of 40 rows, 0.152 rows/s, 3 min 18 s left, $0.011 of about $0.044, "
        "11 calls, 900 tokens read, 80 written",
        "generate: done in 1 min 30 s (rejected 2, rows 38, 42 calls, 0 tokens read, 0 written, $0.040)",
    ]


@pytest.mark.parametrize("width", [140, 80])  # where what comes last is cut
def test_a_bar_shows_what_a_paid_teacher_takes_between_two_rows(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], width: int
) -> None:
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, legacy_windows=False)
    monkeypatch.setattr(progress.output, "console", lambda: terminal)
    with progress.Bars() as display:
        display(event(StageStarted(total=40, unit="rows", done=4), "generate"))
        display(event(Metrics(values={**SPENT, "teacher.cost.EUR": 0.02, "teacher.expected.EUR": 0.2}), "generate"))
        display._progress.refresh()
        assert "4 of 40 rows, €0.020 of about €0.20, 10 calls" in screen.getvalue()


def test_texts_and_figures_of_models_are_a_line_each_without_control_codes(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress.Lines() as display:
        display(
            event(Sample(model="teacher", prompt="x" * 90 + "\nWho?\n", text="I,\x1b[31m\tthe miller."), "generate")
        )
        figures = {"parameters": 1e9, "perplexity": 8.25, "forward_kl": 0.5, "top1_agreement": 0.75}
        display(event(Evaluation(model="student", figures=figures), "evaluate"))
        display(event(Evaluation(model="teacher", figures={"parameters": 1e9}), "evaluate"))
    assert capsys.readouterr().out.splitlines() == [
        f"generate: teacher: …{'x' * 54} Who? → I, [31m the miller.",
        "evaluate: student: perplexity 8.25, forward_kl 0.5, top1_agreement 0.75",
    ]


@pytest.mark.parametrize("remote", [False, True])
def test_states_errors_and_logs_are_shown_of_a_run_that_is_elsewhere(
    remote: bool, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    problem = Problem(message="3 bytes are free", field="output", hint="free some")
    error = Error(reason="DISK_FULL", message="The disk is full.", problems=[problem])
    with progress.Lines(remote=remote) as display:
        for state in (pb.RUN_STATE_QUEUED, pb.RUN_STATE_TRAINING, pb.RUN_STATE_PAUSING):
            display(event(StateChanged(state=state)))
        display(event(Log(level="WARNING", logger="transformers", message="slow\ntokenizer")))
        display(event(StateChanged(state=pb.RUN_STATE_FAILED, error=error)))
    expected = [
        "queued",
        "pausing",
        "warning: slow tokenizer [transformers]",
        "failed: The disk is full. [DISK_FULL]",
        "  output: 3 bytes are free (free some)",
    ]
    assert capsys.readouterr().out.splitlines() == (expected if remote else [])
