"""What a recipe may say of an endpoint."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe
from limbeck_openai.config import OpenAIConfig


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "https://me:secret@host/v1"}, "key_env"),
        ({"base_url": "https://host/v1?key=secret"}, "key_env"),
        ({"base_url": "host:8000/v1"}, "http://HOST"),
        ({"base_url": "http://host:80:80/v1"}, "is no address"),
        ({"extra": {"temperature": 2, "top_p": 1}}, "temperature, top_p"),
        ({"budget": {"money": 1.0}, "cache": "c"}, "needs price"),
        ({"budget": {"tokens": 100}}, "cache: FOLDER"),
        ({"budget": {}, "cache": "c"}, "neither"),
        ({"logprobs": 21}, "20"),
        ({"logprobs": 5, "reasoning_tag": "think"}, "exclude"),
        ({"fields": {"max_tokens": None}}, "without a limit"),
        ({"fields": {"frequency": "f"}}, "temperature"),
        ({"key_env": "sk-123"}, "pattern"),
        ({"tries": 0}, "1"),
        ({"api": "edits"}, "chat"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, words):
    with pytest.raises(ValidationError) as caught:
        OpenAIConfig(**{"model": "small", **options})
    assert words in str(caught.value)


def test_a_refused_address_does_not_show_its_password():
    with pytest.raises(ValidationError) as caught:
        OpenAIConfig(model="small", base_url="https://me:hunter2@host/v1")
    assert "hunter2" not in caught.value.errors()[0]["msg"]


def test_a_snapshot_of_the_model_is_the_model_and_its_relatives_are_not():
    config = OpenAIConfig(model="gpt-4o")
    good = ["gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-0613", None, ""]
    assert all(config.serves(name) for name in good)
    assert not any(config.serves(name) for name in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4", "GPT-4o-x"))
    served = OpenAIConfig(model="alias", served_as="org/real")
    assert served.serves("org/real")
    assert not served.serves("alias")


def test_the_length_limit_has_the_name_that_the_endpoint_takes():
    def name(**options):
        return OpenAIConfig(model="m", **options).field("max_tokens")

    assert name() == "max_completion_tokens"
    assert name(base_url="https://mine.openai.azure.com/openai/v1") == "max_completion_tokens"
    assert name(base_url="http://localhost:8000/v1") == "max_tokens"
    assert name(api="completions") == "max_tokens"
    assert name(api="responses") == "max_output_tokens"
    assert name(base_url="http://gateway/v1", fields={"max_tokens": "max_completion_tokens"}) == "max_completion_tokens"


def test_a_key_of_one_service_is_not_sent_to_another():
    assert OpenAIConfig(model="m").key_variable == "OPENAI_API_KEY"
    assert OpenAIConfig(model="m", base_url="https://other.example/v1").key_variable is None
    assert OpenAIConfig(model="m", base_url="https://other.example/v1", key_env="OTHER").key_variable == "OTHER"


def test_a_recipe_names_it_and_its_cache_is_beside_the_recipe(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teacher: {plugin: openai, model: small, cache: answers, budget: {tokens: 1000}}\n"
        "student: {model: some/model}\n"
        "data: {generator: {plugin: prompts, path: prompts.jsonl}}\n"
        "losses: [{plugin: sequence_kd}]\noutput: out\n"
    )
    recipe = load_recipe(recipe, load_plugins())
    assert not recipe.missing_paths()
    teacher = recipe.teacher
    assert teacher.config.cache == str(tmp_path / "answers")
    assert teacher.config.budget.tokens == 1000


def test_the_guide_lists_every_option_with_its_default():
    text = (Path(__file__).parents[3] / "docs" / "teachers.md").read_text("utf-8")
    section = text.split("## `openai`\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| *`?(.*?)`? *\|", section, re.M))
    assert list(rows) == list(OpenAIConfig.model_fields)
    for name, field in OpenAIConfig.model_fields.items():
        if isinstance(field.default, int | float | bool) or name == "api":
            assert rows[name] == str(field.default).lower().removesuffix(".0"), name
