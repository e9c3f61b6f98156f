"""A resumed training ends with the same bits, wherever it was stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck.errors import LimbeckError, Reason
from limbeck.training import train
from limbeck.training.checkpoints import Checkpoints


class Crash(BaseException):
    """The process is gone: nothing that follows runs."""


def crash_at(kit: Any, kind: str, step: int) -> Any:
    def hook(name: str, message: Any, at: int) -> None:
        if (name, at) == (kind, step):
            raise Crash

    return kit.Sink(hook)


def bits(model: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def metrics(sink: Any) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in message.values.items() if name != "tokens_per_second"}
        for message, step in sink.of("Metrics")
    }


def changes(sink: Any) -> list[tuple[str, int]]:
    return [(str(message), step) for message, step in sink.of("KnobChanged")]


def disturb() -> None:
    """What another process would have: other states of the global generators."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


@dataclass
class Whole:
    """The training that nobody stopped: its run folder, its weights, its metrics by step."""

    folder: Path
    bits: dict[str, bytes]
    metrics: dict[int, dict[str, float]]
    changes: list[tuple[str, int]]

    def dead_after(self, step: int, folder: Path) -> None:
        """What lies on disk where the process died right after the checkpoint of `step`."""
        source, target = (path / "checkpoints" / "student" for path in (self.folder, folder))
        for number in range(1, step + 1):
            shutil.copytree(source / f"checkpoint-{number}", target / f"checkpoint-{number}")
        shutil.copy(source / "training.json", target)


@pytest.fixture(scope="module")
def whole(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    kit = sys.modules[type(world).__module__]
    sink = kit.Sink()
    folder = tmp_path_factory.mktemp("whole")
    result = train(world.job(folder), sink)
    return Whole(folder, bits(result.model), metrics(sink), changes(sink))


@pytest.mark.parametrize("step", range(1, 10))
def test_a_training_that_died_after_a_step_and_resumes_ends_with_the_same_bits(
    world: Any, kit: Any, whole: Whole, tmp_path: Path, step: int
) -> None:
    whole.dead_after(step, tmp_path)
    disturb()
    sink = kit.Sink()
    result = train(world.job(tmp_path), sink)

    assert bits(result.model) == whole.bits
    # Windows that the death cut lose nothing.
    assert metrics(sink) == {at: values for at, values in whole.metrics.items() if at > step}
    assert changes(sink) == [change for change in whole.changes if change[1] >= step]
    rewound, at = sink.of("Rewound")[0]
    assert (rewound.to_step, at, rewound.checkpoint) == (step, step, f"checkpoints/student/checkpoint-{step}")
    started, _ = sink.of("StageStarted")[0]
    assert (started.total, started.unit, started.done) == (9, "steps", step)


def test_the_last_state_is_that_of_the_result(whole: Whole) -> None:
    file = whole.folder / "checkpoints" / "student" / "checkpoint-9" / "model.safetensors"
    assert {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}.items() <= whole.bits.items()


@pytest.mark.parametrize("step", [0, 4])
def test_a_training_that_dies_within_an_accumulated_step_goes_on_from_the_step_before(
    world: Any, kit: Any, whole: Whole, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.training.trainer import DistillTrainer

    calls: list[int] = []
    plain = DistillTrainer.compute_loss

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.state.global_step)
        if calls.count(step) == 2:  # the second micro-batch of the step
            raise Crash
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "compute_loss", dying)
        with pytest.raises(Crash):
            train(world.job(tmp_path), kit.Sink())
    disturb()
    sink = kit.Sink()
    assert bits(train(world.job(tmp_path), sink).model) == whole.bits
    assert sink.of("Rewound")[0][0].to_step == step


def test_checkpoints_between_which_steps_are_lost_change_nothing(world: Any, kit: Any, tmp_path: Path) -> None:
    sparse = {"save_steps": 4}
    expected = bits(train(world.job(tmp_path / "whole", training=sparse), kit.Sink()).model)
    with pytest.raises(Crash):
        train(world.job(tmp_path / "cut", training=sparse), crash_at(kit, "Progress", 7))
    sink = kit.Sink()
    assert bits(train(world.job(tmp_path / "cut", training=sparse), sink).model) == expected
    assert sink.of("Rewound")[0][0].to_step == 4


