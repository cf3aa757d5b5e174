"""One HTTP exchange with the simulator: its body, its answer in pieces, its broken end, and the record of it.

What the answer says is decided elsewhere.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from gemini_simulator.request import Request

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[Any]]

CREDENTIAL_HEADERS = frozenset({b"x-goog-api-key", b"authorization", b"cookie", b"proxy-authorization"})
CREDENTIAL_PARAMETERS = frozenset({"key", "access_token"})


class GoneError(Exception):
    """The client has closed its connection."""


class BrokenConnectionError(Exception):
    """The connection should break, but this server has no transport to close; the exception replaces that."""


@dataclass(slots=True)
class Call:
    """What the simulator saw. Raw headers and query hold credentials: no repr shows them, `shown` masks them."""

    method: str
    path: str
    query: str = field(repr=False)
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    at: float
    body: bytes = field(default=b"", repr=False)
    size: int = 0
    sha256: str = ""
    key: str | None = None
    project: str | None = None
    verb: str = ""
    model: str | None = None
    tokens: int = 0
    stream: str = "no"
    fault: str | None = None
    status: int | None = None
    first_byte_at: float | None = None
    finished_at: float | None = None
    disconnected_at: float | None = None

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    def shown(self) -> dict[str, Any]:
        """Everything but the body and the values of credentials."""
        who = f"<{self.key} of {self.project}>" if self.key else "<unknown>"
        headers = [
            [name.decode("latin-1"), who if name in CREDENTIAL_HEADERS else value.decode("latin-1")]
            for name, value in self.headers
        ]
        rest = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("query", "headers", "body")
        }
        return rest | {"query": _masked(self.query, who), "headers": headers}


def _masked(query: str, who: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&")]
    return "&".join(
        f"{name}={who}" if unquote_plus(name).lower() in CREDENTIAL_PARAMETERS else name + mark + value
        for name, mark, value in pairs
    )


class Exchange:
    """`pause` and `chunk` raise GoneError as soon as the client is known to be gone, and note when that was."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, clock: Clock, sleep: Sleep) -> None:
        raw = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"").decode("latin-1")
        self.call = Call(scope["method"], raw.decode("latin-1"), query, list(scope["headers"]), clock())
        self.path: str = scope["path"]
        self.scheme: str = scope.get("scheme", "http")
        self.as_array = False
        """Whether an error is sent as a list of one."""
        self._receive = receive
        self._send = send
        self._clock = clock
        self._sleep = sleep
        self._watch: asyncio.Task[None] | None = None

    def note(self, request: Request) -> None:
        self.as_array = request.as_array
        self.call.verb, self.call.model, self.call.stream = request.verb, request.model, request.stream

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, counted and neither digested nor kept here."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.call.disconnected_at = self._clock()
                raise GoneError
            more = message.get("more_body", False)
            if body := message.get("body", b""):
                self.call.size += len(body)
                yield body

    async def read(self, *, digest: bool, keep: bool) -> bytes:
        message = await self._receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            pieces = [body]
            while message.get("more_body"):
                message = await self._receive()
                pieces.append(message.get("body", b""))
            body = b"".join(pieces)
        if message["type"] == "http.disconnect":
            self.call.disconnected_at = self._clock()
            raise GoneError
        body = bytes(body)
        self.call.size = len(body)
        if digest:
            self.call.sha256 = hashlib.sha256(body).hexdigest()
        if keep:
            self.call.body = body
        return body

    async def answer(self, status: int, kind: bytes, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """A whole answer with its length. HEAD gets the same headers and no body."""
        await self.start(status, kind, [(b"content-length", b"%d" % len(body)), *headers])
        await self.finish(b"" if self.call.method == "HEAD" else body)

    async def start(self, status: int, kind: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.call.status = status
        self.call.first_byte_at = self._clock()
        fields = [(b"content-type", kind), *headers] if kind else list(headers)
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self._watch is not None and self._watch.done():
            raise GoneError

    async def finish(self, data: bytes = b"") -> None:
        self.call.finished_at = self._clock()
        await self._send({"type": "http.response.body", "body": data})

    def watch(self) -> "asyncio.Task[None]":
        """From here on a client that leaves is noticed at once. Only after the body was read whole."""
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._disconnected())
        return self._watch

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.call.finished_at is None:  # servers also say so once the answer is complete
            self.call.disconnected_at = self._clock()

    async def pause(self, seconds: float) -> None:
        watch = self.watch()
        nap = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({watch, nap}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
        if watch.done():
            raise GoneError

    async def abort(self) -> None:
        """Close the connection as it stands: its transport, because to an app that just stops uvicorn answers 500."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is None:
            raise BrokenConnectionError
        self.call.finished_at = self._clock()
        watch = self.watch()
        # uvloop writes what it was given at the end of the loop's turn: chunks that were sent shall arrive.
        await asyncio.sleep(0)
        transport.abort()
        await watch  # so that uvicorn knows that no client waits, and logs nothing

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
