"""Score and Generate: items in, each answer once, at the caller's pace and within the server's limits."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from limbeck.client import Prompt, Sampling, ScoreItem, Want, connect, connect_async
from limbeck.errors import LimbeckError, Reason
from limbeck.v1 import teacher_service_pb2 as pb

from .scripted import INFO, TARGET, Scripted, answering, answers, client_of, crediting, items, serving, target_of

MIB = 1 << 20


@pytest.fixture
def servicer():
    return Scripted()


@pytest.fixture
def address(servicer):
    with serving(servicer) as address:
        yield address


@pytest.fixture
def client(address):
    with connect(address) as client:
        yield client


def check(found, asked):
    """Each item once, with its own numbers."""
    found = list(found)
    assert sorted(name for name, _ in found) == sorted(item.item_id for item in asked)
    by_id = {item.item_id: item for item in asked}
    for name, signal in found:
        np.testing.assert_array_equal(signal.target, target_of(by_id[name]))


def test_every_item_is_answered_once_with_its_numbers(client):
    asked = items(1000)
    check(client.score("t", asked, TARGET), asked)


def test_nothing_asked_is_nothing_answered(client):
    assert list(client.score("t", [], TARGET)) == []
    assert list(client.score("t", iter(()), TARGET)) == []


def test_items_may_come_from_an_iterator_that_waits(client, servicer):
    """The iterator's next item depends on an answer: it must run beside the answers."""
    answered = threading.Event()

    def source():
        yield from items(2)
        assert answered.wait(30)
        yield from items(2, start=2)

    found = []
    for name, _ in client.score("t", source(), TARGET):
        found.append(name)
        if len(found) == 2:
            answered.set()
    assert found == [0, 1, 2, 3]


def test_a_teacher_record_expects_itself(client, servicer):
    list(client.score(client.teacher("t"), items(1), TARGET))
    expected = servicer.seen[0].start.expectation
    assert (expected.tokenizer_digest, expected.weights_digest) == (INFO.tokenizer_digest, INFO.weights_digest)
    assert expected.vocab_size == INFO.vocab_size


def test_what_is_asked_reaches_the_server(client, servicer):
    want = Want(target=True, layers=(-1,))
    ((_, signal),) = client.score("t", items(1), want, bfloat16=True, credit=2 * MIB)
    start = servicer.seen[0].start
    assert (start.teacher, start.credit, list(start.want.layers)) == ("t", 2 * MIB, [-1])
    assert start.want.hidden_dtype == pb.ScoreRequest().start.want.hidden_dtype + 2
    assert signal.hidden[-1].shape == (3, INFO.hidden_size)


@pytest.mark.parametrize("source", [items, lambda count: iter(items(count))])
def test_the_error_of_an_item_ends_the_call_after_the_answers_before_it(client, servicer, source):
    servicer.scripts[:] = [answering(fail={2: Reason.SCORING_FAILED})]
    stream = client.score("t", source(3), TARGET)
    assert [next(stream)[0], next(stream)[0]] == [0, 1]
    with pytest.raises(LimbeckError) as caught:
        next(stream)
    assert caught.value.reason is Reason.SCORING_FAILED
    assert [problem.field for problem in caught.value.problems] == ["item 2"]


def test_an_error_of_the_callers_own_iterator_is_the_callers(client):
    def source():
        yield from items(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(client.score("t", source(), TARGET))


def test_an_iterators_error_is_never_taken_for_the_connections(client, servicer):
    def source():
        yield from items(1)
        raise LimbeckError(Reason.SERVER_UNAVAILABLE, "of another server")

    with pytest.raises(LimbeckError, match="of another server"):
        list(client.score("t", source(), TARGET))
    assert len(servicer.seen) == 1


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (ScoreItem(-1, np.ones(2, np.int32), 0, 1), "item -1: the item cannot be sent"),
        (ScoreItem(0, np.ones(2, np.int32), -1, 1), "item 0: the item cannot be sent"),
        (ScoreItem(0, np.ones(2, np.int32), 0, 1, seed=1 << 64), "item 0: the item cannot be sent"),
        (ScoreItem(0, np.ones(1 << 21, np.int32), 0, 1), "a message holds 4,128,768"),
    ],
)
def test_an_item_that_cannot_be_sent_is_told_by_name(client, item, told):
    with pytest.raises(LimbeckError) as caught:
        list(client.score("t", [item], TARGET))
    assert caught.value.reason is Reason.REQUEST_INVALID
    assert told in str(caught.value)


