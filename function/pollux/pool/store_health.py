"""Counts and times all calls to the store, and tells whether it is down or slow."""

import asyncio
import logging
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pollux.backends.store.contract import ConflictError, Document, Store, StoreUnavailableError, Version

log = logging.getLogger("pollux.store")
T = TypeVar("T")

SLOW = 1.0
SLOW_IN_A_ROW = 3
IDLE = 10.0
"""Seconds without a call after which a slow answer does not count: the process may have been frozen or the connection
closed."""
KEPT = 1000


@dataclass(slots=True)
class Counters:
    """How many calls the store got."""

    commits: int = 0
    conflicts: int = 0
    reads: int = 0


@dataclass(slots=True)
class StoreUse(Counters):
    """The calls of one request to the store, and how long it waited for them."""

    seconds: float = 0.0


class StoreHealth:
    """Counts, times and judges all calls of a process to its store.

    `trouble` is "down" after a call failed, until one succeeds (if a commit failed, until a commit succeeds). It is
    "slow" after three slow commits in a row, until a quick one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counters = Counters()
        self.seconds = 0.0
        self.trouble = ""
        self.why = ""
        self.since = 0.0
        self.recovered: list[Callable[[], None]] = []
        self.waits: deque[float] = deque(maxlen=KEPT)
        """How long requests waited for the store."""
        self._commits: deque[float] = deque(maxlen=KEPT)
        self._slow = 0
        self._commits_fail = False
        self._answered_at = float("-inf")

    @property
    def down(self) -> bool:
        return self.trouble == "down"

    async def read(self, names: Sequence[str]) -> Mapping[str, tuple[Document, Version]]:
        self.counters.reads += len(names)
        return await self._timed(self.store.read(names))

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        """Read all documents with a prefix. An operator asked for it, so it does not count as a cost of requests."""
        return await self._timed(self.store.scan(prefix), counted=False)

    async def commit(self, name: str, document: Document, version: Version | None, counters: Counters) -> Version:
        """Commit, and count the call for the process and in `counters`, which are the document's."""
        for each in (counters, self.counters):
            each.commits += 1
        try:
            return await self._timed(self.store.commit(name, document, version), commit=True)
        except ConflictError:
            for each in (counters, self.counters):
                each.conflicts += 1
            raise

    async def _timed(self, call: Awaitable[T], *, commit: bool = False, counted: bool = True) -> T:
        clock = _clock()
        began = clock()
        try:
            result = await call
        except ConflictError:
            self._answered(clock() - began, commit=commit)
            raise
        except StoreUnavailableError as error:
            self._failed(clock() - began, error, commit=commit)
            raise
        if counted:
            self._answered(clock() - began, commit=commit)
        return result

    def _answered(self, seconds: float, *, commit: bool) -> None:
        now = _clock()()
        rested = now - seconds - self._answered_at > IDLE
        self._answered_at = now
        self.seconds += seconds
        if commit:
            self._commits_fail = False
            self._commits.append(seconds)
            if seconds <= SLOW:
                self._slow = 0
            elif not rested:
                self._slow += 1
        if self._slow >= SLOW_IN_A_ROW:
            self._enter("slow", f"{self._slow} commits in a row took longer than {SLOW:g} s")
        elif not self._commits_fail and (self.down or not self._slow):
            self._leave()

    def _failed(self, seconds: float, error: Exception, *, commit: bool) -> None:
        self.seconds += seconds
        self._commits_fail |= commit
        self._slow = 0
        self._enter("down", str(error))

    def _enter(self, trouble: str, why: str) -> None:
        self.why = why
        if self.trouble == trouble:
            return
        if not self.trouble:
            self.since = self.store.now()
        self.trouble = trouble
        log.error("the store is %s: %s", trouble, why, extra={"event": "store-trouble"})

    def _leave(self) -> None:
        if not self.trouble:
            return
        log.warning("the store answers again, after %.0f s", self.store.now() - self.since)
        self.trouble = self.why = ""
        for tell in self.recovered:
            tell()

    def as_json(self) -> dict[str, Any]:
        counters = self.counters
        return {
            "state": self.trouble or "ok",
            "why": self.why or None,
            "since": self.since if self.trouble else None,
            "commits": counters.commits,
            "conflicts": counters.conflicts,
            "reads": counters.reads,
            "seconds": round(self.seconds, 3),
            "commit_ms": _spread(self._commits),
            "waited_ms": _spread(self.waits),
        }


def _clock() -> Callable[[], float]:
    """Returns the loop's clock, which tests replace. uvloop's has only whole milliseconds, so there it is another."""
    loop = asyncio.get_running_loop()
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def _spread(times: deque[float]) -> dict[str, float] | None:
    if not times:
        return None
    ordered = sorted(times)
    middle, last = statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return {"median": round(middle * 1000, 2), "p99": round(last * 1000, 2)}
