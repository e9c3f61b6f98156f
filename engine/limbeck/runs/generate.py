"""Stage generate: the generator's samples become rows/rows.jsonl, rejected ones rows/rejected.jsonl."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason, working
from limbeck.files import AppendLog, read_json_lines, sha256_file
from limbeck.interfaces import Generator, Sample, TextModel
from limbeck.runs.contents import Contents
from limbeck.runs.gate import SmokeGate, reason_of
from limbeck.runs.said import SAID, SaidLog, said_logprobs
from limbeck.runs.samples import SAMPLES, of_row, sample
from limbeck.runs.spending import Spending
from limbeck.runs.stage import PROGRESS_SECONDS, Figures, Run, in_bursts

ROWS, REJECTED = "rows/rows.jsonl", "rows/rejected.jsonl"
ANSWERS = "answers"  # of teachers that are asked with text, each in a folder of its own; no change sets them aside


class Generate:
    """Asks the generator for the samples that are not there yet: each position is in exactly one of the two files."""

    name, version = "generate", 1
    outputs: tuple[str, ...] = ("rows",)
    work: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        bound = contents.recipe.generator
        assert bound is not None, "there is no stage generate without a generator"
        generator: Generator = bound.make()
        found: dict[str, Any] = {
            "generator": contents.plugin(bound),
            "files": [sha256_file(Path(f)) for f in generator.inputs()],
        }
        if not generator.needs_teacher:
            return found
        found["teacher"] = contents.teacher
        logprobs = said_logprobs(contents.recipe, contents.text_teacher)
        if contents.text_teacher is None or logprobs:  # else another tokenizer is no reason to pay again
            found["tokenizer"] = contents.tokenizer
        if logprobs:
            found["logprobs"] = logprobs
        return found

    def run(self, run: Run) -> Figures:
        assert run.recipe.generator is not None
        generator: Generator = run.recipe.generator.make()
        (run.path / "rows").mkdir(exist_ok=True)
        with ExitStack() as stack:
            rows, rejected = (stack.enter_context(AppendLog(run.path / name)) for name in (ROWS, REJECTED))
            _tell_mended(run, rows.repaired, rejected.repaired)
            writer = _Writer(run, generator, rows, rejected, _count(run.path))
            writer.require()
            _give_model(writer, stack)
            with (
                run.progress("rows", generator.count(), writer.done, writer.tell) as advance,
                working(f"in the generator {run.recipe.generator.name}"),
            ):
                run.desk.ask(writer.write(in_bursts(advance)))
        tally = writer.tally
        if tally.rows == 0:
            count = tally.rejected.total()
            hint = f"see {run.path / REJECTED} for what was rejected and why" if count else "the generator has no rows"
            problem = Problem(f"0 of {count} samples are usable", field=run.recipe.generator.field, hint=hint)
            raise LimbeckError(Reason.GENERATION_FAILED, problems=[problem])
        return tally.figures | (writer.spending.figures if writer.spending else {})


@dataclass
class _Tally:
    """What the samples of all attempts are."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    retokenized: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line of the two files."""
        from limbeck.data import retokenized

        if "rejected" in line:
            self.rejected[reason_of(str(line["rejected"]))] += 1
            return
        self.rows += 1
        self.truncated += line.get("finish_reason") == "length"
        self.retokenized += retokenized(line)

    @property
    def figures(self) -> Figures:
        """Figures of the stage."""
        found: Figures = {"rows": self.rows, "rejected": self.rejected.total()}
        found |= {f"rejected.{reason}": count for reason, count in sorted(self.rejected.items())}
        return {**found, "truncated": self.truncated, "retokenized": self.retokenized}


def _count(folder: Path) -> _Tally:
    tally = _Tally()
    for name in (ROWS, REJECTED):
        for _, line in read_json_lines(folder / name):
            tally.add(line)
    return tally


