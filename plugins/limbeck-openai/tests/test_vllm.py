"""A real server of vLLM, by every api: texts, likeliest tokens, the end token, refusals."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import Tokenizer, answer_ids
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt
from limbeck.testing.text_teachers import TextTeacherConformance, answers, ask
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.teacher import OpenAITeacher

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[3]
GEMMA = Path(os.environ.get("LIMBECK_GEMMA", ROOT / "examples" / "demo" / ".cache" / "gemma-3-270m"))
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
APIS = [{"api": api, "stream": stream} for api in ("chat", "responses", "completions") for stream in (False, True)]
EVERY_API = pytest.mark.parametrize("options", APIS, ids=lambda o: o["api"] + "-streamed" * o["stream"])
TEXT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module", params=["tiny", pytest.param("gemma", marks=pytest.mark.gemma)])
def folder(request, tmp_path_factory):
    """The model that is served."""
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    if request.param == "gemma":
        if not (GEMMA / "model.safetensors").is_file():
            pytest.skip("no Gemma: python examples/demo/prepare.py, or LIMBECK_GEMMA=FOLDER")
        return GEMMA
    from limbeck.testing.tiny import tiny_model_folder

    made = tmp_path_factory.mktemp("model") / "tiny"
    return tiny_model_folder(made, ROOT / "tests" / "data" / "tok_a", "llama", hidden=64, scale=3.0)


@pytest.fixture(scope="module")
def filled(folder):
    """Fields that make answers of some length; of the tiny model, which has no sense, in plain letters."""
    if folder == GEMMA:
        return {"min_tokens": 8}
    tokenizer = Tokenizer.load(folder)
    letters = [i for i in range(tokenizer.vocab_size) if re.fullmatch(rb"[a-z]", tokenizer.token_bytes(i))]
    return {"min_tokens": 8, "allowed_token_ids": letters}


@pytest.fixture(scope="module")
def address(request, folder, tmp_path_factory, serve_vllm):
    """A server of the model."""
    if folder == GEMMA:
        yield f"{request.getfixturevalue('gemma_server').address}/v1"
        return
    work = tmp_path_factory.mktemp("server")
    (work / "chat.jinja").write_text(TEMPLATE)
    options = ["--max-logprobs", "20", "--chat-template", str(work / "chat.jinja"), "--generation-config", "vllm"]
    with serve_vllm(folder, work / "log", *options) as server:
        yield f"{server.address}/v1"


@pytest.fixture(autouse=True)
def _left_to_the_tiny_one(request, folder):
    """What is streamed is put together alike, whatever the model: the tiny one shows it."""
    options = request.node.callspec.params.get("options")
    if folder == GEMMA and options is not None and options["stream"]:
        pytest.skip("the tiny model shows it")


@pytest.fixture
def real(address, tmp_path):
    """Makes teachers of the server, with a cache of the test's own."""
    made = []

    def teacher(**options):
        given = {"base_url": address, "model": "one", "cache": str(tmp_path / "cache"), "concurrency": 4}
        made.append(OpenAITeacher(OpenAIConfig(**{**given, "timeout": 120.0, "tries": 1, **options})))
        return made[-1]

    yield teacher
    for each in made:
        ask(each.close())


class TestReal(TextTeacherConformance):
    @pytest.fixture(params=APIS, ids=lambda o: o["api"] + "-streamed" * o["stream"])
    def options(self, request):
        return request.param

    @pytest.fixture
    def teacher(self, real, options, filled, folder):
        none = options["api"] == "responses" and (options["stream"] or folder != GEMMA)  # which takes no letters alone
        extra = filled if options["api"] != "responses" else {}
        return real(logprobs=0 if none else 5, price={"input": 1.0, "output": 2.0}, extra=extra, **options)

    @pytest.fixture
    def prompts(self, options):
        chat = [{"role": "user", "content": "Name a river."}]
        second = "Name a river." if options["api"] == "completions" else chat
        return [TextPrompt(20, "The river Po rises in"), TextPrompt(21, second), TextPrompt(22, "Où coule le 🜁 ?")]


