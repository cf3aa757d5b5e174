"""Keys, their values, and the protocol of a key source."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Secret:
    """A value that no log, repr, format or pickle shows. Only `reveal` returns it, so that a search finds every use."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def derived(self, label: bytes) -> bytes:
        """A key for our own signatures: the same wherever the value is known, and the value cannot be read from it."""
        return hmac.digest(self._value.encode("utf-8", "replace"), label, hashlib.sha256)

    @property
    def masked(self) -> str:
        """The first four and the last two characters: enough to recognise a key, too little to use it."""
        return f"{self._value[:4]}…{self._value[-2:]}" if len(self._value) >= 20 else "…"

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret cannot be pickled")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class Key:
    """One API key, without its value. `limits`: model or "*" -> {"rpm", "tpm", …}, as its owner wrote them.

    `generation` grows when the value behind the id changes: what was learned about the old value, such as a refusal,
    does not hold for the new one.
    """

    id: str
    project: str
    tier: str | None = None
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    enabled: bool = True
    generation: int = 0


class KeySourceError(Exception):
    """A key source cannot be used: says which file and line and why, never a value."""

    transient = False
    """Whether the source just did not answer, so that the key may be good."""


class Keyring(Protocol):
    """A key source. The pool calls `keys` for each request and the relay calls `value` before each call upstream, so
    both are cached."""

    async def keys(self) -> tuple[Key, ...]:
        """The current keys. A change is seen within seconds (locally) or a minute (in the cloud)."""

    async def value(self, key_id: str) -> Secret:
        """The key's value. Raises KeySourceError if it cannot be read."""

    async def reread(self, key_id: str) -> bool:
        """Read the key again, after Google refused it. True if its value has changed."""
