"""The pre-flight tells every problem at once, each at its place: of the recipe, or of the row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import TeacherPlugin
from limbeck.plugins import Entry, Registry, load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.findings import Preflight
from limbeck.runs.preflight import check
from limbeck.testing.tiny import tiny_model_folder
from limbeck_echo.config import EchoConfig

PARTS = {
    "teacher": "{plugin: transformers, model: teacher}",
    "student": "{from: teacher}",
    "data": "{path: rows.jsonl, holdout: 0, max_length: 64}",
    "losses": "[{plugin: forward_kl, top_k: 8}]",
    "output": "out",
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
BAD_ROWS = [("bad.jsonl", 2, "compltion"), ("bad.jsonl", 3, None), ("bad.jsonl", 4, "completion")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_teacher: Path) -> Path:
    """A project with model folders, whole and broken, and rows, good and bad."""
    here = tmp_path_factory.mktemp("project").resolve()
    for name in ("teacher", "pointer", "no-config", "no-weights", "no-template"):
        shutil.copytree(tiny_teacher, here / name)
    tiny_model_folder(here / "other", data / "tok_b")
    (here / "pointer" / "model.safetensors").write_text(LFS)
    (here / "no-config" / "config.json").unlink()
    (here / "no-weights" / "model.safetensors").unlink()
    settings = json.loads((here / "no-template" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (here / "no-template" / "tokenizer_config.json").write_text(json.dumps(settings))
    (here / "no-template" / "chat_template.jinja").unlink(missing_ok=True)
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    (here / "bad.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compltion": "d"}\nno JSON\n'
        '{"prompt": "e", "completion": ""}\n'
    )
    (here / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (here / "bad-prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    (here / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (here / "nothing.jsonl").touch()
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    return here


@pytest.fixture
def look(models: Path) -> Callable[..., Preflight]:
    """Check the small recipe with some parts changed; None leaves one out."""

    def call(*, registry: Registry | None = None, **changes: str | None) -> Preflight:
        parts = {**PARTS, **changes}
        recipe = models / "recipe.yaml"
        recipe.write_text("".join(f"{name}: {value}\n" for name, value in parts.items() if value is not None))
        registry = registry or load_plugins()
        return check(load_recipe(recipe, registry), registry)

    return call


def places(problems: list[Problem], models: Path) -> list[tuple[str, int | None, str | None]]:
    return [(str(Path(p.file or "").relative_to(models)), p.line, p.field) for p in problems]


def told(found: Preflight, models: Path) -> list[tuple[str, int | None, str | None]]:
    return places([problem for _, problem in found.problems], models)


R = "recipe.yaml"
# what is changed of the recipe; every problem there must be, as (file, line, field)
MANY: dict[str, tuple[dict[str, str | None], list[tuple[str, int | None, str | None]]]] = {
    "folder, layers, rows, top_k, holdout": (
        {
            "student": "{from: teacher, layers: [0, 9]}",
            "data": "{path: [rows.jsonl, bad.jsonl], holdout: 70, max_length: 64}",
            "losses": "[{plugin: forward_kl, top_k: 5000}, {plugin: hidden_mse, layers: [[3, 77]]}]",
            "signals": "{source: online}",
            "output": "full",
        },
        [
            (R, 5, "output"),
            (R, 4, "losses[0].top_k"),
            (R, 4, "losses[1].layers"),
            (R, 3, "data.holdout"),
            *BAD_ROWS,
            (R, 2, "student.layers"),
            (R, 4, "losses[1].layers"),
        ],
    ),
    "missing files beside rows": (
        {"data": "{path: [bad.jsonl, gone.jsonl], chat_template: gone.jinja, max_length: 64}", "output": "full"},
        [(R, 3, "data.path[1]"), (R, 3, "data.chat_template"), (R, 5, "output"), *BAD_ROWS],
    ),
    "a missing teacher beside the holdout": (
        {
            "teacher": "{plugin: transformers, model: ./gone}",
            "data": "{generator: {plugin: prompts, path: prompts.jsonl}, holdout: 2, max_length: 64}",
            "output": "rows.jsonl/run",
        },
        [(R, 1, "teacher.model"), (R, 5, "output"), (R, 3, "data.holdout")],
    ),
    "the same missing path in four fields": (
        {
            "teacher": "{plugin: transformers, model: ./gone}",
            "student": "{model: ./gone}",
            "data": "{path: ./gone, chat_template: ./gone, max_length: 64}",
        },
        [(R, 1, "teacher.model"), (R, 2, "student.model"), (R, 3, "data.path"), (R, 3, "data.chat_template")],
    ),
    "another tokenizer, a prompt, the folder": (
        {
            "student": "{model: other}",
            "data": "{generator: {plugin: prompts, path: bad-prompts.jsonl}, max_length: 64}",
            "output": "rows.jsonl",
        },
        [(R, 5, "output"), (R, 2, "student.model"), ("bad-prompts.jsonl", 2, "prompt")],
    ),
    "a pointer for weights, a file without rows": (
        {"student": "{model: pointer}", "data": "{path: [rows.jsonl, nothing.jsonl, empty], max_length: 64}"},
        [(R, 3, "data.path[1]"), (R, 3, "data.path[2]"), (R, 2, "student.model")],
    ),
    "a model without config.json": (
        {"student": "{model: no-config}", "data": "{path: bad.jsonl, max_length: 64}"},
        [*BAD_ROWS, (R, 2, "student.model")],
    ),
    "a teacher without weights": (
        {"teacher": "{plugin: transformers, model: no-weights}", "data": "{path: nothing.jsonl, max_length: 64}"},
        [(R, 1, "teacher.model"), (R, 3, "data.path")],
    ),
    "a model that is a file": (
        {"teacher": "{plugin: transformers, model: ./rows.jsonl}", "student": "{model: ./bad.jsonl}"},
        [(R, 1, "teacher.model"), (R, 2, "student.model")],
    ),
    "a config that is none, a hub id that is none": (
        {"student": "{config: rows.jsonl, tokenizer: no-such/tokenizer}"},
        [(R, 2, "student.tokenizer"), (R, 2, "student.config")],
    ),
    "a family that is none, no preferences": (
        {"student": "{config: {model_type: lama}}", "losses": "[{plugin: contrastive}, {plugin: cross_entropy}]"},
        [(R, 4, "losses[0]"), (R, 2, "student.config")],
    ),
    "a capability that is missing": (
        {
            "teacher": "{plugin: echo, tokenizer: teacher}",
            "losses": "[{plugin: cross_entropy}, {plugin: hidden_mse, layers: [[0, 0]]}]",
            "signals": "{source: online}",
        },
        [(R, 4, "losses[1]")],
    ),
    "a generator without a teacher": (
        {
            "teacher": None,
            "student": "{model: teacher}",
            "data": "{generator: {plugin: prompts, path: bad-prompts.jsonl}, max_length: 64}",
            "losses": "[{plugin: sequence_kd}]",
            "output": "full",
        },
        [(R, 4, "output"), (R, 2, "data.generator"), ("bad-prompts.jsonl", 2, "prompt")],
    ),
    "layers of a whole student": (
        {"losses": "[{plugin: hidden_mse, layers: [[5, 0], [-2, 0]]}]", "signals": "{source: online}"},
        [(R, 4, "losses[0].layers"), (R, 4, "losses[0].layers")],
    ),
    "chat without a template": (
        {
            "teacher": "{plugin: transformers, model: no-template}",
            "data": "{generator: {plugin: prompts, path: chat.jsonl}, holdout: 3, max_length: 64}",
        },
        [(R, 3, "data.holdout"), ("chat.jsonl", 1, None)],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), MANY.values(), ids=MANY)
def test_problems_of_every_kind_come_at_once_each_at_its_place(
    look: Callable[..., Preflight], models: Path, changes: dict[str, str | None], expected: list[Any]
) -> None:
    found = look(**changes)
    assert told(found, models) == expected
    assert all(problem.column for _, problem in found.problems if problem.file == str(models / R))
    assert (models / "full" / "thesis.txt").read_text() == "mine"


def test_a_sound_recipe_has_no_problem(look: Callable[..., Preflight]) -> None:
    found = look()
    assert (found.problems, found.warnings) == ([], [])


def test_a_file_that_a_problem_is_about_is_named_in_its_message(look: Callable[..., Preflight], models: Path) -> None:
    ((_, problem),) = look(student="{model: pointer}").problems
    assert problem.message.startswith(f"{models}/pointer/model.safetensors: is no safetensors file")
    assert (problem.line, problem.column) == (2, 18)


def test_warnings_have_their_place_too(look: Callable[..., Preflight], models: Path) -> None:
    found = look(student="{model: no-template}", data="{path: rows.jsonl, holdout: 0, max_length: 9000}")
    assert places(found.warnings, models) == [(R, 3, "data.max_length"), (R, 2, "student.model")]
    assert [warning.column for warning in found.warnings] == [50, 18]


def test_what_the_recipe_leaves_out_has_the_place_of_the_field_above(look: Callable[..., Preflight]) -> None:
    (warning,) = look(data="\n  path: rows.jsonl\n  holdout: 0").warnings
    assert (warning.line, warning.column, warning.field) == (3, 1, "data.max_length")


def test_a_teacher_that_raises_is_told_with_the_rest(look: Callable[..., Preflight], models: Path) -> None:
    def broken(config: EchoConfig) -> Any:
        raise ZeroDivisionError("no teacher today")

    plugin = TeacherPlugin(name="broken", config=EchoConfig, factory=broken, summary="Broken.")
    registry = Registry((*load_plugins().entries, Entry(plugin, "teacher", "limbeck-odd", "3.1")), ())
    found = look(
        registry=registry,
        teacher="{plugin: broken, tokenizer: teacher}",
        student="{model: teacher}",
        data="{path: bad.jsonl, max_length: 64}",
    )
    assert told(found, models) == [(R, 1, "teacher"), *BAD_ROWS]
    reason, problem = found.problems[0]
    assert reason is Reason.PLUGIN_INVALID
    assert problem.message == "'broken' (limbeck-odd 3.1) raised ZeroDivisionError: no teacher today"


def test_an_error_of_a_run_has_its_place(models: Path) -> None:
    recipe = models / "run.yaml"
    recipe.write_text("".join(f"{name}: {value}\n" for name, value in PARTS.items()))
    loaded = load_recipe(recipe, load_plugins())
    problems = [
        Problem("left its range", field="losses.forward_kl.temperature"),
        Problem("is damaged", file="store.arrow", line=7),
        Problem("is damaged", file="store.arrow"),
        Problem("was 3, is 0", file=str(recipe), field="data.holdout"),
    ]
    with pytest.raises(LimbeckError) as caught, loaded.placing():
        raise LimbeckError(Reason.KNOB_INVALID, problems=problems)
    knob, row, store, changed = caught.value.problems
    assert (knob.file, knob.line, knob.column, knob.field) == (str(recipe), 4, 10, "losses[0].temperature")
    assert (row, store) == (problems[1], problems[2])
    assert (changed.message, changed.line, changed.column) == ("was 3, is 0", 3, 35)
