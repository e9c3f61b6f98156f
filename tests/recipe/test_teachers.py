"""`teachers:` names candidates, `teacher:` picks one of them, and only that one is part of the run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.recipe import Recipe, load_recipe
from limbeck.runs.contents import Contents
from limbeck.runs.preflight import check

SEVERAL = "{small: {plugin: transformers, model: a/small}, large: {plugin: transformers, model: a/large}}"


def test_a_name_picks_a_teacher_and_the_others_are_candidates(load: Any, text: Any) -> None:
    recipe: Recipe = load(text(teacher="large", teachers=SEVERAL))
    assert recipe.teacher is not None
    assert (recipe.teacher.config.model, recipe.teacher.field) == ("a/large", "teachers.large")
    assert list(recipe.candidates) == ["small", "large"]
    other = recipe.taught_by("small").teacher
    assert other is not None
    assert other.config.model == "a/small"
    assert recipe.taught_by(None).teacher is None


def test_a_teachers_mapping_is_a_candidate_by_its_plugins_name(load: Any, text: Any) -> None:
    recipe: Recipe = load(text(teachers=SEVERAL))
    assert list(recipe.candidates) == ["transformers", "small", "large"]
    assert recipe.teacher is recipe.candidates["transformers"]
    named = "{transformers: {plugin: transformers, model: a/small}}"
    assert list(load(text(teachers=named)).candidates) == ["teacher", "transformers"]
    assert load(text()).candidates == {"transformers": load(text()).teacher}


def test_only_the_picked_teacher_is_part_of_the_recipe(load: Any, text: Any) -> None:
    alone: Recipe = load(text(teacher="{plugin: transformers, model: a/large}"))
    picked: Recipe = load(text(teacher="large", teachers=SEVERAL))
    more = SEVERAL.replace("{small", "{third: {plugin: transformers, model: ./gone}, small")
    assert picked.resolved() == alone.resolved()
    assert picked.digest == alone.digest == load(text(teacher="large", teachers=more)).digest
    assert load(text(teacher="small", teachers=SEVERAL)).digest != alone.digest


def test_a_stage_is_made_of_the_picked_teacher_alone(load: Any, text: Any, tiny_teacher: Path) -> None:
    one = f"{{plugin: transformers, model: {tiny_teacher}}}"
    alone = load(text(teacher=one, student="{from: teacher}"))
    picked = load(text(teacher="a", teachers=f"{{a: {one}, b: {{plugin: transformers, model: ./gone}}}}"))
    assert Contents(alone).teacher == Contents(picked).teacher


def test_a_candidate_that_is_not_there_stops_only_the_run_that_asks_it(
    load: Any, text: Any, tiny_teacher: Path, tmp_path: Path, registry: Any
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    teachers = f"{{a: {{plugin: transformers, model: {tiny_teacher}}}, b: {{plugin: transformers, model: ./gone}}}}"
    whole = {"student": "{from: teacher}", "data": "{path: rows.jsonl, holdout: 1}", "teachers": teachers}
    found = check(load(text(teacher="a", **whole)), registry)
    assert not found.problems
    (only,) = check(load(text(teacher="b", **whole)), registry).problems
    assert (only[1].line, only[1].field) == (6, "teachers.b.model")


PICKS = {
    "misspelt": ("smal", "teacher", "did you mean small?"),
    "unlike any": ("zzz", "teacher", "there are: small, large"),
    "none": (None, "teachers", "`limbeck teachers compare recipe.yaml` tells which"),
}


@pytest.mark.parametrize(("picked", "field", "said"), PICKS.values(), ids=PICKS)
def test_what_is_wrong_with_the_choice_is_told_once(
    problems: Any, text: Any, picked: str | None, field: str, said: str
) -> None:
    (problem,) = problems(text(teacher=picked, teachers=SEVERAL, student="{from: teacher}"))
    assert problem.field == field
    assert said in problem.hint
    assert picked is not None or "none of small, large is picked, and forward_kl needs a teacher" in problem.message


def test_none_need_be_picked_where_nothing_needs_one(load: Any, text: Any) -> None:
    recipe: Recipe = load(text(teacher=None, teachers=SEVERAL, losses="[{plugin: cross_entropy}]"))
    assert recipe.teacher is None


def test_none_need_be_picked_before_they_are_compared(text: Any, tmp_path: Path, registry: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text(teacher=None, teachers=SEVERAL, student="{from: teacher}"))
    recipe = load_recipe(path, registry, undecided=True)
    assert (recipe.teacher, list(recipe.candidates)) == (None, ["small", "large"])


def test_faults_of_every_candidate_are_told_at_once(tmp_path: Path, registry: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        textwrap.dedent("""\
        teacher: fourth
        teachers:
          first: {plugin: transformrs, model: a/b}
          second: {plugin: transformers, modle: a/b}
          "third one": {plugin: transformers, model: ./gone}
          fourth: transformers
          fifth: {model: a/b}
        student: {model: a/b}
        data: {path: recipe.yaml}
        losses: [{plugin: forward_kl}]
        output: out
        """)
    )
    with pytest.raises(LimbeckError) as caught:
        load_recipe(path, registry)
    found = [(one.line, one.field, f"{one.message} ({one.hint})") for one in caught.value.problems]
    expected = [
        (3, "teachers.first.plugin", "did you mean 'transformers'?"),
        (4, "teachers.second.model", "is missing"),
        (4, "teachers.second.modle", "did you mean model?"),
        (5, "teachers.third one", "must be letters, digits, _ and -, not 'third one'"),
        (5, "teachers.third one.model", "is not there"),
        (6, "teachers.fourth", "write {plugin: transformers}"),
        (7, "teachers.fifth.plugin", "name a teacher plugin"),
    ]
    assert sorted((line, field) for line, field, _ in found) == [(line, field) for line, field, _ in expected]
    for line, field, said in expected:
        assert any(said in text for *place, text in found if place == [line, field]), (field, found)
