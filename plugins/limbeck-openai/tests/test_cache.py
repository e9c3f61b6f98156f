"""No call is paid for twice: across answers, processes, kill -9 and a full disk; and what is damaged is told."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt
from limbeck.testing.text_teachers import answers, ask
from limbeck_openai.store import NAME, Store

PROGRAM = """
import asyncio, json, sys
from limbeck.interfaces import Sampling, TextPrompt
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.teacher import OpenAITeacher

config, first, last = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
teacher = OpenAITeacher(OpenAIConfig(**config))

async def go():
    prompts = [TextPrompt(i, f"prompt {i}") for i in range(first, last)]
    async for answer in teacher.complete(prompts, Sampling()):
        print("got", answer.item_id, answer.text, flush=True)
    print(json.dumps(dict(teacher.usage())), flush=True)
    await teacher.close()

asyncio.run(go())
"""


def prompts(count):
    return [TextPrompt(i, f"prompt {i}") for i in range(count)]


def started(server, cache, first=0, last=20, **options):
    config = {"base_url": server.base_url, "model": "small", "cache": str(cache), "concurrency": 2, **options}
    command = [sys.executable, "-c", PROGRAM, json.dumps(config), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(cache, what):
    with sqlite3.connect(Path(cache) / NAME) as db:
        return db.execute(what).fetchall()


def test_what_was_answered_is_not_asked_again_and_costs_nothing(serve, make):
    server = serve()
    price = {"input": 1.0, "output": 1.0}
    first = ask(answers(make(server, price=price), prompts(3)))
    again = make(server, price=price)
    assert ask(answers(again, prompts(3))) == first
    assert len(server.asked) == 3
    usage = again.usage()
    assert (usage["calls"], usage["cached"], usage["prompt_tokens"], usage["cost"]) == (0, 3, 0, 0.0)


@pytest.mark.parametrize(
    "step", [{"finish": "length"}, {"finish": "content_filter"}, {"message": {"refusal": "No."}}, {"text": ""}]
)
def test_what_was_paid_for_and_rejected_is_not_asked_again_either(serve, make, step):
    server = serve(step)
    first = ask(answers(make(server), prompts(1)))
    assert ask(answers(make(server), prompts(1))) == first
    assert len(server.asked) == 1


def test_likeliest_tokens_come_out_of_the_cache_as_they_went_in(serve, make):
    server = serve({"text": "Où \x00 🜁"})
    first = ask(answers(make(server, logprobs=3), prompts(1), Sampling(logprobs=3)))
    assert ask(answers(make(server, logprobs=3), prompts(1), Sampling(logprobs=3))) == first
    assert len(first[0].tokens) == 3
    assert len(server.asked) == 1


def test_one_and_the_same_request_is_asked_once_however_often_it_is_wanted(serve, make):
    server = serve(slow=0.2)
    teacher = make(server, concurrency=8)
    same = [TextPrompt(i, "the same") for i in range(5)]

    async def two_at_once():
        return await asyncio.gather(answers(teacher, same), answers(teacher, same))

    for found in ask(two_at_once()):
        assert [found[i].text for i in range(5)] == ["echo the same"] * 5
    assert len(server.asked) == 1
    assert (teacher.usage()["calls"], teacher.usage()["cached"]) == (1, 9)


def test_drawn_answers_are_drawn_each_and_kept_each(serve, make):
    server = serve()
    same = [TextPrompt(i, "the same") for i in range(5)]
    for _ in range(2):
        ask(answers(make(server), same, Sampling(temperature=1.0)))
    assert len({record["body"]["seed"] for record in server.asked}) == len(server.asked) == 5


def test_answers_of_a_model_that_is_no_longer_accepted_are_asked_again(serve, make):
    server = serve({"model": "small-0101"}, {"model": "small-0202"})
    ask(answers(make(server), prompts(1)))
    ask(answers(make(server, served_as="small-0202"), prompts(1)))
    assert len(server.asked) == 2


def test_the_default_folder_is_the_users_cache(serve, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    ask(answers(make(serve(), cache=None), prompts(1)))
    if sys.platform == "linux":
        assert (tmp_path / "home" / "limbeck" / "openai" / NAME).is_file()


def test_kill_9_in_the_middle_pays_twice_for_nothing_but_what_was_under_way(serve, make, tmp_path):
    server = serve(slow=0.15)
    cache = tmp_path / "cache"
    for got in (4, 3):  # killed twice
        with started(server, cache) as process:
            for _ in range(got):
                assert process.stdout.readline().startswith("got"), process.stderr.read()
            while not server.now:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    lost = len(rows(cache, "SELECT 1 FROM calls WHERE state IN ('open', 'lost')"))
    assert 0 < lost <= 4  # two workers, two kills
    with started(server, cache) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    usage = json.loads(out.splitlines()[-1])
    assert usage["cached"] + usage["calls"] == 20
    times = Counter(server.prompts)
    assert set(times) == {f"prompt {i}" for i in range(20)}
    assert sum(times.values()) - 20 <= lost
    given_twice = [prompt for prompt, count in times.items() if count > 1]
    marked = {key for (key,) in rows(cache, "SELECT key FROM calls WHERE state = 'lost'")}
    paid = {key for (key,) in rows(cache, "SELECT key FROM calls WHERE state = 'paid'")}
    assert len(given_twice) <= len(marked & paid)
    assert rows(cache, "SELECT count(*) FROM calls WHERE state = 'open'") == [(0,)]
    assert rows(cache, "SELECT count(*) FROM claims") == [(0,)]
    assert rows(cache, "SELECT key FROM calls WHERE state = 'paid' GROUP BY key HAVING count(*) > 1") == []
    assert usage["lost"] <= lost


def test_two_processes_at_once_ask_for_nothing_twice(serve, tmp_path):
    server = serve(slow=0.1)
    cache = tmp_path / "cache"
    both = [started(server, cache, concurrency=3) for _ in range(2)]
    usages = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        *got, usage = out.splitlines()
        assert {line.split(" ", 2)[1] for line in got} == {str(i) for i in range(20)}
        usages.append(json.loads(usage))
    assert Counter(server.prompts) == {f"prompt {i}": 1 for i in range(20)}
    assert sum(usage["calls"] for usage in usages) == 20
    assert [path.name for path in cache.iterdir() if path.name.startswith(".owner")] == []


def test_what_a_killed_process_claimed_is_taken_over_while_another_waits_for_it(serve, make, tmp_path):
    server = serve({"silent": True})
    cache = tmp_path / "cache"
    process = started(server, cache, 0, 1, timeout=60.0)
    while not server.asked:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    teacher = make(server)

    async def waits():
        task = asyncio.ensure_future(answers(teacher, prompts(1)))
        await asyncio.sleep(0.5)
        assert len(server.asked) == 1  # the other process has it under way
        process.kill()
        return await asyncio.wait_for(task, 30)

    assert ask(waits())[0].text == "echo prompt 0"
    process.communicate()
    assert len(server.asked) == 2
    assert teacher.usage()["lost"] == 1


# ----------------------------------------------------------------------------------------------------------- damage


def failing(teacher, count=1):
    with pytest.raises(LimbeckError) as caught:
        ask(answers(teacher, prompts(count)))
    return caught.value


def filled(serve, make, tmp_path):
    server = serve()
    ask(answers(make(server), prompts(5)))
    file = tmp_path / "cache" / NAME
    copy = tmp_path / "copy"
    copy.mkdir()
    with sqlite3.connect(file) as db, sqlite3.connect(copy / NAME) as whole:
        db.backup(whole)
    whole.close()
    return server, copy


def test_a_file_that_is_no_cache_is_told(serve, make, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / NAME).write_bytes(b"not a database" * 100)
    server = serve()
    error = failing(make(server))
    assert error.reason is Reason.STORE_DAMAGED
    assert str(tmp_path / "cache" / NAME) in str(error)
    assert not server.asked


def test_a_flipped_byte_in_an_answer_is_told_and_nothing_is_asked_in_its_place(serve, make, tmp_path):
    server, copy = filled(serve, make, tmp_path)
    raw = (copy / NAME).read_bytes()
    assert raw.count(b'"echo prompt 3"') == 1
    (copy / NAME).write_bytes(raw.replace(b'"echo prompt 3"', b'"echo prompt 4"'))
    error = failing(make(server, cache=str(copy)), 5)
    assert error.reason is Reason.STORE_DAMAGED
    assert len(server.asked) == 5


def test_a_hole_in_the_file_is_told(serve, make, tmp_path):
    server, copy = filled(serve, make, tmp_path)
    size = (copy / NAME).stat().st_size
    with (copy / NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\0" * (size - 4096))
    assert failing(make(server, cache=str(copy)), 5).reason is Reason.STORE_DAMAGED


def test_a_cache_of_another_version_is_left_alone(serve, make, tmp_path):
    server, copy = filled(serve, make, tmp_path)
    with sqlite3.connect(copy / NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    error = failing(make(server, cache=str(copy)))
    assert error.reason is Reason.FOLDER_NOT_OURS
    assert "99" in str(error)


def test_a_folder_that_cannot_be_made_is_told(serve, make, tmp_path):
    (tmp_path / "file").write_text("")
    error = failing(make(serve(), cache=str(tmp_path / "file" / "cache")))
    assert error.reason is Reason.FOLDER_NOT_OURS


def long(i):
    return TextPrompt(i, f"prompt {i}" + "x" * 5000)


def until_it_fails(teacher, came):
    for i in range(2, 500):
        came |= ask(answers(teacher, [long(i)]))


def test_a_full_disk_is_told_before_a_call_is_paid_for_and_the_same_command_goes_on(serve, make, monkeypatch):
    server = serve()
    teacher = make(server)
    ask(answers(teacher, prompts(2)))
    store = teacher._desk._store
    limit = f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0]}"
    store._db.execute(limit)  # SQLite then says what it says of a full disk
    came = {}
    with pytest.raises(LimbeckError) as caught:
        until_it_fails(teacher, came)
    error = caught.value
    assert error.reason is Reason.DISK_FULL
    assert "bytes are free" in str(error)
    told_lost = "could not be kept" in str(error)
    assert len(server.asked) == 2 + len(came) + told_lost  # each call's answer was given out, or is told to be lost
    store._db.execute("PRAGMA max_page_count = 1000000")
    again = make(server)
    for i in range(2, 2 + len(came)):
        ask(answers(again, [long(i)]))
    assert again.usage()["calls"] == 0


def test_a_new_cache_that_another_process_just_makes_is_opened_a_little_later(tmp_path, monkeypatch):
    prepare, calls = Store._prepare, []

    def busy_at_first(self):  # what SQLite says, about once in 600 times, where several make one file at once
        calls.append(self)
        if len(calls) == 1:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        prepare(self)

    monkeypatch.setattr(Store, "_prepare", busy_at_first)
    Store(tmp_path).close()
    assert len(calls) == 2
