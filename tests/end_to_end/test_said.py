"""What a teacher says while it writes is the signal that is trained on: no second question, nothing invented."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data import Tokenizer, read_sequences
from limbeck.data.tokenizer import Piece
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import (
    Completion,
    Config,
    Prompt,
    Said,
    Sampling,
    ScoreItem,
    TeacherInfo,
    TeacherPlugin,
    TextCompletion,
    TextToken,
    Want,
)
from limbeck.plugins import Entry, Registry, load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.pipeline import run_recipe
from limbeck.runs.stage import Record
from limbeck.signals import Signal, SignalStore, TopK
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.text_teachers import ScriptedTextTeacher

PROMPTS = 12


class NoConfig(Config):
    """Nothing to say."""


class Speaking(TransformersTeacher):
    """A transformers teacher that, where it is to tell of what it writes, writes from a script; it scores by its model.

    `scored` lists the items that it was asked to score.
    """

    scored: list[int]
    closes = True  # whether it tells of the end token

    def info(self) -> TeacherInfo:
        info = super().info()
        return replace(info, capabilities=info.capabilities | {"generate_top_k"})

    async def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        self.scored += [item.item_id for item in items]
        async with aclosing(super().score(items, want)) as answers:
            async for answer in answers:
                yield answer

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        if sampling.logprobs < 2:  # the self-check
            given = {prompt.item_id: prompt.ids for prompt in prompts}
            async with aclosing(super().generate(prompts, replace(sampling, logprobs=0))) as completions:
                async for completion in completions:
                    said = await self._say(given[completion.item_id], completion, 1) if sampling.logprobs else None
                    yield replace(completion, said=said)
            return
        tokenizer = Tokenizer.load(Path(self.config.model))
        for prompt in prompts:
            text = "it is so" if prompt.item_id % 2 else "many"
            ids = tokenizer.encode([Piece("q", False), Piece(text, True)])[0][-len(text) :][: sampling.max_new_tokens]
            completion = Completion(prompt.item_id, ids, "length" if len(ids) == sampling.max_new_tokens else "stop")
            yield replace(completion, said=await self._say(prompt.ids, completion, sampling.logprobs))

    async def _say(self, prompt: Any, completion: Completion, k: int) -> Said | None:
        end = [self.info().eos_ids[0]] if completion.finish_reason == "stop" and self.closes else []
        written = np.concatenate([completion.ids, np.array(end, np.int32)]).astype(np.int32)
        ids = np.concatenate([prompt, written]).astype(np.int32)
        item = ScoreItem(0, ids, len(prompt) - 1, len(written))
        async with aclosing(super().score([item], Want(top_k=k, target=True))) as answers:
            async for _, signal in answers:
                assert signal.top_k is not None
                support, logprobs, _ = signal.top_k.at(1.0)
                return Said(written, TopK.without_tail(support, logprobs), signal.target)
        return None


def registry(make: Callable[[Any], Any]) -> Registry:
    own = TeacherPlugin(name="scripted", config=NoConfig, factory=make, summary="of this test")
    return Registry((*load_plugins().entries, Entry(own, "teacher", "limbeck-scripted", "1")), ())


def write_recipe(folder: Path, student: Path, losses: str, **data: Any) -> Path:
    """A recipe with prompts, its teacher the scripted one."""
    (folder / "student").exists() or (folder / "student").symlink_to(student)
    rows = [{"prompt": f"{number} rivers? "} for number in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = {"plugin": "prompts", "path": "prompts.jsonl", "max_new_tokens": 8}
    recipe = {
        "teacher": {"plugin": "scripted"},
        "student": {"model": "student"},
        "data": {"generator": generator, "holdout": 3, **data},
        "losses": json.loads(losses),
        "training": {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 3},
        "evaluation": {"samples": 1, "max_new_tokens": 4},
        "output": "run",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def play(recipe: Path, plugins: Registry, until: str | None = None) -> Path:
    return run_recipe(load_recipe(recipe, plugins), plugins, until=until)


def figures(run: Path, stage: str) -> dict[str, float]:
    return Record(run, stage).figures


# ---------------------------------------------------------------------------------------------------- asked with text


def api_token(text: str) -> TextToken:
    """0.5 on what is written, 0.25 on "x", 0.125 on what is no token of the student's."""
    half, quarter, eighth = (float(np.log(share)) for share in (0.5, 0.25, 0.125))
    raw = text.encode()
    return TextToken(raw, half, ((raw, half), (b"x", quarter), (b"no token", eighth)))


def api_answer(*pieces: str, reason: Any = "stop") -> TextCompletion:
    return TextCompletion(0, "".join(pieces), reason, tokens=tuple(api_token(piece) for piece in pieces))


LOSSES = '[{"plugin": "forward_kl", "top_k": 3}, {"plugin": "cross_entropy", "weight": 0.5}]'


