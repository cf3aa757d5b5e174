"""The client's side of ASGI: its body, within limits, and whether it is still connected."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from itertools import chain
from typing import Any

from pollux.gemini.errors import GatewayError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

WATCH_AFTER = 0.25
STALLED_AFTER = 60.0
"""Seconds without a byte after which a body is given up."""
HEAD_MOST = 1 << 16


class ClientGoneError(Exception):
    """The client left before its request or its answer was complete."""


class BodyMemory:
    """Counts the bytes of request bodies that are held, over all requests."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def hold(self, size: int) -> None:
        if self.held + size > self.most:
            raise GatewayError(
                "OVERLOADED_GATEWAY",
                f"request bodies fill the memory set aside for them ({self.most} bytes, POLLUX_BODY_MEMORY)",
                retry_after=2.0,
            )
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size


def header(headers: RawHeaders, name: bytes) -> str | None:
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def body_length(headers: RawHeaders) -> int | None:
    """Content-Length, if it is a number."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def head_size(scope: Scope) -> int:
    """About how many bytes the request line and the headers have."""
    headers = scope["headers"]
    size = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    return size + sum(map(len, chain.from_iterable(headers))) + 4 * len(headers)


class _Stall:
    """Cancels the current task when a body stalls. It costs half of asyncio.timeout, and every request pays for it."""

    __slots__ = ("_loop", "_task", "passed", "timer")

    def __init__(self) -> None:
        self.passed = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.timer = self._loop.call_later(STALLED_AFTER, self._pass)

    def renew(self) -> None:
        self.timer.cancel()
        self.timer = self._loop.call_later(STALLED_AFTER, self._pass)

    def _pass(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()


async def read_body(headers: RawHeaders, receive: Receive, limit: int, memory: BodyMemory) -> bytes:
    """The whole body. It is refused if its Content-Length is too large, when it has grown too large, or when nothing of
    it has come for a minute.

    When this returns, `memory` holds exactly len(body), and the caller releases it; when it raises, nothing is held.
    """
    expected = body_length(headers) or 0
    if expected > limit:
        raise _too_large(limit)
    memory.hold(expected)
    held, size = expected, 0
    chunks: list[bytes] = []
    stall = _Stall()
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            if chunk := message.get("body", b""):
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if size > held:
                    memory.hold(size - held)
                    held = size
            if not message.get("more_body", False):
                break
            stall.renew()
    except asyncio.CancelledError:
        memory.release(held)
        if not stall.passed:
            raise
        uncancel()
        raise _stalled(size) from None
    except BaseException:
        memory.release(held)
        raise
    finally:
        stall.timer.cancel()
    if size < held:
        memory.release(held - size)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class PassingBody:
    """A body that is not held: each piece is received when it is asked for. `length`: None if it is not known.

    Raises like `read_body`.
    """

    def __init__(self, headers: RawHeaders, receive: Receive, ended: Callable[[], None]) -> None:
        self.length = body_length(headers)
        if self.length is None and header(headers, b"transfer-encoding") is None:
            self.length = 0
        self.asked = False
        self.passed = 0
        self._receive = receive
        self._ended = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = self.asked = True
        while more:
            try:
                async with asyncio.timeout(STALLED_AFTER):
                    message = await self._receive()
            except TimeoutError:
                raise _stalled(self.passed) from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                self.passed += len(piece)
                yield piece
        self._ended()


def uncancel() -> None:
    """Let the current task go on after it caught the cancellation that was meant to interrupt it."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def _stalled(size: int) -> GatewayError:
    return GatewayError("BODY_STALLED", f"{size} bytes of the body came, then none for a minute")


def _too_large(limit: int) -> GatewayError:
    return GatewayError("BODY_TOO_LARGE", f"the request body is larger than {limit} bytes (POLLUX_MAX_BODY)")


class Watch:
    """`with` this, the current task is cancelled when the client leaves, and ClientGoneError is raised. It looks only
    after a moment, so that a quick request costs no task.
    """

    def __init__(self, receive: Receive, after: float | None = WATCH_AFTER) -> None:
        """`after` None: only from `begin` on, because the body is still being read."""
        self._receive = receive
        self._after = after
        self._gone = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._after is not None:
            self._timer = asyncio.get_running_loop().call_later(self._after, self.begin)

    def begin(self) -> None:
        self._listener = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        # Under the Functions Framework `send` never raises: only `receive` tells that the client is gone.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._gone and kind is asyncio.CancelledError:
            uncancel()
            raise ClientGoneError from None
