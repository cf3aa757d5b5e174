"""What projects own in the simulator: names, owners, expiry, pages, and the errors for things of other projects.

Nothing here knows what a file or a batch is; it is held, shown to its owner, and refused to everybody else.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gemini_simulator.content import Content
from gemini_simulator.errors import ApiError, bad_request, said

FILE_LIFE = 48 * 3600.0
TIDY = 1000
"""Above this many things, expired ones are removed; the next limit is twice what is left."""
_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
# What Google says of a thing that another project owns, that never was, or that has ended. The texts for documents and
# generated files are made after the others, which were seen.
_NOT_YOURS = {
    "files": "You do not have permission to access the File {id} or it may not exist.",
    "generatedFiles": "You do not have permission to access the GeneratedFile {id} or it may not exist.",
    "cachedContents": "CachedContent not found (or permission denied)",
    "fileSearchStores": "You do not have permission to access the file search store {id} or it may not exist.",
    "documents": "You do not have permission to access the Document {id} or it may not exist.",
    "corpora": "You do not have permission to access the Corpus {id} or it may not exist.",
    "tunedModels": "You do not have permission to access tuned model {id}.",
}


def timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_of(text: str) -> float:
    """A moment as Google takes it. Raises ApiError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise bad_request(f"Invalid value (Field 'expire_time'), Field 'expireTime', Illegal timestamp format; {text}")
    return moment.timestamp()


@dataclass(slots=True)
class Resource:
    """`ready`: when it becomes active or done. `document`: its fields, as given and as they became."""

    name: str
    project: str
    created: float
    document: dict[str, Any] = field(default_factory=dict)
    expires: float | None = None
    ready: float = 0.0
    content: Content | None = None
    outcome: Callable[[str], dict[str, Any]] | None = None
    """Of an operation: its response, for the base that URIs begin with."""

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]


class Resources:
    """The clock is read with each call, so that things expire by the simulator's clock, without timers."""

    def __init__(self, clock: Callable[[], float], seed: int = 0) -> None:
        self.clock = clock
        self._seed = seed
        self._serial = 0
        self._all: dict[str, Resource] = {}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._tidy_at = TIDY
        self.roots: set[str] = set()
        """What addresses that were told begin with: they name things here."""

    def token(self, length: int = 12) -> str:
        """The next id: lower-case letters and digits, other ones with another seed."""
        self._serial += 1
        return hashlib.sha256(f"{self._seed}/{self._serial}".encode()).hexdigest()[:length]

    def add(
        self,
        collection: str,
        project: str,
        document: dict[str, Any] | None = None,
        life: float | None = None,
        given: str | None = None,
    ) -> Resource:
        """`given`: the id that the client asks for. Raises ApiError if any project has it."""
        name = f"{collection}/{self.token() if given is None else given}"
        if given is not None:
            if not _ID.fullmatch(given):
                raise bad_request(f"* {name}: the id must be lower-case letters, digits and dashes, at most 40\n")
            if name in self._all and self._alive(self._all[name]):
                raise said(409, "ALREADY_EXISTS", "Requested entity already exists")
        now = self.clock()
        resource = Resource(name, project, now, document or {}, None if life is None else now + life)
        self._all.pop(name, None)
        if len(self._all) >= self._tidy_at:
            self._all = {name: held for name, held in self._all.items() if self._alive(held)}
            self._tidy_at = max(TIDY, 2 * len(self._all))
        self._all[name] = resource
        return resource

    def get(self, name: str, project: str) -> Resource:
        """Raises ApiError if it is not that project's, in the words that Google has for the kind."""
        self.settle()
        resource = self._all.get(name)
        if resource is None or resource.project != project or not self._alive(resource):
            raise _not_yours(name)
        return resource

    def remove(self, name: str, project: str) -> None:
        self.get(name, project)
        for inner in [other for other in self._all if other == name or other.startswith(name + "/")]:
            del self._all[inner]

    def later(self, at: float, do: Callable[[], None]) -> None:
        """Done at the first look at or after that time."""
        self._later.append((at, do))

    def settle(self) -> None:
        if self._later:
            now = self.clock()
            due = [do for at, do in self._later if at <= now]
            self._later = [entry for entry in self._later if entry[0] > now]
            for do in due:
                do()

    def of(self, collection: str, project: str) -> list[Resource]:
        """Those directly in that collection, the newest first."""
        self.settle()
        start = collection + "/"
        found = [
            resource
            for name, resource in self._all.items()
            if name.startswith(start)
            and "/" not in name[len(start) :]
            and resource.project == project
            and self._alive(resource)
        ]
        return found[::-1]

    def page(
        self, collection: str, project: str, query: Mapping[str, str], default: int = 10, most: int = 100
    ) -> tuple[list[Resource], dict[str, str]]:
        """One page of them, and what the answer says about the next one. The token is the last name of the page."""
        size = query.get("pageSize") or query.get("page_size") or str(default)
        token = query.get("pageToken") or query.get("page_token") or ""
        found = self.of(collection, project)
        if not (size.isascii() and size.isdigit()):
            raise bad_request(f"Invalid value at 'page_size' (TYPE_INT32), \"{size}\"")
        start = 0
        if token:
            places = [place for place, resource in enumerate(found, 1) if resource.id == token.removeprefix("after-")]
            if not places:
                raise bad_request("* page_token: the page token is invalid\n")
            start = places[0]
        end = start + min(int(size) or default, most)
        return found[start:end], {"nextPageToken": f"after-{found[end - 1].id}"} if end < len(found) else {}

    def openai_page(
        self, collection: str, project: str, query: Mapping[str, str], show: Callable[[Resource], dict[str, Any]]
    ) -> dict[str, Any]:
        """The same as OpenAI has it: `after` is the last id of the page before."""
        found = self.of(collection, project)
        limit, after = query.get("limit") or "20", query.get("after")
        if not (limit.isascii() and limit.isdigit()):
            raise bad_request(f"limit: {limit!r} is no number")
        places = [place for place, resource in enumerate(found, 1) if resource.name == after]
        if after and not places:
            raise bad_request(f"after: {after!r} is not known")
        start = places[0] if places else 0
        data = [show(resource) for resource in found[start : start + int(limit)]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"object": "list", "data": data, "has_more": start + len(data) < len(found)} | ends

    def shown(self) -> list[dict[str, Any]]:
        """Who owns what, for the tests."""
        self.settle()
        return [
            {
                "name": resource.name,
                "project": resource.project,
                "created": resource.created,
                "expires": resource.expires,
                "size": resource.content.size if resource.content else None,
                "sha256": resource.content.sha256 if resource.content else None,
            }
            for resource in self
        ]

    def __len__(self) -> int:
        """With those that have ended and are not thrown away yet."""
        return len(self._all)

    def __iter__(self) -> Iterator[Resource]:
        return (resource for resource in list(self._all.values()) if self._alive(resource))

    def _alive(self, resource: Resource) -> bool:
        return resource.expires is None or resource.expires > self.clock()


def _not_yours(name: str) -> ApiError:
    *_, kind, given = ("", *name.split("/"))
    if text := _NOT_YOURS.get(kind):
        return said(403, "PERMISSION_DENIED", text.format(id=given))
    return said(404, "NOT_FOUND", "Requested entity was not found.")
