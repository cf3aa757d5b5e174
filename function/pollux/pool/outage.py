"""What an instance may spend by itself while the store does not answer: its share if all instances do the same."""

import math

from pollux.pool import quota
from pollux.pool.quota import Slot, State
from pollux.pool.refusals import STORE_DOWN, Refusal
from pollux.pool.windows import LONGEST, SLOT, Limits, Slots, Want, day_of

READ_WITHIN = 60.0
"""A quota that was last read longer ago is not spent."""


class SafeShare:
    """This instance's part of one quota. What it spent counts for a whole window, even if the store fails again."""

    def __init__(self) -> None:
        self.spent = Slots({})

    def spend(self, now: float, slot: Slot, want: Want) -> None:
        oldest = math.floor(now / SLOT) - LONGEST
        kept = Slots({number: taken for number, taken in self.spent.items() if number > oldest})
        self.spent = kept.plus(slot.number, want)

    def find(
        self, state: State, now: float, want: Want, limits: Limits, deadline: float, window: str, *, instances: int
    ) -> Slot | Refusal:
        """Find a slot with room for this want from every instance. `state` contains what this instance spent."""
        seen = self._as_if_all(state, instances - 1)
        found = quota.find(seen, now, want.times(instances), limits, deadline, window)
        if isinstance(found, Refusal) and not found.why.kind and found.why.cause != "unsupported":
            return Refusal(found.until, STORE_DOWN)
        return found

    def _as_if_all(self, state: State, others: int) -> State:
        if not others or not self.spent:
            return state
        slots, days = state.slots, dict(state.days)
        for number, spent in self.spent.items():
            theirs = spent.times(others)
            slots = slots.plus(number, theirs)
            day = day_of(number * SLOT, state.zone)[0]
            requests, tokens = days.get(day, (0, 0))
            days[day] = (requests + theirs.requests, tokens + theirs.tokens)
        return state._replace(slots=slots, days=days)
