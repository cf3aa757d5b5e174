"""The second transport to the upstream: over httpx2, which supports proxies. `transport` chooses.

It uses the connections of httpcore2, the lower half of httpx2, which add nothing to a request, follow no redirect,
keep no cookies and send nothing twice. What they lack is here (docs/dependencies.md): an answer to an upload that has
not ended is read, a call can be closed at once, there is one deadline for connecting and one for a head, and httptools
parses each answer first, so that both transports refuse the same ones.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar, cast

import httpcore2
import httptools

from pollux.backends.connection import (
    BODY_NOT_TAKEN,
    HEADERS_MOST,
    HIGH_WATER,
    TOO_MUCH,
    TRAILERS_LATE,
    Address,
    ConnectionPool,
    connected_socket,
    head_of,
    no_connection,
    odd_status,
    timed_out,
    wrong_length,
)
from pollux.backends.upstream import Answer, Streamed, UpstreamError
from pollux.settings import Proxy

T = TypeVar("T")

logging.getLogger("httpcore2").setLevel(logging.WARNING)  # DEBUG logs the headers of answers, which may echo a key


class _Connection(asyncio.Protocol, httpcore2.AsyncNetworkBackend, httpcore2.AsyncNetworkStream):
    """One connection of httpcore2, and the network that it uses.

    It receives up to HIGH_WATER bytes while a body is written and while it is idle, so that it notices an early answer
    and the end of the connection.
    """

    def __init__(
        self, address: Address, proxy: Proxy | None, tls: ssl.SSLContext | None, timeout: float, made: float
    ) -> None:
        self.made = made
        self.idle_since = 0.0
        self.complete = False
        """The answer was read to its end."""
        self._begun = False
        """The request's head is being written: the upstream may act on it."""
        self._ended = False
        self._any_received = False
        """A byte of the answer, or of the proxy's, has come."""
        self._parser: httptools.HttpResponseParser | None = None
        """Set while the answer is being received."""
        self._head_size = 0
        """Bytes received before the answer's head has ended, with those of 1xx."""
        self._status = 0
        self._head_only = False
        self.in_trailers = False
        """The body is complete, and its trailers have begun."""
        self._refused: UpstreamError | None = None
        self._origin = address
        self._host = f"[{address.host}]".encode() if ":" in address.host else address.host.encode("idna")
        """httpcore2 sends it to a proxy as it is, so an IPv6 address has its brackets."""
        self._proxy = proxy
        self._place = f"the proxy {proxy.url}" if proxy else f"{address.host}:{address.port}"
        """What it is connecting to."""
        self.timeout = timeout
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        self._paused = False
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once an answer has begun or the connection has ended."""
        self._deadline: asyncio.Timeout
        self._http = httpcore2.AsyncConnectionPool(
            ssl_context=tls, proxy=_described(proxy, tls), network_backend=self
        ).create_connection(self._url(b"/").origin)

    def _url(self, target: bytes) -> httpcore2.URL:
        scheme = "https" if self._origin.secure else "http"
        return httpcore2.URL(scheme=scheme, host=self._host, port=self._origin.port, target=target)

    # --- one request -------------------------------------------------------------------------------------------------

    async def request(self, method: str, head: bytes, body: bytes | Streamed, within: float) -> httpcore2.Response:
        """Connects first if it is new, which takes `within` seconds at most."""
        self.complete = self._begun = self.in_trailers = False
        self._head_only = method == "HEAD"
        first, *lines = head.split(b"\r\n")[:-2]
        request = httpcore2.Request(
            method,
            self._url(first.split(b" ")[1]),
            headers=[(name, value) for name, _, value in (line.partition(b": ") for line in lines)],
            content=(body or None) if isinstance(body, bytes) else self._pieces(aiter(body), body.length),
            extensions={"trace": self._trace},
        )
        try:
            async with asyncio.timeout(within) as self._deadline:
                return await self._http.handle_async_request(request)
        except httpcore2.ProxyError as error:
            raise self.refused(str(error).partition(" ")[0]) from None
        except httpcore2.ProtocolError as error:
            raise self.failure(error) from None
        except TimeoutError:
            if not self._deadline.expired():
                raise  # from the body
            raise (timed_out() if self._begun else no_connection(self._place)) from None

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore2 calls this at each step, also for the CONNECT to the proxy."""
        if event == "http11.send_request_headers.started":
            self._answered = asyncio.get_running_loop().create_future()
            self._any_received = False
            if info["request"].method != b"CONNECT":
                self._begun = True
                self._head_size = self._status = 0
                self._parser = httptools.HttpResponseParser(self)
                self._deadline.reschedule(None)
        elif event == "http11.receive_response_headers.started" and self._begun:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self.timeout)

    async def _pieces(self, pieces: AsyncIterator[bytes], length: int | None) -> AsyncIterator[bytes]:
        written = 0
        try:
            while (piece := await self._unless_answered(_next(pieces))) is not None:
                written += len(piece)
                if length is not None and written > length:
                    break
                yield piece
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()
        if length not in (None, written):
            raise wrong_length(length, written)

    async def _unless_answered(self, doing: Awaitable[T]) -> T:
        """Its result. If an answer or the end of the connection comes first, a WriteError, after which httpcore2 reads
        the answer."""
        work = asyncio.ensure_future(doing)
        try:
            await asyncio.wait({cast("asyncio.Future[Any]", work), self._answered}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise httpcore2.WriteError
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    @property
    def usable(self) -> bool:
        idle = self.complete and self._http.is_idle() and not (self._ended or self._received)
        return idle and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def refused(self, status: str) -> UpstreamError:
        assert self._proxy is not None
        remedy = {
            "407": f"it wants other credentials; set them in {self._proxy.setting}",
            "403": f"it does not allow {self._origin.host}",
        }.get(status, "look at its log")
        return UpstreamError("unreachable", f"the proxy {self._proxy.url} answered {status}: {remedy}")

    def failure(self, error: httpcore2.ProtocolError) -> UpstreamError:
        """In our own words: the text of the error may quote a header, which may hold a key."""
        if isinstance(error, httpcore2.LocalProtocolError):
            return UpstreamError("unreachable", "the request has a header that HTTP does not allow")
        too_much = getattr(error.__cause__, "error_status_hint", 0) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        why = TOO_MUCH if too_much else "is not valid HTTP"
        if not self._begun:  # the proxy's answer to CONNECT
            if self._ended and not self._any_received:
                return UpstreamError("unreachable", f"{self._place} closed the connection")
            return UpstreamError("unreachable", f"the answer of {self._place} {why}")
        if self._ended and not (self._received or too_much):
            return UpstreamError("reset", "the connection broke (closed by the other end)")
        return UpstreamError("malformed", f"the answer {why}")

    # --- called by httpcore2 -----------------------------------------------------------------------------------------

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        try:
            sock = await connected_socket(host.strip("[]"), port)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except OSError as error:
            raise no_connection(self._place, error) from None
        return self

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        if self._proxy is not None and server_hostname == self._host.decode():
            self._place = f"{self._origin.host}:{self._origin.port} through the proxy {self._proxy.url}"
        assert self._transport is not None
        try:
            loop, name = asyncio.get_running_loop(), (server_hostname or "").strip("[]")
            made = await loop.start_tls(self._transport, self, ssl_context, server_hostname=name)
            self._transport = cast("asyncio.Transport", made)
        except OSError as error:
            raise no_connection(self._place, error) from None
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await self._readable.wait()
        if self._refused is not None:
            raise self._refused
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        if not (self._received or self._ended):
            self._readable.clear()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._transport is None:
            raise httpcore2.WriteError
        self._transport.write(buffer)
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self.timeout):
                    await self._unless_answered(self._writable.wait())
            except TimeoutError:
                raise UpstreamError("timeout", BODY_NOT_TAKEN) from None

    async def aclose(self) -> None:
        self.close()

    def get_extra_info(self, info: str) -> None:
        """It is asked only whether HTTP/2 was agreed on, which is never offered."""

    # --- called by asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._readable.set()
        self._any_received = True
        if self._parser is not None:
            self._parse(self._parser, data)

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        self._head_size += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._parser is not None:  # else it is what follows the answer
                self._refuse(f"is not valid HTTP ({error})")
        if not self._status and self._head_size > HEADERS_MOST:
            self._refuse(TOO_MUCH)

    def _refuse(self, why: str) -> None:
        self._refused = self._refused or UpstreamError("malformed", f"the answer {why}")
        self._parser = None
        self.close()
        self._readable.set()
        self._end_upload()

    def eof_received(self) -> None:
        self._ended = True
        self._readable.set()
        self._end_upload()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.eof_received()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- called by the parser ----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.in_trailers = self._status != 0 and self._parser is not None

    def on_headers_complete(self) -> None:
        if self._parser is not None and (status := self._parser.get_status_code()) >= 200:
            self._status = status
            if self._head_only:  # the parser would wait for a body
                self._parser = None
            self._end_upload()

    def on_message_complete(self) -> None:
        if self._status:  # else it was a 1xx
            self._parser = None

    def _end_upload(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


class _HttpxAnswer(Answer):
    __slots__ = ("_connection", "_missing", "_pieces", "_response", "_upstream", "headers", "length", "status")
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None

    def __init__(
        self, upstream: "HttpxUpstream", connection: _Connection, response: httpcore2.Response, *, bodiless: bool
    ) -> None:
        self._upstream = upstream
        self._connection: _Connection | None = connection
        self._response = response
        self._pieces = cast("AsyncGenerator[bytes]", aiter(cast("AsyncIterable[bytes]", response.stream)))
        self.status = response.status
        self.headers = response.headers
        self.length = next((int(v) for n, v in self.headers if n.lower() == b"content-length" and v.isdigit()), None)
        self._missing = None if bodiless else self.length

    async def chunk(self) -> bytes:
        if self._connection is None:
            return b""
        try:
            async with asyncio.timeout(self._connection.timeout):
                data = await anext(self._pieces, b"")
            if self._missing is not None:
                self._missing -= len(data)
            if not data or self._missing == 0:  # readers stop after the last byte
                await anext(self._pieces, None)
                await self._response.aclose()
                self._connection.complete = not _surplus(self._response)
                self.close()
        except TimeoutError:
            failure = UpstreamError("malformed", TRAILERS_LATE) if self._connection.in_trailers else timed_out()
            self.close()
            raise failure from None
        except httpcore2.ProtocolError as error:
            failure = self._connection.failure(error)
            self.close()
            raise failure from None
        return data

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.release(connection)


class HttpxUpstream(ConnectionPool[_Connection]):
    def __init__(self, base: str, *, proxy: Proxy | None = None, **options: Any) -> None:
        super().__init__(base, **options)
        self._proxy = proxy

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> _HttpxAnswer:
        head = head_of(method, self._address, target, headers, body)
        connection = self._reused() or self._new()
        try:
            response = await connection.request(method, head, body, self._connect_timeout)
            if response.status == 407 and self._proxy is not None:
                raise connection.refused("407")
            _check(response)
        except BaseException:
            connection.close()
            raise
        return _HttpxAnswer(self, connection, response, bodiless=method == "HEAD" or response.status in (204, 304))

    def _new(self) -> _Connection:
        proxy_secure = self._proxy is not None and self._proxy.url.startswith("https")
        if self._tls is None and (self._address.secure or proxy_secure):
            self._tls = ssl.create_default_context()
        try:
            return _Connection(self._address, self._proxy, self._tls, self._timeout, self._clock())
        except UnicodeError as error:
            raise no_connection(f"{self._address.host}:{self._address.port}", error) from None


def _described(proxy: Proxy | None, tls: ssl.SSLContext | None) -> httpcore2.Proxy | None:
    if proxy is None:
        return None
    credentials = (proxy.user.encode(), proxy.password.encode()) if proxy.user or proxy.password else None
    return httpcore2.Proxy(proxy.url, credentials, ssl_context=tls if proxy.url.startswith("https") else None)


def _check(response: httpcore2.Response) -> None:
    """Refuse what our own connection refuses, too."""
    if sum(len(name) + len(value) for name, value in response.headers) > HEADERS_MOST:
        raise UpstreamError("malformed", f"the answer {TOO_MUCH}")
    if not 200 <= response.status < 600:
        raise UpstreamError("malformed", f"the answer {odd_status(response.status)}")


def _surplus(response: httpcore2.Response) -> bool:
    """More was received than the answer. httpcore2 would take it for the answer to the next request.

    Only a private attribute tells. Without it no connection is reused, and a test fails.
    """
    try:
        return bool(response.stream._connection._h11_state.trailing_data[0])  # type: ignore[union-attr]
    except AttributeError:
        return True
