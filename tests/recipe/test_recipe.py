from __future__ import annotations

import json

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Want
from limbeck.recipe import Bound, load_recipe, wanted

SAMPLE = """\
teacher: {plugin: transformers, model: google/gemma-3-270m}
student: {from: teacher, layers: [0, 2, 4, 6, 8, 10, 12, 14, 17]}
data:
  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 64}
  holdout: 0.1
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 64, temperature: {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 3e-4, num_train_epochs: 3, per_device_train_batch_size: 8}
output: runs/gemma-half
"""


def test_the_plans_sample_loads(load, tmp_path):
    recipe = load(SAMPLE)
    assert recipe.path == tmp_path / "recipe.yaml"
    assert recipe.text == SAMPLE
    assert recipe.teacher.name == "transformers"
    assert recipe.teacher.config.model == "google/gemma-3-270m"
    assert recipe.student.from_ == "teacher"
    assert recipe.generator.config.path == str(tmp_path / "prompts.jsonl")
    assert recipe.generator.field == "data.generator"
    assert recipe.output == tmp_path / "runs/gemma-half"
    assert recipe.training.arguments()["learning_rate"] == 3e-4
    first, second = recipe.losses
    assert (first.name, first.kind, first.field) == ("forward_kl", "token", "losses[0]")
    assert first.knobs["weight"] == 0.9
    temperature = first.knobs["temperature"]
    assert isinstance(temperature, Bound)
    assert temperature.field == "losses[0].temperature"
    assert temperature.make().value(0.5, {}) == 1.0
    assert second.knobs == {"weight": 0.1}
    assert wanted(recipe.losses) == Want(top_k=64, temperatures=(1.0, 2.0))


def test_the_resolved_recipe_is_a_recipe_with_the_same_meaning(load, tmp_path, registry):
    recipe = load(SAMPLE)
    elsewhere = tmp_path / "elsewhere" / "resolved.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(recipe.resolved(), indent=2))
    again = load_recipe(elsewhere, registry)
    assert again.resolved() == recipe.resolved()
    assert again.digest == recipe.digest
    assert recipe.resolved()["losses"][0]["tail"] == "bucket"
    assert recipe.resolved()["evaluation"]["twin"] is False


def test_the_digest_follows_the_meaning_not_the_text(load):
    recipe = load(SAMPLE)
    assert load("# a remark\n" + SAMPLE.replace("holdout: 0.1", "holdout: 1e-1")).digest == recipe.digest
    assert load(SAMPLE.replace("holdout: 0.1", "holdout: 0.2")).digest != recipe.digest


def test_every_part_of_every_plugin_is_told_at_once(problems):
    found = problems(
        """\
        teacher: {plugin: transformer, model: a/b}
        student: {from: teecher, layers: [0, 2, 1.0]}
        data:
          pth: rows.jsonl
          holdout: yes
        losses:
          - {plugin: forward_kl, weigth: 0.9, top_k: "64", temperature: {plugin: piecewise, points: [[0.4]]}}
          - {plugin: cross_entropy, weight: -0.1}
        training: {learning_rate: fast, seed: true}
        output: 3
        """
    )
    places = [(problem.line, problem.field, problem.message) for problem in found]
    assert places == [
        (1, "teacher.plugin", "no teacher plugin is called 'transformer'"),
        (2, "student.from", 'must be teacher, not the text "teecher"'),
        (2, "student.layers[2]", "must be a whole number, not 1.0"),
        (4, "data.pth", "there is no such field"),
        (5, "data.holdout", 'must be a number, not the text "yes"'),
        (7, "losses[0].weigth", "there is no such field"),
        (7, "losses[0].top_k", 'must be a whole number, not the text "64"'),
        (7, "losses[0].temperature.points[0]", "must have at least 2 entries, not 1"),
        (8, "losses[1].weight", "must be at least 0, not -0.1"),
        (9, "training.learning_rate", 'must be a number, not the text "fast"'),
        (9, "training.seed", "must be a whole number, not true"),
        (10, "output", "must be text, not 3"),
    ]
    assert [problem.column for problem in found[:3]] == [19, 17, 41]


