"""Our own transport to the upstream: HTTP/1.1 over connections that are reused. The default; `transport` chooses.

Written on httptools (llhttp), because a client library costs as much CPU as the rest of a request
(docs/performance.md). What `through_httpx` does the same way is here too: limits, the request's head, connecting,
idle connections.
"""

import asyncio
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import httptools

from pollux.backends.upstream import Answer, Streamed, UpstreamError

IDLE_MOST = 30.0
"""Seconds. Google closes an idle connection later than that; one that it closes just as it is used costs an attempt."""
AGE_MOST = 300.0
"""Seconds. Older connections are not reused: DNS may have changed."""
SECOND_ADDRESS_AFTER = 0.25
"""Seconds until the next address is tried as well when one does not answer (RFC 8305)."""
HIGH_WATER = 1 << 18
"""Bytes received but not read yet, above which the connection stops receiving."""
HEADERS_MOST = 1 << 16
TOO_MUCH = f"has a head or trailers of more than {HEADERS_MOST} bytes"
TRAILERS_LATE = "the answer has trailers that did not end within the time allowed"
BODY_NOT_TAKEN = "the upstream did not take the body within the time allowed"
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Connection(asyncio.Protocol):
    """Serves one request at a time; `usable` tells whether it can take another."""

    def __init__(self, timeout: float, made: float) -> None:
        self.made = made
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.complete = True
        """The answer has been parsed to its end."""
        self.idle_since = 0.0
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._unproductive = 0
        """Bytes received since the last complete head or piece of body: an unfinished head, or trailers."""
        self._paused = False
        self._head_only = False
        self._stays = True
        self._surplus = False
        """A second answer follows the one that was asked for: the connection is not reused."""
        self._in_trailers = False
        """The body is complete, and its trailers have begun."""
        self._framed = True
        """The answer ends by a length or by chunks, not with the connection."""
        self._lost: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._full: asyncio.Future[None] | None = None
        """Set while the transport's write buffer is full."""
        self._cut = False
        """The request's body was not written to its end: the connection is not reused."""

    # --- called by asyncio ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        if self.complete:  # bytes without a request
            self.close()
            return
        self._unproductive += len(data)  # the parser does not report a header until its end
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(f"is not valid HTTP ({error})")
        if self._unproductive > HEADERS_MOST:
            self._refuse(TOO_MUCH)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self.status and not self._framed and exc is None:
            self.complete = True
        if self._lost is None:
            why = type(exc).__name__ if exc is not None else "closed by the other end"
            self._lost = UpstreamError("reset", f"the connection broke ({why})")
        self._transport = None
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._full = self._full or self._loop.create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    # --- called by the parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._surplus = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._surplus:
            return
        if self.status:
            self._in_trailers = True
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._surplus or self._lost is not None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers.clear()
            return
        if not 200 <= status < 600:
            self._refuse(odd_status(status))
            return
        self._unproductive = 0
        bodiless = self._head_only or status in (204, 304)
        chunked, size = False, 0
        for name, value in self.headers:
            size += len(name) + len(value)
            lower = name.lower()
            if lower == b"content-length" and value.isdigit():
                self.length = int(value)
            elif lower == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    self._refuse("has a transfer-encoding that was not asked for")
                    return
                chunked = True
        if size > HEADERS_MOST:
            self._refuse(TOO_MUCH)
            return
        self.status = status
        self._framed = bodiless or chunked or self.length is not None
        if self._head_only:  # the parser would wait for a body
            self.complete = True
            self.close()

    def on_body(self, body: bytes) -> None:
        if self._surplus or self._lost is not None:
            return
        self._unproductive = 0
        self._chunks.append(body)
        self._held += len(body)
        if self._held > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status:  # else it was a 1xx
            self._stays = not self.complete and self._parser.should_keep_alive()
            self.complete = True

    # --- called by `HttpUpstream` and `HttpAnswer` ---------------------------------------------------------------

    def request(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        if self._transport is None:
            raise UpstreamError("unreachable", "the connection was closed before anything was sent")
        self.status, self.length, self.headers = 0, None, []
        self.complete = self._stays = self._in_trailers = False
        self._head_only, self._framed, self._unproductive = head_only, True, 0
        self._transport.write(head + body if len(body) < HIGH_WATER else head)
        if len(body) >= HIGH_WATER:
            self._transport.write(body)

    async def pour(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        """Write a body as fast as the upstream takes it, until its end or until an answer begins.

        Without a length it is sent in chunks. What `pieces` raises is raised here; then close the connection.
        """
        self._cut = True
        pump = self._loop.create_task(self._pump(pieces, length))
        pump.add_done_callback(lambda _: self._wake())
        try:
            while not (pump.done() or self.status):
                await self._arrival()  # without a time limit: the client may be slow
        finally:
            if not pump.done():
                pump.cancel()
                await asyncio.wait({pump})
        trouble = None if pump.cancelled() else pump.exception()
        if trouble is not None and not self.status:  # an answer says more than a broken pipe
            raise trouble
        self._cut = pump.cancelled() or trouble is not None

    async def _pump(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        written = 0
        async for piece in pieces:
            written += len(piece)
            if length is not None and written > length:  # the rest would be read as the next request
                break
            self._write(piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
            if self._full is not None:
                await self._room(self._full)
        if length is None:
            self._write(b"0\r\n\r\n")
        elif written != length:
            raise wrong_length(length, written)

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise self._lost or UpstreamError("reset", "the connection is closed")
        self._transport.write(data)

    async def _room(self, full: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(full)
        except TimeoutError:
            raise UpstreamError("timeout", BODY_NOT_TAKEN) from None

    async def begun(self) -> None:
        """Wait for the whole head. The timeout is for all of it, so that a head that comes byte by byte ends too."""
        if self.status:
            return
        timer = self._loop.call_later(self._timeout, self._time_out)
        try:
            while not self.status:
                await self._arrival()
        finally:
            timer.cancel()

    async def chunk(self) -> bytes:
        """What has arrived since the last call, at least a byte; b"" at the end. The timeout is for each call."""
        if not (self._chunks or self.complete):
            timer = self._loop.call_later(self._timeout, self._time_out)
            try:
                while not (self._chunks or self.complete):
                    await self._arrival()
            finally:
                timer.cancel()
        if not self._chunks:
            return b""
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def usable(self) -> bool:
        return (
            self.complete
            and not self._chunks
            and self._lost is None
            and self._transport is not None
            and not self._transport.is_closing()
            and self._stays
            and not self._cut
        )

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _arrival(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _time_out(self) -> None:
        # A whole body has been received, so the request is not sent again.
        self._fail(UpstreamError("malformed", TRAILERS_LATE) if self._in_trailers else timed_out())

    def _refuse(self, why: str) -> None:
        self._fail(UpstreamError("malformed", f"the answer {why}"))

    def _fail(self, error: UpstreamError) -> None:
        self._lost = self._lost or error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Address(NamedTuple):
    """The parts of an upstream's base URL."""

    secure: bool
    host: str
    port: int
    named: str
    """For the header Host."""
    prefix: str

    @classmethod
    def of(cls, base: str) -> "Address":
        parts = urlsplit(base.rstrip("/"))
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        return cls(secure, parts.hostname or "", port, parts.netloc.rpartition("@")[2], parts.path)


def head_of(
    method: str, address: Address, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
) -> bytes:
    """The request line and headers. Refuses a line feed, which would begin another header or request."""
    # Scheme and host are fixed and the path is appended as text, never joined: `//elsewhere/…` stays a path.
    if not target.startswith("/"):
        raise UpstreamError("unreachable", "the target does not begin with a slash")
    lines = [f"{method} {address.prefix}{target} HTTP/1.1", f"Host: {address.named}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if not isinstance(body, bytes):
        lines.append("Transfer-Encoding: chunked" if body.length is None else f"Content-Length: {body.length}")
    elif body or method in WITH_BODY:
        lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or " " in target or "\0" in text:
        raise UpstreamError("unreachable", "the request has a line feed, a null or a space where HTTP allows none")
    try:
        return (text + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError:
        pass  # it holds the whole text, which has a key
    raise UpstreamError("unreachable", "the request has a character that HTTP does not allow")


def timed_out() -> UpstreamError:
    return UpstreamError("timeout", "no answer within the time allowed")


def wrong_length(announced: int | None, written: int) -> UpstreamError:
    return UpstreamError("reset", f"the body has {written} bytes, but {announced} were announced")


def odd_status(status: int) -> str:
    return f"has the unexpected status {status}"


def no_connection(where: str, error: BaseException | None = None) -> UpstreamError:
    """`error` None or a TimeoutError: it took too long. Otherwise says what the socket or TLS reported, without the
    address or certificate that an error's text may quote."""
    if error is None or isinstance(error, TimeoutError):
        return UpstreamError("unreachable", f"no connection to {where} within the time allowed")
    reason: str | None
    match error:
        case ssl.SSLError():
            reason = error.reason
        case OSError(errno=int(number)) if number > 0:  # getaddrinfo's are negative
            reason = os.strerror(number).lower()
        case ConnectionError():
            reason = "the other end closed the connection"
        case _:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return UpstreamError("unreachable", f"no connection to {where} ({reason or type(error).__name__})")


class Reusable(Protocol):
    made: float
    idle_since: float

    @property
    def usable(self) -> bool: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Reusable)


class ConnectionPool(Generic[C]):
    """The connections to one upstream. Those that are idle are kept for a while."""

    def __init__(
        self, base: str, *, timeout: float, connect_timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = Address.of(base)
        self._tls: ssl.SSLContext | None = None
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._idle: deque[C] = deque()

    def _reused(self) -> C | None:
        """The connection that was used last, so that the others grow old and are closed."""
        if not self._idle:
            return None
        now = self._clock()
        while self._idle and self._idle[0].idle_since < now - IDLE_MOST:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.made > now - AGE_MOST:
                return connection
            connection.close()
        return None

    def release(self, connection: C) -> None:
        if connection.usable:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class HttpAnswer(Answer):
    __slots__ = ("_connection", "_upstream", "headers", "length", "status")
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None

    def __init__(self, upstream: "HttpUpstream", connection: Connection) -> None:
        self._upstream = upstream
        self._connection: Connection | None = connection
        self.status = connection.status
        self.headers = connection.headers
        self.length = connection.length

    async def chunk(self) -> bytes:
        if self._connection is None:
            return b""
        data = await self._connection.chunk()
        if self._connection.complete:
            self.close()
        return data

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.release(connection)


class HttpUpstream(ConnectionPool[Connection]):
    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> HttpAnswer:
        head = head_of(method, self._address, target, headers, body)
        connection = self._reused() or await self._connected()
        try:
            connection.request(head, body if isinstance(body, bytes) else b"", head_only=method == "HEAD")
            if not isinstance(body, bytes):
                await connection.pour(aiter(body), body.length)
            await connection.begun()
        except BaseException:
            connection.close()
            raise
        return HttpAnswer(self, connection)

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = self._address.host, self._address.port
        if self._address.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._timeout, self._clock()),
                    sock=await connected_socket(host, port),
                    ssl=self._tls,
                    server_hostname=host if self._tls else None,
                )
        except (OSError, UnicodeError) as error:
            raise no_connection(f"{host}:{port}", error) from None
        return connection


async def connected_socket(host: str, port: int) -> socket.socket:
    """Tries IPv6 and IPv4 addresses in turn, the next one when one fails or does not answer. uvloop does not."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [info for info in found if info[0] == found[0][0]]
    others = [info for info in found if info[0] != found[0][0]]
    waiting = deque(info for info in chain.from_iterable(zip_longest(first, others)) if info is not None)
    trying: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException | None = None
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.ensure_future(_connected_to(*waiting.popleft())))
            done, trying = await asyncio.wait(
                trying, timeout=SECOND_ADDRESS_AFTER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if (failure := task.exception()) is None:
                    trying |= done - {task}
                    return task.result()
        raise failure or OSError("no address")
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_unused)


async def _connected_to(family: int, kind: int, protocol: int, _: str, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _close_unused(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
