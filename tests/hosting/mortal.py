"""A server that kills itself before its n-th change on disk. Usage: mortal.py ROOT WHAT N OUTPUT [RESTART].

WHAT is what it is asked: create, pause, cancel, knobs; or "work", "work pause", "work cancel": then it waits, and says
in the file `ready` by which mark its process is known. Ends with 0 where it came to the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.hosting.conftest import Place, create, reach, until

from limbeck.files import AppendLog
from limbeck.hosting.host import RunHost
from limbeck.hosting.index import Index
from limbeck.v1 import training_service_pb2 as pb

KNOB = {"losses.forward_kl.weight": 0.5}


class Fate:
    """Counts what changes the disk for good."""

    def __init__(self, at: int) -> None:
        self.left = self.at = at
        places: list[tuple[object, str]] = [(AppendLog, "append"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")]
        for owner, name in [*places, (os, "open"), (Index, "_write"), (os, "fsync")]:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, work: Callable[..., object]) -> Callable[..., object]:
        def call(*about: object, **more: object) -> object:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*about, **more)

        return call


async def main() -> None:
    """What it is asked."""
    root, what, at, output, *more = sys.argv[1:]
    place = Place(Path(root))
    fate = Fate(int(at)) if int(at) else None
    host = place.host()
    await host.start()
    restart = pb.RestartPolicy.ValueType(int(more[0]) if more else 0)
    run_id = await create(host, place.recipe(output), output, restart=restart)
    if what == "create":
        await reach(host, run_id, "succeeded")
        await _close(place, host, fate)
        return
    await until((place.root / "held").exists)
    if what == "knobs":
        await host.update_knobs(run_id, KNOB)
        await until((place.root / "knobs").exists)
    elif what in ("pause", "cancel"):
        await getattr(host, what)(run_id)
        await reach(host, run_id, {"pause": "paused", "cancel": "cancelled"}[what])
    else:
        record = host._ledger.find(run_id)
        if want := what.partition(" ")[2]:
            await getattr(host, want)(run_id)
        (place.root / ".ready").write_text(record.mark)
        (place.root / ".ready").rename(place.root / "ready")
        await asyncio.sleep(600)
    await _close(place, host, fate)


async def _close(place: Place, host: RunHost, fate: Fate | None) -> None:
    await host.close(30)
    if fate is not None:
        (place.root / "count").write_text(str(fate.at - fate.left))


if __name__ == "__main__":
    asyncio.run(main())
