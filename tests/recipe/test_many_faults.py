"""Faults of different layers (text, types, rules, plugins, files) hide nothing from one another."""

from __future__ import annotations

import pytest

from limbeck.errors import LimbeckError

# the recipe; every problem there must be, in the order of the file, as (line, field, part of the message and hint)
MANY = {
    "the text's own traps": (
        """\
        teacher: {plugin: transformers, model: a/b}
        student: {from: teacher}
        student: {model: x}
        data: {path: gone.jsonl, holdout: .nan}
        losses:
          - {plugin: forward_kl, weight: '1'}
        evaluation: {twin: yes}
        output: 07
        """,
        [
            (3, "student", "given twice, first on line 2"),
            (4, "data.path", "'gone.jsonl' is not there"),
            (4, "data.holdout", ".nan is not a finite number"),
            (6, "losses[0].weight", "write 1 without quotes"),
            (7, "evaluation.twin", "write true"),
            (8, "output", 'write it in quotes: "7"'),
        ],
    ),
    "a typo, a file, two names, a schedule": (
        """\
        teacher: {plugin: transformers, model: a/b}
        student: {from: teacher}
        data: {path: gone.jsonl, max_lenght: 8}
        losses:
          - {plugin: forward_kl, temperature: {plugin: linear, start: 2, end: 1}, weight: -1}
          - {plugin: forward_kl, wieght: 1}
        output: out
        """,
        [
            (3, "data.path", "'gone.jsonl' is not there"),
            (3, "data.max_lenght", "did you mean max_length?"),
            (5, "losses[0].temperature", "a number or a step function"),
            (5, "losses[0].weight", "at least 0, not -1"),
            (6, "losses[1].name", "taken by losses[0]"),
            (6, "losses[1].wieght", "did you mean weight?"),
        ],
    ),
    "every rule of the fixed part": (
        """\
        teacher: {plugin: transformers, model: ./gone}
        student: {from: teacher, model: x, layers: [2, 1], dtype: int8}
        data: {path: a, generator: {plugin: prompts, path: gone.jsonl}, max_length: 1, holdout: 2.0}
        losses: [{plugin: forward_kl}]
        training: {max_steps: 0, warmup_steps: 2.5, lr: 3}
        output: out
        """,
        [
            (1, "teacher.model", "'./gone' is not there"),
            (2, "student", "not from and model"),
            (2, "student.layers", "must rise"),
            (2, "student.dtype", "float32 or bfloat16"),
            (3, "data", "not both"),
            (3, "data.generator.path", "'gone.jsonl' is not there"),
            (3, "data.max_length", "at least 2"),
            (3, "data.holdout", "write 2 for rows"),
            (5, "training.max_steps", "trains nothing"),
            (5, "training.warmup_steps", "share below 1"),
            (5, "training.lr", "learning_rate"),
        ],
    ),
    "no teacher, and more": (
        """\
        student: {from: teacher, dtype: x}
        data: {path: a}
        losses:
          - {plugin: forward_kl, top_k: 0}
          - {plugin: hidden_mse, layers: [[0, 0]], zzz: 1}
          - {plugin: sequence_kd}
        output: out
        """,
        [
            (1, "student.from", "add teacher:"),
            (1, "student.dtype", "must be"),
            (4, "losses[0]", "needs a teacher's signal"),
            (4, "losses[0].top_k", "at least 1"),
            (5, "losses[1]", "needs a teacher's signal"),
            (5, "losses[1]", "not stored"),
            (5, "losses[1].zzz", "known here: name, weight, layers"),
            (6, "losses[2]", "add data.generator"),
        ],
    ),
    "plugins": (
        """\
        teacher: {plugin: transfomers, model: a/b}
        student: {from: teacher}
        data: {generator: {plugn: prompts, path: x}}
        losses:
          - {plugin: forwrd_kl}
          - {plugin: cross_entropy, weight: {plugin: 3}}
          - {plugin: cross_entropy, weight: {plugin: liner}}
        output: out
        """,
        [
            (1, "teacher.plugin", "did you mean 'transformers'?"),
            (3, "data.generator.plugn", "did you mean plugin?"),
            (5, "losses[0].plugin", "did you mean 'forward_kl'?"),
            (6, "losses[1].weight.plugin", "must be text, not 3"),
            (7, "losses[2].name", "taken by losses[1]"),
            (7, "losses[2].weight.plugin", "did you mean 'linear'?"),
        ],
    ),
    "a schedule's own rule, a generator's typo": (
        """\
        teacher: {plugin: transformers, model: a/b}
        student: {from: teacher}
        data: {generator: {plugin: prompts, path: gone.jsonl, temprature: 1}}
        losses: [{plugin: sequence_kd, weight: {plugin: linear, start: 1, end: 0, begin: 0.9, until: 0.2, x: 1}}]
        output: ''
        """,
        [
            (3, "data.generator.path", "'gone.jsonl' is not there"),
            (3, "data.generator.temprature", "did you mean temperature?"),
            (4, "losses[0].weight", "begin (0.9) must be below until (0.2)"),
            (4, "losses[0].weight.x", "there is no such field"),
            (5, "output", "must not be empty"),
        ],
    ),
    "empty values, each on its own line": (
        "teacher:\nstudent:\ndata:\nlosses:\noutput:\n",
        [
            (2, "student", "must be a mapping, not empty"),
            (3, "data", "must be a mapping, not empty"),
            (4, "losses", "must be a list, not empty"),
            (5, "output", "must be text, not empty"),
        ],
    ),
    "an alias is told where it stands": (
        """\
        teacher: &t {plugin: transformers, model: a/b}
        student: {from: teacher}
        data: {path: a}
        losses:
          - &one {plugin: forward_kl}
          - *one
        output: *t
        """,
        [(6, "losses[1].name", "taken by losses[0]"), (7, "output", "must be text, not a mapping")],
    ),
    "bare names": (
        """\
        teacher: echo
        student: {from: teacher}
        data: {path: 3, generator: prompts}
        losses: []
        signals: online
        output: out
        """,
        [
            (1, "teacher", "write {plugin: echo}"),
            (3, "data", "not both"),
            (3, "data.path", 'write it in quotes: "3"'),
            (3, "data.generator", "write {plugin: prompts}"),
            (4, "losses", "at least 1 entry"),
            (5, "signals", "must be a mapping"),
        ],
    ),
}


