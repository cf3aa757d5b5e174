"""The bytes of a file as they come: counted, digested, and kept if they are not too many. No I/O."""

import hashlib

KEEP = 16 * 2**20
"""Of a larger file only size and digest are kept."""


class Content:
    __slots__ = ("_digest", "_keep", "_kept", "size")

    def __init__(self, keep: int | None = KEEP) -> None:
        self.size = 0
        self._keep = keep
        self._kept: bytearray | None = bytearray()
        self._digest = hashlib.sha256()

    @classmethod
    def of(cls, data: bytes) -> "Content":
        content = cls(None)
        content.write(0, data)
        return content

    def write(self, position: int, data: bytes) -> None:
        """What was there already is left out: a chunk that is sent again changes nothing. No gaps."""
        if (had := self.size - position) >= len(data):
            return
        if had < 0:
            raise ValueError(f"{-had} bytes are missing before {position}")
        new = memoryview(data)[had:] if had else data
        self._digest.update(new)
        self.size += len(new)
        if self._kept is not None:
            if self._keep is not None and self.size > self._keep:
                self._kept = None
            else:
                self._kept += new

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def data(self) -> bytes | None:
        """None: too large to be kept."""
        return None if self._kept is None else bytes(self._kept)
