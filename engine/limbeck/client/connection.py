"""How a server is reached: addresses, TLS, token, options of the channel. Checked before anything is sent."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.client.tls import authorities_fault, certificate_fault
from limbeck.errors import LimbeckError, Problem, Reason

DEFAULT_PORT = 7411
_TOKEN = re.compile(r"[!-~]+")  # what a header can carry, without blanks

Path_ = str | Path


@dataclass(frozen=True, slots=True)
class Connection:
    """Checked settings of a connection; made by :meth:`of`.

    `target` as gRPC takes it. `token` is read from `token_file` anew for each call, so that a changed one counts.
    """

    addresses: tuple[str, ...]
    target: str
    loopback: bool
    secure: bool
    token: str | None = field(repr=False)
    token_file: Path | None = None
    tls: tuple[bytes | None, bytes | None, bytes | None] = field(default=(None, None, None), repr=False)

    @classmethod
    def of(
        cls,
        address: str | Sequence[str],
        *,
        token: str | None = None,
        token_file: Path_ | None = None,
        tls_ca: Path_ | None = None,
        tls_cert: Path_ | None = None,
        tls_key: Path_ | None = None,
        insecure: bool = False,
    ) -> Connection:
        """Check everything that can be checked without connecting. Raises REQUEST_INVALID with every problem.

        `address`: ``host:port``, several of them for replicas, which gRPC uses in turn. TLS is used unless all of them
        are of this machine or `insecure` says so; `tls_ca` (PEM) replaces the usual authorities, `tls_cert` and
        `tls_key` are the client's own. `token` or `token_file`, in UTF-8, with or without a byte order mark and a final
        newline.
        """
        problems: list[Problem] = []
        places = [_split(one, problems) for one in ([address] if isinstance(address, str) else address)]
        if not places:
            problems.append(Problem("no address is given", field="address", hint="give host:port"))
        loopback = bool(places) and all(_is_loopback(host) for host, _ in places)
        tls = (
            _content(tls_ca, "tls_ca", problems),
            _content(tls_key, "tls_key", problems),
            _content(tls_cert, "tls_cert", problems),
        )
        if (tls_cert is None) != (tls_key is None):
            problems.append(
                Problem("a certificate needs its key, and a key its certificate", field="tls_cert, tls_key")
            )
        else:
            _check_tls(tls, tls_ca, tls_cert, tls_key, problems)
        asked = any(path is not None for path in (tls_ca, tls_cert, tls_key))
        if insecure and asked:
            problems.append(Problem("insecure means no TLS, and TLS files are given", field="insecure"))
        if token is not None and token_file is not None:
            problems.append(Problem("both a token and a token_file are given", field="token_file"))
        if token is not None:
            token = _clean(token, "token", None, problems)
        elif token_file is not None:
            _read_token(Path(token_file), problems)
        target = _target(places, problems) if not problems else ""
        if problems:
            raise LimbeckError(Reason.REQUEST_INVALID, "The connection cannot be made like this.", problems)
        return cls(
            addresses=tuple(_joined(host, port) for host, port in places),
            target=target,
            loopback=loopback,
            secure=asked or not (loopback or insecure),
            token=token,
            token_file=None if token_file is None else Path(token_file),
            tls=tls,
        )

    @property
    def name(self) -> str:
        """The addresses, for messages."""
        return ", ".join(self.addresses)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call. Raises REQUEST_INVALID where the token's file is no longer good."""
        problems: list[Problem] = []
        token = _read_token(self.token_file, problems) if self.token_file is not None else self.token
        if problems:
            raise LimbeckError(Reason.REQUEST_INVALID, "The connection cannot be made like this.", problems)
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def channel(self) -> Any:
        """A grpc.aio channel, of the running event loop."""
        import grpc

        options = [
            # the replicas of a name, or of several addresses, in turn; with one there is nothing to choose
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
            ("grpc.enable_retries", 0),  # calls are repeated here, where it is known what was answered
            ("grpc.use_local_subchannel_pool", 1),  # a connection for each client of a process
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        if self.loopback:
            options.append(("grpc.enable_http_proxy", 0))  # gRPC sends even 127.0.0.1 through http_proxy
        if not self.secure:
            return grpc.aio.insecure_channel(self.target, options=options)
        if len(self.addresses) > 1:  # of numbers by now: the replicas' certificate is for the first name
            host, _ = _split(self.addresses[0], [])
            options += [("grpc.ssl_target_name_override", host), ("grpc.default_authority", host)]
        return grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(*self.tls), options=options)


