"""A key comes from the environment, goes to its service, and is found nowhere else."""

import json
import os
import subprocess
import sys

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import TextPrompt
from limbeck.testing.text_teachers import answers, ask
from limbeck_openai.keys import Key

KEY = "sk-very/secret+0123456789abcdef"
PROMPTS = [TextPrompt(i, f"prompt {i}") for i in range(2)]

PROGRAM = """
import asyncio, json, logging, pickle, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from limbeck.errors import LimbeckError
from limbeck.interfaces import Sampling, TextPrompt
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.teacher import OpenAITeacher

config = OpenAIConfig(**json.loads(sys.argv[1]))
teacher = OpenAITeacher(config)

async def go():
    try:
        async for answer in teacher.complete([TextPrompt(i, f"prompt {i}") for i in range(3)], Sampling()):
            print(answer)
    except LimbeckError as error:
        print(repr(error), str(error), pickle.dumps(error), file=sys.stderr)
        traceback.print_exc()
    print(config, teacher, vars(teacher), vars(teacher._desk), teacher.info(), teacher.usage())
    await teacher.close()

asyncio.run(go(), debug=True)
"""


def echoing(key):
    """A service that repeats the key wherever it can."""
    shout = {"error": {"message": f"Bad key {key}.", "code": f"x {key}"}}
    return [
        {"status": 400, "body": {"error": {"message": f"maximum context length; {key}"}}},
        {"text": f"Your key is {key}.", "headers": {"x-echo": key}},
        {"status": 500, "body": f"<html>{'x' * 190}{key}</html>", "headers": {"x-echo": key}},
        {"status": 200, "body": f"<html>{'x' * 190}{key}</html>"},
        {"status": 200, "body": json.dumps(shout).replace("/", "\\/")},
        {"status": 401, "body": json.dumps(shout).replace("/", "\\/"), "headers": {"x-echo": key}},
    ]


@pytest.mark.parametrize(("api", "stream"), [("chat", False), ("responses", True), ("completions", True)])
def test_the_key_is_in_no_file_and_in_nothing_that_is_printed(serve, tmp_path, api, stream):
    server = serve(*echoing(KEY))
    config = {"base_url": server.base_url, "model": "small", "cache": str(tmp_path / "cache"), "key_env": "MY_KEY"}
    config |= {"stream": stream, "api": api, "concurrency": 1}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM, json.dumps(config)],
        env={**os.environ, "MY_KEY": f"\ufeff{KEY}\r\n", "OPENAI_LOG": "debug", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "TEACHER_REFUSED" in done.stderr, done.stderr
    assert "Bad key [key]." in done.stderr
    assert "receive_response_headers" in done.stderr  # the transport did tell what it got
    assert "Your key is [key]." in done.stdout
    assert all(f"Bearer {KEY}" in record["headers"].values() for record in server.asked)
    assert len(server.asked) == 6
    pieces = [KEY, KEY[3:20], KEY[-12:], KEY.replace("/", "\\/")]
    written = [done.stdout, done.stderr]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            written.append(file.read_bytes().decode("latin-1"))
    assert len(written) > 2
    for text in written:
        assert not [piece for piece in pieces if piece in text]


def test_no_key_is_sent_where_none_is_named(serve, make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    server = serve()
    ask(answers(make(server), PROMPTS))
    for record in server.asked:
        assert KEY not in json.dumps(record["headers"])
        assert not {"authorization", "openai-organization", "openai-project"} & {n.lower() for n in record["headers"]}


@pytest.mark.parametrize("value", ["", " \n", f"{KEY}\nsecond", f"two {KEY}", f"{KEY}é", None])
def test_a_variable_without_a_usable_key_is_refused_before_a_call_and_not_shown(serve, make, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    server = serve()
    with pytest.raises(LimbeckError) as caught:
        ask(answers(make(server, key_env="MY_KEY"), PROMPTS))
    assert caught.value.reason is Reason.TEACHER_REFUSED
    assert "MY_KEY" in str(caught.value)
    assert "very/secret" not in str(caught.value)
    assert not server.asked


def test_a_key_that_is_not_there_is_told_before_a_run(serve, make, monkeypatch):
    teacher = make(serve(), key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    (warning,) = teacher.info().warnings
    assert "MY_KEY is not set" in warning
    monkeypatch.setenv("MY_KEY", "sk-1")
    assert teacher.info().warnings == ()


@pytest.mark.parametrize("value", [f"{KEY}\n", f"{KEY}\r\n", f"\ufeff{KEY}"])
def test_what_editors_put_around_a_key_is_taken_off(serve, make, monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    server = serve()
    ask(answers(make(server, key_env="MY_KEY"), PROMPTS))
    assert all(f"Bearer {KEY}" in record["headers"].values() for record in server.asked)


@pytest.mark.parametrize("named", [True, False])
def test_a_key_in_the_headers_of_the_environment_is_not_sent(serve, make, monkeypatch, named):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer of-another-service")
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve()
    ask(answers(make(server, key_env="MY_KEY" if named else None), PROMPTS))
    sent = {record["headers"].get("authorization", record["headers"].get("Authorization")) for record in server.asked}
    assert sent == {f"Bearer {KEY}" if named else None}


def test_another_key_asks_nothing_again(serve, make, monkeypatch):
    server = serve()
    infos = set()
    for key in ("first-key", "second-key"):
        monkeypatch.setenv("MY_KEY", key)
        teacher = make(server, key_env="MY_KEY")
        infos.add(teacher.info().digest)
        ask(answers(teacher, PROMPTS))
    assert len(server.asked) == len(PROMPTS)
    assert len(infos) == 1


def test_a_key_does_not_show_itself():
    assert KEY not in f"{Key(KEY)} {Key(KEY)!r}"
    assert Key("").hide("text") == "text"
    assert Key(KEY).hide_in({"a": [KEY, 1, None]}) == {"a": ["[key]", 1, None]}


def test_the_refusal_of_a_key_says_where_it_came_from_or_that_none_was_sent(serve, make, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    for options, words in (({"key_env": "MY_KEY"}, "the key is the one of MY_KEY"), ({}, "no key was sent")):
        with pytest.raises(LimbeckError) as caught:
            ask(answers(make(serve({"status": 401}), **options), PROMPTS))
        assert words in str(caught.value)
