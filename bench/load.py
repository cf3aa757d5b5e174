"""A load generator and an upstream that cost as little as Python allows, so that what lies between them is measured."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
CONTENT = "Measure twice and cut once. " * 8
BODY = json.dumps(
    {"contents": [{"role": "user", "parts": [{"text": CONTENT}]}], "generationConfig": {"temperature": 0.2}}
).encode()
ANSWER = json.dumps(
    {
        "candidates": [
            {"content": {"parts": [{"text": CONTENT}], "role": "model"}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 57, "candidatesTokenCount": 56, "totalTokenCount": 113},
        "modelVersion": "gemini-2.5-flash",
        "responseId": "bench",
    }
).encode()
EVENT = b"data: " + ANSWER + b"\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=UTF-8\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_GAP = 0.02


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Upstream(asyncio.Protocol):
    """Answers every request alike: a plain answer, or for streamGenerateContent three events with pauses."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            found = _LENGTH.search(head)
            total = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            if b"streamGenerateContent" in head[:200]:
                self._transport.write(STREAM + _chunk(EVENT))
                loop = asyncio.get_running_loop()
                loop.call_later(STREAM_GAP, self._transport.write, _chunk(EVENT))
                loop.call_later(2 * STREAM_GAP, self._transport.write, _chunk(EVENT) + b"0\r\n\r\n")
            else:
                self._transport.write(PLAIN)


@contextlib.asynccontextmanager
async def upstream(certificate: Path | None = None) -> AsyncIterator[str]:
    """Its URL. With a certificate and its key, in one file, it speaks TLS."""
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", 0, ssl=tls, backlog=1024)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@dataclass(slots=True)
class Result:
    """Seconds from sending a request to its first byte and to its last, one of each a request."""

    seconds: float
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def per_second(self) -> float:
        return len(self.whole) / self.seconds


def request(url: str, path: str, headers: Sequence[tuple[str, str]], body: bytes = BODY) -> bytes:
    host = url.split("://", 1)[1].split("/")[0]
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers)]).encode() + b"\r\n\r\n" + body


Payload = bytes | Callable[[], bytes]
"""What is sent each time, or what makes the next one."""


class _Client(asyncio.Protocol):
    """One connection that sends the next request as soon as the last answer is complete."""

    def __init__(self, payload: Payload, result: Result, most: int | None, until: float, done: asyncio.Event) -> None:
        self._payload, self._result, self._left, self._until, self._done = payload, result, most, until, done
        self._buffer = b""
        self._began = 0.0
        self._waiting_first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if time.perf_counter() >= self._until or self._left == 0:
            self._transport.close()
            self._done.set()
            return
        if self._left is not None:
            self._left -= 1
        self._waiting_first = True
        payload = self._payload if isinstance(self._payload, bytes) else self._payload()
        self._began = time.perf_counter()
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        if self._waiting_first and len(self._buffer) > end + 4:
            self._waiting_first = False
            self._result.first.append(time.perf_counter() - self._began)
        found = _LENGTH.search(self._buffer, 0, end)
        complete = len(self._buffer) >= end + 4 + int(found[1]) if found else self._buffer.endswith(b"0\r\n\r\n")
        if complete:
            self._result.whole.append(time.perf_counter() - self._began)
            self._result.failed += not self._buffer.startswith(b"HTTP/1.1 200")
            self._buffer = b""
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


async def load(
    url: str, payload: Payload, *, connections: int, seconds: float = 3600.0, each: int | None = None
) -> Result:
    """Send for so many seconds, or so many requests on each connection, whichever ends first."""
    host, _, port = url.split("://", 1)[1].split("/")[0].partition(":")
    result = Result(seconds)
    began = time.perf_counter()
    waits = []
    for _ in range(connections):
        done = asyncio.Event()
        waits.append(done.wait())
        await asyncio.get_running_loop().create_connection(
            lambda done=done: _Client(payload, result, each, began + seconds, done),
            host,
            int(port),
            family=socket.AF_INET,
            ssl=ssl.create_default_context() if url.startswith("https:") else None,
        )
    await asyncio.gather(*waits)
    result.seconds = time.perf_counter() - began
    return result