@dataclass
class _Writer:
    """Appends each sample as it comes. What was appended before is not asked for again."""

    run: Run
    generator: Generator
    rows: AppendLog
    rejected: AppendLog
    tally: _Tally
    model: TextModel | None = None
    said: SaidLog | None = None
    spending: Spending | None = None  # of a teacher that is paid for

    @property
    def done(self) -> int:
        """Samples in the two files."""
        return self.rows.count + self.rejected.count

    def require(self) -> None:
        """Stop as soon as too few samples can become usable. A generator that knows no count is asked at the end."""
        count = self.generator.count()
        if count is not None:
            self.generator.require(self.tally.rows, self.tally.rejected, max(0, count - self.done))

    def tell(self) -> None:
        """Say what was spent, and what the rest will take."""
        if self.spending is not None:
            count = self.generator.count()
            self.spending.tell(None if count is None else max(0, count - self.done))

    def _show(self, row: Mapping[str, Any]) -> None:
        """Tell the first texts of a teacher."""
        if self.model is not None and self.tally.rows < SAMPLES and (texts := of_row(row)) is not None:
            self.run.log.emit(sample("teacher", *texts))

    async def write(self, advance: Callable[[int], None]) -> None:
        """Write what is left. Raises Interrupted where a signal came, with all on disk that was answered."""
        try:
            async with AsyncExitStack() as stack:
                if self.spending is not None:
                    await stack.enter_async_context(self._watched())
                samples = await stack.enter_async_context(aclosing(self.generator.samples(self.done, self.model)))
                async for sample in samples:
                    self._append(sample)
                    advance(1)
                    if self.run.stop() is not None:
                        break
                    self.require()
        except asyncio.CancelledError:
            if self.run.stop() is None:
                raise
        finally:
            for log in (self.said, self.rows, self.rejected):
                if log is not None:
                    log.sync()
            self.tell()
        self.run.check_stop()
        self.generator.require(self.tally.rows, self.tally.rejected, 0)

    def _append(self, sample: Sample) -> None:
        assert sample.position == self.done, "samples come in order of position"
        line = {**sample.row, "lineage": {"position": sample.position, **sample.lineage}}
        if self.said is not None and sample.said is not None and sample.rejected is None:
            self.said.append(sample.position, sample.said)
        log = self.rows if sample.rejected is None else self.rejected
        if sample.rejected is not None:
            line["rejected"] = sample.rejected
        log.append(line, sync=False)
        if log is self.rows:
            self._show(line)
        self.tally.add(line)

    @asynccontextmanager
    async def _watched(self) -> AsyncGenerator[None, None]:
        """Tell of what is spent, and listen for signals, while the body works: an answer may be long in coming."""
        work = asyncio.current_task()
        assert work is not None, "the desk runs a task"
        watch = asyncio.create_task(self._watch(work))
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _watch(self, work: asyncio.Task[Any]) -> None:
        while self.run.stop() is None:
            await asyncio.sleep(PROGRESS_SECONDS)
            if self.spending is not None and self.spending.silent_for() >= PROGRESS_SECONDS:
                self.tell()
        work.cancel()


def _give_model(writer: _Writer, stack: ExitStack) -> None:
    """Give the writer the model that the generator asks, if it does, and what counts its cost, if it has one."""
    from limbeck.runs.label import checked_teacher
    from limbeck.teachers.answers import Answers
    from limbeck.teachers.text import ApiText, TeacherText

    run, generator = writer.run, writer.generator
    if not generator.needs_teacher:
        return
    tokenizer = run.contents.loaded_tokenizer
    text = run.contents.text_teacher
    if text is None:
        teacher = checked_teacher(run, tokenizer)
        logprobs = said_logprobs(run.recipe, teacher.info())
        writer.model = TeacherText(teacher, tokenizer, logprobs)
    else:
        folder = run.path / ANSWERS / text.digest[:16]
        answers = stack.enter_context(Answers(folder / "answers.jsonl", again=writer.done == 0))
        _tell_mended(run, answers.repaired)
        logprobs = said_logprobs(run.recipe, text)
        spending = writer.spending = Spending(run.log, run.desk.text_teacher, folder / "usage.json", answers.tokens)
        model = ApiText(run.desk.text_teacher, answers, tokenizer, logprobs)
        writer.model = SmokeGate(model, generator, run.recipe.data, tokenizer, lambda: spending.text, logprobs)
    if logprobs:
        writer.said = stack.enter_context(SaidLog(run.path / SAID))
        _tell_mended(run, writer.said.repaired)


def _tell_mended(run: Run, *repaired: str | None) -> None:
    for message in repaired:
        if message:
            run.log.warn("LOG_MENDED", message)
