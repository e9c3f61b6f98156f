"""Stage generate: the generator's samples become rows/rows.jsonl, rejected ones rows/rejected.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason, working
from limbeck.files import AppendLog, read_json_lines, sha256_file
from limbeck.interfaces import Generator, Sample, TextModel
from limbeck.runs.contents import Contents
from limbeck.runs.stage import Figures, Run, in_bursts

ROWS, REJECTED = "rows/rows.jsonl", "rows/rejected.jsonl"


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
        if generator.needs_teacher:
            found |= {"teacher": contents.teacher, "tokenizer": contents.tokenizer}
        return found

    def run(self, run: Run) -> Figures:
        from limbeck.data import retokenized

        assert run.recipe.generator is not None
        generator: Generator = run.recipe.generator.make()
        (run.path / "rows").mkdir(exist_ok=True)
        with AppendLog(run.path / ROWS) as rows, AppendLog(run.path / REJECTED) as rejected:
            for log in (rows, rejected):
                if log.repaired:
                    run.log.warn("LOG_MENDED", log.repaired)
            model = _text_model(run) if generator.needs_teacher else None
            with (
                run.progress("rows", generator.count(), rows.count + rejected.count) as advance,
                working(f"in the generator {run.recipe.generator.name}"),
            ):
                run.desk.ask(_write(run, generator, model, rows, rejected, in_bursts(advance)))
            made, refused = rows.count, rejected.count
        if made == 0:
            hint = (
                f"see {run.path / REJECTED} for what was rejected and why" if refused else "the generator has no rows"
            )
            problem = Problem(f"0 of {refused} samples are usable", field=run.recipe.generator.field, hint=hint)
            raise LimbeckError(Reason.GENERATION_FAILED, problems=[problem])
        generator.require(made, refused)  # while it worked it saw the samples of this attempt only
        others = sum(retokenized(row) for _, row in read_json_lines(run.path / ROWS))
        return {"rows": made, "rejected": refused, "retokenized": others}


async def _write(
    run: Run,
    generator: Generator,
    model: TextModel | None,
    rows: AppendLog,
    rejected: AppendLog,
    advance: Callable[[int], None],
) -> None:
    """Append each sample as it comes. What was appended before is not asked for again."""
    start = rows.count + rejected.count
    async with aclosing(generator.samples(start, model)) as samples:
        async for sample in samples:
            assert sample.position == rows.count + rejected.count, "samples come in order of position"
            log = rows if sample.rejected is None else rejected
            log.append(_line(sample), sync=False)
            advance(1)
            if run.stop() is not None:
                break
    rows.sync()
    rejected.sync()
    run.check_stop()


def _line(sample: Sample) -> dict[str, Any]:
    line = {**sample.row, "lineage": {"position": sample.position, **sample.lineage}}
    return line if sample.rejected is None else {**line, "rejected": sample.rejected}


def _text_model(run: Run) -> TextModel:
    """The teacher with its tokenizer, checked once, as a generator sees it."""
    from limbeck.runs.label import checked_teacher
    from limbeck.teachers.text import TeacherText

    tokenizer = run.contents.loaded_tokenizer
    return TeacherText(checked_teacher(run, tokenizer), tokenizer)
