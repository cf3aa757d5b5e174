"""The arithmetic of one quota, PURE: reserve, settle, cool, learn. The time is always an argument.

A quota is what Google counts for one (project, bucket). A `State` never changes: each function returns a new one.
`windows` finds the slot where a want fits, `quota_document` turns a state into a document.
"""

import math
from typing import NamedTuple

from pollux.gemini.verdict.causes import HALF_OPEN, SPENT
from pollux.pool.refusals import BUSY, Refusal, Why
from pollux.pool.windows import (
    LONGEST,
    MINUTE_LIMITS,
    SLOT,
    WINDOW,
    Limits,
    Slots,
    Want,
    all_spent,
    current,
    day_of,
    fast,
    fit_minute,
    fit_sliding,
    spent,
    total,
)

LATE = 0.5
"""Seconds after the end of its slot in which a reservation may still be sent."""
MIDNIGHT_GUARD = 1.0
LEARNED_FOR = 7 * 86400.0
DAY = 86400.0
CLOCKS = 4
"""How many slots beyond the window are kept: clocks may differ by two seconds, and the slower one still counts them."""
DISTANCE = 2
"""How many slots apart `spaced` sends requests: at least half a second."""
PROBE_LEASE = 60.0
"""Seconds for which other requests wait for a probe whose result is not reported."""
_COUNTED = (("rpm", 0), ("tpm", 1), ("ipm", 2), ("rpd", 0), ("tpd", 1))
"""Which part of a want each limit counts."""


class Slot(NamedTuple):
    """When a request is sent. `probe` is not empty if it is sent alone to test the quota: "half-open" or "utc"."""

    number: int
    day: str
    probe: str = ""
    until: float = 0.0
    """The end of a grant's life; 0 for a slot that is not a grant's."""

    @property
    def start(self) -> float:
        return self.number * SLOT

    @property
    def latest(self) -> float:
        """The latest time to send."""
        return self.until or (self.number + 1) * SLOT + LATE


class Cooldown(NamedTuple):
    until: float
    reason: str
    streak: int


class State(NamedTuple):
    """Never changed in place. A NamedTuple, as its `_replace` costs a quarter of a dataclass's."""

    slots: Slots = Slots({})
    days: dict[str, tuple[int, int]] = {}  # noqa: RUF012
    learned: dict[str, tuple[int, float]] = {}  # noqa: RUF012
    tier: str | None = None
    """The tier for which `learned` was learned."""
    cooldown: Cooldown | None = None
    probe_until: float = 0.0
    sliding_until: float = 0.0
    """The sliding window applies until this time, because a 429 contradicted the wall-clock minute."""
    zone: str = "pacific"
    spent_at: float = 0.0
    utc_probe_at: float = 0.0
    granted: int = 0
    """The slot of the newest grant. The longer window applies while that slot is in it."""
    proved: tuple[int, int] = (0, 0)
    """The most requests and tokens served in one window without a refusal, kept where no limit is known."""


def effective(state: State, now: float, declared: Limits, tier: str | None) -> dict[str, int]:
    """Returns the limits in force. A limit that a 429 named in the last seven days overrides the declared one."""
    limits = dict(declared)
    if state.learned and state.tier == tier:
        limits |= {name: value for name, (value, when) in state.learned.items() if now - when < LEARNED_FOR}
    return limits


def find(
    state: State, now: float, want: Want, limits: Limits, deadline: float, window: str = "sliding"
) -> Slot | Refusal:
    """Find the earliest slot, now or later, where the want fits in every window that contains the slot."""
    if limits and (refusal := _never(want, limits)):
        return refusal
    latest = max(now, deadline)
    window = "sliding" if state.sliding_until > now else window
    first = Slot(math.floor(now / SLOT), "")
    if state.spent_at and _utc_probe_due(state, now, limits):
        found = _find_from(state, first._replace(probe="utc"), BUSY, want, limits, latest, window)
        if day_of(found.start if isinstance(found, Slot) else found.until) == day_of(now):
            return found  # on the next day it would teach nothing
    why = BUSY
    if state.cooldown is not None:
        gate = _gate(state.cooldown, state.probe_until, now)
        if isinstance(gate, Refusal):
            return gate
        first, why = Slot(max(first.number, gate[0]), "", gate[1]), gate[2]
    return _find_from(state, first, why, want, limits, latest, window)


