"""C48 and its class: what machines read holds nothing else, and a reader may leave early."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NOISE = ("noisy plugin loaded", "noise on stderr", "UserWarning: noisy", "noise on descriptor 1")
COMMANDS = {
    "plugins": (["plugins", "--json"], 0),
    "show": (["plugins", "show", "jsd", "--json"], 0),
    "show, option first": (["plugins", "--json", "show", "jsd"], 0),
    "show of nothing": (["plugins", "show", "none", "--json"], 2),
    "schema": (["schema"], 0),
    "schema --json": (["schema", "--json"], 0),
    "run": (["run", "none.yaml", "--json"], 2),
    "check": (["check", "none.yaml", "--json"], 2),
    "preview": (["preview", "none.yaml", "--json"], 2),
}


@pytest.mark.parametrize(("args", "code"), COMMANDS.values(), ids=COMMANDS)
def test_stdout_is_json_only_beside_a_noisy_plugin(limbeck, noisy_site, args, code):
    done = limbeck(*args, site=noisy_site)
    assert done.code == code
    value = json.loads(done.out)
    assert ("error" in value) == (code != 0)
    assert all(noise in done.err for noise in NOISE), done.err
    assert "Traceback" not in done.err


def test_a_resume_of_nothing_is_json_too(limbeck, noisy_site):
    done = limbeck("resume", "none", "--json", site=noisy_site)
    assert done.code in (2, 3)
    assert json.loads(done.out)["error"]["reason"]


def test_the_noisy_plugin_is_listed_as_failed_since_it_offers_nothing(limbeck, noisy_site):
    (failure,) = json.loads(limbeck("plugins", "--json", site=noisy_site).out)["failures"]
    assert failure["distribution"] == "noisy-plugin"
    assert "offers nothing" in failure["error"]


@pytest.mark.parametrize("args", [["plugins"], ["plugins", "show", "jsd"], ["--help"], ["plugins", "show", "none"]])
def test_no_code_of_a_terminal_goes_into_a_pipe(limbeck, args):
    done = limbeck(*args, TERM="xterm-256color")
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err


@pytest.mark.parametrize(
    "args", [["schema"], ["plugins", "--json"], ["plugins"], ["--help"], ["plugins", "show", "jsd", "--json"]]
)
def test_a_reader_that_has_gone_ends_it_quietly(args):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "limbeck.cli.main", *args], check=False, stdout=writing, stderr=subprocess.PIPE
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141  # 128 + SIGPIPE, as other tools end


def test_without_a_stdout_at_all_nothing_breaks():
    command = f"exec {sys.executable} -m limbeck.cli.main plugins --json >&-"
    done = subprocess.run(["sh", "-c", command], check=False, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr
