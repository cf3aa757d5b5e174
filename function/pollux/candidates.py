"""The projects that may serve a model, in the order in which a request should look at them.

Looking at a project means finding the slot that the request would get there. That is exact, and too expensive to do for
hundreds of projects with each request. So their order is kept from request to request and corrected where something
changed. `pool` looks at the first few; only if none of those has a slot in time, it looks at the others.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pollux import quota, ranking
from pollux.desk import NOTHING_PRESUMED, Desk
from pollux.reasons import BUSY, Refusal, Why
from pollux.recent import Recent
from pollux.roster import Project, Quota, Roster
from pollux.windows import SLOT, WINDOW, Limits, Want

LOOK_AT = 8
"""How many projects a request looks at. A pool that is not larger needs no order."""
READ_AT_ONCE = 64
"""How many documents are read ahead, in the order in which they will be needed."""
MODELS_MOST = 64
"""How many orders are kept: clients may invent names of models."""
LEAST = Want(1)
"""The smallest want: where it does not fit, no other does."""
LIMITS_FOR = 5.0


class _Place(NamedTuple):
    slot: float
    """The slot of the smallest want: 0 if there is one now, inf if there will never be one."""
    beyond: bool
    load: float
    used_at: int
    position: int


class _Known(NamedTuple):
    """The limits of all projects together."""

    until: float
    smallest: int | None
    """Of tokens a minute."""
    learned: Limits


class _Order:
    """The order for one model. Positions are those in the list of all projects."""

    def __init__(self, bucket: str, size: int) -> None:
        self.bucket = bucket
        self.changed: set[int] = set()
        """What has to be placed anew before the order is used."""
        self.aside: set[int] = set()
        """What was found set aside."""
        self.why: dict[int, Why] = {}
        """Why there is no slot now."""
        self.later: dict[int, tuple[int, Refusal]] = {}
        """The tokens of a want that found no slot in time, and what it was told. The same holds for a larger one until
        something changes."""
        self.learned: dict[int, Mapping[str, tuple[int, float]]] = {}
        self.last_used = -1
        self._places = [_Place(0.0, False, 0.0, 0, position) for position in range(size)]
        self._sorted = list(self._places)
        self._drops: list[tuple[float, int]] = []
        """When requests leave a window, so that its load shrinks."""
        self._drops_at: dict[int, float] = {}

    def place(self, position: int, slot: float, beyond: bool, load: float, used_at: int) -> None:
        old, new = self._places[position], _Place(slot, beyond, load, used_at, position)
        if new != old:
            del self._sorted[bisect_left(self._sorted, old)]
            insort(self._sorted, new)
            self._places[position] = new

    def drops_at(self, when: float, position: int) -> None:
        if self._drops_at.get(position) != when:
            self._drops_at[position] = when
            heapq.heappush(self._drops, (when, position))

    def due(self, now: float) -> set[int]:
        """What changed, or does now because time has passed."""
        while self._drops and self._drops[0][0] <= now:
            self.changed.add(heapq.heappop(self._drops)[1])
        current, at = now / SLOT, bisect_left(self._sorted, (1.0,))
        while at < len(self._sorted) and self._sorted[at].slot <= current:
            self.changed.add(self._sorted[at].position)
            at += 1
        due, self.changed = self.changed, set()
        return due

    def positions(self, most: int | None = None) -> list[int]:
        return [place.position for place in self._sorted[:most]]

    def in_turn(self, most: int) -> list[int]:
        """As `positions`, but of those that can serve now, the one after the last used comes first."""
        turn = bisect_left(self._sorted, (0.0, False, 0.0, 0, self.last_used + 1))
        end = bisect_left(self._sorted, (0.0, True))
        able = self._sorted[turn:end][:most] + self._sorted[: min(turn, end)][:most]
        return [place.position for place in (able + self._sorted[end : end + most])[:most]]

    def slot(self, position: int) -> float:
        return self._places[position].slot


class Candidates:
    def __init__(self, roster: Roster, desk: Desk, strategy: str) -> None:
        self._roster = roster
        self._desk = desk
        self._strategy = strategy
        self.look_at = LOOK_AT
        self._of: dict[str, Project] = {}
        self._projects: Sequence[Project] = ()
        self._positions: dict[str, int] = {}
        self._orders: Recent[str, _Order] = Recent(MODELS_MOST)
        self._limits: Recent[str, _Known] = Recent(MODELS_MOST)
        self._aside: frozenset[tuple[str, float]] = frozenset()
        roster.quota_changed = self._quota_changed
        roster.health.changed = self._health_changed

    @property
    def large(self) -> bool:
        """More projects than a request looks at."""
        return len(self._roster.projects) > self.look_at

    def first(self, model: str, now: float, most: int | None = None, *, tools: Collection[str] = ()) -> list[Project]:
        """The projects to look at first: a few where none of these tools rests, or all of a small pool."""
        order, most = self._order(model, now), most or self.look_at
        if len(self._projects) <= most:
            return list(self._projects)
        resting = self._roster.tools_resting if tools else 0  # the order knows nothing of them
        listed = order.in_turn if self._strategy == "round_robin" else order.positions
        projects = [self._projects[position] for position in listed(most + resting)]
        if resting:
            projects = [project for project in projects if not self._roster.tool_rests(project.name, tools, now)]
        return projects[:most]

    def others(self, model: str, now: float, want: Want, latest: float) -> tuple[list[Project], dict[str, Refusal]]:
        """The rest: those worth looking at, and what is known of those that surely have no slot up to `latest`."""
        order = self._order(model, now)
        worth: list[Project] = []
        refusals: dict[str, Refusal] = {}
        for position in order.positions():
            project, starts = self._projects[position], order.slot(position) * SLOT
            tokens, refusal = order.later.get(position, (0, None))
            if starts == math.inf and position not in order.why:
                continue  # it has no key that is enabled
            if starts > latest:
                refusals[project.name] = Refusal(starts, order.why.get(position, BUSY))
            elif refusal is not None and want.tokens >= tokens and refusal.until > latest:
                refusals[project.name] = refusal
            else:
                worth.append(project)
        return worth, refusals

    def refused(self, model: str, project: Project, want: Want, refusal: Refusal) -> None:
        """A request looked at it in vain."""
        order, position = self._orders.get(model), self._positions.get(project.name)
        if order is not None and position is not None and not want.images:
            tokens, _ = order.later.get(position, (want.tokens, refusal))
            if want.tokens <= tokens:
                order.later[position] = (want.tokens, refusal)

    def used(self, model: str, project: str) -> None:
        """A request is being booked there, or is booked."""
        order, position = self._orders.get(model), self._positions.get(project)
        if order is not None and position is not None:
            order.last_used = position
            order.changed.add(position)

    def turn(self, model: str, project: Project) -> int:
        """How many others have their turn before it."""
        self._follow_keys()
        order = self._orders.get(model)
        last = -1 if order is None else order.last_used
        return (self._positions[project.name] - last - 1) % len(self._projects)

    def smallest_token_limit(self, model: str) -> int | None:
        """Of all projects."""
        return self._known(model).smallest

    def presumed(self, model: str) -> Limits:
        """What a project without a tier presumably has: the limits at which others like it were refused."""
        return self._known(model).learned

    def _known(self, model: str) -> _Known:
        """Of all projects together. Remembered for a moment, as asking all of them takes long."""
        now, roster = self._roster.store.now(), self._roster
        known = self._limits.get(model)
        if known is None or known.until <= now:
            smallest, learned = roster.smallest_token_limit(model), roster.learned_limits(model)
            known = self._limits[model] = _Known(now + LIMITS_FOR, smallest, learned)
        return known

    def _follow_keys(self) -> None:
        if self._of is not self._roster.projects:
            self._of = self._roster.projects
            self._projects = list(self._of.values())
            self._positions = {project.name: position for position, project in enumerate(self._projects)}
            self._orders.clear()
            self._limits.clear()

    def _order(self, model: str, now: float) -> _Order:
        self._follow_keys()
        bucket, order = self._roster.bucket(model), self._orders.get(model)
        if order is None or order.bucket != bucket:
            order = self._orders[model] = _Order(bucket, len(self._projects))
            order.changed.update(range(len(self._projects)))
            for position, project in enumerate(self._projects):
                if (owned := self._roster.quotas.get((project.name, bucket))) and owned.ledger.value.learned:
                    order.learned[position] = owned.ledger.value.learned
        self._orders.move_to_end(model)  # invented names push out no order that is used
        if self.large:
            for position in order.due(now):
                self._place(order, model, position, now)
        return order

    def _place(self, order: _Order, model: str, position: int, now: float) -> None:
        project = self._projects[position]
        owned = self._roster.quotas.get((project.name, order.bucket))
        order.later.pop(position, None)
        order.aside.discard(position)
        order.why.pop(position, None)
        key = self._roster.usable_key(project, model, (), now)
        if isinstance(key, Refusal) or key is None:
            order.aside.add(position)
            until = math.inf
            if key is not None:
                until, order.why[position] = key
            order.place(position, until / SLOT, False, 0.0, 0)
            return
        if owned is None:
            order.place(position, 0.0, False, 0.0, 0)
            return
        slot = self._slot(order, position, project, owned, model, now)
        state, smallest = owned.ledger.value, self._roster.smallest_limits(model)
        load = quota.load(state, now, self._roster.limits(project, model), smallest, owned.coming)
        if oldest := min(state.slots, default=0):
            order.drops_at((oldest + WINDOW + 1) * SLOT, position)
        used_at = 0 if self._strategy == "round_robin" else owned.used_at
        order.place(position, slot, *ranking.order(self._strategy, load, owned.coming), used_at)

    def _slot(self, order: _Order, position: int, project: Project, owned: Quota, model: str, now: float) -> float:
        limits = self._roster.limits(project, model)
        presumed = self.presumed(model) if project.tier is None else NOTHING_PRESUMED
        found = self._desk.look(owned, LEAST, limits, now, math.inf, presumed)
        if isinstance(found, Refusal):
            order.why[position] = found.why
            return found.until / SLOT
        if found.start <= now:
            return 0.0
        held_back = self._desk.look(owned, LEAST, limits, now, now, presumed)
        order.why[position] = held_back.why if isinstance(held_back, Refusal) else BUSY
        return float(found.number)

    def _quota_changed(self, project: str, bucket: str) -> None:
        position = self._positions.get(project)
        if position is not None and (project, bucket) in self._roster.quotas:
            learned = self._roster.quotas[project, bucket].ledger.value.learned
            for model, order in self._orders.items():
                if order.bucket == bucket:
                    order.changed.add(position)
                    if learned != order.learned.get(position, {}):
                        order.learned[position] = learned
                        order.changed.update(range(len(self._projects)))  # it is presumed of others
                        self._limits.pop(model, None)

    def _health_changed(self) -> None:
        """Those that were set aside may be back, and others aside instead."""
        if self.large:
            aside = self._roster.named_aside()
            names = {name for name, _ in aside ^ self._aside}
            changed = {self._positions[name] for name in names if name in self._positions}
            self._aside = aside
            for order in self._orders.values():
                order.changed |= changed | order.aside
