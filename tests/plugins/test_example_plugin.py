"""The example plugin as a third party installs it: by pip, into an environment of its own."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 2}
losses:
  - plugin: total_variation
    weight: {plugin: sawtooth, low: 0.25, high: 1.0}
    temperature: {plugin: sawtooth, low: 1.0, high: 2.0, steps: 2, teeth: 1}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 8, per_device_train_batch_size: 2}
evaluation: {twin: false, samples: 1, max_new_tokens: 4}
output: out
"""
WEIGHTS = [0.25, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75, 1.0]  # two teeth of four steps over eight
TEMPERATURES = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
LOAD = """
import json, sys
from pathlib import Path
from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe, wanted
recipe = load_recipe(Path(sys.argv[1]), load_plugins())
loss = recipe.losses[0]
print(json.dumps({
    "distribution": loss.entry.distribution,
    "weight": loss.knobs["weight"].make().value(1.0, {}),
    "temperatures": wanted(recipe.losses).temperatures,
    "heavy": [name for name in ("torch", "transformers", "vllm") if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the example plugin; the packages of this one are seen, not copied."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    # site.addsitedir, not a plain path: the .pth files of an editable install must work too.
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages()]
    (own / "outer.pth").write_text("".join(lines))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path_factory.mktemp("source") / "limbeck-example-plugin"
    # pip builds in the source folder: in a copy, so that the checkout stays clean
    subprocess.run(["cp", "-r", ROOT / "examples" / "limbeck-example-plugin", source], check=True)
    done = subprocess.run([python, *install, source], check=False, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    return python


def _environment(**more: str) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own | more


def _json(*command: str | Path) -> dict[str, object]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_listed_beside_the_built_ins(python):
    listing = _json(python, "-m", "limbeck.cli.main", "plugins", "--json")
    mine = {(row["kind"], row["name"]) for row in listing["plugins"] if row["distribution"] == "limbeck-example-plugin"}
    assert mine == {("loss", "total_variation"), ("scheduler", "sawtooth")}
    assert listing["observers"] == ["limbeck-example-plugin:example"]
    assert not listing["failures"]
    assert not listing["clashes"]
    assert {"name": "forward_kl", "kind": "loss"}.items() <= next(
        row for row in listing["plugins"] if row["name"] == "forward_kl"
    ).items()


def test_a_recipe_uses_its_loss_and_scheduler_by_name(python, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    found = _json(python, "-c", LOAD, tmp_path / "recipe.yaml")
    assert found == {
        "distribution": "limbeck-example-plugin",
        "weight": 1.0,
        "temperatures": [1.0, 2.0],
        "heavy": [],
    }


def test_a_run_trains_by_its_loss_on_its_schedule_and_tells_its_observer(python, tmp_path, tiny_teacher):
    rows = [{"prompt": f"What is {n} and {n}? ", "completion": f"It is {2 * n}."} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("model: teacher", f"model: {tiny_teacher}"))
    log = tmp_path / "observed.jsonl"
    command = [python, "-m", "limbeck.cli.main", "run", tmp_path / "recipe.yaml"]
    more = _environment(LIMBECK_EXAMPLE_LOG=str(log))
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=more, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    steps = [event["metrics"]["values"] for event in events if "metrics" in event]
    assert [step["knobs.losses.total_variation.weight"] for step in steps] == WEIGHTS
    assert [step["knobs.losses.total_variation.temperature"] for step in steps] == TEMPERATURES
    for step, weight, temperature in zip(steps, WEIGHTS, TEMPERATURES, strict=True):
        distance = step["losses.total_variation"]
        assert 0 < distance <= temperature**2  # of a variation in [0, 1], the knob's square in it
        assert step["loss"] == pytest.approx(weight * distance + 0.1 * step["losses.cross_entropy"], rel=1e-5)

    curves = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["history"]["series"]["train"]
    assert curves["losses.total_variation"]["steps"] == list(range(1, 9))
    assert curves["losses.total_variation"]["values"] == [step["losses.total_variation"] for step in steps]
    assert "losses.total_variation.weight</figcaption>" in (tmp_path / "out" / "report" / "index.html").read_text()

    finished = [(int(e["sequence"]), e["stage"]) for e in events if "stage_finished" in e]
    assert [stage for _, stage in finished] == ["prepare", "label", "train", "evaluate", "report"]
    heard = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["sequence"], line["stage"]) for line in heard] == finished


def test_it_is_not_installed_here():
    done = subprocess.run([sys.executable, "-c", "import limbeck_example"], check=False, capture_output=True, text=True)
    assert done.returncode != 0  # so the tests above speak of the new environment