def _split(address: str, problems: list[Problem]) -> tuple[str, int]:
    """Host and port of ``host``, ``host:port`` or ``[v6]:port``."""
    hint = f"give host:port, for example 127.0.0.1:{DEFAULT_PORT}"
    if "://" in address or "/" in address or not address.strip():
        problems.append(Problem(f"{address!r} is no address", field="address", hint=hint))
        return "", 0
    match = re.fullmatch(r"\[([0-9A-Fa-f:.%]+)\](?::(.*))?|([^:\s\[\]]+)(?::(.*))?", address.strip())
    if match is None:
        problems.append(Problem(f"{address!r} is no address", field="address", hint=f"{hint} or [::1]:{DEFAULT_PORT}"))
        return "", 0
    host = match[1] or match[3]
    number = match[2] if match[1] else match[4]
    if number is None:
        return host, DEFAULT_PORT
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):  # gRPC takes 500611 for 41859
        problems.append(Problem(f"port {number} of {address!r} is not one of 1 … 65535", field="address"))
        return host, 0
    return host, int(number)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _target(places: Sequence[tuple[str, int]], problems: list[Problem]) -> str:
    """One address is left to gRPC's resolver; several are looked up here, since gRPC takes only numbers then."""
    if len(places) == 1:
        return _joined(*places[0])
    numbers: dict[socket.AddressFamily, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for host, port in places:
        try:
            found = {family: at[0] for family, _, _, _, at in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except OSError as error:
            problems.append(Problem(f"{host} has no address: {error.strerror or error}", field="address"))
            continue
        for family, known in numbers.items():
            if family in found:
                known.append(_joined(str(found[family]), port))
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        if len(numbers[family]) == len(places):
            return f"{scheme}:{','.join(numbers[family])}"
    if not problems:
        problems.append(Problem("some addresses are of IPv4 and others of IPv6; give one kind", field="address"))
    return ""


def _content(path: Path_ | None, name: str, problems: list[Problem]) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror or error}", file=str(path), field=name))
        return None


def _check_tls(
    contents: Sequence[bytes | None],
    ca: Path_ | None,
    cert: Path_ | None,
    key: Path_ | None,
    problems: list[Problem],
) -> None:
    """What cannot be used of the files that could be read; `contents` are those of ca, key and cert."""
    if ca is not None and contents[0] is not None and (fault := authorities_fault(ca)) is not None:
        problems.append(Problem(f"cannot be used: {fault}", file=str(ca), field="tls_ca", hint="it is PEM"))
    if cert is None or key is None or None in contents[1:]:
        return
    if (fault := certificate_fault(cert, key)) is not None:
        message, hint = f"certificate and key cannot be used: {fault}", "both are PEM, the key unencrypted"
        problems.append(Problem(message, file=str(cert), field="tls_cert", hint=hint))


def _read_token(path: Path, problems: list[Problem]) -> str | None:
    raw = _content(path, "token_file", problems)
    if raw is None:
        return None
    try:
        return _clean(raw.decode("utf-8-sig"), "token_file", str(path), problems)
    except UnicodeDecodeError:
        problems.append(Problem("is not text in UTF-8", file=str(path), field="token_file"))
        return None


def _clean(text: str, name: str, file: str | None, problems: list[Problem]) -> str | None:
    """The token without what editors add. Its value is never in a message."""
    lines = text.removeprefix("\ufeff").strip().splitlines()
    if len(lines) == 1 and _TOKEN.fullmatch(lines[0]):
        return lines[0]
    if not lines:
        message = "holds no token"
    elif len(lines) > 1:
        message = f"holds {len(lines)} lines, 1 is allowed"
    else:
        place = next(i for i, sign in enumerate(lines[0]) if not _TOKEN.fullmatch(sign))
        message = f"sign {place + 1} of the token is a blank or no visible ASCII"
    problems.append(Problem(message, file=file, field=name))
    return None
