"""Whether a simulated Gemini admits a call, PURE: three ways to count a minute, two to end a day. No HTTP, no clock.

It shares no code with the gateway's own arithmetic on purpose: a mistake made in both would hide itself.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

PER_MINUTE = {"rpm": 0, "tpm": 1, "ipm": 2}
PER_DAY = {"rpd": 0, "tpd": 1}
WINDOW = 60.0
_ZONES = {"pacific": ZoneInfo("America/Los_Angeles"), "utc": UTC}

Limits = Mapping[str, int]
"""rpm, tpm, rpd, tpd, ipm -> the limit. 0 is "not on this tier"; an absent one is not enforced."""


class Use(NamedTuple):
    requests: int
    tokens: int
    images: int = 0


class Refusal(NamedTuple):
    """`name`, `limit`: what ends last of all that is exceeded; `broken`: all of it, as Google lists it."""

    name: str
    limit: int
    retry_s: float
    broken: tuple[tuple[str, int], ...]


class Minute(Protocol):
    """One way to count the minute limits of one (project, model). `index` is that of Use."""

    def delay(self, now: float, index: int, want: int, limit: int) -> float:
        """Seconds until the want fits; 0: now. The limit is not 0; a want above it waits for an empty window."""
        ...

    def charge(self, now: float, use: Use) -> None: ...


class Sliding:
    """An exact log of the last 60 seconds. Also used to see the peak of what was admitted."""

    __slots__ = ("_log", "_sums")

    def __init__(self) -> None:
        self._log: deque[tuple[float, Use]] = deque()
        self._sums = [0, 0, 0]

    def forget(self, now: float) -> None:
        log, sums = self._log, self._sums
        while log and now - log[0][0] >= WINDOW:
            _, (requests, tokens, images) = log.popleft()
            sums[0] -= requests
            sums[1] -= tokens
            sums[2] -= images

    def delay(self, now: float, index: int, want: int, limit: int) -> float:
        self.forget(now)
        over = self._sums[index] + min(want, limit) - limit
        if over <= 0:
            return 0.0
        for when, use in self._log:
            over -= use[index]
            if over <= 0:
                return max(0.001, when + WINDOW - now)
        raise AssertionError("the sum is that of the log")

    def charge(self, now: float, use: Use) -> None:
        self._log.append((now, use))
        for index, amount in enumerate(use):
            self._sums[index] += amount

    def total(self) -> Use:
        return Use(*self._sums)


class WallClock:
    """Counters that restart at second 00, as measurements of 2025 and 2026 suggest of Google."""

    __slots__ = ("_number", "_sums")

    def __init__(self) -> None:
        self._number = -1.0
        self._sums = [0, 0, 0]

    def _turn(self, now: float) -> None:
        if now // WINDOW != self._number:
            self._number = now // WINDOW
            self._sums = [0, 0, 0]

    def delay(self, now: float, index: int, want: int, limit: int) -> float:
        self._turn(now)
        return WINDOW - now % WINDOW if self._sums[index] + min(want, limit) > limit else 0.0

    def charge(self, now: float, use: Use) -> None:
        self._turn(now)
        for index, amount in enumerate(use):
            self._sums[index] += amount


class Bucket:
    """A bucket as large as the limit, refilled by a sixtieth of it each second. It starts full."""

    __slots__ = ("_at", "_taken")

    def __init__(self) -> None:
        self._taken = [0.0, 0.0, 0.0]
        self._at = [0.0, 0.0, 0.0]

    def delay(self, now: float, index: int, want: int, limit: int) -> float:
        rate = limit / WINDOW
        taken = self._taken[index] = max(0.0, self._taken[index] - (now - self._at[index]) * rate)
        self._at[index] = now
        over = taken + min(want, limit) - limit
        return over / rate if over > 1e-6 else 0.0  # what refills is a fraction: a millionth short is full

    def charge(self, now: float, use: Use) -> None:
        for index, amount in enumerate(use):
            self._taken[index] += amount


class Day:
    __slots__ = ("_ends", "_sums", "_zone")

    def __init__(self, zone: str) -> None:
        self._zone = _ZONES[zone]
        self._ends = float("-inf")
        self._sums = [0, 0, 0]

    def _turn(self, now: float) -> None:
        if now >= self._ends:
            # By date arithmetic, not by adding 86,400 s: two days of the Pacific year have 23 and 25 hours.
            tomorrow = datetime.fromtimestamp(now, self._zone).date() + timedelta(days=1)
            self._ends = datetime.combine(tomorrow, time(), self._zone).timestamp()
            self._sums = [0, 0, 0]

    def delay(self, now: float, index: int, want: int, limit: int) -> float:
        self._turn(now)
        return self._ends - now if self._sums[index] + min(want, limit) > limit else 0.0

    def charge(self, now: float, use: Use) -> None:
        self._turn(now)
        for index, amount in enumerate(use):
            self._sums[index] += amount


_MINUTES: dict[str, Callable[[], Minute]] = {"sliding": Sliding, "minute": WallClock, "bucket": Bucket}
KINDS = tuple(_MINUTES)


class _Quota:
    __slots__ = ("admitted", "day", "minute", "peak")

    def __init__(self, kind: str, day: str, count_refused: bool) -> None:
        self.admitted = Sliding()
        shared = kind == "sliding" and not count_refused
        self.minute: Minute = self.admitted if shared else _MINUTES[kind]()
        self.day = Day(day)
        self.peak = Use(0, 0, 0)


class Enforcer:
    """Counts per (project, model). `limits`: a function of both, one mapping for all, or model or "*" -> mapping.

    `admitted`, `refused`: calls per (project, model); `served`: what the admitted ones used; `reasons`: refusals per
    limit.
    """

    def __init__(
        self,
        kind: str,
        limits: Callable[[str, str], Limits] | Mapping[str, Any],
        *,
        day: str = "pacific",
        count_refused: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of enforcement; expected one of {', '.join(KINDS)}")
        if day not in _ZONES:
            raise ValueError(f"{day!r} is no day; expected pacific or utc")
        self.kind = kind
        self._day = day
        self._limits = limits if callable(limits) else _from_mapping(limits)
        self._count_refused = count_refused
        self._quotas: dict[tuple[str, str], _Quota] = {}
        self.admitted: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.served: dict[tuple[str, str], Use] = {}
        self.reasons: Counter[str] = Counter()

    def admit(
        self, project: str, model: str, *, requests: int, tokens: int, images: int = 0, now: float
    ) -> Refusal | None:
        name = project, model
        quota = self._quotas.get(name)
        if quota is None:
            quota = self._quotas[name] = _Quota(self.kind, self._day, self._count_refused)
        use = Use(requests, tokens, images)
        refusal = self._exceeded(quota, self._limits(project, model), use, now)
        if refusal is None or self._count_refused:
            quota.day.charge(now, use)
            if quota.minute is not quota.admitted:
                quota.minute.charge(now, use)
        if refusal is not None:
            self.refused[name] += 1
            self.reasons[refusal.name] += 1
            return refusal
        quota.admitted.forget(now)
        quota.admitted.charge(now, use)
        quota.peak = Use(*map(max, quota.peak, quota.admitted.total()))
        self.admitted[name] += 1
        before = self.served.get(name, (0, 0, 0))
        self.served[name] = Use(before[0] + requests, before[1] + tokens, before[2] + images)
        return None

    def peak_in_60s(self, project: str, model: str) -> Use:
        """The most that was admitted within any 60 s, whatever the kind of enforcement; each figure separately."""
        quota = self._quotas.get((project, model))
        return quota.peak if quota else Use(0, 0, 0)

    def names(self) -> list[tuple[str, str]]:
        return sorted(self._quotas)

    @staticmethod
    def _exceeded(quota: _Quota, limits: Limits, use: Use, now: float) -> Refusal | None:
        broken = []
        for name, limit in limits.items():
            counter, index = (quota.minute, PER_MINUTE[name]) if name in PER_MINUTE else (quota.day, PER_DAY[name])
            want = use[index]
            if limit <= 0:
                if want or index < 2:
                    broken.append((WINDOW - now % WINDOW, name, 0))
                continue
            delay = counter.delay(now, index, want, limit)
            if delay or want > limit:
                # A want above the limit fits never, yet Google names a short delay, as if it did.
                broken.append((delay or WINDOW - now % WINDOW, name, limit))
        if not broken:
            return None
        if any(not limit for _, _, limit in broken):
            broken = [entry for entry in broken if not entry[2]]
        delay, name, limit = max(broken)
        return Refusal(name, limit, delay, tuple((name, limit) for _, name, limit in broken))


def _from_mapping(limits: Mapping[str, Any]) -> Callable[[str, str], Limits]:
    per_model = any(isinstance(value, Mapping) for value in limits.values())
    table: Mapping[str, Limits] = limits if per_model else {"*": limits}
    if unknown := {name for row in table.values() for name in row} - {*PER_MINUTE, *PER_DAY}:
        raise ValueError(f"no such limit: {', '.join(sorted(unknown))}")
    return lambda project, model: table.get(model) or table.get("*") or {}
