"""A recipe whose teacher is another Limbeck server: the same signals and student as with the teacher in process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from limbeck.testing.tiny import tiny_model_folder

from .conftest import command, environment

TEACHERS = {
    "local": "{plugin: transformers, model: teacher}",
    "remote": '{plugin: limbeck, address: "ADDRESS", teacher: tiny}',
}
RECIPE = """\
teacher: TEACHER
student: {model: student}
data:
  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 12}
  max_length: 500
losses:
  - {plugin: forward_kl, top_k: 16, temperature: 2.0}
signals: {source: SOURCE}
training: {learning_rate: 1.0e-3, num_train_epochs: 1, per_device_train_batch_size: 4}
output: run
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    tiny_model_folder(folder / "teacher", data / "tok_a", layers=4, seed=1, scale=3.0)
    tiny_model_folder(folder / "student", data / "tok_a", layers=2, seed=2)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {i} things"}}\n' for i in range(12)))
    (folder / "tiny.yaml").write_text("plugin: transformers\nmodel: teacher\n")
    return folder


@pytest.fixture(scope="module")
def address(project: Path):
    with (project / "serve.log").open("wb") as log:
        serve = command("serve", "--teacher", f"tiny={project / 'tiny.yaml'}", "--listen", "127.0.0.1:0")
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log, text=True, env=environment())
    assert server.stdout is not None
    with server.stdout as lines:
        first = lines.readline()
    assert first.startswith("listening on "), (project / "serve.log").read_text()
    yield first.split()[-1]
    server.terminate()
    assert server.wait(60) == 0


def contents(run: Path) -> dict[str, bytes]:
    """What must be the same: captured signals and the student's weights."""
    files = [*run.glob("signals/train/*.arrow"), *run.glob("student/*.safetensors")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("source", ["cached", "online"])
def test_a_remote_teacher_makes_the_student_that_the_same_teacher_makes_in_process(source, project, address, limbeck):
    found = {}
    for where, teacher in TEACHERS.items():
        recipe = project / f"{where}-{source}.yaml"
        text = RECIPE.replace("TEACHER", teacher).replace("SOURCE", source).replace("ADDRESS", address)
        recipe.write_text(text.replace("output: run", f"output: {where}-{source}"))
        done = limbeck("run", recipe, cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        found[where] = contents(project / f"{where}-{source}")
    assert any(name.endswith(".safetensors") for name in found["local"])
    assert any(name.endswith(".arrow") for name in found["local"]) == (source == "cached")
    assert found["remote"] == found["local"]
