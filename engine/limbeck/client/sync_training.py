"""Runs of a server: the calls of :mod:`limbeck.client.training` without asyncio."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

from limbeck.client.background import BACKGROUND, each
from limbeck.client.fetch import Fetching
from limbeck.client.records import (
    Artifact,
    Checkpoint,
    Plugins,
    RestartPolicy,
    Run,
    RunDetails,
    RunState,
    Validation,
)
from limbeck.client.training import AsyncTraining
from limbeck.v1.event_pb2 import Event


class Training:
    """The calls of the training service, for :class:`limbeck.client.Client`."""

    _client: AsyncTraining

    def plugins(self) -> Plugins:
        """What is installed at the server, those that failed too, with JSON Schemas of their configs."""
        return BACKGROUND.run(self._client.plugins())

    def validate(self, recipe: str | Path) -> Validation:
        """Look at a recipe and all that it names, as `limbeck check` does at the server; up to 10 minutes.

        `recipe`: its text, or a file that holds it. What is wrong with it is in the answer, not raised.
        """
        return BACKGROUND.run(self._client.validate(recipe))

    def create_run(self, recipe: str | Path, request_id: str | None = None, restart: RestartPolicy = "resume") -> Run:
        """Start the run of a recipe, as soon as the server has room.

        `recipe`: its text, or a file that holds it; its relative paths are relative to the server's workspace.
        `request_id`: the same one gives the same run, also from another process; one is made where none is given, so
        that a lost connection starts no second run. `restart`: what becomes of it when the server ends while it works.
        Raises RECIPE_INVALID, RUN_EXISTS where another run has its folder, QUOTA_EXCEEDED for a full queue.
        """
        return BACKGROUND.run(self._client.create_run(recipe, request_id, restart))

    def run(self, run_id: str) -> RunDetails:
        """A run as it is now, with its recipe and its states. Raises RUN_UNKNOWN."""
        return BACKGROUND.run(self._client.run(run_id))

    def runs(self, states: Iterable[RunState] = ()) -> Generator[Run, None, None]:
        """All runs, the newest first, or those in one of `states`. They are asked for a page at a time."""
        return each(self._client.paging(states))

    def pause(self, run_id: str) -> Run:
        """Let a run save what is needed to go on, and rest. :meth:`watch` tells when it does. Raises RUN_STATE."""
        return BACKGROUND.run(self._client.pause(run_id))

    def resume(self, run_id: str) -> Run:
        """Let a run that is paused or has failed go on, as soon as there is room. Raises RUN_STATE."""
        return BACKGROUND.run(self._client.resume(run_id))

    def cancel(self, run_id: str) -> Run:
        """End a run for good; what it has made stays in its folder. Raises RUN_STATE for one that ended."""
        return BACKGROUND.run(self._client.cancel(run_id))

    def set_knobs(self, run_id: str, values: Mapping[str, float]) -> Run:
        """Give knobs other values from the next step on, for good. `values`: by name, as in `Run.knobs`.

        All of them or, KNOB_INVALID, none. Returns when they are kept; an event tells from which step they hold.
        """
        return BACKGROUND.run(self._client.set_knobs(run_id, values))

    def save_checkpoint(self, run_id: str) -> Checkpoint:
        """Save a checkpoint after the step under way; returns when it is complete, up to 10 minutes.

        Raises RUN_STATE for a run that does not train.
        """
        return BACKGROUND.run(self._client.save_checkpoint(run_id))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """The complete checkpoints of a run, the oldest first."""
        return BACKGROUND.run(self._client.checkpoints(run_id))

    def watch(self, run_id: str, after: int | None = None) -> Generator[Event, None, None]:
        """The events of a run, each once and in order, and more as they happen, over lost connections.

        `after`: only those after this `sequence`; 0 begins with the first, None with the oldest that is kept. An Event
        is the message of protos/limbeck/v1/event.proto, as observers get it. Ends after the last event of a run that
        succeeded, failed or was cancelled. Raises CURSOR_INVALID for a cursor that is not kept any more or was never
        said, LOG_DAMAGED where an event is missing.
        """
        return each(self._client.watching(run_id, after))

    def artifacts(self, run_id: str) -> list[Artifact]:
        """The files of a run that can be fetched, by path."""
        return BACKGROUND.run(self._client.artifacts(run_id))

    def fetch(
        self,
        run_id: str,
        folder: str | Path,
        path: str = "student",
        *,
        told: Callable[[Fetching], object] | None = None,
    ) -> Path:
        """Fetch a file of a run, or all files of a folder of it, and return where it is: ``folder / path``.

        `path`: as in :meth:`artifacts`, e.g. "student", "report/report.json"; "." for all. Files are there only when
        they are whole and their checksums right. What came of one that is not is kept beside it: the same call goes on
        from there, also in another process, and files that are there already are not fetched again. `told` hears how
        far it is, in the client's own thread. Raises ARTIFACT_UNKNOWN; STORE_DAMAGED where bytes are wrong twice;
        FOLDER_NOT_OURS where a link in `folder` leads out of it.
        """
        return BACKGROUND.run(self._client.fetch(run_id, folder, path, told=told))
