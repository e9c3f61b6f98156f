"""The distribution: what is in the wheel, what importing costs, layers of the rooms, protos, the public version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("torch", "transformers", "accelerate", "datasets", "safetensors", "vllm")


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "what",
    [
        "import limbeck",
        "import limbeck.interfaces, limbeck.hookspecs, limbeck.report, limbeck.signals",
        "from limbeck.plugins import load_plugins; load_plugins()",
        "from pathlib import Path; from limbeck.plugins import load_plugins; from limbeck.recipe import load_recipe\n"
        "load_recipe(Path('examples/demo/recipe.yaml'), load_plugins())",
        "import sys; from limbeck.cli.main import main; sys.argv = ['limbeck', '--help']\n"
        "try: main()\nexcept SystemExit: pass",
        "import sys; from limbeck.cli.main import main; sys.argv = ['limbeck', 'plugins']\n"
        "try: main()\nexcept SystemExit: pass",
    ],
    ids=["limbeck", "ground floor", "discovery", "recipe", "help", "plugins"],
)
def test_nothing_heavy_is_imported(what: str) -> None:
    check = f"\nimport sys\nprint('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    assert python(f"import os; os.chdir({str(ROOT)!r})\n{what}{check}").splitlines()[-1] == "HEAVY []"


def test_rooms_import_only_from_rooms_below() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_room_is_in_the_layers() -> None:
    layers = " ".join(PROJECT["tool"]["importlinter"]["contracts"][0]["layers"])
    rooms = {
        path.stem
        for path in (ROOT / "engine" / "limbeck").iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    } - {"__init__", "__main__"}
    assert rooms == set(re.findall(r"limbeck\.(\w+)", layers))


def test_the_wheel_holds_types_page_and_every_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    _copy_source(source)
    done = subprocess.run([*command, "--wheel-dir", tmp_path, source], capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in done.stderr or "Cannot import 'setuptools" in done.stderr:
        pytest.skip("setuptools is not installed: .ci/run builds the wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "report/page.html", "report/page.css", "v1/event_pb2.pyi"):
        assert f"limbeck/{name}" in held
    engine = ROOT / "engine"
    assert {str(path.relative_to(engine)) for path in engine.rglob("*.py")} <= held
    assert not [name for name in held if name.startswith(("tests/", "plugins/", "examples/"))]


def _copy_source(target: Path) -> None:
    import shutil

    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    shutil.copytree(
        ROOT / "engine", target / "engine", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.partial")
    )


def test_the_version_is_one() -> None:
    import limbeck

    assert limbeck.__version__ == PROJECT["project"]["version"]
    assert f"[{limbeck.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_base_dependencies_are_light() -> None:
    names = {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names.isdisjoint(HEAVY)


def test_generated_protos_are_those_of_the_contract(tmp_path: Path) -> None:
    interpreter = os.environ.get("LIMBECK_PROTO_PYTHON")
    if not interpreter:
        pytest.skip("LIMBECK_PROTO_PYTHON names no interpreter with grpcio-tools==1.71.2; .ci/run does")
    script = ROOT / "protos" / "generate.sh"
    subprocess.run(["bash", script, tmp_path], check=True, env={**os.environ, "PYTHON": interpreter})
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*.py*")}
    assert made
    committed = ROOT / "engine"
    assert made == {path.relative_to(committed): path.read_bytes() for path in committed.rglob("*_pb2*.py*")}


def test_the_package_for_typescript_has_the_licence() -> None:
    assert (ROOT / "clients" / "typescript" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
