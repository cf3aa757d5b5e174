"""Windows and days, PURE: finds the slot where a want fits. Everything is counted per slot of half a second."""

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

SLOT = 0.5
WINDOW = 123
"""Slots in a window. 61.5 s cover a fixed minute, a sliding minute and a token bucket, with room for late sending."""
FAST = 60
"""Requests a minute above which an instance takes grants."""
GRANT_SLOTS = 6
"""How long a grant may be spent, in slots. The window of a fast quota is longer by this."""
LONGEST = WINDOW + GRANT_SLOTS

Limits = Mapping[str, int]
"""rpm, tpm, ipm, rpd, tpd -> the limit. 0: not available; absent: not known and not enforced."""

PACIFIC = ZoneInfo("America/Los_Angeles")
MINUTE_LIMITS = ("rpm", "tpm", "ipm")
_MINUTE = 120
_MINUTE_FIRST, _MINUTE_LAST = 2, 116
"""The first second and the last 1.5 s of a wall-clock minute stay empty: clocks differ, and sending takes time."""


class Want(NamedTuple):
    """What a request needs of a quota, in the order of MINUTE_LIMITS."""

    requests: int = 1
    tokens: int = 0
    images: int = 0

    def times(self, factor: int) -> "Want":
        return Want(self.requests * factor, self.tokens * factor, self.images * factor)


NOTHING = Want(0)


def total(wants: Collection[Want]) -> Want:
    return Want(*map(sum, zip(*wants, strict=True))) if wants else Want(0)


class Slots(dict[int, Want]):
    """Slot -> what is booked in it. `held` is the sum, kept because every request needs it. Never changed in place."""

    __slots__ = ("held",)

    def __init__(self, taken: Mapping[int, Want], held: Want | None = None) -> None:
        super().__init__(taken)
        self.held = total(self.values()) if held is None else held

    def plus(self, number: int, want: Want) -> "Slots":
        """Returns a copy with more in one slot, or with less, but never below zero."""
        a, b, c = self.get(number, NOTHING)
        after = Want(max(0, a + want.requests), max(0, b + want.tokens), max(0, c + want.images))
        held = Want(self.held[0] + after[0] - a, self.held[1] + after[1] - b, self.held[2] + after[2] - c)
        slots = Slots(self, held)
        if any(after):
            slots[number] = after
        else:
            slots.pop(number, None)
        return slots


@lru_cache(maxsize=256)
def _day_of_hour(hour: int, zone: str) -> tuple[str, float, float]:
    where = PACIFIC if zone == "pacific" else UTC
    date = datetime.fromtimestamp(hour * 3600, where).date()
    midnights = [datetime.combine(day, time(), where).timestamp() for day in (date, date + timedelta(days=1))]
    return date.isoformat() + ("" if zone == "pacific" else "Z"), midnights[0], midnights[1]


def day_of(moment: float, zone: str = "pacific") -> tuple[str, float, float]:
    """Returns (name, start, end) of the day of a moment. Both midnights fall on whole hours of UTC."""
    return _day_of_hour(int(moment // 3600), zone)


def spent(used: tuple[int, int], want: Want, limits: Limits) -> str:
    """Returns the name of the day's limit that leaves no room for the want, or ""."""
    if used[0] + want.requests > limits.get("rpd", math.inf):
        return "rpd"
    return "tpd" if used[1] + want.tokens > limits.get("tpd", math.inf) else ""


def all_spent(used: tuple[int, int], limits: Limits) -> bool:
    return bool(spent(used, Want(1, 1), limits))


def current(days: dict[str, tuple[int, int]], now: float) -> dict[str, tuple[int, int]]:
    """Drop the days that are over, if there are more than two. The UTC date is never before the Pacific one."""
    if len(days) <= 2:
        return days
    today = day_of(now)[0]
    return {day: used for day, used in days.items() if day >= today}


def fast(limits: Limits) -> bool:
    return limits.get("rpm", 0) > FAST


def fit_sliding(slots: Slots, number: int, want: Want, limits: Limits, span: int = WINDOW) -> tuple[int, str]:
    """Returns (the first slot from `number` on where the want fits in every window, the limit that moved it or ""). The
    want must not exceed a limit by itself."""
    held = slots.held
    bounds = []
    room_in_all = True
    for i, name in enumerate(MINUTE_LIMITS):
        if want[i] and name in limits:
            room = limits[name] - want[i]
            bounds.append((i, room, name))
            room_in_all = room_in_all and held[i] <= room
    if room_in_all:
        return number, ""
    near = sorted(slot for slot in slots if slot > number - span)
    columns = list(zip(*[slots[slot] for slot in near], strict=True))
    reason = ""
    while near:
        before = number
        for i, room, name in bounds:
            moved = _past_full_windows(near, columns[i], number, room, span)
            if moved > number:
                number, reason = moved, name
        if number == before:
            break
    return number, reason


def _past_full_windows(slots: list[int], amounts: tuple[int, ...], number: int, room: int, span: int) -> int:
    """Returns the first slot from `number` on that lies in no window with more than `room`.

    For each entry j, i is the last one from which the sum up to j is above room. If both lie in one window, every slot
    that shares a window with them is closed: j - span + 1 to i + span - 1. Both ends only grow, so one pass is enough.
    """
    held = i = 0
    for slot, amount in zip(slots, amounts, strict=True):
        held += amount
        while held - amounts[i] > room:
            held -= amounts[i]
            i += 1
        first = slots[i]
        if held > room and slot - first < span and slot - span < number < first + span:
            number = first + span
    return number


def fit_minute(slots: Slots, number: int, want: Want, limits: Limits, _: int = WINDOW) -> tuple[int, str]:
    """Like `fit_sliding`, but counts by the minutes of the wall clock."""
    reason = ""
    while True:
        minute, offset = divmod(number, _MINUTE)
        if offset > _MINUTE_LAST:
            minute, offset = minute + 1, 0
        number = minute * _MINUTE + max(offset, _MINUTE_FIRST)
        held = total([taken for s, taken in slots.items() if s // _MINUTE == minute])
        full = ""
        for i, name in enumerate(MINUTE_LIMITS):
            if want[i] and name in limits and held[i] + want[i] > limits[name]:
                full = name
        if not full:
            return number, reason
        number, reason = (minute + 1) * _MINUTE, full


def minute_ends(number: int) -> float:
    """Returns when the last usable slot of this slot's minute ends."""
    return (number // _MINUTE * _MINUTE + _MINUTE_LAST + 1) * SLOT