def _find_from(
    state: State, first: Slot, why: Why, want: Want, limits: Limits, latest: float, window: str
) -> Slot | Refusal:
    """Find the earliest slot from `first` on. If it starts after `latest`, return a Refusal with its time and with the
    limit that caused the delay, or with `why` if no limit did."""
    fit = fit_sliding if window == "sliding" else fit_minute
    number = first.number
    span = LONGEST if limits and (fast(limits) or state.granted > number - LONGEST) else WINDOW
    while True:
        fitted, full = fit(state.slots, number, want, limits, span)
        allowed, closed, day = _fit_day(state, fitted, want, limits, first.probe == "utc")
        if number * SLOT <= latest and (cause := closed or full):
            why = Why(cause)
        if allowed == fitted:
            return Slot(allowed, day, first.probe) if allowed * SLOT <= latest else Refusal(allowed * SLOT, why)
        number = allowed


def _never(want: Want, limits: Limits) -> Refusal | None:
    why = ""
    for name, which in _COUNTED:
        limit = limits.get(name)
        if limit is not None and (want[which] > limit or (not limit and name != "ipm")):
            why = "too-large" if limit and why != "unsupported" else "unsupported"
    return Refusal(math.inf, Why(why)) if why else None


def _gate(cooldown: Cooldown, probe_until: float, now: float) -> Refusal | tuple[int, str, Why]:
    """Returns (the first slot after the cooldown, the kind of probe to send in it, the reason to wait), or a Refusal
    while another request probes."""
    probed = cooldown.reason in HALF_OPEN
    if probed and probe_until > now:
        sent = probe_until - PROBE_LEASE
        return Refusal(min(probe_until, max(sent, now) + 1), Why(cooldown.reason, "probing"))
    return math.ceil(cooldown.until / SLOT), "half-open" if probed else "", Why(cooldown.reason, "cooling")


def _utc_probe_due(state: State, now: float, limits: Limits) -> bool:
    """Whether one request should test if Google's day ends at 00:00 UTC, because sources disagree on that.

    A quota that was spent before 00:00 UTC is tried once after it, in the same Pacific day. It must still be spent: if
    a reservation was given back, a served request would prove nothing.
    """
    midnight = now // DAY * DAY
    day, begins, _ = day_of(now)
    if state.zone != "pacific" or not begins <= state.spent_at < midnight or now < midnight + MIDNIGHT_GUARD:
        return False
    if state.utc_probe_at >= midnight or state.probe_until > now:
        return False
    cooling = state.cooldown
    if cooling is not None and cooling.reason in SPENT:
        return True
    return (cooling is None or cooling.until <= now) and all_spent(state.days.get(day, (0, 0)), limits)


def _fit_day(state: State, number: int, want: Want, limits: Limits, ignore_spent: bool) -> tuple[int, str, str]:
    """Returns (the slot, or the first one after midnight or a spent day; what moved it, or ""; its day)."""
    start = number * SLOT
    day, begins, ends = day_of(start, state.zone)
    if start < begins + MIDNIGHT_GUARD:
        return math.ceil((begins + MIDNIGHT_GUARD) / SLOT), "midnight", day
    if start + SLOT + LATE > ends - MIDNIGHT_GUARD:
        return math.ceil((ends + MIDNIGHT_GUARD) / SLOT), "midnight", day
    if limits and not ignore_spent and (why := spent(state.days.get(day, (0, 0)), want, limits)):
        return math.ceil((ends + MIDNIGHT_GUARD) / SLOT), why, day
    return number, "", day