HINTS = {
    "a number in quotes": ({"losses": '[{plugin: forward_kl, weight: "0.5"}]'}, "write 0.5 without quotes"),
    "underscores": ({"data": "{path: a, max_length: 1_000}"}, "write 1000"),
    "a whole number as 1e3": ({"data": "{path: a, max_length: 1e3}"}, "write 1000"),
    "yes": ({"evaluation": "{twin: yes}"}, "write true: in YAML 1.2 yes is text"),
    "Off": ({"evaluation": "{twin: Off}"}, "write false: in YAML 1.2 Off is text"),
    "true in quotes": ({"evaluation": "{twin: 'true'}"}, "write true without quotes"),
    "a number as text": ({"output": "2024"}, 'write it in quotes: "2024"'),
    "one loss, not a list": ({"losses": "{plugin: forward_kl}"}, "put '- ' before it"),
    "a plugin's bare name": ({"losses": "[forward_kl]"}, "write {plugin: forward_kl} if that is the plugin's name"),
    "a teacher's bare name": ({"teacher": "echo"}, "write {plugin: echo} if that is the plugin's name"),
    "a choice misspelt": ({"signals": "{source: chached}"}, "did you mean cached?"),
    "a field misspelt": ({"evaluation": "{sample: 4}"}, "did you mean samples?"),
    "a field of no likeness": ({"signals": "{zzz: 4}"}, "known here: source"),
    "a section misspelt": ({"trainning": "{}"}, "did you mean training?"),
    "a layer alone": ({"losses": "[{plugin: hidden_mse, layers: 3}]", "signals": "{source: online}"}, "write [3]"),
    "a schedule of what is no knob": (
        {"losses": "[{plugin: jsd, top_k: {plugin: linear, start: 1, end: 2}}]"},
        "this field cannot be a schedule",
    ),
    "weights of tokens for a loss on rows": (
        {"losses": "[{plugin: contrastive}]", "data": "{path: a, rationale: {tag: think, weight: 0.5}}"},
        "leave weight out, or take the rationale out by keep: false",
    ),
    "a plugin left out": ({"losses": "[{weight: 1}]"}, "name a loss plugin: contrastive, cross_entropy"),
}


@pytest.mark.parametrize(("changes", "hint"), HINTS.values(), ids=HINTS)
def test_a_common_mistake_is_told_what_to_write(problems, text, changes, hint):
    (problem,) = problems(text(**changes))
    assert hint in (problem.hint or "")


@pytest.mark.parametrize("field", ["max_steps", "seed", "warmup_steps", "learning_rate"])
@pytest.mark.parametrize("value", ["9" * 5_000, "1e999", "0x" + "f" * 5_000])
def test_a_number_without_end_is_a_problem_of_its_field(problems, text, field, value):
    found = problems(text(training=f"{{{field}: {value}}}"))
    assert any("is not a finite number" in problem.message for problem in found)
    assert {problem.field for problem in found} == {f"training.{field}"}


def test_a_large_bound_is_written_out(problems, text):
    (problem,) = problems(text(training="{seed: 4294967296}"))
    assert problem.message == "must be below 4294967296, not 4294967296"


def test_an_empty_value_and_a_missing_field_are_told(problems, text):
    found = problems(text(student=None, data="", losses="[]"))
    assert [(problem.field, problem.message) for problem in found] == [
        ("student", "is missing"),
        ("data", "must be a mapping, not empty"),
        ("losses", "must have at least 1 entry, not 0"),
    ]


def test_a_required_field_of_a_plugin_is_told_with_its_meaning(problems, text):
    (problem,) = problems(text(teacher="{plugin: transformers}"))
    assert (problem.field, problem.message) == ("teacher.model", "is missing")
    assert "Local folder" in problem.hint


