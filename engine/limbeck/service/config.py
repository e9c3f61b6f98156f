"""What `limbeck serve` is told, checked as a whole before anything starts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from limbeck.client.tls import authorities_fault, certificate_fault
from limbeck.errors import LimbeckError, Problem, Reason
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
    silent: float = 90.0  # after so long without a message a client is taken for gone
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

    `insecure` allows an address that others reach without TLS. `allow_full` lets clients ask for whole rows. `faults`:
    what was wrong with what it was read from; told with the server's own problems.
    """

    teachers: Mapping[str, Bound] = field(default_factory=dict)
    signals: Mapping[str, Path] = field(default_factory=dict)
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
        return [*self.faults, *self._names(), *self._addresses(), *self._tls()]

    def _names(self) -> Iterator[Problem]:
        if not self.teachers and not self.signals and not self.faults:
            hint = "give --teacher NAME=FILE.yaml or --signals NAME=RUN_FOLDER"
            yield Problem("there is nothing to serve: no teacher and no signals", hint=hint)
        for option, names in (("--teacher", self.teachers), ("--signals", self.signals)):
            for name in names:
                if not NAME.fullmatch(name):
                    allowed = "1 to 64 letters, digits, '.', '_' and '-', a letter or a digit first"
                    yield Problem(f"the name {name!r} is not {allowed}", field=option)

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
