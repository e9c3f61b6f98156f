"""The numbers of the transformers teacher against the model asked plainly, one sequence at a time."""

import asyncio
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.data import TokenSequence
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.runs.evaluate import greedy
from limbeck.teachers import TransformersConfig
from limbeck.teachers import model as model_module
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.teachers import ask, completions, scores
from limbeck.testing.tiny import FAMILIES, tiny_model_folder

from .families import VOCAB, Reference, folder_of, sequences, teacher_of

LENGTHS = (33, 5, 21, 12, 2, 30)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory, data):
    """A teacher that puts several rows in a batch, and the same model asked plainly."""
    folder = folder_of(request.param, tmp_path_factory.mktemp("families"), data)
    return teacher_of(folder, batch_tokens=120), Reference(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, data):
    return folder_of("llama", tmp_path_factory.mktemp("llama"), data)


def reason_of(question) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        ask(question)
    return caught.value


def test_padding_and_batches_change_no_number(pair, monkeypatch):
    teacher, reference = pair
    monkeypatch.setattr(model_module, "CHUNK_BYTES", 4 * VOCAB * 7)  # rows of one item in several chunks
    teacher._model = None
    items = [
        ScoreItem(i, ids, min(1, len(ids) - 2), len(ids) - 1 - min(1, len(ids) - 2))
        for i, ids in enumerate(sequences(LENGTHS))
    ]
    want = Want(top_k=9, temperatures=(0.5, 1.0, 4.0), target=True, full=True, layers=(0, 1, 4, -1))
    found = ask(scores(teacher, items, want))
    assert teacher._model.chunk_rows == 7
    for item in items:
        signal, rows = found[item.item_id], slice(item.first_row, item.first_row + item.n)
        plain = reference.logprobs(item.ids)[rows]
        np.testing.assert_allclose(signal.full, plain, rtol=1e-5, atol=1e-5)
        following = item.ids[item.first_row + 1 : item.first_row + item.n + 1]
        np.testing.assert_allclose(signal.target, plain[np.arange(item.n), following], rtol=1e-5, atol=1e-5)
        hidden = reference.outputs(item.ids).hidden_states
        for layer in (0, 1, 4, -1):
            np.testing.assert_allclose(signal.hidden[layer], hidden[layer][0][rows].numpy(), rtol=1e-4, atol=2e-5)
        for column, temperature in enumerate(want.temperatures):
            outside = reference.logprobs(item.ids, temperature)[rows]
            np.put_along_axis(outside, signal.top_k.ids.astype(np.int64), -np.inf, axis=1)
            tail = np.logaddexp.reduce(outside, axis=1)
            np.testing.assert_allclose(signal.top_k.tails[:, column], tail, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("budget", [40, 4096])
def test_left_padded_continuations_are_those_of_the_model_alone(pair, budget):
    teacher, reference = pair
    teacher.config = teacher.config.model_copy(update={"batch_tokens": budget})
    ends = teacher.info().eos_ids
    prompts = [Prompt(i, ids) for i, ids in enumerate(sequences((3, 20, 9, 14)))]
    found = ask(completions(teacher, prompts, Sampling(max_new_tokens=12)))
    for prompt in prompts:
        assert found[prompt.item_id].ids.tolist() == reference.greedy(prompt.ids, 12, ends)


def test_soft_capped_attention_is_never_run_by_a_kernel_that_leaves_it_out(tmp_path, data):
    folder = folder_of("gemma2", tmp_path, data)
    teacher = teacher_of(folder, attention="sdpa")
    error = reason_of(scores(teacher, [ScoreItem(0, sequences((5,))[0], 0, 4)], Want(top_k=2)))
    assert error.reason is Reason.MODEL_INVALID
    assert "soft-cap" in str(error)


def test_tails_of_peaked_rows_are_exact(llama, tmp_path, data):
    """1 − Σ in fp32 would be 0 or below here; the logsumexp over the complement keeps every digit."""
    folder = folder_of("llama", tmp_path, data)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 40
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (ids,) = sequences((40,))
    signal = ask(scores(teacher_of(folder), [ScoreItem(0, ids, 0, 39)], Want(top_k=6, temperatures=(0.5, 1.0, 2.0))))[0]
    reference = Reference(folder)
    mass = np.exp(signal.top_k.at(1.0)[1].astype(np.float32)).sum(axis=1, dtype=np.float32)
    assert (1 - mass <= 1e-7).any()
    for column, temperature in enumerate((0.5, 1.0, 2.0)):
        outside = reference.logprobs(ids, temperature)[:39]
        np.put_along_axis(outside, signal.top_k.ids.astype(np.int64), -np.inf, axis=1)
        expected = np.logaddexp.reduce(outside, axis=1)
        assert expected.min() < -16
        np.testing.assert_allclose(signal.top_k.tails[:, column], expected, rtol=1e-5, atol=5e-4)


def test_the_whole_vocabulary_as_support_leaves_a_tail_of_nothing(llama):
    (ids,) = sequences((6,))
    signal = ask(scores(teacher_of(llama), [ScoreItem(0, ids, 0, 5)], Want(top_k=VOCAB, temperatures=(1.0, 2.0))))[0]
    assert (signal.top_k.tails == -np.inf).all()
    assert (np.sort(signal.top_k.ids, axis=1) == np.arange(VOCAB)).all()


def test_suppressed_ids_are_minus_infinity_and_harm_nothing(llama, monkeypatch):
    teacher = teacher_of(llama)
    (ids,) = sequences((8,))
    item = ScoreItem(0, ids, 0, 7, token_ids=np.tile(np.array([[0, 9]], np.int32), (7, 1)), seed=1)
    plain = model_module.LoadedModel.logits

    def suppressed(self, hidden):
        logits = plain(self, hidden).clone()
        logits[:, :200] = float("-inf")
        return logits

    ask(scores(teacher, [item], Want(top_k=1)))
    monkeypatch.setattr(model_module.LoadedModel, "logits", suppressed)
    want = Want(top_k=70, temperatures=(1.0, 3.0), token_ids=True, samples=64, full=True)
    signal = ask(scores(teacher, [item], want))[0]
    assert (signal.full[:, :200] == -np.inf).all()
    np.testing.assert_allclose(np.exp(signal.full.astype(np.float64)).sum(axis=1), 1, atol=1e-5)
    assert (signal.token_ids.logprobs == -np.inf).all()
    assert (signal.samples.ids[signal.samples.counts > 0] >= 200).all()
    assert (signal.top_k.tails == -np.inf).all()  # the 61 ids with mass are all in the support
    assert signal.top_k.saturated == 7 * 9
    written = ask(completions(teacher, [Prompt(0, ids)], Sampling(max_new_tokens=5, temperature=1.0)))[0]
    assert (written.ids >= 200).all()


def test_samples_follow_the_distribution_whatever_the_batch(llama):
    teacher = teacher_of(llama, batch_tokens=64)
    items = [ScoreItem(i, ids, 0, 4, seed=5) for i, ids in enumerate(sequences((6, 25, 9)))]
    found = ask(scores(teacher, items, Want(samples=4000)))
    plain = np.exp(Reference(llama).logprobs(items[0].ids)[:4])
    shares = np.zeros_like(plain)
    samples = found[0].samples
    np.put_along_axis(shares, samples.ids.astype(np.int64), samples.counts / 4000, axis=1)
    assert np.abs(shares - plain).sum(axis=1).max() < 0.25
    alone = ask(scores(teacher, [items[2]], Want(samples=4000)))[2].samples
    np.testing.assert_array_equal(alone.ids, found[2].samples.ids)
    np.testing.assert_array_equal(alone.counts, found[2].samples.counts)


def test_sampling_values_are_honoured(llama):
    teacher = teacher_of(llama)
    (ids,) = sequences((6,))
    prompts = [Prompt(i, ids) for i in range(400)]
    plain = Reference(llama).logprobs(ids, 2.0)[-1]
    order = np.argsort(-plain)

    def first_tokens(**sampling) -> np.ndarray:
        found = ask(completions(teacher, prompts, Sampling(max_new_tokens=1, temperature=2.0, **sampling)))
        return np.array([answer.ids[0] for answer in found.values() if len(answer.ids)])

    assert set(first_tokens(top_k=5)) <= set(order[:5])
    assert len(set(first_tokens(top_k=5))) > 1
    nucleus = order[: int(np.searchsorted(np.exp(plain[order]).cumsum(), 0.4)) + 1]
    assert set(first_tokens(top_p=0.4)) <= set(nucleus)
    drawn = first_tokens()
    assert abs(np.mean(drawn == order[0]) - np.exp(plain[order[0]])) < 0.08
    assert set(first_tokens(top_p=1e-9)) <= {order[0]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_has_the_name_that_this_release_of_transformers_gives_it(family, tmp_path, data):
    """Another name is either deprecated, and warned of, or ignored."""
    folder = folder_of(family, tmp_path, data)
    ids = sequences((9,))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        answer = ask(completions(teacher_of(folder), [Prompt(0, ids)], Sampling(temperature=0.0, max_new_tokens=6)))[0]
        sequence = TokenSequence(0, ids, np.arange(len(ids)) == len(ids) - 1, np.zeros((len(ids), 2), np.int32), "", 1)
        written = greedy(Reference(folder).model, sequence, (1,), 6, lambda: None)
    assert list(answer.ids) == Reference(folder).greedy(ids, 6, (1,))
    assert written == Reference(folder).greedy(ids[:-1], 6, (1,))


def test_no_setting_of_the_folder_leaks_into_generation(llama, tmp_path, data):
    folder = folder_of("llama", tmp_path, data)
    prompts = [Prompt(i, ids) for i, ids in enumerate(sequences((5, 9)))]
    before = ask(completions(teacher_of(folder), prompts, Sampling(max_new_tokens=10)))
    written = [int(token) for answer in before.values() for token in answer.ids]
    leaks = {"do_sample": True, "temperature": 9.0, "max_length": 7, "repetition_penalty": 50.0, "min_length": 99}
    leaks |= {"suppress_tokens": written, "top_k": 3, "num_beams": 4, "forced_eos_token_id": 1, "eos_token_id": [1]}
    leaks |= {"cache_implementation": "static", "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(leaks))
    after = ask(completions(teacher_of(folder), prompts, Sampling(max_new_tokens=10)))
    assert {i: a.ids.tolist() for i, a in after.items()} == {i: a.ids.tolist() for i, a in before.items()}


def test_every_end_id_of_the_folder_ends_a_text(llama, tmp_path, data):
    folder = folder_of("llama", tmp_path, data)
    (ids,) = sequences((5,))
    greedy = Reference(folder).greedy(ids, 10, (1,))
    end = greedy[3]
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [1, end]}))
    teacher = teacher_of(folder)
    assert {1, end} <= set(teacher.info().eos_ids)
    answer = ask(completions(teacher, [Prompt(0, ids)], Sampling(max_new_tokens=10)))[0]
    assert (answer.ids.tolist(), answer.finish_reason) == (greedy[: greedy.index(end)], "stop")
    cut = ask(completions(teacher, [Prompt(0, ids)], Sampling(max_new_tokens=2)))[0]
    assert (cut.ids.tolist(), cut.finish_reason) == (greedy[:2], "length")