def test_dropout_was_on_so_the_generators_mattered(world: Any, kit: Any, whole: Whole, tmp_path: Path) -> None:
    result = train(world.job(tmp_path, training={"seed": 8, "data_seed": 7}), kit.Sink())
    assert bits(result.model) != whole.bits


@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_stop_saves_a_checkpoint_and_the_training_goes_on_from_it(
    world: Any, kit: Any, whole: Whole, tmp_path: Path, step: int
) -> None:
    first = kit.Sink()
    never = {"save_steps": 100}
    stopped = train(world.job(tmp_path, training=never), first, lambda: _after(first, step))
    assert stopped.interrupted == "SIGTERM"
    assert [at for _, at in first.of("CheckpointSaved")] == [step]
    result = train(world.job(tmp_path, training=never), kit.Sink())
    assert result.interrupted is None
    assert bits(result.model) == whole.bits


def _after(sink: Any, step: int) -> str | None:
    progress = sink.of("Progress")
    return "SIGTERM" if progress and progress[-1][1] >= step else None


def test_a_stop_before_the_first_step_trains_nothing(world: Any, kit: Any, tmp_path: Path) -> None:
    sink = kit.Sink()
    assert train(world.job(tmp_path), sink, lambda: "SIGINT").interrupted == "SIGINT"
    assert not sink.of("Progress")


def test_a_finished_training_is_loaded_not_trained_again(world: Any, kit: Any, whole: Whole, tmp_path: Path) -> None:
    whole.dead_after(9, tmp_path)
    sink = kit.Sink()
    again = train(world.job(tmp_path), sink)
    assert bits(again.model) == whole.bits
    assert not sink.of("Progress")
    assert (again.figures["steps"], again.figures["loss"]) == (9, whole.metrics[9]["loss"])
    assert not hasattr(again.model, "limbeck_losses")


def test_steps_that_do_not_fill_an_epoch_end_where_they_should(world: Any, kit: Any, tmp_path: Path) -> None:
    odd = {"max_steps": 4}
    expected = bits(train(world.job(tmp_path / "whole", training=odd), kit.Sink()).model)
    sink = kit.Sink()
    with pytest.raises(Crash):
        train(world.job(tmp_path / "cut", training=odd), crash_at(kit, "CheckpointSaved", 4))
    assert bits(train(world.job(tmp_path / "cut", training=odd), sink).model) == expected
    assert not sink.of("Progress")


