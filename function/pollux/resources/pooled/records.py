"""The documents of pooled files in the store: read, remembered, changed by whoever is not slower than another."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from pollux.backends.store.contract import ConflictError, Document, Store, StoreError, Version, Write
from pollux.lru import Recent
from pollux.pool.store_health import Counters, StoreHealth
from pollux.resources.pooled.documents import CONTENT, FILE, UPLOAD, PooledFile, packed, unpacked

REMEMBERED = 5000
TRIES = 20

Change = Callable[[PooledFile], PooledFile | None]


class NamedLocks:
    """Who changes the same thing in this instance goes one after the other."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """The same for as long as somebody has it."""
        if (lock := self._locks.get(name)) is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


class FileRecords:
    def __init__(self, watch: StoreHealth, most: int = REMEMBERED) -> None:
        self._watch = watch
        self._known: Recent[str, tuple[PooledFile, Version]] = Recent(most)
        self._locks = NamedLocks()
        self.counters = Counters()

    @property
    def _store(self) -> Store:
        return self._watch.store

    def now(self) -> float:
        return self._store.now()

    def known(self, name: str) -> PooledFile | None:
        """As this instance saw it last: another one may have made a copy since, or deleted it."""
        file, _ = self._known.get(name, (None, None))
        return file if file is not None and file.expires > self.now() else None

    async def find(self, name: str) -> PooledFile | None:
        """Without asking the store if it is known."""
        return self.known(name) or await self.read(name)

    async def read(self, name: str) -> PooledFile | None:
        file, _ = await self._read(name)
        return file

    async def _read(self, name: str) -> tuple[PooledFile | None, Version | None]:
        document, version = (await self._watch.read([FILE + name])).get(FILE + name, (None, None))
        file = None if document is None else unpacked(document)
        if file is None or version is None or file.expires <= self.now():
            self._known.pop(name, None)
            return None, version
        self._known[name] = file, version
        return file, version

    async def put(self, file: PooledFile) -> None:
        """A new one, in the place of whatever had its name."""
        async with self._locks.of(file.name):
            for _ in range(TRIES):
                _, version = await self._read(file.name)
                with suppress(ConflictError):
                    await self._commit(file, version)
                    return
        raise _crowded(file.name)

    async def change(self, name: str, change: Change) -> PooledFile | None:
        """What became of it; None if it is not there any more. `change` gives None to leave it as it is: then it has
        seen what the store holds, not what was known before. One change at a time in this instance: many copies of a
        file are made at once."""
        async with self._locks.of(name):
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
        raise _crowded(name)

    async def _commit(self, file: PooledFile, version: Version | None) -> None:
        written = await self._watch.commit(FILE + file.name, packed(file), version, self.counters)
        self._known[file.name] = file, written

    async def remove(self, file: PooledFile) -> None:
        """The file, and what leads to it from its content."""
        self._known.pop(file.name, None)
        named = (FILE + file.name, CONTENT + file.content)
        for _ in range(TRIES):
            found = await self._watch.read(named)
            writes = [Write(named[0], None, found[named[0]][1])] if named[0] in found else []
            if named[1] in found and found[named[1]][0].get("file") == file.name:
                writes.append(Write(named[1], None, found[named[1]][1]))
            try:
                if writes:
                    await self._store.commit_all(writes)
            except ConflictError:
                continue
            return
        raise _crowded(file.name)

    # --- which file a content is, and uploads: small documents, changed where their meaning is known -----------------

    async def content(self, key: str) -> tuple[Mapping[str, Any], Version | None]:
        return (await self._watch.read([CONTENT + key])).get(CONTENT + key, ({}, None))

    async def put_content(self, key: str, document: Document, version: Version | None) -> Version:
        """Raises ConflictError if somebody was faster."""
        return await self._watch.commit(CONTENT + key, document, version, self.counters)

    async def upload(self, name: str) -> tuple[Mapping[str, Any], Version | None]:
        return (await self._watch.read([UPLOAD + name])).get(UPLOAD + name, ({}, None))

    async def put_upload(self, name: str, document: Document, version: Version | None) -> Version:
        """Raises ConflictError if somebody was faster."""
        return await self._watch.commit(UPLOAD + name, document, version, self.counters)


def _crowded(name: str) -> StoreError:
    return StoreError(f"the document of pooled file {name} was changed by others {TRIES} times in a row")
