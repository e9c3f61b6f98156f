"""The table of chat templates: what each trains, and that nothing else is ever trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data import Row, Tokenizer, prepare
from limbeck.data.show import trained_texts
from limbeck.errors import LimbeckError
from limbeck.recipe import DataSpec

SPEC = DataSpec(path="rows.jsonl", holdout=0)

TURNS = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
THINKS = [("user", "q1"), ("assistant", "<think>\nt1\n</think>\n\na1"), ("user", "q2")]
THINKS += [("assistant", "<think>\nt2\n</think>\n\na2")]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'system' %}{{ '<|system|>\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n'  + m['content'] + eos_token }}{% endif %}{{ '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set c = m['content'] %}"
    "{% set r = '' %}{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or r) %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% else %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ ('User: ' if m['role'] == 'user' else 'Bot: ') + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Bot: ' }}{% endif %}"
)
THINKING = GEMMA.replace("model\n' }}{% endif %}", "model\n<think>\n' }}{% endif %}")
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Case:
    """A template with its control tokens, and the trained texts of each sequence of a conversation."""

    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    expected: list[list[str]]
    plain: tuple[str, ...] = ()
    turns: list[tuple[str, str]] = field(default_factory=lambda: TURNS)


TABLE = {
    "chatml": Case(CHATML, IM, None, "<|im_end|>", [["a1<|im_end|>", "a2<|im_end|>"]]),
    "chatml with a system turn": Case(
        CHATML, IM, None, "<|im_end|>", [["a1<|im_end|>", "a2<|im_end|>"]], turns=[("system", "s"), *TURNS]
    ),
    "chatml with a tool's answer": Case(
        CHATML, IM, None, "<|im_end|>", [["a1<|im_end|>", "a2<|im_end|>"]], turns=[*TURNS[:2], ("tool", "r"), TURNS[3]]
    ),
    "chatml without a generation prompt": Case(
        CHATML.split("{% if add")[0], IM, None, "<|im_end|>", [["a1<|im_end|>", "a2<|im_end|>"]]
    ),
    "bos opens every turn": Case(CHATML, IM, "<|im_start|>", "<|im_end|>", [["a1<|im_end|>", "a2<|im_end|>"]]),
    "llama 3": Case(
        LLAMA3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        [["a1<|eot_id|>", "a2<|eot_id|>"]],
    ),
    "gemma": Case(GEMMA, (), "<bos>", "<eos>", [["a1<end_of_turn>", "a2<end_of_turn>"]]),
    "mistral": Case(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", [[" a1</s>", " a2</s>"]]),
    "llama 2": Case(LLAMA2, ("<s>", "</s>"), "<s>", "</s>", [[" a1 </s>", " a2 </s>"]]),
    "zephyr": Case(ZEPHYR, ("<s>", "</s>"), "<s>", "</s>", [["\na1</s>", "\na2</s>"]]),
    "phi 3": Case(PHI3, ("<|end|>", "<|user|>", "<|assistant|>"), None, "<|end|>", [["a1<|end|>", "a2<|end|>"]]),
    "qwen 3 without thoughts": Case(
        QWEN3,
        IM,
        None,
        "<|im_end|>",
        [["<think>\n\n</think>\n\na1<|im_end|>"], ["<think>\n\n</think>\n\na2<|im_end|>"]],
    ),
    "qwen 3 with thoughts": Case(
        QWEN3,
        IM,
        None,
        "<|im_end|>",
        [["<think>\nt1\n</think>\n\na1<|im_end|>"], ["<think>\nt2\n</think>\n\na2<|im_end|>"]],
        plain=("<think>", "</think>"),
        turns=THINKS,
    ),
    "the generation prompt opens a thought": Case(
        THINKING,
        (),
        "<bos>",
        "<eos>",
        [["t1\n</think>\n\na1<end_of_turn>", "t2\n</think>\n\na2<end_of_turn>"]],
        plain=("<think>", "</think>"),
        turns=THINKS,
    ),
    "no end token": Case(PLAIN, (), "<bos>", "<eos>", [["a1", "a2<eos>"]]),
}


def row(turns: list[tuple[str, str]], **more: Any) -> Row:
    messages = [{"role": role, "content": content} for role, content in turns]
    return Row("rows.jsonl", 1, {"messages": messages, **more}, "messages")


def check_prefixes(tokenizer: Tokenizer, turns: list[tuple[str, str]], sequences: list[Any]) -> None:
    """What lies before each trained run is what the model is given when it has to answer."""
    messages = [{"role": role, "content": content} for role, content in turns]
    prompts = [
        tokenizer.encode_prompt(messages[:i]).tolist()
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    starts = []
    for sequence in sequences:
        trained = sequence.trained
        for place in range(1, len(trained)):
            if trained[place] and not trained[place - 1]:
                starts.append(sequence.ids[:place].tolist())
    assert starts == prompts


@pytest.mark.parametrize("name", TABLE)
def test_each_template_trains_its_answers_and_their_end_tokens(name: str, variant: Callable[..., Tokenizer]) -> None:
    case = TABLE[name]
    tokenizer = variant(case.template, case.special, case.bos, case.eos, case.plain)
    prepared = prepare([row(case.turns)], [], tokenizer, SPEC)
    assert [trained_texts(tokenizer, sequence) for sequence in prepared.train] == case.expected
    check_prefixes(tokenizer, case.turns, prepared.train)
    assert all(sequence.trained[-1] for sequence in prepared.train)


@pytest.mark.parametrize("name", TABLE)
def test_the_last_sequence_is_what_transformers_makes_of_the_conversation(
    name: str, variant: Callable[..., Tokenizer]
) -> None:
    case = TABLE[name]
    tokenizer = variant(case.template, case.special, case.bos, case.eos, case.plain)
    sequence = prepare([row(case.turns)], [], tokenizer, SPEC).train[-1]
    messages = [{"role": role, "content": content} for role, content in case.turns]
    native = tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids = sequence.ids.tolist()
    if tokenizer.bos_id is not None and native[0] != tokenizer.bos_id:
        native = [tokenizer.bos_id, *native]
    if name == "no end token":
        ids = ids[:-1]
    assert native[: len(ids)] == ids


@pytest.mark.parametrize("template", ["plain", "marked", "late_close", "no_bos", "strict", "rewrites_history"])
@pytest.mark.parametrize("name", ["tok_a", "tok_a_adds_bos", "tok_b"])
def test_each_template_of_the_data_folder_trains_the_answers(
    tok: Callable[..., Tokenizer], name: str, template: str
) -> None:
    tokenizer = tok(name, template)
    prepared = prepare([row(TURNS)], [], tokenizer, SPEC)
    assert [trained_texts(tokenizer, sequence) for sequence in prepared.train] == [
        ["a1<end_of_turn>", "a2<end_of_turn>"]
    ]
    check_prefixes(tokenizer, TURNS, prepared.train)


def test_an_answer_behind_another_prompt_than_the_template_s_is_refused(variant: Callable[..., Tokenizer]) -> None:
    tokenizer = variant(R1, ("<|User|>", "<|Assistant|>"), "<bos>", "<eos>")
    with pytest.raises(LimbeckError) as caught:
        prepare([row([("user", "q"), ("assistant", "<think>\nt</think>a")])], [], tokenizer, SPEC)
    (problem,) = caught.value.problems
    assert problem.field == "messages[1]"
    assert "generation prompt" in problem.message
    assert "data.chat_template" in str(problem.hint)


def test_the_end_token_is_known_where_the_generation_prompt_opens_a_thought(variant: Callable[..., Tokenizer]) -> None:
    assert variant(THINKING, (), "<bos>", "<eos>").eos_ids == (1, 4)


def test_a_template_that_raises_is_told_for_its_row_alone(tok: Callable[..., Tokenizer]) -> None:
    rows = [row([("system", "s"), *TURNS]), row(TURNS)]
    prepared = prepare(rows, [], tok("tok_a", "strict"), SPEC.model_copy(update={"on_bad_row": "quarantine"}))
    assert len(prepared.train) == 1
    assert "no system role" in prepared.bad[0].message


def test_a_template_that_is_no_jinja_is_told(variant: Callable[..., Tokenizer]) -> None:
    tokenizer = variant("{% for m in %}", (), "<bos>", "<eos>")
    with pytest.raises(LimbeckError) as caught:
        prepare([row(TURNS)], [], tokenizer, SPEC)
    assert "chat template" in caught.value.problems[0].message


def test_an_answer_that_opens_a_conversation_cannot_be_trained_but_may_stand(tok: Callable[..., Tokenizer]) -> None:
    turns = [("assistant", "hello"), *TURNS[:2]]
    with pytest.raises(LimbeckError) as caught:
        prepare([row(turns)], [], tok(), SPEC)
    assert caught.value.problems[0].field == "messages[0]"
    muted = row(turns)
    muted.value["messages"][0]["weight"] = 0
    sequence = prepare([muted], [], tok(), SPEC).train[0]
    assert trained_texts(tok(), sequence) == ["a1<end_of_turn>"]


def test_bos_that_opens_turns_is_not_put_before_plain_text(variant: Callable[..., Tokenizer]) -> None:
    tokenizer = variant(CHATML, IM, "<|im_start|>", "<|im_end|>")
    assert tokenizer.bos_id is None
    assert tokenizer.encode_prompt("a").tolist() == [tokenizer.encode_prompt("a")[0]]
    assert not tokenizer.is_control(tokenizer.encode_prompt("a")[0])


def test_a_note_tells_that_a_template_changes_an_answer(variant: Callable[..., Tokenizer]) -> None:
    tokenizer = variant(R1.replace("<think>\n' }}", "' }}"), ("<|User|>", "<|Assistant|>"), "<bos>", "<eos>")
    prepared = prepare([row([("user", "q"), ("assistant", "<think>t</think>a")])], [], tokenizer, SPEC)
    assert trained_texts(tokenizer, prepared.train[0]) == ["a<eos>"]
    assert "does not write an answer as it is given" in prepared.notes[0].message


_SIGNS = ["<end_of_turn>", "<start_of_turn>", "<bos>", "<", ">", "a", "é", "\n", " "]
_spelled = st.lists(st.sampled_from(_SIGNS), max_size=6).map("".join)
CONTENT = st.builds(lambda a, b: f"{a}x{b}", _spelled, _spelled)


@pytest.mark.parametrize("template", ["plain", "marked", "late_close", "no_bos", "rewrites_history"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), data_=st.data())
def test_whatever_contents_spell_only_the_template_gives_control_tokens(
    data: Path, template: str, contents: list[str], data_: st.DataObject
) -> None:
    tokenizer = Tokenizer.load(data / "tok_b", chat_template=data / "tok_b" / "templates" / f"{template}.jinja")
    turns = [("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]
    turns = turns[: len(turns) // 2 * 2]
    weights = [data_.draw(st.integers(0, 1)) for _ in turns[1::2]]
    value = row(turns)
    for message, weight in zip(value.value["messages"][1::2], weights, strict=True):
        message["weight"] = weight
    answers = [content for (_, content), weight in zip(turns[1::2], weights, strict=True) if weight]
    if not answers:
        return
    (sequence,) = prepare([value], [], tokenizer, SPEC).train
    controls = [int(i) for i in sequence.ids if tokenizer.is_control(i)]
    shown = 2 * max(i for i, weight in enumerate(weights) if weight) + 2
    assert controls == [2, *([3, 4] * shown)]
    assert tokenizer.decode(sequence.ids[sequence.trained]) == "".join(answers)
    assert int((sequence.ids[sequence.trained] == 4).sum()) == len(answers)