PAIR = np.array([[1, 2], [3, 4]], np.int32)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (ScoreItem(4, np.array([1, 1 << 32]), 0, 1, PAIR[:1]), "ids hold 4294967296, which no int32 can be"),
        (ScoreItem(4, np.array([1, (1 << 64) - 5], np.uint64), 0, 1, PAIR[:1]), "ids hold 18446744073709551611"),
        (ScoreItem(4, np.array([1.0, 2.5]), 0, 1, PAIR[:1]), "ids are float64 [2], a numpy array of integers with 1"),
        (ScoreItem(4, PAIR, 0, 1, PAIR[:1]), "ids are int32 [2, 2], a numpy array of integers with 1 axes"),
        (ScoreItem(4, [1, 2], 0, 1, PAIR[:1]), "ids are list"),
        (ScoreItem(4, np.ones(2, np.int32), 0, 2, PAIR.ravel()), "token_ids are int32 [4], a numpy array of integers"),
        (ScoreItem(4, np.ones(2, np.int32), 0, 2, PAIR, np.arange(3)), "token_ids are int32 [2, 2]"),
        (ScoreItem(4, np.ones(2, np.int32), 0, 2), "token_ids are wanted and it says none"),
    ],
)
def test_nothing_is_changed_in_silence_on_its_way(client, item, told):
    with pytest.raises(LimbeckError, match="item 4: the item cannot be sent") as caught:
        list(client.score("t", [item], Want(token_ids=True)))
    assert caught.value.reason is Reason.REQUEST_INVALID
    assert told in str(caught.value)


@pytest.mark.parametrize("want", [Want(top_k=-1), Want(top_k=1 << 32), Want(layers=(1 << 31,)), Want(samples=1.5)])
def test_a_want_that_cannot_be_sent_is_refused(client, want):
    with pytest.raises(LimbeckError, match=r"want: .* cannot be sent") as caught:
        list(client.score("t", items(1), want))
    assert caught.value.reason is Reason.REQUEST_INVALID


@pytest.mark.parametrize("alone", [False, True])
def test_an_item_id_twice_is_refused(client, alone):
    with pytest.raises(LimbeckError, match="item 3: another item of this item_id") as caught:
        list(client.score("t", [*items(1, start=3), *items(1, start=3)], TARGET, alone=alone))
    assert caught.value.reason is Reason.REQUEST_INVALID


def test_an_item_id_may_be_used_again_once_it_is_answered(client):
    answered = threading.Event()

    def source():
        yield from items(1)
        assert answered.wait(30)
        yield from items(1)

    found = []
    for name, _ in client.score("t", source(), TARGET):
        found.append(name)
        answered.set()
    assert found == [0, 0]


def test_items_that_are_scored_alone_go_in_one_message(client, servicer):
    asked = items(300)
    check(client.score("t", asked, TARGET, alone=True), asked)
    assert servicer.seen[0].messages == [list(range(300))]
    assert servicer.seen[0].alone == [True]


def test_leaving_the_loop_ends_the_call_at_the_server(client, servicer):
    servicer.scripts[:] = [answering(most=2, then="silence")]
    for _ in client.score("t", items(10), TARGET):
        break
    end = time.monotonic() + 30
    while not servicer.seen[0].cancelled and time.monotonic() < end:
        time.sleep(0.01)
    assert servicer.seen[0].cancelled
    servicer.scripts[:] = [answering()]
    check(client.score("t", items(3), TARGET), items(3))


def test_a_call_that_is_answered_ends_in_good_order(client, servicer):
    list(client.score("t", items(3), TARGET))
    client.close()
    assert servicer.seen[0].half_closed
    assert not servicer.seen[0].cancelled


def test_a_closed_client_says_so(address):
    client = connect(address)
    stream = client.score("t", items(3), TARGET)
    next(stream)
    client.close()
    client.close()
    with pytest.raises(LimbeckError, match="The client is closed"):
        client.teachers()


def test_closing_ends_a_call_that_waits(servicer, address):
    servicer.scripts[:] = [answering(most=1, then="silence")]
    client = connect(address)
    stream = client.score("t", items(3), TARGET)
    next(stream)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(LimbeckError) as caught:
        next(stream)
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE


def test_threads_may_share_a_client(client):
    results = {}

    def ask(number):
        asked = items(200, start=1000 * number)
        check(client.score("t", asked, TARGET), asked)
        results[number] = True

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6


# ----------------------------------------------------------------------------------------------- limits and credit


