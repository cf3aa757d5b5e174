"""What an instance may spend by itself while the store does not answer: what is left if all others do the same.

What it spends rides with the next commit that succeeds.
"""

import math
from dataclasses import dataclass, field

from pollux import quota
from pollux.quota import Slot, State
from pollux.reasons import STORE_DOWN, Refusal
from pollux.windows import LONGEST, NOTHING, SLOT, Limits, Slots, Want, day_of

READ_WITHIN = 60.0
"""Of a quota that was not seen for longer nothing is known: nothing of it is spent."""


@dataclass(slots=True)
class SafeShare:
    """This instance's part of one quota. What it spent counts for a window, however often the store comes and goes."""

    spent: dict[int, Want] = field(default_factory=dict)

    def spend(self, now: float, slot: Slot, want: Want) -> None:
        oldest = math.floor(now / SLOT) - LONGEST
        self.spent = {number: taken for number, taken in self.spent.items() if number > oldest}
        self.spent[slot.number] = _sum(self.spent.get(slot.number, NOTHING), want)

    def find(
        self, state: State, now: float, want: Want, limits: Limits, deadline: float, window: str, *, instances: int
    ) -> Slot | Refusal:
        """A place for the want as if every instance asked for the same. `state` has what this one spent already."""
        seen = self._as_if_all(state, instances - 1)
        found = quota.find(seen, now, _times(want, instances), limits, deadline, window)
        if isinstance(found, Refusal) and not found.why.kind and found.why.cause != "unsupported":
            return Refusal(found.until, STORE_DOWN)
        return found

    def _as_if_all(self, state: State, others: int) -> State:
        if not others or not self.spent:
            return state
        slots, days = dict(state.slots), dict(state.days)
        for number, spent in self.spent.items():
            theirs = _times(spent, others)
            slots[number] = _sum(slots.get(number, NOTHING), theirs)
            day = day_of(number * SLOT, state.zone)[0]
            requests, tokens = days.get(day, (0, 0))
            days[day] = (requests + theirs.requests, tokens + theirs.tokens)
        return state._replace(slots=Slots(slots), days=days)


def _times(want: Want, times: int) -> Want:
    return Want(*(amount * times for amount in want))


def _sum(a: Want, b: Want) -> Want:
    return Want(*map(int.__add__, a, b))
