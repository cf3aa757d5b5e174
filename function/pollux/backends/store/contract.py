"""The contract of a store: small JSON documents, each changed only if its version still stands.

Every backend passes the same suite (tests/backends/store/contract).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Document = dict[str, Any]
"""JSON values: str, 64-bit int, finite float, bool, None, lists and dicts of them. It comes back equal, types too; a
store keeps a copy, never the caller's object. NaN is a ValueError, another object a TypeError, and more than 1,000,000
bytes of JSON text in ASCII a ValueError where they do not fit. A document may have `expires`, seconds since 1970: after
that a store may delete it, at some time or never."""

Version = str
"""Opaque. Two versions are equal only if the document was not changed in between, nor deleted and created again."""


class StoreError(Exception):
    """The store cannot be used: says what happened, to which store, what to do. Never holds a document."""


class StoreUnavailableError(StoreError):
    """The store did not answer this time, but may later. A commit may have been applied, unless the message says that
    nothing was written; read again to find out."""


class ConflictError(Exception):
    """Another writer was faster: nothing of this commit was applied. Read again and decide anew."""

    def __init__(self, name: str) -> None:
        super().__init__(f"document {name!r} was changed by another writer")
        self.name = name


@dataclass(frozen=True, slots=True)
class Write:
    """One document of an atomic commit. `version` None: it must not exist yet. `document` None: delete it."""

    name: str
    document: Document | None
    version: Version | None


class Store(Protocol):
    """For one event loop. Before open and after close, every method but these two and the clock raises StoreError.

    A commit without contention may finish without suspending its task. A name is any non-empty str of up to 500 bytes
    in UTF-8, without NUL; no character in it is special.
    """

    async def open(self) -> None:
        """Connect and check. Raises StoreError with one clear line."""

    async def close(self) -> None:
        """May be called twice."""

    def now(self) -> float:
        """Seconds since 1970 by the store's clock, which all its users share, as well as it is known here."""

    def error(self) -> float:
        """By how many seconds `now` may be off at most, as far as is known."""

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        """One round trip for all. A document that does not exist is absent from the answer."""

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        """Write if the version still stands (None: if it does not exist); else ConflictError, also if it vanished."""

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        """All or nothing. The version of a deleted document is ''. A name twice or a delete of None: ValueError."""

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        """All documents whose name starts with the prefix, in order of name (by code point)."""

    async def delete(self, name: str, version: Version) -> None:
        """Delete if the version still stands; else ConflictError."""
