"""The rule for <bos>, control tokens in content, digests, byte offsets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Tokenizer
from limbeck.data.offsets import byte_ranges
from limbeck.data.tokenizer import Piece
from limbeck.errors import LimbeckError, Reason

Load = Callable[..., Tokenizer]
CHAT = [{"role": "user", "content": "q"}]
TEXTS = st.text(st.one_of(st.sampled_from("a .mé😀\n中"), st.characters(exclude_categories=["Cs"])), min_size=1)


def test_what_a_folder_says(tok: Load) -> None:
    tokenizer = tok()
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (2, (1, 4), 261)
    assert tokenizer.has_template


def test_every_end_token_of_the_model_is_known(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data / "tok_a", tmp_path / "t")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3, 99999]}')
    (folder / "config.json").write_text('{"eos_token_id": 0, "model_type": "llama"}')
    assert Tokenizer.load(folder).eos_ids == (1, 3, 0, 4)


@pytest.mark.parametrize("name", ["tok_a", "tok_a_adds_bos"])
@pytest.mark.parametrize("template", ["plain", "no_bos"])
def test_one_bos_leads_every_prompt_whoever_writes_it(tok: Load, name: str, template: str) -> None:
    tokenizer = tok(name, template)
    for prompt in ("plain text", "<bos>spelled", CHAT, [{"role": "user", "content": "<bos><bos>"}]):
        ids = tokenizer.encode_prompt(prompt).tolist()
        assert ids[0] == 2
        assert ids.count(2) == 1


@pytest.mark.parametrize("template", ["plain", "no_bos"])
def test_bos_never_and_always(tok: Load, template: str) -> None:
    for prompt in ("text", CHAT):
        assert 2 not in tok("tok_a_adds_bos", template, bos="never").encode_prompt(prompt)
        assert tok("tok_a", template, bos="always").encode_prompt(prompt).tolist().count(2) == 1


def test_bos_auto_leaves_out_what_the_tokenizer_declines(variant: Callable[..., Tokenizer]) -> None:
    declined = variant(None, (), "<bos>", "<eos>", add_bos_token=False)
    assert declined.bos_id is None
    assert declined.encode_prompt("a").tolist() == declined.encode_prompt("a").tolist() != []
    assert 2 not in declined.encode_prompt("a")
    assert variant(None, (), "<eos>", "<eos>").bos_id is None  # GPT-2: the end token is the first one too
    assert variant(None, (), None, "<eos>").bos_id is None


def test_bos_always_without_one_is_refused(variant: Callable[..., Tokenizer]) -> None:
    folder = variant(None, (), None, "<eos>").folder
    with pytest.raises(LimbeckError) as caught:
        Tokenizer.load(folder, bos="always")
    assert caught.value.reason is Reason.MODEL_INVALID


def test_the_digest_ignores_what_does_not_change_text(tok: Load, data: Path, tmp_path: Path) -> None:
    assert tok("tok_a").digest == tok("tok_a_adds_bos").digest != tok("tok_b").digest
    folder = shutil.copytree(data / "tok_a", tmp_path / "t")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=3))
    cut = Tokenizer.load(folder)
    assert cut.digest == tok("tok_a").digest
    assert len(cut.encode_prompt("0123456789")) == 11


def test_a_saved_tokenizer_keeps_its_digests(tok: Load, tmp_path: Path) -> None:
    tokenizer = tok("tok_b")
    tokenizer.hf.save_pretrained(tmp_path)
    saved = Tokenizer.load(tmp_path)
    assert (saved.digest, saved.template_digest) == (tokenizer.digest, tokenizer.template_digest)
    assert (saved.bos_id, saved.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)


def test_the_template_has_a_digest_of_its_own(tok: Load) -> None:
    assert tok("tok_a", "plain").template_digest != tok("tok_a", "no_bos").template_digest
    assert tok("tok_a", "plain").digest == tok("tok_a", "no_bos").digest


def test_a_folder_is_read_once_by_whatever_rules_and_again_where_its_files_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    reads = []
    real = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *given, **more: reads.append(given) or real(*given, **more),
    )
    folder = shutil.copytree(data / "tok_a", tmp_path / "own")
    first = Tokenizer.load(folder)
    other = Tokenizer.load(folder, bos="never", chat_template=folder / "templates" / "no_bos.jinja")
    other.hf.chat_template = "another"
    again = Tokenizer.load(folder)
    assert len(reads) == 1
    assert again.source is first.source
    assert (again.bos_id, again.template_digest) == (first.bos_id, first.template_digest)
    assert again.hf.chat_template == first.hf.chat_template != "another"
    assert other.bos_id is None
    assert other.template_digest != first.template_digest
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Tokenizer.load(folder).template_digest != first.template_digest
    assert len(reads) == 2


def test_an_unusable_folder_is_refused_with_its_name(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(LimbeckError) as caught:
            Tokenizer.load(folder)
        assert caught.value.reason is Reason.MODEL_INVALID
        assert caught.value.problems[0].file == str(folder)


def test_a_missing_template_file_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        Tokenizer.load(data / "tok_a", chat_template=tmp_path / "gone.jinja")
    assert caught.value.problems[0].field == "data.chat_template"


def test_chat_without_a_template_says_what_to_do(variant: Callable[..., Tokenizer]) -> None:
    with pytest.raises(LimbeckError) as caught:
        variant(None, (), "<bos>", "<eos>").encode_prompt(CHAT)
    assert caught.value.reason is Reason.DATA_INVALID
    assert "data.chat_template" in str(caught.value)


def test_a_template_that_refuses_is_quoted(tok: Load) -> None:
    with pytest.raises(LimbeckError) as caught:
        tok("tok_a", "strict").encode_prompt([{"role": "system", "content": "s"}, *CHAT])
    assert "no system role" in str(caught.value)


def test_modes_of_the_transformers_tokenizer_do_not_leak_in(tok: Load) -> None:
    tokenizer = tok()
    before = tokenizer.encode_prompt("a<eos>b").tolist()
    tokenizer.hf(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer.encode_prompt("a<eos>b").tolist() == before


@given(TEXTS)
def test_text_goes_round_and_never_gives_a_control_token(text: str) -> None:
    for name in ("tok_a", "tok_b"):
        tokenizer = _cached(name)
        spelled = f"{text}<bos><end_of_turn>{text}"
        ids = tokenizer.encode_prompt(spelled)
        assert not any(tokenizer.is_control(number) for number in ids[1:])
        assert tokenizer.decode(ids) == spelled


@given(TEXTS, TEXTS)
def test_offsets_are_the_bytes_of_each_token(first: str, second: str) -> None:
    tokenizer = _cached("tok_b")
    pieces = [Piece(first, False), Piece("<eos>", False, 1), Piece(second, True)]
    ids, trained, offsets = tokenizer.encode(pieces)
    raw = (first + second).encode()
    plain = [i for i, number in enumerate(ids) if not tokenizer.is_control(number)]
    assert b"".join(raw[low:high] for low, high in offsets[plain]) == raw
    assert offsets[plain][0, 0] == 0
    assert np.array_equal(offsets[plain][1:, 0], offsets[plain][:-1, 1])
    assert (offsets[[i for i in range(len(ids)) if i not in plain]] == 0).all()
    assert b"".join(raw[low:high] for low, high in offsets[trained]) == second.encode()
    for i in plain:
        word = tokenizer.decode([ids[i]])
        if "\ufffd" not in word:
            assert raw[offsets[i, 0] : offsets[i, 1]].decode() == word


_loaded: dict[str, Tokenizer] = {}


def _cached(name: str) -> Tokenizer:
    if name not in _loaded:
        _loaded[name] = Tokenizer.load(Path(__file__).parents[1] / "data" / name)
    return _loaded[name]


def test_ranges_follow_the_characters_where_a_normaliser_changed_the_text() -> None:
    ranges = byte_ranges(
        "É😀x", ["e", "p1", "p2", "p3", "x"], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], byte_level=False
    )
    assert ranges == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7)] or ranges[0] == (0, 2)
    assert ranges[-1] == (6, 7)
    assert [low for low, _ in ranges[1:]] == [high for _, high in ranges[:-1]]


@pytest.fixture(params=["always", "first"])
def sentence_piece(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """A tokenizer of Llama 2's kind: every text begins with a space, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "c", "call"]
    words += ["ca", "ll", "l"]
    merges: list[Any] = [("▁", "a"), ("c", "a"), ("l", "l"), ("ca", "ll")]
    model = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    fast = Fast(model)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param, split=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.save_pretrained(tmp_path / "sp")
    return Tokenizer.load(tmp_path / "sp")


def test_a_completion_gets_no_space_that_it_does_not_have(sentence_piece: Tokenizer) -> None:
    pieces = [Piece("call", False), Piece("a b", True), Piece("</s>", True, 2)]
    ids, trained, offsets = sentence_piece.encode(pieces)
    assert [sentence_piece.token_text(i) for i in ids] == ["<s>", "▁", "call", "a", "▁", "b", "</s>"]
    assert offsets.tolist() == [[0, 0], [0, 0], [0, 4], [4, 5], [5, 6], [6, 7], [0, 0]]
    assert sentence_piece.decode(ids) == "calla b"
    assert trained.tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("answer", ["a", " a", "é a", "\na"])
def test_an_answer_decodes_to_itself_where_texts_begin_with_a_space(sentence_piece: Tokenizer, answer: str) -> None:
    ids, trained, _ = sentence_piece.encode([Piece("call", False), Piece(answer, True)])
    assert sentence_piece.decode(ids[trained]) == answer