def test_a_text_that_ends_at_once_is_empty(llama, tmp_path, data):
    folder = folder_of("llama", tmp_path, data)
    (ids,) = sequences((5,))
    (first,) = Reference(folder).greedy(ids, 1, ())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
    answer = ask(completions(teacher_of(folder), [Prompt(0, ids)], Sampling(max_new_tokens=10)))[0]
    assert (answer.ids.shape, answer.ids.dtype, answer.finish_reason) == ((0,), np.int32, "stop")


def test_generation_stops_when_all_texts_have_ended(llama, tmp_path, data, monkeypatch):
    folder = folder_of("llama", tmp_path, data)
    (ids,) = sequences((5,))
    greedy = Reference(folder).greedy(ids, 3, ())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": greedy[2]}))
    steps = []
    plain = model_module.LoadedModel.body
    monkeypatch.setattr(model_module.LoadedModel, "body", lambda *a, **k: steps.append(1) or plain(*a, **k))
    teacher = teacher_of(folder)
    ask(completions(teacher, [Prompt(0, ids)], Sampling(max_new_tokens=400)))
    assert len(steps) - 1 == greedy.index(greedy[2]) + 1  # one call is the check of the head


def test_info_loads_no_weights_and_tells_of_contents(llama, tmp_path, data, monkeypatch):
    monkeypatch.setattr(model_module.LoadedModel, "load", None)
    info = teacher_of(llama).info()
    assert (info.vocab_size, info.hidden_size, info.num_layers, info.max_length) == (VOCAB, 32, 4, 512)
    assert info.parameters == sum(t.numel() for t in load_file(llama / "model.safetensors").values())
    moved = folder_of("llama", tmp_path, data)
    assert teacher_of(moved).info() == info
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert teacher_of(moved).info().weights_digest != info.weights_digest


