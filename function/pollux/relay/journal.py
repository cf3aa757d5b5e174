"""What happened to each request: a record, kept for `explain`, counted for `status`, and written as one log line."""

import random
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from pollux.pool.refusals import Why, words
from pollux.pool.store_health import StoreUse

KEPT = 1000
TELL_WAIT = 0.05
"""Seconds. Longer waits are recorded with their reason."""
ENDS = 10
"""The first and the last ten attempts of a request are kept; those between are counted by cause."""


@dataclass(slots=True)
class Attempt:
    """One call upstream, or one search for a slot that found none."""

    model: str
    project: str
    key: str
    cause: str
    status: int | None
    detail: str = ""
    waited: float = 0.0
    learned: dict[str, int] = field(default_factory=dict)
    """The limits that Google named when it refused."""

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"model": self.model, "project": self.project, "key": self.key, "cause": self.cause}
        if self.status is not None:
            shown["status"] = str(self.status)
        if self.detail:
            shown["detail"] = self.detail
        if self.learned:
            shown["learned"] = self.learned
        if self.waited >= 0.0005:
            shown["waited_ms"] = str(round(self.waited * 1000))
        return shown


@dataclass(slots=True)
class Record:
    id: str = field(default_factory=lambda: f"{random.getrandbits(64):016x}")
    """Not a secret: it opens nothing without the admin token."""
    started: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.time)
    client: str = ""
    api: str = "native"
    what: str = ""
    asked: str = ""
    wanted: str = ""
    """The model that was asked for, with alias and mode resolved. Empty for a call without quota."""
    used: str = ""
    key: str = ""
    project: str = ""
    owner: str = ""
    """The project that owns what the request names. If there are several, none can serve it."""
    bound: tuple[str, ...] = ()
    """The resources that the request names."""
    attempts: list[Attempt] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Attempts between the first and the last ones, by cause."""
    sent: int = 0
    """How often it was sent."""
    waited: float = 0.0
    waits: dict[tuple[str, Why], float] = field(default_factory=dict)
    """(model, reason) -> seconds."""
    store: StoreUse = field(default_factory=StoreUse)
    first_byte: float | None = None
    estimated: int = 0
    tokens: int | None = None
    status: int = 0
    reason: str = ""
    ended: str = ""
    """How a stream ended, if not well: truncated, broken, error, cut, client-gone."""
    total: float = 0.0

    @property
    def fallback_from(self) -> str:
        """The model as the client named it, if another model of the chain was used."""
        return self.asked if self.wanted and self.used not in ("", self.wanted) else ""

    def wait(self, model: str, why: Why | None, seconds: float) -> None:
        self.waited += seconds
        if why is not None and seconds >= TELL_WAIT:
            self.waits[model, why] = self.waits.get((model, why), 0.0) + seconds

    def note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        if len(self.attempts) > 2 * ENDS:
            self.left_out[self.attempts.pop(ENDS).cause] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "client": self.client,
            "call": self.what,
            "model": self.asked,
            "model_used": self.used,
            "fallback_from": self.fallback_from,
            "key": self.key,
            "project": self.project,
            **({"owner": self.owner, "bound": list(self.bound)} if self.bound else {}),
            "attempts": [attempt.as_json() for attempt in self.attempts],
            **({"attempts_left_out": dict(self.left_out)} if self.left_out else {}),
            "waited_ms": round(self.waited * 1000),
            **({"waits": self._waits()} if self.waits else {}),
            "store_ms": round(self.store.seconds * 1000, 1),
            "commits": self.store.commits,
            "conflicts": self.store.conflicts,
            "first_byte_ms": None if self.first_byte is None else round(self.first_byte * 1000, 1),
            "total_ms": round(self.total * 1000, 1),
            "tokens_estimated": self.estimated,
            "tokens": self.tokens,
            "status": self.status,
            "reason": self.reason,
            "ended": self.ended,
        }

    def _waits(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "why": words(why), "ms": round(seconds * 1000)}
            for (model, why), seconds in self.waits.items()
        ]


class Journal:
    def __init__(self) -> None:
        self.requests = 0
        self.statuses: Counter[int] = Counter()
        self.causes: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.under_way = 0
        self._recent: OrderedDict[str, Record] = OrderedDict()

    def close(self, record: Record) -> None:
        record.total = time.monotonic() - record.started
        self.requests += 1
        self.statuses[record.status] += 1
        for attempt in record.attempts:
            self.causes[attempt.cause] += 1
        self.causes.update(record.left_out)
        if record.ended:
            self.endings[record.ended] += 1
        if record.reason == "NO_TOKEN":  # strangers must not push out requests of clients
            return
        self._recent[record.id] = record
        if len(self._recent) > KEPT:
            self._recent.popitem(last=False)

    def find(self, request_id: str) -> Record | None:
        return self._recent.get(request_id)

    def totals(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "under_way": self.under_way,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "causes": dict(self.causes.most_common()),
            "endings": dict(self.endings),
        }
