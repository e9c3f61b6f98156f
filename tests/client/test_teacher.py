"""The teacher `limbeck` passes what every teacher must pass, and gives the bits of the teacher behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Teacher, Want
from limbeck.teachers import PLUGINS, LimbeckConfig, TransformersConfig
from limbeck.teachers.remote import LimbeckTeacher
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.teachers import TeacherConformance, ask, completions, scores
from limbeck_echo.config import EchoConfig
from limbeck_echo.teacher import EchoTeacher

from .served import Process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_teacher: Path):
    """Serves `echo` and `tiny`, whole rows allowed."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "echo.yaml").write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    (folder / "tiny.yaml").write_text(f"plugin: transformers\nmodel: {tiny_teacher}\nbatch_tokens: 40\n")
    teachers = [f"--teacher={name}={folder / name}.yaml" for name in ("echo", "tiny")]
    with Process(*teachers, "--allow-full", log=folder / "log") as process:
        for name in ("echo", "tiny"):
            process.ready(name)
        yield process


def remote(address: str | list[str], teacher: str, **options) -> Teacher:
    plugin = next(plugin for plugin in PLUGINS if plugin.name == "limbeck")
    return plugin.factory(LimbeckConfig(address=address, teacher=teacher, **options))


class TestEcho(TeacherConformance):
    @pytest.fixture
    def teacher(self, server: Process) -> Teacher:
        return remote(server.address, "echo")


class TestTransformers(TeacherConformance):
    @pytest.fixture
    def teacher(self, server: Process) -> Teacher:
        return remote(server.address, "tiny")


def items(count: int, tokens: int = 30) -> list[ScoreItem]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, tokens, count)
    return [
        ScoreItem(i, rng.integers(5, 261, length).astype(np.int32), 2, int(length) - 3, seed=i)
        for i, length in enumerate(lengths)
    ]


def test_it_gives_the_same_bits_as_the_teacher_in_process(server, tiny_teacher):
    local = TransformersTeacher(TransformersConfig(model=str(tiny_teacher), batch_tokens=40))
    teacher = remote(server.address, "tiny")
    assert teacher.info() == local.info()
    want = Want(top_k=8, temperatures=(1.0, 2.0), target=True, samples=4, layers=(-1, 2), full=True)
    found, expected = ask(scores(teacher, items(12), want)), ask(scores(local, items(12), want))
    assert found.keys() == expected.keys()
    for name, signal in found.items():
        other = expected[name]
        for one, two in (
            (signal.top_k.ids, other.top_k.ids),
            (signal.top_k.u, other.top_k.u),
            (signal.top_k.tails, other.top_k.tails),
            (signal.target, other.target),
            (signal.samples.ids, other.samples.ids),
            (signal.hidden[-1], other.hidden[-1]),
            (signal.hidden[2], other.hidden[2]),
            (signal.full, other.full),
        ):
            np.testing.assert_array_equal(one, two)
    head, same = ask(teacher.output_head()), ask(local.output_head())
    np.testing.assert_array_equal(head.weight, same.weight)
    assert (head.scale, head.soft_cap) == (same.scale, same.soft_cap)


def test_what_it_says_while_writing_is_what_the_teacher_says_in_process_bit_for_bit(server, data):
    local = EchoTeacher(EchoConfig(tokenizer=str(data / "tok_a")))
    teacher = remote(server.address, "echo")
    prompts = [Prompt(i, item.ids) for i, item in enumerate(items(30))]
    sampling = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, seed=3, logprobs=16)
    found, expected = ask(completions(teacher, prompts, sampling)), ask(completions(local, prompts, sampling))
    assert {answer.finish_reason for answer in expected.values()} == {"stop", "length"}
    for name, answer in found.items():
        other = expected[name]
        assert answer.finish_reason == other.finish_reason
        for one, two in (
            (answer.ids, other.ids),
            (answer.said.ids, other.said.ids),
            (answer.said.top_k.ids, other.said.top_k.ids),
            (answer.said.top_k.u, other.said.top_k.u),
            (answer.said.top_k.tails, other.said.top_k.tails),
            (answer.said.target, other.said.target),
        ):
            np.testing.assert_array_equal(one, two)


def test_hidden_states_may_be_sent_half_as_large(server, tiny_teacher):
    exact = ask(scores(remote(server.address, "tiny"), items(3), Want(layers=(-1,))))
    half = ask(scores(remote(server.address, "tiny", hidden_dtype="bfloat16"), items(3), Want(layers=(-1,))))
    for name, signal in half.items():
        assert not np.array_equal(signal.hidden[-1], exact[name].hidden[-1])
        np.testing.assert_allclose(signal.hidden[-1], exact[name].hidden[-1], rtol=2**-8)


def test_it_may_be_asked_from_several_event_loops_at_once(server):
    teacher = remote(server.address, "echo")

    async def both():
        return await asyncio.gather(*(scores(teacher, items(20), Want(target=True)) for _ in range(4)))

    for found in (*ask(both()), ask(scores(teacher, items(20), Want(target=True)))):
        assert set(found) == set(range(20))


def test_a_replica_that_is_killed_costs_nothing(server, tmp_path, data):
    """Two servers of one teacher, asked in turn; one is killed while both have calls under way."""
    file = tmp_path / "echo.yaml"
    file.write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    with Process(f"--teacher=echo={file}", log=tmp_path / "log") as replica:
        replica.ready("echo")
        teacher = remote([server.address, replica.address], "echo")
        teacher.info()

        async def main():
            async def kill():
                await asyncio.sleep(0.5)
                await asyncio.to_thread(replica.kill)

            calls = (scores(teacher, items(60, 60), Want(target=True)) for _ in range(4))
            *found, _ = await asyncio.gather(*calls, kill())
            return found

        expected = ask(scores(remote(server.address, "echo"), items(60, 60), Want(target=True)))
        for found in ask(main()):
            assert found.keys() == expected.keys()
            for name, signal in found.items():
                np.testing.assert_array_equal(signal.target, expected[name].target)
        assert "call ended" in (tmp_path / "log").read_text()  # the replica was asked before it was killed


def test_a_teacher_that_cannot_start_says_why(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(f"plugin: transformers\nmodel: {tmp_path}\n")
    with Process(f"--teacher=broken={file}", log=tmp_path / "log") as process:
        with pytest.raises(LimbeckError) as caught:
            remote(process.address, "broken").info()
        assert caught.value.reason is Reason.MODEL_INVALID
        assert str(tmp_path) not in str(caught.value)


def test_closing_twice_is_fine_also_before_the_first_use(server):
    unused = LimbeckTeacher(LimbeckConfig(address=server.address, teacher="echo"))
    used = LimbeckTeacher(LimbeckConfig(address=server.address, teacher="echo"))
    used.info()
    for teacher in (unused, used):
        ask(teacher.close())
        ask(teacher.close())
