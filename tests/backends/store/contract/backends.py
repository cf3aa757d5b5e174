"""The stores that must keep the contract. A new one adds a line to BACKENDS; the suite does the rest."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pollux.backends.store.contract import Store
from pollux.backends.store.opening import open_store


@dataclass(frozen=True)
class Backend:
    name: str
    url: Callable[[Path], str]
    """The URL of an empty store; the folder is fresh, and the same within one test."""
    shared: bool = True
    """Several processes may use it at once, and it outlives them."""
    emulated: bool = False
    """It needs the Firestore emulator."""


RUN = os.urandom(8)


def project(folder: Path) -> str:
    """One that no other test has, in this run or another: an emulator has room for any number of projects."""
    return f"pollux-{sha256(RUN + bytes(folder)).hexdigest()[:16]}"


BACKENDS = [
    Backend("memory", lambda folder: "memory://", shared=False),
    Backend("sqlite", lambda folder: f"sqlite:///{folder / 'store.db'}"),
    Backend("firestore", lambda folder: f"firestore://{project(folder)}", emulated=True),
]
SHARED = [backend for backend in BACKENDS if backend.shared]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def in_store(url: str, scene: Callable[[Store], Awaitable[None]]) -> None:
    async def play() -> None:
        async with opened(url) as store:
            await scene(store)

    asyncio.run(play())
