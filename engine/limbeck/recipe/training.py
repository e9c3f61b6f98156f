"""`training:` of a recipe: the names of transformers.TrainingArguments that Limbeck takes, and why not the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from limbeck.interfaces import Config

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]


class TrainingSpec(Config):
    """How the student is trained. Names and meanings are those of transformers.TrainingArguments."""

    learning_rate: float = Field(5e-5, ge=0, description="Peak of the learning rate.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training rows, unless max_steps is given.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps in all; -1: as many as num_train_epochs needs.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of one forward pass on one device.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes of one optimizer step.")
    warmup_steps: float = Field(
        0, ge=0, description="Steps of linear warm-up; a number below 1 is a share of all steps."
    )
    lr_scheduler_type: Schedule = Field("linear", description="Course of the learning rate after the warm-up.")
    optim: Optimizer = Field("adamw_torch_fused", description="Optimizer.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, not on biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the root of the squared mean.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 clips nothing.")
    bf16: bool = Field(False, description="Automatic mixed precision in bfloat16; weights stay as the student's dtype.")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in backward, to save memory.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of dropout and of new parameters.")
    data_seed: int | None = Field(None, ge=0, lt=2**32, description="Seed of the order of rows; default: seed.")
    logging_steps: int = Field(1, ge=1, description="Optimizer steps between two reports of figures.")
    save_steps: int = Field(100, ge=1, description="Optimizer steps between two checkpoints; the end saves one too.")
    save_total_limit: int = Field(2, ge=1, description="Complete checkpoints kept.")

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps == 0:
            raise ValueError("max_steps 0 trains nothing: give a number of steps, or -1 for num_train_epochs")
        return steps

    @field_validator("warmup_steps")
    @classmethod
    def _steps_or_share(cls, steps: float) -> float:
        if steps >= 1 and not steps.is_integer():
            raise ValueError(f"warmup_steps {steps:g} is neither a number of steps nor a share below 1")
        return steps

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers.TrainingArguments."""
        values = self.model_dump()
        if self.data_seed is None:
            values["data_seed"] = self.seed
        return values


def why_refused(name: str) -> str | None:
    """Why a name that TrainingArguments knows is not taken, None for a name that it does not know."""
    return next((why for names, why in REFUSED.items() if name in names.split()), None)


# Why Limbeck does not take a name. Everything else is unknown to it, and gets the nearest name.
REFUSED: dict[str, str] = {
    "output_dir run_name logging_dir overwrite_output_dir": "the run's folder is `output:` of the recipe",
    "do_train do_eval do_predict resume_from_checkpoint local_rank ignore_data_skip "
    "restore_callback_states_from_checkpoint enable_jit_checkpoint": "the stages and `limbeck resume` see to it",
    "eval_strategy evaluation_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size "
    "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
    "batch_eval_metrics load_best_model_at_end metric_for_best_model greater_is_better bf16_full_eval fp16_full_eval": (
        "evaluation is Limbeck's own: see `evaluation:`"
    ),
    "save_strategy save_only_model save_on_each_node save_safetensors": (
        "checkpoints are complete and counted in steps: use save_steps and save_total_limit"
    ),
    "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica "
    "disable_tqdm report_to project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "include_num_input_tokens_seen include_tokens_per_second": (
        "figures are Limbeck's own events: use logging_steps, and an observer plugin for a tracker"
    ),
    "remove_unused_columns label_names label_smoothing_factor average_tokens_across_devices length_column_name "
    "group_by_length train_sampling_strategy dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order "
    "accelerator_config split_batches": "Limbeck makes the batches and their losses itself",
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision": (
        "Limbeck uploads nothing: the student's folder can be pushed by `hf upload`"
    ),
    "warmup_ratio": "transformers 5 has merged it into warmup_steps: write warmup_steps: 0.1 for a tenth of all steps",
    "no_cuda use_cpu use_mps_device": "choose devices by CUDA_VISIBLE_DEVICES",
    "per_gpu_train_batch_size per_gpu_eval_batch_size train_batch_size batch_size": (
        "it is called per_device_train_batch_size"
    ),
    "lr epochs": "names are those of transformers.TrainingArguments: learning_rate, num_train_epochs",
    "dtype torch_dtype": "it is `student.dtype`",
    "auto_find_batch_size": "a batch size that changes by itself cannot be resumed exactly",
    "use_liger_kernel liger_kernel_config": "it would replace Limbeck's own loss",
    "fp16 fp16_opt_level half_precision_backend tf32 torch_compile torch_compile_backend torch_compile_mode "
    "neftune_noise_alpha torch_empty_cache_steps use_cache full_determinism gradient_checkpointing_kwargs optim_args "
    "lr_scheduler_kwargs "
    "optim_target_modules parallelism_config fsdp fsdp_config deepspeed ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics": (
        "it has not been tested with Limbeck yet"
    ),
}
