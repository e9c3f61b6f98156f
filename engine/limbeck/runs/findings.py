"""What a pre-flight found, gathered from checks that raise and checks that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason

if TYPE_CHECKING:
    from limbeck.recipe import Bound


@dataclass
class Preflight:
    """What the pre-flight found. `facts` is JSON; `problems` stop a run, each with its reason; `warnings` do not.

    `rows`: warnings of rows, which a run tells of when it prepares them. `told`: files that are not there, of which
    nothing more is to be said.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[Reason, Problem]] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    rows: list[Problem] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @contextmanager
    def collect(self, part: str, *, inside: bool = False) -> Iterator[None]:
        """Keep what is raised, once, and go on with the next check. `part` is the field of what names none.

        With `inside`, fields that are named are those of `part`. What has a line is about a row, and keeps its field.
        """
        try:
            yield
        except LimbeckError as error:
            known = {(said.file, said.message) for _, said in self.problems}
            for problem in error.problems or (Problem(error.message),):
                if (problem.file, problem.message) in known or problem.file in self.told:
                    continue
                if problem.line is None:
                    name = f"{part}.{problem.field}" if inside and problem.field else problem.field or part or None
                    problem = replace(problem, field=name)
                self.problems.append((error.reason, problem))

    def refuse(self, reason: Reason, message: str, **more: Any) -> None:
        """Add a problem."""
        self.problems.append((reason, Problem(message, **more)))

    def put_first(self, reason: Reason, problems: Sequence[Problem]) -> None:
        """Add problems of an earlier look, before the others and each once."""
        self.problems = list(dict.fromkeys([*((reason, problem) for problem in problems), *self.problems]))

    def raise_problems(self) -> None:
        """Raise everything found as one error, with the reason of the first."""
        if not self.problems:
            return
        reasons = list(dict.fromkeys(reason for reason, _ in self.problems))
        count = len(self.problems)
        message = f"The run cannot start: {count} problem{'s' if count > 1 else ''}."
        if len(reasons) == 1:
            message = LimbeckError(reasons[0]).message
        raise LimbeckError(reasons[0], message, [problem for _, problem in self.problems])


@contextmanager
def told_as_fault(bound: Bound) -> Iterator[None]:
    """What a plugin raises that is no error of Limbeck's becomes PLUGIN_INVALID with its distribution."""
    try:
        yield
    except (LimbeckError, ModuleNotFoundError):  # the latter tells of an extra that is not installed
        raise
    except Exception as error:
        owner = f"{bound.entry.distribution} {bound.entry.version}"
        message = f"{bound.name!r} ({owner}) raised {type(error).__name__}: {error}"
        raise LimbeckError(Reason.PLUGIN_INVALID, problems=[Problem(message, field=bound.field)]) from error
