"""Train a student: from its start, or on from its newest whole checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import write_json
from limbeck.functional import Head, Term, install_head, remove_head
from limbeck.interfaces import LossContext
from limbeck.steering import Journal, Steering, refusal
from limbeck.training import state as tensors
from limbeck.training.checkpoints import Checkpoint, Checkpoints, Found
from limbeck.training.job import EventSink, TrainJob, TrainResult, differences, fingerprint
from limbeck.training.knobs import Knobs
from limbeck.training.plan import Plan
from limbeck.training.trainer import STATE, DistillTrainer
from limbeck.v1.event_pb2 import Rewound, StageStarted

_STARTED = "training.json"
_VERIFIED_TOKENS = 32


def train(
    job: TrainJob,
    sink: EventSink,
    stop: Callable[[], str | None] = lambda: None,
    steering: Steering | None = None,
) -> TrainResult:
    """Run a training to its end, or until `stop` names a signal; then a checkpoint is saved first.

    Emits Rewound (on a resume), StageStarted, Progress, Metrics, KnobChanged and CheckpointSaved. With the same job,
    thread count and machine a resumed training ends with the same bits as one that was never stopped, also where
    `steering` (of a training in one process) moved its knobs. Raises NOTHING_TO_TRAIN, LOSS_NOT_FINITE, KNOB_INVALID,
    RESUME_REFUSED, DISK_FULL, LOG_DAMAGED, and what the source raises.
    """
    if not len(job.sequences):
        raise LimbeckError(Reason.NOTHING_TO_TRAIN)
    settings = job.recipe.training.arguments()
    args = _arguments(job, settings)
    if steering is not None and args.world_size > 1:
        raise ValueError("a training in several processes cannot be steered")
    plan = _plan(job, args)
    max_steps = _max_steps(args, plan)
    note = {"fingerprint": fingerprint(job, settings, args.world_size, torch.get_num_threads())}
    checkpoints = Checkpoints(job.folder, args.save_total_limit)
    found, changed = _resume(job, checkpoints, note, sink if args.process_index == 0 else None)
    start = found.step if found is not None else 0
    if args.process_index == 0:
        sink.emit(StageStarted(total=max_steps, unit="steps", done=min(start, max_steps)), step=start)

    student = job.student()
    model = student.model
    use_cache = model.config.use_cache
    terms = _install(job, model, int(args.seed))
    knobs = Knobs(job.terms, max_steps, job.source.temperatures)
    steering = steering or Steering()
    journal = _replay(job, knobs, sink if args.process_index == 0 else None)
    try:
        if found is not None and start >= max_steps:  # Trainer would do one step more
            tensors.load_weights(model, found.folder)
            own = json.loads((found.folder / STATE).read_bytes())
            figures = _figures(start, own["window"]["total_tokens"], own["latest"])
            return TrainResult(_plain(job, model, use_cache), student.tokenizer_folder, None, figures)
        trainer = DistillTrainer(
            model, args, job=job, plan=plan, terms=terms, knobs=knobs, checkpoints=checkpoints, note=note,
            max_steps=max_steps, sink=sink, stop=stop, steering=steering, journal=journal, changed=changed,
        )  # fmt: skip
        name = stop()
        if name is not None:
            return TrainResult(_plain(job, model, use_cache), student.tokenizer_folder, name, {})
        trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
        figures = _figures(trainer.state.global_step, trainer.window.total_tokens, trainer.latest)
        plain = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trainer.accelerator.free_memory()
        return TrainResult(_plain(job, plain, use_cache), student.tokenizer_folder, trainer.interrupted, figures)
    finally:
        journal.close()
        job.source.close()


def _arguments(job: TrainJob, settings: dict[str, Any]) -> TrainingArguments:
    if not settings["gradient_checkpointing"]:  # the name is deprecated in newer releases: not used where not needed
        settings = {name: value for name, value in settings.items() if name != "gradient_checkpointing"}
    args = TrainingArguments(
        **settings,
        output_dir=str(job.folder),
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused there
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # no DataParallel: several GPUs are for one process each
    return args


def _plan(job: TrainJob, args: TrainingArguments) -> Plan:
    return Plan.of(
        job.sequences,
        args.per_device_train_batch_size,
        int(args.seed if args.data_seed is None else args.data_seed),
        pairs=any(loss.needs.pairs or loss.needs.normaliser == "pairs" for loss in job.terms),
        world=args.world_size,
        rank=args.process_index,
    )


def _max_steps(args: TrainingArguments, plan: Plan) -> int:
    if args.max_steps > 0:
        return int(args.max_steps)
    return math.ceil(float(args.num_train_epochs) * plan.steps_per_epoch(int(args.gradient_accumulation_steps)))


def _resume(
    job: TrainJob, checkpoints: Checkpoints, note: dict[str, Any], sink: EventSink | None
) -> tuple[Checkpoint | None, bool]:
    """The checkpoint to go on from, and whether its settings were others. Says so. Raises RESUME_REFUSED."""
    started = job.folder / _STARTED
    if sink is not None:
        checkpoints.clean()
    found: Found = checkpoints.newest()
    checkpoint = found.checkpoint
    before = checkpoint.note if checkpoint is not None else _read(started)
    changes = differences(before["fingerprint"], note["fingerprint"]) if before else []
    if changes and not job.allow_changed:
        hint = "give the former value, or allow the change when resuming: the training then goes on with the new one"
        problems = [Problem(text, field=name, hint=hint) for name, text in changes]
        raise LimbeckError(Reason.RESUME_REFUSED, "The training was begun with other settings.", problems)
    if sink is not None and before is not None:
        path = "" if checkpoint is None else job.relative(checkpoint.folder)
        step = 0 if checkpoint is None else checkpoint.step
        sink.emit(Rewound(to_step=step, checkpoint=path, rejected=found.rejected), step=step)
    if sink is not None:
        write_json(started, note)
    return checkpoint, bool(changes)


def _replay(job: TrainJob, knobs: Knobs, sink: EventSink | None) -> Journal:
    """Give the knobs again what they were given before; what a changed recipe does not allow any more is told."""
    journal = Journal(job.folder)
    for steer in journal.steers:
        if not (faults := knobs.faults(steer.values)):
            knobs.steer(steer)
        elif sink is not None:
            sink.emit(refusal(steer.values, faults))
    return journal


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) and "fingerprint" in value else None


def _install(job: TrainJob, model: Any, seed: int) -> list[Term]:
    """Put the head on, after comparing it with the model's own logits; the losses' parameters follow from the seed."""
    ids = torch.from_numpy(job.sequences[0].ids[:_VERIFIED_TOKENS].astype("int64"))[None]
    head = Head.verify(model, ids)
    config = model.config.get_text_config()
    context = LossContext(int(config.hidden_size), job.teacher_hidden_size, head.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        terms = [Term.of_recipe(loss, context) for loss in job.terms]
    install_head(model, terms)
    return terms


def _plain(job: TrainJob, model: Any, use_cache: Any) -> Any:
    """The model as an export needs it: its own forward, no losses, no gradients, as configured before."""
    remove_head(model)
    model.zero_grad()
    if job.recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.config.use_cache = use_cache
    return model.eval()


def _figures(steps: int, tokens: float, latest: dict[str, float]) -> dict[str, float]:
    figures = {"steps": float(steps), "tokens": float(tokens)}
    return figures | ({"loss": latest["loss"]} if "loss" in latest else {})
