"""What commands print: people's text, JSON for machines, and errors; and a stdout that holds nothing else.

With ``--json`` a command's stdout is JSON only: whatever plugins or libraries print meanwhile goes to stderr, also when
they write to file descriptor 1.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem

if TYPE_CHECKING:
    from rich.console import Console

_machine: IO[str] | None = None  # the real stdout, while a command's own noise goes to stderr


@contextmanager
def machine_output() -> Iterator[None]:
    """Keep stdout for :func:`emit_json`: everything else that is written there goes to stderr. May be nested."""
    global _machine
    if _machine is not None:
        yield
        return
    sys.stdout.flush()
    before = sys.stdout
    _machine = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
        _machine.flush()
    finally:
        sys.stdout = before
        with suppress(OSError):  # a C library may have buffered more; it too belongs to stderr
            os.fsync(1)
        os.dup2(_machine.fileno(), 1)
        broken, _machine = _machine, None
        with suppress(OSError):
            broken.close()


def emit_json(value: Any, *, line: bool = False) -> None:
    """Print one JSON value on stdout, indented, or on one line and at once. Raises BrokenPipeError.

    NaN and infinities, which JSON lacks, become the strings "NaN", "Infinity" and "-Infinity".
    """
    stream = _machine or sys.stdout
    text = json.dumps(_finite(value), ensure_ascii=False, indent=None if line else 2, allow_nan=False)
    stream.write(text + "\n")
    stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def console(*, stderr: bool = False) -> Console:
    """A rich console: as wide as the text needs, and without a code of colour, where it is not a terminal."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would leave with code 1
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return QuietConsole(
        file=stream,
        force_terminal=terminal,
        no_color=not terminal or None,
        width=None if terminal else 200,
        highlight=False,
        soft_wrap=not terminal,
    )


def error_json(error: LimbeckError) -> dict[str, Any]:
    """`{"error": {"reason", "message", "problems": […]}}`; what is unknown of a problem is left out."""
    problems = [_problem_json(problem) for problem in error.problems]
    return {"error": {"reason": str(error.reason), "message": error.message, "problems": problems}}


def _problem_json(problem: Problem) -> dict[str, Any]:
    names = ("message", "file", "line", "column", "field", "hint")
    return {name: value for name in names if (value := getattr(problem, name)) is not None}


def show_error(error: LimbeckError, *, as_json: bool = False) -> None:
    """Tell an error: to people on stderr, to machines on stdout."""
    if as_json:
        emit_json(error_json(error))
        return
    import click

    click.echo(f"{click.style('error', fg='red', bold=True)}: {error.message} [{error.reason}]", err=True)
    for problem in error.problems:
        click.echo(f"  {problem}", err=True)