def test_tokens_in_flight_stay_within_the_servers_limit():
    most = 0
    limits = pb.Limits(tokens_in_flight=40, answer_bytes=1 << 30, streams=8)

    async def script(server, seen, inbox, context):
        nonlocal most
        yield server.started(seen)
        waiting = []
        while True:
            if inbox.empty() and waiting:
                await asyncio.sleep(0.01)  # let the client send whatever it will
            while not inbox.empty() or not waiting:
                got = await inbox.get()
                if got == "end":
                    return
                waiting += got.items if got is not None else ()
                most = max(most, sum(len(message.ids) // 4 for message in waiting))
            for response in answers(seen, waiting.pop(0)):
                yield response

    with serving(Scripted(script, limits=limits)) as address, connect(address) as client:
        asked = items(100)
        check(client.score("t", asked, TARGET), asked)
        check(client.score("t", asked, TARGET, alone=True), asked)
    assert 0 < most <= 40


def test_calls_inside_of_one_another_never_wait_for_the_limit():
    """The outer call's items wait for credit, which its caller gives when the inner call is answered."""
    limits = pb.Limits(tokens_in_flight=64, answer_bytes=1 << 30, streams=8)
    want = Want(layers=(-1,))  # 384 KiB an item
    with serving(Scripted(crediting(), limits=limits)) as address, client_of(address) as client:
        pairs = []
        for outer, _ in client.score("t", items(40), want, credit=MIB):
            pairs += [(outer, inner) for inner, _ in client.score("t", items(2), want, credit=MIB)]
    assert sorted(pairs) == [(outer, inner) for outer in range(40) for inner in range(2)]


def test_a_slow_caller_holds_the_server_back():
    """Each answer takes 384 KiB of 4 MiB of credit: a caller that takes one has no more than that under way."""
    left: list[int] = []
    asked, want = items(60), Want(layers=(-1,))
    with serving(Scripted(crediting(left))) as address, connect(address) as client:
        stream = client.score("t", asked, want, credit=4 * MIB)
        found = [next(stream)]
        seen = 0
        while seen != len(left):  # the server sends until its credit is gone
            seen = len(left)
            time.sleep(0.3)
        assert 8 <= len(left) <= 14
        assert left[-1] <= 0
        found += stream
    assert [name for name, _ in found] == list(range(60))
    assert all((signal.hidden[-1] == name).all() for name, signal in found)


def test_an_answer_larger_than_the_credit_arrives():
    want = Want(layers=(-1, 1, 0))
    asked = items(4, tokens=20)  # 7.1 MiB each
    with serving(Scripted(crediting())) as address, connect(address) as client:
        found = dict(client.score("t", asked, want, credit=MIB))
    shapes = {name: signal.hidden[1].shape for name, signal in found.items()}
    assert shapes == dict.fromkeys(range(4), (19, INFO.hidden_size))


@pytest.mark.parametrize("credit", [-1, 1000, 1 << 64])
def test_a_credit_that_begins_nothing_or_cannot_be_sent_is_refused(client, credit):
    with pytest.raises(
        LimbeckError, match=f"credit is {credit:,} bytes, 1,048,576 up to 18,446,744,073,709,551,615 are"
    ):
        client.score("t", items(1), TARGET, credit=credit)


def test_a_sign_of_life_is_sent_where_nothing_else_is(servicer, address):
    async def script(server, seen, inbox, context):
        yield server.started(seen)
        while seen.alive < 3:
            await asyncio.sleep(0.01)
        async for response in answering()(server, seen, inbox, context):
            if response.WhichOneof("kind") != "started":
                yield response

    servicer.scripts[:] = [script]
    with client_of(address, alive=0.05) as client:
        check(client.score("t", items(2), TARGET), items(2))
    assert servicer.seen[0].alive >= 3


# ------------------------------------------------------------------------------------------------------- generating


def test_prompts_are_continued(client):
    prompts = [Prompt(i, np.array([i, i + 1], np.int32)) for i in range(500)]
    found = {c.item_id: c for c in client.generate("t", prompts, Sampling(max_new_tokens=2))}
    assert {name: c.ids.tolist() for name, c in found.items()} == {i: [i + 1, i] for i in range(500)}
    assert {c.finish_reason for c in found.values()} == {"length"}


def test_a_prompt_is_not_changed_in_silence_on_its_way(client):
    with pytest.raises(LimbeckError, match="item 3: the item cannot be sent: ids hold -2147483649") as caught:
        list(client.generate("t", [Prompt(3, np.array([1, -(1 << 31) - 1]))], Sampling(max_new_tokens=1)))
    assert caught.value.reason is Reason.REQUEST_INVALID


def test_a_sampling_that_cannot_be_sent_is_refused(client):
    with pytest.raises(LimbeckError) as caught:
        list(client.generate("t", [Prompt(0, np.ones(2, np.int32))], Sampling(max_new_tokens=-1)))
    assert caught.value.reason is Reason.REQUEST_INVALID
    assert "max_new_tokens=-1" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- asyncio


def test_asyncio_has_the_same_calls(address):
    async def main():
        async with connect_async(address) as client:
            teacher = await client.teacher("t")
            assert teacher.info == INFO
            asked = items(200)

            async def source():
                for item in asked:
                    await asyncio.sleep(0)
                    yield item

            check([answer async for answer in client.score(teacher, source(), TARGET)], asked)
            both = [client.score(teacher, items(50, start=start), TARGET) for start in (0, 50)]

            async def collect(stream):
                return [answer async for answer in stream]

            found = await asyncio.gather(*map(collect, both))
            check(found[0] + found[1], items(100))
            prompts = [Prompt(0, np.ones(2, np.int32))]
            assert len([c async for c in client.generate("t", prompts, Sampling())]) == 1

    asyncio.run(main(), debug=True)


def test_a_teacher_that_starts_is_waited_for(servicer, client):
    servicer.teacher.state = pb.Teacher.STATE_STARTING
    servicer.teacher.vocab_size = 0
    assert client.teacher("t").state == "starting"
    assert client.teacher("t").info is None

    async def reply(request, context):
        if len(servicer.unary) > 4:
            servicer.teacher.state, servicer.teacher.vocab_size = pb.Teacher.STATE_READY, INFO.vocab_size
        return pb.GetTeacherResponse(teacher=servicer.teacher)

    servicer.replies["GetTeacher"] = reply
    assert client.teacher("t", wait=60).info == INFO