STUDENTS = {
    "{}": "give exactly one of from, model and config, not none of them",
    "{from: teacher, model: a/b}": "not from and model",
    "{model: a/b, layers: [0]}": "layers goes with from only, not with model",
    "{model: a/b, seed: 3}": "seed goes with config only, not with model",
    "{from: teacher, tokenizer: a/b}": "tokenizer goes with config only, not with from",
    "{from: teacher, layers: [2, 1]}": "layers must rise, each once; not [2, 1]",
    "{from: teacher, layers: [1, 1]}": "layers must rise",
    "{from: teacher, layers: [-1]}": "must be at least 0, not -1",
    "{from: teacher, layers: []}": "must have at least 1 entry",
    "{config: {hidden_size: 8}}": "config needs model_type",
    "{config: 3}": "must be a mapping or text, not 3",
    "{model: a/b, dtype: float16}": "must be float32 or bfloat16",
}


@pytest.mark.parametrize(("student", "said"), STUDENTS.items())
def test_a_student_has_one_origin(problems, text, student, said):
    (problem,) = problems(text(student=student))
    assert said in problem.message


DATA = {
    "{}": "give exactly one of path and generator, not neither",
    "{path: a, generator: {plugin: prompts, path: b}}": "not both",
    "{path: []}": "must have at least 1 entry",
    "{path: a, holdout: 1.0}": "holdout 1.0 is neither a share below 1 nor a whole number of rows: write 1 for rows",
    "{path: a, holdout: -1}": "must be at least 0, not -1",
    "{path: a, max_length: 1}": "must be at least 2, not 1",
    "{path: a, rationale: {tag: <think>}}": r'must match ^[A-Za-z][\w.:-]*$, not the text "<think>"',
    "{path: a, on_bad_row: skip}": "must be error or quarantine",
}


@pytest.mark.parametrize(("data", "said"), DATA.items())
def test_data_says_what_it_must(problems, text, data, said):
    found = problems(text(data=data))
    assert any(said in problem.message for problem in found), found


@pytest.mark.parametrize("holdout", ["0", "0.0", "0.25", "12"])
def test_a_holdout_is_a_share_or_a_number_of_rows(load, text, holdout):
    assert load(text(data=f"{{path: a, holdout: {holdout}}}")).data.holdout == float(holdout)


# ------------------------------------------------------------------------------------------------------ losses, knobs


def test_a_schedule_may_not_leave_the_range_of_its_knob(problems, text):
    found = problems(
        text(
            losses="[{plugin: forward_kl, temperature: {plugin: piecewise, points: [[0, 1], [0.5, 0]]},"
            " weight: {plugin: linear, start: 1.0, end: -1.0}}]"
        )
    )
    assert [(problem.field, problem.message) for problem in found] == [
        ("losses[0].temperature", "every value must be above 0, but this schedule gives 0"),
        ("losses[0].weight", "every value must be at least 0, but this schedule gives -0.002"),
    ]


def test_a_knob_that_leaves_its_range_later_is_an_error_of_its_own(load, text):
    loss = load(text(losses="[{plugin: jsd, name: mine}]")).losses[0]
    loss.check_knob("teacher_weight", 0.99)
    for value in (0.0, 1.0, float("nan"), float("inf")):
        with pytest.raises(LimbeckError) as caught:
            loss.check_knob("teacher_weight", value)
        assert caught.value.reason is Reason.KNOB_INVALID
        assert caught.value.problems[0].field == "losses.mine.teacher_weight"


def test_two_losses_need_two_names(load, problems, text):
    (problem,) = problems(text(losses="[{plugin: forward_kl}, {plugin: jsd, name: forward_kl}]"))
    assert problem.message == "the name 'forward_kl' is taken by losses[0]"
    assert problem.field == "losses[1].name"
    recipe = load(text(losses="[{plugin: jsd, top_k: 8}, {plugin: jsd, name: sharp, temperature: 0.5, top_k: 16}]"))
    assert [loss.name for loss in recipe.losses] == ["jsd", "sharp"]
    assert wanted(recipe.losses) == Want(top_k=16, temperatures=(0.5, 1.0))


@pytest.mark.parametrize("name", ["a.b", "a b", "é"])
def test_a_loss_name_must_fit_into_a_knobs_name(problems, text, name):
    (problem,) = problems(text(losses=f"[{{plugin: jsd, name: '{name}'}}]"))
    assert problem.field == "losses[0].name"


