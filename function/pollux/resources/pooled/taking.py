"""Takes in the bytes of an upload as they come: what is new of a chunk becomes a part, and is hashed on the way."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

from pollux.backends.blobs.contract import BlobError
from pollux.gemini.errors import GatewayError
from pollux.lru import Recent
from pollux.relay.client import ClientGoneError, PassingBody
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import Part
from pollux.resources.pooled.incoming import PooledUpload

HASHES = 256


class HeldBody:
    """A small body that was read whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.passed = len(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


class _NothingError(Exception):
    """No byte came that was not here."""


class PartWriter:
    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._digests: Recent[str, tuple[int, Any]] = Recent(HASHES)
        """Of uploads of which this instance has taken every chunk: the content need not be read again."""

    async def take(
        self, name: str, upload: PooledUpload, body: AsyncIterator[bytes] | PassingBody, skip: int
    ) -> tuple[Part | None, Exception | None]:
        """The new part, and what cut it short: what had come stays. `skip`: bytes that are here already."""
        blob = f"u-{name}-{len(upload.parts)}-{secrets.token_hex(4)}"
        known = hashlib.sha256() if not upload.received else self.digest(name, upload.received)
        digest = None if known is None else known.copy()  # what this chunk adds may come to nothing
        trouble: Exception | None = None
        try:
            async with self._contents.write(blob, upload.kept_until) as writer:
                if digest is not None:
                    writer.digest = digest  # hashed where it is written: in a thread, and once
                try:
                    async for piece in body:
                        piece, skip = piece[skip:], max(0, skip - len(piece))
                        if piece:
                            upload.check_size(upload.received + writer.size + len(piece))
                            await writer.write(piece)
                except (ClientGoneError, GatewayError) as error:
                    trouble = error
                if not writer.size:
                    raise _NothingError
        except _NothingError:
            return None, trouble
        except BlobError:
            raise down() from None
        if digest is not None:
            self._digests[name] = upload.received + writer.size, digest
        return Part(blob, writer.size), trouble

    def digest(self, name: str, size: int) -> Any:
        known, digest = self._digests.get(name, (0, None))
        return digest if known == size else None


def down() -> GatewayError:
    """What is wrong, and where, is in the log: it names folders and buckets, which are no client's business."""
    return GatewayError("BLOBS_DOWN", "the file cannot be kept, as the blob store does not take it", retry_after=5.0)
