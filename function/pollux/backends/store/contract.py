"""The store's contract: small JSON documents with versions, changed only if nobody was faster.

Every backend passes the same suite (tests/contract). What a document means is not known here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Document = dict[str, Any]
"""What JSON can hold: str, 64-bit int, finite float, bool, None, lists of them, dicts of them by str. It comes back
equal, types too; a store keeps a copy, never the caller's object. NaN is a ValueError, an odd object a TypeError, and
more than 1,000,000 bytes of JSON text in ASCII are a ValueError where they do not fit. A document may hold `expires`,
seconds since 1970: after that a store may delete it, at some time or never."""

Version = str
"""Opaque. Two versions are equal only if the document was not changed in between, also across delete and re-create."""


class StoreError(Exception):
    """The store cannot be used: what happened, to which store, what to do. Never holds a document."""


class StoreUnavailableError(StoreError):
    """The store did not answer this time, but may later. Whether a commit was applied is not known, unless the message
    says that nothing was written; reading again tells."""


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
    """Verbs only; time comes from `now`, the store's own clock as well as it is known here.

    A store belongs to one event loop. Between open and close every verb works; outside of them it is a StoreError.
    A commit that meets no contention may finish without ever suspending its task. A name is any non-empty str of up to
    500 bytes in UTF-8, without NUL; no character in it is special.
    """

    async def open(self) -> None:
        """Connect and check. Raises StoreError with one clear line."""

    async def close(self) -> None:
        """Let go of everything; again is harmless."""

    def now(self) -> float:
        """Seconds since 1970 by the clock that all users of this store share."""

    def error(self) -> float:
        """How many seconds `now` may be off at most, as far as is known."""

    async def read(self, names: Iterable[str]) -> Mapping[str, tuple[Document, Version]]:
        """One round trip for many; a name that does not exist is absent from the answer."""

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        """Write if the version still stands (None: if it does not exist); else ConflictError, also if it vanished."""

    async def commit_all(self, writes: Sequence[Write]) -> list[Version]:
        """All or nothing. The version of a deleted document is ''. A name twice or a delete of None: ValueError."""

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        """All documents whose name starts with the prefix, in order of name (by code point)."""

    async def delete(self, name: str, version: Version) -> None:
        """Delete if the version still stands; else ConflictError."""
