"""The store's contract: small JSON documents with versions, changed only if nobody was faster.

Every backend passes the same suite (tests/contract). What a document means is not known here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Document = dict[str, Any]
"""JSON-like: str, int, float, bool, None, lists and dicts of them. A store keeps a copy, never the caller's object."""

Version = str
"""Opaque. Two versions are equal only if the document was not changed in between, also across delete and re-create."""


class StoreError(Exception):
    """The store cannot be used: what happened, to which store, what to do. Never holds a document."""


class StoreUnavailableError(StoreError):
    """The store did not answer this time: it is not known whether a commit was applied."""


class ConflictError(Exception):
    """Somebody was faster: nothing of this commit was applied. Read again and decide anew."""

    def __init__(self, name: str) -> None:
        super().__init__(f"document {name!r} was changed by somebody else")
        self.name = name


@dataclass(frozen=True, slots=True)
class Write:
    """One document of an atomic commit. `version` None: it must not exist yet. `document` None: delete it."""

    name: str
    document: Document | None
    version: Version | None


class Store(Protocol):
    """Verbs only; time comes from `now`, the store's own clock as well as it is known here."""

    async def open(self) -> None:
        """Connect and check. Raises StoreError with one clear line."""

    async def close(self) -> None: ...

    def now(self) -> float:
        """Seconds since 1970 by the clock that all users of this store share."""

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        """One round trip for many; a name that does not exist is absent from the answer."""

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        """Write if the version still stands (None: if it does not exist); else ConflictError."""

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        """All or nothing. The version of a deleted document is ''."""

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        """All documents whose name starts with the prefix."""

    async def delete(self, name: str, version: Version) -> None:
        """Delete if the version still stands; else ConflictError."""
