"""A project with teachers of known worth: one that has learnt the rows by heart, one that has seen a part, one none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ANSWERS = [
    ("Where does the heron stand?", "in the shallow water by the mill"),
    ("What does the heron eat?", "small fish and frogs"),
    ("Who keeps the mill?", "an old miller and his daughter"),
    ("When does the mill stop?", "in August, when the river is low"),
    ("What colour is the door?", "green with a brass bell"),
    ("Why is the dam broken?", "ice came down the river in March"),
    ("How far is the town?", "two hours on foot"),
    ("What grows by the wall?", "pears, quinces and one vine"),
]


def write_rows(path: Path) -> Path:
    """Four of each answer, asked in other words, so that half may be held out."""
    rows = [
        {"prompt": f"{opening}{question}\n", "completion": answer}
        for question, answer in ANSWERS
        for opening in ("", "Say: ", "Tell me. ", "Q: ")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(folder: Path, rows: Path, steps: int) -> None:
    """Teach the model of a folder some rows, in place."""
    import torch
    from transformers import AutoModelForCausalLM

    from limbeck.data import Tokenizer, prepare, read_rows
    from limbeck.recipe import DataSpec

    prepared = prepare(*read_rows([rows]), Tokenizer.load(folder), DataSpec(path=str(rows), holdout=0))
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    length = max(len(one.ids) for one in prepared.train)
    ids = torch.zeros(len(prepared.train), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for place, one in enumerate(prepared.train):
        ids[place, : len(one.ids)] = torch.from_numpy(one.ids.astype("int64"))
        labels[place, : len(one.ids)][torch.from_numpy(one.trained)] = ids[place, : len(one.ids)][
            torch.from_numpy(one.trained)
        ]
    mask = torch.arange(length)[None] < torch.tensor([len(one.ids) for one in prepared.train])[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def contest(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with rows.jsonl and the models good, fair, raw (one tokenizer) and other (another tokenizer)."""
    from limbeck.testing.tiny import tiny_model_folder

    here = tmp_path_factory.mktemp("contest").resolve()
    rows = write_rows(here / "rows.jsonl")
    for name, tokenizer, seed, steps in (
        ("good", "tok_a", 1, 150),
        ("fair", "tok_a", 2, 25),
        ("raw", "tok_a", 3, 0),
        ("other", "tok_b", 4, 50),
    ):
        tiny_model_folder(here / name, data / tokenizer, seed=seed, hidden=64, layers=1)
        if steps:
            train(here / name, rows, steps)
    return here
