"""The HTTP transport: one request sent, one answer read as it comes. What an answer means is not known here."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from pollux.connection import Connection, UpstreamError, head_of

__all__ = ["Answer", "HttpUpstream", "Streamed", "Upstream", "UpstreamError"]

IDLE_MOST = 30.0
"""Google closes an idle connection later than that; one that it closes just as it is used costs an attempt."""
READ_MOST = 1 << 24
"""No error and no list is larger; what is larger passes in pieces."""
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Answer(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def length(self) -> int | None:
        """Content-Length, if it was sent."""

    async def read(self) -> bytes:
        """All of the rest, if that is no more than READ_MOST. Raises UpstreamError."""

    async def chunk(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises UpstreamError."""

    def close(self) -> None:
        """Stop reading: the connection is closed unless the answer was read to its end."""


class Streamed(Protocol):
    """A body that is not held: it is read once, as fast as the upstream takes it."""

    @property
    def length(self) -> int | None:
        """Content-Length, if it is known."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Upstream(Protocol):
    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        """`target` is the raw path and query. Raises UpstreamError when no answer begins, and what a body raises that
        is streamed. An answer may begin before such a body has ended: the rest of it is not asked for then.
        """

    async def close(self) -> None: ...


class _HttpAnswer:
    __slots__ = ("_connection", "_upstream", "headers", "length", "status")

    def __init__(self, upstream: "HttpUpstream", connection: Connection) -> None:
        self._upstream = upstream
        self._connection: Connection | None = connection
        self.status = connection.status
        self.headers = connection.headers
        self.length = connection.length

    async def read(self) -> bytes:
        pieces, size = [], 0
        while data := await self.chunk():
            pieces.append(data)
            if (size := size + len(data)) > READ_MOST:
                self.close()
                raise UpstreamError("reset", f"an answer that is read whole is larger than {READ_MOST} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunk(self) -> bytes:
        if self._connection is None:
            return b""
        data = await self._connection.chunk()
        if self._connection.complete:
            self._done()
        return data

    def _done(self) -> None:
        """Give the connection back as soon as nothing more can come of it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.release(connection)

    def close(self) -> None:
        self._done()


class HttpUpstream:
    def __init__(self, base: str, *, timeout: float, connect_timeout: float) -> None:
        parts = urlsplit(base.rstrip("/"))
        secure = parts.scheme == "https"
        self._prefix = parts.path
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if secure else 80)
        self._named = parts.netloc.rpartition("@")[2]
        self._secure = secure
        self._tls: ssl.SSLContext | None = None
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._idle: deque[Connection] = deque()

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        # Scheme and host are fixed and the path is appended as text, never joined: `//elsewhere/…` stays a path.
        if not target.startswith("/"):
            raise UpstreamError("unreachable", "the target does not begin with a slash")
        whole = body if isinstance(body, bytes) else b""
        streamed = None if isinstance(body, bytes) else body
        length = (len(whole) if whole or method in WITH_BODY else None) if streamed is None else streamed.length
        head = head_of(
            method, self._prefix + target, self._named, headers, length, chunked=streamed is not None and length is None
        )
        connection = self._reused() or await self._connected()
        try:
            connection.request(head, whole, head_only=method == "HEAD")
            if streamed is not None:
                await connection.pour(aiter(streamed), streamed.length)
            await connection.begun()
        except BaseException:
            connection.close()
            raise
        return _HttpAnswer(self, connection)

    def _reused(self) -> Connection | None:
        """The one used last: the others grow old and go."""
        oldest = time.monotonic() - IDLE_MOST
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._secure and self._tls is None:
            self._tls = ssl.create_default_context()
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._timeout), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise UpstreamError("unreachable", f"no connection to {where} within the time allowed") from None
        except (OSError, ssl.SSLError, UnicodeError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamError("unreachable", f"no connection to {where} ({reason})") from error
        return connection

    def release(self, connection: Connection) -> None:
        if connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