@pytest.mark.parametrize("stream", [False, True])
def test_what_it_tells_of_its_tokens_is_what_transformers_computes(real, folder, filled, stream):
    from transformers import AutoTokenizer

    from limbeck.interfaces import ScoreItem, Want
    from limbeck.teachers.config import TransformersConfig
    from limbeck.teachers.said import said_of_tokens
    from limbeck.teachers.transformers import TransformersTeacher
    from limbeck.testing.teachers import scores

    teacher = real(api="completions", logprobs=5, stream=stream, extra=filled)
    answer = ask(answers(teacher, [TextPrompt(0, TEXT)], Sampling(max_new_tokens=12, logprobs=5)))[0]
    tokenizer = Tokenizer.load(folder)
    ids = answer_ids(TEXT, answer.text, answer.finish_reason, tokenizer)
    said = said_of_tokens(answer.tokens, tokenizer, ids, 5)
    assert said is not None
    prompt = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]  # as vLLM reads it: tok_a adds no <bos>
    item = ScoreItem(0, np.concatenate([prompt, ids]).astype(np.int32), len(prompt) - 1, len(ids))
    signal = ask(scores(TransformersTeacher(TransformersConfig(model=str(folder))), [item], Want(target=True)))[0]
    np.testing.assert_allclose(said.target, signal.target, atol=2e-3)
    assert said.top_k.k == 5


@EVERY_API
def test_an_answer_is_cut_at_the_limit_and_says_so(real, options):
    answer = ask(answers(real(**options), [TextPrompt(0, TEXT)], Sampling(max_new_tokens=8)))[0]
    assert answer.finish_reason == "length"
    assert answer.lineage["completion_tokens"] == 8
    assert answer.lineage["model"] == "one"


@pytest.mark.parametrize("options", [o for o in APIS if o["api"] != "responses"], ids=str)
def test_an_end_token_that_it_tells_of_has_no_bytes(real, folder, filled, options):
    (end, *_) = Tokenizer.load(folder).eos_ids
    extra = {**filled, "logit_bias": {str(end): 100.0}, "min_tokens": 3}  # three tokens, then the end
    if "allowed_token_ids" in extra:
        extra["allowed_token_ids"] = [*extra["allowed_token_ids"], end]
    teacher = real(logprobs=2, extra=extra, **options)
    answer = ask(answers(teacher, [TextPrompt(0, TEXT)], Sampling(logprobs=2)))[0]
    assert answer.finish_reason == "stop"
    assert len(answer.tokens) == 4
    assert answer.tokens[-1].text == b""
    assert b"".join(token.text for token in answer.tokens).decode() == answer.text


@EVERY_API
def test_a_seed_draws_the_same_again_and_another_draws_another(real, tmp_path, options):
    if options["api"] == "responses":
        pytest.skip("the api takes no seed")

    def drawn(seed, name):
        teacher = real(cache=str(tmp_path / name), **options)
        found = ask(answers(teacher, [TextPrompt(i, TEXT) for i in range(3)], Sampling(24, 1.0, seed=seed)))
        return [found[i].text for i in range(3)]

    first = drawn(1, "a")
    assert drawn(1, "b") == first
    assert drawn(2, "c") != first
    assert len(set(first)) == 3


def test_top_k_is_sent_where_the_config_names_its_field(real):
    teacher = real(api="completions", fields={"top_k": "top_k"})
    greedy = ask(answers(teacher, [TextPrompt(0, TEXT)], Sampling(12)))[0]
    drawn = ask(answers(teacher, [TextPrompt(0, TEXT)], Sampling(12, temperature=1.0, top_k=1)))[0]
    assert drawn.text == greedy.text


@EVERY_API
def test_a_prompt_beyond_its_context_is_rejected_alone(real, options):
    found = ask(answers(real(**options), [TextPrompt(0, "far " * 300), TextPrompt(1, TEXT)]))
    assert found[0].rejected.startswith("failed: 400: ")
    assert not (found[1].rejected or "").startswith("failed")


def test_a_model_that_it_does_not_serve_stops_at_once(real):
    teacher = real(model="other")
    with pytest.raises(LimbeckError) as caught:
        ask(answers(teacher, [TextPrompt(i, TEXT + str(i)) for i in range(20)]))
    assert caught.value.reason is Reason.TEACHER_REFUSED
    assert "`other` does not exist" in str(caught.value)
    assert teacher.usage()["calls"] <= 4
