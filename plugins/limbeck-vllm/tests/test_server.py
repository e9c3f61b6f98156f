"""`vllm-server` against real servers of vLLM, by both protocols; what they are asked is checked with transformers."""

import json
import os
import time
import urllib.request
from contextlib import ExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.selfcheck import self_check
from limbeck.testing.teachers import TeacherConformance, ask, completions, scores
from limbeck.testing.tiny import tiny_model_folder
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_teacher import VllmServerTeacher

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[3]
TOKENIZER, OTHER = (ROOT / "tests" / "data" / name for name in ("tok_a", "tok_b"))
GEMMA = Path(os.environ.get("LIMBECK_GEMMA", ROOT / "examples" / "demo" / ".cache" / "gemma-3-270m"))
LENGTH, MOST = 256, 80  # held-out rows are scored with 64 ids
START = 300  # seconds
SERVERS = {
    "http": "vllm.entrypoints.openai.api_server",
    "grpc": "vllm.entrypoints.launchers.grpc_server",
}
# What a folder may say of sampling, and no text may show
LEAK = {"temperature": 0.3, "top_k": 3, "repetition_penalty": 1.9, "do_sample": True, "max_new_tokens": 5}


def need(*modules):
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture(
    scope="module",
    params=["tiny-http", pytest.param("gemma-http", marks=pytest.mark.gemma), "tiny-grpc"],
)
def served(request, tmp_path_factory, serve_vllm):
    """A server that runs: its address, the folder it serves, the protocol."""
    model, protocol = request.param.split("-")
    need("vllm", *(["smg_grpc_servicer"] if protocol == "grpc" else []))
    with ExitStack() as stack:
        if model == "gemma":
            server, folder = request.getfixturevalue("gemma_server"), GEMMA
        else:
            work = tmp_path_factory.mktemp(request.param)
            folder = tiny_model_folder(work / "model", TOKENIZER, "llama", hidden=64, scale=3.0)
            leaking = folder / "generation_config.json"
            leaking.write_text(json.dumps((json.loads(leaking.read_text()) if leaking.exists() else {}) | LEAK))
            options = ["--max-logprobs", str(MOST)]
            server = stack.enter_context(serve_vllm(folder, work / "log", *options, module=SERVERS[protocol]))
        config = VllmServerConfig(address=server.address, tokenizer=str(folder), protocol=protocol)
        end = time.monotonic() + START
        while True:
            asked = VllmServerTeacher(config)
            try:
                asked.info()
                break
            except LimbeckError as error:
                ask(asked.close())
                if server.process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"no server: {error}\n{server.log.read_text()[-3000:]}")
                time.sleep(0.5)
        yield SimpleNamespace(
            address=server.address,
            folder=folder,
            protocol=protocol,
            model=model,
            teacher=asked,
            config=config,
            stop=server.stop,
        )
        ask(asked.close())


@pytest.fixture(scope="module")
def here(served):
    """The same model by transformers."""
    from limbeck.teachers.transformers import TransformersTeacher

    return TransformersTeacher(TransformersConfig(model=str(served.folder)))


class TestVllmServer(TeacherConformance):
    tolerance = 2e-3  # float32 with other sums in other batches

    @pytest.fixture
    def teacher(self, served):
        return served.teacher


def texts(served, count=6):
    """Rows as a run has them, of several lengths."""
    tokenizer = Tokenizer.load(served.folder)
    lines = [f"The {i}. row counts: " + " ".join(str(n) for n in range(3 * i)) for i in range(1, count + 1)]
    return [tokenizer.encode_prompt(line)[: LENGTH - 1] for line in lines]


def test_it_says_what_the_server_and_the_folder_are(served, here):
    info, expected = served.teacher.info(), here.info()
    for name in ("vocab_size", "tokenizer_digest", "template_digest", "eos_ids", "bos_id"):
        assert getattr(info, name) == getattr(expected, name), name
    assert info.max_length == LENGTH - 1
    assert info.capabilities == {"generate", "generate_top_k", "top_k", "target"}
    assert served.teacher._facts.most == MOST - (served.protocol == "grpc")


def test_position_by_position_the_numbers_are_those_of_transformers(served, here):
    k = 20
    items = [ScoreItem(i, ids, i, len(ids) - 1 - i) for i, ids in enumerate(texts(served))]
    theirs = ask(scores(served.teacher, items, Want(top_k=k, target=True)))
    ours = ask(scores(here, items, Want(top_k=k, target=True, full=True)))
    for item in items:
        one, other = theirs[item.item_id], ours[item.item_id]
        np.testing.assert_allclose(one.target, other.target, atol=2e-3)
        ids, logprobs, tail = one.top_k.at(1.0)
        expected = np.take_along_axis(other.full, ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(logprobs, expected, atol=3e-3)
        least = np.sort(other.full, axis=1)[:, -k]
        assert (expected >= least[:, None] - 3e-3).all(), "an id is not among the k best"
        np.testing.assert_allclose(np.exp(tail), np.exp(other.top_k.tails[:, 0]), atol=3e-3)


def test_a_token_that_is_not_among_the_best_takes_no_place_of_theirs(served, here):
    ids = texts(served, 1)[0]
    full = ask(scores(here, [ScoreItem(0, ids, 0, len(ids) - 1)], Want(full=True)))[0].full
    worst = np.array([ids[0], full[0].argmin(), full[0].argmin()], np.int32)
    item = ScoreItem(0, worst, 0, 2)
    one = ask(scores(served.teacher, [item], Want(top_k=3, target=True)))[0]
    other = ask(scores(here, [item], Want(top_k=3, target=True)))[0]
    np.testing.assert_array_equal(one.top_k.ids, other.top_k.ids)
    np.testing.assert_allclose(one.target, other.target, atol=2e-3)


def test_the_longest_sequence_is_scored_to_its_last_row(served, here):
    info = served.teacher.info()
    ids = np.resize(texts(served)[-1], info.max_length).astype(np.int32)
    item = ScoreItem(0, ids, len(ids) - 3, 3)
    one = ask(scores(served.teacher, [item], Want(top_k=1)))[0].top_k
    other = ask(scores(here, [item], Want(top_k=1)))[0].top_k
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.at(1.0)[1], other.at(1.0)[1], atol=3e-3)


