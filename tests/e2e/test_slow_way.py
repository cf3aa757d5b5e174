"""The slow network itself: what comes late comes whole and in order, also when it stops being slow."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.slow_way import slow_way

PIECES = 100


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back each piece as it comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := client.recv(65536):
                    client.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def test_pieces_keep_their_order_when_the_delay_ends(echo: str) -> None:
    async def scene(host: str) -> tuple[bytes, float]:
        name, port = host.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(name, int(port))
        began, way.delay = time.monotonic(), 0.5
        writer.write(b"first ")
        await asyncio.sleep(0.1)
        way.delay = 0.0
        for number in range(PIECES):
            writer.write(b"%d " % number)
            await asyncio.sleep(0.001)
        expected = len(b"first ") + sum(len(b"%d " % number) for number in range(PIECES))
        async with asyncio.timeout(5):
            found = await reader.readexactly(expected)
        writer.close()
        await writer.wait_closed()
        return found, time.monotonic() - began

    with slow_way(echo) as way:
        found, seconds = asyncio.run(scene(way.host))
    assert found.split() == [b"first", *(b"%d" % number for number in range(PIECES))]
    assert seconds >= 0.5, "nothing overtakes what is late"


def test_what_is_late_still_comes_when_the_other_end_has_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"last words")

        thread = threading.Thread(target=serve)
        thread.start()
        with slow_way(f"127.0.0.1:{server.getsockname()[1]}") as way:
            way.delay = 0.3
            name, port = way.host.rsplit(":", 1)
            began = time.monotonic()
            with socket.create_connection((name, int(port)), 5) as client:
                assert client.recv(100) == b"last words"
                assert time.monotonic() - began >= 0.3
                assert client.recv(100) == b""
        thread.join(5)
