"""Orders the projects that may serve a model, and chooses among those that a request looked at.

Looking at a project means finding the slot that the request would get there. That is exact, but too expensive to do for
hundreds of projects with each request. So `Candidates` keeps their order from request to request and corrects it where
something changed. `pool` looks at the first few; it looks at the others only if none of those has a slot in time.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from pollux.backends.keys.contract import Key
from pollux.lru import Recent
from pollux.pool import quota
from pollux.pool.booking import Booking
from pollux.pool.projects import Project, Projects, Quota
from pollux.pool.quota import Slot
from pollux.pool.refusals import BUSY, Refusal, Why
from pollux.pool.reservation import Choice
from pollux.pool.strategy import Strategy
from pollux.pool.windows import SLOT, WINDOW, Limits, Want

LOOK_AT = 8
"""How many projects a request looks at. A pool that is not larger needs no order."""
READ_AT_ONCE = 64
"""How many documents are read ahead, in the order in which they will be needed."""
MODELS_MOST = 64
"""How many orders are kept: clients may invent names of models."""
LEAST = Want(1)
"""The smallest want: where it does not fit, no other does."""
LIMITS_FOR = 5.0
"""Seconds for which the limits of all projects together are cached."""
MOVES_ON_FOR = 30.0
"""While requests wait, other instances take each free slot at once. So in a document that they write, the next slot is
assumed to have moved by the seconds since the last read, but by no more than this."""
LONGER = 1.25
"""A request that must wait accepts a wait that is longer by this factor, if this instance wrote the document last: that
causes fewer conflicts."""
_rank = attrgetter("rank")


class _Entry(NamedTuple):
    """One project in the order of a model."""

    slot: float
    """The slot of the smallest want: 0 if there is one now, inf if there will never be one."""
    beyond: bool
    load: float
    used_at: int
    position: int


class _Known(NamedTuple):
    """The limits of all projects together, cached because asking all projects takes long."""

    until: float
    tokens_a_minute: int | None
    """The smallest limit of any project."""
    presumed: Limits
    """The limits assumed for projects without a tier: those at which other such projects were refused."""


class _Order:
    """The order for one model. Positions are those in the list of all projects."""

    def __init__(self, bucket: str, size: int) -> None:
        self.bucket = bucket
        self.changed: set[int] = set()
        """The positions to sort again before the order is used."""
        self.aside: set[int] = set()
        self.why: dict[int, Why] = {}
        """Why there is no slot now."""
        self.later: dict[int, tuple[int, Refusal]] = {}
        """Position -> (the tokens of a want that found no slot in time, its refusal). The refusal also holds for larger
        wants, until something changes."""
        self.learned: dict[int, Mapping[str, tuple[int, float]]] = {}
        self._entries = [_Entry(0.0, False, 0.0, 0, position) for position in range(size)]
        self._sorted = list(self._entries)
        self._drops: list[tuple[float, int]] = []
        """(time, position): when the oldest requests leave the window of a project, so that its load shrinks."""
        self._drops_at: dict[int, float] = {}

    def move(self, position: int, slot: float, beyond: bool, load: float, used_at: int) -> None:
        old, new = self._entries[position], _Entry(slot, beyond, load, used_at, position)
        if new != old:
            del self._sorted[bisect_left(self._sorted, old)]
            insort(self._sorted, new)
            self._entries[position] = new

    def drops_at(self, when: float, position: int) -> None:
        if self._drops_at.get(position) != when:
            self._drops_at[position] = when
            heapq.heappush(self._drops, (when, position))

    def due(self, now: float) -> set[int]:
        """Returns the positions to sort again: their projects changed, or their next slot has begun."""
        while self._drops and self._drops[0][0] <= now:
            self.changed.add(heapq.heappop(self._drops)[1])
        current, at = now / SLOT, bisect_left(self._sorted, (1.0,))
        while at < len(self._sorted) and self._sorted[at].slot <= current:
            self.changed.add(self._sorted[at].position)
            at += 1
        due, self.changed = self.changed, set()
        return due

    def first(self, most: int | None = None) -> list[_Entry]:
        return self._sorted[:most]


class Candidates:
    def __init__(self, projects: Projects, booking: Booking, strategy: Strategy) -> None:
        self._projects = projects
        self._booking = booking
        self._strategy = strategy
        self.look_at = LOOK_AT
        self._of: dict[str, Project] = {}
        self._in_order: Sequence[Project] = ()
        self._positions: dict[str, int] = {}
        self._orders: Recent[str, _Order] = Recent(MODELS_MOST)
        self._limits: Recent[str, _Known] = Recent(MODELS_MOST)
        self._aside: frozenset[tuple[str, float]] = frozenset()
        projects.quota_changed = self._quota_changed
        projects.health.changed = self._health_changed

    @property
    def large(self) -> bool:
        """Whether there are more projects than a request looks at."""
        return len(self._projects.by_name) > self.look_at

    def first(self, model: str, now: float, most: int | None = None, *, tools: Collection[str] = ()) -> list[str]:
        """Returns the names of the projects to look at first: a few where no tool rests, or all of a small pool."""
        order, most = self._order(model, now), most or self.look_at
        if len(self._in_order) <= most:
            return list(self._of)
        aside = self._projects.health.value.tools if tools else {}  # the order knows nothing of tools
        names = [self._in_order[entry.position].name for entry in order.first(most + len(aside))]
        if aside:
            names = [name for name in names if not self._projects.tool_rests(name, tools, now)]
        return names[:most]

    def others(self, model: str, now: float, want: Want, latest: float) -> tuple[list[str], dict[str, Refusal]]:
        """Returns (the names of all projects that may have a slot up to `latest`, the refusals of the projects that
        certainly have none)."""
        order = self._order(model, now)
        worth: list[str] = []
        refusals: dict[str, Refusal] = {}
        for entry in order.first():
            position = entry.position
            name, starts = self._in_order[position].name, entry.slot * SLOT
            tokens, refusal = order.later.get(position, (0, None))
            if starts == math.inf and position not in order.why:
                continue  # no key of it is enabled
            if starts > latest:
                refusals[name] = Refusal(starts, order.why.get(position, BUSY))
            elif refusal is not None and want.tokens >= tokens and refusal.until > latest:
                refusals[name] = refusal
            else:
                worth.append(name)
        return worth, refusals

    def refused(self, model: str, project: Project, want: Want, refusal: Refusal) -> None:
        """Remember that a request found no slot in this project."""
        order, position = self._orders.get(model), self._positions.get(project.name)
        if order is not None and position is not None and not want.images:
            tokens, _ = order.later.get(position, (want.tokens, refusal))
            if want.tokens <= tokens:
                order.later[position] = (want.tokens, refusal)

    def pending(self, model: str, owned: Quota, requests: int) -> None:
        """Count `requests` more as being booked in this quota, so that the next ones choose other projects. A small
        pool does not count them: there, requests should share a commit."""
        owned.coming += requests
        order, position = self._orders.get(model), self._positions.get(owned.project)
        if order is not None and position is not None:
            order.changed.add(position)

    def known(self, model: str) -> _Known:
        now, projects = self._projects.store.now(), self._projects
        known = self._limits.get(model)
        if known is None or known.until <= now:
            smallest, learned = projects.smallest_token_limit(model), projects.learned_limits(model)
            known = self._limits[model] = _Known(now + LIMITS_FOR, smallest, learned)
        return known

    def ranked(
        self, project: Project, key: Key, owned: Quota, limits: Limits, slot: Slot, smallest: Limits, now: float
    ) -> Choice:
        """Rank a project that has a slot: by the time of the slot, then by whether the use is within the known limits
        (see `quota.load`), then by what the strategy prefers, then by how long ago the project was used."""
        current = math.floor(now / SLOT)
        number: float = max(slot.number, current)
        if number > current and not owned.document.is_only_writer:
            number += min(MOVES_ON_FOR, now - owned.document.seen_at) / SLOT
        if self._strategy.prefers_own and slot.until:  # a grant is held already: it costs no commit
            rank: tuple[float, ...] = (number, False, -math.inf, False, owned.used_at)
        else:
            elsewhere = self._strategy.prefers_own and bool(limits) and not owned.document.written_last_here
            rank = (number, *self._load(owned, limits, smallest, now), elsewhere, owned.used_at)
        return Choice(rank, project, key, owned, limits, slot, now)

    def best(self, choices: Sequence[Choice], now: float) -> Choice:
        first = min(choices, key=_rank)
        wait = first.rank[0] - math.floor(now / SLOT)
        if wait <= 0 or not self._strategy.prefers_own:
            return first
        latest = first.rank[0] + wait * (LONGER - 1)
        mine = [choice for choice in choices if choice.quota.document.written_last_here and choice.rank[0] <= latest]
        return min(mine, key=_rank, default=first)

    def _load(self, owned: Quota, limits: Limits, smallest: Limits, now: float) -> quota.Load:
        """Returns the part of the rank that orders projects with the same slot."""
        used = quota.load(owned.document.value, now, limits, smallest, owned.coming)
        if used.beyond:
            return used
        return quota.Load(False, owned.coming if self._strategy.in_turn else round(used.share, 2))

    def _order(self, model: str, now: float) -> _Order:
        if self._of is not self._projects.by_name:
            self._of = self._projects.by_name
            self._in_order = list(self._of.values())
            self._positions = {project.name: position for position, project in enumerate(self._in_order)}
            self._orders.clear()
            self._limits.clear()
        bucket, order = self._projects.bucket(model), self._orders.get(model)
        if order is None or order.bucket != bucket:
            order = self._orders[model] = _Order(bucket, len(self._in_order))
            order.changed.update(range(len(self._in_order)))
            for position, project in enumerate(self._in_order):
                if (owned := self._projects.quotas.get((project.name, bucket))) and owned.document.value.learned:
                    order.learned[position] = owned.document.value.learned
        self._orders.move_to_end(model)  # invented names push out no order that is used
        if self.large:
            for position in order.due(now):
                self._update(order, model, position, now)
        return order

    def _update(self, order: _Order, model: str, position: int, now: float) -> None:
        project = self._in_order[position]
        owned = self._projects.quotas.get((project.name, order.bucket))
        order.later.pop(position, None)
        order.aside.discard(position)
        order.why.pop(position, None)
        key = self._projects.usable_key(project, model, (), now)
        if isinstance(key, Refusal) or key is None:
            order.aside.add(position)
            until = math.inf
            if key is not None:
                until, order.why[position] = key
            order.move(position, until / SLOT, False, 0.0, 0)
            return
        if owned is None:
            order.move(position, 0.0, False, 0.0, 0)
            return
        state = owned.document.value
        limits = self._projects.limits_by(state, project, model)
        slot = self._slot(order, position, owned, model, limits, now)
        load = self._load(owned, limits, self._projects.smallest_limits(model), now)
        if oldest := min(state.slots, default=0):
            order.drops_at((oldest + WINDOW + 1) * SLOT, position)
        order.move(position, slot, *load, owned.used_at)

    def _slot(self, order: _Order, position: int, owned: Quota, model: str, limits: Limits, now: float) -> float:
        presumed = self.known(model).presumed
        found = self._booking.look(owned, LEAST, limits, now, math.inf, presumed)
        if isinstance(found, Refusal):
            order.why[position] = found.why
            return found.until / SLOT
        if found.start <= now:
            return 0.0
        order.why[position] = self._booking.why_later(owned, LEAST, limits, now, presumed)
        return float(found.number)

    def _quota_changed(self, project: str, bucket: str) -> None:
        position = self._positions.get(project)
        if position is not None and (project, bucket) in self._projects.quotas:
            learned = self._projects.quotas[project, bucket].document.value.learned
            for model, order in self._orders.items():
                if order.bucket == bucket:
                    order.changed.add(position)
                    if learned != order.learned.get(position, {}):
                        order.learned[position] = learned
                        order.changed.update(range(len(self._in_order)))  # others are assumed to have it too
                        self._limits.pop(model, None)

    def _health_changed(self) -> None:
        """Mark the projects that were set aside or came back, so that they are sorted again."""
        if self.large:
            aside = self._projects.named_aside()
            changed = {self._positions[name] for name, _ in aside ^ self._aside if name in self._positions}
            self._aside = aside
            for order in self._orders.values():
                order.changed |= changed | order.aside
