"""The blob stores that must keep the contract. A new one adds a line to PARALLEL; the suite does the rest."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pollux.backends.blobs.contract import Blobs, Writer
from pollux.backends.blobs.opening import open_blobs
from tests.backends.blobs.storage_server import BUCKET, storage

LATER = 4_000_000_000.0
START_WITHIN_S = 30.0


@dataclass(frozen=True)
class Place:
    url: str
    environ: Mapping[str, str]


@contextmanager
def folder(path: Path) -> Iterator[Place]:
    yield Place(f"file://{path / 'blobs'}", {})


@contextmanager
def own_server(path: Path) -> Iterator[Place]:
    with storage() as state:
        yield Place(f"gs://{BUCKET}/some/prefix", {"STORAGE_EMULATOR_HOST": state.address})


PARALLEL = {"folder": folder, "gcs": own_server}
EMULATED = "gcs-emulator"
"""An emulator by others: it knows no preconditions and serves one call at a time, but what an upload is."""


@contextmanager
def emulator() -> Iterator[str]:
    """host:port"""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (
        "-m",
        "gcp_storage_emulator",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--in-memory",
        "--quiet",
    )
    process = subprocess.Popen([sys.executable, *command, "--default-bucket", BUCKET], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_WITHIN_S
        while True:
            assert process.poll() is None, "the storage emulator ended"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < until, "the storage emulator does not answer"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def in_blobs(place: Place, scene: Callable[[Blobs], Awaitable[None]]) -> None:
    async def play() -> None:
        blobs = open_blobs(place.url, place.environ)
        await blobs.open()
        try:
            await scene(blobs)
        finally:
            await blobs.close()

    asyncio.run(play())


async def put(blobs: Blobs, name: str, data: bytes, expires: float = LATER, step: int = 100_000) -> Writer:
    async with blobs.write(name, expires) as writer:
        for begin in range(0, len(data), step):
            await writer.write(data[begin : begin + step])
    return writer


async def got(blobs: Blobs, name: str, offset: int = 0) -> bytes:
    async with aclosing(blobs.read(name, offset)) as chunks:
        return b"".join([chunk async for chunk in chunks])
