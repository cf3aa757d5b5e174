"""The contract of a blob store: the bytes of files, each under a name until it expires. Not what they are.

Every backend passes the same suite (tests/blobs). A blob is there whole or not at all.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

KEPT_S = 48 * 3600.0
"""As long as Google keeps a file."""
NAMES = re.compile(r"[a-z0-9][a-z0-9_-]{0,199}")
"""Lower case alone: some file systems take A for a. No dot and no slash: a name is never a path."""


class BlobError(Exception):
    """The blobs cannot be used: what happened, to which, what to do. Never holds content or a credential."""


class BlobUnavailableError(BlobError):
    """It did not work this time, but may later. Whether a blob that was just being finished is there is not known."""


class BlobMissingError(BlobError):
    """There is no blob of this name: never written, or expired."""


class Writer:
    """Takes a blob's bytes in pieces of any size and passes them on in equal ones: no more than one is held here. For
    one task. `put` gets each piece and adds it to `digest`, in a thread, as that takes a while."""

    def __init__(self, piece: int, put: Callable[[bytes], Awaitable[None]]) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._piece = piece
        self._put = put
        self._held = bytearray()

    @property
    def sha256(self) -> str:
        """In hex; that of the whole blob once the block was left."""
        return self.digest.hexdigest()

    async def write(self, data: bytes) -> None:
        """Comes back when there is room for more: who waits for it keeps the store's pace."""
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            room = self._piece - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]
            if len(self._held) == self._piece:
                await self._put(self.taken())

    def taken(self) -> bytes:
        """What is held here; nothing is, then."""
        data = bytes(self._held)
        self._held.clear()
        return data


class Blobs(Protocol):
    """For one event loop, and any number of processes at once. A name that does not match NAMES is a ValueError."""

    async def open(self) -> None:
        """Check that it can be used. Raises BlobError with one clear line."""

    async def close(self) -> None:
        """Let go of everything; again is harmless."""

    def write(self, name: str, expires: float) -> AbstractAsyncContextManager[Writer]:
        """Visible, and safe from a power cut, once the block is left without an exception; with one, nothing is left.

        It takes the place of an earlier blob of that name, whose readers may end with a BlobError. Of two writers of
        one name the last to finish wins. After `expires`, seconds since 1970, the blob may go at some time or never.
        """

    def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Its bytes as they come, never those of two blobs; none if the offset lies at or behind its end. To be closed
        (`contextlib.aclosing`) if not read to the end."""

    async def size(self, name: str) -> int | None:
        """None: there is no such blob."""

    async def delete(self, name: str) -> bool:
        """Whether there was one."""

    async def sweep(self, now: float) -> int:
        """Delete what has expired by now and what broken writers left behind. How many blobs went."""


def checked(name: str) -> str:
    if not NAMES.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a blob: it takes lower-case letters, digits, - and _")
    return name
