"""Against `limbeck serve` itself: killed and started again mid-stream, stopped, with limits and a slow caller."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from limbeck.client import Prompt, Sampling, ScoreItem, Want, connect
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Teacher
from limbeck.signals import Signal
from limbeck.testing.teachers import ask, scores

from .proxy import between
from .served import ROOT, Process

WANT = Want(top_k=4, temperatures=(1.0, 2.0), target=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """echo.yaml, as `limbeck serve --teacher NAME=FILE` takes it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "echo.yaml").write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    return folder


@pytest.fixture(scope="module")
def echo(files):
    with Process("--teacher", f"echo={files / 'echo.yaml'}", log=files / "log") as process:
        process.ready("echo")
        yield process


@pytest.fixture(scope="module")
def local(data: Path) -> Teacher:
    """The same teacher in this process."""
    from limbeck_echo.config import EchoConfig
    from limbeck_echo.teacher import EchoTeacher

    return EchoTeacher(EchoConfig(tokenizer=str(data / "tok_a")))


def items(count: int, tokens: int = 40) -> list[ScoreItem]:
    rng = np.random.default_rng(0)
    return [ScoreItem(i, rng.integers(5, 261, tokens).astype(np.int32), 3, tokens - 4, seed=i) for i in range(count)]


def same(found: dict[int, Signal], expected: dict[int, Signal]) -> None:
    assert found.keys() == expected.keys()
    for name, signal in found.items():
        assert (signal.first_row, signal.n) == (expected[name].first_row, expected[name].n)
        np.testing.assert_array_equal(signal.target, expected[name].target)
        np.testing.assert_array_equal(signal.top_k.ids, expected[name].top_k.ids)
        np.testing.assert_array_equal(signal.top_k.u, expected[name].top_k.u)
        np.testing.assert_array_equal(signal.top_k.tails, expected[name].top_k.tails)


def test_answers_are_those_of_the_teacher_in_process(echo, local):
    asked = items(40)
    with connect(echo.address) as client:
        found = list(client.score("echo", asked, WANT))
    assert len(found) == len(asked)
    same(dict(found), ask(scores(local, asked, WANT)))


def test_every_kind_of_answer_arrives(echo, local):
    rng = np.random.default_rng(1)
    dense = ScoreItem(0, np.arange(5, 20, dtype=np.int32), 2, 6, rng.integers(0, 261, (6, 3)).astype(np.int32))
    offsets = np.array([0, 2, 2, 5], np.int64)
    csr = ScoreItem(1, np.arange(5, 20, dtype=np.int32), 2, 3, rng.integers(0, 261, 5).astype(np.int32), offsets)
    want = Want(token_ids=True, samples=16)
    with connect(echo.address) as client:
        found = dict(client.score("echo", [dense, csr], want))
    expected = ask(scores(local, [dense, csr], want))
    for name in (0, 1):
        np.testing.assert_array_equal(found[name].token_ids.logprobs, expected[name].token_ids.logprobs)
        np.testing.assert_array_equal(found[name].samples.ids, expected[name].samples.ids)
        np.testing.assert_array_equal(found[name].samples.counts, expected[name].samples.counts)


def test_a_server_killed_and_started_again_mid_stream_loses_nothing_and_repeats_nothing(files, local):
    asked = items(300)
    with Process("--teacher", f"echo={files / 'echo.yaml'}", log=files / "killed") as server:
        server.ready("echo")
        with connect(server.address) as client:
            client.teacher("echo")
            found: list[tuple[int, Signal]] = []
            kills = 0
            for answer in client.score("echo", asked, WANT):
                found.append(answer)
                if len(found) in (40, 150):
                    server.kill()
                    kills += 1
                    threading.Timer(0.5, server.start).start()
            prompts = [Prompt(i, item.ids) for i, item in enumerate(asked[:5])]
            assert len(list(client.generate("echo", prompts, Sampling(max_new_tokens=4)))) == 5
    assert kills == 2
    assert sorted(name for name, _ in found) == list(range(300))
    same(dict(found), ask(scores(local, asked, WANT)))


def test_a_server_that_is_stopped_finishes_or_hands_over(files, local):
    """SIGTERM mid-stream: what is under way is answered, the rest goes to the server that is started next."""
    asked = items(200)
    with Process("--teacher", f"echo={files / 'echo.yaml'}", log=files / "stopped") as server:
        server.ready("echo")
        with connect(server.address) as client:
            found: list[tuple[int, Signal]] = []

            def again() -> None:
                assert server.stop() == 0
                server.start()

            turn = threading.Thread(target=again)
            for answer in client.score("echo", asked, WANT):
                found.append(answer)
                if len(found) == 30:
                    turn.start()
            turn.join()
    assert sorted(name for name, _ in found) == list(range(200))
    same(dict(found), ask(scores(local, asked, WANT)))


def test_a_network_that_drops_delays_and_splits_changes_no_answer(echo, local):
    asked = items(150)
    with between(echo.address, most=80_000, delay=0.002) as (proxy, address), connect(address) as client:
        found = list(client.score(client.teacher("echo"), asked, WANT))
        prompts = [Prompt(item.item_id, item.ids) for item in asked[:40]]
        texts = list(client.generate("echo", prompts, Sampling(max_new_tokens=4)))
    assert proxy.dropped >= 3
    assert sorted(name for name, _ in found) == list(range(150))
    same(dict(found), ask(scores(local, asked, WANT)))
    assert sorted(text.item_id for text in texts) == list(range(40))


def test_tokens_are_wanted_and_their_faults_are_told(files, tmp_path):
    tokens = tmp_path / "tokens.yaml"
    digest = hashlib.sha256(b"hv-token-123").hexdigest()
    tokens.write_text(f"tokens:\n  - {{name: ann, token_sha256: {digest}, role: score}}\n")
    arguments = "--teacher", f"echo={files / 'echo.yaml'}", "--tokens", str(tokens)
    with Process(*arguments, log=tmp_path / "log") as server:
        with connect(server.address, token_file=ROOT / "tests" / "data" / "C11" / "token_crlf_bom.txt") as client:
            assert client.teacher("echo", wait=120).state == "ready"
            assert len(list(client.score("echo", items(3), WANT))) == 3
        for token in (None, "hv-token-124"):
            with connect(server.address, token=token) as client:
                for ask_for in (client.teachers, lambda: list(client.score("echo", items(3), WANT))):
                    with pytest.raises(LimbeckError) as caught:
                        ask_for()
                    assert caught.value.reason is Reason.UNAUTHENTICATED
                    assert "hv-token" not in str(caught.value)
    assert "hv-token" not in (tmp_path / "log").read_text()


def test_many_more_tokens_than_the_limit_pass_without_an_error(echo):
    asked = items(400, tokens=2000)
    for item in asked:
        object.__setattr__(item, "n", 1)
    with connect(echo.address) as client:
        assert client.teacher("echo").tokens_in_flight < 400 * 2000
        assert sorted(name for name, _ in client.score("echo", asked, Want(top_k=1))) == list(range(400))


def test_what_the_server_refuses_is_told(echo):
    with connect(echo.address) as client:
        for ask_for, reason in (
            (lambda: client.teacher("eco"), Reason.TEACHER_UNKNOWN),
            (lambda: list(client.score("echo", items(1), Want(layers=(-1,)))), Reason.CAPABILITY_MISSING),
            (lambda: list(client.signals("nothing")), Reason.DATASET_UNKNOWN),
            (lambda: client.output_head("echo"), Reason.CAPABILITY_MISSING),
        ):
            with pytest.raises(LimbeckError) as caught:
                ask_for()
            assert caught.value.reason is reason
