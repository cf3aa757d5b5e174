"""Who wrote a document lately, and which of this instance's own commits it holds, though their answers were lost.

Each commit carries its instance's next number in the document's `writers`: whoever finds its own last one there knows
that it was applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pollux.instance import has_ended

WRITER_FOR = 60.0
UNKNOWN_KEPT = 64

Writers = dict[str, list[float]]
"""Instance -> [number, time] of its last commit."""


@dataclass(slots=True)
class Authorship:
    me: str
    sequence: int = 0
    writers: Writers = field(default_factory=dict)
    _unknown: dict[int, int] = field(default_factory=dict)
    """Commits that may or may not have been applied: their number, and how many of those that ride went along."""

    def sign(self, now: float, riding: int) -> Writers:
        """The writers for the next commit, with which so many ride along."""
        self.sequence += 1
        self._unknown[self.sequence] = riding
        self._unknown.pop(self.sequence - UNKNOWN_KEPT, None)
        return self.recent(self.writers, now) | {self.me: [self.sequence, now]}

    def recent(self, writers: Mapping[str, list[float]], now: float) -> Writers:
        """Those of the last minute that may still run, and oneself, however long ago: an answer may have been lost as
        long."""
        return {
            name: mark
            for name, mark in writers.items()
            if name == self.me or (now - mark[1] < WRITER_FOR and not has_ended(name))
        }

    def names(self, now: float) -> frozenset[str]:
        return frozenset((*self.recent(self.writers, now), self.me))

    def is_alone(self, now: float) -> bool:
        return len(self.writers) < 2 or self.names(now) == {self.me}

    def read(self, writers: Writers, *, changed: bool) -> int:
        """The document says so. How many of those that ride are in it, if it changed since it was last seen: of the
        commits whose answer was lost one was applied, or none can be any more."""
        self.writers = writers
        applied = self._unknown.get(int(self._mark()), 0) if changed else 0
        if changed:
            self._unknown.clear()
        self.sequence = max(self.sequence, int(self._mark()))  # of one that was forgotten and made anew
        return applied

    def committed(self, writers: Writers) -> None:
        self.writers = writers
        self._unknown.clear()

    @property
    def holds_last(self) -> bool:
        """The document holds the last commit that was tried."""
        return self._mark() == self.sequence

    def _mark(self) -> float:
        return self.writers.get(self.me, [0])[0]