def test_a_student_trains_on_the_likeliest_tokens_of_an_api(tmp_path: Path, tiny_student: Path) -> None:
    """Two of three answers are told of token by token; the third in pieces that the student does not read."""
    teacher = ScriptedTextTeacher(
        api_answer("t", "w", "o"),
        api_answer("m", "a", "n", "y", reason="length"),
        api_answer("no", "ne"),
        max_logprobs=5,
    )
    run = play(write_recipe(tmp_path, tiny_student, LOSSES), registry(lambda config: teacher))
    assert len(teacher.asked) == PROMPTS
    assert teacher.sampling is not None
    assert teacher.sampling.logprobs == 3
    tokenizer = Tokenizer.load(tiny_student)
    known = unknown = 0
    for split in ("train", "holdout"):
        store = SignalStore(run / "signals" / split)
        assert (store.header.partial, store.header.tail_exact, store.header.k) == (True, False, 3)
        assert store.header.target == (split == "holdout")
        for sequence in read_sequences(run / "sequences" / f"{split}.arrow"):
            signal = store.get(sequence)
            answer = sequence.ids[sequence.trained]
            text = tokenizer.decode(answer)
            told = {"two": 3, "many": 4, "none": 0}[text]
            assert (signal.first_row, signal.n) == (sequence.first_row, told)
            known, unknown = known + (told > 0), unknown + len(answer) - told
            assert len(answer) - told == {"two": 1, "many": 0, "none": 5}[text]  # the end token, and all of the last
            assert signal.top_k is not None
            ids, logprobs, tail = signal.top_k.at(1.0)
            np.testing.assert_array_equal(ids[:, 0], answer[:told])
            np.testing.assert_allclose(np.exp(logprobs[:, :2]), np.tile([0.5, 0.25], (told, 1)), atol=1e-3)
            np.testing.assert_allclose(np.exp(tail), np.full(told, 0.25), atol=1e-3)
    found = figures(run, "label")
    assert (found["said"], found["unsaid_tokens"], found["saturated"]) == (known, unknown, 0)
    assert known == 8
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    models = evaluation["models"]
    assert set(models) == {"untrained", "student"}
    assert models["student"]["forward_kl"] < models["untrained"]["forward_kl"]
    held = read_sequences(run / "sequences" / "holdout.arrow")
    store = SignalStore(run / "signals" / "holdout")
    unsaid = sum(len(sequence.kept) - store.get(sequence).n for sequence in held)
    assert evaluation["holdout"]["unsaid_tokens"] == unsaid > 0
    assert f"leave out {unsaid} tokens" in (run / "report" / "index.html").read_text("utf-8")
    assert (run / "report" / "index.html").is_file()


def test_an_api_whose_tokens_are_others_is_refused_at_the_gate(tmp_path: Path, tiny_student: Path) -> None:
    teacher = ScriptedTextTeacher(api_answer("no", "ne"), max_logprobs=5)
    recipe = write_recipe(tmp_path, tiny_student, LOSSES, smoke_rows=4)
    with pytest.raises(LimbeckError, match="are those that the student reads") as caught:
        play(recipe, registry(lambda config: teacher))
    assert caught.value.reason is Reason.GENERATION_FAILED
    assert len(teacher.asked) == 4
    recipe = write_recipe(tmp_path, tiny_student, '[{"plugin": "cross_entropy"}]', smoke_rows=4)  # as it is told to do
    play(recipe, registry(lambda config: teacher), "generate")
    assert sorted(teacher.asked) == sorted(set(teacher.asked))


def test_without_a_gate_the_label_stage_refuses_it(tmp_path: Path, tiny_student: Path) -> None:
    teacher = ScriptedTextTeacher(api_answer("no", "ne"), max_logprobs=5)
    recipe = write_recipe(tmp_path, tiny_student, LOSSES, smoke_rows=0)
    with pytest.raises(LimbeckError, match="nothing was said of any trained token") as caught:
        play(recipe, registry(lambda config: teacher))
    assert caught.value.reason is Reason.TOKENIZER_MISMATCH


@pytest.mark.parametrize(
    ("rationale", "kept", "told"),
    [({"keep": False}, "ok", 0), ({"weight": 0.0}, "ok", 2), ({"weight": 0.5}, "<t>hm</t>ok", 11)],
    ids=["dropped", "context", "weighed"],
)
def test_what_was_said_around_a_rationale(
    tmp_path: Path, tiny_student: Path, rationale: dict[str, Any], kept: str, told: int
) -> None:
    """Dropped, other tokens are trained than were written; as context, what was said of those behind it holds."""
    teacher = ScriptedTextTeacher(api_answer(*"<t>hm</t>ok"), api_answer("a", "b"), max_logprobs=5)
    recipe = write_recipe(tmp_path, tiny_student, LOSSES, rationale={"tag": "t", **rationale})
    run = play(recipe, registry(lambda config: teacher), "label")
    tokenizer = Tokenizer.load(tiny_student)
    store = SignalStore(run / "signals" / "train")
    found = {}
    for sequence in read_sequences(run / "sequences" / "train.arrow"):
        signal = store.get(sequence)
        found[tokenizer.decode(sequence.ids[sequence.kept + 1])] = signal.n
        assert signal.top_k is not None
        np.testing.assert_array_equal(signal.top_k.ids[:, 0], sequence.ids[sequence.kept + 1][: signal.n])
    assert found == {kept: told, "ab": 2}
    assert figures(run, "prepare")["rows_with_rationale"] == PROMPTS // 2