def book(state: State, now: float, slot: Slot, want: Want, limits: Limits) -> State:
    """Book a slot that `find` returned for the same state."""
    slots = state.slots.plus(slot.number, want)
    requests, tokens = state.days.get(slot.day, (0, 0))
    used = (requests + want.requests, tokens + want.tokens)
    state = state._replace(slots=slots, days=current(state.days | {slot.day: used}, now))
    if slot.probe:
        utc_probe_at = now if slot.probe == "utc" else state.utc_probe_at
        return state._replace(probe_until=slot.start + PROBE_LEASE, utc_probe_at=utc_probe_at)
    return state._replace(spent_at=max(now, slot.start)) if limits and all_spent(used, limits) else state


def reserve(
    state: State, now: float, want: Want, limits: Limits, deadline: float, window: str = "sliding"
) -> tuple[State, Slot | Refusal]:
    found = find(state, now, want, limits, deadline, window)
    return (state, found) if isinstance(found, Refusal) else (book(state, now, found, want, limits), found)


def settle(state: State, slot: Slot, booked: Want, tokens: int) -> State:
    """Replace the estimate with the true tokens."""
    return amend(state, slot, Want(0, max(0, tokens) - booked.tokens, 0))


def give_back(state: State, slot: Slot, booked: Want) -> State:
    """Undo a reservation that was never sent. One that reached Google counts there, even if it failed."""
    return release(amend(state, slot, booked.times(-1)), slot)


def release(state: State, slot: Slot) -> State:
    """A probe ended and its result says nothing about the quota: let the next request probe at once. The probe stays
    counted."""
    if not slot.probe or state.probe_until != slot.start + PROBE_LEASE:
        return state  # an answer settled it, or another request has the lease by now
    return state._replace(probe_until=0.0, utc_probe_at=0.0 if slot.probe == "utc" else state.utc_probe_at)


def amend(state: State, slot: Slot, change: Want) -> State:
    """Correct what is booked in a slot. If the slot was dropped already, only the day's total changes."""
    slots, days = state.slots, state.days
    if slot.number in slots:
        slots = slots.plus(slot.number, change)
    if used := days.get(slot.day):
        days = days | {slot.day: (max(0, used[0] + change.requests), max(0, used[1] + change.tokens))}
    return state._replace(slots=slots, days=days)


def cool(state: State, now: float, reason: str, seconds: float, ceiling: float | None = None) -> State:
    """Rest for some seconds. Each refusal that follows a rest doubles the next rest, up to the ceiling.

    Requests that were under way together count as one refusal: they neither double the rest nor shorten it.
    """
    last = state.cooldown
    again = last is not None and last.reason == reason
    fresh = last is None or now >= last.until
    streak = (last.streak + fresh if last else 1) if again else 1
    if ceiling is not None:
        seconds = min(ceiling, seconds * 2.0 ** min(streak - 1, 32))
    until = now + seconds
    if reason in SPENT:
        state = state._replace(spent_at=now, zone="pacific")
    elif state.proved != (0, 0):  # the present use was too much
        taken = used(state, now)
        proved = (min(state.proved[0], taken.requests), min(state.proved[1], taken.tokens))
        state = state._replace(proved=proved)
    if state.probe_until - PROBE_LEASE <= now:  # else the probe is booked ahead, was not sent yet and keeps its lease
        state = state._replace(probe_until=0.0)
    if last is None or until > last.until:
        state = state._replace(cooldown=Cooldown(until, reason, streak))
    return state


def try_early(state: State, now: float) -> State:
    """End the rest now if it is one that ends with a probe. The streak stays."""
    cooling = state.cooldown
    if cooling is None or cooling.until <= now or cooling.reason not in HALF_OPEN:
        return state
    return state._replace(cooldown=cooling._replace(until=now))


def learn(state: State, now: float, limits: Limits, tier: str | None) -> State:
    """Store the limits that a 429 named, and drop the limits learned on another tier."""
    known = state.learned if state.tier == tier else {}
    return state._replace(learned=known | {name: (value, now) for name, value in limits.items()}, tier=tier)


def distrust_minute(state: State, now: float) -> State:
    """A 429 contradicted the wall-clock minute: use the sliding window for a day."""
    return state._replace(sliding_until=now + DAY)