@pytest.mark.parametrize(("recipe", "expected"), MANY.values(), ids=MANY)
def test_faults_of_every_layer_are_told_at_once(problems, recipe, expected):
    found = problems(recipe)
    assert [(problem.line, problem.field) for problem in found] == [(line, name) for line, name, _ in expected]
    for problem, (_, _, said) in zip(found, expected, strict=True):
        assert said in f"{problem.message} ({problem.hint})"


MISSPELT = {
    "teacher": ({"teacher": None, "techer": "{plugin: echo, tokenizer: a/b}"}, "techer"),
    "signals": ({"losses": "[{plugin: hidden_mse, layers: [[0, 0]]}]", "signal": "{source: online}"}, "signal"),
    "source": (
        {"losses": "[{plugin: hidden_mse, layers: [[0, 0]]}]", "signals": "{sorce: online}"},
        "signals.sorce",
    ),
    "path": ({"data": "{paht: rows.jsonl}"}, "data.paht"),
    "model": ({"student": "{modle: a/b}"}, "student.modle"),
    "tokenizer": (
        {
            "teacher": None,
            "losses": "[{plugin: cross_entropy}]",
            "student": "{config: {model_type: llama}, tokeniser: a/b}",
        },
        "student.tokeniser",
    ),
}


@pytest.mark.parametrize(("changes", "field"), MISSPELT.values(), ids=MISSPELT)
def test_a_misspelt_field_is_told_once_and_not_as_missing_too(problems, text, changes, field):
    (problem,) = problems(text(**changes))
    assert problem.field == field
    assert "did you mean" in problem.hint


def test_a_schedule_whose_plugin_is_no_text_is_not_dropped(problems, text):
    (problem,) = problems(text(losses="[{plugin: cross_entropy}, {plugin: forward_kl, weight: {plugin: 3}}]"))
    assert problem.field == "losses[1].weight.plugin"


def test_missing_files_of_a_recipe_with_other_faults_are_told_of_each_field(load, text):
    with pytest.raises(LimbeckError) as caught:
        load(text(teacher="{plugin: transformers, model: ./gone}", student="{model: ./gone}", output="3"))
    assert [(problem.line, problem.column, problem.field) for problem in caught.value.problems] == [
        (1, 40, "teacher.model"),
        (2, 18, "student.model"),
        (3, 14, "data.path"),
        (5, 9, "output"),
    ]


def test_a_paths_text_in_another_field_is_not_mistaken_for_it(load, text):
    (problem,) = load(text(student="{from: teacher}", data="{path: teacher}")).missing_paths()
    assert (problem.line, problem.field) == (3, "data.path")
