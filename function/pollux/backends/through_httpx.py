"""The second way to the upstream: over httpx2, which knows proxies. `upstream` chooses.

It uses httpcore2, the lower half of httpx2, which adds nothing to a request, follows no redirect and keeps no cookies.
This module adds what httpcore2 lacks (docs/dependencies.md): it reads the answer to an upload that has not ended,
limits the age of a connection, and has one deadline for connecting and one for a head.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import httpcore2

from pollux.backends.connection import (
    AGE_MOST,
    HEADERS_MOST,
    IDLE_MOST,
    TOO_MUCH,
    Address,
    ReadWhole,
    Streamed,
    UpstreamError,
    head_of,
    odd_status,
    reason,
)
from pollux.settings import Proxy

T = TypeVar("T")
PIECE = 1 << 16
"""Larger bodies go in pieces, so that an answer is seen before they have ended."""

logging.getLogger("httpcore2").setLevel(logging.WARNING)  # below, it logs the headers of answers, which may echo a key

_outgoing: ContextVar["_Outgoing | None"] = ContextVar("outgoing", default=None)


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection that is read while a body is written to it, and while it is idle."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream, clock: Callable[[], float], made: float) -> None:
        self._inner = inner
        self._clock = clock
        self._made = made
        self.spent = False
        """Not to be used again."""
        self.early: asyncio.Task[bytes] | None = None
        """A read that was begun before httpcore2 asked for it."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.early is None:
            return await self._inner.read(max_bytes, timeout)
        try:
            async with asyncio.timeout(timeout):
                return await self.early
        except TimeoutError:
            raise httpcore2.ReadTimeout from None
        finally:
            self.early = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if (outgoing := _outgoing.get()) is not None:
            outgoing.stream = self
        if self.early is None or not buffer:
            await self._inner.write(buffer, timeout)
            return
        await self.first(self._inner.write(buffer, timeout))

    async def first(self, doing: Coroutine[Any, Any, T]) -> T:
        """Its result, unless an answer or the end of the connection comes first.

        That is a WriteError, after which httpcore2 goes on with reading the answer.
        """
        assert self.early is not None
        work = _begun(doing)
        try:
            if not self.early.done():
                await asyncio.wait({work, self.early}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise httpcore2.WriteError
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    def watch(self) -> None:
        if self.early is None:
            self.early = _begun(self._inner.read(PIECE))

    async def aclose(self) -> None:
        if self.early is not None:
            self.early.cancel()
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:  # httpcore2 leaves it open when it is cancelled
            await self.aclose()
            raise
        return _Stream(inner, self._clock, self._made)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of idle connections only, and those that answer so are closed
            ended = self.early is not None and self.early.done()
            return ended or self.spent or self._clock() > self._made + AGE_MOST
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.AsyncNetworkBackend):
    """Connects with anyio, which tries IPv6 and IPv4 addresses in turn, as our own connection does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._inner = httpcore2.AnyIOBackend()
        self._clock = clock

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(*args, **options), self._clock, self._clock())


class _ProxyPool(httpcore2.AsyncHTTPProxy):
    def create_connection(self, origin: httpcore2.Origin) -> httpcore2.AsyncConnectionInterface:
        made = super().create_connection(origin)
        if (outgoing := _outgoing.get()) is not None:
            outgoing.connection = made
        return made


class _Outgoing:
    """One request while httpcore2 sends it: its body, its progress and its deadline."""

    deadline: asyncio.Timeout

    def __init__(self, body: bytes | Streamed, timeout: float) -> None:
        self._body = body
        self._timeout = timeout
        self.stream: _Stream | None = None
        """The connection that was written to last."""
        self.connection: httpcore2.AsyncConnectionInterface | None = None
        """The connection that was made for it."""
        self.through = False
        """The proxy has answered CONNECT."""
        self.begun = False
        """Its head is being written: the upstream may act on it from now on."""

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore2 calls this at each step, also for the CONNECT to the proxy."""
        if event == "http11.send_request_headers.started" and info["request"].method != b"CONNECT":
            self.begun = self.through = True
            self.deadline.reschedule(None)
        elif event == "http11.receive_response_headers.started" and self.begun:
            self.deadline.reschedule(asyncio.get_running_loop().time() + self._timeout)
        elif event == "proxy.start_tls.started":
            self.through = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes) and len(self._body) <= PIECE:
            yield self._body
            return
        assert self.stream is not None
        self.stream.watch()
        length, written = (len(self._body), 0) if isinstance(self._body, bytes) else (self._body.length, 0)
        pieces = _cut(self._body) if isinstance(self._body, bytes) else aiter(self._body)
        try:
            while True:
                try:
                    piece = await self.stream.first(_next(pieces))
                except httpcore2.WriteError:
                    if written != length:
                        raise
                    break  # all was sent, and the answer came before the end of the body was seen
                if piece is None:
                    break
                written += len(piece)
                if length is not None and written > length:
                    break
                yield piece
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()
        if length not in (None, written):
            raise UpstreamError("reset", f"the body was to have {length} bytes, and {written} came")