def test_a_greedy_text_is_that_of_transformers_whatever_the_folder_says_of_sampling(served, here):
    prompts = [Prompt(i, ids[:40]) for i, ids in enumerate(texts(served))]
    sampling = Sampling(max_new_tokens=12)
    theirs, ours = ask(completions(served.teacher, prompts, sampling)), ask(completions(here, prompts, sampling))
    for name, answer in ours.items():
        np.testing.assert_array_equal(theirs[name].ids, answer.ids)
        assert theirs[name].finish_reason == answer.finish_reason


def test_what_is_said_of_a_drawn_text_is_at_temperature_1(served):
    prompts = [Prompt(i, ids[:30]) for i, ids in enumerate(texts(served))]
    sampling = Sampling(max_new_tokens=10, temperature=1.7, top_p=0.9, top_k=50, seed=5, logprobs=4)
    answers = ask(completions(served.teacher, prompts, sampling))
    for prompt in prompts:
        said = answers[prompt.item_id].said
        ids = np.concatenate([prompt.ids, said.ids]).astype(np.int32)
        item = ScoreItem(0, ids, len(prompt.ids) - 1, len(said.ids))
        scored = ask(scores(served.teacher, [item], Want(top_k=4, target=True)))[0]
        np.testing.assert_allclose(said.target, scored.target, atol=2e-3)
        np.testing.assert_allclose(said.top_k.at(1.0)[1], scored.top_k.at(1.0)[1], atol=3e-3)


def test_it_passes_the_self_check(served):
    ask(self_check(served.teacher, Tokenizer.load(served.folder)))


def test_another_tokenizer_is_refused(served):
    config = VllmServerConfig(address=served.address, tokenizer=str(OTHER), protocol=served.protocol)
    with pytest.raises(LimbeckError) as caught:
        VllmServerTeacher(config).info()
    assert caught.value.reason is Reason.TOKENIZER_MISMATCH


def test_a_larger_k_than_the_server_gives_is_refused_with_the_option_that_allows_it(served):
    with pytest.raises(LimbeckError) as caught:
        served.teacher.score([], Want(top_k=100))
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert f"--max-logprobs {100 + (served.protocol == 'grpc')}" in str(caught.value)


def the_tiny_one(served):
    """Leave to the tiny model what does not depend on the numbers."""
    if served.model != "tiny":
        pytest.skip("the tiny model shows it")


def test_closing_a_call_ends_its_requests_at_the_server(served):
    the_tiny_one(served)
    prompts = [Prompt(i, ids[:8]) for i, ids in enumerate(texts(served) * 4)]
    sampling = Sampling(max_new_tokens=LENGTH - 20, temperature=1.0, seed=1)

    async def first_only():
        async with aclosing(served.teacher.generate(prompts, sampling)) as answers:
            async for answer in answers:
                return answer.item_id

    ask(first_only())
    if served.protocol == "http":
        end = time.monotonic() + 60
        while running(served) > 0:
            assert time.monotonic() < end, "requests that nobody waits for run on"
            time.sleep(0.05)
    assert len(ask(completions(served.teacher, prompts[:2], Sampling(max_new_tokens=2)))) == 2


def running(served):
    """Requests that the server has, waiting ones too."""
    with urllib.request.urlopen(f"{served.address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))


def test_it_is_a_teacher_of_a_run(served, tmp_path):
    from limbeck.cli.main import main

    student = tmp_path / "student"
    the_tiny_one(served)
    tiny_model_folder(student, TOKENIZER, "llama", hidden=32, seed=3)
    rows = [{"prompt": f"Count to {i}:", "completion": " " + " ".join(map(str, range(i)))} for i in range(2, 14)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"output: out\nteacher: {{plugin: vllm-server, address: '{served.address}', "
        f"tokenizer: {served.folder}, protocol: {served.protocol}}}\nstudent: {{model: student}}\n"
        "data: {path: rows.jsonl, max_length: 64, holdout: 2}\nlosses: [{plugin: forward_kl, top_k: 16}]\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "recipe.yaml")])
    assert not ended.value.code
    assert (tmp_path / "out" / "report" / "index.html").exists()


def test_a_server_that_is_killed_in_the_middle_is_told(served):  # the last: nothing is left to ask
    the_tiny_one(served)
    config = served.config.model_copy(update={"tries": 2, "concurrency": 2})
    asked = VllmServerTeacher(config)
    asked.info()
    prompts = [Prompt(i, ids[:8]) for i, ids in enumerate(texts(served) * 20)]

    async def killed():
        async with aclosing(asked.generate(prompts, Sampling(max_new_tokens=60))) as answers:
            async for _ in answers:
                served.stop()

    with pytest.raises(LimbeckError) as caught:
        ask(killed())
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE
    assert served.address in str(caught.value)
    ask(asked.close())
