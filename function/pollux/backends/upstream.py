"""The way to Gemini: what each transport offers, and its one error. `transport` chooses one."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

READ_MOST = 1 << 24
"""Bytes. Errors and lists are smaller; larger answers are passed on in pieces."""


class UpstreamError(Exception):
    """No answer, or the rest of it, will come. `kind`: unreachable (nothing was sent), timeout, reset, or malformed:
    the upstream took the request, and its answer is not valid HTTP.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Streamed(Protocol):
    """A request body that is not held in memory: it is read once, as fast as the upstream takes it."""

    @property
    def length(self) -> int | None:
        """Content-Length, if it is known."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Answer(Protocol):
    __slots__ = ()

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def length(self) -> int | None:
        """Content-Length, if it was sent."""

    async def chunk(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises UpstreamError."""

    def close(self) -> None:
        """Stop reading. Closes the connection unless the answer was read to its end."""

    async def read(self) -> bytes:
        """The whole rest. Raises UpstreamError, also if it is larger than READ_MOST."""
        pieces, size = [], 0
        while data := await self.chunk():
            pieces.append(data)
            if (size := size + len(data)) > READ_MOST:
                self.close()
                raise UpstreamError("reset", f"the answer is larger than {READ_MOST} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Upstream(Protocol):
    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        """Send a request once and wait for the head of its answer. Adds only the headers Host and the length.

        `target` is the raw path and query. An answer may begin before a streamed body has ended; the rest of the body
        is then not read. Raises UpstreamError if no answer begins, and what a streamed body raises.
        """

    async def close(self) -> None: ...
