"""A store in one SQLite file, which several processes of one machine may share. The file itself: sqlite_file."""

import asyncio
import itertools
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Version, Write
from pollux.backends.store.documents import check, decode, encode
from pollux.backends.store.sqlite_file import ASIDE, checkpoint, connect

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PATIENCE = 5.0
"""Seconds for which a commit tries again while others hold the file."""
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.02
CHECKPOINT_COMMITS = 2000
"""About 8 MiB of log. A checkpoint of it takes some 10 ms in its thread, and holds writers back for 1 to 2 of them."""
WRITER_BITS, COMMIT_BITS = 24, 39
"""A version is the writer's number and its count of commits: unique without a shared counter in each commit."""
READ_BATCH = 500  # names in one statement; old builds of SQLite allow 999

_INSERT = "INSERT INTO documents (body, version, name) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
_UPDATE = "UPDATE documents SET body = ?, version = ? WHERE name = ? AND version = ?"
_DELETE = "DELETE FROM documents WHERE name = ? AND version = ?"
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_REMEDIES: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_FULL: (StoreUnavailableError, "its disk is full; free some space; nothing was written"),
    sqlite3.SQLITE_IOERR: (
        StoreUnavailableError,
        "cannot be read or written; check its disk, which must be a local one",
    ),
    sqlite3.SQLITE_CORRUPT: (StoreError, f"is damaged; {ASIDE}"),
    sqlite3.SQLITE_NOTADB: (StoreError, f"is no SQLite database, or a damaged one; name another file, or {ASIDE}"),
    sqlite3.SQLITE_READONLY: (StoreError, "must not be written; give this user the right to write it and its folder"),
    sqlite3.SQLITE_CANTOPEN: (StoreError, "cannot be opened; check that this user may write it and its folder"),
    sqlite3.SQLITE_PERM: (StoreError, "cannot be opened; check that this user may write it and its folder"),
}


class SqliteStore:
    """One connection, used inline in the event loop: a commit takes some 30 µs, a hop to a thread takes longer.

    Nothing here blocks the loop: SQLite's own waiting is off, and while others write a commit sleeps and tries again.
    Open it after a fork, never before. What survives what is told in docs/state.md.
    """

    one_machine = True
    """All who write to the file run on this machine."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.path = path.absolute()
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._db: sqlite3.Connection | None = None
        self._version = 0
        self._since_checkpoint = 0
        self._checkpointing: asyncio.Future[None] | None = None

    async def open(self) -> None:
        if self._db is None:
            try:
                self._db, writer = await self._patiently(connect, self.path)
            except StoreUnavailableError as error:
                raise StoreError(str(error)) from error
            self._version = (writer % 2**WRITER_BITS) << COMMIT_BITS

    async def close(self) -> None:
        db, self._db = self._db, None
        if self._checkpointing is not None:
            with suppress(asyncio.CancelledError):  # of another loop, which has ended
                await self._checkpointing
            self._checkpointing = None
        if db is not None:
            db.close()

    def now(self) -> float:
        return self._clock()

    def error(self) -> float:
        return 0.0

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        return await self._patiently(self._read, list(names))

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        return await self._patiently(self._apply, name, encode(document), version)

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        check(writes)
        bodies = [None if write.document is None else encode(write.document) for write in writes]
        changes = [(write.name, body, write.version) for write, body in zip(writes, bodies, strict=True)]
        return await self._patiently(self._apply_all, changes)

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        return await self._patiently(self._scan, prefix)

    async def delete(self, name: str, version: Version) -> None:
        await self._patiently(self._apply, name, None, version)

    async def _patiently(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Try again while others hold the file. Whatever SQLite says leaves as a StoreError."""
        waited, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                return work(*arguments)
            except sqlite3.Error as error:
                if _code(error) not in _BUSY:
                    raise self._trouble(error) from error
                if waited >= PATIENCE:
                    raise StoreUnavailableError(
                        f"store {self.path} was locked by another program for {PATIENCE:g} s; close what holds it "
                        "(a database browser, a backup); nothing was written"
                    ) from error
            delay = pause * (0.5 + self._jitter())
            await self._sleep(delay)
            waited, pause = waited + delay, min(2 * pause, LONGEST_PAUSE)

    def _trouble(self, error: sqlite3.Error) -> StoreError:
        kind, what = _REMEDIES.get(_code(error), (StoreError, f"cannot be used; check the file, or {ASIDE}"))
        return kind(f"store {self.path} {what} (SQLite: {error})")

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"store {self.path} is not open: open it first, and do not use it after close")
        return self._db

    # What follows runs without a pause and never waits.

    def _read(self, names: list[str]) -> dict[str, tuple[Document, Version]]:
        db, found = self._connection(), {}
        for start in range(0, len(names), READ_BATCH):
            batch = names[start : start + READ_BATCH]
            marks = ",".join("?" * len(batch))
            rows = db.execute(f"SELECT name, body, version FROM documents WHERE name IN ({marks})", batch)  # noqa: S608
            # All rows first: a SELECT left unfinished by a damaged body would hold an old state open, for ever busy.
            found.update(self._documents(rows.fetchall()))
        return found

    def _scan(self, prefix: str) -> dict[str, tuple[Document, Version]]:
        # From the prefix on by the index, until a name has it no more: LIKE and GLOB would give meaning to characters.
        with closing(self._connection().cursor()) as rows:
            rows.execute("SELECT name, body, version FROM documents WHERE name >= ? ORDER BY name", (prefix,))
            return self._documents(itertools.takewhile(lambda row: row[0].startswith(prefix), rows))

    def _documents(self, rows: Iterable[tuple[str, object, int]]) -> dict[str, tuple[Document, Version]]:
        return {name: (decode(body, name, f"store {self.path}"), str(version)) for name, body, version in rows}

    def _apply(self, name: str, body: str | None, version: Version | None) -> Version:
        """One change: atomic by itself, or a part of _apply_all."""
        self._version += 1
        given = "" if body is None else str(self._version)
        db = self._connection()
        # A version travels as text: SQLite compares it as a number, and what is none is equal to nothing.
        if body is None:
            done = db.execute(_DELETE, (name, version))
        elif version is None:
            done = db.execute(_INSERT, (body, given, name))
        else:
            done = db.execute(_UPDATE, (body, given, name, version))
        if done.rowcount != 1:
            raise ConflictError(name)
        self._since_checkpoint += 1
        if self._since_checkpoint >= CHECKPOINT_COMMITS:
            self._start_checkpoint()
        return given

    def _apply_all(self, changes: list[tuple[str, str | None, Version | None]]) -> list[Version]:
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            versions = [self._apply(*change) for change in changes]
            db.execute("COMMIT")
        finally:
            if db.in_transaction:  # SQLite itself may have rolled back
                db.execute("ROLLBACK")
        return versions

    def _start_checkpoint(self) -> None:
        if self._checkpointing is None or self._checkpointing.done():
            self._since_checkpoint = 0
            self._checkpointing = asyncio.get_running_loop().run_in_executor(None, checkpoint, self.path)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 for what Python's module itself complains about."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
