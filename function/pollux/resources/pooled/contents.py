"""The contents of pooled files in the blob store, in parts, and the health of that store.

An error of the store is logged once, and counted; then the store is left alone for a while.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from pollux.backends.blobs.contract import BlobError, BlobMissingError, Blobs, Writer
from pollux.resources.pooled.documents import Part

log = logging.getLogger("pollux.blobs")

PROBE_WITHIN = 3.0
TRUSTED_S = 30.0
"""How long after an answer the store is taken to work."""
RESTS_S = 15.0
"""How long after a failure the store is taken not to work."""
SWEEP_EVERY = 3600.0
PROBED = "probe"


class Contents:
    def __init__(self, blobs: Blobs, now: Callable[[], float], *, sweeps: bool) -> None:
        """`sweeps`: expired blobs are deleted from here. A bucket does that itself, by its lifecycle."""
        self._blobs = blobs
        self._now = now
        self._sweeps = sweeps
        self._swept = float("-inf")
        self._sweep: asyncio.Task[None] | None = None
        self._answered = self._failed = float("-inf")
        self.trouble = ""
        self.counts = dict.fromkeys(("passed_through", "kept_to_copies"), 0)
        """Uploads and requests that had to do without the blob store."""

    async def open(self) -> None:
        """A failure is not fatal: files are then not pooled."""
        try:
            async with asyncio.timeout(PROBE_WITHIN):
                await self._blobs.open()
        except (BlobError, TimeoutError) as error:
            self._down(error)
        self.sweep()

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.wait({self._sweep})
        await self._blobs.close()

    def as_json(self) -> dict[str, Any]:
        return {"blobs": "down" if self.trouble else "ok", "why": self.trouble or None, **self.counts}

    async def usable(self) -> bool:
        """Whether the store works. It is asked only if neither its last answer nor its last failure is recent."""
        now = self._now()
        if now < self._failed + RESTS_S:
            return False
        if now < self._answered + TRUSTED_S:
            return True
        try:
            async with asyncio.timeout(PROBE_WITHIN):
                if self.trouble:
                    await self._blobs.open()
                await self._blobs.size(PROBED)
        except (BlobError, TimeoutError) as error:
            self._down(error)
            return False
        self._up()
        return True

    @asynccontextmanager
    async def write(self, blob: str, expires: float) -> AsyncIterator[Writer]:
        try:
            async with self._blobs.write(blob, expires) as writer:
                yield writer
        except BlobError as error:
            self._down(error)
            raise
        self._up()

    async def read(self, parts: Sequence[Part], offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The content from `offset` on. Raises BlobError if a part is missing or has another length."""
        for part in parts:
            if offset >= part.size:
                offset -= part.size
                continue
            left = part.size - offset
            try:
                async with aclosing(self._blobs.read(part.blob, offset)) as pieces:
                    async for piece in pieces:
                        left -= len(piece)
                        yield piece
            except BlobError as error:
                if not isinstance(error, BlobMissingError):
                    self._down(error)
                raise
            if left:
                raise BlobMissingError(f"blob {part.blob} ends {left} bytes off its length")
            offset = 0
            self._up()

    async def sha256(self, parts: Sequence[Part]) -> str:
        digest = hashlib.sha256()
        async with aclosing(self.read(parts)) as pieces:
            async for piece in pieces:
                digest.update(piece)  # a megabyte at most: a thread would not be faster
        return digest.hexdigest()

    async def drop(self, parts: Sequence[Part]) -> None:
        """Delete the parts. After an error, the others are deleted when they expire."""
        for part in parts:
            try:
                await self._blobs.delete(part.blob)
            except BlobError as error:
                self._down(error)
                return

    def sweep(self) -> None:
        """Delete expired blobs in the background, at most once an hour."""
        if not self._sweeps or self._now() < self._swept + SWEEP_EVERY:
            return
        self._swept = self._now()
        self._sweep = asyncio.get_running_loop().create_task(self._delete_expired())

    async def _delete_expired(self) -> None:
        try:
            count = await self._blobs.sweep(self._now())
        except BlobError as error:
            log.warning("expired blobs could not be deleted: %s", error)
            return
        if count:
            log.info("%d expired blobs were deleted", count)

    def _down(self, error: BaseException) -> None:
        self._failed, self._answered = self._now(), float("-inf")
        why = str(error) or f"no answer within {PROBE_WITHIN:g} s"
        if not self.trouble:
            log.error(
                "the blob store does not work: each file stays in the project that gets its upload: %s",
                why,
                extra={"event": "blobs-trouble"},
            )
        self.trouble = why

    def _up(self) -> None:
        self._answered = self._now()
        self._failed = float("-inf")
        if self.trouble:
            log.warning("the blob store works again")
            self.trouble = ""
