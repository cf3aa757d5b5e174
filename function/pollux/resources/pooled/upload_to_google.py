"""Sends one file to one project: an upload that goes on after trouble where Google says that it has come to.

The content is read as it is sent. A file that has the wanted name already is the one that was made earlier.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import quote

from pollux.backends.keys.contract import Key
from pollux.backends.upstream import Streamed, UpstreamError
from pollux.gemini.upload import session_target
from pollux.pool.pool import Tried
from pollux.relay.attempt import Attempts
from pollux.relay.client import header
from pollux.relay.send import NO_CREDENTIAL, CoveredAnswer, Failure, broken
from pollux.resources.ask import Asker, JsonAnswer

START = "/upload/v1beta/files"
QUERY = (("x-goog-upload-command", "query"),)
TRIES, FIRST_PAUSE = 4, 0.5
ASK_WITHIN = 15.0

Read = Callable[[int], AsyncGenerator[bytes, None]]


class RefusedError(Exception):
    """The project did not take the file. `failure`: what it said; None where it has no key to ask with."""

    def __init__(self, project: str, failure: Failure | None) -> None:
        said = "no healthy key" if failure is None else failure.verdict.message or failure.verdict.cause
        super().__init__(f"project {project} did not take the file: {said}")
        self.failure = failure


class NameTakenError(RefusedError):
    """Somebody else's file has the name."""


class CreatedFile(NamedTuple):
    """A file at Google: what Google says of it."""

    document: dict[str, Any]
    body: bytes
    """The whole answer, as it came."""
    key: Key


class _Content(NamedTuple):
    """A body that is read while it is sent."""

    length: int
    pieces: AsyncGenerator[bytes, None]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.pieces


class GoogleFiles:
    def __init__(
        self, attempts: Attempts, asker: Asker, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._attempts = attempts
        self._pool = attempts.pool
        self._asker = asker
        self._upstream = attempts.upstream
        self._sleep = sleep

    async def upload(
        self, project: str, described: Mapping[str, Any], kind: str, size: int, read: Read, sha256: str = ""
    ) -> CreatedFile:
        """`sha256`: a file that has the name already must have this content. Raises RefusedError, and BlobError where
        the content cannot be read."""
        tried, pause = Tried(), FIRST_PAUSE
        last: Failure | None = None
        for _ in range(TRIES):
            key = await self._pool.pick(None, tried, project)
            if key is None:
                break
            sent = await self._with(key, described, kind, size, read)
            if isinstance(sent, CreatedFile):
                return sent
            last = sent
            if sent.status == 409:
                return await self._there(project, described, sent, sha256)
            match sent.verdict.action:
                case "next-key":
                    tried.keys.add(key.id)
                    if await self._attempts.key_changed(key, sent.verdict, tried):
                        tried.keys.discard(key.id)
                case "retry":
                    await self._sleep(pause)
                    pause *= 2
                case _:
                    break
        raise RefusedError(project, last)

    async def _there(self, project: str, described: Mapping[str, Any], refused: Failure, sha256: str) -> CreatedFile:
        """An earlier try has made it, though nobody was told."""
        told = await self.get(project, str(described.get("name")))
        if not isinstance(told, JsonAnswer) or (sha256 and _digest_of(told.document) not in ("", sha256)):
            raise NameTakenError(project, refused)
        return CreatedFile(told.document, json.dumps({"file": told.document}).encode(), told.key)

    async def get(self, project: str, name: str) -> JsonAnswer | Failure | None:
        return await self._asker.ask(project, f"/v1beta/{quote(name)}", ASK_WITHIN)

    async def delete(self, project: str, name: str) -> None:
        """One try: what stays ends by itself."""
        key = await self._pool.pick(None, Tried(), project)
        if key is not None:
            await self._upstream.send(key, "DELETE", f"/v1beta/{quote(name)}", (), whole=True)

    # --- one upload --------------------------------------------------------------------------------------------------

    async def begin(self, key: Key, described: Mapping[str, Any], kind: str, size: int | None) -> str | Failure:
        """The address of a new session: its path and query."""
        headers = [
            ("content-type", "application/json"),
            ("x-goog-upload-protocol", "resumable"),
            ("x-goog-upload-command", "start"),
            ("x-goog-upload-header-content-type", kind),
        ]
        if size is not None:
            headers.append(("x-goog-upload-header-content-length", str(size)))
        body = json.dumps({"file": dict(described)}).encode()
        began = await self._upstream.send(key, "POST", START, headers, body, whole=True)
        if isinstance(began, Failure):
            return began
        address = (header(began.headers, b"x-goog-upload-url") or "").encode("latin-1")
        target = session_target(address, self._pool.settings.upstream)
        return target or self._broken(key, "the upload got no address")

    async def _with(
        self, key: Key, described: Mapping[str, Any], kind: str, size: int, read: Read
    ) -> CreatedFile | Failure:
        target = await self.begin(key, described, kind, size)
        if isinstance(target, Failure):
            return target
        said = await self._poured(key, target, size, read)
        if isinstance(said, Failure):
            return said
        document = _file_of(said.body)
        if document is None:
            return self._broken(key, "the upload ended without a file")
        return CreatedFile(document, said.body, key)

    async def _poured(self, key: Key, target: str, size: int, read: Read) -> CoveredAnswer | Failure:
        at, pause = 0, FIRST_PAUSE
        for attempt in range(TRIES):
            headers = [("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", str(at))]
            async with aclosing(read(at)) as pieces:
                said = await self._session(key, target, headers, _Content(size - at, pieces))
            if not isinstance(said, Failure):
                return said
            if said.verdict.action != "retry" or attempt + 1 == TRIES:
                return said
            await self._sleep(pause)
            pause *= 2
            asked = await self._session(key, target, QUERY, b"")
            if not isinstance(asked, Failure):
                if header(asked.headers, b"x-goog-upload-status") == "final":
                    return asked
                received = header(asked.headers, b"x-goog-upload-size-received") or ""
                at = min(int(received), size) if received.isascii() and received.isdigit() else 0
        raise AssertionError("the last try returns")

    async def _session(
        self, key: Key, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> CoveredAnswer | Failure:
        """Without the key: the address of a session says enough."""
        return await self._upstream.send(key, "POST", target, headers, body, credential=NO_CREDENTIAL, whole=True)

    def _broken(self, key: Key, why: str) -> Failure:
        return broken(key, UpstreamError("reset", why), self._pool.now())


def _digest_of(document: Mapping[str, Any]) -> str:
    """Google writes a digest in hexadecimal and that in Base64, where its pages speak of the bytes. "": as neither."""
    try:
        raw = base64.b64decode(str(document.get("sha256Hash", "")), validate=True)
        return raw.hex() if len(raw) == 32 else bytes.fromhex(raw.decode()).hex()
    except ValueError:
        return ""


def _file_of(body: bytes) -> dict[str, Any] | None:
    try:
        file = json.loads(body)["file"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return file if isinstance(file, dict) and isinstance(file.get("name"), str) else None
