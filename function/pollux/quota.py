"""The arithmetic of one quota, PURE: reserve, settle, cool, learn. The time is always an argument.

A quota is what Google counts for one (project, bucket). `State` is a value: every function gives a new one and leaves the
old as it was. Where a want fits among what is booked is told by `windows`; how a state is kept as a document, by `packing`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pollux.windows import MINUTE_LIMITS, SLOT, WINDOW, Limits, Want, day_of, fit_minute, fit_sliding

LATE = 0.5
"""A reservation is sent at the latest this long after its slot has ended."""
MIDNIGHT_GUARD = 1.0
LEARNED_FOR = 7 * 86400.0
DAY = 86400.0
PROBE_LEASE = 60.0
"""How long others wait for the outcome of a probe, if nobody reports it."""
PROBED = frozenset({"rpd", "tpd", "unsupported", "unknown-429", "spend"})
"""Cooldowns that end half-open: one request goes first, the others follow when it was served."""


class Slot(NamedTuple):
    """A place that was found. `probe`: "" or why this request goes ahead of all others ("half-open", "utc")."""

    number: int
    day: str
    probe: str = ""

    @property
    def start(self) -> float:
        return self.number * SLOT

    @property
    def latest(self) -> float:
        """After this it must not be sent any more."""
        return (self.number + 1) * SLOT + LATE


class Refusal(NamedTuple):
    """No place up to the deadline. `until`: when it is worth asking again; inf: never, it does not fit at all."""

    until: float
    why: str


class Cooldown(NamedTuple):
    until: float
    reason: str
    streak: int


@dataclass(frozen=True, slots=True)
class State:
    slots: dict[int, Want] = field(default_factory=dict)
    days: dict[str, tuple[int, int]] = field(default_factory=dict)
    learned: dict[str, tuple[int, float]] = field(default_factory=dict)
    tier: str | None = None
    """The tier for which `learned` was learned."""
    cooldown: Cooldown | None = None
    probe_until: float = 0.0
    sliding_until: float = 0.0
    """Until then the wall-clock minute is not trusted here, because a 429 contradicted it."""
    zone: str = "pacific"
    spent_at: float = 0.0
    utc_probe_at: float = 0.0
    writers: dict[str, tuple[int, float]] = field(default_factory=dict)


def effective(state: State, now: float, declared: Limits, tier: str | None) -> dict[str, int]:
    """The limits in force: what a 429 taught in the last seven days comes before what was declared."""
    limits = dict(declared)
    if state.learned and state.tier == tier:
        limits |= {name: value for name, (value, when) in state.learned.items() if now - when < LEARNED_FOR}
    return limits


def find(
    state: State, now: float, want: Want, limits: Limits, deadline: float, window: str = "sliding"
) -> Slot | Refusal:
    """The earliest slot, now or later, in which the want fits every window that contains it."""
    if refusal := _never(want, limits):
        return refusal
    number, probe, why = math.floor(now / SLOT), "", "busy"
    spent_to_utc = _utc_probe_due(state, now)
    if spent_to_utc:
        probe = "utc"
    elif state.cooldown is not None:
        gate = _gate(state.cooldown, state.probe_until, now)
        if isinstance(gate, Refusal):
            return gate
        number, probe, why = max(number, gate[0]), gate[1], gate[2]
    fit = fit_sliding if window == "sliding" or state.sliding_until > now else fit_minute
    while True:
        fitted, reason = fit(state.slots, number, want, limits)
        placed, spent, day = _fit_day(state, fitted, want, limits, spent_to_utc)
        why = spent or reason or why
        if placed * SLOT > deadline and placed * SLOT > now:
            return Refusal(placed * SLOT, why)
        if placed == fitted:
            return Slot(placed, day, probe)
        number = placed


def _never(want: Want, limits: Limits) -> Refusal | None:
    if not all(limits.get(name, 1) for name in ("rpm", "tpm", "rpd", "tpd")):
        return Refusal(math.inf, "unsupported")
    for name, amount in zip(MINUTE_LIMITS, want, strict=True):
        if amount > limits.get(name, math.inf):
            return Refusal(math.inf, "too-large" if limits[name] else "unsupported")
    if want.requests > limits.get("rpd", math.inf) or want.tokens > limits.get("tpd", math.inf):
        return Refusal(math.inf, "too-large")
    return None


def _gate(cooldown: Cooldown, probe_until: float, now: float) -> Refusal | tuple[int, str, str]:
    """What a cooldown leaves: the first slot after it, and whether only one request may go first."""
    why = f"cooling:{cooldown.reason}"
    if cooldown.reason in PROBED:
        if probe_until > now:
            return Refusal(min(probe_until, max(cooldown.until, now) + 1), f"probing:{cooldown.reason}")
        return math.ceil(cooldown.until / SLOT), "half-open", why
    return math.ceil(cooldown.until / SLOT), "", why


def _utc_probe_due(state: State, now: float) -> bool:
    """A quota spent before 00:00 UTC is tried once after it in the same Pacific day: sources disagree on where days end."""
    midnight = now // DAY * DAY
    cooling = state.cooldown
    return (
        state.zone == "pacific"
        and (cooling is None or cooling.until <= now or cooling.reason in ("rpd", "tpd"))
        and state.utc_probe_at < midnight
        and day_of(now)[1] <= state.spent_at < midnight
        and now >= midnight + MIDNIGHT_GUARD
        and state.probe_until <= now
    )


def _fit_day(state: State, number: int, want: Want, limits: Limits, ignore_spent: bool) -> tuple[int, str, str]:
    """(the slot or the first one after a midnight or a spent day, what moved it, its day)"""
    start = number * SLOT
    day, begins, ends = day_of(start, state.zone)
    if start < begins + MIDNIGHT_GUARD:
        return math.ceil((begins + MIDNIGHT_GUARD) / SLOT), "midnight", day
    if start + SLOT + LATE > ends - MIDNIGHT_GUARD:
        return math.ceil((ends + MIDNIGHT_GUARD) / SLOT), "midnight", day
    if not ignore_spent and (spent := _spent(state.days.get(day, (0, 0)), want, limits)):
        return math.ceil((ends + MIDNIGHT_GUARD) / SLOT), spent, day
    return number, "", day


def _spent(used: tuple[int, int], want: Want, limits: Limits) -> str:
    if used[0] + want.requests > limits.get("rpd", math.inf):
        return "rpd"
    return "tpd" if used[1] + want.tokens > limits.get("tpd", math.inf) else ""


def book(state: State, now: float, slot: Slot, want: Want, limits: Limits) -> State:
    """Take a slot that `find` gave for the same state."""
    slots = dict(state.slots)
    taken = slots.get(slot.number)
    slots[slot.number] = want if taken is None else Want(*map(int.__add__, taken, want))
    requests, tokens = state.days.get(slot.day, (0, 0))
    days = state.days | {slot.day: (requests + want.requests, tokens + want.tokens)}
    changes: dict[str, object] = {}
    if len(days) > 2:
        days = dict(sorted(days.items())[-2:])
    if _spent(days.get(slot.day, (0, 0)), Want(), limits) and not slot.probe:
        changes["spent_at"] = now
    if slot.probe:
        changes["probe_until"] = slot.start + PROBE_LEASE
    if slot.probe == "utc":
        changes["utc_probe_at"] = now
    return replace(state, slots=slots, days=days, **changes)  # type: ignore[arg-type]


def reserve(
    state: State, now: float, want: Want, limits: Limits, deadline: float, window: str = "sliding"
) -> tuple[State, Slot | Refusal]:
    found = find(state, now, want, limits, deadline, window)
    return (state, found) if isinstance(found, Refusal) else (book(state, now, found, want, limits), found)


def settle(state: State, slot: Slot, booked: Want, tokens: int) -> State:
    """Put the true tokens in the place of the estimate. When the slot is gone, only the day's total changes."""
    return _amend(state, slot, Want(0, tokens - booked.tokens, 0))


