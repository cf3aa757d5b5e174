"""Our own way to the upstream: HTTP/1.1 connections that are kept and used again. The default; `upstream` chooses.

Written on httptools (llhttp): a client library costs as much as all the rest of a request (docs/performance.md).
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

IDLE_MOST = 30.0
"""Seconds. Google closes an idle connection later than that; one that it closes just as it is used costs an attempt."""
AGE_MOST = 300.0
"""Seconds. Older connections are not used again: DNS may have changed meanwhile."""
SECOND_ADDRESS_AFTER = 0.25
"""Seconds until the next address is tried as well when one does not answer (RFC 8305)."""
READ_MOST = 1 << 24
"""No error and no list is larger; what is larger passes in pieces."""
HIGH_WATER = 1 << 18
"""What is parsed but not read yet, above which the server has to wait."""
HEADERS_MOST = 1 << 16
TOO_MUCH = f"has a head or trailers of more than {HEADERS_MOST} bytes"
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class UpstreamError(Exception):
    """No answer, or the rest of it, will come. `kind`: unreachable (nothing was sent), timeout, reset, or malformed:
    the upstream took the request, and its answer is not valid HTTP.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Streamed(Protocol):
    """A body that is not held: it is read once, as fast as the upstream takes it."""

    @property
    def length(self) -> int | None:
        """Content-Length, if it is known."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class ReadWhole:
    """What every answer can do with its `chunk` and `close`."""

    __slots__ = ()

    async def chunk(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    async def read(self) -> bytes:
        pieces, size = [], 0
        while data := await self.chunk():
            pieces.append(data)
            if (size := size + len(data)) > READ_MOST:
                self.close()
                raise UpstreamError("reset", f"an answer that is read whole is larger than {READ_MOST} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Connection(asyncio.Protocol):
    """Serves one request at a time; `usable` tells whether it may have another."""

    def __init__(self, timeout: float, made: float) -> None:
        self.made = made
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.complete = True
        """The answer was parsed to its end."""
        self.idle_since = 0.0
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._unproductive = 0
        """Bytes received since the head was complete or a piece of the body came: an unfinished head, or trailers."""
        self._paused = False
        self._begun = False
        self._head_only = False
        self._stays = True
        self._surplus = False
        """An answer that nobody asked for came behind the one that was: the connection is not used again."""
        self._framed = True
        """Its end is told by a length or by chunks, not by the end of the connection."""
        self._lost: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._full: asyncio.Future[None] | None = None
        """Set while the upstream takes nothing more."""
        self._cut = False
        """Of the request's body not all was written: the connection is not used again."""

    # --- what asyncio tells --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        if self.complete:  # bytes that nobody asked for
            self.close()
            return
        self._unproductive += len(data)  # the parser collects a header that never ends without telling
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(f"is not valid HTTP ({error})")
        if self._unproductive > HEADERS_MOST:
            self._refuse(TOO_MUCH)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self._begun and not self._framed and exc is None:
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

    # --- what the parser tells -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._surplus = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not (self._surplus or self._begun):  # what comes later is a trailer
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
        self.status, self._begun = status, True
        self._framed = bodiless or chunked or self.length is not None
        if self._head_only:  # the parser would wait for a body that never comes
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
        if self._begun:  # else it was a 1xx
            self._stays = not self.complete and self._parser.should_keep_alive()
            self.complete = True

    # --- what `HttpUpstream` and the reader of an answer ask -----------------------------------------------------

    def request(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        if self._transport is None:
            raise UpstreamError("unreachable", "the connection was closed before anything was sent")
        self.status, self.length, self.headers = 0, None, []
        self.complete = self._begun = self._stays = False
        self._head_only, self._framed, self._unproductive = head_only, True, 0
        self._transport.write(head + body if len(body) < HIGH_WATER else head)
        if len(body) >= HIGH_WATER:
            self._transport.write(body)

    async def pour(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        """Write a body while it comes, no faster than the upstream takes it, until its end or until an answer begins.

        Without a length it goes in chunks. What `pieces` raises is raised here; the connection must then be closed.
        """
        self._cut = True
        pump = self._loop.create_task(self._pump(pieces, length))
        pump.add_done_callback(lambda _: self._wake())
        try:
            while not (pump.done() or self._begun):
                await self._arrival()  # the time allowed is not counted: so much can still be said by us
        finally:
            if not pump.done():
                pump.cancel()
                await asyncio.wait({pump})
        trouble = None if pump.cancelled() else pump.exception()
        if trouble is not None and not self._begun:  # what was answered says more than that a pipe broke
            raise trouble
        self._cut = pump.cancelled() or trouble is not None

    async def _pump(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        written = 0
        async for piece in pieces:
            written += len(piece)
            if length is not None and written > length:  # what is too much would be read as the next request
                break
            self._write(piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
            if self._full is not None:
                await self._room(self._full)
        if length is None:
            self._write(b"0\r\n\r\n")
        elif written != length:
            raise UpstreamError("reset", f"the body was to have {length} bytes, and {written} came")

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise self._lost or UpstreamError("reset", "the connection is closed")
        self._transport.write(data)

    async def _room(self, full: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(full)
        except TimeoutError:
            raise UpstreamError("timeout", "the body was not taken within the time allowed") from None

    async def begun(self) -> None:
        """Until the head is there. The time allowed is for all of it: one that comes byte by byte ends too."""
        if self._begun:
            return
        timer = self._loop.call_later(self._timeout, self._too_late)
        try:
            while not self._begun:
                await self._arrival()
        finally:
            timer.cancel()

    async def chunk(self) -> bytes:
        """What came since the last time, at least a byte; b"" at the end. The time allowed is for each."""
        if not (self._chunks or self.complete):
            timer = self._loop.call_later(self._timeout, self._too_late)
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

    def _too_late(self) -> None:
        self._fail(UpstreamError("timeout", "no answer within the time allowed"))

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
    """An upstream's base URL, taken apart."""

    secure: bool
    host: str
    port: int
    named: str
    """As the header Host has it."""
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
    """The request line and headers. A line feed in any of them would begin a header, or a request, of its own."""
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
        raise UpstreamError("unreachable", "the request has a line feed, a space or a null where none may be")
    return (text + "\r\n\r\n").encode("latin-1")


class _HttpAnswer(ReadWhole):
    __slots__ = ("_connection", "_upstream", "headers", "length", "status")

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
        """Give the connection back. It is closed unless the answer was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.release(connection)


class HttpUpstream:
    def __init__(
        self, base: str, *, timeout: float, connect_timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = Address.of(base)
        self._tls: ssl.SSLContext | None = None
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._idle: deque[Connection] = deque()

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> _HttpAnswer:
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
        return _HttpAnswer(self, connection)

    def _reused(self) -> Connection | None:
        """The one used last: the others grow old and go."""
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

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = self._address.host, self._address.port
        if self._address.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._connect_timeout):
                chosen = await _first_to_connect(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
                _, connection = await loop.create_connection(
                    lambda: Connection(self._timeout, self._clock()),
                    sock=chosen,
                    ssl=self._tls,
                    server_hostname=host if self._tls else None,
                )
        except TimeoutError:
            raise UpstreamError("unreachable", f"no connection to {host}:{port} within the time allowed") from None
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise UpstreamError("unreachable", f"no connection to {host}:{port} ({reason(error)})") from error
        return connection

    def release(self, connection: Connection) -> None:
        if connection.usable:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def odd_status(status: int) -> str:
    return f"has the status {status}, which is not expected here"


def reason(error: BaseException) -> str:
    """What an error of a socket or of TLS says, without the address or certificate that its text may quote."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


async def _first_to_connect(found: Sequence[tuple[Any, ...]]) -> socket.socket:
    """Try IPv6 and IPv4 addresses in turn: the next one when one fails or does not answer. uvloop does not do that."""
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
