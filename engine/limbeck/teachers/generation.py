"""What a loaded model writes: batches by budget, left padded, with a key-value cache and draws of our own.

Own loop instead of ``model.generate``: a folder's generation_config then has no way in, and a draw can belong to its
item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling
from limbeck.teachers.batching import by_budget
from limbeck.teachers.draws import uniforms
from limbeck.teachers.model import LoadedModel
from limbeck.teachers.sampling import next_ids


def generate(
    model: LoadedModel, prompts: Sequence[Prompt], sampling: Sampling, eos_ids: Sequence[int], budget: int
) -> Iterator[list[Completion]]:
    """The continuations of `prompts`, each as soon as it has ended; checked prompts only. Raises GENERATION_FAILED.

    Each step writes one token of a batch, so that whoever drives the iterator can stop there.
    """
    for positions in by_budget([len(prompt.ids) + sampling.max_new_tokens for prompt in prompts], budget):
        yield from _batch(model, [prompts[position] for position in positions], sampling, eos_ids)


def _batch(
    model: LoadedModel, prompts: list[Prompt], sampling: Sampling, eos_ids: Sequence[int]
) -> Iterator[list[Completion]]:
    ids, mask = _left_padded(prompts)
    ids, mask = ids.to(model.device), mask.to(model.device)
    ends = torch.tensor(sorted(eos_ids), device=model.device, dtype=torch.long)
    numbers = torch.zeros(len(prompts), sampling.max_new_tokens, dtype=torch.float64)
    if sampling.temperature > 0:
        drawn = [uniforms(sampling.seed, prompt.item_id, (sampling.max_new_tokens,)) for prompt in prompts]
        numbers = torch.from_numpy(np.stack(drawn))
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = None
    for step in range(sampling.max_new_tokens):
        outputs = model.body(ids, mask, positions=positions, cache=cache, use_cache=True)
        cache = model.cache(outputs)
        chosen = _choose(model, outputs.last_hidden_state[:, -1], prompts, live, sampling, numbers[live, step])
        del outputs
        ended = torch.isin(chosen, ends).cpu()
        for row, token, end in zip(live, chosen.tolist(), ended.tolist(), strict=True):
            if not end:
                written[row].append(token)
        cut = step + 1 == sampling.max_new_tokens
        yield [
            Completion(prompts[row].item_id, np.array(written[row], np.int32), "stop" if end else "length")
            for row, end in zip(live, ended.tolist(), strict=True)
            if end or cut
        ]
        if cut or ended.all():
            return
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if ended.any():  # go on with the others only
            keep = torch.nonzero(~ended)[:, 0]
            live = [live[row] for row in keep.tolist()]
            keep = keep.to(model.device)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            cache.batch_select_indices(keep)


def _left_padded(prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.ids) :] = prompt.ids
        mask[row, longest - len(prompt.ids) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _choose(
    model: LoadedModel, hidden: Tensor, prompts: list[Prompt], live: list[int], sampling: Sampling, numbers: Tensor
) -> Tensor:
    """The next id [n] of each live row, from `hidden` [n, d] by chunks of the head."""
    chosen = []
    for start in range(0, len(hidden), model.chunk_rows):
        rows = slice(start, start + model.chunk_rows)
        logits = model.logits(hidden[rows])
        peak = logits.amax(-1)  # NaN where any is
        if not torch.isfinite(peak).all():
            hint = "the weights hold NaN, or the precision overflows: try dtype float32"
            problems = [
                Problem(
                    "the model's numbers are not finite", field=f"item {prompts[live[start + i]].item_id}", hint=hint
                )
                for i in torch.nonzero(~torch.isfinite(peak))[:, 0].tolist()
            ]
            raise LimbeckError(Reason.GENERATION_FAILED, problems=problems)
        chosen.append(next_ids(logits, sampling, numbers[rows]))
    return torch.cat(chosen)
