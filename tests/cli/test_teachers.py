"""`limbeck teachers compare` as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
teacher: large
teachers:
  large: {{plugin: transformers, model: {teacher}}}
  small: {{plugin: transformers, model: {student}}}
  away: {{plugin: transformers, model: ./away}}
student: {{model: {student}}}
data: {{path: rows.jsonl, holdout: 6}}
losses: [{{plugin: forward_kl}}]
evaluation: {{max_new_tokens: 8}}
output: out
"""
SLOW = '''\
import asyncio, sys
from limbeck.hookspecs import hookimpl
from limbeck.interfaces import Config, TeacherPlugin, TextTeacherInfo


class Slow:
    """Waits for an answer that never comes."""

    def info(self):
        return TextTeacherInfo("slow", "slow", "0", frozenset({"generate"}))

    async def complete(self, prompts, sampling):
        print("waiting", file=sys.stderr, flush=True)
        await asyncio.sleep(3600)
        yield

    def usage(self):
        return {}

    async def close(self):
        print("closed", file=sys.stderr, flush=True)


@hookimpl
def limbeck_teachers():
    yield TeacherPlugin(name="slow", config=Config, factory=lambda config: Slow(), summary="Slow.")
'''


@pytest.fixture
def recipe(tmp_path: Path, tiny_teacher: Path, tiny_student: Path) -> Path:
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(teacher=tiny_teacher, student=tiny_student))
    return path


def test_people_get_tables_a_verdict_and_warnings_within_100_columns(limbeck: Any, recipe: Path) -> None:
    before = sorted(recipe.parent.rglob("*"))
    done = limbeck("teachers", "compare", recipe, "--rows", "5")
    assert done.code == 0, done.err
    assert done.out.startswith("5 of 6 held-out rows, 5 with a reference answer; greedy, at most 8 new tokens")
    lines = done.out.splitlines()
    tables = lines[2 : lines.index("away could not be compared: A model cannot be used here. [MODEL_INVALID]")]
    assert all(len(line) <= 100 for line in tables)
    assert len(tables) > 12
    for head in ("bits/byte", "perplexity", "F1", "exact", "tokens in", "cost", "s/answer", "tok/s"):
        assert any(head in line for line in tables), head
    assert sum("large *" in line for line in lines) == 2
    assert sum("student (start)" in line for line in tables) == 2
    assert any(line.startswith("warning: small does not beat the student (start)") for line in lines)
    assert any("of 2 teachers" in line for line in lines)
    assert "large: answers, 5" in done.err.splitlines()
    assert "\x1b" not in done.out + done.err
    assert sorted(recipe.parent.rglob("*")) == before


def test_machines_get_one_document(limbeck: Any, recipe: Path) -> None:
    done = limbeck("teachers", "compare", recipe, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(line["name"], line["kind"]) for line in found["lines"][2:]] == [
        ("away", "teacher"),
        ("student (start)", "student"),
    ]
    assert found["lines"][2]["failed"]["reason"] == "MODEL_INVALID"
    assert {line["name"]: line["picked"] for line in found["lines"]}["large"] is True
    assert found["figure"] == "bits_per_byte"
    assert all(line["bits_per_byte"]["rows"] == 6 for line in found["lines"] if line["failed"] is None)


def test_where_every_teacher_fails_the_exit_code_is_that_of_the_reason(limbeck: Any, recipe: Path) -> None:
    text = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in text if "large" not in line and "small" not in line))
    done = limbeck("teachers", "compare", recipe)
    assert done.code == 2
    assert "A model cannot be used here. [MODEL_INVALID]" in done.err
    assert "recipe.yaml:2:39: teachers.away.model: './away' is not there" in done.err
    assert "student" not in done.err, "nothing more is asked"


def test_a_recipe_without_a_teacher_is_told_what_to_add(limbeck: Any, recipe: Path, tiny_student: Path) -> None:
    parts = [f"student: {{model: {tiny_student}}}", "data: {path: rows.jsonl}", "losses: [{plugin: cross_entropy}]"]
    recipe.write_text("\n".join([*parts, "output: out"]))
    done = limbeck("teachers", "compare", recipe)
    assert done.code == 2
    assert "there is no teacher to compare (add teachers: {NAME: {plugin: …}, …})" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_closes_the_teacher(recipe: Path, tmp_path: Path, number: int, code: int) -> None:
    site = tmp_path / "site"
    info = site / "slow_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "slow_plugin.py").write_text(SLOW)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck.plugins]\nslow = slow_plugin\n")
    text = recipe.read_text().splitlines(keepends=True)
    text[2:5] = ["  large: {plugin: slow}\n"]
    recipe.write_text("".join(text))
    command = [sys.executable, "-m", "limbeck.cli.main", "teachers", "compare", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        said = ""
        until = time.monotonic() + 100
        while "waiting" not in said and time.monotonic() < until:
            said += process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    said += err
    assert process.returncode == code
    assert "closed" in said
    assert "nothing was written" in said
    assert "Traceback" not in said
    assert out == ""
