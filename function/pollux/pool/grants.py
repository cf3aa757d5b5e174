"""Grants: an instance takes several requests of a fast quota in one commit and spends them locally for 3 s.

A grant counts from the moment when it is taken, in a window that is 3 s longer, so that any use of it lies inside. The
next commit of the document gives back what is left. If an instance crashes with a grant, the pool allows a little less
for a minute.
"""

import math
from dataclasses import dataclass

from pollux.pool import quota
from pollux.pool.quota import LATE, MIDNIGHT_GUARD, Slot, State
from pollux.pool.windows import GRANT_SLOTS, MINUTE_LIMITS, NOTHING, SLOT, Limits, Want, day_of, minute_ends

LIFE = GRANT_SLOTS * SLOT
SHARE, DAY_SHARE = 8, 50
"""A grant takes at most an eighth of what is left in the window and a fiftieth of what is left in the day: other
instances need some too."""
LEAST = 2
"""A grant holds at least this many requests. If fewer fit, each request books its own slot."""


@dataclass(slots=True, eq=False)
class Grant:
    """What this instance may spend. `booked` is in the store; `used` is the part that was sent or is about to be."""

    slot: Slot
    booked: Want
    metered: bool
    """Whether there is a limit of tokens at all."""
    used: Want = NOTHING
    closed: bool = False

    def fits(self, want: Want, now: float) -> bool:
        return (
            not self.closed
            and now <= self.slot.until - LATE
            and not want.images
            and self.used.requests + want.requests <= self.booked.requests
            and (not self.metered or self.used.tokens + want.tokens <= self.booked.tokens)
        )

    def add(self, want: Want) -> None:
        """Spend the want, or give it back if it is negative."""
        self.used = Want(self.used.requests + want.requests, self.used.tokens + want.tokens)

    def settle(self, more: int) -> int:
        """Add `more` used tokens. Returns how many of them exceed the grant, so that they must be booked."""
        self.used = self.used._replace(tokens=self.used.tokens + more)
        over = max(0, self.used.tokens - self.booked.tokens) if self.metered else 0
        self.booked = self.booked._replace(tokens=self.booked.tokens + over)
        return over

    def is_over(self, now: float) -> bool:
        return self.closed or now > self.slot.until - LATE or self.used.requests >= self.booked.requests

    def close(self) -> Want:
        """Close the grant. Returns the correction for the store. Later settlements correct the store too."""
        self.closed = True
        return Want(self.used.requests - self.booked.requests, self.used.tokens - self.booked.tokens)


def take(state: State, now: float, wanted: Want, limits: Limits, window: str) -> tuple[State, Grant | None]:
    """Book up to `wanted` for now, if all of that has room. Returns (the new state, the grant or None)."""
    day, _, ends = day_of(now, state.zone)
    requests, tokens = state.days.get(day, (0, 0))
    left = {name: limits[name] - state.slots.held[i] for i, name in enumerate(MINUTE_LIMITS) if name in limits}
    of_day = {"rpd": limits.get("rpd", math.inf) - requests, "tpd": limits.get("tpd", math.inf) - tokens}
    metered = "tpm" in limits or "tpd" in limits
    booked = Want(
        int(min(wanted.requests, left["rpm"] // SHARE, of_day["rpd"] // DAY_SHARE)),
        int(min(wanted.tokens, left.get("tpm", math.inf) // SHARE, of_day["tpd"] // DAY_SHARE)) if metered else 0,
    )
    if booked.requests < LEAST or booked.tokens < 0 or state.cooldown is not None:
        return state, None
    found = quota.find(state, now, booked, limits, now, window)
    if not isinstance(found, Slot) or found.probe or found.start > now:
        return state, None
    until = min(found.latest + LIFE, ends - MIDNIGHT_GUARD)
    if window == "minute":
        until = min(until, minute_ends(found.number) + LATE)
    found = found._replace(until=until)
    state = quota.book(state, now, found, booked, limits)._replace(granted=found.number)
    return state, Grant(found, booked, metered)
