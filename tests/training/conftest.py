"""A tiny training: byte-level rows, signals that a real teacher would give, losses of the catalogue."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data import TokenSequence
from limbeck.losses import PLUGINS as LOSSES
from limbeck.plugins import Entry
from limbeck.recipe import Bound, BoundLoss, SignalsSpec, StudentSpec, TrainingSpec
from limbeck.recipe.bound import knob_bounds
from limbeck.schedulers import PLUGINS as SCHEDULERS
from limbeck.signals import Signal, SignalHeader, SignalStore, SignalWriter, TopK
from limbeck.testing.tiny import tiny_model
from limbeck.training import CachedSource, Student, TrainJob

TEMPERATURES = (1.0, 2.0)
VOCAB = 64


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # each training ends with a collection, which would look at all that the imports made
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


def scheduled(name: str, **options: Any) -> Bound:
    """A scheduler as a recipe binds it."""
    plugin = next(plugin for plugin in SCHEDULERS if plugin.name == name)
    return Bound(Entry(plugin, "scheduler", "limbeck", "0"), plugin.config.model_validate(options), "losses[0]")


def loss(plugin_name: str, **options: Any) -> BoundLoss:
    """A loss as a recipe binds it; a knob may be a scheduler."""
    plugin = next(plugin for plugin in LOSSES if plugin.name == plugin_name)
    bounds = knob_bounds(plugin.config)
    knobs = {name: options.pop(name, plugin.config.model_fields[name].default) for name in bounds}
    config = plugin.config.model_validate(options | {k: v for k, v in knobs.items() if isinstance(v, float)})
    entry = Entry(plugin, "loss", "limbeck", "0")
    return BoundLoss(plugin_name, entry, config, plugin.needs(config), "losses[0]", knobs, bounds)


@dataclass
class Recipe:
    """As much of recipe.Recipe as training reads."""

    losses: Sequence[BoundLoss]
    training: TrainingSpec
    student: StudentSpec = field(default_factory=lambda: StudentSpec.model_validate({"from": "teacher"}))
    signals: SignalsSpec = field(default_factory=SignalsSpec)


class Sink:
    """Keeps events as (kind, message, step); `hook` sees each, and may raise as a crash would."""

    def __init__(self, hook: Callable[[str, Any, int], None] | None = None) -> None:
        self.events: list[tuple[str, Any, int]] = []
        self._step = 0
        self._hook = hook

    def emit(self, message: Any, *, step: int | None = None) -> None:
        self._step = self._step if step is None else step
        self.events.append((message.DESCRIPTOR.name, message, self._step))
        if self._hook is not None:
            self._hook(message.DESCRIPTOR.name, message, self._step)

    def of(self, kind: str) -> list[tuple[Any, int]]:
        return [(message, step) for name, message, step in self.events if name == kind]


def make_sequences(count: int, seed: int = 0, *, pairs: bool = False) -> list[TokenSequence]:
    generator = np.random.default_rng(seed)
    sequences = []
    for index in range(count):
        length = int(generator.integers(6, 14))
        ids = generator.integers(3, VOCAB, length).astype(np.int32)
        ids[0] = 2
        trained = np.zeros(length, dtype=bool)
        trained[int(generator.integers(2, 5)) :] = True
        offsets = np.stack([np.arange(length), np.arange(1, length + 1)], axis=1).astype(np.int32)
        pair, chosen = (index // 2, index % 2 == 0) if pairs else (-1, True)
        sequences.append(TokenSequence(index, ids, trained, offsets, "rows.jsonl", index + 1, pair, chosen))
    return sequences


def make_signal(teacher: Any, sequence: TokenSequence, k: int = 8) -> Signal:
    """What `teacher` says of a sequence: its k likeliest ids, the tails, and the target."""
    with torch.no_grad():
        logits = teacher(input_ids=torch.from_numpy(sequence.ids.astype(np.int64))[None]).logits[0].double()
    rows = slice(sequence.first_row, sequence.first_row + sequence.n)
    logprobs = torch.log_softmax(logits[rows], -1)
    top = logprobs.topk(k)
    tails = [torch.log_softmax(logprobs / t, -1).scatter(1, top.indices, -torch.inf).logsumexp(1) for t in TEMPERATURES]
    top_k = TopK.from_logprobs(
        top.indices.numpy().astype(np.int32), top.values.float().numpy(),
        torch.stack(tails, 1).float().numpy(), TEMPERATURES,
    )  # fmt: skip
    labels = torch.from_numpy(sequence.ids[rows.start + 1 : rows.stop + 1].astype(np.int64))
    target = logprobs.gather(1, labels[:, None])[:, 0].float().numpy()
    return Signal(sequence.first_row, sequence.n, top_k, target)


def write_store(
    folder: Path, sequences: Sequence[TokenSequence], teacher: Any, k: int = 8, *, partial: bool = False
) -> SignalStore:
    """`partial`: of each sequence the first rows alone, of some none."""
    header = SignalHeader(
        vocab_size=VOCAB, k=k, temperatures=TEMPERATURES, target=True, tokenizer_digest="t", template_digest=None,
        weights_digest="w", teacher="tiny", partial=partial,
    )  # fmt: skip
    with SignalWriter(folder, header) as writer:
        for sequence in sequences:
            signal = make_signal(teacher, sequence, k)
            n = 3 * sequence.index % (signal.n + 1) if partial else signal.n
            assert signal.top_k is not None
            assert signal.target is not None
            rows = slice(n)
            writer.add(sequence, replace(signal, n=n, top_k=signal.top_k.take(rows), target=signal.target[rows]))
    return SignalStore(folder)


def weighed(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The same with tokens that weigh 0, a quarter, 1 and 2.5; every second sequence has no weights."""
    kinds = np.array([1.0, 0.25, 0.0, 2.5], np.float32)
    return [
        replace(s, weights=kinds[(np.arange(len(s.ids)) + s.index) % 4] if s.index % 2 else None) for s in sequences
    ]


