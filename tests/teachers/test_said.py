"""What an API tells of its tokens becomes what was said of the student's ids; nothing is invented, nothing lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import Tokenizer, answer_ids
from limbeck.interfaces import Sampling, TextCompletion, TextToken
from limbeck.signals.topk import SATURATED
from limbeck.teachers.answers import Answers
from limbeck.teachers.said import said_of_tokens
from limbeck.teachers.text import ApiText
from limbeck.testing.text_teachers import ScriptedTextTeacher


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Tokenizer:
    return Tokenizer.load(data / "tok_a")


def token(text: bytes, share: float, *top: tuple[bytes, float]) -> TextToken:
    return TextToken(text, float(np.log(share)), tuple((raw, float(np.log(p))) for raw, p in top))


def ids_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    found = answer_ids("q", text, "stop", tokenizer)
    assert found is not None
    return found


def shares(tokenizer: Tokenizer, tokens: list[TextToken], text: str, k: int | None = None):
    """(share by the bytes of each id that something was told of, tail) of each row."""
    said = said_of_tokens(tokens, tokenizer, ids_of(tokenizer, text), k)
    assert said is not None
    ids, logprobs, tail = said.top_k.at(1.0)
    told = said.top_k.u < SATURATED
    rows = [
        {tokenizer.token_bytes(i): float(np.exp(p)) for i, p, yes in zip(*row, strict=True) if yes}
        for row in zip(ids, logprobs, told, strict=True)
    ]
    return rows, np.exp(tail), said


def test_the_students_ids_keep_their_shares(tokenizer: Tokenizer) -> None:
    text = "hé"
    pieces = [tokenizer.token_bytes(number) for number in ids_of(tokenizer, text)]
    tokens = [token(piece, 0.6, (piece, 0.6), (b"a", 0.25)) for piece in pieces]
    rows, tail, said = shares(tokenizer, tokens, text)
    assert [tokenizer.token_bytes(number) for number in said.ids] == pieces
    for row, piece in zip(rows, pieces, strict=True):
        assert row == {piece: pytest.approx(0.6, abs=1e-3), b"a": pytest.approx(0.25, abs=1e-3)}
    np.testing.assert_allclose(tail, 0.15, atol=1e-3)
    np.testing.assert_allclose(np.exp(said.target), 0.6, atol=1e-6)


def test_what_no_id_stands_for_is_tail_and_nothing_is_invented_in_its_place(tokenizer: Tokenizer) -> None:
    tokens = [token(b"h", 0.5, (b"h", 0.5), (b"no such token", 0.3), (b"<eos>", 0.1))]
    rows, tail, said = shares(tokenizer, tokens, "h")
    assert rows == [{b"h": pytest.approx(0.5, abs=1e-3)}]
    assert tail[0] == pytest.approx(0.5, abs=1e-3)  # 0.3 + 0.1 + what was not told
    assert said.top_k.k == 3
    assert len(set(said.top_k.ids[0].tolist())) == 3
    assert (said.top_k.u[0, 1:] == SATURATED).all()


def test_a_written_token_outside_the_likeliest_is_kept_in_the_place_of_the_least(tokenizer: Tokenizer) -> None:
    tokens = [token(b"z", 0.01, (b"a", 0.6), (b"b", 0.25))]
    rows, tail, said = shares(tokenizer, tokens, "z")
    assert rows == [{b"a": pytest.approx(0.6, abs=1e-3), b"z": pytest.approx(0.01, abs=1e-3)}]
    assert tail[0] == pytest.approx(0.39, abs=1e-3)
    assert np.exp(said.target[0]) == pytest.approx(0.01, abs=1e-6)


def test_one_listed_twice_counts_once_and_two_of_the_same_bytes_together(tokenizer: Tokenizer) -> None:
    tokens = [token(b"a", 0.4, (b"a", 0.4), (b"a", 0.4), (b"b", 0.2), (b"b", 0.1))]
    rows, tail, _ = shares(tokenizer, tokens, "a")
    assert rows == [{b"a": pytest.approx(0.4, abs=1e-3), b"b": pytest.approx(0.3, abs=1e-3)}]
    assert tail[0] == pytest.approx(0.3, abs=1e-3)


def test_rows_of_unlike_length_have_one_width(tokenizer: Tokenizer) -> None:
    tokens = [token(b"a", 0.9), token(b"b", 0.5, (b"b", 0.5), (b"c", 0.4))]
    for k in (None, 1, 2, 5):
        rows, tail, said = shares(tokenizer, tokens, "ab", k)
        assert said.top_k.k == (k or 2)
        assert rows[0] == {b"a": pytest.approx(0.9, abs=1e-3)}
        assert tail[1] == pytest.approx(0.5 if k == 1 else 0.1, abs=1e-3)


def test_all_of_the_mass_leaves_a_tail_that_is_not_nothing(tokenizer: Tokenizer) -> None:
    _, tail, _ = shares(tokenizer, [token(b"a", 1.0, (b"a", 1.0))], "a")
    assert 0 < tail[0] < 1e-6


def test_an_end_token_that_is_told_of_is_no_part_of_the_answer(tokenizer: Tokenizer) -> None:
    rows, _, said = shares(tokenizer, [token(b"a", 0.9), token(b"b", 0.9), token(b"", 0.5, (b"<eos>", 0.5))], "ab")
    assert len(rows) == len(said.ids) == 2


def test_other_tokens_or_impossible_numbers_say_nothing(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "ab")
    for tokens in (
        [token(b"ab", 0.9)],
        [token(b"a", 0.9), token(b"c", 0.9)],
        [token(b"a", 0.9), token(b"b", 0.9), token(b"c", 0.9)],
        [token(b"a", 0.9), token(b"", 0.9), token(b"b", 0.9)],
        [token(b"a", 0.9, (b"a", 0.9), (b"c", 0.9)), token(b"b", 0.9)],
        [token(b"a", 0.9), TextToken(b"b", float("nan"), ())],
    ):
        assert said_of_tokens(tokens, tokenizer, ids) is None
    assert said_of_tokens([], tokenizer, ids[:0]) is None


def test_bytes_that_several_ids_stand_for_are_nobodys_but_a_lone_byte_yields(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data / "tok_a", tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"ab": 261, "▁x": 262, " x": 263, "a": 264}
    content["decoder"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    known = Tokenizer.load(folder).ids_by_bytes
    assert known[b"ab"] == 261
    assert b" x" not in known  # both "▁x" and " x"
    assert known[b"a"] == 264  # not <0x61>
    assert b"<eos>" not in known


def test_an_answer_of_other_tokens_is_kept_without_what_was_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fitting = TextCompletion(0, "ab", "stop", tokens=(token(b"a", 0.9, (b"a", 0.9)), token(b"b", 0.8, (b"b", 0.8))))
    other = TextCompletion(0, "ab", "stop", tokens=(token(b"ab", 0.9, (b"ab", 0.9)),))

    async def call(logprobs: int):
        with Answers(tmp_path / f"{logprobs}.jsonl") as answers:
            model = ApiText(ScriptedTextTeacher(fitting, other, max_logprobs=5), answers, tokenizer, logprobs)
            return {written.place: written async for written in model.complete(["q", "q"], Sampling(), 0)}

    found = asyncio.run(call(3))
    assert found[0].said is not None
    assert found[0].said.top_k.k == 3
    assert (found[1].said, found[1].rejected, found[1].text) == (None, None, "ab")
    assert asyncio.run(call(0))[0].said is None
