"""Shared by the tests of the SQLite store: scenes, filled files, other programs, sleeps, a full disk."""

import asyncio
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pollux.backends.store.contract import Write
from pollux.backends.store.sqlite import SqliteStore

Scene = Callable[[SqliteStore], Awaitable[None]]


def in_store(path: Path, scene: Scene, store: SqliteStore | None = None) -> None:
    async def play() -> None:
        used = store or SqliteStore(path)
        await used.open()
        try:
            await scene(used)
        finally:
            await used.close()

    asyncio.run(play())


async def nothing(store: SqliteStore) -> None:
    """Opening and closing is all."""


def filled(path: Path, documents: int = 20) -> Path:
    async def scene(store: SqliteStore) -> None:
        await store.commit_all([Write(f"n{number:03}", {"body": "x" * 2000}, None) for number in range(documents)])

    in_store(path, scene)
    return path


@contextmanager
def other(path: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    """Another program that uses the file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        for statement in statements:
            db.execute(statement)
        yield db


class Naps:
    """Sleeps that take no time. `wake` is called at the given one."""

    def __init__(self, at: int = 0, wake: Callable[[], object] = lambda: None) -> None:
        self.taken: list[float] = []
        self.at, self.wake = at, wake

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        if len(self.taken) == self.at:
            self.wake()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond it fails, as on a disk with trouble."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