# -------------------------------------------------------------------------------------------------- on token ids


@pytest.fixture
def speaking(tiny_teacher: Path) -> Callable[..., Callable[[Any], Speaking]]:
    def build(closes: bool = True) -> Callable[[Any], Speaking]:
        def make(config: Any) -> Speaking:
            teacher = Speaking(TransformersConfig(model=str(tiny_teacher)))
            teacher.scored, teacher.closes = make.scored, closes  # type: ignore[attr-defined]
            return teacher

        make.scored = []  # type: ignore[attr-defined]
        return make

    return build


KL = '[{"plugin": "forward_kl", "top_k": 64}]'


def stored(run: Path, split: str) -> dict[int, tuple[Any, Any]]:
    store = SignalStore(run / "signals" / split)
    return {s.index: (s, store.get(s)) for s in read_sequences(run / "sequences" / f"{split}.arrow")}


def test_what_was_said_is_not_scored_and_is_what_a_score_says(
    tmp_path: Path, tiny_student: Path, speaking: Callable[..., Any]
) -> None:
    make = speaking()
    run = play(write_recipe(tmp_path, tiny_student, KL), registry(make), "label")
    asked = [item for item in make.scored if item > 1]  # 0 and 1: the self-check's
    assert asked == []
    found = figures(run, "label")
    assert (found["said"], found["unsaid_tokens"]) == (PROMPTS, 0)
    scored = speaking()
    monkey = tmp_path / "scored"
    monkey.mkdir()
    recipe = write_recipe(monkey, tiny_student, KL)
    play(recipe, registry(scored), "generate")
    (monkey / "run" / "rows" / "said.jsonl").unlink()
    other = play(recipe, registry(scored), "label")
    assert figures(other, "label")["said"] == 0
    for split in ("train", "holdout"):
        ours, theirs = stored(run, split), stored(other, split)
        assert SignalStore(run / "signals" / split).header.tail_exact is False
        assert SignalStore(run / "signals" / split).header.partial is False
        assert len(ours) == len(theirs) > 0
        for index, (sequence, signal) in ours.items():
            again, expected = theirs[index]
            np.testing.assert_array_equal(sequence.ids, again.ids)
            assert (signal.first_row, signal.n) == (expected.first_row, expected.n)
            one, two = signal.top_k.at(1.0), expected.top_k.at(1.0)
            assert np.mean(one[0] == two[0]) > 0.99  # ties of the code may be in another order
            np.testing.assert_allclose(one[1], two[1], atol=2e-3)
            if split == "holdout":
                np.testing.assert_allclose(signal.target, expected.target, atol=1e-5)


def test_a_damaged_shard_is_made_again_from_what_was_said(
    tmp_path: Path, tiny_student: Path, speaking: Callable[..., Any]
) -> None:
    make = speaking()
    recipe = write_recipe(tmp_path, tiny_student, KL)
    run = play(recipe, registry(make), "label")
    (shard,) = (run / "signals" / "train").glob("*.arrow")
    before = shard.read_bytes()
    shard.write_bytes(before[:-9] + b"x" + before[-8:])
    make.scored.clear()
    assert play(recipe, registry(make), "label") == run
    assert shard.read_bytes() == before
    assert make.scored == []  # no weights were loaded either: nothing was asked


def test_what_was_not_said_wholly_is_scored(tmp_path: Path, tiny_student: Path, speaking: Callable[..., Any]) -> None:
    """Of answers that end, the end token is not told of here; and 64 ids are wanted of held-out rows, 4 were told."""
    make = speaking(closes=False)
    losses = '[{"plugin": "forward_kl", "top_k": 4}]'
    run = play(write_recipe(tmp_path, tiny_student, losses), registry(make), "label")
    train, holdout = stored(run, "train"), stored(run, "holdout")
    rows = {line: json.loads(raw) for line, raw in enumerate((run / "rows" / "rows.jsonl").read_text().splitlines(), 1)}
    cut = [i for i, (s, _) in train.items() if rows[s.line]["finish_reason"] == "length"]
    assert figures(run, "label")["said"] == len(cut)
    assert all(signal.n == sequence.n for sequence, signal in (*train.values(), *holdout.values()))
    assert sorted(make.scored[2:]) == sorted([i for i in train if i not in cut] + list(holdout))
    headers = [SignalStore(run / "signals" / split).header for split in ("train", "holdout")]
    assert [(header.k, header.tail_exact) for header in headers] == [(4, False), (64, True)]
