"""What `vllm-server` makes of a server that fails, lies or goes away. The server is scripted; it speaks real HTTP."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.preflight import check
from limbeck.testing.teachers import ask, completions, scores
from limbeck_vllm import server_tries
from limbeck_vllm.server_answers import Entries
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_rows import Rows
from limbeck_vllm.server_teacher import VllmServerTeacher

TOKENIZER = Path(__file__).parents[3] / "tests" / "data" / "tok_a"
V, LENGTH, EOS = 261, 64, 1
WANT = Want(top_k=3, target=True)
KEY = "sk-very-secret-0123456789"


def logprobs(ids):
    """The scripted model: a distribution that depends on all ids read."""
    logits = np.random.default_rng([int(i) for i in ids]).normal(size=V) * 3
    return logits - np.logaddexp.reduce(logits)


class Script:
    """A server's behaviour: `do(n, path, body)` gives (status, body, headers) for the n-th question, None for good."""

    def __init__(self):
        self.do = lambda n, path, body: None
        self.models = [{"id": "small", "root": "/models/small", "parent": None, "max_model_len": LENGTH}]
        self.most, self.processed, self.logits = 20, False, False
        self.asked, self.keys, self.teachers = [], set(), []
        self.now = self.peak = 0
        self.lock = threading.Lock()

    def good(self, body):
        ids, k = body["prompt"], body.get("prompt_logprobs")
        for asked in (k, body.get("logprobs")):
            if asked is not None and asked > self.most:
                return refusal(f"Requested prompt logprobs of {asked}, which is greater than max allowed: {self.most}")
        if max(ids) >= V:
            return refusal(f"Token id {max(ids)} is out of vocabulary")
        entries = None if k is None else [None] + [entry(logprobs(ids[:j]), k, ids[j]) for j in range(1, len(ids))]
        wrote, told, best = [], [], []
        while len(wrote) < body["max_tokens"] and wrote[-1:] != [EOS]:
            row = logprobs([*ids, *wrote])
            token = int(row.argmax())
            if self.processed and body["temperature"]:
                row = row / body["temperature"]
                row = row - np.logaddexp.reduce(row)
            row = row + 30 if self.logits else row
            wrote.append(token)
            told.append(float(row[token]))
            best.append(
                {f"token_id:{i}": float(row[i]) for i in (token, *np.argsort(-row)[: body.get("logprobs") or 0])}
            )
        choice = {
            "index": 0,
            "text": 'never read "prompt_logprobs":[',
            "logprobs": {"token_logprobs": told, "top_logprobs": best} if body.get("logprobs") else None,
            "finish_reason": "stop" if wrote[-1] == EOS else "length",
            "stop_reason": None,
            "token_ids": wrote,
            "prompt_logprobs": entries,
        }
        return {"choices": [choice]}


def entry(row, k, token):
    """One position as vLLM tells it: the token first, then the k best; each with its rank."""
    order = np.argsort(-row)
    named = [(token, int((row >= row[token]).sum())), *((int(i), rank) for rank, i in enumerate(order[:k], 1))]
    return {str(i): {"logprob": float(row[i]), "rank": rank, "decoded_token": "ü"} for i, rank in named}


