"""PURE. An upload under way: what has come of it, and what Google says of offsets and sizes that do not fit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pollux.backends.store.contract import Document
from pollux.resources.pooled.documents import KEPT_S, Part
from pollux.resources.upload_token import LIFETIME

GRANULARITY = 256 * 1024
"""What every chunk but the last is a multiple of."""


LARGEST = 2 * 2**30
"""Google takes no larger file."""


class GoogleSession(NamedTuple):
    """It went on at Google instead: there was no blob store when it began."""

    target: str
    project: str
    key: str


class ChunkError(Exception):
    """This chunk cannot be taken; the upload lives."""


@dataclass(frozen=True, slots=True)
class PooledUpload:
    client: str
    kind: str
    began: float
    described: Mapping[str, Any] = field(default_factory=dict)
    declared: int | None = None
    parts: tuple[Part, ...] = ()
    state: str = "active"
    """active; closing: all has come, and it becomes a file; final; cancelled."""
    answer: str = ""
    passed: GoogleSession | None = None

    @property
    def received(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def expires(self) -> float:
        return self.began + LIFETIME

    @property
    def kept_until(self) -> float:
        """The file begins when the upload ends, a day later at most."""
        return self.expires + KEPT_S

    def with_part(self, part: Part | None, state: str) -> "PooledUpload":
        return replace(self, parts=self.parts if part is None else (*self.parts, part), state=state)

    def check_size(self, size: int) -> None:
        """Raises ChunkError for what Google would refuse when all has come."""
        if size > LARGEST:
            raise ChunkError(f"The file is too large: {size} bytes, and at most {LARGEST} are taken.")

    def place(self, offset: str, length: int | None, *, final: bool) -> int:
        """Where the chunk begins, at or before the end of what has come. Raises ChunkError in Google's words."""
        if not (offset.isascii() and offset.isdigit()) or int(offset) > self.received:
            raise ChunkError(f"Invalid offset {offset}: {self.received} bytes have been received.")
        begin = int(offset)
        if length is None:
            return begin
        end = begin + length
        self.check_size(end)
        if not final and length % GRANULARITY:
            raise ChunkError(f"Invalid chunk: {length} bytes are no multiple of {GRANULARITY}.")
        if self.declared is not None and (end != self.declared if final else end > self.declared):
            raise ChunkError(f"Invalid size: {end} bytes, but {self.declared} were declared.")
        return begin


def packed(upload: PooledUpload) -> Document:
    return {
        "v": 1,
        "client": upload.client,
        "kind": upload.kind,
        "began": upload.began,
        "described": dict(upload.described),
        "declared": upload.declared,
        "parts": [list(part) for part in upload.parts],
        "state": upload.state,
        "answer": upload.answer,
        "passed": None if upload.passed is None else list(upload.passed),
        "expires": math.ceil(upload.expires),
    }


def unpacked(document: Mapping[str, Any], now: float) -> PooledUpload | None:
    """None for one that is over, and for what was written in another form."""
    try:
        upload = PooledUpload(
            client=document["client"],
            kind=document["kind"],
            began=document["began"],
            described=document["described"],
            declared=document["declared"],
            parts=tuple(Part(blob, size) for blob, size in document["parts"]),
            state=document["state"],
            answer=document["answer"],
            passed=None if document["passed"] is None else GoogleSession(*document["passed"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return upload if document["v"] == 1 and upload.expires > now else None
