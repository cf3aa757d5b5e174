"""Keys and where they come from. A value is opaque and leaves its `Secret` only towards the upstream."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Secret:
    """A value that no log, repr, format or pickle shows. `reveal` is the only way out; grep for it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def derived(self, label: bytes) -> bytes:
        """A key for seals of our own: the same wherever the value is known, and it does not tell the value."""
        return hmac.digest(self._value.encode("utf-8", "replace"), label, hashlib.sha256)

    @property
    def masked(self) -> str:
        """Enough to recognise one's own key, too little to use it: the first four and the last two characters."""
        return f"{self._value[:4]}…{self._value[-2:]}" if len(self._value) >= 20 else "…"

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class Key:
    """One API key as the pool knows it. `limits`: model or "*" -> {"rpm", "tpm", …}, as its owner wrote them.

    `generation` grows in this process when the value behind the id becomes another one: what was known about the old
    value (that Google refused it) is not true of the new one.
    """

    id: str
    project: str
    tier: str | None = None
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    enabled: bool = True
    generation: int = 0


class KeySourceError(Exception):
    """A key source cannot be used: file, line and reason, never a value."""

    passing = False
    """True: nothing is wrong with the key; its source did not answer this process just now."""


class Keyring(Protocol):
    """Where keys come from. The pool asks `keys` often (it is cheap) and `value` on first use."""

    async def keys(self) -> tuple[Key, ...]:
        """The keys as they stand now; a change is seen within seconds (locally) or a minute (in the cloud)."""

    async def value(self, key_id: str) -> Secret:
        """The key's value. Raises KeySourceError if it cannot be had."""

    async def reread(self, key_id: str) -> bool:
        """After Google refused the key: fetch it again. True if the value is another one now."""
