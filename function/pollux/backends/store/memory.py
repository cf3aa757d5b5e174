"""A store in this process's memory: for tests, and for a single gateway that may lose everything when it stops."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from pollux.backends.store.contract import ConflictError, Document, StoreError, Version, Write
from pollux.backends.store.documents import check, decode, encode

# One count for the whole process: no version repeats, not even in another store.
_versions = itertools.count(1)


class MemoryStore:
    """Keeps documents as JSON text, as other stores do: it is faster than copy.deepcopy, and treats tuples and NaN as
    they do. Closing deletes everything."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[str, Version]] | None = None

    async def open(self) -> None:
        if self._kept is None:
            self._kept = {}

    async def close(self) -> None:
        self._kept = None

    def now(self) -> float:
        return self._clock()

    def error(self) -> float:
        return 0.0

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        kept = self._open()
        return {name: self._copy(name, *kept[name]) for name in names if name in kept}

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        return (await self.commit_all([Write(name, document, version)]))[0]

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        kept = self._open()
        check(writes)
        bodies = [None if write.document is None else encode(write.document) for write in writes]
        for write in writes:
            if (kept[write.name][1] if write.name in kept else None) != write.version:
                raise ConflictError(write.name)
        versions = []
        for write, body in zip(writes, bodies, strict=True):
            versions.append("" if body is None else str(next(_versions)))
            if body is None:
                del kept[write.name]
            else:
                kept[write.name] = (body, versions[-1])
        return versions

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        kept = self._open()
        return {name: self._copy(name, *kept[name]) for name in sorted(kept) if name.startswith(prefix)}

    async def delete(self, name: str, version: Version) -> None:
        await self.commit_all([Write(name, None, version)])

    def _open(self) -> dict[str, tuple[str, Version]]:
        if self._kept is None:
            raise StoreError("the memory store is not open: open it first, and do not use it after close")
        return self._kept

    @staticmethod
    def _copy(name: str, body: str, version: Version) -> tuple[Document, Version]:
        return decode(body, name, "the memory store"), version
