"""Which of the projects that have room serves a request: the order of each strategy."""

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from pollux.backends.keys.contract import Key
from pollux.pool import quota
from pollux.pool.projects import Project, Quota
from pollux.pool.quota import Slot
from pollux.pool.windows import SLOT, Limits

IN_TURN = ("round_robin", "least_recently_used")
"""Two names for one strategy: the project that was used longest ago comes first."""
GUESSED = 30.0
"""A document that other instances write and that was not read lately: its next slot is assumed to move on with the
time, for at most so many seconds. Where requests wait, each slot that comes within reach is taken at once."""
LONGER = 1.25
"""A request that has to wait anyway waits so much longer where this instance wrote last: fewer conflicts there."""
_rank = attrgetter("rank")


class Choice(NamedTuple):
    """A project that has room for a request, the key that would be used, and its slot."""

    rank: tuple[float, ...]
    project: Project
    key: Key
    quota: Quota
    limits: Limits
    slot: Slot
    at: float
    """The time for which it was looked at: now, or later."""


def ranked(
    strategy: str, project: Project, key: Key, owned: Quota, limits: Limits, slot: Slot, smallest: Limits, now: float
) -> Choice:
    """The earliest slot first, then projects that are comfortable (see `quota.load`), then what the strategy prefers,
    then the project that was used longest ago."""
    current = math.floor(now / SLOT)
    number: float = max(slot.number, current)
    if number > current and not owned.document.alone:
        number += min(GUESSED, now - owned.document.seen_at) / SLOT
    if strategy == "earliest" and slot.until:  # a grant is held already: it costs no commit
        rank: tuple[float, ...] = (number, False, -math.inf, False, owned.used_at)
    else:
        elsewhere = strategy == "earliest" and bool(limits) and not owned.document.mine
        rank = (number, *load(strategy, owned, limits, smallest, now), elsewhere, owned.used_at)
    return Choice(rank, project, key, owned, limits, slot, now)


def load(strategy: str, owned: Quota, limits: Limits, smallest: Limits, now: float) -> quota.Load:
    """By this projects that have room at the same time are ordered, before who was used longest ago."""
    used = quota.load(owned.document.value, now, limits, smallest, owned.coming)
    if used.beyond:
        return used
    return quota.Load(False, owned.coming if strategy in IN_TURN else round(used.share, 2))


def best(choices: Sequence[Choice], strategy: str, now: float) -> Choice:
    first = min(choices, key=_rank)
    wait = first.rank[0] - math.floor(now / SLOT)
    if wait <= 0 or strategy != "earliest":
        return first
    latest = first.rank[0] + wait * (LONGER - 1)
    mine = [choice for choice in choices if choice.quota.document.mine and choice.rank[0] <= latest]
    return min(mine, key=_rank, default=first)
