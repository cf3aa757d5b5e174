"""Which of the projects that have room serves a request: the order of each strategy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pollux import quota
from pollux.keys import Key
from pollux.quota import Slot
from pollux.roster import Project, Quota
from pollux.windows import SLOT, Limits

GUESSED = 30.0
"""A document that other instances write and that was not read lately: its next slot is assumed to move on with the
time, for at most so many seconds. Where requests wait, each slot that comes within reach is taken at once."""
LONGER = 1.25
"""A request that has to wait anyway waits so much longer where this instance wrote last: fewer conflicts there."""


class Option(NamedTuple):
    rank: tuple[float, ...]
    project: Project
    key: Key
    slot: Slot
    mine: bool


def ranked(
    strategy: str,
    project: Project,
    key: Key,
    owned: Quota,
    slot: Slot,
    limits: Limits,
    smallest: Limits,
    last: int,
    now: float,
) -> Option:
    """The earliest slot first, then projects that are comfortable (see `quota.load`), then what the strategy prefers.
    `last` decides among those that are alike: when it was used last, or its turn."""
    current = math.floor(now / SLOT)
    number = float(max(slot.number, current))
    if number > current and not owned.ledger.alone:
        number += min(GUESSED, now - owned.ledger.seen_at) / SLOT
    mine = owned.ledger.mine
    if strategy == "earliest" and slot.until:  # a grant is held already: it costs no commit
        return Option((number, False, -math.inf, False, last), project, key, slot, mine)
    load = order(strategy, quota.load(owned.ledger.value, now, limits, smallest, owned.coming), owned.coming)
    elsewhere = strategy == "earliest" and bool(limits) and not mine
    return Option((number, *load, elsewhere, last), project, key, slot, mine)


def order(strategy: str, load: quota.Load, coming: int) -> tuple[bool, float]:
    """How projects that have room at the same time are ordered, before who was used least recently."""
    if load.beyond:
        return True, load.share
    if strategy in ("round_robin", "least_recently_used"):
        return False, float(coming)
    return False, round(load.share, 2)


def best(options: Sequence[Option], strategy: str, now: float) -> Option:
    first = min(options, key=lambda option: option.rank)
    wait = first.rank[0] - math.floor(now / SLOT)
    if wait <= 0 or strategy != "earliest":
        return first
    latest = first.rank[0] + wait * (LONGER - 1)
    mine = [option for option in options if option.mine and option.rank[0] <= latest]
    return min(mine, key=lambda option: option.rank, default=first)
