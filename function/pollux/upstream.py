"""The HTTP transport: one request sent, one answer read as it comes. What an answer means is not known here.

aiohttp is spoken to directly: one layer of client objects more costs a third of the throughput (docs/performance.md).
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Protocol

import aiohttp
from multidict import CIMultiDict
from yarl import URL

MAX_LINE = 64 * 1024


class UpstreamError(Exception):
    """No answer, or the rest of it, will come. `kind`: unreachable, timeout or reset."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Answer(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def length(self) -> int | None:
        """Content-Length, if it was sent."""

    async def read(self) -> bytes:
        """All of the rest."""

    async def chunk(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises UpstreamError."""

    def close(self) -> None:
        """Stop reading: the connection is closed unless the answer was read to its end."""


class Upstream(Protocol):
    async def send(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """`target` is the raw path and query. Raises UpstreamError when no answer begins."""

    async def close(self) -> None: ...


def _error(error: BaseException) -> UpstreamError:
    # The texts of aiohttp name host and port, never headers or queries.
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamError("unreachable", "no connection within the time allowed")
    if isinstance(error, TimeoutError):
        return UpstreamError("timeout", "no answer within the time allowed")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamError("unreachable", f"no connection to {error.host}:{error.port}")
    return UpstreamError("reset", f"the connection broke ({type(error).__name__})")


_BROKEN = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ssl.SSLError)


class _HttpAnswer:
    __slots__ = ("_response", "headers", "length", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.raw_headers
        self.length = response.content_length

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except _BROKEN as error:
            raise _error(error) from None

    async def chunk(self) -> bytes:
        try:
            return await self._response.content.readany()
        except _BROKEN as error:
            raise _error(error) from None

    def close(self) -> None:
        self._response.close()


class HttpUpstream:
    def __init__(self, base: str, *, timeout: float, connect_timeout: float) -> None:
        self._base = base.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=timeout)
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=self._timeout,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
                max_line_size=MAX_LINE,
                max_field_size=MAX_LINE,
            )
        return self._session

    async def send(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        # The path is appended to a fixed origin as text, never joined: `//elsewhere/…` stays a path.
        if not target.startswith("/"):
            raise UpstreamError("unreachable", "what does not begin with a slash could change the upstream's host")
        url = URL(self._base + target, encoded=True)
        try:
            response = await self._opened().request(
                method, url, headers=CIMultiDict(headers), data=body or None, allow_redirects=False
            )
        except _BROKEN as error:
            raise _error(error) from None
        return _HttpAnswer(response)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
