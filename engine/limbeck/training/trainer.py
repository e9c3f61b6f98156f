"""transformers' Trainer with Limbeck's head, counts, data order, events and checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import disk_errors
from limbeck.functional import Term, check_finite, collate
from limbeck.signals import Signal
from limbeck.steering import CheckpointId, Journal, Steering
from limbeck.training import state as tensors
from limbeck.training.checkpoints import Checkpoints
from limbeck.training.job import EventSink, TrainJob
from limbeck.training.knobs import Knobs
from limbeck.training.plan import EpochSampler, Plan
from limbeck.training.sources import BatchSource
from limbeck.training.window import Window
from limbeck.v1.event_pb2 import CheckpointSaved, KnobChanged, Metrics, Progress

STATE = "limbeck.json"


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one micro-batch of this process, and their signals. `blank`: it only keeps the process in step."""

    sequences: list[TokenSequence]
    signals: list[Signal | None]
    blank: bool = False


class MicroBatches(Dataset[MicroBatch]):
    """Micro-batches by (epoch, number); tells the source of those to come, but of none beyond `last`."""

    def __init__(
        self, plan: Plan, sequences: Sequence[TokenSequence], source: BatchSource, last: tuple[int, int]
    ) -> None:
        self._plan, self._sequences, self._source, self._last = plan, sequences, source, last

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, key: tuple[int, int]) -> MicroBatch:
        sequences = self._rows(key)
        if not sequences:
            first = self._sequences[0]
            nothing = dataclasses.replace(first, trained=np.zeros_like(first.trained))
            return MicroBatch([nothing], self._source.signals_for([first]), blank=True)  # none of it is kept
        if self._source.lookahead:
            self._source.ahead(sequences)
            for coming in self._after(key):
                self._source.ahead(self._rows(coming))
        return MicroBatch(sequences, self._source.signals_for(sequences))

    def _rows(self, key: tuple[int, int]) -> list[TokenSequence]:
        return [self._sequences[index] for index in self._plan.rows(*key)]

    def _after(self, key: tuple[int, int]) -> Iterator[tuple[int, int]]:
        for _ in range(self._source.lookahead):
            epoch, number = key
            key = (epoch, number + 1) if number + 1 < len(self._plan) else (epoch + 1, 0)
            if key > self._last:
                return
            yield key


