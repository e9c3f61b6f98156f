"""A training that is steered: from the next step on, over schedules, and again to the same bits after a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from limbeck.steering import Steering
from limbeck.training import train
from limbeck.training.checkpoints import Checkpoints

WEIGHT, TEMPERATURE, PLAIN = "losses.forward_kl.weight", "losses.forward_kl.temperature", "losses.cross_entropy.weight"


def bits(model: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def at(kit: Any, calls: dict[int, Any]) -> Any:
    """A sink that calls something as soon as a step is finished."""

    def hook(kind: str, message: Any, step: int) -> None:
        if kind == "Progress" and step in calls:
            calls[step]()

    return kit.Sink(hook)


def changed(sink: Any) -> list[tuple[int, str, float, float]]:
    """Changes of knobs but those of the falling weight that no one gave."""
    found = [(step, message.knob, message.before, message.after) for message, step in sink.of("KnobChanged")]
    return [change for change in found if change[1] != WEIGHT or change[3] in (0.25, 2.0)]


def in_force(sink: Any, knob: str) -> dict[int, float]:
    return {step: message.values[f"knobs.{knob}"] for message, step in sink.of("Metrics")}


def test_values_take_effect_at_the_next_step_also_over_a_schedule_and_for_good(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    confirmed: list[int] = []
    steering = Steering(applied=confirmed.append)
    every = {"logging_steps": 1}
    calls = {
        2: lambda: steering.put(1, {WEIGHT: 0.25, PLAIN: 0.5}),
        3: lambda: (steering.put(2, {TEMPERATURE: 1.0}), steering.put(2, {TEMPERATURE: 2.0})),
    }
    sink = at(kit, calls)
    steered = train(world.job(tmp_path / "a", training=every), sink, steering=steering)
    assert confirmed == [1, 2, 2]
    assert changed(sink) == [
        (2, PLAIN, 0.1, 0.5),
        (2, WEIGHT, pytest.approx(1 - 0.5 / 9), 0.25),  # before: the weight of the step before
        (3, TEMPERATURE, 2.0, 1.0),
    ]
    assert in_force(sink, PLAIN) == {step: 0.1 if step <= 2 else 0.5 for step in range(1, 10)}
    assert in_force(sink, WEIGHT) == {step: pytest.approx(1 - 0.5 * (step - 1) / 9) if step <= 2 else 0.25 for step in range(1, 10)}  # fmt: skip  # noqa: E501
    assert in_force(sink, TEMPERATURE) == {step: 2.0 if step <= 3 else 1.0 for step in range(1, 10)}
    plain = train(world.job(tmp_path / "b", training=every), kit.Sink())
    assert bits(steered.model) != bits(plain.model)
    assert not (tmp_path / "b" / "checkpoints" / "student" / "knobs.jsonl").exists()


def test_values_that_wait_before_the_first_step_are_in_force_with_it_and_told(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    steering, sink = Steering(), kit.Sink()
    steering.put(1, {PLAIN: 0.5, TEMPERATURE: 2.0})
    train(world.job(tmp_path, training={"max_steps": 2}), sink, steering=steering)
    # the value that is in force is told, too: from now on no schedule moves it
    assert changed(sink) == [(0, PLAIN, 0.1, 0.5), (0, TEMPERATURE, 2.0, 2.0)]
    assert set(in_force(sink, PLAIN).values()) == {0.5}
    assert set(in_force(sink, TEMPERATURE).values()) == {2.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({TEMPERATURE: 1.5}, "temperature 1.5 is not stored; stored are 1, 2"),
        ({PLAIN: -1.0}, "must be at least 0"),
        ({PLAIN: float("nan")}, "must be finite"),
        ({"losses.cross_entropy.temperature": 1.0, PLAIN: 0.9}, "is no knob"),
    ],
)
def test_what_a_knob_cannot_take_is_told_and_the_training_goes_on_as_it_was(
    values: dict[str, float], words: str, world: Any, kit: Any, tmp_path: Path
) -> None:
    short = {"max_steps": 3}
    plain = train(world.job(tmp_path / "plain", training=short), kit.Sink())
    steering = Steering()
    sink = at(kit, {1: lambda: steering.put(1, values)})
    steered = train(world.job(tmp_path / "steered", training=short), sink, steering=steering)
    ((warning, step),) = sink.of("Warning")
    assert (warning.reason, step) == ("KNOB_REFUSED", 1)
    assert words in warning.message
    assert bits(steered.model) == bits(plain.model)


def put_and_kill(world: Any, kit: Any, folder: Path, calls: Any, kill: int, settings: dict[str, Any]) -> None:
    """Train in a copy of this process, which dies by SIGKILL as soon as step `kill` is finished."""
    child = os.fork()
    if child == 0:
        try:
            steering = Steering()
            all_calls = {**calls(steering), kill: lambda: os.kill(os.getpid(), signal.SIGKILL)}
            train(world.job(folder, training=settings), at(kit, all_calls), steering=steering)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("kill", [4, 5, 7])
@pytest.mark.parametrize("save_steps", [1, 3, 100])
def test_a_steered_training_that_is_killed_and_resumed_ends_with_the_bits_of_one_that_is_not(
    kill: int, save_steps: int, world: Any, kit: Any, tmp_path: Path
) -> None:
    def calls(steering: Steering) -> dict[int, Any]:
        return {
            1: lambda: steering.put(1, {WEIGHT: 2.0}),
            3: lambda: (steering.put(2, {WEIGHT: 0.25, PLAIN: 0.5}), steering.put(3, {TEMPERATURE: 1.0})),
        }

    settings = {"save_steps": save_steps}
    steering = Steering()
    whole = at(kit, calls(steering))
    expected = train(world.job(tmp_path / "whole", training=settings), whole, steering=steering)
    put_and_kill(world, kit, tmp_path / "cut", calls, kill, settings)
    journal = tmp_path / "cut" / "checkpoints" / "student" / "knobs.jsonl"
    assert [json.loads(line)["step"] for line in journal.read_text().splitlines()] == [1, 3, 3]
    sink = kit.Sink()
    result = train(world.job(tmp_path / "cut", training=settings), sink)
    assert bits(result.model) == bits(expected.model)
    start = sink.of("Rewound")[0][0].to_step
    assert start == (kill - 1) // save_steps * save_steps
    assert changed(sink) == [change for change in changed(whole) if change[0] >= start]


def test_a_later_word_prevails_over_an_earlier_one_of_a_later_step(world: Any, kit: Any, tmp_path: Path) -> None:
    settings = {"save_steps": 2, "logging_steps": 1}
    put_and_kill(world, kit, tmp_path, lambda steering: {3: lambda: steering.put(1, {PLAIN: 0.5})}, 4, settings)
    # it goes on from step 2, before the step of what was given first
    steering = Steering()
    steering.put(2, {PLAIN: 0.75})
    sink = kit.Sink()
    train(world.job(tmp_path, training=settings), sink, steering=steering)
    assert sink.of("Rewound")[0][0].to_step == 2
    assert in_force(sink, PLAIN) == dict.fromkeys(range(3, 10), 0.75)


def test_what_a_changed_recipe_has_no_knob_for_is_told_and_left_out(world: Any, kit: Any, tmp_path: Path) -> None:
    settings = {"save_steps": 2}
    put_and_kill(world, kit, tmp_path, lambda steering: {2: lambda: steering.put(1, {PLAIN: 0.5})}, 4, settings)
    sink = kit.Sink()
    losses = [kit.loss("forward_kl", temperature=2.0)]
    train(world.job(tmp_path, training=settings, losses=losses, allow_changed=True), sink)
    assert [warning.reason for warning, _ in sink.of("Warning")] == ["KNOB_REFUSED"]
    assert not [message for message, _ in sink.of("KnobChanged") if message.knob == PLAIN]


def test_a_checkpoint_is_saved_after_the_step_under_way_and_rotation_counts_it(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    saved: list[Any] = []
    steering = Steering(saved=lambda *told: saved.append(told))
    steering.begin()
    calls = {step: lambda step=step: steering.request_checkpoint(step) for step in (2, 3, 5)}
    calls[5] = lambda: (steering.request_checkpoint("a"), steering.request_checkpoint("b"))
    sink = at(kit, calls)
    settings = {"save_steps": 3, "save_total_limit": 2}
    result = train(world.job(tmp_path, training=settings), sink, steering=steering)
    events = {step: (message.path, message.bytes) for message, step in sink.of("CheckpointSaved")}
    assert list(events) == [2, 3, 5, 6, 9]
    # the hook speaks at the end of the step, before the trainer looks
    assert [(name, step) for name, _, step, _ in saved] == [(2, 2), (3, 3), ("a", 5), ("b", 5)]
    assert all((path, size) == events[step] for _, path, step, size in saved)
    folder = tmp_path / "checkpoints" / "student"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
    plain = train(world.job(tmp_path / "plain", training={"save_steps": 100}), kit.Sink())
    assert bits(result.model) == bits(plain.model)
    assert Checkpoints(folder).newest().checkpoint is not None


def test_values_that_wait_when_a_training_is_stopped_are_not_lost_but_stay_with_who_asked(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    confirmed: list[int] = []
    steering = Steering(applied=confirmed.append)
    sink = at(kit, {3: lambda: steering.put(1, {PLAIN: 0.5})})
    stopped = train(
        world.job(tmp_path), sink, lambda: "pause" if len(sink.of("Progress")) == 3 else None, steering=steering
    )
    assert stopped.interrupted == "pause"
    assert confirmed == []
    again = kit.Sink()
    train(world.job(tmp_path), again, steering=steering)
    assert confirmed == [1]
    assert (3, PLAIN, 0.1, 0.5) in changed(again)
