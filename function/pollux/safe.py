"""What an instance may spend by itself while the store does not answer: what is left if all others do the same.

What it spends rides with the next commit that succeeds.
"""

from dataclasses import dataclass, field

from pollux import quota
from pollux.quota import Refusal, Slot, State
from pollux.windows import Limits, Want

READ_WITHIN = 60.0
"""Of a quota that was not seen for longer nothing is known: nothing of it is spent."""
STORE_DOWN = "store-down"


@dataclass(slots=True)
class SafeShare:
    """This instance's part of one quota, for as long as one trouble lasts."""

    episode: int = 0
    spent: list[tuple[Slot, Want]] = field(default_factory=list)

    def spend(self, episode: int, slot: Slot, want: Want) -> None:
        if self.episode != episode:
            self.episode, self.spent = episode, []
        self.spent.append((slot, want))

    def find(
        self,
        state: State,
        now: float,
        want: Want,
        limits: Limits,
        deadline: float,
        window: str,
        *,
        instances: int,
        episode: int,
    ) -> Slot | Refusal:
        """A place for the want as if every instance asked for the same. `state` has what this one spent already."""
        if episode == self.episode:
            for slot, spent in self.spent:
                state = quota.book(state, now, slot, _times(spent, instances - 1), limits)
        found = quota.find(state, now, _times(want, instances), limits, deadline, window)
        if isinstance(found, Refusal) and not found.why.startswith(("cooling", "probing", "unsupported")):
            return Refusal(found.until, STORE_DOWN)
        return found


def _times(want: Want, times: int) -> Want:
    return Want(want.requests * times, want.tokens * times, want.images * times)
