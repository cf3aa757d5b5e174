"""Reads a multipart body as it comes, part by part, with no more in memory than a piece and a boundary."""

import re
from collections.abc import AsyncIterator
from typing import NamedTuple

from gemini_simulator.errors import bad_request

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_MOST_HEADERS = 16_384


class Part(NamedTuple):
    """The start of a part, with its headers in lower case."""

    headers: dict[str, str]

    def field(self, name: str) -> str | None:
        """A parameter of its content-disposition."""
        found = re.search(rf'\b{name}="([^"]*)"', self.headers.get("content-disposition", ""))
        return found[1] if found else None


def boundary_of(content_type: str) -> bytes:
    if not content_type.lower().startswith("multipart/") or not (found := _BOUNDARY.search(content_type)):
        raise bad_request("Multipart body without a boundary.")
    return (found[1] or found[2]).encode("latin-1")


async def parts(pieces: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Part | bytes]:
    """Each part's start, then its bytes in pieces. Raises ApiError where the body ends too early."""
    mark = b"\r\n--" + boundary
    held = b"\r\n"
    inside = False
    async for piece in pieces:
        held += piece
        while True:
            at = held.find(mark)
            if at < 0:
                sure = len(held) - len(mark)
                if sure > 0:
                    if inside:
                        yield held[:sure]
                    held = held[sure:]
                break
            after = held[at + len(mark) :]
            if after.startswith(b"--"):
                if inside and at:
                    yield held[:at]
                async for _ in pieces:  # what follows the last part means nothing
                    pass
                return
            end = after.find(b"\r\n\r\n")
            if end < 0:
                if len(after) > _MOST_HEADERS:
                    raise bad_request("Multipart body: the headers of a part are too long.")
                break
            if inside and at:
                yield held[:at]
            yield Part(_headers(after[:end]))
            inside = True
            held = after[end + 4 :]
    raise bad_request("Multipart body: it ends before its last boundary.")


def _headers(block: bytes) -> dict[str, str]:
    found = {}
    for line in block.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return found