@pytest.mark.parametrize("what", ["score", "generate"])
def test_numbers_that_are_not_finite_are_an_error_that_names_the_item(llama, tmp_path, data, what):
    folder = folder_of("llama", tmp_path, data)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][77] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    good, bad = sequences((6, 6))
    good[good == 77], bad[3] = 78, 77
    teacher = teacher_of(folder)
    if what == "score":
        items = [ScoreItem(1, good, 0, 2), ScoreItem(2, bad, 1, 4)]
        error = reason_of(scores(teacher, items, Want(top_k=2)))
        assert error.reason is Reason.SCORING_FAILED
    else:
        error = reason_of(completions(teacher, [Prompt(2, bad)], Sampling(max_new_tokens=2)))
        assert error.reason is Reason.GENERATION_FAILED
    assert "item 2" in {problem.field for problem in error.problems}


def test_hidden_states_alone_run_no_head(llama, monkeypatch):
    teacher = teacher_of(llama)
    (ids,) = sequences((9,))
    ask(scores(teacher, [ScoreItem(0, ids, 0, 1)], Want(top_k=1)))
    monkeypatch.setattr(model_module.LoadedModel, "logits", None)
    signal = ask(scores(teacher, [ScoreItem(0, ids, 3, 6)], Want(layers=(2,))))[0]
    assert signal.hidden[2].shape == (6, 32)
    assert signal.top_k is None


