"""Size, speed and error of the signal codec.

python benchmarks/codec.py                      logits drawn at random, Gemma's vocabulary
python benchmarks/codec.py --model FOLDER       logits of a real model, reading --text
python benchmarks/codec.py --run runs/NAME      the stored signals of a run (size and speed; the truth is not stored)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.signals import Signal, SignalHeader, SignalStore, TopK
from limbeck.signals.codec import Packed, decode, encode
from limbeck.signals.shard import Shard
from limbeck.signals.topk import logsumexp

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
SPEED_ROWS = 16_384  # rows of the speed test: what was captured, repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal LM whose logits are taken")
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "LICENSE", help="what the model reads")
    parser.add_argument("--run", type=Path, help="folder of a run with stored signals")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    if options.run is not None:
        for folder in sorted((options.run / "signals").iterdir()):
            stored(folder)
        return
    source = random_logits if options.model is None else model_logits
    vocab_size, tops, errors, normalised_errors = 0, [], [], []
    for logits in source(options):
        vocab_size = logits.shape[1]
        top, truth = capture(logits, options.k)
        tops.append(top)
        errors.append([kl(truth[t], decoded_raw(top, t)) for t in TEMPERATURES])
        normalised_errors.append([kl(truth[t], top.at(t)[1:]) for t in TEMPERATURES])
    rows = sum(top.n for top in tops)
    print(
        f"{rows} tokens, vocabulary {vocab_size:,}, k = {options.k}, saturated entries {sum(t.saturated for t in tops)}"
    )
    print(f"\n{'temperature':>12} {'max KL(p‖p̂)':>14} {'mean':>10} {'raw codes, max |KL|':>21}")
    for column, temperature in enumerate(TEMPERATURES):
        good = np.concatenate([row[column] for row in normalised_errors])
        raw = np.abs(np.concatenate([row[column] for row in errors])).max() if temperature == 1.0 else None
        shown = f"{raw:>21.1e}" if raw is not None else f"{'–':>21}"
        print(f"{temperature:>12g} {good.max():>14.1e} {good.mean():>10.1e} {shown}")
    ids, u, tails = (np.concatenate([getattr(top, name) for top in tops]) for name in ("ids", "u", "tails"))
    speed(vocab_size, TopK(ids, u, tails[:, 1:2], (1.0,)))


def capture(logits: Any, k: int) -> tuple[TopK, dict[float, tuple[Any, Any]]]:
    """An exact float64 teacher: its k best ids, and the true log-probabilities of these and of the rest."""
    ids = np.argpartition(-logits, k, axis=1)[:, :k]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logits, ids, axis=1), axis=1), axis=1)
    truth = {}
    for temperature in TEMPERATURES:
        rest = logits / temperature
        rest -= logsumexp(rest)[:, None]
        on = np.take_along_axis(rest, ids, axis=1)
        np.put_along_axis(rest, ids, -np.inf, axis=1)
        truth[temperature] = (on, logsumexp(rest))
    tails = np.stack([truth[t][1] for t in TEMPERATURES], axis=1)
    top = TopK.from_logprobs(ids, truth[1.0][0], tails, TEMPERATURES)
    order = np.argsort(ids, axis=1), np.argsort(np.argsort(top.ids, axis=1), axis=1)
    for temperature, (on, tail) in truth.items():  # in the codec's order
        truth[temperature] = (np.take_along_axis(np.take_along_axis(on, order[0], 1), order[1], 1), tail)
    return top, truth


def decoded_raw(top: TopK, temperature: float) -> tuple[Any, Any]:
    """What the codes say without normalising: right at temperature 1 only, and only about."""
    from limbeck.signals.topk import dequantise

    return dequantise(top.u), top.tails[:, top.temperatures.index(temperature)].astype(np.float64)


def kl(truth: tuple[Any, Any], decoded: tuple[Any, Any]) -> Any:
    (on, tail), (on_hat, tail_hat) = truth, decoded
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isneginf(tail), 0.0, np.exp(tail) * (tail - tail_hat))
    return (np.exp(on) * (on - on_hat)).sum(axis=1) + rest


def random_logits(options: argparse.Namespace) -> Iterator[Any]:
    """Rows from flat to peaked, a few at a time: a row of 262,144 float64 is 2 MB."""
    draw = np.random.default_rng(0)
    for _ in range(0, options.tokens, 8):
        yield draw.normal(size=(8, 262_144)) * np.linspace(1.0, 12.0, 8)[:, None]


def model_logits(options: argparse.Namespace) -> Iterator[Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    ids = tokenizer(options.text.read_text(), add_special_tokens=False).input_ids
    lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = torch.tensor([[*lead, *ids][: options.tokens]])
    with torch.inference_mode():
        hidden = model.base_model(ids).last_hidden_state[0]
        for rows in hidden.split(8):
            yield model.get_output_embeddings()(rows).double().numpy()


def stored(folder: Path) -> None:
    store = SignalStore(folder)
    signals = []
    for name in store.shards:
        shard = Shard(folder / name)
        signals += [decode(shard.entry(int(index)).packed, store.header) for index in shard.indexes]
    tokens = sum(signal.n for signal in signals)
    print(f"{folder}: {len(signals)} sequences, {tokens} tokens, {store.bytes:,} bytes on disk,", end=" ")
    print(f"{store.bytes / tokens:.1f} a token, {sum(store.header.row_bytes.values())} of them signal")
    tops = [signal.top_k for signal in signals if signal.top_k is not None]
    if tops:
        ids, u, tails = (np.concatenate([getattr(top, name) for top in tops]) for name in ("ids", "u", "tails"))
        print(f"saturated entries: {sum(top.saturated for top in tops)} of {ids.size}")
        speed(store.header.vocab_size, TopK(ids, u, tails, tops[0].temperatures))


def speed(vocab_size: int, top: TopK) -> None:
    top = top.take(np.resize(np.arange(top.n), SPEED_ROWS))
    header = SignalHeader(
        vocab_size=vocab_size,
        k=top.k,
        temperatures=top.temperatures,
        target=False,
        tokenizer_digest="",
        template_digest=None,
        weights_digest="",
        teacher="benchmark",
    )
    signal = Signal(0, top.n, top_k=top)
    packed: Packed = encode(signal, header)
    logprobs, temperature = top.at(1.0)[1] if 1.0 in top.temperatures else None, top.temperatures[0]
    work: dict[str, Callable[[], object]] = {
        "pack (arrays to bytes)": lambda: encode(signal, header),
        "unpack (bytes to arrays)": lambda: decode(packed, header),
        "normalise at one temperature": lambda: top.at(temperature),
    }
    if logprobs is not None:
        work["quantise, sort and check"] = lambda: TopK.from_logprobs(top.ids, logprobs, top.tails, top.temperatures)
    print(f"\n{sum(map(len, packed.fields.values())) / top.n:.1f} bytes a token ({len(top.temperatures)} temperatures)")
    for name, function in work.items():
        print(f"{name:>30} {top.n / best(function) / 1e6:>8.2f} M tokens/s")


def best(function: Callable[[], object], times: int = 7) -> float:
    """Seconds of the quickest of some calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
