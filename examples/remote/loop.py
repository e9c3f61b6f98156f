"""Train a student on signals of a Limbeck server: a plain PyTorch loop, with the client and `limbeck.functional` alone.

limbeck serve --signals demo=runs/gemma-half
python examples/remote/loop.py 127.0.0.1:7411 demo path/or/hub-id-of-the-student out
"""

import argparse
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from limbeck.client import Client, StoredSignal, connect
from limbeck.functional import Head, collate, distill_loss, make_terms
from limbeck.interfaces import LossContext


def batches(client: Client, dataset: str, size: int) -> Iterator[list[StoredSignal]]:
    """The dataset once, in batches; a lost connection is made anew, and nothing comes twice."""
    batch: list[StoredSignal] = []
    for stored in client.signals(dataset, tokens=True):
        batch.append(stored)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("dataset")
    parser.add_argument("student")
    parser.add_argument("output")
    parser.add_argument("--token-file")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    asked = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = AutoModelForCausalLM.from_pretrained(asked.student).to(device).train()
    config = student.config.get_text_config()
    losses = [{"plugin": "forward_kl", "weight": 0.9}, {"plugin": "cross_entropy", "weight": 0.1}]
    terms, values = make_terms(losses, LossContext(config.hidden_size, None, config.vocab_size))
    optimizer = torch.optim.AdamW(student.parameters(), lr=asked.learning_rate)

    with connect(asked.address, token_file=asked.token_file) as client:
        for epoch in range(asked.epochs):
            total, tokens = 0.0, 0
            for rows in batches(client, asked.dataset, asked.batch):
                inputs, signals = collate(
                    [row.tokens for row in rows], [row.signal for row in rows], [1.0], pad_id=config.pad_token_id or 0
                )
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                hidden = student.base_model(**inputs, use_cache=False).last_hidden_state
                loss = distill_loss(hidden, Head.of(student), signals.to(device), terms, values).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total, tokens = total + loss.item() * signals.n, tokens + signals.n
            print(f"epoch {epoch + 1}: loss {total / tokens:.4f} over {tokens} tokens", flush=True)
    student.save_pretrained(asked.output)


if __name__ == "__main__":
    main()
