"""Teachers of known worth, and a student, are compared on held-out rows: figures, ranks, doubts, faults."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Config, TeacherInfo, TeacherPlugin, TextCompletion
from limbeck.plugins import Entry, Registry, load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.compare import compare
from limbeck.runs.measures import word_f1
from limbeck.runs.questions import Question, questions
from limbeck.runs.ranking import Comparison, Line, judge
from limbeck.runs.stage import Interrupted, Record
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.text_teachers import ScriptedTextTeacher

ROOT = Path(__file__).parents[2]
MODELS = {name: f"{{plugin: transformers, model: {name}}}" for name in ("good", "fair", "raw", "other")}
PARTS = {
    "teacher": "fair",
    "student": "{from: teacher}",
    "data": "{path: rows.jsonl, holdout: 16}",
    "losses": "[{plugin: forward_kl}]",
    "evaluation": "{max_new_tokens: 30}",
    "output": "out",
}


class NoConfig(Config):
    """Nothing that must be said."""

    key_env: str | None = None


class OnlyTopK(TransformersTeacher):
    """Tells of its likeliest tokens only."""

    def info(self) -> TeacherInfo:
        from dataclasses import replace

        return replace(super().info(), capabilities=frozenset({"generate", "top_k"}))


def registry(**made: Callable[[Any], Any]) -> Registry:
    """The installed plugins and teachers of this test."""
    more = [
        Entry(
            TeacherPlugin(
                name=name,
                config=TransformersConfig if make is OnlyTopK else NoConfig,
                factory=make,
                summary="Of a test.",
            ),
            "teacher",
            "tests",
            "1",
        )
        for name, make in made.items()
    ]
    return Registry((*load_plugins().entries, *more), ())


def write(here: Path, names: list[str], **changes: str | None) -> Path:
    """A recipe in the folder of models, with these teachers and parts changed; None leaves one out."""
    teachers = ", ".join(f"{name}: {MODELS.get(name, f'{{plugin: {name}}}')}" for name in names)
    parts = {"teachers": f"{{{teachers}}}", **PARTS, **changes}
    recipe = here / "recipe.yaml"
    recipe.write_text("".join(f"{name}: {value}\n" for name, value in parts.items() if value is not None))
    return recipe


def run(recipe: Path, plugins: Registry | None = None, rows: int = 64, **more: Any) -> Comparison:
    loaded = load_recipe(recipe, plugins or registry(), undecided=True)
    options = {"stop": lambda: None, "told": lambda *said: None, **more}
    return judge(compare(loaded, rows, **options))


def named(found: Comparison) -> dict[str, Line]:
    return {line.name: line for line in found.lines}


def asked(recipe: Path) -> list[Question]:
    from limbeck.data import Tokenizer

    return questions(load_recipe(recipe, registry()), Tokenizer.load(recipe.parent / "fair"), 64)[0]


@pytest.fixture(scope="module")
def four(contest: Path) -> Comparison:
    """Three teachers, one of them of another tokenizer, and one that is not there."""
    before = sorted(path.name for path in contest.iterdir())
    teachers = f"{{fair: {MODELS['fair']}, other: {MODELS['other']}, gone: {{plugin: transformers, model: ./gone}}, "
    found = run(write(contest, [], teachers=f"{teachers}good: {MODELS['good']}}}"))
    assert sorted(path.name for path in contest.iterdir() if path.name != "recipe.yaml") == before
    return found


def test_the_better_teacher_comes_first_and_that_is_certain(four: Comparison) -> None:
    assert [(line.name, line.rank) for line in four.lines] == [
        ("good", 1),
        ("other" if named(four)["other"].rank == 2 else "fair", 2),
        ("fair" if named(four)["other"].rank == 2 else "other", 3),
        ("gone", None),
        ("student (start)", None),
    ]
    assert four.figure == "bits_per_byte"
    assert four.differences[0].certain
    assert four.verdict.startswith("good is the best of 3 teachers on 16 rows:")


def test_bits_per_byte_are_those_of_the_logits(contest: Path, four: Comparison) -> None:
    """By hand: prompt and answer tokenized apart, log-softmax of the model's own logits, nothing of the end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("good", "other"):
        model, tokenizer = (kind.from_pretrained(contest / name) for kind in (AutoModelForCausalLM, AutoTokenizer))
        nats, tokens, size = 0.0, 0, 0
        for question in asked(contest / "recipe.yaml"):
            assert isinstance(question.prompt, str)
            assert question.reference is not None
            start = [tokenizer.bos_token_id, *tokenizer.encode(question.prompt, add_special_tokens=False)]
            answer = tokenizer.encode(question.reference, add_special_tokens=False)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + answer])).logits[0].double().log_softmax(-1)
            nats -= sum(float(logits[len(start) - 1 + place, token]) for place, token in enumerate(answer))
            tokens, size = tokens + len(answer), size + len(question.reference.encode())
        line = named(four)[name]
        assert line.bits_per_byte is not None
        assert line.bits_per_byte.value == pytest.approx(nats / math.log(2) / size, rel=1e-4)
        assert line.nats_per_token == pytest.approx(nats / tokens, rel=1e-4)
        assert line.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_answers_are_the_models_own_greedy_ones(contest: Path, four: Comparison) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(contest / "good") for kind in (AutoModelForCausalLM, AutoTokenizer))
    scores, written, read, cut = [], 0, 0, 0
    for question in asked(contest / "recipe.yaml"):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(question.prompt, add_special_tokens=False)]
        told = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, len(ids) :].tolist()
        ended = told[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(told[:-1] if ended else told)
        scores.append(word_f1(text, question.reference or ""))
        read, written, cut = read + len(ids), written + len(told), cut + (not ended)
    line = named(four)["good"]
    assert line.f1 is not None
    assert line.f1.value == pytest.approx(sum(scores) / len(scores))
    assert line.f1.value > 0.2, "a model that has learnt the answers gives some of them"
    assert (line.tokens_read, line.tokens_written, line.truncated) == (read, written, cut)
    assert line.answers == 16
    assert line.tokens_per_second is not None
    assert line.cost is None


def test_a_teacher_that_is_not_there_is_told_in_its_place_and_takes_no_other_down(four: Comparison) -> None:
    line = named(four)["gone"]
    assert line.failed is not None
    assert line.failed["reason"] == "MODEL_INVALID"
    assert "teachers.gone.model: './gone' is not there" in line.failed["problems"][0]


def test_the_student_is_measured_alike_and_told_of_where_a_teacher_does_not_beat_it(four: Comparison) -> None:
    """The student is a copy of fair, so that fair has nothing to teach it."""
    student, fair = named(four)["student (start)"], named(four)["fair"]
    assert student.bits_per_byte is not None
    assert fair.bits_per_byte is not None
    assert student.bits_per_byte.value == pytest.approx(fair.bits_per_byte.value, rel=1e-6)
    warned = [text for text in four.warnings if "student" in text]
    assert any(text.startswith("fair does not beat the student (start)") for text in warned)
    assert not any(text.startswith("good") for text in warned)


def test_few_rows_are_told(four: Comparison) -> None:
    assert "only 16 rows: the intervals are rough" in four.warnings
    assert (four.rows, four.held_out, four.references, four.max_new_tokens) == (16, 16, 16, 30)


def test_all_figures_are_json_and_in_the_guide(four: Comparison) -> None:
    value = json.loads(json.dumps(asdict(four)))
    assert value["lines"][0]["bits_per_byte"]["interval"][0] < value["lines"][0]["bits_per_byte"]["value"]
    guide = (ROOT / "docs" / "teachers.md").read_text("utf-8").split("## Choosing a teacher")[1].split("\n## ")[0]
    shown = set(re.findall(r"`(\w+)`", guide))
    assert {field.name for kind in (Comparison, Line) for field in fields(kind)} <= shown


def test_a_copy_cannot_be_told_from_what_it_was_copied_from(contest: Path, tmp_path: Path) -> None:
    teachers = f"{{one: {MODELS['good']}, two: {{plugin: transformers, model: good, dtype: bfloat16}}}}"
    found = run(write(contest, [], teachers=teachers, teacher=None, student="{model: raw}"))
    (only,) = found.differences
    assert not only.certain
    assert f"{only.first} and {only.second} cannot be told apart on 16 rows" in found.verdict
    assert "is the best" not in found.verdict


def test_a_finished_student_takes_part_by_its_own_weights(contest: Path) -> None:
    output = contest / "done"
    shutil.copytree(contest / "good", output / "student")
    Record(output, "train").write("0", {}, figures={})
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    found = run(write(contest, ["good"], teacher="good", output="done", student="{model: raw}"))
    lines = named(found)
    trained, start = lines["student (trained)"].bits_per_byte, lines["student (start)"].bits_per_byte
    assert trained is not None
    assert start is not None
    assert trained.value == pytest.approx(lines["good"].bits_per_byte.value, rel=1e-6)  # type: ignore[union-attr]
    assert start.value > trained.value
    assert [text.partition(":")[0] for text in found.warnings[1:]] == ["good does not beat the student (trained)"]
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_worse_teacher_is_told_as_worse(contest: Path) -> None:
    found = run(write(contest, ["fair"], student="{model: good}"))
    assert any(text.startswith("fair is worse than the student (start): ") for text in found.warnings)
    assert "fair is the only teacher that could be compared" in found.verdict


# -------------------------------------------------------------------------------------------------- teachers of text


def test_of_one_row_nothing_is_certain_and_the_difference_has_its_sign(contest: Path) -> None:
    found = run(write(contest, ["fair", "raw"], student="{model: good}"), rows=1)
    assert "only 1 row: it has no intervals" in found.warnings
    told = {text.partition(" does")[0]: text for text in found.warnings if "does not beat" in text}
    assert set(told) == {"fair", "raw"}
    for text in told.values():
        assert "; it is worse by " in text
        assert "−" not in text
        assert text.endswith(", which may be chance")


def scripted(recipe: Path, wrong: int = 0, **more: Any) -> ScriptedTextTeacher:
    """Answers right, but for the first ones."""
    right = [question.reference or "" for question in asked(recipe)]
    return ScriptedTextTeacher(*["nothing to say"] * wrong, *right[wrong:], **more)


def test_teachers_of_text_are_ranked_by_what_they_answer_and_cost(contest: Path) -> None:
    recipe = write(contest, ["good"], teacher="good")
    dear, cheap, poor = scripted(recipe), scripted(recipe, price=(0.5, 1.0)), scripted(recipe, wrong=8, price=None)
    plugins = registry(dear=lambda _: dear, cheap=lambda _: cheap, poor=lambda _: poor)
    recipe = write(contest, ["poor", "dear", "cheap", "good"], teacher="good")
    found = run(recipe, plugins)
    lines = named(found)
    assert found.figure == "f1"
    assert [line.name for line in found.lines[:2]] == ["cheap", "dear"], "equal answers: the lower cost comes first"
    assert lines["poor"].f1 is not None
    assert (lines["dear"].f1.value, lines["poor"].f1.value) == (1.0, 0.5)  # type: ignore[union-attr]
    assert lines["dear"].cost == pytest.approx((1.0 * 160 + 2.0 * 80) / 1e6)
    assert (lines["dear"].tokens_read, lines["dear"].tokens_written, lines["dear"].currency) == (160, 80, "USD")
    assert lines["poor"].cost is None
    assert lines["good"].bits_per_byte is not None
    assert "ranked by word F1, since poor, dear, cheap cannot tell how likely a given text is" in found.warnings
    assert "cheap and dear cannot be told apart on 16 rows" in found.verdict
    assert all(teacher.closed for teacher in (dear, cheap, poor))
    assert sorted(dear.asked) == list(range(16))
    assert dear.sampling is not None
    assert (dear.sampling.temperature, dear.sampling.max_new_tokens) == (0.0, 30)


def test_refused_failed_empty_and_cut_answers_are_counted_and_worth_nothing(contest: Path) -> None:
    recipe = write(contest, ["good"], teacher="good")
    right = [question.reference or "" for question in asked(recipe)]
    given: list[str | TextCompletion] = [*right]
    given[0] = TextCompletion(0, right[0], "stop", rejected="refused")
    given[1] = TextCompletion(0, right[1], "stop", rejected="failed: no connection")
    given[2] = " "
    given[3] = TextCompletion(0, right[3], "length")
    api = ScriptedTextTeacher(*given)
    line = named(run(write(contest, ["api"], teacher="api", student="{model: raw}"), registry(api=lambda _: api)))[
        "api"
    ]
    assert line.rejected == {"refused": 1, "failed": 1, "empty": 1}
    assert line.truncated == 1
    assert line.f1 is not None
    assert line.f1.value == pytest.approx(13 / 16)


def test_a_rationale_is_no_part_of_an_answer(contest: Path) -> None:
    recipe = write(contest, ["good"], teacher="good")
    given = [f"<think>no, wait</think> {question.reference}" for question in asked(recipe)]
    for tagged, f1 in ((", rationale: {tag: think}", 1.0), ("", None)):
        data = f"{{path: rows.jsonl, holdout: 16{tagged}}}"
        api = ScriptedTextTeacher(*given)
        recipe = write(contest, ["api"], teacher="api", student="{model: raw}", data=data)
        found = named(run(recipe, registry(api=lambda _, api=api: api)))["api"].f1
        assert found is not None
        assert found.value == f1 if f1 is not None else 0 < found.value < 1


def test_answers_of_a_cache_have_their_price_and_a_warning(contest: Path) -> None:
    class Cached(ScriptedTextTeacher):
        def usage(self) -> dict[str, float]:
            return {"calls": 0, "cached": 16, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}

    api = Cached("an answer")
    found = run(write(contest, ["api"], teacher="api", student="{model: raw}"), registry(api=lambda _: api))
    assert named(found)["api"].cost == pytest.approx((1.0 * 160 + 2.0 * 80) / 1e6)
    assert "api: 16 answers came from its cache: its times are not those of the service" in found.warnings


# ------------------------------------------------------------------------------------------------------------- faults


def test_where_no_teacher_is_left_the_first_ones_error_is_the_commands_with_all_problems(contest: Path) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("no teacher today")

    no_key = Problem("is no key", field="key_env")
    api = ScriptedTextTeacher(LimbeckError(Reason.TEACHER_REFUSED, "No key.", [no_key]))
    recipe = write(contest, ["broken", "api"], teacher="api", student="{model: raw}")
    with pytest.raises(LimbeckError) as caught:
        run(recipe, registry(broken=broken, api=lambda _: api))
    assert caught.value.reason is Reason.PLUGIN_INVALID
    told = [(one.field, one.message) for one in caught.value.problems]
    assert told == [
        ("teachers.broken", "'broken' (tests 1) raised ZeroDivisionError: no teacher today"),
        ("teachers.api.key_env", "is no key"),
    ]
    assert all(one.line for one in caught.value.problems)
    assert api.closed


def test_a_teacher_that_breaks_while_it_is_asked_is_closed_and_told(contest: Path) -> None:
    class Breaks(ScriptedTextTeacher):
        def usage(self) -> dict[str, float]:
            raise KeyError("gone")

    api = Breaks("x")
    found = run(write(contest, ["api", "fair"], teacher="fair"), registry(api=lambda _: api))
    failed = named(found)["api"].failed
    assert failed is not None
    assert failed["reason"] == "PLUGIN_INVALID"
    assert "KeyError: 'gone'" in failed["problems"][0]
    assert api.closed


def test_a_teacher_that_knows_its_top_k_only_has_a_bound_and_no_rank_by_it(contest: Path) -> None:
    teachers = f"{{good: {MODELS['good']}, bound: {{plugin: bound, model: good}}}}"
    found = run(write(contest, [], teachers=teachers, teacher="good"), registry(bound=OnlyTopK))
    good, bound = named(found)["good"], named(found)["bound"]
    assert (good.exact, bound.exact, found.figure) == (True, False, "f1")
    assert good.bits_per_byte is not None
    assert bound.bits_per_byte is not None
    assert bound.bits_per_byte.value <= good.bits_per_byte.value + 1e-3


def test_a_teacher_without_its_tokenizer_is_told(contest: Path) -> None:
    class Away(TransformersTeacher):
        def __init__(self, _: Any) -> None:
            super().__init__(TransformersConfig(model=str(contest / "other")))

    found = run(write(contest, ["away", "fair"]), registry(away=Away))
    assert named(found)["away"].failed["reason"] == "TOKENIZER_MISMATCH"  # type: ignore[index]
    both = run(write(contest, ["away", "other", "fair"]), registry(away=Away))
    assert named(both)["away"].failed is None, "another candidate's tokenizer gives its ids"


def test_rows_too_long_for_a_teacher_are_left_out_and_told(contest: Path) -> None:
    from limbeck.data import Tokenizer

    recipe = write(
        contest,
        ["good"],
        teacher="good",
        student="{model: raw}",
        data="{path: rows.jsonl, holdout: 16, max_length: 50}",
        evaluation="{max_new_tokens: 485}",
    )
    tokenizer = Tokenizer.load(contest / "good")
    rows = [(tokenizer.encode_prompt(one.prompt or ""), one.reference or "") for one in asked(recipe)]
    too_long = sum(len(start) + len(tokenizer.encode_prompt(answer)) > 51 for start, answer in rows)
    unasked = sum(len(start) + 485 > 512 for start, _ in rows)
    assert 0 < too_long < 16
    assert 0 < unasked < 16
    found = run(recipe)
    line = named(found)["good"]
    assert line.bits_per_byte is not None
    assert (line.too_long, line.bits_per_byte.rows) == (too_long, 16 - too_long)
    assert (line.answers, line.rejected) == (16, {"failed": unasked})
    assert f"good: {too_long} rows too long to be scored whole" in found.warnings


# --------------------------------------------------------------------------------------------------------------- rows


def test_prompts_of_a_generator_have_no_reference_and_that_is_told(contest: Path) -> None:
    prompts = contest / "prompts.jsonl"
    lines = [json.loads(line) for line in (contest / "rows.jsonl").read_text().splitlines()]
    prompts.write_text("".join(json.dumps({"prompt": line["prompt"]}) + "\n" for line in lines))
    data = "{generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 7}, holdout: 0.5}"
    found = run(write(contest, ["good", "raw"], data=data, student="{model: raw}", teacher="good"), rows=5)
    assert (found.rows, found.held_out, found.references, found.figure, found.max_new_tokens) == (5, 16, 0, None, 7)
    assert found.warnings == ["no row has a reference answer"]
    assert all(line.bits_per_byte is None and line.f1 is None for line in found.lines)
    assert found.rule.startswith("fewest answers missing")
    assert "Nothing here tells how good an answer is" in found.verdict


def test_the_split_is_that_of_the_run(contest: Path) -> None:
    from limbeck.data import Tokenizer, prepare, read_rows

    recipe = load_recipe(write(contest, ["good"], teacher="good"), registry())
    prepared = prepare(*read_rows([contest / "rows.jsonl"]), Tokenizer.load(contest / "good"), recipe.data)
    own = [one.scored.line for one in asked(recipe.path) if one.scored is not None]
    assert own == sorted(one.line for one in prepared.holdout)


def test_chat_rows_are_asked_up_to_their_last_answer(tmp_path: Path, contest: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rows: list[dict[str, Any]] = [
        {"messages": [*messages, {"role": "assistant", "content": "d"}]},
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"text": "a text"},
        {"messages": [*messages, {"role": "assistant", "content": "d", "weight": 0}]},
    ]
    (contest / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(write(contest, ["good"], data="{path: mixed.jsonl, holdout: 3}", teacher="good"), registry())
    found, _ = questions(recipe, None, 64)
    everything = [(messages, "d"), ("p", "good"), (None, None), (messages, None)]
    assert [(one.prompt, one.reference) for one in found] == [pair for pair in everything if pair in _pairs(found)]
    assert {one.scored is None for one in found if one.prompt == messages and one.reference is None} <= {True}


def _pairs(found: list[Question]) -> list[tuple[Any, Any]]:
    return [(one.prompt, one.reference) for one in found]


NOTHING = {"none held out": "{path: rows.jsonl, holdout: 0}", "no rows": "{path: ./gone.jsonl}"}


@pytest.mark.parametrize("spec", NOTHING.values(), ids=NOTHING)
def test_without_held_out_rows_nothing_is_asked(contest: Path, spec: str) -> None:
    with pytest.raises(LimbeckError) as caught:
        run(write(contest, ["good"], data=spec, teacher="good"))
    assert all(one.field and one.field.startswith("data.") for one in caught.value.problems)


def test_without_a_pick_the_student_that_depends_on_it_is_not_compared_and_that_is_told(contest: Path) -> None:
    found = run(write(contest, ["good", "fair"], teacher=None))
    assert [line.name for line in found.lines] == ["good", "fair"]
    assert any(text.startswith("the student is not compared") for text in found.warnings)


def test_a_signal_ends_it(contest: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        run(write(contest, ["good", "fair"]), stop=lambda: "SIGTERM")
    assert caught.value.signal == "SIGTERM"


def test_a_student_that_is_not_there_is_told_and_the_teachers_are_compared(contest: Path) -> None:
    found = run(write(contest, ["good", "fair"], student="{model: ./away}"))
    assert [(line.name, line.rank) for line in found.lines] == [("good", 1), ("fair", 2), ("student (start)", None)]
    failed = found.lines[-1].failed
    assert failed is not None
    assert "recipe.yaml:3:" in failed["problems"][0]
    assert "student" in failed["problems"][0]


def test_a_lone_teacher_is_compared_with_the_student(contest: Path) -> None:
    recipe = write(contest, [], teachers=None, teacher=MODELS["good"], student="{model: raw}")
    found = run(recipe)
    assert [(line.name, line.picked) for line in found.lines] == [("transformers", True), ("student (start)", False)]
    (only,) = found.against_student
    assert only.certain
    assert found.verdict.startswith("transformers is the only teacher that could be compared: ")
