from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from limbeck import __version__
from limbeck.cli import main, output
from limbeck.errors import LimbeckError, Problem, Reason

CODES = {"\x1b": "an escape code", "\r": "a carriage return"}


@pytest.fixture
def command(monkeypatch):
    """Put a command `made` beside the others, whose body is a function of the test's."""

    def call(body):
        made = click.command("made")(click.option("--json", "as_json", is_flag=True)(body))
        monkeypatch.setitem(main.COMMANDS, "made", "For a test.")
        real = main.importlib.import_module
        module = type(sys)("made")
        module.command = made
        monkeypatch.setattr(
            main.importlib, "import_module", lambda name: module if name == "limbeck.cli.made" else real(name)
        )

    return call


def test_help_teaches_and_lists_every_command(capsys):
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "limbeck run recipe.yaml" in text
    assert all(f"  {name} " in text for name in main.COMMANDS)
    assert "Exit codes" in text


def test_every_command_of_the_help_exists_and_helps(capsys):
    for name in main.COMMANDS:
        assert main.run([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: limbeck {name}")


def test_every_command_takes_json():
    for name in main.COMMANDS:
        found = main.cli.get_command(click.Context(main.cli), name)
        for part in getattr(found, "commands", {}).values() or [found]:
            assert any("--json" in parameter.opts for parameter in part.params), part.name


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"limbeck {__version__}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chekc", "x"], "No such command 'chekc'. Did you mean 'check'?"),
        (["zzz"], "No such command 'zzz'. Commands: run, resume"),
        (["schema", "--jsn"], "No such option"),
        (["run"], "Missing argument 'RECIPE'"),
        (["plugins", "show"], "Missing argument 'NAME'"),
    ],
)
def test_a_wrong_command_line_is_told_on_stderr(capsys, args, said):
    assert main.run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_an_error_tells_every_problem_and_has_the_code_of_the_catalogue(capsys, command):
    def fails(as_json):
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[Problem("first", file="a", line=3), Problem("second")])

    command(fails)
    assert main.run(["made"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: A stored file is damaged. [STORE_DAMAGED]\n  a:3: first\n  second\n"


def test_an_error_for_machines_is_json_on_stdout(capfd, command):
    def fails(as_json):
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[Problem("first", file="a", line=3, hint="mend it")])

    command(fails)
    assert main.run(["made", "--json"]) == 3
    out, err = capfd.readouterr()
    assert json.loads(out) == {
        "error": {
            "reason": "STORE_DAMAGED",
            "message": "A stored file is damaged.",
            "problems": [{"message": "first", "file": "a", "line": 3, "hint": "mend it"}],
        }
    }
    assert err == ""


def test_a_wrong_command_line_for_machines_is_json_too(capfd):
    assert main.run(["plugins", "shw", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["reason"] == "USAGE"


def test_a_missing_extra_names_the_line_to_type(capsys, command):
    def fails(as_json):
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    command(fails)
    assert main.run(["made"]) == 2
    assert 'the package torch is not installed (type: pip install "limbeck[train]")' in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_fault_of_ours_is_no_traceback(capfd, command, as_json):
    def fails(as_json):
        raise ZeroDivisionError("by zero")

    command(fails)
    assert main.run(["made", *(["--json"] if as_json else [])]) == 1
    out, err = capfd.readouterr()
    text = json.loads(out)["error"]["message"] if as_json else err
    assert "ZeroDivisionError: by zero" in text
    assert "Traceback" not in out + err


def test_where_a_fault_is_can_be_asked_for(command, monkeypatch):
    def fails(as_json):
        raise ZeroDivisionError("by zero")

    command(fails)
    monkeypatch.setenv("LIMBECK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.run(["made"])


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (SystemExit(7), 7), (SystemExit(), 0), (SystemExit("x"), 1)]
)
def test_how_a_command_ends_is_the_exit_code(command, raised, code):
    def ends(as_json):
        raise raised

    command(ends)
    assert main.run(["made"]) == code


def test_json_has_strings_for_what_it_lacks(capsys):
    output.emit_json({"a": [float("nan"), float("inf")], "b": (-float("inf"), 1.5, True)}, line=True)
    assert capsys.readouterr().out == '{"a": ["NaN", "Infinity"], "b": ["-Infinity", 1.5, true]}\n'


def test_while_json_is_made_everything_else_goes_to_stderr(capfd, command):
    def prints(as_json):
        print("printed")
        os.write(1, b"written to descriptor 1\n")
        subprocess.run(["echo", "by a child"], check=True)
        output.emit_json({"x": 1}, line=True)
        print("printed after")

    command(prints)
    assert main.run(["made", "--json"]) == 0
    out, err = capfd.readouterr()
    assert out == '{"x": 1}\n'
    assert sorted(err.splitlines()) == ["by a child", "printed", "printed after", "written to descriptor 1"]
    print("stdout is back")
    os.write(1, b"and its descriptor\n")
    assert capfd.readouterr().out.splitlines() in (
        ["stdout is back", "and its descriptor"],
        ["and its descriptor", "stdout is back"],
    )


def test_json_after_two_dashes_is_no_option(capfd, command):
    command(click.argument("rest", nargs=-1)(lambda as_json, rest: print(rest)))
    assert main.run(["made", "--", "--json"]) == 0
    assert capfd.readouterr().out == "('--json',)\n"
