"""Grants: of a fast quota an instance takes several requests in one commit and spends them by itself for 3 s.

What a grant holds counts from the moment it is taken, in a window that is longer by its life, so that any use of it
lies inside. What is left over goes back with the next commit of the document. An instance that dies with a grant makes
the pool stricter for a minute, no more. `take` is PURE; a `Grant` is the holder's own account.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from pollux.pool import quota
from pollux.pool.quota import LATE, MIDNIGHT_GUARD, Slot, State
from pollux.pool.windows import GRANT_SLOTS, MINUTE_LIMITS, NOTHING, SLOT, Limits, Want, day_of, minute_ends

LIFE = GRANT_SLOTS * SLOT
SHARE, DAY_SHARE = 8, 50
"""At most so much of what is left is taken at once: the part of the others."""
LEAST = 2
"""Fewer are no grant: the request that asks takes its own place."""
REMEMBERED = 5.0


@dataclass(slots=True, eq=False)
class Grant:
    """What this instance may spend. `booked` is in the store; `used` of it is sent, or about to be."""

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
        """Spend it; a negative want is given back."""
        self.used = Want(self.used.requests + want.requests, self.used.tokens + want.tokens)

    def settle(self, more: int) -> int:
        """Used tokens turned out to be that many more. Gives what the grant does not hold, and must be booked."""
        self.used = self.used._replace(tokens=self.used.tokens + more)
        over = max(0, self.used.tokens - self.booked.tokens) if self.metered else 0
        self.booked = self.booked._replace(tokens=self.booked.tokens + over)
        return over

    def is_over(self, now: float) -> bool:
        """Nothing more can be spent from it."""
        return self.closed or now > self.slot.until - LATE or self.used.requests >= self.booked.requests

    def close(self) -> Want:
        """What the store has to be corrected by. From now on settlements go there too."""
        self.closed = True
        return Want(self.used.requests - self.booked.requests, self.used.tokens - self.booked.tokens)


class Pace(NamedTuple):
    """How many requests and tokens a second this instance was asked for lately."""

    requests: float = 0.0
    tokens: float = 0.0
    at: float = -math.inf

    def after(self, now: float, want: Want) -> "Pace":
        kept = math.exp(min(0.0, self.at - now) / REMEMBERED)
        return Pace(
            self.requests * kept + want.requests / REMEMBERED, self.tokens * kept + want.tokens / REMEMBERED, now
        )

    def for_a_grant(self, share: float = 1.0) -> Want:
        return Want(int(self.requests * LIFE * share), int(self.tokens * LIFE * share))


def take(state: State, now: float, wanted: Want, limits: Limits, window: str) -> tuple[State, Grant | None]:
    """Book up to that much for this moment, if there is room for all of it."""
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
