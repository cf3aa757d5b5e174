"""Windows and days, PURE: where a want fits among what is booked already. The time is always an argument.

All counting is per slot of half a second.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

SLOT = 0.5
WINDOW = 123
"""Slots in a window: 61.5 s lie inside a fixed minute, a sliding one and a bucket, with room for late sending."""

Limits = Mapping[str, int]
"""rpm, tpm, ipm, rpd, tpd -> the limit; 0 is "not available", an absent one is not known and not enforced."""

PACIFIC = ZoneInfo("America/Los_Angeles")
MINUTE_LIMITS = ("rpm", "tpm", "ipm")
_MINUTE = 120
_MINUTE_FIRST, _MINUTE_LAST = 2, 116
"""By the wall clock, a minute's first second and its last 1.5 s stay empty: clocks differ, and sending takes time."""


class Want(NamedTuple):
    """What a request takes: requests, input tokens, images. The order is that of MINUTE_LIMITS."""

    requests: int = 1
    tokens: int = 0
    images: int = 0


@lru_cache(maxsize=256)
def _day_of_hour(hour: int, zone: str) -> tuple[str, float, float]:
    where = PACIFIC if zone == "pacific" else UTC
    date = datetime.fromtimestamp(hour * 3600, where).date()
    midnights = [datetime.combine(day, time(), where).timestamp() for day in (date, date + timedelta(days=1))]
    return date.isoformat() + ("" if zone == "pacific" else "Z"), midnights[0], midnights[1]


def day_of(moment: float, zone: str = "pacific") -> tuple[str, float, float]:
    """The day a moment belongs to: its name, its start and its end. Both midnights fall on whole hours of UTC."""
    return _day_of_hour(int(moment // 3600), zone)


def fit_sliding(slots: Mapping[int, Want], number: int, want: Want, limits: Limits) -> tuple[int, str]:
    bounds = [(i, limits[name] - want[i], name) for i, name in enumerate(MINUTE_LIMITS) if want[i] and name in limits]
    if not bounds or all(sum([taken[i] for taken in slots.values()]) <= room for i, room, _ in bounds):
        return number, ""
    entries = sorted((s, taken) for s, taken in slots.items() if s > number - WINDOW)
    reason = ""
    while True:
        before = number
        for i, room, name in bounds:
            moved = _past_full_windows(entries, number, i, room)
            if moved > number:
                number, reason = moved, name
        if number == before:
            return number, reason


def _past_full_windows(entries: list[tuple[int, Want]], number: int, which: int, room: int) -> int:
    """The first slot from `number` on that no window of more than `room` shares.

    For each entry j, i is the last one from which the sum up to j is above room. If both lie in one window, every slot
    that shares a window with them is closed: j - WINDOW + 1 to i + WINDOW - 1. Both ends only grow: one pass.
    """
    total = i = 0
    for slot, taken in entries:
        total += taken[which]
        while total - entries[i][1][which] > room:
            total -= entries[i][1][which]
            i += 1
        first = entries[i][0]
        if total > room and slot - first < WINDOW and slot - WINDOW < number < first + WINDOW:
            number = first + WINDOW
    return number


def fit_minute(slots: Mapping[int, Want], number: int, want: Want, limits: Limits) -> tuple[int, str]:
    reason = ""
    while True:
        minute, offset = divmod(number, _MINUTE)
        if offset > _MINUTE_LAST:
            minute, offset = minute + 1, 0
        number = minute * _MINUTE + max(offset, _MINUTE_FIRST)
        used = [taken for s, taken in slots.items() if s // _MINUTE == minute]
        full = ""
        for i, name in enumerate(MINUTE_LIMITS):
            if want[i] and name in limits and sum(taken[i] for taken in used) + want[i] > limits[name]:
                full = name
        if not full:
            return number, reason
        number, reason = (minute + 1) * _MINUTE, full
