"""What a client says of the file that it uploads: as JSON, in headers, or in a part of its own before the content."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pollux.gemini.errors import GatewayError
from pollux.gemini.multipart import Part
from pollux.gemini.names import resource
from pollux.relay.client import header
from pollux.resources.pooled.documents import COPY, given_of

DESCRIBED_MOST = 16_384
RawHeaders = Sequence[tuple[bytes, bytes]]


class Parts:
    """What is said of the file, which comes first, and then its content."""

    def __init__(self, found: AsyncIterator["Part | bytes"]) -> None:
        self._found = found

    async def head(self) -> tuple[dict[str, Any], str]:
        said = bytearray()
        seen = False
        async for item in self._found:
            if isinstance(item, bytes):
                said += item
                if len(said) > DESCRIBED_MOST:
                    raise GatewayError("BAD_REQUEST", "what the multipart body says of the file is too long")
            elif not seen and item.kind.lower().startswith("application/json"):
                seen = True
            else:
                return described_by(bytes(said)), item.kind
        raise GatewayError("BAD_REQUEST", "the multipart body has no content after what it says of the file")

    async def content(self) -> AsyncIterator[bytes]:
        """Up to the next part, which means nothing."""
        more = True
        async for item in self._found:
            more = more and isinstance(item, bytes)
            if more and isinstance(item, bytes):
                yield item


def described_by(body: bytes) -> dict[str, Any]:
    """What the client says of the file, of which Google gets the same."""
    if len(body) > DESCRIBED_MOST:
        raise GatewayError("BAD_REQUEST", f"what is said of the file is longer than {DESCRIBED_MOST} bytes")
    try:
        document = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        document = None
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
    said = described.get("mimeType", described.get("mime_type"))
    told = header(headers, b"x-goog-upload-header-content-type")
    return told or (said if isinstance(said, str) and said else "application/octet-stream")
