"""What `limbeck serve` is told, checked as a whole before anything starts."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.client.tls import authorities_fault, certificate_fault
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting.borders import Borders
from limbeck.hosting.limits import RunLimits
from limbeck.plugins import Registry
from limbeck.recipe import Bound
from limbeck.recipe.teacher import load_teacher
from limbeck.v1 import teacher_service_pb2 as pb

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LISTEN = "127.0.0.1:7411"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may have under way over all its calls; limbeck.v1.Limits says what each counts."""

    tokens_in_flight: int = 262_144
    answer_bytes: int = 256 << 20
    streams: int = 64

    def message(self) -> pb.Limits:
        """As clients see it."""
        return pb.Limits(tokens_in_flight=self.tokens_in_flight, answer_bytes=self.answer_bytes, streams=self.streams)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The first three are promises of limbeck.v1: another value is for tests."""

    alive: float = 15.0  # after so long without a message the server says that it is there
    silent: float = 80.0  # after so long without a message a client is taken for gone
    idle: float = 600.0  # so long a replay waits for new signals
    poll: float = 0.5  # between two looks at what changes on its own: workers, growing datasets


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A server. `teachers` by name; `signals`: run folders by the name of their dataset.

    `workspace`: the folder of its runs, None for a server without; `read`: folders that recipes may read besides.
    `insecure` allows an address that others reach without TLS. `allow_full` lets clients ask for whole rows. `faults`:
    what was wrong with what it was read from; told with the server's own problems.
    """

    teachers: Mapping[str, Bound] = field(default_factory=dict)
    signals: Mapping[str, Path] = field(default_factory=dict)
    workspace: Path | None = None
    read: Sequence[Path] = ()
    runs: RunLimits = field(default_factory=RunLimits)
    listen: str = LISTEN
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False
    tokens: Path | None = None
    metrics: str | None = None
    allow_full: bool = False
    limits: Limits = Limits()
    timing: Timing = Timing()
    faults: tuple[Problem, ...] = ()

    @property
    def address(self) -> Address:
        """Where the server listens. Raises SERVER_INVALID."""
        return parse_address(self.listen, "--listen")

    @property
    def tls(self) -> bool:
        """Whether calls are encrypted."""
        return self.tls_cert is not None

    def problems(self) -> list[Problem]:
        """Every problem that can be told of the values alone."""
        return [*self.faults, *self._names(), *self._runs(), *self._addresses(), *self._tls()]

    def _names(self) -> Iterator[Problem]:
        if not self.teachers and not self.signals and self.workspace is None and not self.faults:
            hint = "give --teacher NAME=FILE.yaml, --signals NAME=RUN_FOLDER or --workspace FOLDER"
            yield Problem("there is nothing to serve: no teacher, no signals and no runs", hint=hint)
        for option, names in (("--teacher", self.teachers), ("--signals", self.signals)):
            for name in names:
                if not NAME.fullmatch(name):
                    allowed = "1 to 64 letters, digits, '.', '_' and '-', a letter or a digit first"
                    yield Problem(f"the name {name!r} is not {allowed}", field=option)

    def _runs(self) -> Iterator[Problem]:
        if self.workspace is None:
            if self.read:
                yield Problem("is for the recipes of runs", field="--read", hint="give --workspace too")
            return
        yield from _workspace(self.workspace)
        for folder in self.read:
            if not folder.is_dir():
                yield Problem("there is no such folder", file=str(folder), field="--read")
        borders = Borders(self.workspace, self.read)
        for option, path in (("--tls-key", self.tls_key), ("--tokens", self.tokens)):
            if path is not None and borders.reaches(Path(os.path.realpath(path))):
                hint = "move it out of --workspace and --read"
                yield Problem("lies where a recipe from the network may read", str(path), field=option, hint=hint)
        for option, value, least in (
            ("--max-runs", self.runs.max_runs, 1),
            ("--keep-runs", self.runs.keep_runs, 0),
            ("--keep-gib", self.runs.keep_gib, 0),
        ):
            if not least <= value < math.inf:
                yield Problem(f"is {value:g}, it must be at least {least}", field=option)

    def _addresses(self) -> Iterator[Problem]:
        for option, text in (("--listen", self.listen), ("--metrics", self.metrics)):
            if text is None:
                continue
            try:
                address = parse_address(text, option)
            except LimbeckError as error:
                yield from error.problems
                continue
            if option == "--listen" and not (address.loopback or self.tls or self.insecure):
                hint = "give --tls-cert and --tls-key, or --insecure where the network itself is safe"
                yield Problem(
                    f"{address.host} can be reached from other machines, without TLS", field=option, hint=hint
                )

    def _tls(self) -> Iterator[Problem]:
        given = {"--tls-cert": self.tls_cert, "--tls-key": self.tls_key, "--client-ca": self.client_ca}
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "--tls-cert" if self.tls_cert is None else "--tls-key"
            yield Problem("is missing: certificate and key go together", field=missing)
        elif self.client_ca is not None and self.tls_cert is None:
            yield Problem("clients' certificates need TLS", field="--client-ca", hint="give --tls-cert and --tls-key")
        absent = False
        for option, path in given.items():
            if path is not None and not path.is_file():
                absent = True
                yield Problem("there is no such file", file=str(path), field=option)
        if absent or self.tls_cert is None or self.tls_key is None:
            return
        if (fault := certificate_fault(self.tls_cert, self.tls_key)) is not None:
            hint = "both are PEM, the key unencrypted"
            message = f"certificate and key cannot be used: {fault}"
            yield Problem(message, file=str(self.tls_cert), field="--tls-cert", hint=hint)
        if self.client_ca is not None and (fault := authorities_fault(self.client_ca)) is not None:
            yield Problem(f"cannot be used: {fault}", file=str(self.client_ca), field="--client-ca", hint="it is PEM")


