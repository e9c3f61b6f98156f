"""The answers that were paid for, the journal of calls, and what they cost: one SQLite file for all processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import disk_errors, existing_parent
from limbeck_openai.answers import Answer
from limbeck_openai.config import Budget
from limbeck_openai.requests import Request

NAME = "answers.sqlite"
VERSION = 1
BUSY = 60.0  # seconds that another process may hold the file
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL, sha256 TEXT NOT NULL, stored REAL NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL, began REAL NOT NULL,
  tokens INTEGER NOT NULL, money REAL NOT NULL, currency TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS open_calls ON calls (owner) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (currency TEXT PRIMARY KEY, tokens INTEGER NOT NULL, money REAL NOT NULL);
PRAGMA user_version = {VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Cost:
    """Tokens of a call, read and written together, and their money; `currency` is empty without prices."""

    tokens: int
    money: float
    currency: str


@dataclass(frozen=True)
class Spent:
    """What calls of the folder cost so far, and how many are still under way, in any process."""

    tokens: int
    money: float
    under_way: int


class Store:
    """The cache of one folder. Every method blocks for the disk: call it from one thread, not from an event loop's.

    A call is journalled before it is sent and ended after it; what it may cost at most counts from its beginning. Every
    method raises DISK_FULL, STORE_DAMAGED, RUN_LOCKED (another process holds the file too long), FOLDER_NOT_OURS (it
    cannot be written).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._owner = uuid.uuid4().hex
        self._folder = folder
        with self._errors(), ExitStack() as opened:
            folder.mkdir(parents=True, exist_ok=True)
            mark = opened.enter_context(self._mark_of(self._owner).open("w"))
            opened.callback(self._mark_of(self._owner).unlink, missing_ok=True)
            fcntl.flock(mark, fcntl.LOCK_EX)
            self._db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            opened.callback(self._db.close)
            self._prepare_among_others()
            self._opened = opened.pop_all()

    def _prepare_among_others(self) -> None:
        """SQLite itself does not wait where two turn a new file to WAL, or one opens it as the last one closes it."""
        until = time.monotonic() + BUSY
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > until:
                    raise
            time.sleep(0.02)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(_SCHEMA)
        elif version != VERSION:
            hint = "use another folder as cache, or the release of limbeck-openai that wrote it"
            problem = Problem(f"its version is {version}, known is {VERSION}", file=str(self.path), hint=hint)
            raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem])

    def _mark_of(self, owner: str) -> Path:
        """A file that an owner holds locked as long as it lives: the kernel drops the lock, however it dies."""
        return self._folder / f".owner-{owner}"

    # ----------------------------------------------------------------------------------------------------- answers

    def find(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there, by key. Raises STORE_DAMAGED for one that is not what was stored."""
        found: dict[str, Answer] = {}
        with self._errors():
            for first in range(0, len(keys), 500):
                part = keys[first : first + 500]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT key, answer, sha256 FROM answers WHERE key IN ({marks})", part)
                for key, text, sha256 in rows.fetchall():
                    if hashlib.sha256(text.encode()).hexdigest() != sha256:
                        raise sqlite3.DatabaseError(f"answer {key[:12]} is not what was stored")
                    found[key] = Answer.from_json(text)
        return found

    def claim(self, key: str) -> bool:
        """Whether this process may ask for `key` now; False while another one does. Ends with :meth:`release`."""
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (key, self._owner))
            row = self._db.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
        return bool(row[0] == self._owner)

    def release(self, key: str) -> None:
        """Let others ask for `key`."""
        with self._writing():
            self._db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    # ------------------------------------------------------------------------------------------------------- calls

    def begin(self, key: str, most: Cost, budget: Budget | None) -> int | Spent:
        """Journal a call that may cost `most`; its number, or what was spent where the budget does not allow it."""
        with self._writing():
            if budget is not None:
                spent = self._spent(most.currency)
                over = budget.tokens is not None and spent.tokens + most.tokens > budget.tokens
                if over or (budget.money is not None and spent.money + most.money > budget.money):
                    return spent
            row = (key, self._owner, time.time(), most.tokens, most.money, most.currency)
            cursor = self._db.execute(
                "INSERT INTO calls (key, owner, state, began, tokens, money, currency) "
                "VALUES (?, ?, 'open', ?, ?, ?, ?)",
                row,
            )
            self._add(most)
        number = cursor.lastrowid
        assert number is not None, "an INSERT has one"
        return number

    def end(self, number: int, cost: Cost, request: Request | None = None, answer: Answer | None = None) -> None:
        """End a call with what it cost, and keep its answer. Both are on disk when this returns."""
        with self._writing():
            tokens, money = self._db.execute("SELECT tokens, money FROM calls WHERE id = ?", (number,)).fetchone()
            state = "paid" if cost.tokens else "free"
            self._db.execute(
                "UPDATE calls SET state = ?, tokens = ?, money = ? WHERE id = ?",
                (state, cost.tokens, cost.money, number),
            )
            self._add(Cost(cost.tokens - tokens, cost.money - money, cost.currency))
            if request is not None and answer is not None:
                text = answer.to_json()
                asked = json.dumps(request.body, ensure_ascii=True, sort_keys=True)
                row = (request.key, asked, text, hashlib.sha256(text.encode()).hexdigest(), time.time())
                self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def _spent(self, currency: str) -> Spent:
        (tokens,) = self._db.execute("SELECT coalesce(sum(tokens), 0) FROM spent").fetchone()
        row = self._db.execute("SELECT money FROM spent WHERE currency = ?", (currency,)).fetchone()
        (under_way,) = self._db.execute("SELECT count(*) FROM calls WHERE state = 'open'").fetchone()
        return Spent(tokens, row[0] if row else 0.0, under_way)

    def _add(self, cost: Cost) -> None:
        self._db.execute(
            "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens, "
            "money = money + excluded.money",
            (cost.currency, cost.tokens, cost.money),
        )

    # ---------------------------------------------------------------------------------------------------- processes

    def mourn(self) -> int:
        """Take over what killed processes left: their claims end, their calls count as paid. How many calls these were.

        So many prompts may be paid for twice.
        """
        lost = 0
        with self._errors():
            rows = self._db.execute(
                "SELECT owner FROM calls WHERE state = 'open' UNION SELECT owner FROM claims"
            ).fetchall()
        for (owner,) in rows:
            if owner == self._owner or not self._is_dead(owner):
                continue
            with self._writing():
                changed = self._db.execute(
                    "UPDATE calls SET state = 'lost' WHERE state = 'open' AND owner = ?", (owner,)
                )
                lost += changed.rowcount
                self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
            self._mark_of(owner).unlink(missing_ok=True)
        return lost

    def _is_dead(self, owner: str) -> bool:
        try:
            with self._mark_of(owner).open("r") as mark:
                fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._opened.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, on disk when it ends."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors and the system's as Limbeck's."""
        try:
            with disk_errors(self.path):
                try:
                    yield
                except sqlite3.Error as error:
                    if _is_full(error, self.path):
                        raise OSError(errno.ENOSPC, str(error)) from error
                    raise
        except sqlite3.Error as error:
            raise _told(error, self.path) from error
        except OSError as error:
            hint = "give a folder that can be written as cache"
            problem = Problem(f"cannot be used: {error.strerror}", file=str(self.path), hint=hint)
            raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem]) from error


def _is_full(error: sqlite3.Error, path: Path) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    # where its index in shared memory cannot grow, SQLite says no more than "disk I/O error"
    return code == sqlite3.SQLITE_IOERR and shutil.disk_usage(existing_parent(path)).free < 1 << 20


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _told(error: sqlite3.Error, path: Path) -> LimbeckError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if _is_busy(error):
        hint = "wait for the other process, or stop it, then give the same command again"
        problem = Problem(f"another process held it for {BUSY:g} s", file=str(path), hint=hint)
        return LimbeckError(Reason.RUN_LOCKED, problems=[problem])
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        hint = "give a folder that can be written as cache"
        problem = Problem(f"cannot be written: {error}", file=str(path), hint=hint)
        return LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem])
    hint = "restore it, or move it away: then its answers are asked, and paid for, again, and a budget counts from 0"
    problem = Problem(f"cannot be read: {error}", file=str(path), hint=hint)
    return LimbeckError(Reason.STORE_DAMAGED, problems=[problem])
