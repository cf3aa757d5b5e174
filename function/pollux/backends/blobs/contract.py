"""The contract of a blob store: the bytes of files, each under a name until it expires.

Every backend passes the same suite (tests/backends/blobs). A blob exists as a whole or not at all.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

KEPT_S = 48 * 3600.0
"""As long as Google keeps a file."""
NAMES = re.compile(r"[a-z0-9][a-z0-9_-]{0,199}")
"""Lower case only, because some file systems treat A as a. No dot and no slash, so that a name is never a path."""


class BlobError(Exception):
    """The blobs cannot be used: says what happened, to which, what to do. Never holds content or a credential."""


class BlobUnavailableError(BlobError):
    """It failed this time, but may work later. A blob that was being finished may exist."""


class BlobMissingError(BlobError):
    """No blob has this name: it was never written, or has expired."""


class Writer:
    """Takes a blob's bytes in pieces of any size, holds one piece at most, and passes on pieces of equal size. For one
    task. `put` gets each piece and adds it to `digest`, in a thread because that takes a while."""

    def __init__(self, piece: int, put: Callable[[bytes], Awaitable[None]]) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._piece = piece
        self._put = put
        self._held = bytearray()

    @property
    def sha256(self) -> str:
        """In hex; of the whole blob after the end of the block."""
        return self.digest.hexdigest()

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more."""
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            room = self._piece - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]
            if len(self._held) == self._piece:
                await self._put(self.drain())

    def drain(self) -> bytes:
        """Returns the bytes that are held, and empties the buffer."""
        data = bytes(self._held)
        self._held.clear()
        return data


class Blobs(Protocol):
    """For one event loop, and any number of processes at once. A name that does not match NAMES is a ValueError."""

    async def open(self) -> None:
        """Check that it can be used. Raises BlobError with one clear line."""

    async def close(self) -> None:
        """May be called twice."""

    def write(self, name: str, expires: float) -> AbstractAsyncContextManager[Writer]:
        """The blob exists, safe from a power cut, when the block ends without an exception; with one, nothing is left.

        It replaces an earlier blob of that name, whose readers may then get a BlobError. Of two writers of one name,
        the last to finish wins. After `expires`, seconds since 1970, the blob may be deleted at some time or never.
        """

    def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Its bytes as they come, never those of two blobs; none if the offset is at or after its end. Close it
        (`contextlib.aclosing`) if it is not read to the end."""

    async def size(self, name: str) -> int | None:
        """None if it does not exist."""

    async def delete(self, name: str) -> bool:
        """False if it did not exist."""

    async def sweep(self, now: float) -> int:
        """Delete expired blobs and what interrupted writers left. Returns the number of blobs."""


def checked(name: str) -> str:
    if not NAMES.fullmatch(name):
        raise ValueError(f"{name!r} is not a blob name: use lower-case letters, digits, - and _")
    return name
