"""Who calls and what they may: bearer tokens with roles, checked for every method, deny by default."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Config
from limbeck.recipe.document import read_document
from limbeck.recipe.problems import problems_of

logger = logging.getLogger(__name__)


class Role(IntEnum):
    """What a token is for; a higher one includes the lower."""

    score = 1
    train = 2
    admin = 3


_TEACHERS = "/limbeck.v1.TeacherService/"
_TRAINING = "/limbeck.v1.TrainingService/"
# The least role of every method there is; None is open to all. What is not here is denied.
METHOD_ROLES: dict[str, Role | None] = {
    f"{_TEACHERS}ListTeachers": Role.score,
    f"{_TEACHERS}GetTeacher": Role.score,
    f"{_TEACHERS}Score": Role.score,
    f"{_TEACHERS}Generate": Role.score,
    f"{_TEACHERS}GetOutputHead": Role.score,
    f"{_TEACHERS}StreamSignals": Role.score,
    f"{_TRAINING}ValidateRecipe": Role.train,
    f"{_TRAINING}CreateRun": Role.train,
    f"{_TRAINING}GetRun": Role.train,
    f"{_TRAINING}ListRuns": Role.train,
    f"{_TRAINING}CancelRun": Role.train,
    f"{_TRAINING}PauseRun": Role.train,
    f"{_TRAINING}ResumeRun": Role.train,
    f"{_TRAINING}UpdateKnobs": Role.train,
    f"{_TRAINING}SaveCheckpoint": Role.train,
    f"{_TRAINING}WatchRun": Role.train,
    f"{_TRAINING}ListCheckpoints": Role.train,
    f"{_TRAINING}ListArtifacts": Role.train,
    f"{_TRAINING}DownloadArtifact": Role.train,
    "/limbeck.v1.PluginService/ListPlugins": Role.train,
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/List": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.score,
}


class TokenEntry(Config):
    """A token: what it hashes to, never itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Whose it is; the client's name.")
    token_sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$", description="sha256 of the token, in hex.")
    role: str = Field(description="score, train or admin.")
    expires: str | None = Field(None, description="The moment from which it is refused; a date is its 00:00 UTC.")

    @field_validator("role")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in Role.__members__:
            raise ValueError(f"must be {', '.join(Role.__members__)}, not {value!r}")
        return value

    @field_validator("expires")
    @classmethod
    def _moment(cls, value: str | None) -> str | None:
        if value is not None:
            _moment(value)
        return value

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= _moment(self.expires)


class _TokenFile(Config):
    tokens: list[TokenEntry] = Field(min_length=1, description="The tokens.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `name` is what quotas and fairness go by. `token`: sha256 of its token, None for none."""

    name: str
    token: bytes | None = None


class Tokens:
    """The tokens of a file, which is read again when it has changed; a file with faults changes nothing."""

    def __init__(self, path: Path) -> None:
        """Raises SERVER_INVALID with every problem of the file."""
        self.path = path
        self._entries = read_tokens(path)
        self._stamp = self._stamped()

    def authorise(self, presented: bytes, need: Role) -> Caller:
        """Who holds a token (its sha256). Raises UNAUTHENTICATED, PERMISSION_DENIED."""
        self._refresh()
        found = None
        for entry in self._entries:  # all of them, so that the time says nothing
            if hmac.compare_digest(bytes.fromhex(entry.token_sha256), presented):
                found = entry
        if found is None:
            raise _refused(Reason.UNAUTHENTICATED, "the token is not known here")
        if found.expired:
            raise _refused(Reason.UNAUTHENTICATED, f"the token {found.name} has expired")
        if Role[found.role] < need:
            message = f"the token {found.name} has the role {found.role}, {need.name} or higher is needed"
            raise _refused(Reason.PERMISSION_DENIED, message)
        return Caller(found.name, presented)

    def _stamped(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _refresh(self) -> None:
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = read_tokens(self.path)
        except LimbeckError as error:
            logger.error("the changed file of tokens has faults, the former ones stay in force: %s", error)
        else:
            logger.info("tokens were read again: %d", len(self._entries))


class Access:
    """Decides about calls. Without tokens whoever reaches the address may call."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    def admit(self, method: str, context: Any) -> Caller:
        """Who makes this call. Raises UNAUTHENTICATED, PERMISSION_DENIED."""
        if method not in METHOD_ROLES:
            raise _refused(Reason.PERMISSION_DENIED, f"{method} is not open to anybody")
        need = METHOD_ROLES[method]
        peer = Caller(_certified(context) or context.peer())
        if need is None or self._tokens is None:
            return peer
        return self._tokens.authorise(_presented(context.invocation_metadata() or ()), need)

    def confirm(self, method: str, caller: Caller) -> None:
        """Ask again in the middle of a long call: the token may have expired or gone. Raises as `admit`."""
        need = METHOD_ROLES[method]
        if self._tokens is not None and caller.token is not None and need is not None:
            self._tokens.authorise(caller.token, need)


def read_tokens(path: Path) -> list[TokenEntry]:
    """The entries of a file of tokens. Raises SERVER_INVALID with every problem."""
    try:
        document = read_document(path, must_have="tokens:")
    except LimbeckError as error:
        raise _invalid([replace(problem, field="--tokens") for problem in error.problems]) from None
    problems = list(document.problems)
    entries: list[TokenEntry] = []
    try:
        entries = _TokenFile.model_validate(document.value).tokens
    except ValidationError as error:
        problems += problems_of(error, document, (), _TokenFile)
    for name in ("name", "token_sha256"):
        values = [str(getattr(entry, name)).lower() for entry in entries]
        problems += [
            document.problem(("tokens", place, name), f"is the same as that of entry {values.index(value)}")
            for place, value in enumerate(values)
            if values.index(value) < place
        ]
    if problems:
        raise _invalid(problems)
    return entries


def _presented(metadata: Iterable[tuple[str, Any]]) -> bytes:
    """sha256 of the token that the call carries."""
    values: Sequence[Any] = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise _refused(Reason.UNAUTHENTICATED, "the call carries no token", 'send "authorization: Bearer TOKEN"')
    found = re.fullmatch(r"[Bb]earer +(\S+)", str(values[0])) if len(values) == 1 else None
    if found is None:
        raise _refused(Reason.UNAUTHENTICATED, "the metadata authorization is not: Bearer TOKEN")
    return hashlib.sha256(found[1].encode()).digest()


def _certified(context: Any) -> str | None:
    """The common name of the client's certificate, where one was asked for."""
    names = (context.auth_context() or {}).get("x509_common_name") or [b""]
    return bytes(names[0]).decode(errors="replace") or None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if isinstance(moment, date) and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"must be a date or a time, as 2027-01-31 or 2027-01-31T12:00:00Z, not {text!r}") from None
    return moment


def _refused(reason: Reason, message: str, hint: str | None = None) -> LimbeckError:
    return LimbeckError(reason, problems=[Problem(message, field="authorization", hint=hint)])


def _invalid(problems: list[Problem]) -> LimbeckError:
    return LimbeckError(Reason.SERVER_INVALID, "The file of tokens is not valid.", problems)
