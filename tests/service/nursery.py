"""The teacher `nursery` for tests of workers: echo's numbers, and on order a child process, trouble, or a wait.

Installed as a distribution of its own into a folder that the worker finds by PYTHONPATH. It keeps a diary: one JSON
object a line of what it does.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

from pydantic import Field

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hookspecs import hookimpl
from limbeck.interfaces import CAPABILITIES, TeacherInfo, TeacherPlugin
from limbeck_echo.config import EchoConfig
from limbeck_echo.teacher import EchoTeacher


class NurseryConfig(EchoConfig):
    """What goes wrong, and with which items."""

    tokenizer: str = ""
    folder: str  # of the diary, and of files that are waited for
    child: bool = False  # start a process that outlives everything
    runaway: bool = False  # fork one that leaves the group and keeps every file of the worker
    engine: bool = False  # start processes as large engines do, see `engine`
    gated: bool = False  # wait for the file `gate` before each answer
    busy: bool = False  # wait without letting the event loop run
    needs: str | None = None  # a file without which it refuses to start
    dies_without: str | None = None  # a file without which the process dies at the start
    poison: list[int] = Field([])  # items that raise
    loses_gpu: bool = False  # after a poisoned item nothing works any more
    deadly: list[int] = Field([])  # items that kill the process


class SlowConfig(NurseryConfig):
    """What a start does, phase by phase. Each goes on as soon as there is a file of its name."""

    phases: list[str] = Field([])
    blocks: bool = False  # wait without letting the event loop run
    from_thread: bool = False  # tell of phases from another thread
    refuses: bool = False  # after the last phase


class Nursery(EchoTeacher):
    """Echo with a life."""

    _info: TeacherInfo

    def __init__(self, config: NurseryConfig) -> None:
        super().__init__(config)
        self._info = TeacherInfo(  # without a tokenizer, whose loading takes seconds
            name="nursery",
            vocab_size=config.vocab_size or 261,
            tokenizer_digest="a" * 64,
            template_digest=None,
            weights_digest="b" * 64,
            max_length=config.max_length,
            capabilities=frozenset(CAPABILITIES) - {"hidden_states"},
            eos_ids=(1, 4),
            bos_id=2,
        )
        self.folder = Path(config.folder)
        self.lost = False
        self.note("born", pid=os.getpid())
        if config.needs and not (self.folder / config.needs).exists():
            problem = Problem("the model is not there", file=config.folder, hint="put it there")
            raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
        if config.dies_without and not (self.folder / config.dies_without).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if config.engine:
            multiprocessing.get_context("spawn").Process(target=engine, args=(config.folder,)).start()
            while "helper" not in (self.folder / "diary").read_text():
                time.sleep(0.01)
        if config.child:
            self.note("child", pid=subprocess.Popen(["sleep", "1000"]).pid)
        if config.runaway and (pid := os.fork()) == 0:
            os.setsid()
            time.sleep(1000)
            os._exit(0)
        elif config.runaway:
            self.note("runaway", pid=pid)

    def note(self, what, **more):
        """Into the diary."""
        note(self.folder, what, **more)

    async def wait(self):
        """For the gate."""
        if self.config.busy and self.started:
            self.note("busy")
            while not (self.folder / "gate").exists():
                sum(range(1000))
        while self.config.gated and self.started and not (self.folder / "gate").exists():
            await asyncio.sleep(0.005)

    async def watched(self, kind, items, answers):
        """Answers of echo, with what is ordered for each item."""
        ids = [item.item_id for item in items]
        self.started = [len(item.ids) for item in items] != [2]  # the worker's own question
        if self.started:
            self.note(kind, items=ids)
        if self.lost:
            raise RuntimeError("CUDA error: the device is lost")
        bad = sorted(set(ids) & set(self.config.poison))
        if self.started and bad:
            self.lost = self.config.loses_gpu
            raise LimbeckError(Reason.SCORING_FAILED, problems=[Problem("is poison", field=f"item {i}") for i in bad])
        if self.started and set(ids) & set(self.config.deadly):
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            await self.wait()
            async for answer in answers:
                yield answer
                await self.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.note("cancelled", items=ids)
            raise

    def score(self, items, want):
        """As echo."""
        return self.watched("score", items, super().score(items, want))

    def generate(self, prompts, sampling):
        """As echo."""
        return self.watched("generate", prompts, super().generate(prompts, sampling))


class Slow(Nursery):
    """A teacher whose start takes long and is told of."""

    up = False

    async def start(self, told):
        """Phase by phase; again where it is lost."""
        if self.up and not self.lost:
            return
        self.note("start")
        for phase in self.config.phases:
            if self.config.from_thread:
                await asyncio.to_thread(told, phase)
            else:
                told(phase)
            while not (self.folder / phase).exists():
                if self.config.blocks:
                    time.sleep(0.005)
                else:
                    await asyncio.sleep(0.005)
        if self.config.refuses:
            problem = Problem("the GPU has 8 GiB, the weights need 9", field="model", hint="take a smaller one")
            raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
        self.up, self.lost = True, False
        self.note("started")


def note(folder, what, **more):
    """Into the diary of a folder."""
    with (Path(folder) / "diary").open("a") as diary:
        diary.write(json.dumps({"what": what, **more}) + "\n")


def engine(folder):
    """A process in a session of its own, and what it starts: one in its session that wipes its environment, as a title
    does, and one that is nobody's child any more, in a session of its own too."""
    os.setsid()
    note(folder, "engine", pid=os.getpid())
    if os.fork() == 0:
        wipe()
        note(folder, "titled", pid=os.getpid())
        time.sleep(1000)
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while "titled" not in (Path(folder) / "diary").read_text():
            time.sleep(0.01)
        note(folder, "helper", pid=os.getpid())
    time.sleep(1000)


def wipe():
    """Write zeros over the environment as others see it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start, env_end
    ctypes.memset(start, 0, end - start)


@hookimpl
def limbeck_teachers():
    """Two teachers."""
    yield TeacherPlugin(name="slow", config=SlowConfig, factory=Slow, summary="A long start.")
    yield TeacherPlugin(name="nursery", config=NurseryConfig, factory=Nursery, summary="Trouble to order.")