def test_the_event_loop_stays_free_and_a_cancelled_request_stops(llama):
    teacher = teacher_of(llama, batch_tokens=32)
    items = [ScoreItem(i, ids, 0, 20) for i, ids in enumerate(sequences((30,) * 40))]

    async def watch():
        ticks, answered = 0, 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())

        async def consume():
            nonlocal answered
            async for _ in teacher.score(items, Want(top_k=2)):
                answered += 1

        task = asyncio.create_task(consume())
        while answered < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ticker.cancel()
        return ticks, answered

    ticks, answered = ask(watch())
    assert answered < len(items)
    assert ticks > answered
    assert len(ask(scores(teacher, items[:3], Want(top_k=2)))) == 3


def test_two_requests_at_once_do_not_disturb_each_other(llama):
    teacher = teacher_of(llama, batch_tokens=64)
    items = [ScoreItem(i, ids, 0, 10) for i, ids in enumerate(sequences((30, 12, 25, 17)))]
    prompts = [Prompt(i, item.ids) for i, item in enumerate(items)]
    want, sampling = Want(full=True), Sampling(max_new_tokens=9)

    async def both():
        return await asyncio.gather(scores(teacher, items, want), completions(teacher, prompts, sampling))

    mixed = ask(both())
    alone = ask(scores(teacher, items, want)), ask(completions(teacher, prompts, sampling))
    for i in range(4):
        np.testing.assert_array_equal(mixed[0][i].full, alone[0][i].full)
        np.testing.assert_array_equal(mixed[1][i].ids, alone[1][i].ids)