def refusal(words, status=400):
    return status, json.dumps({"error": {"message": words, "type": "BadRequestError", "code": status}}).encode(), {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def answer(self, body):
        script = self.server.script
        with script.lock:
            script.asked.append((self.path, body))
            count = sum(path == self.path for path, _ in script.asked)
            script.keys.add(self.headers.get("authorization"))
            script.now += 1
            script.peak = max(script.peak, script.now)
        try:
            found = script.do(count, self.path, body)
            if found is None:
                known = {"/v1/models": lambda: {"data": script.models}, "/v1/completions": lambda: script.good(body)}
                found = known.get(self.path, lambda: refusal("Not Found", 404))()
            status, content, headers = found if isinstance(found, tuple) else (200, json.dumps(found).encode(), {})
        finally:
            with script.lock:
                script.now -= 1
        cut = headers.pop("cut", None)
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if cut is None else content[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(server_tries, "FIRST_PAUSE", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script = Script()
    server.script.address = f"http://127.0.0.1:{server.server_port}"
    server.script.server = server
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.script
    for made in server.script.teachers:
        ask(made.close())
    server.shutdown()
    server.server_close()


def teacher(script, **more):
    more = {"address": script.address, "tokenizer": str(TOKENIZER)} | more
    made = VllmServerTeacher(VllmServerConfig(**more))
    script.teachers.append(made)
    return made


def item(name=7, length=9, first=0, n=None):
    ids = np.random.default_rng(name).integers(3, V, length).astype(np.int32)
    return ScoreItem(name, ids, first, length - 1 - first if n is None else n)


def on_score(script, answer):
    """Let the completions that score be answered by `answer(n, body)`, n from 1; the questions of info stay good."""
    count = Counter()

    def do(_, path, body):
        if path != "/v1/completions" or not body.get("prompt_logprobs") or len(body["prompt"]) < 2:
            return None
        with script.lock:
            count["score"] += 1
            n = count["score"]
        return answer(n, body)

    script.do = do
    return count


def fails(question, reason):
    with pytest.raises(LimbeckError) as caught:
        ask(question) if asyncio.iscoroutine(question) else question()
    assert caught.value.reason is reason, str(caught.value)
    return str(caught.value)


def test_a_good_server_gives_the_numbers_of_its_model(script):
    asked = item(first=2)
    signal = ask(scores(teacher(script), [asked], WANT))[7]
    for row in range(asked.n):
        expected = logprobs(asked.ids[: row + 3])
        ids, values, tail = signal.top_k.take(slice(row, row + 1)).at(1.0)
        np.testing.assert_array_equal(ids[0], np.argsort(-expected)[:3])
        np.testing.assert_allclose(values[0], expected[ids[0]], atol=0.001)
        np.testing.assert_allclose(signal.target[row], expected[asked.ids[row + 3]], atol=1e-5)
        np.testing.assert_allclose(np.exp(tail[0]), 1 - np.exp(expected[ids[0]]).sum(), atol=1e-3)


def test_the_row_behind_the_last_token_is_what_comes_next(script):
    asked = item(first=6, n=3)
    signal = ask(scores(teacher(script), [asked], Want(top_k=3)))[7]
    expected = logprobs(asked.ids)
    np.testing.assert_array_equal(signal.top_k.ids[2], np.argsort(-expected)[:3])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_is_read_however_it_is_cut_in_pieces(script, size):
    async def pieces(body):
        for start in range(0, len(body), size):
            yield body[start : start + size]

    asked = item()
    body = json.dumps(script.good({"prompt": asked.ids.tolist(), "prompt_logprobs": 3, "max_tokens": 1, "logprobs": 0}))
    rows = Rows(asked.n, 3, V)
    rest = ask(Entries(asked, rows).read(pieces(body.encode())))
    assert rest["choices"][0]["text"] == 'never read "prompt_logprobs":['
    np.testing.assert_allclose(rows.target[0], logprobs(asked.ids[:1])[asked.ids[1]], atol=1e-5)
    assert sorted(rows.ids[-1]) == sorted(np.argsort(-logprobs(asked.ids[:8]))[:3])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(script, status):
    count = on_score(script, lambda n, body: refusal("not now", status) if n < 3 else None)
    assert set(ask(scores(teacher(script), [item()], WANT))) == {7}
    assert count["score"] == 3


def test_a_server_that_stays_broken_is_told_with_its_words_after_all_tries(script):
    count = on_score(script, lambda n, body: refusal("EngineCore encountered an issue", 500))
    words = fails(scores(teacher(script, tries=4), [item()], WANT), Reason.SERVER_UNAVAILABLE)
    assert count["score"] == 4
    assert "HTTP 500: EngineCore encountered an issue, tried 4 times" in words
    assert "item 7" in words


def test_a_busy_server_is_given_the_time_it_asks_for(script, monkeypatch):
    waited = []
    sleep = asyncio.sleep

    async def noted(seconds):
        waited.append(seconds)
        await sleep(0)

    on_score(script, lambda n, body: (429, b"slow down", {"retry-after": "7"}) if n == 1 else None)
    asked = teacher(script)
    asked.info()
    monkeypatch.setattr(server_tries.asyncio, "sleep", noted)
    ask(scores(asked, [item()], WANT))
    assert len([seconds for seconds in waited if 5 <= seconds <= 9]) == 1


def test_a_cut_answer_is_asked_again_and_nothing_of_it_kept(script):
    def cut(n, body):
        if n > 2:
            return None
        whole = json.dumps(script.good(body)).encode()
        return 200, whole, {"cut": len(whole) // 2}

    count = on_score(script, cut)
    signal = ask(scores(teacher(script), [item()], WANT))[7]
    assert count["score"] == 3
    np.testing.assert_allclose(signal.target[-1], logprobs(item().ids[:-1])[item().ids[-1]], atol=1e-5)


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b'{"choices": [', b"", b"\xff\xfe"])
def test_what_is_no_json_is_asked_again_and_then_told(script, body):
    count = on_score(script, lambda n, _: (200, body, {}))
    words = fails(scores(teacher(script, tries=2), [item()], WANT), Reason.SCORING_FAILED)
    assert count["score"] == 2
    assert "no JSON" in words


def wrong(change):
    def make(script, body):
        answer = script.good(body)
        change(answer["choices"][0])
        return answer

    return make


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("prompt_logprobs"), "is it a vLLM server?"),
        (lambda c: c["prompt_logprobs"].pop(), "8 positions of 9"),
        (lambda c: c["prompt_logprobs"].append({}), "10 positions of 9"),
        (lambda c: c["prompt_logprobs"][4].clear(), "position 4 cannot be read"),
        (lambda c: c["prompt_logprobs"].__setitem__(4, None), "position 4 cannot be read"),
        (lambda c: next(iter(c["prompt_logprobs"][4].values())).update(logprob=None), "not finite"),
        (lambda c: [e.update(rank=9) for e in c["prompt_logprobs"][4].values()], "0 ids of 3"),
        (lambda c: c["prompt_logprobs"][4].update({"999": {"logprob": -1, "rank": 1}}), "4 ids of 3"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_what_was_asked_is_told_at_once(script, change, words):
    count = on_score(script, lambda n, body: wrong(change)(script, body))
    told = fails(scores(teacher(script), [item()], WANT), Reason.SCORING_FAILED)
    assert words in told
    assert "item 7" in told
    assert count["score"] == 1


def test_what_the_server_does_not_take_is_told_at_once_with_its_words_and_the_item(script):
    count = on_score(script, lambda n, body: refusal("This is too much for me."))
    words = fails(scores(teacher(script), [item()], WANT), Reason.SCORING_FAILED)
    assert "item 7" in words
    assert "HTTP 400: This is too much for me." in words
    assert count["score"] == 1


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_or_refuse_is_refused_before_any_work(script, temperature):
    asked = teacher(script)
    told = fails(lambda: asked.generate([], Sampling(temperature=temperature)), Reason.GENERATION_FAILED)
    assert "0.01 … 2.0" in told


def test_an_id_outside_of_the_vocabulary_points_at_the_tokenizer(script):
    def alien(choice):
        of_rank_1 = next(name for name, said in choice["prompt_logprobs"][3].items() if said["rank"] == 1)
        choice["prompt_logprobs"][3]["4711"] = choice["prompt_logprobs"][3].pop(of_rank_1)

    on_score(script, lambda n, body: wrong(alien)(script, body))
    assert "`tokenizer` is not that of the served model" in fails(
        scores(teacher(script), [item()], WANT), Reason.SCORING_FAILED
    )


def test_a_stalled_answer_ends_with_the_timeout(script):
    release = threading.Event()
    on_score(script, lambda n, body: release.wait(30) and None)
    try:
        words = fails(scores(teacher(script, timeout=0.3, tries=2), [item()], WANT), Reason.SERVER_UNAVAILABLE)
    finally:
        release.set()
    assert "no answer within 0.3 s, tried 2 times" in words
    assert "raise `timeout`" in words


def test_a_server_that_goes_away_in_the_middle_is_told(script):
    def gone(n, body):
        if n < 3:
            return None
        script.server.socket.close()
        raise ConnectionAbortedError

    on_score(script, gone)
    script.server.handle_error = lambda *_: None
    asked = [item(name) for name in range(8)]
    words = fails(scores(teacher(script, tries=3, concurrency=1), asked, WANT), Reason.SERVER_UNAVAILABLE)
    assert script.address in words
    assert "tried 3 times" in words


def test_nobody_there_is_told_at_once_with_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    lonely = VllmServerTeacher(VllmServerConfig(address=address, tokenizer=str(TOKENIZER)))
    words = fails(lonely.info, Reason.SERVER_UNAVAILABLE)
    assert address in words
    assert "vllm serve" in words


def test_a_connection_that_cannot_be_made_safe_is_told(script):
    asked = teacher(script, address=script.address.replace("http:", "https:"))
    message = fails(asked.info, Reason.SERVER_UNAVAILABLE)
    assert "SSL" in message
    assert "SSL_CERT_FILE" in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_without_the_key(script, status, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    script.do = lambda n, path, body: refusal(f"Incorrect API key provided: {KEY}", status)
    words = fails(teacher(script, key_env="MY_KEY").info, Reason.TEACHER_REFUSED)
    assert "see that MY_KEY holds the server's key" in words
    assert script.keys == {f"Bearer {KEY}"}
    assert KEY not in words + caplog.text
    assert "name the variable with its key" in fails(teacher(script).info, Reason.TEACHER_REFUSED)


@pytest.mark.parametrize(("value", "words"), [(None, "is not set"), (" ", "is not set"), ("a b\nc", "can be no key")])
def test_a_key_that_is_none_is_told_by_the_name_of_its_variable(script, value, words, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    told = fails(teacher(script, key_env="MY_KEY").info, Reason.TEACHER_REFUSED)
    assert "MY_KEY" in told
    assert words in told
    assert "a b" not in told
    assert script.asked == []


def test_a_model_that_is_not_there_is_told_with_those_that_are(script):
    words = fails(teacher(script, model="smal").info, Reason.TEACHER_REFUSED)
    assert "no model 'smal'; it has small (did you mean 'small'?)" in words
    script.models.append({"id": "other", "parent": None, "max_model_len": 9})
    assert "several models: small, other" in fails(teacher(script).info, Reason.TEACHER_REFUSED)
    assert teacher(script, model="other").info().max_length == 8


def test_an_adapter_reads_what_its_base_reads_and_is_another_teacher(script):
    script.models.append({"id": "tuned", "root": "/adapters/tuned", "parent": "small", "max_model_len": None})
    base, tuned = teacher(script).info(), teacher(script, model="tuned").info()
    assert tuned.max_length == base.max_length == LENGTH - 1
    assert tuned.weights_digest != base.weights_digest


def test_what_is_no_vllm_server_is_told(script):
    script.models = [{"id": "gpt", "object": "model"}]
    assert "tells no max_model_len" in fails(teacher(script).info, Reason.TEACHER_REFUSED)
    script.do = lambda n, path, body: (404, b"<h1>nginx</h1>", {})
    assert "see that `address` is the root" in fails(teacher(script).info, Reason.TEACHER_REFUSED)
    script.do = lambda n, path, body: (308, b"", {"location": "https://elsewhere"})
    assert "it is elsewhere: https://elsewhere" in fails(teacher(script).info, Reason.TEACHER_REFUSED)
    script.do = lambda n, path, body: (200, b'{"data": 3}', {})
    assert "cannot be read" in fails(teacher(script).info, Reason.TEACHER_REFUSED)


def test_too_large_a_top_k_is_refused_before_any_work_with_the_option_to_start_with(script):
    asked = teacher(script)
    asked.info()
    before = len(script.asked)
    words = fails(lambda: asked.score([], Want(top_k=64)), Reason.CAPABILITY_MISSING)
    assert "allowed is up to 20" in words
    assert "--max-logprobs 64" in words
    assert "--max-logprobs 21" in fails(lambda: asked.generate([], Sampling(logprobs=21)), Reason.GENERATION_FAILED)
    assert len(script.asked) == before


@pytest.mark.parametrize("most", [0, 1, 5, 20, 260, 261, 1000])
def test_the_limit_of_log_probabilities_is_found_whatever_the_refusal_says(script, most, monkeypatch):
    script.most = most
    expected = min(most, V)
    assert teacher(script)._facts.most == expected
    good = script.good
    script.good = lambda body: refusal("No.") if isinstance(good(body), tuple) else good(body)
    assert teacher(script)._facts.most == expected
    assert ("top_k" in teacher(script).info().capabilities) == (most > 0)


def test_the_vocabulary_is_asked_for_where_no_config_tells_it(script):
    assert not (TOKENIZER / "config.json").exists()
    assert teacher(script).info().vocab_size == V


def test_a_server_of_logits_is_refused_and_one_of_scaled_numbers_says_nothing_of_its_texts(script):
    script.processed = True
    assert teacher(script).info().capabilities == {"generate", "target", "top_k"}
    script.processed, script.logits = False, True
    assert "--logprobs-mode" in fails(teacher(script).info, Reason.TEACHER_REFUSED)


def test_another_tokenizer_than_the_servers_is_refused(script):
    script.do = lambda n, path, body: {"tokens": [5, 6, 7]} if path == "/tokenize" else None
    assert "is not the tokenizer of 'small'" in fails(teacher(script).info, Reason.TOKENIZER_MISMATCH)


def test_requests_of_all_calls_together_stay_within_the_bound(script):
    on_score(script, lambda n, body: time.sleep(0.02))
    asked = teacher(script, concurrency=3)
    items = [item(name) for name in range(8)]

    async def both():
        return await asyncio.gather(scores(asked, items, WANT), scores(asked, items, WANT))

    one, other = ask(both())
    assert set(one) == set(other) == set(range(8))
    assert 2 <= script.peak <= 3


def test_calls_of_several_threads_that_are_the_first_stay_within_it_too(script):
    on_score(script, lambda n, body: time.sleep(0.02))
    asked = teacher(script, concurrency=2)
    items = [item(name) for name in range(6)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: ask(scores(asked, items, WANT)), range(4)))
    assert all(set(one) == set(range(6)) for one in found)
    assert script.peak <= 2
    assert [path for path, _ in script.asked].count("/v1/models") == 1


def test_closing_a_call_asks_nothing_more(script):
    asked = teacher(script, concurrency=2)
    asked.info()

    async def first_only():
        async with aclosing(asked.score([item(name) for name in range(50)], WANT)) as answers:
            async for name, _ in answers:
                return name

    before = len(script.asked)
    ask(first_only())
    after = len(script.asked) - before
    assert after < 20
    assert set(ask(scores(asked, [item(99)], WANT))) == {99}
    assert len(script.asked) - before <= after + 2 + 1  # two may have been on their way


def shorter(choice):
    """As a server does whose generation config says max_new_tokens: 3."""
    choice.update(token_ids=choice["token_ids"][:3])
    choice["logprobs"] = {name: told[:3] for name, told in choice["logprobs"].items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorter, "--generation-config vllm"),
        (lambda c: [told.pop() for told in c["logprobs"].values()], "of 5 tokens of 6"),
        (lambda c: c.update(finish_reason="abort"), "by itself ('abort')"),
        (lambda c: c.update(finish_reason="stop"), "no end token of `tokenizer`"),
        (lambda c: c.update(token_ids=[EOS, *c["token_ids"][1:]]), "went on behind an end token"),
        (lambda c: c.pop("token_ids"), "no token_ids"),
        (lambda c: c["logprobs"]["token_logprobs"].pop(), "cannot be read"),
        (lambda c: c.update(logprobs=None), "cannot be read"),
    ],
)
def test_a_text_that_was_not_asked_for_is_told(script, change, words):
    def do(n, path, body):
        return wrong(change)(script, body) if path == "/v1/completions" and body["max_tokens"] == 6 else None

    script.do = do
    sampling = Sampling(max_new_tokens=6, logprobs=2)
    told = fails(completions(teacher(script), [Prompt(3, item().ids)], sampling), Reason.GENERATION_FAILED)
    assert words in told
    assert "item 3" in told


def test_an_end_that_only_the_server_knows_is_no_part_of_the_text(script):
    def do(n, path, body):
        end = wrong(lambda c: c.update(finish_reason="stop", stop_reason=c["token_ids"][-1]))
        return end(script, body) if path == "/v1/completions" and body["max_tokens"] == 6 else None

    script.do = do
    answer = ask(completions(teacher(script), [Prompt(3, item().ids)], Sampling(max_new_tokens=6, logprobs=2)))[3]
    assert (len(answer.ids), len(answer.said.ids), answer.finish_reason) == (5, 6, "stop")


def test_every_field_of_sampling_is_sent(script):
    sampling = Sampling(max_new_tokens=2, temperature=0.7, top_p=0.9, top_k=5, seed=3)
    ask(completions(teacher(script), [Prompt(1, item().ids), Prompt(2, item().ids)], sampling))
    first, second = (body for path, body in script.asked[-2:])
    for name, value in {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "max_tokens": 2,
        "stop_token_ids": [EOS, 4],
    }.items():
        assert first[name] == value
    for name in ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "ignore_eos"):
        assert first[name] is not None
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8000", "no address of a server"),
        ("localhost:8000", "no address of a server"),
        ("ftp://host", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://host:port", "is no address"),
        ("http://host:8000/v1", "leave it away"),
        ("http://host:8000/v1/", "leave it away"),
        ("http://me:secret@host:8000", "key_env"),
        ("http://host:8000/?a=1", "more than an address"),
    ],
)
def test_an_address_that_is_none_is_told_with_an_example(address, words):
    with pytest.raises(ValidationError) as caught:
        VllmServerConfig(address=address, tokenizer="t")
    assert words in str(caught.value.errors()[0]["msg"])


