"""The documents of pooled files in the store: read, cached, changed with optimistic commits; and leases on them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakValueDictionary

from pollux.backends.store.contract import ConflictError, Document, StoreError, Version, Write
from pollux.lru import Recent
from pollux.pool.store_health import Counters, StoreHealth
from pollux.resources.pooled.documents import CONTENT, FILE, PooledFile, packed, unpacked_file

REMEMBERED = 5000
TRIES = 20
LEASED_S, RENEWED_S, RELEASE_WITHIN = 60.0, 20.0, 2.0

Locks = WeakValueDictionary[str, asyncio.Lock]
"""A lock by name, while somebody holds it or waits for it."""


def lock_of(locks: Locks, name: str) -> asyncio.Lock:
    return locks.setdefault(name, asyncio.Lock())


class FileRecords:
    def __init__(self, watch: StoreHealth) -> None:
        self._watch = watch
        self._known: Recent[str, tuple[PooledFile, Version]] = Recent(REMEMBERED)
        self._locks: Locks = WeakValueDictionary()
        self.counters = Counters()

    def now(self) -> float:
        return self._watch.store.now()

    def known(self, name: str) -> PooledFile | None:
        """The file as this instance saw it last. Another instance may have changed or deleted it since."""
        file, _ = self._known.get(name, (None, None))
        return file if file is not None and file.expires > self.now() else None

    async def find(self, name: str) -> PooledFile | None:
        """The file from the cache, or else from the store."""
        return self.known(name) or await self.read(name)

    async def read(self, name: str) -> PooledFile | None:
        file, _ = await self._read(name)
        return file

    async def _read(self, name: str) -> tuple[PooledFile | None, Version | None]:
        document, version = await self.document(FILE + name)
        file = unpacked_file(document)
        if file is None or version is None or file.expires <= self.now():
            self._known.pop(name, None)
            return None, version
        self._known[name] = file, version
        return file, version

    async def put(self, file: PooledFile) -> None:
        """Store a new file, in the place of anything that had its name."""
        async with lock_of(self._locks, file.name):
            for _ in range(TRIES):
                _, version = await self._read(file.name)
                with suppress(ConflictError):
                    await self._commit(file, version)
                    return
        raise _contended(file.name)

    async def change(self, name: str, change: Callable[[PooledFile], PooledFile | None]) -> PooledFile | None:
        """Apply `change` and return the new file; None if the file does not exist any more. When `change` returns None
        nothing is written, and the file is returned as the store has it. The lock is for the many copies of one file
        that are made at once."""
        async with lock_of(self._locks, name):
            file, version = self._known.get(name, (None, None))
            fresh = False
            for _ in range(TRIES):
                if file is None:
                    fresh = True
                    file, version = await self._read(name)
                if file is None:
                    return None
                if (changed := change(file)) is not None:
                    with suppress(ConflictError):
                        await self._commit(changed, version)
                        return changed
                elif fresh:
                    return file
                file = None
        raise _contended(name)

    async def _commit(self, file: PooledFile, version: Version | None) -> None:
        self._known[file.name] = file, await self.write(FILE + file.name, packed(file), version)

    async def remove(self, file: PooledFile) -> None:
        """Delete the file's document, and that of its content if it leads to this file."""
        self._known.pop(file.name, None)
        named = (FILE + file.name, CONTENT + file.content)
        for _ in range(TRIES):
            found = await self._watch.read(named)
            writes = [Write(named[0], None, found[named[0]][1])] if named[0] in found else []
            if named[1] in found and found[named[1]][0].get("file") == file.name:
                writes.append(Write(named[1], None, found[named[1]][1]))
            with suppress(ConflictError):
                if writes:
                    await self._watch.store.commit_all(writes)
                return
        raise _contended(file.name)

    async def document(self, name: str) -> tuple[Mapping[str, Any], Version | None]:
        """Any document; an empty one if there is none."""
        return (await self._watch.read([name])).get(name, ({}, None))

    async def write(self, name: str, document: Document, version: Version | None) -> Version:
        """Raises ConflictError if another commit came first."""
        return await self._watch.commit(name, document, version, self.counters)


@asynccontextmanager
async def leased(set_lease: Callable[[float], Awaitable[object]]) -> AsyncIterator[None]:
    """Renew a lease while the block runs, and end it if the block fails or is cancelled: others must not wait for it.
    `set_lease`: commits that the lease lasts so many seconds from now; 0: that it has ended."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEWED_S)
            with suppress(StoreError, ConflictError):
                await set_lease(LEASED_S)

    task = asyncio.create_task(renew())
    try:
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
    except BaseException:
        with suppress(StoreError, ConflictError, TimeoutError):
            async with asyncio.timeout(RELEASE_WITHIN):
                await set_lease(0.0)
        raise


def _contended(name: str) -> StoreError:
    return StoreError(f"the document of pooled file {name} was changed by others {TRIES} times in a row")
