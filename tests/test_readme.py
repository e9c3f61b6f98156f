"""What the README and the guides show is run here: recipes, the ten-line plugin, commands, links."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, path: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


@pytest.fixture
def hellinger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's plugin, installed as pip would: a module with its metadata on sys.path."""
    (module,) = (block for block in blocks("python") if "hookimpl" in block)
    (project,) = (block for block in blocks("toml") if "entry-points" in block)
    site = tmp_path / "site"
    metadata = site / "limbeck_hellinger-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "limbeck_hellinger.py").write_text(module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: limbeck-hellinger\nVersion: 0.1.0\n")
    group, entry = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"', project, re.M)[0][0:2]
    target = re.findall(rf'^{entry} = "(.*)"', project, re.M)[0]
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry} = {target}\n")
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("limbeck_hellinger", None)


def test_the_plugin_is_ten_lines() -> None:
    (module,) = (block for block in blocks("python") if "hookimpl" in block)
    code = [line for line in module.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 12  # ten statements, two of which are wrapped or imports
    assert "import torch" not in module


def test_the_plugin_is_found_and_trains_a_model(hellinger: Path, tiny_teacher: Path, tiny_student: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from limbeck.functional import Head, distill_loss, make_terms
    from limbeck.interfaces import LossContext
    from limbeck.plugins import load_plugins

    registry = load_plugins()
    assert [(e.distribution, e.version) for e in registry.entries if e.plugin.name == "hellinger"] == [
        ("limbeck-hellinger", "0.1.0")
    ]
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher).eval()
    student = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    vocabulary = int(student.config.vocab_size)
    (given,) = [block for block in blocks("yaml") if "plugin: hellinger" in block]
    options = dict(re.findall(r"(\w+): ([\w.]+)", given.split("{")[1]))
    losses = [{k: v if k == "plugin" else float(v) for k, v in options.items()}]
    terms, values = make_terms(losses, LossContext(student.config.hidden_size, teacher.config.hidden_size, vocabulary))
    ids = torch.randint(3, vocabulary, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs, batch = _signals(teacher, ids, temperature=2.0, k=8)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    seen = []
    for _ in range(8):
        hidden = student.model(**inputs).last_hidden_state
        output = distill_loss(hidden, Head.of(student), batch, terms, values)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        seen.append(float(output.loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    hidden = teacher.model(**inputs).last_hidden_state
    assert float(distill_loss(hidden, Head.of(teacher), batch, terms, values).loss.detach()) == pytest.approx(
        0, abs=1e-3
    )


def test_recipes_of_the_readme_are_valid(tmp_path: Path, hellinger: Path) -> None:
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe

    registry = load_plugins()
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Once"}) + "\n")
    whole, losses = (block for block in blocks("yaml") if "losses:" in block)
    path = tmp_path / "recipe.yaml"
    path.write_text(whole)
    recipe = load_recipe(path, registry)
    assert [loss.name for loss in recipe.losses] == ["forward_kl", "cross_entropy"]
    assert recipe.evaluation.twin
    head, tail = whole.split("losses:\n")
    path.write_text(head + losses + tail[tail.index("training:") :])
    assert [loss.name for loss in load_recipe(path, registry).losses] == ["hellinger"]


@pytest.mark.parametrize("name", ["recipe.yaml", "short.yaml"])
def test_the_demo_recipes_are_valid_and_keep_half_of_the_layers(name: str) -> None:
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe

    recipe = load_recipe(ROOT / "examples" / "demo" / name, load_plugins())
    assert len(recipe.student.layers or []) == 9
    assert recipe.evaluation.twin
    assert [(loss.name, loss.config.weight) for loss in recipe.losses] == [("forward_kl", 0.9), ("cross_entropy", 0.1)]


def test_demo_prompts_are_many_and_each_is_said_once() -> None:
    folder = ROOT / "examples" / "demo"
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    assert len(prompts) >= 176
    assert len({prompt.casefold() for prompt in prompts}) == len(prompts)
    assert all(set(row) == {"prompt"} and row["prompt"] == row["prompt"].strip() for row in rows)
    starts = {prompt.split()[0] for prompt in prompts}
    assert len(starts) > 90  # varied in form
    short = [json.loads(line) for line in (folder / "prompts_short.jsonl").read_text("utf-8").splitlines()]
    assert all(row in rows for row in short)


def test_every_command_that_the_guides_show_exists() -> None:
    from limbeck.cli.main import COMMANDS

    shown = {
        word
        for path in GUIDES
        for block in blocks("sh", path)
        for word in re.findall(r"^(?:\S*/)?limbeck (\w+)", block, re.M)
    }
    assert {"run", "resume", "check", "preview", "plugins", "schema"} <= shown
    assert shown <= set(COMMANDS)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    made = {t for path in GUIDES for block in blocks("sh", path) for t in re.findall(r"^make (\w+)", block, re.M)}
    assert {"demo", "test"} <= made <= targets


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} == set(
        re.findall(r"\]\(([\w-]+\.md)\)", index)
    )


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), target


def _signals(teacher: Any, ids: Any, *, temperature: float, k: int) -> tuple[Any, Any]:
    """A batch of sequences with the teacher's k likeliest ids, through the codec, as the engine makes it."""
    import numpy as np
    import torch

    from limbeck.data.sequence import TokenSequence
    from limbeck.functional import collate
    from limbeck.signals import Signal, TopK

    sequences, signals = [], []
    for index, row in enumerate(ids.numpy().astype(np.int32)):
        with torch.no_grad():
            logits = teacher(torch.from_numpy(row[None]).long()).logits[0, :-1].double()
        top, places = logits.log_softmax(-1).topk(k)
        tails = [(logits / t).log_softmax(-1).scatter(-1, places, -torch.inf).logsumexp(-1) for t in (1.0, temperature)]
        found = TopK.from_logprobs(
            places.int().numpy(), top.numpy(), torch.stack(tails, -1).float().numpy(), (1.0, temperature)
        )
        trained = np.arange(len(row)) > 0
        sequences.append(TokenSequence(index, row, trained, np.zeros((len(row), 2), np.int32), "made.jsonl", index + 1))
        signals.append(Signal(0, len(row) - 1, top_k=found))
    return collate(sequences, signals, (1.0, temperature), pad_id=0)
