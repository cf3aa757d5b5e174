"""Uploads a file to one project at Google, reads its state and deletes it.

The content is read while it is sent. If an upload breaks, it continues where Google says that it stopped. If the name
exists already, an earlier try made the file.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from pollux.backends.keys.contract import Key
from pollux.backends.upstream import Streamed, UpstreamError
from pollux.gemini.body import json_of
from pollux.gemini.upload import session_target
from pollux.pool.reservation import Tried
from pollux.relay.client import header
from pollux.relay.send import NO_CREDENTIAL, CoveredAnswer, Failure, broken
from pollux.resources.ask import JSON, TRIES, Asker, JsonAnswer

START = "/upload/v1beta/files"
QUERY = (("x-goog-upload-command", "query"),)
FIRST_PAUSE = 0.5
ASK_WITHIN = 15.0

Read = Callable[[int], AsyncGenerator[bytes, None]]
"""The content from an offset to its end."""


class RefusedError(Exception):
    """The project did not take the file. `failure`: what Google said; None if the project has no healthy key."""

    def __init__(self, project: str, failure: Failure | None) -> None:
        reason = "no healthy key" if failure is None else failure.verdict.message or failure.verdict.cause
        super().__init__(f"project {project} did not take the file: {reason}")
        self.failure = failure


class NameTakenError(RefusedError):
    """Another file has the name."""


class CreatedFile(NamedTuple):
    """A file at Google."""

    document: dict[str, Any]
    body: bytes
    """Google's whole answer."""
    key: Key


class _Content(NamedTuple):
    """A body that is read while it is sent."""

    length: int
    pieces: AsyncGenerator[bytes, None]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.pieces


class GoogleFiles:
    def __init__(self, asker: Asker) -> None:
        self._pool = asker.pool
        self._upstream = asker.upstream
        self._asker = asker

    async def upload(
        self, project: str, described: Mapping[str, Any], kind: str, size: int, read: Read, sha256: str = ""
    ) -> CreatedFile:
        """`sha256`: a file that has the name already must have this content. Raises RefusedError, and BlobError if the
        content cannot be read."""
        once = partial(self._upload_with, described=described, kind=kind, size=size, read=read)
        created = await self._asker.with_keys(project, once, FIRST_PAUSE)
        if isinstance(created, CreatedFile):
            return created
        if created is None or created.status != 409:
            raise RefusedError(project, created)
        found = await self.get(project, str(described.get("name")))
        if not isinstance(found, JsonAnswer) or (sha256 and _digest_of(found.document) not in ("", sha256)):
            raise NameTakenError(project, created)
        return CreatedFile(found.document, json.dumps({"file": found.document}).encode(), found.key)

    async def get(self, project: str, name: str) -> JsonAnswer | Failure | None:
        return await self._asker.ask(project, f"/v1beta/{quote(name)}", ASK_WITHIN)

    async def delete(self, project: str, name: str) -> None:
        """Try once: a file that stays expires."""
        key = await self._pool.pick(None, Tried(), project)
        if key is not None:
            await self._upstream.send(key, "DELETE", f"/v1beta/{quote(name)}", (), whole=True)

    async def begin(self, key: Key, described: Mapping[str, Any], kind: str, size: int | None) -> str | Failure:
        """Begin an upload session: the path and query of its address."""
        headers = [
            *JSON,
            ("x-goog-upload-protocol", "resumable"),
            ("x-goog-upload-command", "start"),
            ("x-goog-upload-header-content-type", kind),
        ]
        if size is not None:
            headers.append(("x-goog-upload-header-content-length", str(size)))
        body = json.dumps({"file": dict(described)}).encode()
        answer = await self._upstream.send(key, "POST", START, headers, body, whole=True)
        if isinstance(answer, Failure):
            return answer
        address = (header(answer.headers, b"x-goog-upload-url") or "").encode("latin-1")
        target = session_target(address, self._pool.settings.upstream)
        return target or self._broken(key, "the upload got no address")

    async def _upload_with(
        self, key: Key, described: Mapping[str, Any], kind: str, size: int, read: Read
    ) -> CreatedFile | Failure:
        target = await self.begin(key, described, kind, size)
        if isinstance(target, Failure):
            return target
        answer = await self._send_content(key, target, size, read)
        if isinstance(answer, Failure):
            return answer
        document = _file_of(answer.body)
        if document is None:
            return self._broken(key, "the upload ended without a file")
        return CreatedFile(document, answer.body, key)

    async def _send_content(self, key: Key, target: str, size: int, read: Read) -> CoveredAnswer | Failure:
        offset, pause = 0, FIRST_PAUSE
        for attempt in range(TRIES):
            headers = [("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", str(offset))]
            async with aclosing(read(offset)) as pieces:
                answer = await self._in_session(key, target, headers, _Content(size - offset, pieces))
            if not isinstance(answer, Failure) or answer.verdict.action != "retry" or attempt + 1 == TRIES:
                return answer
            await asyncio.sleep(pause)
            pause *= 2
            state = await self._in_session(key, target, QUERY, b"")
            if not isinstance(state, Failure):
                if header(state.headers, b"x-goog-upload-status") == "final":
                    return state
                received = header(state.headers, b"x-goog-upload-size-received") or ""
                offset = min(int(received), size) if received.isascii() and received.isdigit() else 0
        raise AssertionError("the last try returns")

    async def _in_session(
        self, key: Key, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> CoveredAnswer | Failure:
        """Send without the key, because the URL of an upload session is its credential."""
        return await self._upstream.send(key, "POST", target, headers, body, credential=NO_CREDENTIAL, whole=True)

    def _broken(self, key: Key, why: str) -> Failure:
        return broken(key, UpstreamError("reset", why), self._pool.now())


def _digest_of(document: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a File in hexadecimal, or "" if it cannot be read. Google sends the Base64 of the
    hexadecimal digits, although its documentation says the Base64 of the bytes."""
    try:
        raw = base64.b64decode(str(document.get("sha256Hash", "")), validate=True)
        return raw.hex() if len(raw) == 32 else bytes.fromhex(raw.decode()).hex()
    except ValueError:
        return ""


def _file_of(body: bytes) -> dict[str, Any] | None:
    document = json_of(body)
    file = document.get("file") if isinstance(document, dict) else None
    return file if isinstance(file, dict) and isinstance(file.get("name"), str) else None
