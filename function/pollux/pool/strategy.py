"""The strategies by which a project is chosen among those with the earliest slot: one table. Pure."""

from collections.abc import Mapping
from typing import NamedTuple


class Strategy(NamedTuple):
    in_turn: bool
    """The project that was used longest ago comes first. Otherwise the one with the smallest part of its limits in
    use."""
    prefers_own: bool = False
    """Grants that this instance holds and documents that it wrote last come first, because they cost fewer commits and
    conflicts. Otherwise a grant is only this project's share of the load."""


STRATEGIES: Mapping[str, Strategy] = {
    "earliest": Strategy(in_turn=False, prefers_own=True),
    "round_robin": Strategy(in_turn=True),
    "least_recently_used": Strategy(in_turn=True),
    "most_available": Strategy(in_turn=False),
}
