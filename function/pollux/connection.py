"""One HTTP/1.1 connection to the upstream: a request written, its answer parsed as it comes. Which one is used for a
request is decided in `upstream`.

Written on httptools (llhttp) for the one thing it is needed for: aiohttp's client costs as much as all the rest of a
request does here (docs/performance.md).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import cast

import httptools

HIGH_WATER = 1 << 18
"""What is parsed but not read yet, above which the server has to wait."""
HEADERS_MOST = 1 << 17


class UpstreamError(Exception):
    """No answer, or the rest of it, will come. `kind`: unreachable, timeout or reset."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Connection(asyncio.Protocol):
    """Serves one request at a time; `usable` tells whether it may have another."""

    def __init__(self, timeout: float) -> None:
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
        self._header_size = 0
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
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(UpstreamError("reset", "what came is no HTTP"))
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
        if self._surplus:
            return
        self._header_size += len(name) + len(value)
        if self._header_size > HEADERS_MOST:
            self._fail(UpstreamError("reset", f"the headers are larger than {HEADERS_MOST} bytes"))
            return
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._surplus or self._lost is not None:
            return
        if 100 <= status < 200:
            self.headers.clear()
            return
        self.status, self._begun = status, True
        bodiless = self._head_only or status in (204, 304)
        chunked = False
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"content-length" and value.isdigit():
                self.length = int(value)
            elif lower == b"transfer-encoding":
                chunked = True
        self._framed = bodiless or chunked or self.length is not None
        if self._head_only:  # the parser would wait for a body that never comes
            self.complete = True
            self.close()

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self._chunks.append(body)
        self._held += len(body)
        if self._held > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._begun:  # else it was a 1xx
            self._stays = not self.complete and self._parser.should_keep_alive()
            self.complete = True

    # --- what `upstream` and the reader of an answer ask ---------------------------------------------------------

    def request(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        if self._transport is None:
            raise self._lost or UpstreamError("reset", "the connection is closed")
        self.status, self.length, self.headers = 0, None, []
        self.complete = self._begun = self._stays = False
        self._head_only, self._framed, self._header_size = head_only, True, 0
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
                if self._lost is not None:
                    raise self._lost
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
        while not self._begun:
            await self._more()

    async def chunk(self) -> bytes:
        """What came since the last time, at least a byte; b"" at the end."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._more()
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

    async def _more(self) -> None:
        """Until something comes. The time allowed is between two arrivals."""
        if self._lost is not None:
            raise self._lost
        timer = self._loop.call_later(self._timeout, self._too_late)
        try:
            await self._arrival()
        finally:
            timer.cancel()

    async def _arrival(self) -> None:
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _too_late(self) -> None:
        self._fail(UpstreamError("timeout", "no answer within the time allowed"))

    def _fail(self, error: UpstreamError) -> None:
        self._lost = self._lost or error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def head_of(
    method: str,
    target: str,
    host: str,
    headers: Sequence[tuple[str, str]],
    length: int | None,
    *,
    chunked: bool = False,
) -> bytes:
    """The request line and headers. A line feed in any of them would begin a header, or a request, of its own."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    elif chunked:
        lines.append("Transfer-Encoding: chunked")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or " " in target or "\0" in text:
        raise UpstreamError("unreachable", "the request has a line feed, a space or a null where none may be")
    return (text + "\r\n\r\n").encode("latin-1")
