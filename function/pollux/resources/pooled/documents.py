"""PURE. What the store knows of pooled files: their documents, and the names that follow from what a file is.

`pooled/files/ID` is a file: whose it is, its content's parts, its copies. `content/HASH` says which file a client's
content is, or who is just making it. `upload/ID` is an upload under way.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pollux.backends.store.contract import Document

FILE, CONTENT, UPLOAD = "pooled/", "content/", "upload/"
COPY = "files/px-"
"""What the names of copies begin with: no client is told of them, and none can ask for them."""
KEPT_S = 48 * 3600.0
"""As long as Google keeps a file."""
SHARED_S = 24 * 3600.0
"""A file with less time left is not given for the same content again."""
ENDING_S = 60.0
"""A copy that is about to end is not used any more."""


class Copy(NamedTuple):
    """A file of a project with the content."""

    name: str
    uri: str
    expires: float
    active: bool


class Lease(NamedTuple):
    """An instance is making the copy; if it dies, until then."""

    by: str
    until: float


class Part(NamedTuple):
    """A blob with a piece of the content."""

    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class PooledFile:
    name: str
    """What its client knows it by, and its project."""
    client: str
    sha256: str
    size: int
    kind: str
    """MIME type."""
    shown: str
    """Display name."""
    content: str
    """The hash by which the same content is known again."""
    home: str
    born: float
    expires: float
    parts: tuple[Part, ...] = ()
    uses: int = 1
    """How often it was given for this content; so often it has to be deleted."""
    round: int = 0
    """How often a copy was lost: the next ones have other names."""
    copies: Mapping[str, Copy | Lease] = field(default_factory=dict)

    def copy_at(self, project: str, now: float) -> Copy | None:
        """A copy that can be used, or will be once Google has processed it."""
        copy = self.copies.get(project)
        return copy if isinstance(copy, Copy) and copy.expires - ENDING_S > now else None

    def ready_at(self, now: float) -> frozenset[str]:
        """Projects whose copy can be used now. How far Google is with the file itself, its client asks."""
        found = ((project, self.copy_at(project, now)) for project in self.copies)
        return frozenset(project for project, copy in found if copy and (copy.active or project == self.home))

    def with_copy(self, project: str, copy: Copy | Lease | None) -> "PooledFile":
        copies = {name: kept for name, kept in self.copies.items() if name != project}
        return replace(self, copies=copies if copy is None else copies | {project: copy})


def packed(file: PooledFile) -> Document:
    copies = {
        project: {"name": copy.name, "uri": copy.uri, "expires": copy.expires, "active": copy.active}
        if isinstance(copy, Copy)
        else {"by": copy.by, "until": copy.until}
        for project, copy in file.copies.items()
    }
    said = {name: getattr(file, name) for name in PooledFile.__slots__ if name not in ("parts", "copies")}
    parts = [[part.blob, part.size] for part in file.parts]
    return {"v": 1, **said, "parts": parts, "copies": copies, "expires": math.ceil(file.expires)}


def unpacked(document: Mapping[str, Any]) -> PooledFile | None:
    """None for what is no such document, or was written in another form."""
    try:
        copies: dict[str, Copy | Lease] = {
            project: Lease(copy["by"], copy["until"])
            if "by" in copy
            else Copy(copy["name"], copy["uri"], copy["expires"], copy["active"])
            for project, copy in document["copies"].items()
        }
        said = {name: document[name] for name in PooledFile.__slots__ if name not in ("parts", "copies")}
        parts = tuple(Part(blob, size) for blob, size in document["parts"])
        return PooledFile(**said, parts=parts, copies=copies) if document["v"] == 1 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def content_hash(client: str, sha256: str, kind: str, described: Mapping[str, Any]) -> str:
    """By what the same content of the same client is known again: also its type and its names must be the same."""
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
    """The file's name. Whoever makes it in the place of one that died finds what that one has made."""
    return "files/" + _short(content, repr(born), project)[:12]


def copy_name(file: PooledFile, project: str) -> str:
    return COPY + _short(file.name, repr(file.born), project, str(file.round))[:32]


def _short(*said: str) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
