"""What the tests of pooled files share: blobs that a test breaks, several gateways over one store, uploads."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from gemini_simulator import Owning, Simulator
from gemini_simulator.exchange import Call
from pollux.backends.blobs.contract import BlobMissingError, BlobUnavailableError, Writer
from pollux.backends.keys.contract import Keyring
from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.contract import Store
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import Upstream
from pollux.server.app import App
from pollux.server.wiring import make_app
from pollux.settings import Settings
from tests.gateway import ADMIN, GENERATE, HOST, TOKEN, Got, Keys, Simulated, call, now, simulated

OTHER = "test-token-of-another-client"
FILES = "/upload/v1beta/files"
KIB256, MIB = 256 * 1024, 1024 * 1024
AT = {"host": HOST}
TEXT = b"what stands in the file\n" * 40


class MemoryBlobs:
    """The contract of blobs, in this process. `down`: nothing works. `slow`: seconds before a reader gets anything."""

    def __init__(self) -> None:
        self.all: dict[str, tuple[bytes, float]] = {}
        self.down = False
        self.down_after: int | None = None
        """So many pieces are still taken."""
        self.slow = 0.0
        self.reads = 0
        self.swept: list[float] = []

    def _check(self) -> None:
        if self.down:
            raise BlobUnavailableError("blobs memory: the test has taken them away; give them back")

    async def open(self) -> None:
        self._check()

    async def close(self) -> None:
        """Others use it too."""

    @asynccontextmanager
    async def write(self, name: str, expires: float) -> AsyncIterator[Writer]:
        self._check()
        held: list[bytes] = []

        async def put(data: bytes) -> None:
            if self.down_after is not None:
                self.down_after -= 1
                self.down = self.down_after < 0
            self._check()
            held.append(data)
            writer.digest.update(data)

        writer = Writer(1 << 20, put)
        yield writer
        await put(writer.drain())
        self.all[name] = b"".join(held), expires

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        self.reads += 1
        if self.slow:
            await asyncio.sleep(self.slow)
        self._check()
        if name not in self.all:
            raise BlobMissingError(f"there is no blob {name}")
        data = self.all[name][0]
        for begin in range(offset, len(data), 100_000):
            self._check()
            yield data[begin : begin + 100_000]

    async def size(self, name: str) -> int | None:
        self._check()
        return len(self.all[name][0]) if name in self.all else None

    async def delete(self, name: str) -> bool:
        self._check()
        return self.all.pop(name, None) is not None

    async def sweep(self, now: float) -> int:
        self._check()
        self.swept.append(now)
        old = [name for name, (_, expires) in self.all.items() if expires <= now]
        for name in old:
            del self.all[name]
        return len(old)


@contextlib.asynccontextmanager
async def gateway(
    upstream: Upstream, keys: Keyring, blobs: MemoryBlobs, *, store: Store | None = None, **settings: Any
) -> AsyncIterator[App]:
    """With two clients: tester and other."""
    app = make_app(
        Settings(files="pooled", **settings),
        Tokens([f"tester={TOKEN}", f"other={OTHER}"], ADMIN, query_token=True),
        store=store or MemoryStore(now),
        keyring=keys,
        upstream=upstream,
        blobs=blobs,
    )
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def google(keys: Keys, processing: float = 0.0, **limits: Any) -> Simulated:
    return simulated(
        keys, limits, owning=Owning(processing=processing, base="https://generativelanguage.googleapis.com")
    )


# --- uploads ---------------------------------------------------------------------------------------------------------


async def start(app: Any, file: dict[str, Any] | None = None, size: int | None = None, **more: Any) -> str:
    """The path and query of a new session."""
    headers = {**AT, "x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    headers["x-goog-upload-header-content-type"] = "text/plain"
    if size is not None:
        headers["x-goog-upload-header-content-length"] = str(size)
    got = await call(app, "POST", FILES, headers, {"file": file or {}}, **more)
    assert got.status == 200, got.body
    parts = urlsplit(got.headers["x-goog-upload-url"])
    return f"{parts.path}?{parts.query}"


async def chunk(app: Any, address: str, command: str, data: bytes = b"", offset: int = 0, **more: Any) -> Got:
    headers = {**AT, "x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
    headers["content-length"] = str(len(data))
    more.setdefault("token", None)
    return await call(app, "POST", address, headers, data, **more)


def status(got: Got) -> tuple[int, str | None]:
    return got.status, got.headers.get("x-goog-upload-status")


async def upload(app: Any, data: bytes = TEXT, file: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A whole resumable upload; the file that came of it."""
    address = await start(app, file, len(data), **more)
    got = await chunk(app, address, "upload, finalize", data)
    assert status(got) == (200, "final"), got.body
    found: dict[str, Any] = got.json["file"]
    return found


def asks(*files: dict[str, Any], text: str = "What is in it?", **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"fileData": {"fileUri": file["uri"], "mimeType": "text/plain"}} for file in files]
    return {"contents": [{"role": "user", "parts": [*parts, {"text": text}]}], **more}


async def generate(app: Any, *files: dict[str, Any], path: str = GENERATE, **more: Any) -> Got:
    return await call(app, "POST", path, AT, asks(*files), **more)


# --- what the simulator saw ------------------------------------------------------------------------------------------


def owned(simulator: Simulator) -> dict[str, str]:
    """Name -> project, of all files."""
    return {one["name"]: one["project"] for one in simulator.owned() if one["name"].startswith("files/")}


def contents(simulator: Simulator) -> list[str]:
    """The digests of all files."""
    return [one["sha256"] for one in simulator.owned() if one["name"].startswith("files/")]


def uploads(simulator: Simulator) -> list[Call]:
    """Chunks that came to Google."""
    return [c for c in simulator.calls if c.path.startswith("/upload/") and "upload_id" in c.query and c.size]


def served_by(simulator: Simulator) -> list[str]:
    """The projects of the generations that went well."""
    return [c.project or "" for c in simulator.calls if c.path.endswith("generateContent") and c.status == 200]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def errors(got: Sequence[Got]) -> list[bytes]:
    return [one.body for one in got if one.status != 200]