def test_running_out_of_memory_says_to_lower_batch_tokens(llama, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    teacher = teacher_of(llama)
    item = ScoreItem(0, sequences((5,))[0], 0, 4)
    ask(scores(teacher, [item], Want(top_k=1)))
    monkeypatch.setattr(model_module.LoadedModel, "body", full)
    error = reason_of(scores(teacher, [item], Want(top_k=1)))
    assert error.reason is Reason.SCORING_FAILED
    assert "batch_tokens" in str(error)


def test_a_prompt_that_leaves_no_room_is_refused(llama):
    prompt = Prompt(4, np.full(500, 9, np.int32))
    error = reason_of(completions(teacher_of(llama), [prompt], Sampling(max_new_tokens=20)))
    assert error.reason is Reason.GENERATION_FAILED
    assert "item 4" in str(error)
    assert "512" in str(error)


def break_nothing_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def break_weight_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def break_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_cut_weights(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    "spoil",
    [break_nothing_there, break_pickle_only, break_weight_missing, break_shape, break_config, break_cut_weights],
)
def test_a_folder_that_cannot_be_used_is_refused_with_its_path(tmp_path, data, spoil):
    folder = folder_of("llama", tmp_path, data)
    spoil(folder)
    error = reason_of(_first(teacher_of(folder)))
    assert error.reason is Reason.MODEL_INVALID
    assert str(folder) in str(error)


async def _first(teacher: TransformersTeacher) -> None:
    await scores(teacher, [ScoreItem(0, sequences((5,))[0], 0, 4)], Want(top_k=2))


def test_a_missing_folder_is_refused(tmp_path):
    error = reason_of(_first(TransformersTeacher(TransformersConfig(model=str(tmp_path / "none")))))
    assert error.reason is Reason.MODEL_INVALID
    assert "no such folder" in str(error)


def test_an_untied_head_and_bfloat16_work(tmp_path, data):
    folder = tiny_model_folder(tmp_path / "untied", data / "tok_a", tied=False, scale=2.0)
    items = [ScoreItem(i, ids, 0, 4) for i, ids in enumerate(sequences((5, 9)))]
    exact = ask(scores(teacher_of(folder), items, Want(full=True)))
    rough = ask(scores(teacher_of(folder, dtype="bfloat16"), items, Want(full=True)))
    np.testing.assert_allclose(exact[1].full, Reference(folder).logprobs(items[1].ids)[:4], atol=1e-5)
    np.testing.assert_allclose(rough[1].full, exact[1].full, atol=0.3)
    assert (rough[1].full != exact[1].full).any()


def test_the_output_head_is_the_one_of_the_family(pair):
    teacher, reference = pair
    (ids,) = sequences((12,))
    head = ask(teacher.output_head())
    states = reference.outputs(ids).hidden_states[-1][0].double().numpy()
    logits = head.scale * (states @ head.weight.T.astype(np.float64) + (0 if head.bias is None else head.bias))
    if head.soft_cap is not None:
        logits = head.soft_cap * np.tanh(logits / head.soft_cap)
    np.testing.assert_allclose(logits, reference.logits(ids), atol=1e-4)
    assert head.weight.dtype == np.float32


def test_a_bfloat16_head_is_given_in_float32(llama):
    exact = ask(teacher_of(llama).output_head())
    head = ask(teacher_of(llama, dtype="bfloat16").output_head())
    np.testing.assert_array_equal(head.weight, torch.from_numpy(exact.weight).bfloat16().float().numpy())


def test_a_head_that_is_not_of_the_known_form_is_refused(llama, monkeypatch):
    monkeypatch.setattr(model_module, "head_transform", lambda config: (2.0, None))
    with pytest.raises(LimbeckError) as caught:
        ask(teacher_of(llama).output_head())
    assert caught.value.reason is Reason.MODEL_INVALID


def test_closing_twice_is_fine(llama):
    teacher = teacher_of(llama)
    ask(_first(teacher))
    ask(teacher.close())
    ask(teacher.close())
