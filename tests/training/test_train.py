"""One step is the same however it is cut: by accumulation, by processes; and what a training tells."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, Reason
from limbeck.training import NoSource, Student, train
from limbeck.training.checkpoints import Checkpoints

SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "max_steps": 4}


def weights(result: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


def steps(world: Any, kit: Any, folder: Path, size: int, accumulation: int, **more: Any) -> tuple[Any, Any]:
    sink = kit.Sink()
    cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "logging_steps": 3}
    changes = {"student": kit.tiny_student_without_dropout, **more}
    training = SGD | cut | changes.pop("training", {})
    return train(world.job(folder, training=training, **changes), sink), sink


def figures(sink: Any) -> dict[int, dict[str, float]]:
    keys = ("loss", "losses.forward_kl", "losses.cross_entropy", "tokens", "diagnostics.teacher_mass",
            "diagnostics.student_mass", "diagnostics.top1_agreement", "diagnostics.saturated", "grad_norm")  # fmt: skip
    return {step: {key: message.values[key] for key in keys} for message, step in sink.of("Metrics")}


@pytest.mark.parametrize(("size", "accumulation"), [(1, 4), (2, 2), (3, 2)])
def test_accumulation_changes_neither_weights_nor_figures(
    world: Any, kit: Any, tmp_path: Path, size: int, accumulation: int
) -> None:
    # Rows have different numbers of tokens: a mean of means would not pass.
    whole, told = steps(world, kit, tmp_path / "whole", size * accumulation, 1)
    cut, told_cut = steps(world, kit, tmp_path / "cut", size, accumulation)
    assert torch.allclose(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)
    for step, values in figures(told).items():
        assert figures(told_cut)[step] == pytest.approx(values, rel=1e-4)


@pytest.fixture
def light(world: Any, kit: Any, tmp_path: Path) -> Any:
    """The world with tokens that weigh more or less, and a teacher that said nothing of some."""
    sequences = kit.weighed(world.sequences)
    return kit.World(sequences, kit.write_store(tmp_path / "partial", sequences, world.teacher, partial=True), None)


def test_accumulation_changes_nothing_for_tokens_that_weigh_and_signals_that_lack(
    light: Any, kit: Any, tmp_path: Path
) -> None:
    whole, told = steps(light, kit, tmp_path / "whole", 6, 1)
    cut, told_cut = steps(light, kit, tmp_path / "cut", 2, 3)
    assert torch.allclose(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)
    for step, values in figures(told).items():
        assert figures(told_cut)[step] == pytest.approx(values, rel=1e-4)


def test_the_loss_of_a_step_is_over_weights_and_its_figures_over_tokens(light: Any, kit: Any, tmp_path: Path) -> None:
    _, sink = steps(light, kit, tmp_path, 10, 1, training={"max_steps": 1})
    values = sink.of("Metrics")[0][0].values
    model = kit.tiny_student_without_dropout().model
    total = {"cross_entropy": 0.0, "forward_kl": 0.0}
    weight = tokens = compared = mass = 0.0
    for sequence in light.sequences:
        rows = torch.from_numpy(sequence.kept)
        ids = torch.from_numpy(sequence.ids.astype("int64"))
        w = torch.ones(len(rows)) if sequence.weights is None else torch.from_numpy(sequence.weights)[rows + 1]
        with torch.no_grad():
            z = model(input_ids=ids[None]).logits[0].double()[rows]
        total["cross_entropy"] -= float((w * torch.log_softmax(z, -1).gather(1, ids[rows + 1][:, None])[:, 0]).sum())
        signal = light.store.get(sequence)
        said = rows - signal.first_row < signal.n
        support, p, tail = (torch.from_numpy(x)[rows[said] - signal.first_row] for x in signal.top_k.at(2.0))
        log_q = torch.log_softmax(z[said] / 2, -1).gather(1, support.long())
        rest = tail.exp() * (tail - torch.log1p(-log_q.exp().sum(1)))
        total["forward_kl"] += 4 * float((w[said] * ((p.exp() * (p - log_q)).sum(1) + rest)).sum())
        weight, tokens, compared = weight + float(w.sum()), tokens + len(rows), compared + int(said.sum())
        mass += float(p.exp().sum())
    assert 0 < compared < tokens
    assert values["tokens"] == tokens != weight
    for name, expected in total.items():
        assert values[f"losses.{name}"] == pytest.approx(expected / weight, rel=1e-4)
    both = total["forward_kl"] + 0.1 * total["cross_entropy"]
    assert values["loss"] == pytest.approx(both / weight, rel=1e-4)
    assert values["diagnostics.teacher_mass"] == pytest.approx(mass / compared, rel=1e-4)


def test_weight_zero_trains_as_if_the_tokens_were_untrained(world: Any, kit: Any, tmp_path: Path) -> None:
    def mask(sequence: Any) -> Any:
        keep = (torch.arange(len(sequence.ids)) % 3 > 0).numpy()
        keep[-1] = True
        return keep

    weightless = [replace(s, weights=mask(s).astype("float32")) for s in world.sequences]
    untrained = [replace(s, trained=s.trained & mask(s)) for s in world.sequences]
    found = []
    for name, sequences in (("weightless", weightless), ("untrained", untrained)):
        store = kit.write_store(tmp_path / f"{name}-signals", sequences, world.teacher)
        found.append(steps(kit.World(sequences, store, None), kit, tmp_path / name, 2, 2))
    (one, told), (other, told_other) = found
    assert torch.equal(weights(one), weights(other))
    assert figures(told) == figures(told_other)


def test_figures_are_what_a_bare_loop_finds(world: Any, kit: Any, tmp_path: Path) -> None:
    result, sink = steps(world, kit, tmp_path, 10, 1, training={"max_steps": 1}, losses=[kit.loss("cross_entropy")])
    model = kit.tiny_student_without_dropout().model
    total, tokens = 0.0, 0
    for sequence in world.sequences:
        ids = torch.from_numpy(sequence.ids.astype("int64"))
        rows = torch.from_numpy(sequence.kept)
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0], -1)
        total = total - logprobs[rows, ids[rows + 1]].sum()
        tokens += len(rows)
    loss = total / tokens
    loss.backward()
    values = sink.of("Metrics")[0][0].values
    assert values["tokens"] == tokens
    assert values["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert torch.allclose(weights(result), torch.cat([p.flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-6)


def test_the_first_and_the_last_step_are_logged_and_a_window_counts_its_tokens(
    world: Any, kit: Any, tmp_path: Path
) -> None:
    _, sink = steps(world, kit, tmp_path, 10, 1, training={"max_steps": 8})
    told = {step: message.values for message, step in sink.of("Metrics")}
    assert list(told) == [1, 3, 6, 8]
    each = sum(len(sequence.kept) for sequence in world.sequences)
    assert [values["tokens"] for values in told.values()] == [each, 2 * each, 3 * each, 2 * each]
    for values in told.values():
        kl, weight = values["losses.forward_kl"], values["knobs.losses.forward_kl.weight"]
        assert 0 < kl < 10
        assert 0 < weight <= 1
        assert values["tokens_per_second"] > 0
        assert values["learning_rate"] == 0.5
    kinds = [kind for kind, _, _ in sink.events]
    assert kinds[0] == "StageStarted"
    assert [message.done for message, _ in sink.of("Progress")] == list(range(1, 9))


@pytest.mark.parametrize("kind", ["plain", "weighed"])
def test_two_processes_end_where_one_does(world: Any, light: Any, kit: Any, tmp_path: Path, kind: str) -> None:
    """Ten rows by micro-batches of 2 × 2: the last one of an epoch leaves the second process without a row."""
    world = light if kind == "weighed" else world
    change = "kit.weighed" if kind == "weighed" else "list"
    (tmp_path / "two.py").write_text(
        f"""
