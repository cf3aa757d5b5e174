"""Reads a multipart body as it arrives. It holds no more than one piece and a boundary."""

import re
from collections.abc import AsyncIterator
from typing import NamedTuple

from pollux.gemini.errors import GatewayError

HEADERS_MOST = 16_384
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)


class Part(NamedTuple):
    """The start of a part: its headers, their names in lower case. Its bytes follow."""

    headers: dict[str, str]

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "")

    def parameter(self, name: str) -> str | None:
        """A parameter of its content-disposition."""
        found = re.search(rf'\b{name}="([^"]*)"', self.headers.get("content-disposition", ""))
        return found[1] if found else None


def boundary_of(content_type: str) -> bytes | None:
    """None if the body is not multipart."""
    if not content_type.lower().startswith("multipart/"):
        return None
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise GatewayError("BAD_REQUEST", "the multipart body has no boundary in its content-type")
    return (found[1] or found[2]).encode("latin-1")


async def parts(pieces: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Part | bytes]:
    """Each part's start, then its bytes. Raises GatewayError if the body ends before its last boundary."""
    mark = b"\r\n--" + boundary
    held, inside = b"\r\n", False
    async for piece in pieces:
        held += piece
        while (at := held.find(mark)) >= 0:
            after = held[at + len(mark) :]
            if len(after) < 2:
                break
            if inside and at:
                yield held[:at]
            held, at, inside = held[at:], 0, False
            if after.startswith(b"--"):
                async for _ in pieces:  # ignore what follows the last part
                    pass
                return
            end = after.find(b"\r\n\r\n")
            if end < 0:
                if len(after) > HEADERS_MOST:
                    raise GatewayError("BAD_REQUEST", "the headers of a part of the multipart body are too long")
                break
            yield Part(_headers(after[:end]))
            held, inside = after[end + 4 :], True
        # Hold back what may be the beginning of a boundary, or of what follows one.
        sure = at if at >= 0 else max(0, len(held) - len(mark))
        if sure:
            if inside:
                yield held[:sure]
            held = held[sure:]
    raise GatewayError("BAD_REQUEST", "the multipart body ends before its last boundary")


def _headers(block: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in block.decode("latin-1").split("\r\n"))
    return {name.strip().lower(): value.strip() for name, colon, value in lines if colon}
