"""Whatever happens to the connections, and in whatever order answers come: each item once, with its own numbers."""

from __future__ import annotations

import random

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.client import Want
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.translate import refuse

from .scripted import INFO, Scripted, answers, client_of, failed, items, serving, target_of

FAULTS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, Reason.SERVER_UNAVAILABLE, None)


def faulty(most: int, fault: object, once: set[int], draw: random.Random):
    """Send up to `most` fragments, of items in any order and mixed, then the fault; items in `once` fail first."""

    async def script(server, seen, inbox, context):
        yield server.started(seen)
        parts: list[list] = []
        sent = 0
        while sent < most:
            if not parts or not inbox.empty():
                got = await inbox.get()
                if got == "end":
                    return
                for message in got.items if got is not None else ():
                    if message.item_id in once:
                        once.discard(message.item_id)
                        yield failed(message.item_id, Reason.TEACHER_UNAVAILABLE)
                    else:
                        parts.append(answers(seen, message))
                continue
            item = draw.choice(parts)
            yield item.pop(0)
            sent += 1
            parts = [part for part in parts if part]
        if isinstance(fault, Reason):
            await refuse(context, LimbeckError(fault, problems=[Problem("as the test wants")]))
        elif fault is not None:
            await context.abort(fault, "as the test wants")

    return script


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(FAULTS)), max_size=4),
    st.sets(st.integers(0, 5)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1 << 16),
)
def test_each_item_is_answered_once(faults, once, alone, lazily, seed):
    asked, want = items(6, tokens=9), Want(target=True, layers=(-1,))  # each in one or more fragments of 1 MiB
    draw = random.Random(seed)
    calls = [faulty(most, fault, once, draw) for most, fault in faults]
    servicer = Scripted(*calls, faulty(1 << 30, None, once, draw))
    with serving(servicer) as address, client_of(address, retry_for=20) as client:
        source = iter(asked) if lazily else asked
        found = list(client.score("t", source, want, alone=alone, credit=2 << 20))
    assert sorted(name for name, _ in found) == list(range(6))
    for name, signal in found:
        assert signal.target.tolist() == target_of(asked[name]).tolist()
        assert signal.hidden[-1].shape == (8, INFO.hidden_size)
        assert (signal.hidden[-1] == name).all()