class DistillTrainer(Trainer):  # type: ignore[misc]
    """Trains a model that :func:`limbeck.functional.install_head` prepared.

    A loss is divided by the counts of tokens, rows and pairs over all micro-batches of the step and all processes, so
    accumulation and data parallelism change no number. Events go to `sink`; `stop` is asked after each step, `steering`
    before and after it.
    """

    # compute_loss divides by global counts already: Trainer must not divide by the accumulation steps again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        job: TrainJob,
        plan: Plan,
        terms: Sequence[Term],
        knobs: Knobs,
        checkpoints: Checkpoints,
        note: dict[str, Any],
        max_steps: int,
        sink: EventSink,
        stop: Callable[[], str | None],
        steering: Steering,
        journal: Journal,
        changed: bool = False,
    ) -> None:
        self.steps_per_epoch = plan.steps_per_epoch(args.gradient_accumulation_steps)
        self.sampler = EpochSampler(plan)
        self.knobs, self.window = knobs, Window(terms)
        self.latest: dict[str, float] = {}
        self.interrupted: str | None = None
        self.stop = stop
        self._steering, self._journal = steering, journal
        self._wanted: list[CheckpointId] = []  # the next checkpoint is to be told to whom
        self._job, self._checkpoints, self._note, self._changed = job, checkpoints, note, changed
        self._top_k = max((term.top_k or 0 for term in terms if term.needs.primitive == "top_k"), default=0) or None
        self._sink = sink
        self._denominators: dict[str, float] = {}
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        pad = config.pad_token_id
        self._pad_id = 0 if pad is None or pad < 0 else int(pad)
        epoch, steps = divmod(max_steps, self.steps_per_epoch)
        last = (epoch, steps * args.gradient_accumulation_steps - 1)
        rows = MicroBatches(plan, job.sequences, job.source, last)
        super().__init__(model=model, args=args, train_dataset=rows, callbacks=[_Flow(self)])
        self.remove_callback(PrinterCallback)

    def emit(self, message: Any) -> None:
        """Say something, from the main process only."""
        if self.is_world_process_zero():
            self._sink.emit(message, step=self.state.global_step)

    # ------------------------------------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[MicroBatch]:
        """The planned micro-batches. It draws from a generator of its own, never from torch's."""
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=_only, generator=torch.Generator())

    def get_batch_samples(
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of one step, with the knobs of that step in force and its global counts taken."""
        step = self.state.global_step
        steered = self._steering.steer(step, self.knobs, self._journal, self.emit)
        for change in self.knobs.advance(step, self.latest):
            self.emit(KnobChanged(knob=change.knob, before=change.before, after=change.after))
        for number in steered:
            self._steering.applied(number)
        samples = []
        counts = dict.fromkeys(("tokens", "rows", "pairs", "kept"), 0.0)
        for micro in itertools.islice(epoch_iterator, num_batches):
            inputs, batch = collate(
                micro.sequences, micro.signals, self.knobs.temperatures(), pad_id=self._pad_id, top_k=self._top_k
            )
            samples.append({**inputs, "batch": batch})
            for name, count in {**batch.counts, "kept": batch.n}.items():
                counts[name] += 0 if micro.blank else count
        if self.args.world_size > 1:
            total = self._reduce(torch.tensor(list(counts.values()), dtype=torch.float64))
            counts = dict(zip(counts, total.tolist(), strict=True))
        self._denominators = counts
        self.window.begin_step(counts)
        return samples, torch.tensor(counts["tokens"], dtype=torch.float32, device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The micro-batch's part of the step's loss. Raises LOSS_NOT_FINITE before any gradient is taken."""
        output = model(**inputs, values=self.knobs.values(), denominators=self._denominators)
        check_finite(output.not_finite, inputs["batch"])
        if not bool(torch.isfinite(output.loss)):
            raise self._not_finite(f"the loss is {float(output.loss)}, though each token's is finite")
        self.window.add(output)
        # Data parallelism averages gradients over processes; the counts are sums over them.
        loss = output.loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm. Raises LOSS_NOT_FINITE before a step that would spoil the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            raise self._not_finite(f"the gradient's norm is {float(norm)}, though the loss is finite")
        return norm

    def _not_finite(self, message: str) -> LimbeckError:
        hint = "lower the learning rate, or train in fp32"
        problem = Problem(f"at step {self.state.global_step + 1} {message}", field="training", hint=hint)
        return LimbeckError(Reason.LOSS_NOT_FINITE, problems=[problem])

    def _reduce(self, tensor: Tensor) -> Tensor:
        result: Tensor = self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")
        return result.cpu()

    # ---------------------------------------------------------------------------------------------- telling

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Emit the metrics of the window that ends here; Trainer's own summary at the end is not told."""
        if "loss" not in logs:
            return
        values = self.window.values(self._reduce if self.args.world_size > 1 else None)
        values |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        values |= {f"knobs.{name}": value for name, value in self.knobs.in_force.items()}
        self.emit(Metrics(values=values))
        self.window.reset()
        # Schedulers may read these; the clock must not decide a training.
        self.latest = {name: value for name, value in values.items() if name != "tokens_per_second"}

    # ------------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save everything that the next steps follow from; the main process makes it a checkpoint at the end."""
        step = self.state.global_step
        main = self.is_world_process_zero()
        folder = self._checkpoints.folder / f".checkpoint-{step}.partial"
        if main:
            tensors.check_weights(self.model, step)
            self._checkpoints.staging(step)
        self.accelerator.wait_for_everyone()
        with disk_errors(folder):
            torch.save(tensors.rng_state(), folder / f"rng-{self.args.process_index}.pt")
            if main:
                tensors.save_weights(self.model, folder)
                torch.save(self.optimizer.state_dict(), folder / tensors.OPTIMIZER)
                torch.save(self.lr_scheduler.state_dict(), folder / tensors.SCHEDULER)
                self.state.save_to_json(str(folder / "trainer_state.json"))
                (folder / STATE).write_text(json.dumps(self._own_state()))
        self.accelerator.wait_for_everyone()
        if main:
            checkpoint, size = self._checkpoints.commit(step, self._note)
            path = self._job.relative(checkpoint.folder)
            self.emit(CheckpointSaved(path=path, bytes=size))
            wanted, self._wanted = self._wanted, []
            for name in wanted:
                self._steering.saved(name, path, step, size)

    def wants_checkpoint(self) -> bool:
        """Whether somebody asks for a checkpoint of the step that has ended."""
        self._wanted += self._steering.take_checkpoints()
        return bool(self._wanted)

    def _own_state(self) -> dict[str, Any]:
        return {"knobs": self.knobs.state_dict(), "window": self.window.state_dict(), "latest": self.latest}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        tensors.load_weights(self.model, folder)
        own = json.loads((folder / STATE).read_bytes())
        self.knobs.load_state_dict(own["knobs"])
        self.window.load_state_dict(own["window"])
        self.latest = own["latest"]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        fresh = [{key: value for key, value in group.items() if key != "params"} for group in self._groups()]
        base_lrs = list(self.lr_scheduler.base_lrs)
        self.optimizer.load_state_dict(tensors.load(Path(checkpoint) / tensors.OPTIMIZER))
        scheduler = tensors.load(Path(checkpoint) / tensors.SCHEDULER)
        if not self._changed:
            self.lr_scheduler.load_state_dict(scheduler)
            return
        # A changed recipe is in force from here on: its rates and betas, at the step reached.
        for group, options in zip(self._groups(), fresh, strict=True):
            group.update(options)
        self.lr_scheduler.load_state_dict({**scheduler, "base_lrs": base_lrs})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # get_lr outside of step is meant here
            rates = self.lr_scheduler.get_lr()
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = rate

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Trainer calls it after the first batch was fetched; nothing of that draws from the global generators.
        if checkpoint is None:
            return
        file = Path(checkpoint) / f"rng-{self.args.process_index}.pt"
        if file.exists():  # a process that the checkpoint's training did not have starts from the seed
            tensors.set_rng_state(tensors.load(file))


class _Flow(TrainerCallback):  # type: ignore[misc]
    """When to log, save and stop."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.sampler.set_epoch(state.global_step // self._trainer.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        done = state.global_step >= state.max_steps
        self._trainer.emit(Progress(done=state.global_step, total=state.max_steps, unit="steps"))
        if state.global_step == 1 or done:
            control.should_log = True
        if done:
            control.should_save = True
        elif (name := self._trainer.stop()) is not None:
            self._trainer.interrupted = name
            control.should_save = control.should_training_stop = True
        if self._trainer.wants_checkpoint():
            control.should_save = True
        return control


def _only(batches: list[MicroBatch]) -> MicroBatch:
    return batches[0]
