"""PURE. The store documents of pooled files, and the names that are derived from a file's content.

`pooled/files/ID` has a file: its client, the parts of its content, its copies. `content/HASH` names the file that has a
client's content, or the instance that is uploading it. `upload/ID` has an upload under way.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pollux.backends.store.contract import Document
from pollux.gemini.call import read_target
from pollux.gemini.names import GOOGLE, answer_names
from pollux.resources.upload_token import LIFETIME

FILE, CONTENT, UPLOAD = "pooled/", "content/", "upload/"
COPY = "files/px-"
"""The prefix of the names of copies. Clients never see such a name and cannot request it."""
KEPT_S = 48 * 3600.0
"""Seconds for which Google keeps a file."""
SHARED_S = 24 * 3600.0
"""An upload of the same content reuses an existing file only if the file lives at least this much longer."""
ENDING_S = 60.0
"""A copy is not used in the last seconds of its life."""
GRANULARITY = 256 * 1024
"""The size of every chunk but the last is a multiple of this."""
LARGEST = 2 * 2**30
"""The largest file that Google accepts."""


class Copy(NamedTuple):
    """A file at Google, in one project."""

    name: str
    uri: str
    expires: float
    active: bool


class Lease(NamedTuple):
    """The instance that is making a copy. The lease ends at `until` if the instance dies."""

    by: str
    until: float


class Part(NamedTuple):
    """A blob with one part of the content."""

    blob: str
    size: int


class ChunkError(Exception):
    """The chunk is refused. The upload can continue."""


@dataclass(frozen=True, slots=True)
class PooledFile:
    name: str
    """The name that its client knows."""
    client: str
    sha256: str
    size: int
    kind: str
    """MIME type."""
    shown: str
    """Display name."""
    content: str
    """`content_hash` of what was uploaded."""
    home: str
    """The project that got the file first."""
    born: float
    expires: float
    parts: tuple[Part, ...] = ()
    uses: int = 1
    """How many uploads share this file. It is deleted after as many deletions."""
    round: int = 0
    """How many copies were lost. It is part of the names of new copies."""
    copies: Mapping[str, Copy | Lease] = field(default_factory=dict)

    def copy_at(self, project: str, now: float) -> Copy | None:
        """Returns the copy in this project that can be used, now or once Google has processed it."""
        copy = self.copies.get(project)
        return copy if isinstance(copy, Copy) and copy.expires - ENDING_S > now else None

    def ready_at(self, now: float) -> frozenset[str]:
        """Returns the projects whose copy can be used now. Its home counts even if Google still processes the file: the
        client itself asks Google for the state."""
        found = ((project, self.copy_at(project, now)) for project in self.copies)
        return frozenset(project for project, copy in found if copy and (copy.active or project == self.home))

    def with_copy(self, project: str, copy: Copy | Lease | None) -> "PooledFile":
        copies = {name: kept for name, kept in self.copies.items() if name != project}
        return replace(self, copies=copies if copy is None else copies | {project: copy})


@dataclass(frozen=True, slots=True)
class PooledUpload:
    """An upload under way."""

    client: str
    kind: str
    began: float
    described: Mapping[str, Any] = field(default_factory=dict)
    """The metadata that the client sent: Google's File, as JSON."""
    declared: int | None = None
    parts: tuple[Part, ...] = ()
    state: str = "active"
    """active; closing: all bytes are there and the file is being made; final; cancelled."""
    answer: str = ""
    passed: tuple[str, str, str] | None = None
    """Target, project and key of a session at Google, if the blob store failed before the first byte."""

    @property
    def received(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def expires(self) -> float:
        return self.began + LIFETIME

    @property
    def kept_until(self) -> float:
        """A file's life begins when its upload ends, which is a day after its start at the latest."""
        return self.expires + KEPT_S

    def with_part(self, part: Part | None, state: str) -> "PooledUpload":
        return replace(self, parts=self.parts if part is None else (*self.parts, part), state=state)

    def check_size(self, size: int) -> None:
        """Raises ChunkError for a file that is larger than Google takes."""
        if size > LARGEST:
            raise ChunkError(f"The file is too large: {size} bytes, and at most {LARGEST} are taken.")

    def chunk_offset(self, offset: str, length: int | None, *, final: bool) -> int:
        """Where the chunk begins, at or before the end of what was received. Raises ChunkError with Google's words."""
        if not (offset.isascii() and offset.isdigit()) or int(offset) > self.received:
            raise ChunkError(f"Invalid offset {offset}: {self.received} bytes have been received.")
        begin = int(offset)
        if length is not None:
            self.check_size(begin + length)
            self.check_chunk(begin + length, length, final=final)
        return begin

    def check_chunk(self, end: int, length: int, *, final: bool) -> None:
        """Raises ChunkError for a chunk that ends at the wrong place."""
        if not final and length % GRANULARITY:
            raise ChunkError(f"Invalid chunk: {length} bytes are no multiple of {GRANULARITY}.")
        if self.declared is not None and (end != self.declared if final else end > self.declared):
            raise ChunkError(f"Invalid size: {end} bytes, but {self.declared} were declared.")


def packed(thing: PooledFile | PooledUpload) -> Document:
    document: Document = {name: getattr(thing, name) for name in thing.__slots__}
    document |= {"v": 1, "parts": [list(part) for part in thing.parts], "expires": math.ceil(thing.expires)}
    if isinstance(thing, PooledFile):
        document["copies"] = {project: copy._asdict() for project, copy in thing.copies.items()}
    else:
        document["passed"] = None if thing.passed is None else list(thing.passed)
    return document


def unpacked_file(document: Mapping[str, Any]) -> PooledFile | None:
    """None for a document of another form."""
    try:
        copies: dict[str, Copy | Lease] = {
            project: Lease(**copy) if "by" in copy else Copy(**copy) for project, copy in document["copies"].items()
        }
        return PooledFile(**_fields(PooledFile, document) | {"copies": copies})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def unpacked_upload(document: Mapping[str, Any], now: float) -> PooledUpload | None:
    """None for an upload that has expired, and for a document of another form."""
    try:
        passed = None if document["passed"] is None else tuple(document["passed"])
        upload = PooledUpload(**_fields(PooledUpload, document) | {"passed": passed})
        return upload if upload.expires > now else None
    except (KeyError, TypeError, ValueError):
        return None


def _fields(kind: type[PooledFile | PooledUpload], document: Mapping[str, Any]) -> dict[str, Any]:
    if document["v"] != 1:
        raise ValueError("another version")
    parts = tuple(Part(blob, size) for blob, size in document["parts"])
    return {name: document[name] for name in kind.__slots__} | {"parts": parts}


def copy_of(document: Mapping[str, Any], expires: float) -> Copy:
    """A copy, from Google's File. `expires`: if that does not say."""
    name = str(document["name"])
    uri = document.get("uri")
    names = answer_names({"file": document}, read_target("POST", "/upload/v1beta/files"))
    active = document.get("state") in ("ACTIVE", None)
    return Copy(name, uri if isinstance(uri, str) else f"{GOOGLE}/v1beta/{name}", names.get(name) or expires, active)


def content_hash(client: str, sha256: str, kind: str, described: Mapping[str, Any]) -> str:
    """Equal for uploads that may share a file: the same client, bytes, type and names."""
    shown, given = shown_of(described), given_of(described)
    return hashlib.sha256(json.dumps([client, sha256, kind, shown, given]).encode()).hexdigest()


def shown_of(described: Mapping[str, Any]) -> str:
    shown = described.get("displayName", described.get("display_name"))
    return shown if isinstance(shown, str) else ""


def given_of(described: Mapping[str, Any]) -> str:
    """The name that the client chose."""
    given = described.get("name")
    return given if isinstance(given, str) else ""


def first_name(content: str, born: float, project: str) -> str:
    """The file's name. An instance that continues after a crashed one derives the same name, and so finds its file."""
    return "files/" + _short(content, repr(born), project)[:12]


def copy_name(file: PooledFile, project: str) -> str:
    return COPY + _short(file.name, repr(file.born), project, str(file.round))[:32]


def _short(*values: str) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
