"""Real runs of a real server: every kind of event arrives, without paths of its machine, and its queue has an end."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.client.served import ROOT, Process

from limbeck.client import Client, Event, connect
from limbeck.client.records import state_of
from limbeck.errors import LimbeckError, Reason
from limbeck.hosting.limits import RunLimits
from limbeck.runs.events import to_json

PLUGIN = '''\
import logging
from pathlib import Path
from limbeck.hookspecs import hookimpl
from limbeck.interfaces import LossPlugin, Needs, TokenLossConfig

class Loud:
    """Says something about paths, and fails once there is a checkpoint, as long as a file says so."""

    needs = Needs("top_k")

    def __call__(self, student, teacher, knobs):
        here = Path.cwd()
        logging.getLogger("loud").warning("read %s and /usr/lib/elsewhere/words.txt", here / "rows.jsonl")
        if (here / "fail").exists() and list(here.glob("runs/all/checkpoints/student/*/manifest.json")):
            raise RuntimeError(f"no {here}/words here, nor /usr/lib/elsewhere/words.txt")
        return (student.on_support - teacher.on_support).square().sum(-1)

@hookimpl
def limbeck_losses():
    yield LossPlugin(name="loud", kind="token", config=TokenLossConfig, needs=lambda config: Needs("top_k"),
                     factory=lambda config, context: Loud(), summary="says much")
'''
RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {model: student}
data: {path: rows.jsonl, holdout: 4, max_length: 40, on_bad_row: quarantine}
losses:
  - {plugin: loud, top_k: 8, temperature: {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 4, save_steps: 4}
evaluation: {twin: false, samples: 1, max_new_tokens: 4}
output: runs/OUTPUT
"""
CLIENTS = ("ann", "ben", "cy")


@dataclass
class Place:
    """A server, its workspace, and clients by their names."""

    workspace: Path
    clients: dict[str, Client]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Place]:
    """A server with a plugin of its own, a teacher, a student with another chat template, and rows."""
    from limbeck.testing.tiny import tiny_model_folder

    folder = tmp_path_factory.mktemp("real").resolve()
    info = folder / "site" / "limbeck_loud-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "limbeck_loud.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: limbeck-loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck.plugins]\nloud = limbeck_loud\n")
    workspace = folder / "workspace"
    tiny_model_folder(workspace / "teacher", data / "tok_a", layers=4, seed=1, scale=3.0)
    tiny_model_folder(workspace / "student", data / "tok_a", layers=2, seed=2)
    (workspace / "student" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    rows = [{"prompt": f"What is {n} plus {n}?\n", "completion": f"It is {2 * n}."} for n in range(24)]
    rows[3]["completion"] = "It is more than there is room for. " * 3
    lines = [*map(json.dumps, rows), '{"prompt": 3}']
    (workspace / "rows.jsonl").write_text("\n".join(lines) + "\n")
    entries = []
    for name in CLIENTS:
        (folder / name).write_text(name)
        entries.append({"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest(), "role": "train"})
    (folder / "tokens.yaml").write_text(json.dumps({"tokens": entries}))
    options = (f"--workspace={workspace}", f"--tokens={folder / 'tokens.yaml'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
        process = Process(*options, log=folder / "log")
    with process:
        clients = {name: connect(process.address, token_file=folder / name) for name in CLIENTS}
        yield Place(workspace, clients)
        for client in clients.values():
            client.close()


def watch(client: Client, run_id: str, after: int = 0, until: Callable[[Event], bool] = lambda _: False) -> list[Event]:
    """Events to the end of the run, or until one is there."""
    found = []
    with closing(client.watch(run_id, after)) as events:
        for event in events:
            found.append(event)
            if until(event):
                break
    return found


def kinds(events: list[Event]) -> set[str]:
    return {str(event.WhichOneof("kind")) for event in events}


def test_every_kind_of_event_arrives_and_none_has_a_path_of_the_server(place):
    client, trouble = place.clients["ann"], place.workspace / "fail"
    trouble.touch()
    run_id = client.create_run(RECIPE.replace("OUTPUT", "all")).run_id
    events = watch(client, run_id)
    assert state_of(events[-1].state_changed.state) == "failed"
    trouble.unlink()
    client.set_knobs(run_id, {"losses.cross_entropy.weight": 0.2})
    client.resume(run_id)
    events += watch(client, run_id, len(events))
    assert state_of(events[-1].state_changed.state) == "succeeded"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))

    # the others: of a run that a client stops, as the next test does, and of a teacher that tells how its start goes on
    every = {field.name for field in Event.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert every - kinds(events) == {"run_interrupted", "teacher_starting"}
    warnings = {event.warning.reason: event.warning.message for event in events if event.HasField("warning")}
    assert warnings.keys() == {"PREFLIGHT", "ROWS_NOTED", "ROWS_QUARANTINED"}
    assert warnings["PREFLIGHT"].startswith("recipe:2:18: student.model: student: the student's chat template is not")
    assert warnings["ROWS_NOTED"].startswith("rows.jsonl:4: completion: cut to 40 tokens")
    assert warnings["ROWS_QUARANTINED"].startswith("1 row set aside; sequences/quarantine.jsonl")
    logs = {(event.log.level, event.log.logger, event.log.message) for event in events if event.HasField("log")}
    assert ("WARNING", "loud", "read rows.jsonl and …/words.txt") in logs
    (failed,) = (event.run_failed for event in events if event.HasField("run_failed"))
    assert "RuntimeError: no words here, nor …/words.txt" in failed.message
    machine = (str(place.workspace.parent), str(ROOT), sys.prefix, str(Path.home()), "/usr/lib")
    for event in events:
        assert not any(path in to_json(event) for path in machine), event


def test_the_queue_takes_as_many_runs_as_it_says_and_another_when_one_has_left(place):
    limits, (ann, ben, cy) = RunLimits(), place.clients.values()
    long = RECIPE.replace("max_steps: 12", "max_steps: 100000")
    works = ann.create_run(long.replace("OUTPUT", "works")).run_id
    watch(ann, works, until=lambda event: event.attempt > 0)
    waiting = []
    for number in range(limits.queue):
        client = (ann, ben, cy)[(number + 1) // limits.per_client]  # no one may have so many
        waiting.append(client.create_run(long.replace("OUTPUT", f"waits-{number}")).run_id)
    with pytest.raises(LimbeckError) as caught:
        cy.create_run(long.replace("OUTPUT", "more"))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert [problem.message for problem in caught.value.problems] == ["16 runs wait already, allowed are 16"]
    assert not (place.workspace / "runs" / "more").exists()
    ann.cancel(waiting[-1])
    waiting[-1] = cy.create_run(long.replace("OUTPUT", "more")).run_id
    with pytest.raises(LimbeckError, match="16 runs wait already"):
        cy.create_run(long.replace("OUTPUT", "too-many"))
    for run_id in [*waiting, works]:
        ann.cancel(run_id)
    assert "run_interrupted" in kinds(watch(ann, works))
