"""What a host finds when it looks at recipes, and when it looks again."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

import pytest

from limbeck.errors import Reason
from limbeck.hosting import channel, looks, process
from limbeck.v1 import event_pb2 as ev

from .conftest import Place, create, reach, refused, until, watch


@pytest.mark.parametrize(("check", "reason"), [("bad", "DATA_INVALID"), ("die", "RUN_CRASHED")])
def test_what_a_look_finds_fails_the_run(place: Place, check: str, reason: str) -> None:
    async def main() -> None:
        place.script(check=check)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "failed")
            assert run.error.reason == reason
            if check == "bad":
                assert [(one.message, one.file, one.line) for one in run.error.problems] == [("no rows", "rows", 3)]
            said = await watch(host, run_id)
            assert said[-1].state_changed.error == run.error
            assert str(place.root) not in f"{run.error} {said}"
            assert place.states() == ["created", "validating", "failed"]
            place.script()
            await host.resume(run_id)
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


def test_a_recipe_is_looked_at_without_a_trace(place: Place) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            before = sorted(os.listdir(place.root))
            found = await host.validate(place.recipe())
            assert not found.HasField("error")
            assert found.resolved == '{"output": "a"}'
            bad = await host.validate(place.recipe().replace("forward_kl", "forward_k"))
            assert bad.error.problems[0].line == 5
            place.script(check="bad")
            rows = (await host.validate(place.recipe())).error
            assert (rows.reason, rows.problems[0].file, rows.problems[0].line) == ("DATA_INVALID", "rows", 3)
            place.script(check="die")
            error = await refused(host.validate(place.recipe()), Reason.RUN_CRASHED)
            assert "exit code 7" in str(error)
            assert sorted(os.listdir(place.root)) == before

    asyncio.run(main())


def test_a_look_that_finds_what_cannot_be_has_found_nothing(place: Place) -> None:
    async def main() -> None:
        place.script(check="odd")
        async with place.hosting() as host:
            before = sorted(os.listdir(place.root))
            opened = len(os.listdir("/proc/self/fd"))
            await refused(host.validate(place.recipe()), Reason.RUN_CRASHED)
            assert sorted(os.listdir(place.root)) == before
            assert len(os.listdir("/proc/self/fd")) == opened
            run = await reach(host, await create(host, place.recipe()), "failed")
            assert run.error.reason == "RUN_CRASHED"

    asyncio.run(main())


def test_a_look_that_takes_too_long_is_ended_and_says_so(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting(check_seconds=0.5) as host:
            run = await reach(host, await create(host, place.recipe()), "failed")
            assert run.error.problems[0].message == "it ended by this server: a look at a recipe may take 0.5 s"
            error = await refused(host.validate(place.recipe("runs/b")), Reason.RUN_CRASHED)
            assert "may take 0.5 s" in str(error)

    asyncio.run(main())


def test_that_too_many_recipes_wait_is_no_fault_of_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.hosting.workspace.MOST_WAITING", 0)

    async def main() -> None:
        async with place.hosting() as host:
            await refused(host.validate(place.recipe()), Reason.QUOTA_EXCEEDED)

    asyncio.run(main())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each process was started for."""
    found: list[str] = []
    start = process.RunProcess.start

    async def noted(words: channel.Start, *given: Any) -> process.RunProcess:
        found.append(words.do)
        return await start(words, *given)

    monkeypatch.setattr(process.RunProcess, "start", noted)
    return found


def test_a_recipe_that_was_just_looked_at_is_not_looked_at_again(place: Place, started: list[str]) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            assert not (await host.validate(place.recipe())).HasField("error")
            run_id = await create(host, place.recipe())
            assert host.get(run_id).state == ev.RUN_STATE_VALIDATING
            await reach(host, run_id, "succeeded")
            assert started == ["check", "run"]
            assert place.states() == ["created", "validating", "queued", "succeeded"]
            assert [one.state for one in host.details(run_id).states][1:3] == [
                ev.RUN_STATE_VALIDATING,
                ev.RUN_STATE_QUEUED,
            ]
            first = await create(host, place.recipe("runs/b"), "two")
            await reach(host, first, "succeeded")
            assert started[2:] == ["check", "run"]
            shutil.rmtree(place.root / "runs" / "b")
            await until(lambda: host._ledger.find(first).expired)
            await reach(host, await create(host, place.recipe("runs/b"), "three"), "succeeded")
            assert started[4:] == ["run"]  # a run's own look is remembered, too
            assert (await host.validate(place.recipe())).resolved
            assert started[5:] == ["check"]  # whoever asks is told what is true now

    asyncio.run(main())


@pytest.mark.parametrize("why", ["late", "bad", "crash", "restart"])
def test_a_recipe_is_looked_at_again(
    place: Place, started: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            await host.validate(place.recipe())
            if why == "late":
                monkeypatch.setattr(looks, "KEPT_SECONDS", 0.0)
            elif why == "bad":
                place.script(check="bad")
                assert (await host.validate(place.recipe())).HasField("error")
            elif why == "crash":
                place.script(check="die")
                await refused(host.validate(place.recipe()), Reason.RUN_CRASHED)
            if why != "restart":
                await reach(host, await create(host, place.recipe()), "succeeded" if why == "late" else "failed")
                assert place.states()[1:3] == ["validating", "queued" if why == "late" else "failed"]
        if why == "restart":
            async with place.hosting() as host:
                await reach(host, await create(host, place.recipe()), "succeeded")
        assert started == {"late": ["check", "check", "run"], "restart": ["check", "check", "run"]}.get(
            why, ["check"] * 3
        )

    asyncio.run(main())


def test_not_more_than_so_many_looks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "MOST", 2)
    known = looks.Looks()
    for recipe in ("a", "b", "a", "c"):
        known.note(recipe, good=True)
    assert [known.good(recipe) for recipe in "abc"] == [True, False, True]
