"""What a recipe from the network may name: C50 in every field that takes a path, and every way around it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting import workspace as workspace_module
from limbeck.hosting.borders import Borders, is_path
from limbeck.hosting.workspace import Workspace, hub_cache
from limbeck.plugins import load_plugins
from limbeck.recipe import Recipe

REGISTRY = load_plugins()
# every field that takes a path, with VALUE in its place
FIELDS = {
    "data.path": ("data", "data: {path: VALUE}"),
    "data.path of several": ("data", "data: {path: [good.jsonl, VALUE]}"),
    "data.chat_template": ("data", "data: {path: good.jsonl, chat_template: VALUE}"),
    "generator": ("data", "data: {generator: {plugin: prompts, path: VALUE}}"),
    "student.model": ("student", "student: {model: VALUE}"),
    "student.config": ("student", "student: {config: VALUE, tokenizer: tok}"),
    "student.tokenizer": ("student", "student: {config: {model_type: llama}, tokenizer: VALUE}"),
    "a string of student.config": ("student", "student: {config: {model_type: llama, tokenizer_file: VALUE}}"),
    "teacher.model": ("teacher", "teacher: {plugin: transformers, model: VALUE}"),
    "teacher.tokenizer": ("teacher", "teacher: {plugin: echo, tokenizer: VALUE}"),
    "a teacher that is not picked": (
        "teacher",
        "teachers: {a: {plugin: echo, tokenizer: tok}, b: {plugin: echo, tokenizer: VALUE}}\nteacher: a",
    ),
    "teacher.token_file": ("teacher", "teacher: {plugin: limbeck, address: 'x:1', teacher: t, token_file: VALUE}"),
    "teacher.tls_ca": ("teacher", "teacher: {plugin: limbeck, address: 'x:1', teacher: t, tls_ca: VALUE}"),
    "vllm.lora": ("teacher", "teacher: {plugin: vllm, model: tok, lora: VALUE}"),
    "a folder that is made": ("teacher", "teacher: {plugin: openai, model: m, cache: VALUE}"),
    "output": ("output", "output: VALUE"),
}
READS = {"data.path", "data.path of several", "data.chat_template", "generator"}  # those that take a file of rows
LINES = (Path(__file__).parents[1] / "data" / "C50" / "paths.txt").read_text().splitlines()
GOOD = ("inside/rows.jsonl", "inside//rows.jsonl")


@pytest.fixture
def root(tmp_path: Path, data: Path) -> Path:
    """The root of C50, a link, with its links made."""
    shutil.copytree(data / "C50", tmp_path / "c")
    for line in (data / "C50" / "links.txt").read_text().splitlines()[1:]:
        link, target = line.split(" -> ")
        (tmp_path / "c" / link).symlink_to(target)
    root = tmp_path / "c" / "root"
    shutil.copytree(data / "tok_a", root / "tok")
    (root / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return root


def recipe(field: str = "output", written: str = "runs/a") -> str:
    parts = {
        "teacher": "teacher: {plugin: echo, tokenizer: tok}",
        "student": "student: {config: {model_type: llama}}",
        "data": "data: {path: good.jsonl}",
        "losses": "losses: [{plugin: forward_kl, top_k: 4}]",
        "output": "output: runs/a",
    }
    name, text = FIELDS[field]
    parts[name] = text.replace("VALUE", json.dumps(written).replace("\\\\0", "\\0"))
    return "\n".join(parts.values()) + "\n"


def load(root: Path, text: str, *read: Path) -> Recipe:
    return Workspace(root, read).load(text, REGISTRY, None)


def refused(root: Path, text: str, *read: Path) -> tuple[Problem, ...]:
    with pytest.raises(LimbeckError) as caught:
        load(root, text, *read)
    assert caught.value.reason is Reason.RECIPE_INVALID
    said = f"{caught.value} {caught.value.problems!r}"
    for secret in (str(root.parent), str(root.resolve()), 'secret"', "completion"):
        assert secret not in said
    return caught.value.problems


# ---------------------------------------------------------------------------------------------------------------- C50


BAD = [(field, line) for field in FIELDS for line in LINES if line not in GOOD]
BAD.remove(("a string of student.config", r"inside/rows.jsonl\0.txt"))  # a text, which may hold any character


@pytest.mark.parametrize(("field", "line"), BAD)
def test_c50_a_path_that_leads_outside_is_refused_the_same_whatever_is_there(root, field, line):
    text = recipe(field, line)
    first = refused(root, text)
    assert len(first) == 1
    assert "server's workspace" in first[0].message
    (root.parent / "outside" / "secret.jsonl").unlink()
    assert refused(root, text) == first
    shutil.rmtree(root.parent / "outside")
    assert refused(root, text) == first
    (root.parent / "outside" / "secret.jsonl").mkdir(parents=True)  # a folder could be a model
    assert refused(root, text) == first


@pytest.mark.parametrize("line", GOOD)
@pytest.mark.parametrize("field", sorted(READS))
def test_c50_the_two_ways_to_write_what_is_inside_are_read(root, field, line):
    found = load(root, recipe(field, line))
    assert (root / "inside" / "rows.jsonl").resolve() in {use.resolved for use in found.paths}


def test_c50_the_lines_are_those_of_the_case():
    assert set(GOOD) < set(LINES)
    assert len(LINES) == 10
    assert any("\\0" in line for line in LINES)


# -------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "written",
    [
        *("..", "inside/..", "../c/root/inside/rows.jsonl", "leakdir/../real/inside/rows.jsonl", "/", "//etc/hostname"),
        *(".limbeck/runs.sqlite", ".run-0123.yaml", "inside/../.run-0123.yaml", "hidden/x", "FILE:/etc/hostname"),
        *("inside/rows.jsonl\n", "inside/\x7f", "~root/x", "~", "unix:/run/docker.sock", "http://x/inside/rows.jsonl"),
        *("x" * 300, "x" * 10_000, "a/" * 3000 + "x"),
    ],
)
def test_no_other_way_leads_outside_or_to_what_is_hidden(root, written):
    (root / ".limbeck").mkdir()
    (root / ".limbeck" / "x").write_text("SECRET")
    (root / "hidden").symlink_to(".limbeck")
    (root / ".run-0123.yaml").write_text("SECRET")
    if written not in ("inside/..",):  # which is the workspace: no file, but nothing of it is told
        (problem,) = refused(root, recipe("data.path", written))
        assert problem.message.startswith("must lie in the server's workspace")
    (problem,) = refused(root, recipe("output", written))
    assert "workspace" in problem.message


def test_a_root_that_is_a_link_takes_absolute_paths_by_both_of_its_names(root):
    for folder in (root, root.resolve()):
        found = load(root, recipe("data.path", str(folder / "inside" / "rows.jsonl")))
        assert [use.resolved for use in found.paths if use.field == "data.path"] == [
            (root / "inside" / "rows.jsonl").resolve()
        ]


def test_links_that_stay_inside_are_followed(root):
    (root / "same").symlink_to("inside")
    (root / "absolute").symlink_to(root / "inside" / "rows.jsonl")
    load(root, recipe("data.path", "same/rows.jsonl"))
    load(root, recipe("data.path", "absolute"))
    (root / "loop").symlink_to("loop")
    refused(root, recipe("data.path", "loop"))


def test_folders_that_may_be_read_are_read_and_not_written(root, tmp_path):
    other = tmp_path / "more data"
    other.mkdir()
    (other / "rows.jsonl").write_text("{}\n")
    (other / "out").symlink_to(root.parent / "outside")
    (tmp_path / "by-link").symlink_to(other)
    (root / "lent").symlink_to(other)
    for folder in (other, tmp_path / "by-link"):
        for written in (f"{folder}/rows.jsonl", "lent/rows.jsonl"):
            load(root, recipe("data.path", written), folder)
        refused(root, recipe("data.path", f"{folder}/out/secret.jsonl"), folder)
        refused(root, recipe("data.path", f"{folder}/../c/outside/secret.jsonl"), folder)
        refused(root, recipe("output", f"{folder}/run"), folder)
        refused(root, recipe("a folder that is made", f"{folder}/cache"), folder)
    (problem,) = refused(root, recipe("data.path", f"{other}/rows.jsonl"))
    assert problem.message.startswith("must lie in")


def test_an_output_is_a_folder_of_its_own(root):
    (root / "runs" / "other").mkdir(parents=True)
    (root / "runs" / "other" / "run.json").write_text("{}")
    for written, why in (
        (".", "not the workspace itself"),
        ("inside/..", "not the workspace itself"),
        ("runs/other/inner", "in the folder of another run"),
        ("runs/other/student/x", "in the folder of another run"),
        (".hidden", "no part of it hidden"),
        ("runs/.x/y", "no part of it hidden"),
    ):
        (problem,) = refused(root, recipe("output", written))
        assert why in problem.message
    (problem,) = refused(root, recipe("a folder that is made", "runs/other/cache"))
    assert "in the folder of another run" in problem.message
    assert load(root, recipe("output", "runs/new")).output == root.resolve() / "runs" / "new"
    assert load(root, recipe("output", "runs/other")).output == root.resolve() / "runs" / "other"


def test_a_folder_with_a_link_that_leads_outside_is_refused(root):
    shutil.copytree(root / "tok", root / "model")
    (root / "model" / "sub").mkdir()
    (root / "model" / "sub" / "weights").symlink_to(root.parent / "outside" / "secret.jsonl")
    (problem,) = refused(root, recipe("teacher.tokenizer", "model"))
    assert "'sub/weights'" in problem.message


def test_a_link_that_is_swapped_is_seen_at_the_next_look(root):
    (root / "swapped").symlink_to("inside")
    text = recipe("data.path", "swapped/rows.jsonl")
    load(root, text)
    (root / "swapped").unlink()
    (root / "swapped").symlink_to(root.parent / "outside")
    refused(root, text)
    file = Workspace(root).recipe_file("0123")
    file.write_text(text)
    with pytest.raises(LimbeckError, match="workspace"):
        Workspace(root).reload(file, REGISTRY)
    (root / "swapped").unlink()
    (root / "swapped").symlink_to("inside")
    (root / "inside" / "rows.jsonl").unlink()  # a run that goes on may need it no more
    assert Workspace(root).reload(file, REGISTRY).path == file


# ------------------------------------------------------------------------------------------- what is marked as no path


@pytest.mark.parametrize(
    ("text", "so"),
    [
        *(("/etc/hostname", True), ("/etc/host name", True), ("a/../../b", True), ("..", True), ("~/x", True)),
        *(
            ("file:/x", True),
            ("unix:/x", True),
            ("/no_think", False),
            ("/think and /no_think", False),
            ("and/or", False),
        ),
        *(("https://host/v1/../x", False), ("a.. b", False), ("", False), (" ", False), ("losses/kl", False)),
    ],
)
def test_texts_that_look_like_paths(text, so):
    assert is_path(text) == so


def test_a_text_names_nothing_that_is_hidden(root):
    (root / ".limbeck").mkdir()
    (root / ".limbeck" / "x").write_text("SECRET")
    (root / ".run-0123.yaml").write_text("SECRET")
    strays = Workspace(root).borders.strays
    assert all(map(strays, (".limbeck", ".limbeck/x", "./.limbeck/x", "inside/../.limbeck/x", ".run-0123.yaml")))
    assert not any(map(strays, (".", ".5", ".limbeck/y", "inside/rows.jsonl", "of .limbeck", "... and so on")))


def test_a_variable_of_the_server_s_environment_must_be_lent(root):
    text = recipe().replace("echo, tokenizer: tok", "openai, model: m, key_env: AWS_SECRET_ACCESS_KEY")
    (problem,) = refused(root, text)
    assert problem.field == "teacher.key_env"
    load(root, text.replace("AWS_SECRET_ACCESS_KEY", "LIMBECK_KEY_OPENAI"))


def test_a_model_of_the_hub_must_have_been_fetched(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    text = recipe("student.model", "org/name")
    (problem,) = refused(root, text)
    assert "no model that it has fetched" in problem.message
    (tmp_path / "hub" / "models--org--name" / "snapshots" / "abc").mkdir(parents=True)
    assert load(root, text).student.model == "org/name"
    (root / "org" / "name").mkdir(parents=True)
    assert load(root, text).student.model == str(root.resolve() / "org" / "name")


def test_the_hub_s_cache_is_where_the_library_keeps_it(monkeypatch, tmp_path):
    import importlib

    from huggingface_hub import constants

    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    try:
        for given in ((), *((name,) for name in names), names[2:]):
            for name in names:
                monkeypatch.delenv(name, raising=False)
            for name in given:
                monkeypatch.setenv(name, str(tmp_path / name))
            importlib.reload(constants)
            assert str(hub_cache()) == constants.HF_HUB_CACHE
    finally:
        monkeypatch.undo()
        importlib.reload(constants)


# ----------------------------------------------------------------------------------------------------------- problems


def test_a_text_from_the_network_has_only_so_many_values(root):
    (problem,) = refused(root, "a: [" + "b, " * 21_000 + "]")
    assert "more than 10,000 values" in problem.message


def test_recipes_are_read_one_after_the_other_and_only_so_many_wait(root, monkeypatch):
    workspace, at_work, most = Workspace(root), [], []
    plain = workspace.load

    def load(*args):
        at_work.append(1)
        most.append(len(at_work))
        found = plain(*args)
        at_work.pop()
        return found

    monkeypatch.setattr(workspace, "load", load)
    monkeypatch.setattr(workspace_module, "MOST_WAITING", 3)

    async def check():
        asked = [workspace.load_aside(recipe(), REGISTRY, None) for _ in range(5)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(check())
    assert [isinstance(one, Recipe) for one in found] == [True, True, True, False, False]
    assert found[-1].reason is Reason.QUOTA_EXCEEDED
    assert set(most) == {1}


def test_every_problem_is_told_at_once_with_its_place_and_nothing_is_written(root):
    before = sorted(os.listdir(root))
    text = recipe("data.path", "gone.jsonl").replace("runs/a", "../out").replace("top_k: 4", "top_k: none")
    problems = refused(root, text)
    assert {(problem.file, problem.line, problem.field) for problem in problems} == {
        ("recipe", 3, "data.path"),
        ("recipe", 4, "losses[0].top_k"),
        ("recipe", 5, "output"),
    }
    missing = next(problem for problem in problems if problem.line == 3)
    assert missing.message == "'gone.jsonl' is not there; it means gone.jsonl"
    assert missing.hint == "relative paths are relative to the server's workspace"
    assert sorted(os.listdir(root)) == before


def test_a_text_that_is_no_yaml_is_told_as_such(root):
    (problem,) = refused(root, "a: [")
    assert (problem.file, problem.line) == ("recipe", 1)
    refused(root, "- a")
    refused(root, "")


def test_what_clients_are_told_is_relative_to_the_workspace(root):
    workspace = Workspace(root)
    real = root.resolve()
    for path in (real, root):
        assert workspace.public(f"in {path}/inside/a.b and {path}: ok") == "in inside/a.b and .: ok"
    assert workspace.public("see /home/op/models/x.bin") == "see …/x.bin"
    assert workspace.public(f"{real}2/x/y") != "2/x/y"
    assert workspace.public(f"{workspace.recipe_file('0a' * 16)}:3:1: data: odd") == "recipe:3:1: data: odd"
    assert workspace.public.file(str(real)) == "."
    for path in (real, root):
        assert workspace.public.file(f"{path}/runs/a (1)/b c/d") == "runs/a (1)/b c/d"
        assert workspace.public.file(f"{path}/../x/d") == "…/d"
        assert workspace.problem(Problem("m", file=f"{path}/inside/rows")).file == "inside/rows"
    for name in ("/etc/hostname", "/etc/a b/hostname", "../etc/hostname", "a/../../hostname", "~/hostname"):
        assert workspace.public.file(name) == "…/hostname"
    placed = workspace.problem(Problem(f"{real}/x is bad", file=str(real / "inside" / "rows.jsonl"), line=3))
    assert placed == Problem("x is bad", file="inside/rows.jsonl", line=3)
    assert workspace.problem(Problem("m", field=f"{real}/x", hint=f"{real}/y")) == Problem("m", field="x", hint="y")
    assert workspace.problem(Problem("m", file=str(workspace.recipe_file("9")))).file == "recipe"
    assert workspace.values({"a": [f"{real}/b", 3, None]}) == {"a": ["b", 3, None]}


def test_a_recipe_is_the_same_as_from_a_file_of_the_workspace(root):
    from limbeck.recipe import load_recipe

    workspace = Workspace(root)
    text = recipe("data.path", "inside/rows.jsonl")
    loaded = workspace.load(text, REGISTRY, "0123")
    workspace.recipe_file("0123").write_text(text)
    assert load_recipe(workspace.recipe_file("0123"), REGISTRY) == loaded


def test_a_folder_is_searched_for_links_only_so_far(tmp_path, monkeypatch):
    from limbeck.hosting import borders

    monkeypatch.setattr(borders, "MOST_ENTRIES", 5)
    for number in range(10):
        (tmp_path / f"f{number}").touch()
    assert Borders(tmp_path, ()).leak(tmp_path) is None
