"""Histories of one quota for the properties, with an independent record of what was sent."""

import copy
import math
from dataclasses import dataclass, field

from hypothesis import strategies as st

from pollux.pool.quota import Slot, State, give_back, reserve, settle, tidy
from pollux.pool.windows import WINDOW, Limits, Want

NOON = 1_800_043_200.0  # a Pacific noon, a full minute
MIDNIGHT = 1_800_000_000.0  # a Pacific midnight


Operation = tuple[str, float, Want]


@dataclass(eq=False)
class Sent:
    slot: Slot
    want: Want
    tokens: int
    when: float
    settled: bool = False


@dataclass
class History:
    """Each operation takes a number from 0 to 1 for whatever it needs to choose."""

    limits: Limits
    window: str = "sliding"
    now: float = NOON
    state: State = field(default_factory=State)
    open: list[Sent] = field(default_factory=list)
    gone: list[Sent] = field(default_factory=list)

    def play(self, operations: list[Operation]) -> "History":
        for name, number, want in operations:
            before, was = self.state, copy.deepcopy(self.state)
            getattr(self, name)(number, want)
            assert before == was, f"{name} changed a state in place"
            self.check()
        return self

    def reserve(self, number: float, want: Want) -> None:
        self.state, found = reserve(self.state, self.now, want, self.limits, self.now + number * 100, self.window)
        if isinstance(found, Slot):
            start = max(self.now, found.start)
            self.open.append(Sent(found, want, want.tokens, start + number * (found.latest - start)))

    def settle(self, number: float, _: Want) -> None:
        """Down only: above its estimate a request may be over the limit, and nobody can help it."""
        unsettled = [sent for sent in [*self.gone, *self.open] if not sent.settled]
        if unsettled:
            sent = unsettled[int(number * (len(unsettled) - 1))]
            sent.tokens, sent.settled = int(number * sent.want.tokens), True
            self.state = settle(self.state, sent.slot, sent.want, sent.tokens)
            if sent in self.open:
                self.open.remove(sent)
                self.gone.append(sent)

    def give_back(self, number: float, _: Want) -> None:
        if self.open:
            sent = self.open.pop(int(number * (len(self.open) - 1)))
            self.state = give_back(self.state, sent.slot, sent.want)

    def advance(self, number: float, _: Want) -> None:
        self.now += number * 90
        self.gone += [sent for sent in self.open if sent.when <= self.now]
        self.open = [sent for sent in self.open if sent.when > self.now]

    def tidy(self, _: float, __: Want) -> None:
        self.state = tidy(self.state, self.now)

    def check(self) -> None:
        sent = [*self.gone, *self.open]
        for i, name in enumerate(("rpm", "tpm")):
            slots: dict[int, int] = {}
            for s in sent:
                slots[s.slot.number] = slots.get(s.slot.number, 0) + (s.want.requests, s.tokens)[i]
            assert max(self.worst(slots), default=0) <= self.limits.get(name, math.inf), name

    def worst(self, slots: dict[int, int]) -> list[int]:
        """The sum of every window that counts."""
        if self.window == "minute":
            minutes = {slot // 120 for slot in slots}
            return [sum(a for s, a in slots.items() if s // 120 == minute) for minute in minutes]
        return [sum(a for s, a in slots.items() if first <= s < first + WINDOW) for first in slots]

    def sends(self, which: int) -> list[tuple[float, int]]:
        return [(s.when, (s.want.requests, s.tokens)[which]) for s in [*self.gone, *self.open]]


wants = st.builds(Want, st.integers(0, 4), st.integers(0, 60))
limits = st.fixed_dictionaries({"rpm": st.integers(1, 12)}, optional={"tpm": st.integers(1, 150)})
operations = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "reserve", "settle", "give_back", "advance", "tidy"]),
        st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5 / 90, 1.0])),
        wants,
    ),
    max_size=40,
)
