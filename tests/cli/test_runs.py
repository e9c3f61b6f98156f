"""`limbeck runs` against a server that says what a test wants."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.client.scripted_training import RUN, Runs, event, events, hosting, run_message

from limbeck.cli.main import run
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import error_pb2
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event, Progress, StageStarted, Warning

OTHER = "01234567ffffffff"
COMMANDS = ["create", "list", "show", "watch", "pause", "resume", "cancel", "set", "checkpoints", "fetch"]


class Shell:
    """Command lines against a server, in this process."""

    def __init__(self, runs: Runs, address: str, capfd: pytest.CaptureFixture[str]) -> None:
        self.runs, self.address, self._capfd = runs, address, capfd
        self.out = self.err = ""

    def __call__(self, *words: str | Path) -> int:
        self._capfd.readouterr()
        code = run(["runs", *map(str, words)])
        self.out, self.err = self._capfd.readouterr()
        assert "Traceback" not in self.err
        return code

    def json(self, *words: str | Path) -> Any:
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    runs = Runs([events(event(1, "queued"), 2, event(3, "succeeded"))])

    async def get(request: Any, context: Any) -> pb.GetRunResponse:
        await runs.refuse(None if request.run_id == RUN else Reason.RUN_UNKNOWN, context)
        return pb.GetRunResponse(run=knobbed("training"), recipe="a: b")

    runs.answers["GetRun"] = get
    runs.answers["ListRuns"] = pb.ListRunsResponse(runs=[run_message(), run_message("queued", OTHER)])
    with hosting(runs) as address:
        monkeypatch.setenv("LIMBECK_SERVER", address)
        yield Shell(runs, address, capfd)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("output: mine\n")
    return path


def knobbed(state: str, **more: Any) -> pb.Run:
    found = run_message(state, metrics={"loss": 1.25}, progress=Progress(done=30, total=160, unit="steps"), **more)
    found.knobs.add(name="losses.forward_kl.weight", value=0.9, at_least=0.0)
    found.knobs.add(name="losses.forward_kl.temperature", value=2.0, above=0.0, values=[1.0, 2.0], scheduled=True)
    found.knobs.add(name="losses.cross_entropy.weight", value=0.1, at_least=0.0)
    return found


def warning(sequence: int, reason: str, message: str) -> Event:
    return Event(sequence=sequence, attempt=1, run_id=RUN, warning=Warning(reason=reason, message=message))


# -------------------------------------------------------------------------------------------------------------- create


def test_create_sends_the_recipe_and_says_how_to_watch(shell, recipe):
    assert shell("create", recipe) == 0
    assert f"run {RUN}: training\nits folder in the server's workspace: runs/mine\n" in shell.out
    assert max(map(len, shell.out.splitlines())) <= 80
    assert f"limbeck runs watch {RUN}\n" in shell.out
    (asked,) = shell.runs.asked("CreateRun")
    assert (asked.recipe, asked.restart) == ("output: mine\n", pb.RESTART_POLICY_RESUME)


def test_what_the_recipe_was_warned_of_is_told_once(shell, recipe):
    odd = [warning(2, "PREFLIGHT", "recipe:1: is odd"), warning(3, "ROWS_NOTED", "cut")]
    shell.runs.watches = [[events(event(1, "queued"), *odd, event(4, "succeeded"))]]
    shell.runs.answers["ValidateRecipe"] = pb.ValidateRecipeResponse(
        warnings=[error_pb2.Problem(message="is odd", file="recipe", line=1)]
    )
    assert shell("create", recipe, "--watch") == 0
    assert (shell.out + shell.err).count("is odd") == 1
    assert "cut [ROWS_NOTED]" in shell.out
    assert shell("watch", RUN) == 0
    assert "is odd [PREFLIGHT]" in shell.out
    assert shell("create", recipe, "--watch", "--json") == 0
    assert len(shell.out.splitlines()) == 6  # the run, every event, the result


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_all_of_each(name, shell):
    assert shell("--help") == 0
    (line,) = [line for line in shell.out.splitlines() if line.startswith(f"  {name} ")]
    assert line.endswith(".")
    assert not line.endswith("...")


def test_what_is_typed_next_names_the_same_server(shell, recipe, tmp_path):
    token = tmp_path / "my token"
    token.write_text("secret")
    assert shell("create", recipe, "--server", shell.address, "--token-file", token) == 0
    assert f"limbeck runs watch {RUN} --server {shell.address} --token-file '{token}'" in shell.out
    assert shell.runs.metadata[-1]["authorization"] == "Bearer secret"


def test_problems_of_a_recipe_have_their_place_in_the_file_here(shell, recipe):
    problems = [
        error_pb2.Problem(message="is bad", file="recipe", line=3, column=9, field="data.path", hint="mend it"),
        error_pb2.Problem(message="no rows", file="rows.jsonl", line=2),
    ]
    shell.runs.answers["ValidateRecipe"] = pb.ValidateRecipeResponse(
        error=error_pb2.Error(reason="DATA_INVALID", message="Not so.", problems=problems),
        warnings=[error_pb2.Problem(message="is odd", file="recipe", line=1)],
    )
    assert shell("create", recipe) == 2
    assert f"{recipe}:3:9: data.path: is bad (mend it)" in shell.err
    assert "rows.jsonl:2: no rows" in shell.err
    assert f"warning: {recipe}:1: is odd" in shell.err
    assert not shell.runs.asked("CreateRun")
    assert shell("create", recipe, "--json") == 2
    found = json.loads(shell.out)["error"]
    assert (found["reason"], found["problems"][0]["line"], found["problems"][0]["file"]) == (
        "DATA_INVALID",
        3,
        str(recipe),
    )


def test_a_file_that_is_not_there_is_told(shell, tmp_path):
    assert shell("create", tmp_path / "none.yaml") == 2
    assert "No such file" in shell.err
    assert not shell.runs.requests


def test_create_and_watch_in_json_is_a_run_then_events_then_the_result(shell, recipe):
    words = ("create", recipe, "--watch", "--restart", "fail", "--request-id", "mine", "--json")
    assert shell(*words) == 0
    first, *middle, last = map(json.loads, shell.out.splitlines())
    assert first["run"]["run_id"] == RUN
    assert [one["sequence"] for one in middle] == ["1", "2", "3"]
    assert last == {"result": {"run_id": RUN, "state": "succeeded"}}
    (asked,) = shell.runs.asked("CreateRun")
    assert (asked.request_id, asked.restart) == ("mine", pb.RESTART_POLICY_FAIL)


# --------------------------------------------------------------------------------------------------------------- look


def test_list_is_a_table_with_ids_that_are_told_apart(shell):
    waiting = run_message("queued", OTHER, queue_position=2)
    shell.runs.answers["ListRuns"] = pb.ListRunsResponse(runs=[knobbed("training"), waiting])
    assert shell("list", "--state", "training", "--state", "queued") == 0
    heads, _, first, second = [line.split() for line in shell.out.splitlines() if line.strip()]
    assert heads == ["run", "folder", "state", "age", "progress", "loss"]
    assert first[:3] == [RUN[:9], "runs/mine", "training"]
    assert first[-5:] == ["30", "of", "160", "steps", "1.250"]
    assert second[:3] == [OTHER[:9], "runs/mine", "queued"]
    assert " ".join(second[-5:]) == "number 2 in the queue"
    assert len(shell.runs.asked("ListRuns")[0].states) == 2


def test_list_says_how_far_runs_have_come_that_rest(shell):
    queued = knobbed("queued", queue_position=1)
    queued.run_id = OTHER
    shell.runs.answers["ListRuns"] = pb.ListRunsResponse(runs=[knobbed("paused"), queued])
    assert shell("list") == 0
    first, second = [line for line in shell.out.splitlines() if line.strip()][2:]
    assert re.search("paused .* 30 of 160 steps", first)
    assert "number 1 in the queue, 30 of 160 steps" in second


def test_list_says_where_there_is_more_or_nothing(shell):
    found = shell.json("list", "--limit", "1")
    assert ([one["run_id"] for one in found["runs"]], found["more"]) == ([RUN], True)
    assert [one["run_id"] for one in shell.json("list", "--limit", "0")["runs"]] == [RUN, OTHER]
    shell.runs.answers["ListRuns"] = pb.ListRunsResponse()
    assert shell("list") == 0
    assert "no runs; to start one:  limbeck runs create recipe.yaml" in shell.out
    assert shell("list", "--state", "asleep") == 2
    assert "'asleep' is no state of a run, allowed are created, " in shell.err


def test_show_has_knobs_with_ranges_and_the_error_with_its_remedy(shell):
    error = error_pb2.Error(
        reason="LOSS_NOT_FINITE", message="No.", problems=[error_pb2.Problem(message="row 7", hint="take it out")]
    )
    states = [pb.StateTime(state=1), pb.StateTime(state=15)]
    shell.runs.answers["GetRun"] = pb.GetRunResponse(run=knobbed("failed", error=error), states=states)
    assert shell("show", RUN) == 0
    for told in (
        "losses.forward_kl.weight = 0.9 (allowed: ≥ 0)",
        "losses.forward_kl.temperature = 2, by a schedule (allowed: 1, 2)",
        "error     No. [LOSS_NOT_FINITE]",
        "row 7 (take it out)",
        f"limbeck runs resume {RUN}",
        "loss 1.250",
        "progress  30 of 160 steps",
    ):
        assert told in shell.out
    assert re.search(r"states +[\d: -]+ created\n +[\d: -]+ failed\n", shell.out)
    found = shell.json("show", RUN)
    assert (found["state"], found["created"], found["error"]["problems"][0]["hint"]) == (
        "failed",
        "2023-11-14T22:13:20Z",
        "take it out",
    )
    assert found["knobs"][0]["at_least"] == 0.0


def test_integers_are_whole_to_the_digit_in_json(shell):
    """Case C47."""
    large = (1 << 63) + 1
    shell.runs.answers["GetRun"] = pb.GetRunResponse(run=run_message(last_sequence=large))
    assert shell.json("show", RUN)["last_sequence"] == large
    shell.runs.watches = [[events(event(large + 1, "succeeded"))]]
    assert shell("watch", RUN, "--after", str(large), "--json") == 0
    assert shell.runs.asked("WatchRun")[0].after_sequence == large
    assert json.loads(shell.out.splitlines()[0])["sequence"] == str(large + 1)


@pytest.mark.parametrize("given", [RUN, RUN[:10]])
def test_the_beginning_of_an_id_is_enough(given, shell):
    assert shell("pause", given) == 0
    assert shell.runs.asked("PauseRun")[0].run_id == RUN
    assert [asked.run_id for asked in shell.runs.asked("GetRun")] == [RUN]  # no beginning, which the server refuses


def test_a_beginning_of_several_or_of_none_is_told(shell):
    assert shell("cancel", RUN[:4]) == 2
    assert f"2 runs begin with '0123': {RUN} (runs/mine), {OTHER} (runs/mine) (give more of the id)" in shell.err
    for none in ("ab", ""):
        assert shell("cancel", none) == 2
        assert "no run's id is or begins with" in shell.err
    assert not shell.runs.asked("CancelRun")


# --------------------------------------------------------------------------------------------------------------- watch


def stage(sequence: int, **said: Any) -> Event:
    made = event(sequence)
    made.ClearField("metrics")
    made.MergeFrom(Event(stage="train", **said))
    return made


def test_watch_looks_like_a_local_run_and_says_how_to_fetch(shell):
    begin = stage(2, stage_started=StageStarted(total=100, unit="steps"))
    half = stage(3, progress=Progress(done=50, total=100, unit="steps"))
    half.time.seconds = begin.time.seconds + 25  # read in no time, it took as long as it says
    script = [events(event(1, "queued"), begin), grpc.StatusCode.UNAVAILABLE]
    shell.runs.watches = [script, [events(half, event(4, "succeeded"))]]
    assert shell("watch", RUN) == 0
    lines = shell.out.splitlines()
    assert lines[:3] == ["queued", "train: 100 steps", "train: 50 of 100 steps, 2 steps/s, 25 s left"]
    assert lines[-2:] == ["to fetch the student:", f"  limbeck runs fetch {RUN} --to ."]


def test_a_run_that_failed_is_told_with_its_remedy_and_ends_with_1(shell):
    error = error_pb2.Error(
        reason="DISK_FULL",
        message="The disk is full.",
        problems=[error_pb2.Problem(message="8 bytes", hint="free some")],
    )
    shell.runs.watches = [[events(1, event(2, "failed", error=error))]]
    assert shell("watch", RUN) == 1
    assert "failed: The disk is full. [DISK_FULL]\n  8 bytes (free some)" in shell.out
    assert f"limbeck runs resume {RUN}" in shell.err
    assert shell("watch", RUN, "--json") == 1
    assert json.loads(shell.out.splitlines()[-1])["error"]["reason"] == "DISK_FULL"


def test_the_faults_of_a_run_that_failed_have_their_places(shell, recipe):
    problems = [
        error_pb2.Problem(message="is odd", file="recipe", line=3, column=9, field="data.path", hint="mend it"),
        error_pb2.Problem(message="is no row", file="rows.jsonl", line=3),
    ]
    error = error_pb2.Error(reason="DATA_INVALID", message="No.", problems=problems)
    shell.runs.watches = [[events(1, event(2, "failed", error=error))]]
    assert shell("watch", RUN) == 1
    lines = ["failed: No. [DATA_INVALID]", "  recipe:3:9: data.path: is odd (mend it)", "  rows.jsonl:3: is no row"]
    assert shell.out.splitlines()[-3:] == lines
    shell.runs.answers["GetRun"] = pb.GetRunResponse(run=run_message("failed", error=error))
    assert shell("show", RUN) == 0
    assert all(line.strip() in shell.out for line in lines[1:])
    assert shell.json("show", RUN)["error"]["problems"][0] == {
        "message": "is odd",
        "file": "recipe",
        "line": 3,
        "column": 9,
        "field": "data.path",
        "hint": "mend it",
    }
    assert shell("create", recipe, "--watch") == 1
    assert f"  {recipe}:3:9: data.path: is odd (mend it)\n  rows.jsonl:3: is no row\n" in shell.out
    assert shell("create", recipe, "--watch", "--json") == 1
    *_, told, last = map(json.loads, shell.out.splitlines())
    assert told["state_changed"]["error"]["problems"][0]["file"] == "recipe"  # the event as it was said
    assert [one["file"] for one in last["error"]["problems"]] == [str(recipe), "rows.jsonl"]


def test_who_has_seen_all_is_told_how_it_ended(shell):
    error = error_pb2.Error(reason="DISK_FULL", message="The disk is full.")
    shell.runs.watches = [[]]
    shell.runs.answers["GetRun"] = pb.GetRunResponse(run=run_message("failed", last_sequence=2, error=error))
    assert shell("watch", RUN, "--after", "2") == 1
    assert "The disk is full. [DISK_FULL]" in shell.err


def test_a_run_that_was_cancelled_ends_with_1(shell):
    shell.runs.watches = [[events(1, event(2, "cancelling"), event(3, "cancelled"))]]
    assert shell("watch", RUN) == 1
    assert shell.out.splitlines() == ["cancelling", "cancelled"]


def test_an_error_of_the_server_is_the_commands(shell):
    shell.runs.watches = [[events(1), Reason.CURSOR_INVALID]]
    assert shell("watch", RUN) == 2
    assert "[CURSOR_INVALID]" in shell.err
    assert "go on watching" not in shell.err
    assert shell("watch", RUN, "--json") == 2
    assert [list(json.loads(line)) for line in shell.out.splitlines()][-1] == ["error"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_the_watching_and_says_that_the_run_goes_on(options, shell):
    shell.runs.watches = [[events(event(1, "queued")), 60.0]]
    command = [sys.executable, "-m", "limbeck.cli.main", "runs", "watch", RUN, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "queued" in first.lower()
    assert f"stopped watching, not the run. To watch again:\n  limbeck runs watch {RUN}\n" in err
    assert "Traceback" not in err
    assert not shell.runs.asked("CancelRun")
    if options:
        assert json.loads(out) == {"interrupted": {"signal": "SIGINT", "watch": f"limbeck runs watch {RUN}"}}


def test_a_reader_that_goes_away_ends_it_quietly(shell):
    shell.runs.watches = [[events(*range(1, 50)), *[0.05, events(50), 0.05, events(51)], 60.0]]
    command = f"exec {sys.executable} -m limbeck.cli.main runs watch {RUN} --json"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        shell.runs.watches = [[events(*range(1, 60)), events(event(60, "succeeded"))]]
        process.wait(timeout=60)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


# --------------------------------------------------------------------------------------------------------------- steer


@pytest.mark.parametrize(("command", "method"), [("pause", "PauseRun"), ("cancel", "CancelRun")])
def test_what_is_asked_of_a_run_whose_process_starts_is_noted(command, method, shell):
    shell.runs.answers[method] = type(shell.runs.answers[method])(run=run_message("queued"))
    assert shell(command, RUN) == 0
    done = {"pause": "paused", "cancel": "cancelled"}[command]
    assert f"run {RUN}: queued; it will be {done} as soon as its process hears of it" in shell.out


@pytest.mark.parametrize("given", [("", "--to", "here"), ("student", "--to", "")])
def test_an_empty_place_is_refused(given, shell):
    assert shell("fetch", RUN, *given) == 2
    assert "is empty" in shell.err


@pytest.mark.parametrize(
    ("command", "method", "state"),
    [("pause", "PauseRun", "pausing"), ("resume", "ResumeRun", "queued"), ("cancel", "CancelRun", "cancelling")],
)
def test_steering_says_what_the_run_is_now(command, method, state, shell):
    shell.runs.answers[method] = type(shell.runs.answers[method])(run=run_message(state))
    assert shell(command, RUN) == 0
    assert shell.out.splitlines() == [f"run {RUN}: {state}", f"to watch it:  limbeck runs watch {RUN}"]
    assert shell.json(command, RUN)["state"] == state
    shell.runs.answers[method] = LimbeckError(Reason.RUN_STATE, problems=[Problem("it has ended")])
    assert shell(command, RUN) == 3
    assert "it has ended" in shell.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("losses.forward_kl.weight", "losses.forward_kl.weight"),
        ("forward_kl.weight", "losses.forward_kl.weight"),
        ("cross_entropy.weight", "losses.cross_entropy.weight"),
        ("temperature", "losses.forward_kl.temperature"),
    ],
)
def test_a_knob_is_meant_by_any_clear_end_of_its_name(given, meant, shell):
    assert shell("set", RUN, f"{given}=0.5") == 0
    assert dict(shell.runs.asked("UpdateKnobs")[0].values) == {meant: 0.5}
    assert re.search(rf"{meant}: [\d.]+ → 0.5 from the next step on", shell.out)


def test_a_run_that_tells_no_knobs_yet_is_asked_by_the_name_alone(shell):
    shell.runs.answers["GetRun"] = pb.GetRunResponse(run=run_message("queued"))
    shell.runs.answers["UpdateKnobs"] = pb.UpdateKnobsResponse(run=run_message("queued"))
    assert shell("set", RUN, "a.weight=1e-3", "losses.b.weight=2") == 0
    assert dict(shell.runs.asked("UpdateKnobs")[0].values) == {"losses.a.weight": 1e-3, "losses.b.weight": 2.0}
    assert "losses.a.weight: 0.001 once it trains" in shell.out


def test_all_that_is_wrong_with_knobs_is_told_at_once_and_nothing_is_sent(shell):
    given = ["weight=1", "forward_kl.wieght=1", "temperature", "temperature=warm", "=1"]
    assert shell("set", RUN, *given, "temperature=1", "forward_kl.temperature=2") == 1
    for told in (
        "'weight' may be losses.forward_kl.weight or losses.cross_entropy.weight (give more of its name)",
        "the run has no knob 'forward_kl.wieght' (did you mean 'forward_kl.weight'?",
        "'temperature' is not KNOB=VALUE with a number",
        "'temperature=warm' is not",
        "'=1' is not",
        "losses.forward_kl.temperature is given twice",
    ):
        assert told in shell.err
    assert not shell.runs.asked("UpdateKnobs")


# ----------------------------------------------------------------------------------------------------------------- get


def test_checkpoints_are_listed_and_saved_on_demand(shell):
    assert shell("checkpoints", RUN) == 0
    assert shell.out == "no checkpoints yet\n"
    found = [pb.Checkpoint(path="checkpoints/student/checkpoint-4", step=4, bytes=2048)]
    shell.runs.answers["ListCheckpoints"] = pb.ListCheckpointsResponse(checkpoints=found)
    shell.runs.answers["SaveCheckpoint"] = pb.SaveCheckpointResponse(checkpoint=found[0])
    assert shell("checkpoints", RUN, "--save") == 0
    assert "2.0 KiB" in shell.out
    assert "checkpoints/student/checkpoint-4" in shell.out
    assert len(shell.runs.asked("SaveCheckpoint")) == 1
    assert shell.json("checkpoints", RUN)["checkpoints"][0]["step"] == 4


def test_fetch_puts_the_student_where_it_is_told(shell, tmp_path):
    shell.runs.keep({"student/a": b"a" * 5000, "log.txt": b"log"})
    assert shell("fetch", RUN, "--to", tmp_path) == 0
    assert shell.out == f"fetched {tmp_path / 'student'}\n"
    assert (tmp_path / "student" / "a").read_bytes() == b"a" * 5000
    assert shell.json("fetch", RUN, ".", "--to", tmp_path / "all") == {"path": str(tmp_path / "all")}
    assert (tmp_path / "all" / "log.txt").read_bytes() == b"log"
    assert shell("fetch", RUN, "report", "--to", tmp_path) == 2
    assert "there are log.txt, student" in shell.err


# --------------------------------------------------------------------------------------------------------- all of them


def words_of(command: str, recipe: Path, folder: Path) -> list[str]:
    more = {"create": [str(recipe)], "list": [], "set": [RUN, "a=1"], "fetch": [RUN, "--to", str(folder)]}
    return [command, *more.get(command, [RUN])]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_that_a_token_is_not_known(command, shell, recipe, tmp_path):
    for method in shell.runs.answers:
        shell.runs.answers[method] = Reason.UNAUTHENTICATED
    assert shell(*words_of(command, recipe, tmp_path), "--json") == 2
    assert json.loads(shell.out)["error"]["reason"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_its_help(command, capfd):
    assert run(["runs", command, "--help"]) == 0
    out = capfd.readouterr().out
    assert all(
        f"--{name}" in out for name in ("server", "token-file", "tls-ca", "tls-cert", "tls-key", "insecure", "json")
    )
    assert "LIMBECK_SERVER" in out


def test_help_has_every_command_and_the_guide_too(capfd):
    assert run(["runs", "--help"]) == 0
    out = capfd.readouterr().out
    assert [line.split()[0] for line in out.split("Commands:\n")[1].splitlines() if line.strip()] == COMMANDS
    guide = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8").split("## Runs of a server")[1]
    told = {name for row in guide.split("\n## ")[0].splitlines() for name in re.findall(r"[|,] `(\w+) [A-Z]", row)}
    assert told | {"list"} == set(COMMANDS)


def test_tokens_of_two_lines_are_refused_before_anything_is_sent(shell, data):
    assert shell("list", "--token-file", data / "C11" / "token_two_lines.txt") == 2
    assert "holds 2 lines" in shell.err
    assert "hv-token" not in shell.err
    assert not shell.runs.requests


def test_a_proxy_in_the_environment_keeps_nobody_from_this_machine(shell, data):
    """Case C11, as it was met: `limbeck runs list`. Nothing heavy is imported for it."""
    code = (
        "import sys; from limbeck.cli.main import run; code = run(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'limbeck.service', 'limbeck.runs.pipeline'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    line = f'source {data / "C11" / "environment.sh"}; exec "$@"'
    token = str(data / "C11" / "token_crlf_bom.txt")
    command = [sys.executable, "-c", code, "runs", "list", "--json", "--token-file", token]
    done = subprocess.run(["bash", "-c", line, "bash", *command], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["runs"]) == 2
    assert shell.runs.metadata[-1]["authorization"] == "Bearer hv-token-123"


def test_nobody_there_is_told(capfd, monkeypatch):
    from limbeck.client.link import Times

    monkeypatch.setattr("limbeck.client.aio.Times", lambda **_: Times(timeout=0.3))
    assert run(["runs", "list", "--server", "127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capfd.readouterr().err


def test_who_watches_from_within_a_stage_sees_its_bar_too(monkeypatch):
    import io

    from rich.console import Console

    from limbeck.cli import progress

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(progress.output, "console", lambda: terminal)
    with progress.Bars(remote=True) as bars:
        bars(stage(51, progress=Progress(done=50, total=100, unit="steps")))
        later = stage(52, progress=Progress(done=60, total=100, unit="steps"))
        later.time.seconds += 4  # 5 s after the one before
        bars(later)
        bars._progress.refresh()
    assert "60 of 100 steps, 2 steps/s, 20 s left" in screen.getvalue()