def test_a_cached_temperature_is_a_number_or_a_step_function(problems, text):
    (problem,) = problems(text(losses="[{plugin: forward_kl, temperature: {plugin: linear, start: 2, end: 1}}]"))
    assert problem.field == "losses[0].temperature"
    assert "a number or a step function" in problem.message
    assert "piecewise" in problem.hint


def test_a_signal_that_is_not_stored_needs_an_online_teacher(load, problems, text):
    losses = "[{plugin: hidden_mse, layers: [[2, 4], [-1, -1]]}]"
    (problem,) = problems(text(losses=losses))
    assert problem.message == "hidden_mse needs hidden_states, which is not stored"
    assert problem.hint == "write signals: {source: online}"
    assert wanted(load(text(losses=losses, signals="{source: online}")).losses).layers == (-1, 4)


def test_without_a_teacher_only_losses_without_a_signal_go(load, problems, text):
    assert load(text(teacher=None, losses="[{plugin: cross_entropy}]")).teacher is None
    found = problems(text(teacher=None, student="{from: teacher}"))
    assert [problem.message for problem in found] == [
        "there is no teacher to make a student from",
        "forward_kl needs a teacher's signal",
    ]


def test_from_scratch_without_a_teacher_needs_a_tokenizer(load, problems, text):
    student = "{config: {model_type: llama}}"
    (problem,) = problems(text(teacher=None, student=student, losses="[{plugin: cross_entropy}]"))
    assert problem.field == "student.tokenizer"
    student = "{config: {model_type: llama}, tokenizer: a/b, seed: 7}"
    recipe = load(text(teacher=None, student=student, losses="[{plugin: cross_entropy}]"))
    assert recipe.resolved()["student"]["seed"] == 7


def test_a_recipe_whose_losses_all_weigh_nothing_is_refused(load, problems, text):
    (problem,) = problems(text(losses="[{plugin: cross_entropy, weight: 0}, {plugin: forward_kl, weight: 0.0}]"))
    assert problem.field == "losses[0].weight"
    assert "nothing would be trained" in problem.message
    some = "[{plugin: cross_entropy, weight: 0}, {plugin: forward_kl, weight: {plugin: linear, start: 0, end: 1}}]"
    assert load(text(losses=some))


def test_a_loss_on_the_teachers_text_needs_a_generator(problems, text):
    (problem,) = problems(text(losses="[{plugin: sequence_kd}]"))
    assert "cross_entropy" in problem.hint


def test_an_alias_of_a_loss_keeps_its_own_meaning(load, problems, text):
    loss = load(text(losses="[{plugin: jsd, beta: 0.25}]")).losses[0]
    assert loss.knobs["teacher_weight"] == 0.25
    (problem,) = problems(text(losses="[{plugin: jsd, beta: 1}]"))
    assert problem.message == "beta 1 is reverse_kl: use that plugin"


# ---------------------------------------------------------------------------------------------------------- training


REFUSED = {
    "output_dir: x": "the run's folder is `output:`",
    "warmup_ratio: 0.1": "write warmup_steps: 0.1",
    "eval_strategy: steps": "evaluation is Limbeck's own",
    "fp16: true": "not been tested",
    "lr: 0.1": "learning_rate",
    "report_to: wandb": "observer plugin",
}


@pytest.mark.parametrize(("field", "why"), REFUSED.items())
def test_a_training_argument_that_is_not_taken_says_why(problems, text, field, why):
    (problem,) = problems(text(training=f"{{{field}}}"))
    assert problem.message.startswith("is not taken: ")
    assert why in problem.message


def test_a_misspelt_training_argument_gets_the_nearest(problems, text):
    (problem,) = problems(text(training="{lerning_rate: 1e-4}"))
    assert problem.hint == "did you mean learning_rate?"


def test_training_defaults_are_handed_on_with_one_data_seed(load, text):
    arguments = load(text(training="{seed: 7}")).training.arguments()
    assert (arguments["seed"], arguments["data_seed"]) == (7, 7)


@pytest.mark.parametrize(("name", "value"), [("max_steps", "0"), ("warmup_steps", "2.5")])
def test_training_that_makes_no_sense_is_refused(problems, text, name, value):
    (problem,) = problems(text(training=f"{{{name}: {value}}}"))
    assert problem.field == f"training.{name}"
