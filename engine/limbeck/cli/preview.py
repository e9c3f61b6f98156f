"""`limbeck preview`: rows as the student reads them, the trained tokens marked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from limbeck.data import Prepared, Tokenizer, TokenSequence
    from limbeck.data.show import Part
    from limbeck.errors import Problem
    from limbeck.recipe import DataSpec

_ROW_FILES = (".jsonl", ".ndjson", ".json")


@click.command()
@click.argument("path", metavar="RECIPE_OR_JSONL", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="FOLDER", help="Folder with the tokenizer; needed for a .jsonl file.")
@click.option("--chat-template", type=click.Path(path_type=Path), help="A Jinja file in the place of the template.")
@click.option("--max-length", type=click.IntRange(min=2), help="Most tokens of a row; default the recipe's, or 1024.")
@click.option("--rows", "count", default=5, show_default=True, type=click.IntRange(min=0), help="Sequences to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    path: Path, tokenizer: str | None, chat_template: Path | None, max_length: int | None, count: int, as_json: bool
) -> None:
    """Show rows as the student reads them, with the tokens that are trained marked.

    Takes a recipe, or a file of rows with --tokenizer. Trained tokens are underlined on a terminal and stand between
    ⟦ and ⟧ elsewhere; those that weigh more or less than others are yellow there, and begin with their weight here
    (⟦0.3×…⟧). A control token that is only spelled in a text has a backslash before it. Bad rows are listed
    with their reasons; where there are any, and they are not to be set aside, the exit code is 2.
    """
    from limbeck.cli.output import emit_json, error_json
    from limbeck.data import read_rows
    from limbeck.errors import LimbeckError, Reason

    files, spec, loaded = _inputs(path, tokenizer, chat_template, max_length)
    rows, problems = read_rows(files)
    prepared, problems = _prepare(rows, problems, loaded, spec)
    sequences = _in_order(prepared, files)[:count]
    error = LimbeckError(Reason.DATA_INVALID, problems=problems)
    failed = bool(problems) and (spec.on_bad_row == "error" or not sequences)
    if as_json:
        emit_json(_as_json(loaded, prepared, problems, sequences) | (error_json(error) if failed else {}))
    else:
        _print(loaded, prepared, problems, sequences)
    if failed:
        sys.exit(error.exit_code)


def _inputs(
    path: Path, tokenizer: str | None, chat_template: Path | None, max_length: int | None
) -> tuple[list[Path], DataSpec, Tokenizer]:
    """The files of rows, the rules, the tokenizer."""
    from limbeck.data import Tokenizer
    from limbeck.errors import LimbeckError, Problem, Reason
    from limbeck.recipe import DataSpec
    from limbeck.teachers.folder import model_folder

    changed: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    if path.suffix.lower() in _ROW_FILES or path.is_dir():
        if tokenizer is None:
            hint = f"limbeck preview {path} --tokenizer FOLDER"
            raise LimbeckError(
                Reason.DATA_INVALID, "A file of rows needs --tokenizer.", [Problem(hint, file=str(path))]
            )
        files, spec, folder = [path], DataSpec(path=str(path), holdout=0, **changed), model_folder(tokenizer)
    else:
        from limbeck.plugins import load_plugins
        from limbeck.recipe import load_recipe
        from limbeck.runs.contents import Contents, row_files
        from limbeck.runs.generate import ROWS

        recipe = load_recipe(path, load_plugins())
        files, spec = row_files(recipe), recipe.data.model_copy(update=changed)
        if recipe.generator is not None:
            files = [recipe.output / ROWS]
            if not files[0].exists():
                hint = f"limbeck run {path} makes them"
                problem = Problem("a generator makes the rows, and has not yet", file=str(files[0]), hint=hint)
                raise LimbeckError(Reason.DATA_INVALID, "There are no rows to show yet.", [problem])
        own = model_folder(tokenizer) if tokenizer is not None else Contents(recipe).tokenizer_folder
        if own is None:
            hint = "give --tokenizer FOLDER"
            problem = Problem("no tokenizer follows from the recipe", file=str(path), field="student", hint=hint)
            raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
        folder = own
    template = chat_template or (Path(spec.chat_template) if spec.chat_template else None)
    return files, spec, Tokenizer.load(folder, bos=spec.bos, chat_template=template)


def _prepare(
    rows: Any, problems: list[Problem], tokenizer: Tokenizer, spec: DataSpec
) -> tuple[Prepared, list[Problem]]:
    """What can be shown, whatever the rows are like, and everything that is wrong with them."""
    from limbeck.data import Prepared, prepare
    from limbeck.errors import LimbeckError

    try:
        prepared = prepare(rows, problems, tokenizer, spec.model_copy(update={"on_bad_row": "quarantine"}))
    except LimbeckError as error:
        lines = {(problem.file, problem.line) for problem in error.problems if problem.line}
        return Prepared([], [], figures={"rows": float(len(lines)), "bad_rows": float(len(lines))}), [*error.problems]
    return prepared, prepared.bad


def _in_order(prepared: Prepared, files: list[Path]) -> list[tuple[str, TokenSequence]]:
    """(split, sequence) in the order of the files."""
    found = [("train", item) for item in prepared.train] + [("holdout", item) for item in prepared.holdout]
    sources: dict[str, int] = {}
    for name in sorted({item.source for _, item in found}):
        place = next((i for i, file in enumerate(files) if name.startswith(str(file))), len(files))
        sources[name] = place
    return sorted(found, key=lambda pair: (sources[pair[1].source], pair[1].source, pair[1].line))


def _as_json(
    tokenizer: Tokenizer, prepared: Prepared, problems: list[Problem], sequences: list[tuple[str, TokenSequence]]
) -> dict[str, Any]:
    from dataclasses import asdict

    from limbeck.data.show import bracketed, parts, trained_texts

    shown = []
    for split, sequence in sequences:
        found = parts(tokenizer, sequence)
        shown.append(
            {
                "file": sequence.source,
                "line": sequence.line,
                "split": split,
                "pair": sequence.pair,
                "chosen": sequence.chosen,
                "ids": sequence.ids.tolist(),
                "trained": sequence.trained.tolist(),
                **({} if sequence.weights is None else {"weights": sequence.weights.tolist()}),
                "trained_text": trained_texts(tokenizer, sequence),
                "text": bracketed(found),
            }
        )
    return {
        "tokenizer": {
            "folder": str(tokenizer.folder),
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_ids": list(tokenizer.eos_ids),
            "digest": tokenizer.digest,
            "template_digest": tokenizer.template_digest,
        },
        "figures": prepared.figures,
        "sequences": shown,
        "problems": [_filled(asdict(problem)) for problem in problems],
        "notes": [_filled(asdict(note)) for note in prepared.notes],
    }


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _print(
    tokenizer: Tokenizer, prepared: Prepared, problems: list[Problem], sequences: list[tuple[str, TokenSequence]]
) -> None:
    from limbeck.data.show import bracketed, parts
    from limbeck.errors import counted

    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for split, sequence in sequences:
        kind = "" if sequence.pair < 0 else (", chosen" if sequence.chosen else ", rejected")
        trained = len(sequence.kept)
        head = f"── {sequence.source}:{sequence.line} ({split}{kind}; {len(sequence.ids)} tokens, {trained} trained)"
        found = parts(tokenizer, sequence)
        click.echo(f"{head}\n{_styled(found) if coloured else bracketed(found)}\n")
    figures = prepared.figures
    total, bad = int(figures["rows"]), int(figures["bad_rows"])
    click.echo(f"{total - bad:,} of {counted(total, 'rows')} {'is' if total == 1 else 'are'} valid")
    if prepared.train or prepared.holdout:
        click.echo(
            f"{counted(int(figures['train_sequences']), 'sequences')} to train on, "
            f"{figures['holdout_sequences']:,.0f} held out; "
            f"{figures['trained_tokens']:,.0f} of {counted(int(figures['tokens']), 'tokens')} trained; "
            f"{counted(int(figures['truncated']), 'rows')} cut "
            f"({counted(int(figures['lost_tokens']), 'trained tokens')} lost)"
        )
    for title, items in (("Bad rows", problems), ("Notes", prepared.notes)):
        if items:
            click.echo("\n".join([f"{title}:", *(f"  {item}" for item in items)]))


def _styled(found: list[Part]) -> str:
    return "".join(click.style(part.text, fg=_colour(part), underline=part.trained) for part in found)


def _colour(part: Part) -> str | None:
    if part.control:
        return "magenta"
    return None if not part.trained else "green" if part.weight == 1 else "yellow"