def give_back(state: State, slot: Slot, booked: Want) -> State:
    """Return a reservation that was never sent. One that reached Google is never returned: failures count there too."""
    state = _amend(state, slot, Want(*(-amount for amount in booked)))
    if slot.probe:
        state = replace(state, probe_until=0.0, utc_probe_at=0.0 if slot.probe == "utc" else state.utc_probe_at)
    return state


def _amend(state: State, slot: Slot, change: Want) -> State:
    slots, days = state.slots, state.days
    if taken := slots.get(slot.number):
        left = Want(*(max(0, a + b) for a, b in zip(taken, change, strict=True)))
        slots = slots | {slot.number: left}
        if not any(left):
            del slots[slot.number]
    if used := days.get(slot.day):
        days = days | {slot.day: (max(0, used[0] + change.requests), max(0, used[1] + change.tokens))}
    return replace(state, slots=slots, days=days)


def cool(state: State, now: float, reason: str, seconds: float, ceiling: float | None = None) -> State:
    """Rest for a while; twice as long each time it is refused again right after a rest, up to the ceiling.

    Refusals of requests that were under way together are one event: they do not double it, and none shortens it.
    """
    last = state.cooldown
    again = last is not None and last.reason == reason
    fresh = last is None or now >= last.until
    streak = (last.streak + fresh if last else 1) if again else 1
    if ceiling is not None:
        seconds = min(ceiling, seconds * 2.0 ** min(streak - 1, 32))
    until = now + seconds
    changes: dict[str, object] = {"probe_until": 0.0}
    if reason in ("rpd", "tpd"):
        changes["spent_at"] = now
        changes["zone"] = "pacific"
    if last is None or until > last.until or (again and not fresh):
        changes["cooldown"] = Cooldown(max(until, last.until) if last and not fresh else until, reason, streak)
    return replace(state, **changes)  # type: ignore[arg-type]


