"""Stage prepare: rows become token sequences with their trained tokens marked, split into train and holdout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.errors import counted
from limbeck.files import write_atomic
from limbeck.runs.contents import Contents, row_files
from limbeck.runs.generate import ROWS
from limbeck.runs.stage import Figures, Run

TRAIN, HOLDOUT, QUARANTINE = "sequences/train.arrow", "sequences/holdout.arrow", "sequences/quarantine.jsonl"
NOTES = 5  # notes on rows that are told one by one


class Prepare:
    """Reads rows/rows.jsonl where a generator made the rows, else the files of `data.path`."""

    name, version = "prepare", 1
    outputs: tuple[str, ...] = ("sequences",)
    work: tuple[str, ...] = ()
    after: tuple[str, ...] = ("generate",)

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        others = {"path", "generator", "smoke_rows", "chat_template", "bos"}  # the latter two: see contents.tokenizer
        rules = contents.recipe.data.model_dump(mode="json", exclude=others)
        if rules["rationale"] is None:
            del rules["rationale"]  # sequences that were prepared before there was such a rule stay good
        return {"data": rules, "tokenizer": contents.tokenizer, "rows": contents.rows}

    def run(self, run: Run) -> Figures:
        from limbeck.data import prepare, read_rows, write_sequences

        paths = [run.path / ROWS] if run.recipe.generator is not None else row_files(run.recipe)
        rows, problems = read_rows(paths)
        with run.progress("rows", len(rows)) as advance:
            prepared = prepare(rows, problems, run.contents.loaded_tokenizer, run.recipe.data)
            advance(len(rows))
        (run.path / "sequences").mkdir(exist_ok=True)
        write_sequences(run.path / HOLDOUT, prepared.holdout)
        write_sequences(run.path / TRAIN, prepared.train)
        if prepared.bad:
            write_quarantine(run.path / QUARANTINE, prepared.bad)
            count = int(prepared.figures["quarantined"])
            message = f"{counted(count, 'rows')} set aside; {QUARANTINE} says which and why"
            run.log.warn("ROWS_QUARANTINED", message)
        for note in prepared.notes[:NOTES]:
            run.log.warn("ROWS_NOTED", str(note))
        if len(prepared.notes) > NOTES:
            message = f"{len(prepared.notes) - NOTES:,} more of such; limbeck preview {run.recipe.path.name} lists them"
            run.log.warn("ROWS_NOTED", message)
        return {name: float(value) for name, value in prepared.figures.items()}


def write_quarantine(path: Path, problems: list[Any]) -> None:
    """One JSON object a line for each row set aside: its file, line, field and fault."""
    import json

    lines = [{name: value for name, value in asdict(problem).items() if value is not None} for problem in problems]
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
