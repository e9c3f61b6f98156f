"""The generator `prompts`: order, resuming, rejected answers, lineage, faults with their lines."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import Tokenizer, prepare, read_rows
from limbeck.data.tokenizer import Piece
from limbeck.errors import LimbeckError, Reason
from limbeck.generators import PLUGINS, PromptsConfig
from limbeck.generators import prompts as module
from limbeck.generators.prompts import Prompts
from limbeck.interfaces import Completion, Sampling
from limbeck.recipe import DataSpec
from limbeck.teachers import TransformersConfig
from limbeck.teachers.text import TeacherText
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.generators import GeneratorConformance, ScriptedModel, samples

CHAT = [{"role": "user", "content": "Name a river."}]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int) -> str:
    return write(path, *({"prompt": f"question {i}"} for i in range(count)))


def run(generator: Prompts, model: object, start: int = 0):
    return asyncio.run(samples(generator, start, model))


def fault(generator: Prompts, model: object) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        run(generator, model)
    return caught.value


class TestConformance(GeneratorConformance):
    @pytest.fixture
    def generator(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "WINDOW", 4)
        path = write(tmp_path / "p.jsonl", *({"prompt": f"q{i}"} for i in range(9)), {"messages": CHAT})
        (plugin,) = PLUGINS
        return plugin.factory(PromptsConfig(path=path))


def test_rows_carry_the_prompt_the_answer_and_why_it_ended(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "one", "id": "x"}, {"messages": CHAT}, {"prompt": CHAT})
    first, second, third = run(Prompts(PromptsConfig(path=path)), ScriptedModel(["a", "b", "c"], "length"))
    assert first.row == {"prompt": "one", "completion": "a", "finish_reason": "length", "id": "x"}
    answer = [*CHAT, {"role": "assistant", "content": "b"}]
    assert second.row == {"messages": answer, "finish_reason": "length"}
    assert third.row == {"prompt": CHAT, "completion": "c", "finish_reason": "length"}


def test_earlier_answers_of_a_chat_are_context_and_not_trained(tmp_path):
    turns = [*CHAT, {"role": "assistant", "content": "The Rhine."}, {"role": "user", "content": "Another?"}]
    (sample,) = run(
        Prompts(PromptsConfig(path=write(tmp_path / "p.jsonl", {"messages": turns}))), ScriptedModel(["Po."])
    )
    weights = [message.get("weight") for message in sample.row["messages"]]
    assert weights == [None, 0, None, None]


def test_lineage_says_where_and_how_a_row_was_made(tmp_path):
    class Named(ScriptedModel):
        @property
        def lineage(self):
            return {"name": "x", "weights_digest": "d"}

    config = PromptsConfig(path=numbered(tmp_path / "p.jsonl", 2), temperature=0.7, top_p=0.9, top_k=5, seed=3)
    model = Named(["yes"])
    lineage = run(Prompts(config), model)[1].lineage
    assert lineage["source"] == "p.jsonl"
    assert lineage["line"] == 2
    assert lineage["teacher"]["weights_digest"] == "d"
    assert lineage["sampling"] == {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
    assert model.sampling == Sampling(64, 0.7, 0.9, 5, 3)


def test_a_resumed_run_asks_the_same_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    generator = Prompts(PromptsConfig(path=numbered(tmp_path / "p.jsonl", 10)))
    model = ScriptedModel(["a"])
    assert [sample.position for sample in run(generator, model, 6)] == [6, 7, 8, 9]
    assert sorted(model.asked) == [4, 5, 6, 7, 8, 9]


def test_a_model_may_say_how_many_prompts_it_is_well_asked_at_once(tmp_path):
    class Wide(ScriptedModel):
        window = 200

    generator = Prompts(PromptsConfig(path=numbered(tmp_path / "p.jsonl", 150)))
    model = Wide(["a"])
    run(generator, model)
    assert model.asked[0] == 149  # of those asked at once, the scripted one answers the last one first


def test_empty_answers_are_rejected_with_their_reason_c45(tmp_path, data):
    answers = json.loads((data / "C45" / "expect.json").read_text())["teacher_completions"]
    config = PromptsConfig(path=numbered(tmp_path / "p.jsonl", 3))
    found = run(Prompts(config), ScriptedModel(answers))
    assert [sample.rejected for sample in found] == ["empty", "whitespace", None]


def test_too_few_usable_answers_fail_with_counts_by_reason(tmp_path):
    generator = Prompts(PromptsConfig(path=numbered(tmp_path / "p.jsonl", 10), min_success_ratio=0.8))
    generator.require(8, {"empty": 2}, 0)
    generator.require(0, {"empty": 2}, 8)
    with pytest.raises(LimbeckError) as caught:
        generator.require(6, {"refused": 1, "empty": 2}, 1)
    assert caught.value.reason is Reason.GENERATION_FAILED
    assert "6 answers are usable, 2 empty, 1 refused, 1 prompt is left; 8 usable ones are needed" in str(caught.value)


def test_the_ratio_zero_never_fails(tmp_path):
    Prompts(PromptsConfig(path=numbered(tmp_path / "p.jsonl", 3), min_success_ratio=0.0)).require(0, {"empty": 3}, 0)


def test_faults_of_the_file_come_all_at_once_with_lines(tmp_path):
    answered = [*CHAT, {"role": "assistant", "content": "Po"}]
    path = tmp_path / "p.jsonl"
    write(
        path,
        {"prompt": "good"},
        {"prompt": "a", "completion": "b"},
        {"text": "x"},
        {"messages": answered},
        {"promt": "y"},
    )
    with path.open("a") as file:
        file.write("{nonsense\n")
    error = fault(Prompts(PromptsConfig(path=str(path))), ScriptedModel(["a"]))
    assert error.reason is Reason.DATA_INVALID
    assert {problem.line for problem in error.problems} == {2, 3, 4, 5, 6}
    assert {problem.file for problem in error.problems} == {str(path)}


def test_a_missing_file_is_told(tmp_path):
    error = fault(Prompts(PromptsConfig(path=str(tmp_path / "none.jsonl"))), ScriptedModel(["a"]))
    assert error.reason is Reason.DATA_INVALID
    assert "none.jsonl" in str(error)


def test_a_prompt_that_is_too_long_is_named_by_its_line(tmp_path, tiny_teacher):
    path = write(tmp_path / "p.jsonl", {"prompt": "short"}, {"prompt": "long " * 200})
    teacher = TransformersTeacher(TransformersConfig(model=str(tiny_teacher)))
    text = TeacherText(teacher, Tokenizer.load(tiny_teacher))
    error = fault(Prompts(PromptsConfig(path=path)), text)
    assert error.reason is Reason.GENERATION_FAILED
    (problem,) = error.problems
    assert (problem.file, problem.line, problem.field) == (path, 2, "prompt")


def test_a_teacher_that_leaves_prompts_out_is_an_error(tmp_path):
    class Lazy(ScriptedModel):
        async def complete(self, prompts, sampling, first_id):
            async for answer in super().complete(prompts[:-1], sampling, first_id):
                yield answer

    error = fault(Prompts(PromptsConfig(path=numbered(tmp_path / "p.jsonl", 3))), Lazy(["a"]))
    assert error.reason is Reason.GENERATION_FAILED


def test_a_real_teacher_answers_the_same_from_any_position(tmp_path, tiny_teacher, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    path = write(tmp_path / "p.jsonl", *({"prompt": f"word {i} " * (i + 1)} for i in range(6)), {"messages": CHAT})
    config = PromptsConfig(path=path, max_new_tokens=8, temperature=1.0, min_success_ratio=0.0)
    teacher = TransformersTeacher(TransformersConfig(model=str(tiny_teacher), batch_tokens=100))
    text = TeacherText(teacher, Tokenizer.load(tiny_teacher))
    whole = run(Prompts(config), text)
    assert len(whole) == 7
    assert run(Prompts(config), text, 5) == whole[5:]
    digest = teacher.info().weights_digest
    assert {sample.lineage["teacher"]["weights_digest"] for sample in whole} == {digest}
    asyncio.run(teacher.close())


class Dictated:
    """A teacher that writes given ids, prompt i the i-th."""

    def __init__(self, teacher, *answers):
        self.info, self.answers = teacher.info, answers

    async def generate(self, prompts, sampling):
        for prompt in reversed(prompts):
            yield Completion(prompt.item_id, np.array(self.answers[prompt.item_id], np.int32), "stop")


@pytest.mark.parametrize("chat", [False, True])
def test_answers_whose_text_gives_other_tokens_are_marked(tmp_path, tiny_teacher, chat):
    tokenizer = Tokenizer.load(tiny_teacher)
    whole, other = (tokenizer.encode([Piece(text, False)])[0][1:].tolist() for text in (" an é ", "é"))
    answers = [whole, other[:1], [*whole, tokenizer.eos_ids[0], *whole], whole[:3], []]
    prompts = [{"messages": CHAT}] * 5 if chat else [{"prompt": f"q{i}"} for i in range(5)]
    config = PromptsConfig(path=write(tmp_path / "p.jsonl", *prompts), min_success_ratio=0.0)
    model = TeacherText(Dictated(TransformersTeacher(TransformersConfig(model=str(tiny_teacher))), *answers), tokenizer)
    found = run(Prompts(config), model)
    marks = [sample.lineage.get("retokenized", False) for sample in found]
    trimmed = chat and tokenizer.template.text.count("trim") > 0
    assert marks == [trimmed, True, True, trimmed, False]
    rows, problems = read_rows_of(tmp_path, found)
    prepared = prepare(rows, problems, tokenizer, DataSpec(path="x", holdout=0))
    assert prepared.figures["retokenized"] == sum(marks)
    for sequence, sample in zip(prepared.train, [s for s in found if s.rejected is None], strict=True):
        ids = sequence.ids[sequence.trained].tolist()
        same = ids[: len(answers[sample.position])] == answers[sample.position]
        assert same != sample.lineage.get("retokenized", False)
    (note,) = prepared.notes
    assert f"{sum(marks)} of 4 rows are trained as other tokens" in note.message


def read_rows_of(folder, found):
    return read_rows(
        [Path(write(folder / "rows.jsonl", *({**s.row, "lineage": s.lineage} for s in found if s.rejected is None)))]
    )
