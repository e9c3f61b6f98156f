"""Runs of a server: start them, watch them, steer them, fetch what they made. For asyncio."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path

from limbeck.client.background import Stream, flat
from limbeck.client.errors import AGAIN, in_file
from limbeck.client.fetch import Fetching, fetch, list_artifacts
from limbeck.client.link import Link
from limbeck.client.records import (
    Artifact,
    Checkpoint,
    Plugins,
    RestartPolicy,
    Run,
    RunDetails,
    RunState,
    Validation,
    asked,
    checkpoint_of,
    details_of,
    plugins_of,
    restart_number,
    run_of,
    state_number,
    validation_of,
)
from limbeck.client.watch import Watch
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import plugin_service_pb2 as plugin_pb
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event

WORK = 600.0  # seconds that a server may look at a recipe, or save a checkpoint


class AsyncTraining:
    """The calls of the training service, for :class:`limbeck.client.AsyncClient`."""

    _link: Link

    async def plugins(self) -> Plugins:
        """What is installed at the server, those that failed too, with JSON Schemas of their configs."""
        return plugins_of(await self._link.ask("ListPlugins", plugin_pb.ListPluginsRequest()))

    async def validate(self, recipe: str | Path) -> Validation:
        """Look at a recipe and all that it names, as `limbeck check` does at the server; up to 10 minutes.

        `recipe`: its text, or a file that holds it. What is wrong with it is in the answer, not raised.
        """
        request = asked(pb.ValidateRecipeRequest, recipe=_text(recipe))
        answer = await self._link.ask("ValidateRecipe", request, work=WORK)
        return validation_of(answer, str(recipe) if isinstance(recipe, Path) else None)

    async def create_run(
        self, recipe: str | Path, request_id: str | None = None, restart: RestartPolicy = "resume"
    ) -> Run:
        """Start the run of a recipe, as soon as the server has room.

        `recipe`: its text, or a file that holds it; its relative paths are relative to the server's workspace.
        `request_id`: the same one gives the same run, also from another process; one is made where none is given, so
        that a lost connection starts no second run. `restart`: what becomes of it when the server ends while it works.
        Raises RECIPE_INVALID with up to 20 problems and their places, RUN_EXISTS where another run has its folder,
        QUOTA_EXCEEDED for a full queue.
        """
        request = asked(
            pb.CreateRunRequest,
            request_id=uuid.uuid4().hex if request_id is None else request_id,
            recipe=_text(recipe),
            restart=restart_number(restart),
        )
        try:
            answer = await self._link.ask("CreateRun", request, again=AGAIN - {Reason.QUOTA_EXCEEDED})
        except LimbeckError as error:
            raise (in_file(error, str(recipe)) if isinstance(recipe, Path) else error) from None
        return run_of(answer.run)

    async def run(self, run_id: str) -> RunDetails:
        """A run as it is now, with its recipe and its states. Raises RUN_UNKNOWN."""
        return details_of(await self._link.ask("GetRun", asked(pb.GetRunRequest, run_id=run_id)))

    def runs(self, states: Iterable[RunState] = ()) -> AsyncGenerator[Run, None]:
        """All runs, the newest first, or those in one of `states`. They are asked for a page at a time."""
        return flat(self.paging(states))

    def paging(self, states: Iterable[RunState] = ()) -> Stream[Run]:
        """:meth:`runs` as lists; see :meth:`limbeck.client.AsyncClient.scoring`."""
        return _Pages(self._link, states)

    async def pause(self, run_id: str) -> Run:
        """Let a run save what is needed to go on, and rest. :meth:`watch` tells when it does. Raises RUN_STATE."""
        return run_of((await self._link.ask("PauseRun", asked(pb.PauseRunRequest, run_id=run_id))).run)

    async def resume(self, run_id: str) -> Run:
        """Let a run that is paused or has failed go on, as soon as there is room. Raises RUN_STATE."""
        return run_of((await self._link.ask("ResumeRun", asked(pb.ResumeRunRequest, run_id=run_id))).run)

    async def cancel(self, run_id: str) -> Run:
        """End a run for good; what it has made stays in its folder. Raises RUN_STATE for one that ended."""
        return run_of((await self._link.ask("CancelRun", asked(pb.CancelRunRequest, run_id=run_id))).run)

    async def set_knobs(self, run_id: str, values: Mapping[str, float]) -> Run:
        """Give knobs other values from the next step on, for good. `values`: by name, as in `Run.knobs`.

        All of them or, KNOB_INVALID, none. Returns when they are kept; an event tells from which step they hold.
        """
        return run_of(
            (await self._link.ask("UpdateKnobs", asked(pb.UpdateKnobsRequest, run_id=run_id, values=values))).run
        )

    async def save_checkpoint(self, run_id: str) -> Checkpoint:
        """Save a checkpoint after the step under way; returns when it is complete, up to 10 minutes.

        Raises RUN_STATE for a run that does not train.
        """
        answer = await self._link.ask("SaveCheckpoint", asked(pb.SaveCheckpointRequest, run_id=run_id), work=WORK)
        return checkpoint_of(answer.checkpoint)

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """The complete checkpoints of a run, the oldest first."""
        answer = await self._link.ask("ListCheckpoints", asked(pb.ListCheckpointsRequest, run_id=run_id))
        return [checkpoint_of(message) for message in answer.checkpoints]

    def watch(self, run_id: str, after: int | None = None) -> AsyncGenerator[Event, None]:
        """The events of a run, each once and in order, and more as they happen, over lost connections.

        `after`: only those after this `sequence`; 0 begins with the first, None with the oldest that is kept. An Event
        is the message of protos/limbeck/v1/event.proto, as observers get it. Ends after the last event of a run that
        succeeded, failed or was cancelled. Raises CURSOR_INVALID for a cursor that is not kept any more or was never
        said, LOG_DAMAGED where an event is missing.
        """
        return flat(self.watching(run_id, after))

    def watching(self, run_id: str, after: int | None = None) -> Stream[Event]:
        """:meth:`watch` as lists; see :meth:`limbeck.client.AsyncClient.scoring`."""
        return Watch(self._link, run_id, after)

    async def artifacts(self, run_id: str) -> list[Artifact]:
        """The files of a run that can be fetched, by path."""
        return await list_artifacts(self._link, run_id)

    async def fetch(
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
        return await fetch(self._link, run_id, folder, path, told)


class _Pages:
    """ListRuns, page after page. A run that is created meanwhile moves others to the next page: each is given once."""

    def __init__(self, link: Link, states: Iterable[RunState]) -> None:
        self._link = link
        self._states = [state_number(state) for state in states]
        self._token: str | None = ""
        self._seen: set[str] = set()

    async def next(self) -> list[Run] | None:
        """The runs of a page; None after the last."""
        if self._token is None:
            return None
        request = asked(pb.ListRunsRequest, page_token=self._token, states=self._states)
        answer = await self._link.ask("ListRuns", request)
        self._token = answer.next_page_token or None
        found = [run_of(message) for message in answer.runs if message.run_id not in self._seen]
        self._seen.update(run.run_id for run in found)
        return found

    async def close(self) -> None:
        """Nothing is under way between two pages."""


def _text(recipe: str | Path) -> str:
    """The recipe's text. Raises RECIPE_INVALID for a file that cannot be read."""
    if not isinstance(recipe, Path):
        return recipe
    try:
        return recipe.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        told = f"byte {error.start + 1} is not UTF-8"
    except OSError as error:
        told = f"cannot be read: {error.strerror or error}"
    raise LimbeckError(Reason.RECIPE_INVALID, "The recipe cannot be sent.", [Problem(told, file=str(recipe))])