def _begun(doing: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose failure is not logged if nobody awaits it."""
    task = asyncio.ensure_future(doing)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


class _HttpxAnswer(ReadWhole):
    def __init__(self, upstream: "HttpxUpstream", response: httpcore2.Response, *, bodiless: bool) -> None:
        self._upstream = upstream
        self._response = response
        self._pieces = cast("AsyncGenerator[bytes]", aiter(cast("AsyncIterable[bytes]", response.stream)))
        self._ended = False
        self.status = response.status
        self.headers = response.headers
        self.length = next((int(v) for n, v in self.headers if n.lower() == b"content-length" and v.isdigit()), None)
        self._missing = None if bodiless else self.length

    async def chunk(self) -> bytes:
        if self._ended:
            return b""
        try:
            data = await anext(self._pieces, b"")
            if self._missing is not None:
                self._missing -= len(data)
            if not data or self._missing == 0:  # readers stop after the last byte
                self._ended = True
                await asyncio.shield(self._upstream.later(self._leave()))
        except httpcore2.TimeoutException:
            self.close()
            raise _late() from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            self.close()
            raise _broken(error) from None
        return data

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._upstream.later(self._leave())

    async def _leave(self) -> None:
        if self._missing == 0:  # the end is parsed already: reading up to it lets the connection be used again
            await anext(self._pieces, None)
        await self._pieces.aclose()
        stream: _Stream = self._response.extensions["network_stream"]
        stream.spent = _surplus(self._response)
        stream.watch()  # the socket alone does not show that TLS was closed
        await self._response.aclose()


class HttpxUpstream:
    def __init__(
        self,
        base: str,
        *,
        timeout: float,
        connect_timeout: float,
        proxy: Proxy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = Address.of(base)
        try:
            self._host = self._address.host.encode("idna")
        except UnicodeError:
            self._host = b""
        self._proxy = proxy
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> _HttpxAnswer:
        head = head_of(method, self._address, target, headers, body)
        if not self._host:
            raise UpstreamError("unreachable", f"no connection to {self._address.host} (not a valid host name)")
        outgoing = _Outgoing(body, self._timeout)
        before = _outgoing.set(outgoing)
        try:
            async with asyncio.timeout(self._connect_timeout) as outgoing.deadline:
                response = await self._opened().handle_async_request(self._request(method, head, outgoing, body))
        except httpcore2.ProxyError as error:
            raise self._refused(str(error).partition(" ")[0]) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
            raise self._failed(error, outgoing) from None  # its text may quote what came
        except TimeoutError as error:
            if not outgoing.deadline.expired():
                raise  # the body's
            raise self._failed(error, outgoing) from None
        finally:
            _outgoing.reset(before)
            if not outgoing.begun and outgoing.connection is not None:
                await outgoing.connection.aclose()  # else httpcore2 keeps it for ever if TLS failed behind a proxy
        answer = _HttpxAnswer(self, response, bodiless=method == "HEAD" or response.status in (204, 304))
        try:
            self._checked(answer)
        except UpstreamError:
            answer.close()
            raise
        return answer

    def _request(self, method: str, head: bytes, outgoing: "_Outgoing", body: bytes | Streamed) -> httpcore2.Request:
        first, *lines = head.split(b"\r\n")[:-2]
        limits = {"connect": self._connect_timeout, "read": self._timeout, "write": self._timeout}
        return httpcore2.Request(
            method,
            httpcore2.URL(
                scheme="https" if self._address.secure else "http",
                host=self._host,
                port=self._address.port,
                target=first.split(b" ")[1],
            ),
            headers=[(name, value) for name, _, value in (line.partition(b": ") for line in lines)],
            content=outgoing if body else None,
            extensions={"timeout": limits, "trace": outgoing.trace},
        )

    def _opened(self) -> httpcore2.AsyncConnectionPool:
        if self._pool is None:
            tls = ssl.create_default_context() if self._address.secure else None
            options: dict[str, Any] = {
                "ssl_context": tls,
                "max_connections": None,
                "keepalive_expiry": IDLE_MOST,
                "network_backend": _Backend(self._clock),
            }
            if self._proxy is None:
                self._pool = httpcore2.AsyncConnectionPool(**options)
            else:
                given = self._proxy.user or self._proxy.password
                self._pool = _ProxyPool(
                    self._proxy.url,
                    proxy_auth=(self._proxy.user.encode(), self._proxy.password.encode()) if given else None,
                    proxy_ssl_context=ssl.create_default_context() if self._proxy.url.startswith("https") else None,
                    **options,
                )
        return self._pool

    def _checked(self, answer: _HttpxAnswer) -> None:
        """Refuse what our own connection refuses, too."""
        if answer.status == 407 and self._proxy is not None:
            raise self._refused("407")
        if sum(len(name) + len(value) for name, value in answer.headers) > HEADERS_MOST:
            raise UpstreamError("malformed", f"the answer {TOO_MUCH}")
        if not 200 <= answer.status < 600:
            raise UpstreamError("malformed", f"the answer {odd_status(answer.status)}")
        if answer.length is not None and any(name.lower() == b"transfer-encoding" for name, _ in answer.headers):
            raise UpstreamError("malformed", "the answer has both a content-length and a transfer-encoding")

    def _refused(self, status: str) -> UpstreamError:
        assert self._proxy is not None
        remedy = {
            "407": f"it wants other credentials; set them in {self._proxy.setting}",
            "403": f"it does not allow {self._address.host}",
        }.get(status, "look at its log")
        return UpstreamError("unreachable", f"the proxy {self._proxy.url} answered {status}: {remedy}")

    def _failed(self, error: Exception, outgoing: "_Outgoing") -> UpstreamError:
        late = isinstance(error, TimeoutError | httpcore2.TimeoutException)
        if isinstance(error, httpcore2.LocalProtocolError):  # its text may quote a header
            return UpstreamError("unreachable", "the request has a header that HTTP does not allow")
        if outgoing.begun and isinstance(error, httpcore2.WriteTimeout):
            return UpstreamError("timeout", "the body was not taken within the time allowed")
        if outgoing.begun:
            return _late() if late else _broken(error)
        where = f"{self._address.host}:{self._address.port}"
        if self._proxy is not None:
            where = (
                f"{where} through the proxy {self._proxy.url}" if outgoing.through else f"the proxy {self._proxy.url}"
            )
        why = "within the time allowed" if late else f"({reason(_root(error))})"
        return UpstreamError("unreachable", f"no connection to {where} {why}")

    def later(self, leaving: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(leaving)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def close(self) -> None:
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._pool is not None:
            await self._pool.aclose()


def _surplus(response: httpcore2.Response) -> bool:
    """Whether more came than the answer. httpcore2 would take it for the answer to the next request.

    Only a private attribute tells. If that changes, no connection is used again, and a test fails.
    """
    try:
        parser = response.stream._stream._connection._h11_state  # type: ignore[union-attr]
        return bool(parser.trailing_data[0])
    except AttributeError:
        return True


def _late() -> UpstreamError:
    return UpstreamError("timeout", "no answer within the time allowed")


def _broken(error: Exception) -> UpstreamError:
    """What happened, in our words: the text of the error may quote the answer, which may echo a key."""
    text = str(error)
    if "Receive buffer too long" in text:
        return UpstreamError("malformed", f"the answer {TOO_MUCH}")
    if isinstance(error, httpcore2.ProtocolError) and not text.startswith(("Server disconnected", "peer closed")):
        return UpstreamError("malformed", "the answer is not valid HTTP")
    return UpstreamError("reset", "the connection broke")


def _root(error: BaseException) -> BaseException:
    """The error of the socket or of TLS that the libraries wrapped."""
    while True:
        group = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        inner = next((each for each in (*group, error.__cause__, *error.args) if isinstance(each, BaseException)), None)
        if inner is None:
            return error
        error = inner