def succeed(state: State, now: float, slot: Slot) -> State:
    """A request was served: end the cooldown and its streak, unless the request was sent before the cooldown began."""
    if slot.probe == "utc" and state.zone == "pacific":
        day, _, _ = day_of(slot.start, "utc")
        since = total([taken for number, taken in state.slots.items() if number >= slot.number])
        days = state.days | {day: (max(1, since.requests), since.tokens)}
        state = state._replace(zone="utc", spent_at=0.0, days=current(days, now))
    if state.cooldown is None or not (slot.probe or slot.start >= state.cooldown.until):
        return state
    return state._replace(cooldown=None, probe_until=0.0)


def tidy(state: State, now: float) -> State:
    """Drop the slots and days that are over."""
    oldest = math.floor(now / SLOT) - LONGEST - CLOCKS
    days = current(state.days, now)
    if days is state.days and min(state.slots, default=oldest) >= oldest:
        return state
    slots = Slots({slot: taken for slot, taken in state.slots.items() if slot >= oldest})
    return state._replace(slots=slots, days=days)


def used(state: State, now: float) -> Want:
    """Returns the sum of what is booked in the last window and in the future."""
    oldest = math.floor(now / SLOT) - WINDOW
    return total([taken for slot, taken in state.slots.items() if slot > oldest])


def prove(state: State, slot: Slot) -> State:
    """A request was served: record the use of the window that ends with it as allowed for this project."""
    held = state.slots.held
    if held.requests <= state.proved[0] and held.tokens <= state.proved[1]:
        return state
    first = slot.number - WINDOW
    sent = total([taken for number, taken in state.slots.items() if first < number <= slot.number])
    proved = (max(state.proved[0], sent.requests), max(state.proved[1], sent.tokens))
    return state if proved == state.proved else state._replace(proved=proved)


def spaced(state: State, slot: Slot, want: Want, limits: Limits, presumed: Limits) -> Slot:
    """Move the slot if a limit is unknown and the use exceeds `presumed`, where Google refused other projects without a
    tier. Requests are then sent a little apart: a refusal arrives before the next one is sent, so only one is
    refused."""
    unknown = [i for i, name in enumerate(MINUTE_LIMITS) if name in presumed and name not in limits]
    number = max(state.slots, default=0) + DISTANCE
    if not unknown or number <= slot.number:
        return slot
    taken = used(state, slot.start)
    if all(taken[i] + want[i] <= presumed[MINUTE_LIMITS[i]] for i in unknown):
        return slot
    return slot._replace(number=number, day=day_of(number * SLOT, state.zone)[0])


class Load(NamedTuple):
    """How much of a quota is used. `share` is the used part of the limits, or the number of requests if `beyond`."""

    beyond: bool
    """More is used than the project is known to have, so the next request may be refused."""
    share: float


def load(state: State, now: float, limits: Limits, smallest: Limits, coming: int = 0) -> Load:
    """Compute the use of the window as a share of the limits. `coming`: requests that are about to be booked.

    For an unknown limit, this takes the larger of two: the most that was served in a window, and the smallest limit
    that Google gives for this model (`smallest`). The share is above 1 if slots are booked ahead.
    """
    slots = state.slots
    fresh = next(iter(slots), math.inf) > math.floor(now / SLOT) - WINDOW
    taken = slots.held if fresh else used(state, now)
    if coming:
        taken = taken._replace(requests=taken.requests + coming)
    share, beyond = 0.0, False
    for i, name in enumerate(MINUTE_LIMITS):
        limit = limits.get(name)
        if limit is None:
            limit = max(smallest.get(name, 0), state.proved[i] if i < 2 else 0)
            beyond = beyond or 0 < limit <= taken[i]
        if limit:
            share = max(share, taken[i] / limit)
    most = 0 if beyond or "rpd" in limits else smallest.get("rpd", 0)
    if most and max(state.days.values(), default=(0, 0))[0] >= most:
        day = day_of(now, state.zone)[0]
        served = max([amounts[0] for date, amounts in state.days.items() if date != day], default=0)
        beyond = state.days.get(day, (0, 0))[0] >= max(most, served)
    return Load(True, taken.requests) if beyond else Load(False, share)
