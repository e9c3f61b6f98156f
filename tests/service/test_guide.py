"""docs/serve.md names what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from limbeck.cli.serve import command
from limbeck.hosting.artifacts import FILES, SHELVES
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.workspace import LENT
from limbeck.plugins import load_plugins
from limbeck.recipe.teacher import load_teacher
from limbeck.service.auth import Role, read_tokens
from limbeck.service.config import Limits
from limbeck.service.metrics import Metrics
from limbeck.service.training_service import MOST_KNOBS, MOST_RECIPE

from .served import ScriptedHost

GUIDE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")


def first_cells(heading: str) -> str:
    """First cells of the table that is headed so."""
    table = re.split(rf"^\| {heading} \|", GUIDE, flags=re.M)[1].split("\n\n")[0]
    return "\n".join(line.split(" | ")[0] for line in table.splitlines()[2:])


def test_the_guide_has_every_option():
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", first_cells("option"))) == options


def test_the_guide_has_every_figure():
    metrics = Metrics()
    metrics.watch(lambda: {"t": ScriptedHost("t")})
    there = {family.name + "_total" * (family.type == "counter") for family in metrics.registry.collect()}
    assert set(re.findall(r"`(\w+)\{", first_cells("figure"))) == there


def test_the_guide_has_the_limits_and_the_roles():
    limits = Limits()
    for text in (f"{limits.tokens_in_flight:,}", f"{limits.answer_bytes >> 20} MiB", f"| {limits.streams} |"):
        assert text in GUIDE
    assert set(re.findall(r"calls of (.*?) \|", GUIDE)[0].replace(" and ", ", ").split(", ")) == {
        *("Score", "Generate", "StreamSignals", "WatchRun", "DownloadArtifact")
    }
    assert "Roles are `score`, `train` and `admin`" in GUIDE
    assert [role.name for role in sorted(Role)] == ["score", "train", "admin"]


def test_the_guide_has_the_limits_of_runs():
    runs = RunLimits()
    for text in (
        f"| runs that work at once | {runs.max_runs} (`--max-runs`) |",
        f"| runs that wait | {runs.queue} |",
        f"| runs of one client that wait or work | {runs.per_client} |",
        f"| runs that have not ended, paused ones too | {runs.unfinished} |",
        f"`--max-runs N` | runs that work at once; {runs.max_runs} where left out",
        f"`--keep-runs N` | ended runs whose folders are kept; {runs.keep_runs} where left out",
        f"| text of a recipe | {MOST_RECIPE >> 20} MiB |",
        f"| knobs of one request | {MOST_KNOBS:,} |",
        f"begins with `{LENT}`",
    ):
        assert text in GUIDE
    for name in (*FILES, *(f"{shelf}/" for shelf in SHELVES)):
        assert f"`{name}`" in GUIDE
    assert runs.keep_gib == 0


def test_the_files_of_the_guide_are_valid(tmp_path):
    teacher, tokens = (tmp_path / "teacher.yaml", tmp_path / "tokens.yaml")
    for file, text in zip((teacher, tokens), re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.M | re.S), strict=True):
        file.write_text(text)
    assert load_teacher(teacher, load_plugins()).name == "transformers"
    assert [entry.name for entry in read_tokens(tokens)] == ["ann", "ci"]
