"""How many runs a host takes, in which order, which it keeps, and how it lists them."""

from __future__ import annotations

import asyncio

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.v1 import event_pb2 as ev

from .conftest import HELD, TRAINING, Place, create, reach, refused, until


def test_quotas_hold_and_tell_both_problems(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting(queue=2, per_client=3) as host:
            first = await create(host, place.recipe("r0"), "0")
            await reach(host, first, "training")
            for number in (1, 2):
                await create(host, place.recipe(f"r{number}"), str(number))
            error = await refused(create(host, place.recipe("r3"), "3"), Reason.QUOTA_EXCEEDED)
            assert len(error.problems) == 2
            assert not (place.root / "r3").exists()
            place.go()

    asyncio.run(main())


def test_the_queue_keeps_its_order_and_its_room(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            ids = [await create(host, place.recipe(f"r{number}"), str(number)) for number in range(3)]
            await until(lambda: [host.get(one).queue_position for one in ids] == [0, 1, 2])
            await host.cancel(ids[1])
            assert [host.get(one).queue_position for one in ids] == [0, 0, 1]
            assert host.get(ids[1]).state == ev.RUN_STATE_CANCELLED
            place.go()
            for one in (ids[0], ids[2]):
                await reach(host, one, "succeeded")
            assert place.states("r1") == ["created", "validating", "queued", "cancelled"]
            assert not any(event["attempt"] for event in place.events("r1") if "attempt" in event)

    asyncio.run(main())


def test_the_oldest_runs_make_room(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting(keep_runs=2) as host:
            ids = []
            for number in range(4):
                ids.append(await create(host, place.recipe(f"r{number}"), str(number)))
                await reach(host, ids[-1], "succeeded")
            await until(lambda: not (place.root / "r1").exists())
            assert not (place.root / "r0").exists()
            assert (place.root / "r2").exists()
            first = host.get(ids[0])
            assert first.state == ev.RUN_STATE_SUCCEEDED
            assert first.oldest_sequence == first.last_sequence + 1
            for after in (None, 0, 2):
                with pytest.raises(LimbeckError) as caught:
                    await host.history(ids[0]).read(after, 100)
                assert caught.value.reason == Reason.CURSOR_INVALID
            with pytest.raises(LimbeckError) as caught:
                host.folder(ids[0])
            assert caught.value.reason == Reason.ARTIFACT_UNKNOWN
            assert await create(host, place.recipe("r0"), "0") == ids[0]  # the request is known for good
            again = await create(host, place.recipe("r0"), "again")  # its folder is free
            assert again != ids[0]
            await reach(host, again, "succeeded")
        assert not list(place.root.glob(f".run-{ids[0]}.yaml"))

    asyncio.run(main())


def test_the_oldest_runs_make_room_by_their_size_but_the_newest_stays(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting(keep_gib=1e-9) as host:  # smaller than any
            for name in ("a", "b", "c"):
                await reach(host, await create(host, place.recipe(f"runs/{name}"), name), "succeeded")
            await until(lambda: [path.name for path in (place.root / "runs").iterdir()] == ["c"])
            await host._retention.apply()
            gone = [run.oldest_sequence > run.last_sequence for run in host.list([], 0, "").runs]
            assert gone == [False, True, True]

    asyncio.run(main())


def test_pages_hold_while_runs_come(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            ids = [await create(host, place.recipe(f"r{number}"), str(number)) for number in range(5)]
            for one in ids:
                await reach(host, one, "succeeded")
            page = host.list([], 2, "")
            seen = [run.run_id for run in page.runs]
            place.script(check="hang")
            late = await create(host, place.recipe("late"), "late")
            while page.next_page_token:
                page = host.list([], 2, page.next_page_token)
                seen += [run.run_id for run in page.runs]
            assert seen == ids[::-1]
            with monkeypatch.context() as patch:
                patch.setattr("limbeck.hosting.host.PAGE_BYTES", 10)  # they say too much for a page
                page, seen = host.list([], 2, ""), []
                while page.next_page_token:
                    seen += [run.run_id for run in page.runs]
                    page = host.list([], 2, page.next_page_token)
                assert [*seen, *(run.run_id for run in page.runs)] == [late, *ids[::-1]]
            only = host.list([ev.RUN_STATE_VALIDATING], 0, "")
            assert [run.run_id for run in only.runs] == [late]
            for token in ("nonsense", "YmVsb3cgeA=="):
                with pytest.raises(LimbeckError) as caught:
                    host.list([], 0, token)
                assert caught.value.reason == Reason.REQUEST_INVALID
            with pytest.raises(LimbeckError) as caught:
                host.get("nobody")
            assert caught.value.reason == Reason.RUN_UNKNOWN

    asyncio.run(main())
