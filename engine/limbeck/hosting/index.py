"""The index of a server's runs in SQLite: what no run's folder says, and where each one's history was read to."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting.record import Record
from limbeck.v1 import training_service_pb2 as pb

VERSION = 1
_TABLES = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request_id TEXT NOT NULL,
    recipe TEXT NOT NULL,
    state INTEGER NOT NULL,
    expired INTEGER NOT NULL,
    want TEXT NOT NULL,
    mark TEXT NOT NULL,
    checked INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    size INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    run BLOB NOT NULL,
    states BLOB NOT NULL,
    unsaid BLOB NOT NULL,
    UNIQUE (owner, request_id)
);
CREATE INDEX runs_by_state ON runs (state, number);
CREATE TABLE knobs (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, wanted TEXT NOT NULL);
CREATE INDEX knobs_by_run ON knobs (run_id, id);
"""
_FIELDS = "number, request_id, run, states, offset, want, mark, checked, turn, size, expired, unsaid"
T = TypeVar("T")


class Index:
    """Written by one thread, each change on disk when its call returns; read at once, by the event loop's thread.

    No read outlives its call, so that the write-ahead log can shrink.
    """

    def __init__(self, path: Path) -> None:
        """Raises SERVER_INVALID for what is no index of this version, DISK_FULL."""
        self._path = path
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite's other files are like this one
        path.chmod(0o600)
        self._thread = ThreadPoolExecutor(1, "limbeck-index")
        try:
            self._writer = self._thread.submit(self._open).result()
            self._reader = self._connect()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise self._fault(error, Reason.SERVER_INVALID) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, this is {VERSION}")
        if version == 0:
            connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        return connection

    def _fault(self, error: sqlite3.Error, reason: Reason = Reason.INTERNAL) -> LimbeckError:
        full = getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
        hint = None if full else "move the file away: the runs' folders stay, but the server forgets its runs"
        problem = Problem(f"the index of runs cannot be used: {error}", file=str(self._path), hint=hint)
        return LimbeckError(Reason.DISK_FULL if full else reason, problems=[problem])

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do a change in the writing thread, all of it or nothing."""

        def transaction() -> T:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            return result

        try:
            return await asyncio.wrap_future(self._thread.submit(transaction))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._reader.execute(query, values).fetchall()

    async def add(self, record: Record, recipe: str) -> None:
        """A new run; gives it its number. Raises DISK_FULL."""

        def work(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO runs (run_id, owner, request_id, recipe, state, expired, want, mark, checked, turn, size,"
                " offset, run, states, unsaid) VALUES (?, ?, ?, ?, ?, 0, '', '', 0, 0, 0, 0, ?, ?, ?)",
                (record.run_id, record.run.owner, record.request_id, recipe, record.state, *_blobs(record)),
            )
            return int(cursor.lastrowid or 0)

        record.number = await self._write(work)

    async def remove(self, record: Record) -> None:
        """Forget a run that could not be made."""
        await self._write(lambda connection: connection.execute("DELETE FROM runs WHERE number = ?", (record.number,)))

    async def save(self, record: Record) -> None:
        """Everything of a run but its recipe. Raises DISK_FULL."""
        expired = record.expired + record.removed
        notes = (record.state, expired, record.want, record.mark, record.checked, record.turn, record.size)
        values = (*notes, record.offset, *_blobs(record), record.number)  # as they are now, not when it is written
        statement = (
            "UPDATE runs SET state = ?, expired = ?, want = ?, mark = ?, checked = ?, turn = ?, size = ?, offset = ?,"
            " run = ?, states = ?, unsaid = ? WHERE number = ?"
        )
        await self._write(lambda connection: connection.execute(statement, values))

    def kept(self) -> list[Record]:
        """Runs whose folders are kept, the oldest first."""
        return [_record(row) for row in self._read(f"SELECT {_FIELDS} FROM runs WHERE expired = 0 ORDER BY number")]

    def leaving(self) -> list[Record]:
        """Runs whose folders are being removed."""
        rows = self._read(f"SELECT {_FIELDS} FROM runs WHERE expired = 1")
        return [_record(row) for row in rows]

    def find(self, run_id: str) -> Record | None:
        """A run by its id."""
        rows = self._read(f"SELECT {_FIELDS} FROM runs WHERE run_id = ?", run_id)
        return _record(rows[0]) if rows else None

    def asked(self, owner: str, request_id: str) -> tuple[str, str] | None:
        """Id and recipe of the run that a client's request made."""
        rows = self._read("SELECT run_id, recipe FROM runs WHERE owner = ? AND request_id = ?", owner, request_id)
        return rows[0] if rows else None

    def recipe(self, run_id: str) -> str:
        """The recipe of a run as it was given."""
        return str(self._read("SELECT recipe FROM runs WHERE run_id = ?", run_id)[0][0])

    def page(self, below: int, states: Collection[int], size: int) -> list[Record]:
        """At most `size` runs with numbers below `below`, in one of `states`, all where empty; the newest first."""
        chosen = f"AND state IN ({', '.join('?' * len(states))})" if states else ""
        query = f"SELECT {_FIELDS} FROM runs WHERE number < ? {chosen} ORDER BY number DESC LIMIT ?"
        return [_record(row) for row in self._read(query, below, *states, size)]

    async def add_knobs(self, run_id: str, values: Mapping[str, float]) -> int:
        """Keep values until they are in force; returns their id, above that of all before. Raises DISK_FULL."""

        def work(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO knobs (run_id, wanted) VALUES (?, ?)", (run_id, json.dumps(dict(values)))
            )
            return int(cursor.lastrowid or 0)

        return await self._write(work)

    def knobs(self, run_id: str) -> list[tuple[int, dict[str, float]]]:
        """Values that are not known to be in force, the oldest first."""
        rows = self._read("SELECT id, wanted FROM knobs WHERE run_id = ? ORDER BY id", run_id)
        return [(number, json.loads(wanted)) for number, wanted in rows]

    async def drop_knobs(self, run_id: str, number: int | None = None) -> None:
        """Forget values that are in force, or, without `number`, all that a run has."""
        where = "run_id = ?" if number is None else "run_id = ? AND id = ?"
        values = (run_id,) if number is None else (run_id, number)
        await self._write(lambda connection: connection.execute(f"DELETE FROM knobs WHERE {where}", values))

    async def close(self) -> None:
        """Close the files; what was being written is finished first."""
        self._reader.close()
        await asyncio.wrap_future(self._thread.submit(self._writer.close))
        self._thread.shutdown()


def _blobs(record: Record) -> tuple[bytes, bytes, bytes]:
    return record.run.SerializeToString(), record.states.SerializeToString(), record.unsaid.SerializeToString()


def _record(row: tuple[Any, ...]) -> Record:
    number, request_id, run, states, offset, want, mark, checked, turn, size, expired, unsaid = row
    return Record(
        number,
        request_id,
        pb.Run.FromString(run),
        pb.GetRunResponse.FromString(states),
        offset,
        want,
        mark,
        bool(checked),
        turn,
        size,
        expired > 0,
        expired > 1,
        pb.Events.FromString(unsaid),
    )