@dataclass
class World:
    """What the tests of a training share."""

    sequences: list[TokenSequence]
    store: SignalStore
    teacher: Any

    def job(self, folder: Path, **changes: Any) -> TrainJob:
        """A training of ten rows, three epochs of three steps, with dropout, a schedule and accumulation."""
        training: dict[str, Any] = {
            "learning_rate": 1e-2, "num_train_epochs": 3.0, "per_device_train_batch_size": 2,
            "optim": "adamw_torch_fused",
            "gradient_accumulation_steps": 2, "save_steps": 1, "save_total_limit": 20, "logging_steps": 2, "seed": 7,
        }  # fmt: skip
        training |= changes.pop("training", {})
        losses = changes.pop("losses", None) or default_losses()
        recipe = Recipe(losses, TrainingSpec.model_validate(training))
        values: dict[str, Any] = {
            "recipe": recipe, "sequences": self.sequences, "source": CachedSource(self.store),
            "folder": folder / "checkpoints" / "student", "student": tiny_student,
        }  # fmt: skip
        return TrainJob(**(values | changes))


def default_losses() -> list[BoundLoss]:
    steps = scheduled("piecewise", points=[[0.0, 2.0], [0.5, 1.0]])
    falling = scheduled("linear", start=1.0, end=0.5)
    return [loss("forward_kl", temperature=steps, weight=falling), loss("cross_entropy", weight=0.1)]


def tiny_student(**more: Any) -> Student:
    return Student(tiny_model("llama", VOCAB, seed=3, attention_dropout=0.3, **more), Path("nowhere"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    sequences = make_sequences(10)
    teacher = tiny_model("llama", VOCAB, seed=1, scale=3.0)
    return World(sequences, write_store(tmp_path_factory.mktemp("signals"), sequences, teacher), teacher)


@pytest.fixture
def kit() -> Any:
    """The helpers above, for tests: conftest cannot be imported."""
    import sys

    return sys.modules[__name__]


class HiddenSource:
    """Hidden states of layer 1 as a teacher of another width might give them."""

    lookahead = 0
    temperatures = None

    def __init__(self, width: int) -> None:
        self._width = width

    def ahead(self, sequences: Sequence[TokenSequence]) -> None:
        pass

    def signals_for(self, sequences: Sequence[TokenSequence]) -> list[Signal | None]:
        return [Signal(s.first_row, s.n, hidden={1: self._states(s)}) for s in sequences]

    def close(self) -> None:
        pass

    def _states(self, sequence: TokenSequence) -> Any:
        generator = np.random.default_rng(sequence.index)
        return generator.standard_normal((sequence.n, self._width)).astype(np.float32)


def hidden_source(sequences: Sequence[TokenSequence], width: int) -> HiddenSource:
    return HiddenSource(width)


def tiny_student_without_dropout() -> Student:
    return Student(tiny_model("llama", VOCAB, seed=3), Path("nowhere"))


def poisoned(signal: Signal, really: bool) -> Signal:
    """A teacher that calls all but its first ids impossible: reverse KL with the tail is infinite there."""
    if not really or signal.top_k is None:
        return signal
    top = signal.top_k
    tails = np.full_like(top.tails, -np.inf)
    return Signal(signal.first_row, signal.n, TopK(top.ids, top.u, tails, top.temperatures), signal.target)
