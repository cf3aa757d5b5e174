"""Uploads as Google takes them: resumable sessions, multipart, raw. `finish` makes something of a complete one."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlencode

from gemini_simulator.answers import encode
from gemini_simulator.content import Content
from gemini_simulator.errors import ApiError, bad_request, error, said
from gemini_simulator.multipart import Part, boundary_of, parts
from gemini_simulator.request import Request
from gemini_simulator.resources import TIDY, Resources
from gemini_simulator.streams import Reply

GRANULARITY = 256 * 2**10
SESSION_LIFE = 7 * 86_400.0
_MOST_METADATA = 2**20
Headers = list[tuple[bytes, bytes]]


class Uploaded(NamedTuple):
    """What arrived whole. `target`: files, or the store it goes to. `metadata`: the JSON that came with it."""

    api: str
    project: str
    target: str
    base: str
    metadata: dict[str, Any]
    kind: str
    file_name: str
    content: Content


@dataclass(slots=True)
class Session:
    key: str
    until: float
    upload: Uploaded
    declared: int | None = None
    state: str = "active"
    answer: bytes = field(default=b"", repr=False)


Finish = Callable[[Uploaded], dict[str, Any]]


class Uploads:
    """`finish`: what a file that has come whole is answered with. `keep`: bytes of it that are kept.

    `granularity`: what every chunk but the last is a multiple of.
    """

    def __init__(self, resources: Resources, finish: Finish, keep: int, granularity: int) -> None:
        self._resources = resources
        self._finish = finish
        self._keep = keep
        self._granularity = granularity
        self._sessions: dict[str, Session] = {}

    def find(self, request: Request) -> Session | None:
        """The session that the address names; None if it names none. Raises ApiError for one that does not exist."""
        if (name := request.query.get("upload_id")) is None:
            return None
        session = self._sessions.get(name)
        if session is None or session.until <= self._resources.clock():
            self._sessions.pop(name, None)
            raise said(404, "NOT_FOUND", "Requested entity was not found.")
        return session

    def open(self, request: Request, headers: Mapping[str, str], body: bytes, key: str) -> Reply:
        """The start of a resumable upload. Raises ApiError."""
        metadata = _metadata(body)
        declared = headers.get("x-goog-upload-header-content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit()):
            raise ApiError(400, "Invalid X-Goog-Upload-Header-Content-Length.")
        kind = headers.get("x-goog-upload-header-content-type") or "application/octet-stream"
        upload = Uploaded(
            request.api,
            request.project,
            request.name,
            request.base,
            metadata,
            kind,
            headers.get("x-goog-upload-file-name", ""),
            Content(self._keep),
        )
        now = self._resources.clock()
        if len(self._sessions) >= TIDY and next(iter(self._sessions.values())).until <= now:
            self._sessions = {name: held for name, held in self._sessions.items() if held.until > now}
        until = now + SESSION_LIFE
        name = "A" + self._resources.token(48)
        self._sessions[name] = Session(key, until, upload, None if declared is None else int(declared))
        # The query of the start comes back, as it does from Google: with the key, if the key was in it.
        query = urlencode([*request.query.items(), ("upload_id", name), ("upload_protocol", "resumable")])
        url = f"{request.root}{request.path}?{query}"
        return Reply(
            headers=[
                (b"x-goog-upload-url", url.encode()),
                (b"x-goog-upload-control-url", url.encode()),
                (b"x-goog-upload-chunk-granularity", b"%d" % self._granularity),
                (b"x-goog-upload-status", b"active"),
                (b"x-guploader-uploadid", name.encode()),
            ]
        )

    def query(self, session: Session) -> Reply:
        received = (b"x-goog-upload-size-received", b"%d" % session.upload.content.size)
        return Reply(session.answer, [*_status(session.state), received])

    def cancel(self, session: Session) -> Reply:
        if session.state == "active":
            session.state = "cancelled"
        return Reply(headers=_status(session.state))

    async def take(self, session: Session, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> Reply:
        """A chunk. What came before its connection broke stays; what is there already is skipped. Raises ApiError."""
        command = headers.get("x-goog-upload-command", "")
        commands = {word.strip() for word in command.split(",")}
        if commands - {"upload", "finalize"}:
            raise ApiError(400, f"Invalid X-Goog-Upload-Command: {command}")
        if session.state == "final":
            return Reply(session.answer, _status("final"))
        if session.state != "active":
            raise error("upload-terminated")
        content = session.upload.content
        given = headers.get("x-goog-upload-offset", "0")
        if not (given.isascii() and given.isdigit()) or int(given) > content.size:
            raise ApiError(400, f"Invalid offset {given}: {content.size} bytes have been received.")
        position, final = int(given), "finalize" in commands
        self._check_size(session, position, headers.get("content-length"), final)
        async for piece in pieces:
            content.write(position, piece)
            position += len(piece)
        if session.state == "final":  # the same chunk came twice at once
            return Reply(session.answer, _status("final"))
        if session.state != "active":
            raise error("upload-terminated")
        if not final:
            return Reply(headers=_status("active"))
        self._check_size(session, position, "0", final)
        session.answer = encode(self._finish(session.upload))
        session.state = "final"
        return Reply(session.answer, _status("final"))

    def _check_size(self, session: Session, position: int, length: str | None, final: bool) -> None:
        if length is None or not length.isdigit():
            return
        end = position + int(length)
        if not final and int(length) % self._granularity:
            raise ApiError(400, f"Invalid chunk: {length} bytes are no multiple of {self._granularity}.")
        if session.declared is not None and (end != session.declared if final else end > session.declared):
            raise ApiError(400, f"Invalid size: {end} bytes, but {session.declared} were declared.")

    async def whole(self, request: Request, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> Reply:
        """A file in one request: multipart, or raw. Raises ApiError."""
        content = Content(self._keep)
        kind = headers.get("content-type", "application/octet-stream")
        name, metadata = headers.get("x-goog-upload-file-name", ""), b""
        if kind.lower().startswith("multipart/"):
            metadata, kind, name = await _read_parts(parts(pieces, boundary_of(kind)), content)
        else:
            kind = headers.get("x-goog-upload-header-content-type", kind)
            async for piece in pieces:
                content.write(content.size, piece)
        upload = Uploaded(
            request.api, request.project, request.name, request.base, _metadata(metadata), kind, name, content
        )
        return Reply(encode(self._finish(upload)), _status("final"))


def _status(state: str) -> Headers:
    return [(b"x-goog-upload-status", state.encode())]


def status_of(trouble: ApiError, session: Session | None) -> Headers:
    """Sent with errors, too: without it a client sends a chunk again, and with `active` it continues."""
    if session is not None and trouble.status < 500:
        return _status(session.state)
    return _status("final") if trouble.status == 404 else []


async def _read_parts(found: AsyncIterator[Part | bytes], content: Content) -> tuple[bytes, str, str]:
    """(metadata, MIME type, file name). The first part that is JSON is the metadata, and no other."""
    metadata: bytearray | None = None
    fields: dict[str, bytearray] = {}
    into: bytearray | None = None
    kind, name = "application/octet-stream", ""
    async for item in found:
        if isinstance(item, Part):
            given = item.headers.get("content-type", "")
            field_name, file_name = item.field("name"), item.field("filename")
            if metadata is None and given.startswith("application/json") and not content.size and file_name is None:
                into = metadata = bytearray()
            elif field_name is not None and file_name is None and field_name != "file":
                into = fields[field_name] = bytearray()
            else:
                into, kind, name = None, given or kind, file_name or ""
        elif into is None:
            content.write(content.size, item)
        else:
            into += item
            if len(into) > _MOST_METADATA:
                raise bad_request("Multipart body: a field is too long.")
    if metadata is None:
        texts = {name: value.decode("utf-8", "replace") for name, value in fields.items()}
        metadata = bytearray(json.dumps(texts).encode())
    return bytes(metadata), kind, name


def _metadata(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise bad_request("Invalid JSON payload received.") from None
    if not isinstance(document, dict):
        raise bad_request("Invalid JSON payload received.")
    return document