import importlib.util, json, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("kit", {str(Path(kit.__file__))!r})
kit = sys.modules["kit"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kit)
import torch
torch.set_num_threads(1)
from limbeck.signals import SignalStore
from limbeck.training import train
rank = int(os.environ["RANK"])
folder = Path({str(tmp_path)!r})
world = kit.World({change}(kit.make_sequences(10)), SignalStore({str(world.store.folder)!r}), None)
training = {SGD!r} | {{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 3}}
sink = kit.Sink()
result = train(world.job(folder, training=training, student=kit.tiny_student_without_dropout), sink)
values = torch.cat([p.detach().flatten() for p in result.model.parameters()])
torch.save(values, folder / f"weights-{{rank}}.pt")
told = {{step: dict(message.values) for message, step in sink.of("Metrics")}}
(folder / f"told-{{rank}}.json").write_text(json.dumps(told))
"""
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "two.py")],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    alone, sink = steps(world, kit, tmp_path / "alone", 4, 2)
    expected = weights(alone)
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f"weights-{rank}.pt"), expected, rtol=1e-5, atol=1e-6)
    told = json.loads((tmp_path / "told-0.json").read_text())
    for step, values in figures(sink).items():
        assert {key: told[str(step)][key] for key in values} == pytest.approx(values, rel=1e-4)
    assert json.loads((tmp_path / "told-1.json").read_text()) == {}  # the main process speaks for all
    checkpoint = tmp_path / "checkpoints" / "student" / "checkpoint-4"
    assert {"rng-0.pt", "rng-1.pt"} <= {path.name for path in checkpoint.iterdir()}


@pytest.mark.parametrize("option", ["bf16", "gradient_checkpointing"])
def test_the_head_works_with(world: Any, kit: Any, tmp_path: Path, option: str) -> None:
    plain, told = steps(world, kit, tmp_path / "plain", 10, 1)
    other, told_other = steps(world, kit, tmp_path / option, 10, 1, training={option: True})
    tolerance = 0.05 if option == "bf16" else 1e-5
    first, last = figures(told_other)[1], figures(told_other)[4]
    assert first["loss"] == pytest.approx(figures(told)[1]["loss"], rel=tolerance)
    assert last["loss"] < first["loss"]
    assert next(other.model.parameters()).dtype == torch.float32
    assert not other.model.is_gradient_checkpointing
    assert "forward" not in vars(other.model)  # neither the head nor autocast is left on it
    assert other.model.config.use_cache == plain.model.config.use_cache == kit.tiny_student().model.config.use_cache


def test_what_is_frozen_stays_and_the_rest_learns(world: Any, kit: Any, tmp_path: Path) -> None:
    def frozen() -> Student:
        student: Student = kit.tiny_student_without_dropout()
        student.model.lm_head.weight.requires_grad_(False)  # tied: the embeddings too
        return student

    before = frozen().model.state_dict()
    result, _ = steps(world, kit, tmp_path, 5, 2, student=frozen)
    changed = {name for name, tensor in result.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "lm_head.weight" not in changed
    assert "model.embed_tokens.weight" not in changed
    assert "model.layers.0.mlp.up_proj.weight" in changed


def test_weights_that_explode_end_the_run_and_are_never_saved(world: Any, kit: Any, tmp_path: Path) -> None:
    sink = kit.Sink()
    wild = {"learning_rate": math.inf, "save_steps": 1}
    with pytest.raises(LimbeckError) as caught:
        train(world.job(tmp_path, training=SGD | wild, student=kit.tiny_student_without_dropout), sink)
    assert caught.value.reason is Reason.LOSS_NOT_FINITE
    assert not sink.of("CheckpointSaved")
    assert Checkpoints(tmp_path / "checkpoints" / "student").newest().checkpoint is None


def test_a_loss_that_is_not_finite_names_its_rows_and_takes_no_step(world: Any, kit: Any, tmp_path: Path) -> None:
    def broken() -> Student:
        student: Student = kit.tiny_student_without_dropout()
        with torch.no_grad():
            student.model.model.norm.weight.fill_(torch.nan)
        return student

    sink = kit.Sink()
    with pytest.raises(LimbeckError) as caught:
        steps(world, kit, tmp_path, 2, 1, student=broken)
    assert caught.value.reason in (Reason.LOSS_NOT_FINITE, Reason.SELF_CHECK_FAILED)

    poisoned = world.sequences[3]

    class Poison(NoSource):
        def signals_for(self, sequences: Any) -> Any:
            return [kit.poisoned(kit.make_signal(world.teacher, s), s is poisoned) for s in sequences]

    losses = [kit.loss("reverse_kl")]
    with pytest.raises(LimbeckError) as caught:
        train(world.job(tmp_path / "row", source=Poison(), losses=losses), sink)
    assert caught.value.reason is Reason.LOSS_NOT_FINITE
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [("rows.jsonl", 4)]
    assert not any(not math.isfinite(message.values["loss"]) for message, _ in sink.of("Metrics"))


def test_preference_pairs_train_together(kit: Any, world: Any, tmp_path: Path) -> None:
    sequences = kit.make_sequences(6, pairs=True)
    store = kit.write_store(tmp_path / "signals", sequences, world.teacher)
    source = kit.CachedSource(store)
    losses = [kit.loss("contrastive")]
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1}
    sink = kit.Sink()
    train(world.job(tmp_path, sequences=sequences, source=source, losses=losses, training=training), sink)
    first, last = sink.of("Metrics")[0][0].values, sink.of("Metrics")[-1][0].values
    assert last["losses.contrastive"] < first["losses.contrastive"]


def test_nothing_to_train_is_refused(world: Any, kit: Any, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        train(world.job(tmp_path, sequences=[]), kit.Sink())
    assert caught.value.reason is Reason.NOTHING_TO_TRAIN


def test_trainer_prints_nothing(world: Any, kit: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(world.job(tmp_path, training={"max_steps": 2}), kit.Sink())
    assert capfd.readouterr().out == ""
