"""Which of the projects that have room serves a request: the order of each strategy."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pollux import quota
from pollux.keys import Key
from pollux.quota import Slot
from pollux.roster import Project, Quota, Roster
from pollux.windows import SLOT, Limits

GUESSED = 30.0
"""While a document that others write was not seen, its next slot is thought to move on with the time, for so many
seconds: where requests wait, each slot that comes within reach is taken at once."""
LONGER = 1.25
"""Whoever waits anyway waits so much longer where this instance wrote last: there others conflict least."""


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
    now: float,
    turns: Mapping[str, int],
) -> Option:
    current = math.floor(now / SLOT)
    number = float(max(slot.number, current))
    if number > current and not owned.ledger.alone:
        number += min(GUESSED, now - owned.ledger.seen_at) / SLOT
    match strategy:
        case "round_robin":
            rank: tuple[float, ...] = (number, turns.get(project.name, 0))  # keys may have changed meanwhile
        case "least_recently_used":
            rank = (number, owned.used_at)
        case "most_available":
            rank = (number, -quota.room(owned.ledger.value, now, limits), owned.used_at)
        case _ if slot.until:  # a grant costs nobody anything
            rank = (number, -math.inf, owned.used_at)
        case _:
            room = round(quota.room(owned.ledger.value, now, limits), 2)
            rank = (number, -room, not owned.ledger.mine, owned.used_at)
    return Option(rank, project, key, slot, owned.ledger.mine)


def best(options: Sequence[Option], strategy: str, now: float) -> Option:
    first = min(options, key=lambda option: option.rank)
    wait = first.rank[0] - math.floor(now / SLOT)
    if wait <= 0 or strategy != "earliest":
        return first
    latest = first.rank[0] + wait * (LONGER - 1)
    mine = [option for option in options if option.mine and option.rank[0] <= latest]
    return min(mine, key=lambda option: option.rank, default=first)


def turns(roster: Roster, bucket: str) -> dict[str, int]:
    """Whose turn it is: the project after the one used last is 0."""
    names = list(roster.projects)
    used = [roster.quota(name, bucket).used_at for name in names]
    after = used.index(max(used)) + 1 if any(used) else 0
    return {name: (place - after) % len(names) for place, name in enumerate(names)}