def _workspace(folder: Path) -> Iterator[Problem]:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        what = "leads nowhere" if place.is_symlink() and not place.exists() else "is no folder"
        yield Problem(what, file=str(place), field="--workspace")
    elif not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        yield Problem("cannot be written to", file=str(place), field="--workspace")
    elif Path(os.path.realpath(folder)) == Path("/"):  # one that is not there yet is made
        yield Problem("is all of this machine, which no recipe from the network may have", field="--workspace")


def read_limits(
    workspace: Path | None, max_runs: int | None, keep_runs: int | None, keep_gib: float | None
) -> tuple[RunLimits, list[Problem]]:
    """How much runs may take, defaults for None; a problem for each that is given where there are no runs."""
    asked: dict[str, Any] = {"max_runs": max_runs, "keep_runs": keep_runs, "keep_gib": keep_gib}
    given = {name: value for name, value in asked.items() if value is not None}
    problems = []
    if workspace is None:
        options = [f"--{name.replace('_', '-')}" for name in given]
        problems = [Problem("is for runs", field=option, hint="give --workspace too") for option in options]
    return replace(RunLimits(), **given), problems


def read_teachers(given: Sequence[str], registry: Registry) -> tuple[dict[str, Bound], list[Problem]]:
    """Teachers from NAME=FILE texts, and every problem of the texts and the files."""
    files, problems = _named(given, "--teacher", "FILE.yaml")
    teachers = {}
    for name, file in files.items():
        try:
            teachers[name] = load_teacher(Path(file), registry)
        except LimbeckError as error:
            problems += error.problems or [Problem(error.message, file=file)]
    return teachers, problems


def read_signals(given: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Run folders from NAME=RUN_FOLDER texts, and every problem of the texts."""
    folders, problems = _named(given, "--signals", "RUN_FOLDER")
    return {name: Path(folder) for name, folder in folders.items()}, problems


def _named(given: Sequence[str], option: str, what: str) -> tuple[dict[str, str], list[Problem]]:
    found: dict[str, str] = {}
    problems = []
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            problems.append(Problem(f"{text!r} is not NAME={what}", field=option))
        elif name in found:
            problems.append(Problem(f"the name {name!r} is given twice", field=option))
        else:
            found[name] = value
    return found, problems


def parse_address(text: str, option: str) -> Address:
    """HOST:PORT or [IPV6]:PORT. Raises SERVER_INVALID."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or (":" in host) != bracketed:
        problem = Problem(f"{text!r} is not HOST:PORT", field=option, hint=f"for example {LISTEN}, or [::1]:7411")
    elif not (port.isascii() and port.isdigit() and int(port) <= 65535):
        problem = Problem(f"port {port!r} is not a number from 0 (any free one) to 65535", field=option)
    else:
        return Address(host, int(port))
    raise LimbeckError(Reason.SERVER_INVALID, problems=[problem])