def test_an_address_may_have_a_path_and_a_slash():
    assert VllmServerConfig(address="https://host/llm/", tokenizer="t").address == "https://host/llm"


def test_the_preflight_tells_of_server_and_recipe_at_their_places(script, tmp_path):
    def found(k=64, held=0, temperature=1.0, **more):
        config = {"plugin": "vllm-server", "address": script.address, "tokenizer": str(TOKENIZER)} | more
        recipe = tmp_path / "recipe.yaml"
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        recipe.write_text(
            f"teacher: {json.dumps(config)}\nstudent: {{config: {{model_type: llama}}}}\noutput: out\n"
            f"losses: [{{plugin: forward_kl, top_k: {k}, temperature: {temperature}}}]\n"
            f"data: {{path: rows.jsonl, holdout: {held}, max_length: 8}}\n"
        )
        registry = load_plugins()
        problems = check(load_recipe(recipe, registry), registry).problems
        return {problem.field: (problem.line, problem.message) for _, problem in problems}

    line, message = found()["losses[0].top_k"]
    assert line == 4
    assert "allowed is up to 20" in message
    assert {"losses[0].top_k", "losses[0].temperature"} <= found(temperature=2.0).keys()
    assert "data.holdout.top_k" not in found(k=16, held=1)  # held-out rows ask what the server gives
    line, message = found(model="other")["teacher.model"]
    assert line == 1
    assert "it has small" in message