def learn(state: State, now: float, limits: Limits, tier: str | None) -> State:
    """Remember what a 429 said of the limits. What was learned on another tier is forgotten."""
    known = state.learned if state.tier == tier else {}
    return replace(state, learned=known | {name: (value, now) for name, value in limits.items()}, tier=tier)


def distrust_minute(state: State, now: float) -> State:
    """A 429 contradicted the wall-clock minute: count by the sliding window for a day."""
    return replace(state, sliding_until=now + DAY)


def succeed(state: State, now: float, slot: Slot) -> State:
    """It was served: a probe, or any request after the rest, ends the cooldown and its streak."""
    if slot.probe == "utc":
        day, _, _ = day_of(now, "utc")
        state = replace(state, zone="utc", spent_at=0.0, days={day: (1, 0)})
    if state.cooldown is None or (not slot.probe and now < state.cooldown.until):
        return state
    return replace(state, cooldown=None, probe_until=0.0)


def tidy(state: State, now: float) -> State:
    """Drop what no window, day or writer needs any more."""
    oldest = math.floor(now / SLOT) - WINDOW
    if not any(slot < oldest for slot in state.slots) and len(state.days) <= 2:
        return state
    slots = {slot: taken for slot, taken in state.slots.items() if slot >= oldest}
    return replace(state, slots=slots, days=dict(sorted(state.days.items())[-2:]))


def used(state: State, now: float) -> Want:
    """What the last window holds, bookings of the future included."""
    oldest = math.floor(now / SLOT) - WINDOW
    taken = [want for slot, want in state.slots.items() if slot > oldest]
    return Want(*(sum(want[i] for want in taken) for i in range(3)))


def room(state: State, now: float, limits: Limits) -> float:
    """The share that is left of the scarcest minute limit, 1 if none is known."""
    taken = used(state, now)
    shares = [1 - taken[i] / limits[name] for i, name in enumerate(MINUTE_LIMITS) if limits.get(name)]
    return max(0.0, min(shares, default=1.0))