def test_a_loss_with_parameters_resumes_exactly_and_leaves_nothing_in_the_student(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    def job(folder: Any) -> Any:
        sequences = world.sequences
        losses = [kit.loss("hidden_mse", layers=[[1, 1]]), kit.loss("cross_entropy")]
        return world.job(folder, losses=losses, source=kit.hidden_source(sequences, 48), teacher_hidden_size=48)

    whole = train(job(tmp_path / "whole"), kit.Sink())
    for step in (1, 5):
        folder = tmp_path / f"cut{step}"
        with pytest.raises(Crash):
            train(job(folder), crash_at(kit, "CheckpointSaved", step))
        disturb()
        assert bits(train(job(folder), kit.Sink()).model) == bits(whole.model)
    assert not any("limbeck" in name for name in whole.model.state_dict())
    from safetensors import safe_open

    with safe_open(tmp_path / "whole/checkpoints/student/checkpoint-9/model.safetensors", "pt") as file:
        assert any("limbeck_losses" in name for name in list(file.keys()))


def test_a_process_killed_at_random_moments_resumes_to_the_same_bits(
    world: Any, kit: Any, whole: Whole, tmp_path: Path
) -> None:
    chance = random.Random(5)
    kills = 0
    for _ in range(40):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # a copy of this process, as it is: nothing of it may run after the training

            def tell(kind: str, message: Any, step: int, pipe: int = writer) -> None:
                os.write(pipe, b"." if kind == "Progress" else b"")

            try:
                train(world.job(tmp_path), kit.Sink(tell))
            finally:
                os._exit(0)
        os.close(writer)
        os.read(reader, 1)  # a step is done: what follows is the save, the next step, …
        time.sleep(chance.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(reader)
        found = Checkpoints(tmp_path / "checkpoints" / "student").newest().checkpoint
        if found is not None and found.step == 9:
            break
    assert kills > 2
    assert bits(train(world.job(tmp_path), kit.Sink()).model) == whole.bits


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"training": {"learning_rate": 2e-2}}, "training.learning_rate"),
        ({"data_digest": "other rows"}, "data.digest"),
        ({"losses": "other"}, "losses.cross_entropy.weight"),
    ],
)
def test_a_changed_setting_is_named_and_refused(
    world: Any, kit: Any, whole: Whole, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    whole.dead_after(2, tmp_path)
    if "losses" in change:
        change = {"losses": [kit.default_losses()[0], kit.loss("cross_entropy", weight=0.2)]}
    with pytest.raises(LimbeckError) as caught:
        train(world.job(tmp_path, **change), kit.Sink())
    assert caught.value.reason is Reason.RESUME_REFUSED
    assert [problem.field for problem in caught.value.problems] == [name]
    assert "was" in caught.value.problems[0].message


def test_another_thread_count_is_refused_and_saving_more_often_is_not(
    world: Any, kit: Any, whole: Whole, tmp_path: Path
) -> None:
    whole.dead_after(2, tmp_path)
    torch.set_num_threads(2)
    try:
        with pytest.raises(LimbeckError, match="threads: was 1, is now 2"):
            train(world.job(tmp_path), kit.Sink())
    finally:
        torch.set_num_threads(1)
    assert train(world.job(tmp_path, training={"save_steps": 3}), kit.Sink()).figures["steps"] == 9


def test_an_allowed_change_is_in_force_from_the_checkpoint_on(
    world: Any, kit: Any, whole: Whole, tmp_path: Path
) -> None:
    whole.dead_after(4, tmp_path)
    changed = {"learning_rate": 4e-2}
    sink = kit.Sink()
    train(world.job(tmp_path, training=changed, allow_changed=True), sink)
    rates = {step: message.values["learning_rate"] for message, step in sink.of("Metrics")}
    assert rates[6] == pytest.approx(4e-2 * (1 - 5 / 9))  # four times the former rate, at the same place of its course
    # From then on the changed settings are the training's own.
    train(world.job(tmp_path, training=changed), kit.Sink())


def test_a_run_that_died_before_its_first_checkpoint_says_that_it_starts_again(
    world: Any, kit: Any, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train(world.job(tmp_path), crash_at(kit, "Progress", 1))
    sink = kit.Sink()
    result = train(world.job(tmp_path), sink)
    assert (sink.of("Rewound")[0][0].to_step, sink.of("Rewound")[0][0].checkpoint) == (0, "")
    assert bits(result.model) == whole.bits


def test_a_first_start_is_no_resume(world: Any, kit: Any, tmp_path: Path) -> None:
    sink = kit.Sink()
    train(world.job(tmp_path, training={"max_steps": 1}), sink)
    assert not sink.of("Rewound")


def test_faulty_checkpoints_are_passed_over_and_named(world: Any, kit: Any, whole: Whole, tmp_path: Path) -> None:
    whole.dead_after(5, tmp_path)
    folder = tmp_path / "checkpoints" / "student"
    weights = folder / "checkpoint-5" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    sink = kit.Sink()
    result = train(world.job(tmp_path), sink)
    assert bits(result.model) == whole.bits
    rewound = sink.of("Rewound")[0][0]
    assert rewound.to_step == 4
    assert list(rewound.rejected) == ["checkpoint-5: the checksum of model.safetensors is wrong"]
    assert (folder / "checkpoint-5.faulty-1" / "model.safetensors").read_bytes() == bytes(raw)


def test_nothing_in_a_checkpoint_needs_pickle(whole: Whole) -> None:
    folder = whole.folder / "checkpoints" / "student" / "checkpoint-1"
    for file in folder.glob("*.pt"):
        torch.load(file, weights_only=True)
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors", "optimizer.pt", "scheduler.pt", "rng-0.pt", "trainer_state.json", "limbeck.json",
        "manifest.json",
    }  # fmt: skip
