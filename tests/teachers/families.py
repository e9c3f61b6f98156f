"""Tiny models of four families and what they say one sequence at a time, in float64, without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from limbeck.teachers import TransformersConfig
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.tiny import tiny_model_folder

# a window and a soft-cap that matter at these lengths
MORE: dict[str, dict[str, Any]] = {
    "llama": {"layers": 4},
    "gemma3": {"layers": 4, "sliding_window": 8},
    "gemma2": {"layers": 4, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gpt2": {"layers": 4},
}
VOCAB = 261


def folder_of(family: str, root: Path, data: Path) -> Path:
    return tiny_model_folder(root / family, data / "tok_a", family, seed=3, scale=2.0, **MORE[family])


def teacher_of(folder: Path, **config: Any) -> TransformersTeacher:
    return TransformersTeacher(TransformersConfig(model=str(folder), **config))


def sequences(lengths: tuple[int, ...]) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    return [np.concatenate([[2], rng.integers(5, VOCAB, length - 1)]).astype(np.int32) for length in lengths]


class Reference:
    """The model as transformers loads it, eager, asked plainly."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    @torch.no_grad()
    def outputs(self, ids: npt.NDArray[np.int32]) -> Any:
        return self.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True)

    def logits(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        return self.outputs(ids).logits[0].double().numpy()

    def logprobs(self, ids: npt.NDArray[np.int32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
        logits = self.logits(ids) / temperature
        return logits - np.logaddexp.reduce(logits, axis=1)[:, None]

    def greedy(self, ids: npt.NDArray[np.int32], count: int, ends: tuple[int, ...]) -> list[int]:
        written: list[int] = []
        for _ in range(count):
            token = int(self.logits(np.concatenate([ids, written]).astype(np.int32))[-1].argmax())
            if token in ends:
                break
            written.append(token)
        return written
