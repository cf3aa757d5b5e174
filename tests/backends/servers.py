"""Servers that answer raw bytes, a proxy, and every way to reach them: shared by the tests of both transports."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import uvloop

from pollux.backends.connection import HttpUpstream
from pollux.backends.through_httpx import HttpxUpstream
from pollux.backends.upstream import Upstream
from pollux.settings import Proxy

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Reads requests and answers each with the next pieces; a None closes the connection, a number is a pause."""

    def __init__(self, *pieces: bytes | float | None) -> None:
        self.pieces = list(pieces)
        self.requests: list[bytes] = []
        self.connections = 0
        self.reached, self.left = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await self._request(reader):
                self.requests.append(head)
                for piece in self.pieces:
                    if piece is None:
                        return
                    if isinstance(piece, bytes):
                        writer.write(piece)
                        await writer.drain()
                    else:
                        await asyncio.wait_for(reader.read(1), piece)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.left.set()
            writer.close()

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        return head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")


class Silent(Server):
    """Never answers; `reached` is set when it has a request's head."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self.reads = reads

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.reached.set()
            while not self.reads and not writer.is_closing():  # what is not read does not tell that the client left
                await asyncio.sleep(0.05)
                writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                await writer.drain()
            while await reader.read(1 << 16):
                pass
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.left.set()
            writer.close()


class ProxyServer:
    """Takes CONNECT, or a request with a whole URL, and passes everything on; or answers `instead`."""

    def __init__(self, instead: bytes = b"") -> None:
        self.instead = instead
        self.heads: list[bytes] = []
        self.open = 0
        self.left = asyncio.Event()
        """Set while no connection is open."""
        self.to: tuple[str, int] | None = None
        """Where everything goes, whatever was asked for."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.left.clear()
        far: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.instead:
                writer.write(self.instead)
                return
            method, target, rest = head.split(b" ", 2)
            if method == b"CONNECT":
                host, port = target.decode().rsplit(":", 1)
                first = b""
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                authority, slash, path = target.partition(b"://")[2].partition(b"/")
                host, port = authority.decode().rsplit(":", 1)
                first = method + b" " + slash + path + b" " + rest
            back, far = await asyncio.open_connection(*(self.to or (host, int(port))))
            far.write(first)
            there, here = asyncio.create_task(_copied(reader, far)), asyncio.create_task(_copied(back, writer))
            await asyncio.wait({there, here}, return_when=asyncio.FIRST_COMPLETED)
            for task in (there, here):
                task.cancel()
            await asyncio.gather(there, here, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            if not self.open:
                self.left.set()
            writer.close()
            if far is not None:
                far.transport.abort()  # `close` would wait for a server that reads nothing


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            if data.startswith((b"GET http://", b"POST http://")):  # a connection to a proxy that is used again
                first, url, rest = data.split(b" ", 2)
                data = first + b" /" + url.split(b"/", 3)[3] + b" " + rest
            writer.write(data)
            await writer.drain()


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class Way:
    """As the fixture `way` names it."""

    def __init__(self, name: str, certificate: Path) -> None:
        self.certificate = certificate
        self.httpx = name.startswith("httpx")
        self.tls = "TLS" in name
        self.proxied = "proxy" in name

    def upstream(
        self,
        base: str,
        *,
        proxy: str = "",
        timeout: float = 5.0,
        connect_timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> Upstream:
        if not self.httpx:
            return HttpUpstream(base, timeout=timeout, connect_timeout=connect_timeout, clock=clock)
        through = Proxy(proxy, setting="HTTPS_PROXY") if proxy else None
        return HttpxUpstream(base, timeout=timeout, connect_timeout=connect_timeout, proxy=through, clock=clock)

    def against(
        self,
        server: Server,
        scene: Callable[[Upstream], Awaitable[T]],
        *,
        timeout: float = 5.0,
        prefix: str = "",
        host: str = "127.0.0.1",
        clock: Callable[[], float] = time.monotonic,
    ) -> T:
        """Play a scene with an upstream that reaches that server this way."""

        async def play() -> T:
            proxy = ProxyServer()
            async with contextlib.AsyncExitStack() as stack:
                port = await listen(stack, server.serve, server_tls(self.certificate) if self.tls else None)
                through = f"http://127.0.0.1:{await listen(stack, proxy.serve)}" if self.proxied else ""
                base = f"http{'s' if self.tls else ''}://{host}:{port}{prefix}"
                upstream = self.upstream(base, proxy=through, timeout=timeout, clock=clock)
                try:
                    return await scene(upstream)
                finally:
                    await upstream.close()

        return run(play())


async def listen(
    stack: contextlib.AsyncExitStack,
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> int:
    """Its port."""
    under_way: set[asyncio.Task[None]] = set()

    async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        with contextlib.suppress(asyncio.CancelledError):  # else the loop says that it was not expected
            await serve(reader, writer)

    async def end() -> None:
        listening.close()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    listening = await asyncio.start_server(kept, "127.0.0.1", port, ssl=tls)
    stack.push_async_callback(end)
    return int(listening.sockets[0].getsockname()[1])


def run(play: Awaitable[T]) -> T:
    """On the loop of `pollux serve`."""

    async def whole() -> T:
        return await play

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())
