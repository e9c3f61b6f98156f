"""Kill a run with SIGKILL, resume it, and compare its student with that of a run that was never stopped.

    python benchmarks/kill_points.py                    at every event, before every write, 50 times at random
    python benchmarks/kill_points.py --events 7 --writes 10 --random 0 --seed 3

Each point is a run of its own in a process of its own, killed once, then resumed to its end. Prints one line a point,
and a table by stage. Ends with 1 where any weights, rows or signals differ, or where the history has a gap.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "tok_a"
RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data:
  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 12, temperature: 1.0, min_success_ratio: 0.1}
  holdout: 3
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 16, temperature: {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, num_train_epochs: 2, per_device_train_batch_size: 4, save_steps: 2}
evaluation: {twin: true, samples: 1, max_new_tokens: 8}
output: run
"""


def make_project(folder: Path, prompts: int = 16) -> Path:
    """A tiny teacher, prompts and a recipe in `folder`; returns the recipe's path."""
    from limbeck.testing.tiny import tiny_model_folder

    folder.mkdir(parents=True, exist_ok=True)
    tiny_model_folder(folder / "teacher", TOKENIZER, layers=4, seed=1, scale=3.0)
    rows = [{"prompt": f"Question {i}: what is {7 * i} plus {i}?\n"} for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def attempt(
    recipe: Path,
    *,
    resume: bool,
    at_event: int | None = None,
    at_write: int | None = None,
    after_seconds: float | None = None,
    count: Path | None = None,
) -> tuple[int, float]:
    """Run or resume in a forked process, killed as told. Returns (exit code, negative for a signal; seconds).

    `at_write`: before the n-th append, fsync or rename. `count`: a file that gets the number of these.
    """
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            writes = _Writes(at_write)
            code = _work(recipe, resume, at_event)
            if count is not None:
                count.write_text(str(writes.count))
        os._exit(code)
    if after_seconds is not None:
        time.sleep(after_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), time.monotonic() - start


def _work(recipe: Path, resume: bool, at_event: int | None) -> int:
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe
    from limbeck.runs import label
    from limbeck.runs.pipeline import run_recipe
    from limbeck.v1.event_pb2 import Event

    def display(event: Event) -> None:
        if event.sequence == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    label.ASK_TOKENS = 128  # many shards, so that there is something between them
    registry = load_plugins()
    run_recipe(load_recipe(recipe, registry), registry, display=display, resume=resume)
    return 0


class _Writes:
    """Counts what changes files for good, and kills this process before one of them."""

    def __init__(self, at: int | None) -> None:
        from limbeck.files import AppendLog

        self.count, self._at = 0, at
        places = [(os, "fsync"), (AppendLog, "append"), (Path, "rename"), (Path, "replace"), (os, "replace")]
        for owner, name in places:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            self.count += 1
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call


def warm_up() -> None:
    """Import what a run needs, so that forked processes need not."""
    from limbeck.runs.libraries import prepare_libraries

    prepare_libraries()  # before any of these
    for room in ("data", "report", "signals", "training", "teachers.transformers"):
        importlib.import_module(f"limbeck.{room}")
    importlib.import_module("accelerate")


def events_of(run: Path) -> list[dict[str, object]]:
    """The history as JSON values."""
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def differences(run: Path, reference: Path) -> list[str]:
    """What a resumed run has that is not as in the reference; empty for nothing."""
    found = [
        name
        for name in ("student/model.safetensors", "twin/model.safetensors", "rows/rows.jsonl", "rows/rejected.jsonl")
        if (run / name).read_bytes() != (reference / name).read_bytes()
    ]
    found += [
        f"signals/{split}" for split in ("train", "holdout") if _signals(run, split) != _signals(reference, split)
    ]
    sequences = [int(str(event["sequence"])) for event in events_of(run)]
    if sequences != list(range(1, len(sequences) + 1)):
        found.append("the history has a gap")
    return found


def _signals(run: Path, split: str) -> dict[str, bytes]:
    """The shards by name; every sequence is in one of them, once, or this raises."""
    from limbeck.data import read_sequences
    from limbeck.signals import SignalStore

    store = SignalStore(run / "signals" / split)
    listed = sorted(index for shard in store.shards.values() for index in shard.indexes)
    if listed != [sequence.index for sequence in read_sequences(run / "sequences" / f"{split}.arrow")]:
        raise AssertionError(f"{split}: a sequence was stored twice, or not at all")
    return {path.name: path.read_bytes() for path in store.folder.glob("shard-*.arrow")}


def where(run: Path) -> str:
    """The stage of the last event before a kill."""
    events = events_of(run)
    return str(events[-1].get("stage", "")) or "between stages" if events else "before the first event"


def try_point(project: Path, reference: Path, kill: dict[str, Any]) -> tuple[str, list[str], bool]:
    """Kill one run as `attempt` is told, resume it. Returns (stage, differences, whether the history says rewound)."""
    run = project / "run"
    shutil.rmtree(run, ignore_errors=True)
    code, _ = attempt(project / "recipe.yaml", resume=False, **kill)
    stage = where(run) if code == -signal.SIGKILL else "after the end"
    resume = (run / "resolved.yaml").exists()
    code, _ = attempt(project / "recipe.yaml", resume=resume)
    faults = [f"resume ended with {code}"] if code else differences(run, reference)
    return stage, faults, any("rewound" in event for event in events_of(run))


def main() -> int:
    """Try the points and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1, help="kill at every n-th event; 0 for none")
    parser.add_argument("--writes", type=int, default=1, help="kill before every n-th write; 0 for none")
    parser.add_argument("--random", type=int, default=50, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        recipe = make_project(project)
        code, seconds = attempt(recipe, resume=False, count=project / "writes")
        if code:
            print(f"the reference run ended with {code}")
            return 1
        reference = (project / "run").rename(project / "reference")
        events, writes = len(events_of(reference)), int((project / "writes").read_text())
        print(f"reference: {events} events, {writes} writes, {seconds:.1f} s")
        points: list[tuple[str, dict[str, Any]]] = []
        if options.events:
            points += [(f"event {n}", {"at_event": n}) for n in range(1, events + 1, options.events)]
        if options.writes:
            points += [(f"write {n}", {"at_write": n}) for n in range(1, writes + 1, options.writes)]
        draw = random.Random(options.seed)
        moments = sorted(draw.uniform(0, seconds) for _ in range(options.random))
        points += [(f"{moment:.2f} s", {"after_seconds": moment}) for moment in moments]
        tried, wrong, rewound = Counter[str](), Counter[str](), Counter[str]()
        for name, kill in points:
            stage, faults, told = try_point(project, reference, kill)
            tried[stage] += 1
            wrong[stage] += bool(faults)
            rewound[stage] += told
            print(
                f"{name:>10}  {stage:<22} {', '.join(faults) or 'same bits'}{', rewound' if told else ''}", flush=True
            )
    print(f"\n{'stage':<24}{'points':>7}{'wrong':>7}{'rewound':>9}")
    for stage, number in tried.items():
        print(f"{stage:<24}{number:>7}{wrong[stage]:>7}{rewound[stage]:>9}")
    print(f"{'in all':<24}{tried.total():>7}{wrong.total():>7}{rewound.total():>9}")
    return 1 if wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main())
