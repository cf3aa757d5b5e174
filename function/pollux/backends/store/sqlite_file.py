"""The file under the SQLite store: made if there is none, checked, connected, its write-ahead log kept short.

It is never reset, shortened or deleted here: a file that cannot be trusted is an error that names it.
"""

import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from pollux.backends.store.contract import StoreError

SCHEMA = 1
CHECKED_PAGES = 4096
"""Up to this size, 16 MiB, the whole file is checked when it is opened."""
CHECKPOINT_TIMEOUT = 1.0

ASIDE = "restore a copy, or move it with its -wal and -shm files away to begin anew"

_log = logging.getLogger(__name__)

_TABLES = (
    "CREATE TABLE IF NOT EXISTS documents"
    " (name TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL, version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO meta (name, value) VALUES ('schema', 1), ('writers', 0), ('checkpoints', 0)",
)


def connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """A checked connection, and the number of this writer, which no other one has had.

    Nothing waits: while others hold the file, this is an sqlite3.OperationalError, and may be tried again.
    """
    _make(path)
    db = _connect(path, timeout=0)
    try:
        _check(db, path)
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                f"store {path} lies where SQLite cannot share it (journal mode {mode}); put it on a local disk"
            )
        # NORMAL: a commit is written but not synced. What was acknowledged survives any end of the process, also
        # kill -9, because the kernel has it. A power cut or kernel crash may lose commits since the last checkpoint, in
        # practice those of the half minute for which a kernel keeps writes back. Nothing is torn: an earlier state is
        # left.
        db.execute("PRAGMA synchronous = NORMAL")
        return db, _enrol(db)
    except BaseException:
        db.close()
        raise


def checkpoint(path: Path) -> None:
    """Move the log into the database and begin it anew. Takes some syncs to disk: for a thread.

    RESTART, because under steady load PASSIVE never finds the end of the log, which would grow for ever, and because in
    SQLite before 3.51.3 a PASSIVE one that meets a writer which begins the log anew can lose pages ("WAL-reset bug").
    RESTART holds the writers back meanwhile; they sleep and try again. Most of what it has to sync is synced before.
    """
    try:
        with closing(_connect(path, timeout=CHECKPOINT_TIMEOUT)) as db:
            db.execute("SELECT value FROM meta").fetchall()  # else older SQLite does not know yet that there is a log
            _sync(_log_of(path))
            db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            # The first write into a log begun anew syncs its header: here rather than in the event loop.
            db.execute("UPDATE meta SET value = value + 1 WHERE name = 'checkpoints'")
    except (sqlite3.Error, OSError) as error:
        _log.warning("store %s: no checkpoint, its -wal file grows until one succeeds (%s)", path, error)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _sync(path: Path) -> None:
    """SQLite keeps no locks on its log: unlike the database it may be opened and closed besides it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    # mode=rw: never to be created by SQLite, with other permissions, or anew while it is in use and was deleted.
    uri = f"{path.as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    db.execute(
        "PRAGMA wal_autocheckpoint = 0"
    )  # it would sync inline, for 5 ms and more, and be PASSIVE: see checkpoint
    return db


def _make(path: Path) -> None:
    """An empty private file, if there is none. An existing one is only looked at, never opened here: closing it would
    release the locks that this process may hold on it through SQLite."""
    try:
        wal = _log_of(path)
        logged = (
            wal.stat().st_size if wal.exists() else 0
        )  # before the size of path: others may be making both just now
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
            f"store {path} cannot be made: {where}: {error.strerror}; name another file, or mend that"
        ) from None


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Only reads: somebody else's database must stay as it is."""
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if not found:
        return
    if not found >= {"documents", "meta"}:
        raise StoreError(f"store {path} is a database of another program; name another file")
    row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None or row[0] != SCHEMA:
        schema = row[0] if row else "unknown"
        raise StoreError(
            f"store {path} has schema {schema}, not {SCHEMA}: use the version of Pollux that made it, or another file"
        )
    if db.execute("PRAGMA page_count").fetchone()[0] <= CHECKED_PAGES:
        finding = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if finding != "ok":
            raise StoreError(f"store {path} is damaged; {ASIDE} (SQLite: {finding.splitlines()[-1]})")


def _enrol(db: sqlite3.Connection) -> int:
    """Also shows that the file can be written. In one transaction, so that no other process meets half a schema."""
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        db.execute(statement)
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'writers'")
    number: int = db.execute("SELECT value FROM meta WHERE name = 'writers'").fetchone()[0]
    db.execute("COMMIT")
    return number
