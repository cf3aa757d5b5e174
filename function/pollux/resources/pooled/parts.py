"""What a client sends of a file: its metadata, and its bytes, which become parts in the blob store as they come."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pollux.backends.blobs.contract import BlobError
from pollux.gemini import multipart
from pollux.gemini.body import json_of
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import resource
from pollux.lru import Recent
from pollux.relay.client import ClientGoneError, PassingBody, header
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import COPY, Part, PooledUpload, given_of

HASHES = 256
METADATA_MOST = 16_384
RawHeaders = Sequence[tuple[bytes, bytes]]


class HeldBody:
    """A small body that was read whole, with the interface of PassingBody."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.passed = len(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


class _EmptyError(Exception):
    """No new byte came, so that no blob is kept."""


class PartWriter:
    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._digests: Recent[str, tuple[int, Any]] = Recent(HASHES)
        """Size and running hash of uploads whose chunks all came to this instance: their content is not read again."""

    async def write(
        self, name: str, upload: PooledUpload, body: AsyncIterator[bytes] | PassingBody, skip: int
    ) -> tuple[Part | None, Exception | None]:
        """The new part, and the error that interrupted it: the bytes before the error are kept. `skip`: bytes at the
        beginning that were received before."""
        blob = f"u-{name}-{len(upload.parts)}-{secrets.token_hex(4)}"
        known = hashlib.sha256() if not upload.received else self.digest(name, upload.received)
        digest = None if known is None else known.copy()  # the chunk may still be refused
        error: Exception | None = None
        try:
            async with self._contents.write(blob, upload.kept_until) as writer:
                if digest is not None:
                    writer.digest = digest  # the writer hashes in its thread
                try:
                    async for piece in body:
                        piece, skip = piece[skip:], max(0, skip - len(piece))
                        if piece:
                            upload.check_size(upload.received + writer.size + len(piece))
                            await writer.write(piece)
                except (ClientGoneError, GatewayError) as interruption:
                    error = interruption
                if not writer.size:
                    raise _EmptyError
        except _EmptyError:
            return None, error
        except BlobError:
            raise blobs_down() from None
        if digest is not None:
            self._digests[name] = upload.received + writer.size, digest
        return Part(blob, writer.size), error

    def digest(self, name: str, size: int) -> Any:
        """The hash of the upload's first `size` bytes, if this instance has it."""
        known, digest = self._digests.get(name, (0, None))
        return digest if known == size else None


def blobs_down() -> GatewayError:
    """The log has the details: they name folders and buckets, which clients must not see."""
    return GatewayError("BLOBS_DOWN", "the file cannot be kept, as the blob store does not take it", retry_after=5.0)


async def read_metadata(items: AsyncIterator[multipart.Part | bytes]) -> tuple[dict[str, Any], str]:
    """Read a multipart body up to its content: the metadata, and the content's MIME type."""
    metadata = bytearray()
    seen = False
    async for item in items:
        if isinstance(item, bytes):
            metadata += item
            if len(metadata) > METADATA_MOST:
                raise _long_metadata()
        elif not seen and item.kind.lower().startswith("application/json"):
            seen = True
        else:
            return described_by(bytes(metadata)), item.kind
    raise GatewayError("BAD_REQUEST", "the multipart body has no content after its metadata")


async def read_content(items: AsyncIterator[multipart.Part | bytes]) -> AsyncIterator[bytes]:
    """The bytes up to the next part. Further parts are read and ignored."""
    more = True
    async for item in items:
        more = more and isinstance(item, bytes)
        if more and isinstance(item, bytes):
            yield item


def described_by(body: bytes) -> dict[str, Any]:
    """The metadata: Google's File as the client sent it. Google gets the same."""
    if len(body) > METADATA_MOST:
        raise _long_metadata()
    document = json_of(body) if body else {}
    described = document.get("file", {}) if isinstance(document, dict) else None
    if not isinstance(described, dict):
        raise GatewayError("BAD_REQUEST", "Invalid JSON payload received.")
    given = given_of(described)
    if given and (resource(given) != given or not given.startswith("files/") or given.startswith(COPY)):
        raise GatewayError(
            "BAD_REQUEST", f"file.name: it must be files/ and an id, which does not begin with {COPY.partition('/')[2]}"
        )
    return described


def kind_of(headers: RawHeaders, described: Mapping[str, Any]) -> str:
    """The MIME type: from the headers, or else from the metadata."""
    kind = described.get("mimeType", described.get("mime_type"))
    stated = header(headers, b"x-goog-upload-header-content-type")
    return stated or (kind if isinstance(kind, str) and kind else "application/octet-stream")


def _long_metadata() -> GatewayError:
    return GatewayError("BAD_REQUEST", f"the file's metadata is longer than {METADATA_MOST} bytes")
