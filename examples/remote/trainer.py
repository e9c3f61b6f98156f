"""Feed transformers' own Trainer with signals of a Limbeck server.

    limbeck serve --signals demo=runs/gemma-half
    python examples/remote/trainer.py 127.0.0.1:7411 demo path/or/hub-id-of-the-student out

The head is put into the student's forward, so Trainer calls the model as it calls any other and never sees a logit.
Losses are means over the tokens of a micro-batch: leave `gradient_accumulation_steps` at 1, or use `limbeck run`,
which divides by the tokens of the whole step.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from limbeck.client import Client, RemoteDataset, StoredSignal, connect
from limbeck.functional import collate, install_head, make_terms, remove_head
from limbeck.interfaces import LossContext


class Signals(torch.utils.data.IterableDataset[StoredSignal]):
    """A dataset of the server; each iteration streams it anew."""

    def __init__(self, client: Client, dataset: RemoteDataset) -> None:
        self.client, self.dataset = client, dataset

    def __iter__(self) -> Iterator[StoredSignal]:
        return self.client.signals(self.dataset, tokens=True)


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

    student = AutoModelForCausalLM.from_pretrained(asked.student)
    config = student.config.get_text_config()
    losses = [{"plugin": "forward_kl", "weight": 0.9}, {"plugin": "cross_entropy", "weight": 0.1}]
    terms, values = make_terms(losses, LossContext(config.hidden_size, None, config.vocab_size))
    install_head(student, terms)

    def collator(rows: list[StoredSignal]) -> dict[str, Any]:
        tokens, signals = [row.tokens for row in rows], [row.signal for row in rows]
        inputs, batch = collate(tokens, signals, [1.0], pad_id=config.pad_token_id or 0)
        return {**inputs, "batch": batch, "values": values}

    with connect(asked.address, token_file=asked.token_file) as client:
        datasets = {dataset.name: dataset for dataset in client.datasets()}
        if asked.dataset not in datasets:
            parser.error(f"the server has no dataset {asked.dataset!r}, but {', '.join(datasets) or 'none at all'}")
        dataset = datasets[asked.dataset]
        arguments = TrainingArguments(
            output_dir=asked.output,
            max_steps=math.ceil(dataset.total / asked.batch) * asked.epochs,
            per_device_train_batch_size=asked.batch,
            learning_rate=asked.learning_rate,
            logging_steps=1,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
        )
        Trainer(student, arguments, data_collator=collator, train_dataset=Signals(client, dataset)).train()
    remove_head(student)
    student.save_pretrained(asked.output)


if __name__ == "__main__":
    main()
