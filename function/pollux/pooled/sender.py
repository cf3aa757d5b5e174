"""Sends one file to one project: an upload that goes on after trouble where Google says that it has come to.

The content is read as it is sent. A file that has the wanted name already is the one that was made earlier.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from pollux import wire
from pollux.attempts import Attempts, Failure, judged, unreached, unreadable
from pollux.keys import Key, KeySourceError
from pollux.log import guard
from pollux.outbound import covered
from pollux.pool import Tried
from pollux.questions import Questions, Told
from pollux.upstream import Upstream, UpstreamError

START = "/upload/v1beta/files"
TRIES, FIRST_PAUSE = 4, 0.5
ASK_WITHIN = 15.0

Read = Callable[[int], AsyncGenerator[bytes, None]]
Headers = list[tuple[str, str]]


class RefusedError(Exception):
    """The project did not take the file. `failure`: what it said; None where it has no key to ask with."""

    def __init__(self, project: str, failure: Failure | None) -> None:
        said = "no healthy key" if failure is None else failure.verdict.message or failure.verdict.cause
        super().__init__(f"project {project} did not take the file: {said}")
        self.failure = failure


class NameTakenError(RefusedError):
    """Somebody else's file has the name."""


class Made(NamedTuple):
    """A file at Google: what Google says of it."""

    document: dict[str, Any]
    body: bytes
    """The whole answer, as it came."""
    key: Key


class _Said(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class _Content:
    """A body that is read while it is sent."""

    def __init__(self, length: int, pieces: AsyncGenerator[bytes, None]) -> None:
        self.length = length
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def close(self) -> None:
        await self._pieces.aclose()


class Sender:
    def __init__(
        self,
        attempts: Attempts,
        questions: Questions,
        upstream: Upstream,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._attempts = attempts
        self._pool = attempts.pool
        self._questions = questions
        self._upstream = upstream
        self._sleep = sleep

    async def send(
        self, project: str, described: Mapping[str, Any], kind: str, size: int, read: Read, sha256: str = ""
    ) -> Made:
        """`sha256`: a file that has the name already must have this content. Raises RefusedError, and BlobError where
        the content cannot be read."""
        tried, pause = Tried(), FIRST_PAUSE
        last: Failure | None = None
        for _ in range(TRIES):
            key = await self._pool.pick(None, tried, project)
            if key is None:
                break
            sent = await self._with(key, described, kind, size, read)
            if isinstance(sent, Made):
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

    async def _there(self, project: str, described: Mapping[str, Any], refused: Failure, sha256: str) -> Made:
        """An earlier try has made it, though nobody was told."""
        told = await self.look(project, str(described.get("name")))
        if not isinstance(told, Told) or (sha256 and _digest_of(told.document) not in ("", sha256)):
            raise NameTakenError(project, refused)
        return Made(told.document, json.dumps({"file": told.document}).encode(), told.key)

    async def look(self, project: str, name: str) -> Told | Failure | None:
        return await self._questions.ask(project, f"/v1beta/{quote(name)}", ASK_WITHIN)

    async def delete(self, project: str, name: str) -> None:
        """One try: what stays ends by itself."""
        key = await self._pool.pick(None, Tried(), project)
        if key is not None:
            await self._said(key, "DELETE", f"/v1beta/{quote(name)}", [], b"")

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
        began = await self._said(key, "POST", START, headers, json.dumps({"file": dict(described)}).encode())
        if isinstance(began, Failure):
            return began
        address = began.headers.get("x-goog-upload-url", "").encode("latin-1")
        target = wire.session_target(address, self._pool.settings.upstream)
        return target or await self._broken(key, UpstreamError("reset", "the upload got no address"))

    async def _with(self, key: Key, described: Mapping[str, Any], kind: str, size: int, read: Read) -> Made | Failure:
        target = await self.begin(key, described, kind, size)
        if isinstance(target, Failure):
            return target
        said = await self._poured(key, target, size, read)
        if isinstance(said, Failure):
            return said
        document = _file_of(said.body)
        if document is None:
            return await self._broken(key, UpstreamError("reset", "the upload ended without a file"))
        return Made(document, said.body, key)

    async def _poured(self, key: Key, target: str, size: int, read: Read) -> _Said | Failure:
        at, pause = 0, FIRST_PAUSE
        for attempt in range(TRIES):
            content = _Content(size - at, read(at))
            headers = [("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", str(at))]
            try:
                said = await self._said(key, "POST", target, headers, content, bare=True)
            finally:
                await content.close()
            if isinstance(said, _Said):
                return said
            if said.verdict.action != "retry" or attempt + 1 == TRIES:
                return said
            await self._sleep(pause)
            pause *= 2
            asked = await self._said(key, "POST", target, [("x-goog-upload-command", "query")], b"", bare=True)
            if isinstance(asked, _Said):
                if asked.headers.get("x-goog-upload-status") == "final":
                    return asked
                received = asked.headers.get("x-goog-upload-size-received", "")
                at = min(int(received), size) if received.isascii() and received.isdigit() else 0
        raise AssertionError("the last try returns")

    async def _said(
        self, key: Key, method: str, target: str, headers: Headers, body: "bytes | _Content", *, bare: bool = False
    ) -> _Said | Failure:
        """`bare`: without the key, for the address of a session says enough."""
        try:
            value = (await self._pool.roster.keyring.value(key.id)).reveal()
        except KeySourceError as error:
            return unreadable("", key, error)
        guard(value)
        credential = [] if bare else [("x-goog-api-key", value)]
        try:
            answer = await self._upstream.send(method, target, [*headers, *credential], body)
            try:
                raw = await answer.read()
            finally:
                answer.close()
        except UpstreamError as error:
            return unreached("", key, error, value, self._pool.now())
        if answer.status >= 300:
            passing = wire.client_headers(answer.headers)
            verdict, shown, raw = judged(answer.status, passing, raw, value, self._pool.now())
            return Failure(verdict, "", key, answer.status, shown, raw)
        named = {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in answer.headers}
        return _Said(answer.status, named, covered(raw, value))

    async def _broken(self, key: Key, error: UpstreamError) -> Failure:
        value = (await self._pool.roster.keyring.value(key.id)).reveal()
        return unreached("", key, error, value, self._pool.now())


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
