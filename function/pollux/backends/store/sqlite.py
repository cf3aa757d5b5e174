"""A store in one SQLite file, which several processes of one machine may share.

The file is never reset, shortened or deleted here: if it cannot be trusted, that is an error that names it.
"""

import asyncio
import itertools
import logging
import os
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Version, Write
from pollux.backends.store.documents import check, decode, encode

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PATIENCE = 5.0
"""Seconds for which a commit tries again while others hold the file."""
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.02
CHECKPOINT_COMMITS = 2000
"""About 8 MiB of log. Its checkpoint takes some 10 ms in a thread, and blocks writers for 1 to 2 ms of them."""
CHECKPOINT_TIMEOUT = 1.0
WRITER_BITS, COMMIT_BITS = 24, 39
"""A version is the writer's number and its count of commits: unique without a shared counter in each commit."""
READ_BATCH = 500
"""Names in one statement; old builds of SQLite allow 999."""
SCHEMA = 1
CHECKED_PAGES = 4096
"""Files up to this size, 16 MiB, are checked as a whole when they are opened."""
ASIDE = "restore a copy, or move it away with its -wal and -shm files to start anew"

_log = logging.getLogger(__name__)

_TABLES = (
    "CREATE TABLE IF NOT EXISTS documents"
    " (name TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL, version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO meta (name, value) VALUES ('schema', 1), ('writers', 0), ('checkpoints', 0)",
)
_INSERT = "INSERT INTO documents (body, version, name) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
_UPDATE = "UPDATE documents SET body = ?, version = ? WHERE name = ? AND version = ?"
_DELETE = "DELETE FROM documents WHERE name = ? AND version = ?"
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_REMEDIES: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_FULL: (StoreUnavailableError, "its disk is full; free some space; nothing was written"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "cannot be read or written; check its disk; it must be local"),
    sqlite3.SQLITE_CORRUPT: (StoreError, f"is damaged; {ASIDE}"),
    sqlite3.SQLITE_NOTADB: (StoreError, f"is not an SQLite database, or a damaged one; name another file, or {ASIDE}"),
    sqlite3.SQLITE_READONLY: (StoreError, "is read-only; give this user write access to it and its folder"),
    sqlite3.SQLITE_CANTOPEN: (StoreError, "cannot be opened; check that this user may write it and its folder"),
    sqlite3.SQLITE_PERM: (StoreError, "cannot be opened; check that this user may write it and its folder"),
}


class SqliteStore:
    """One connection, used in the event loop itself: a commit takes some 30 µs, a thread switch takes longer.

    Nothing here blocks the loop: SQLite's own waiting is off, and while others write, a commit sleeps and tries again.
    Open it after a fork, never before. docs/state.md says what survives a crash.
    """

    one_machine = True
    """All writers of the file run on this machine."""

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
        """Try again while others lock the file. Every error of SQLite becomes a StoreError."""
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

    # The methods below never await and never block.

    def _read(self, names: list[str]) -> dict[str, tuple[Document, Version]]:
        db, found = self._connection(), {}
        for start in range(0, len(names), READ_BATCH):
            batch = names[start : start + READ_BATCH]
            marks = ",".join("?" * len(batch))
            rows = db.execute(f"SELECT name, body, version FROM documents WHERE name IN ({marks})", batch)  # noqa: S608
            # Fetch all rows first: a SELECT left unfinished by a damaged body would keep a read lock for ever.
            found.update(self._documents(rows.fetchall()))
        return found

    def _scan(self, prefix: str) -> dict[str, tuple[Document, Version]]:
        # By the index, from the prefix on until a name does not start with it: LIKE and GLOB have special characters.
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
        # A version is passed as text: SQLite compares it as a number, and text that is no number matches nothing.
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
    """SQLite's primary code; 0 for errors of Python's module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# --- the file --------------------------------------------------------------------------------------------------------


def connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """A checked connection, and the number of this writer, which is unique.

    It never waits: while others lock the file it raises sqlite3.OperationalError, and may be tried again.
    """
    _make(path)
    db = _connect(path, timeout=0)
    try:
        _check(db, path)
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                f"store {path} cannot be shared where it lies (journal mode {mode}); put it on a local disk"
            )
        # NORMAL: a commit is written but not synced. Acknowledged commits survive any end of the process, kill -9 too,
        # because the kernel has them. A power cut or kernel crash may lose commits since the last checkpoint, in
        # practice those of the last half minute. Nothing is torn: an earlier state remains.
        db.execute("PRAGMA synchronous = NORMAL")
        return db, _enrol(db)
    except BaseException:
        db.close()
        raise


def checkpoint(path: Path) -> None:
    """Move the log into the database and start it anew. Syncs to disk several times, so run it in a thread.

    RESTART, because under steady load PASSIVE never reaches the end of the log, which would grow for ever, and because
    before SQLite 3.51.3 a PASSIVE checkpoint can lose pages when a writer restarts the log ("WAL-reset bug"). RESTART
    blocks the writers meanwhile; they sleep and try again. Most of the log is synced beforehand.
    """
    try:
        with closing(_connect(path, timeout=CHECKPOINT_TIMEOUT)) as db:
            db.execute("SELECT value FROM meta").fetchall()  # otherwise older SQLite does not notice the log
            _sync(_log_of(path))
            db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            # The first write into a restarted log syncs its header: do that here, not in the event loop.
            db.execute("UPDATE meta SET value = value + 1 WHERE name = 'checkpoints'")
    except (sqlite3.Error, OSError) as error:
        _log.warning("store %s: no checkpoint, its -wal file grows until one succeeds (%s)", path, error)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _sync(path: Path) -> None:
    """SQLite keeps no locks on its log, so that, unlike the database, it may be opened and closed here."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    # mode=rw: SQLite must not create it, with other permissions or after it was deleted while in use.
    uri = f"{path.as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA wal_autocheckpoint = 0")  # it would block for 5 ms and more, and be PASSIVE: see checkpoint
    return db


def _make(path: Path) -> None:
    """Create an empty private file if there is none. An existing one is never opened here: closing it would release
    the locks that this process may hold on it through SQLite."""
    try:
        wal = _log_of(path)
        logged = wal.stat().st_size if wal.exists() else 0  # before the size of path: others may be creating both now
        if path.exists():
            if not path.is_file():
                raise StoreError(f"store {path} is a folder or a device; name a file")
            if logged and not path.stat().st_size:
                raise StoreError(f"store {path} is empty but has a -wal file: it was cut short; {ASIDE}")
            return
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        where = error.filename or path
        raise StoreError(
            f"store {path} cannot be created: {where}: {error.strerror}; fix that, or name another file"
        ) from None


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Only reads, because another program's database must stay as it is."""
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if not found:
        return
    if not found >= {"documents", "meta"}:
        raise StoreError(f"store {path} is a database of another program; name another file")
    row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None or row[0] != SCHEMA:
        schema = row[0] if row else "unknown"
        raise StoreError(
            f"store {path} has schema {schema}, not {SCHEMA}: use the Pollux version that created it, or another file"
        )
    if db.execute("PRAGMA page_count").fetchone()[0] <= CHECKED_PAGES:
        finding = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if finding != "ok":
            raise StoreError(f"store {path} is damaged; {ASIDE} (SQLite: {finding.splitlines()[-1]})")


def _enrol(db: sqlite3.Connection) -> int:
    """Register a writer, which also shows that the file can be written. In one transaction, so that no other process
    finds half a schema."""
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        db.execute(statement)
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'writers'")
    number: int = db.execute("SELECT value FROM meta WHERE name = 'writers'").fetchone()[0]
    db.execute("COMMIT")
    return number
