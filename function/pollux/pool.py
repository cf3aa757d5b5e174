"""Chooses a project and key for a request, reserves a slot there and waits for it.

Who can serve is known by `roster`, the arithmetic is in `quota`, `desk` books, `ledger` commits, and what an answer of
Google's means for the pool is in `outcome`.
"""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from pollux import quota, ranking
from pollux.desk import Desk
from pollux.keys import Key
from pollux.quota import Refusal, Slot, State
from pollux.recent import Recent
from pollux.recovery import Recovery
from pollux.reservation import Ask, Full, Reservation, Tried
from pollux.roster import Project, Quota, Roster
from pollux.safe import STORE_DOWN
from pollux.settings import Settings
from pollux.store import StoreUnavailableError
from pollux.waiting import StoppingError, Waiting
from pollux.windows import SLOT, Limits

__all__ = ["Ask", "Full", "Pool", "Reservation", "StoppingError", "Tried"]

OLD, OLD_ALONE = 5.0, 60.0
"""Whoever wakes for its slot reads a state again that is older than this; the second is for documents that nobody else
writes."""
STALE = 2.5
"""Before it books a slot that lies ahead, a document that others write: a read costs less than a commit in vain."""
PATIENCE = 65.0
"""A want above a quarter of the token limit may be booked this much later: among small ones it would starve."""
PROBE_AGE = 0.5
"""Whoever waits for another's probe looks about every second how it went."""
SHORTEST_SLEEP = 0.05
REFUSED_MOST = 3
LOOKS = 1
"""So many documents are read before a request is refused by a guess."""
CLOCKS_OFF = 0.2
"""The window covers clocks that are off by so much: 61.5 s less a second for sending in, less twice that, less 0.1 s on
the way, is 60 s."""
MARGIN_MOST = 0.4
"""More would leave no time to send in."""
STICKY_MOST = 10_000
PICK_WITHIN = 15.0
"""A call that takes no quota waits so long for word of a key that is asked about, if no other may serve it."""


class Choice(NamedTuple):
    project: Project
    key: Key
    slot: Slot
    at: float
    """The time for which it was chosen: now, or later."""


class Pool:
    def __init__(
        self, settings: Settings, roster: Roster, *, sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep
    ) -> None:
        self.settings = settings
        self.roster = roster
        self.desk = Desk(settings, roster)
        self.recovery = Recovery(roster)
        self.pause_until = 0.0
        """Until then nobody is asked: all of Google seems to refuse this address."""
        self.waiting = 0
        self._waits = Waiting(self.now, sleep)
        self._uses = itertools.count(1)
        self._sticky: Recent[int, str] = Recent(STICKY_MOST)

    def now(self) -> float:
        return self.roster.store.now()

    async def reserve(self, model: str, ask: Ask, tried: Tried) -> Reservation | Full:
        """The best slot for this model, waited for; or what every project said."""
        await self.roster.ready()
        self.recovery.begin()
        self.desk.asked(self.roster.bucket(model), ask.want)
        ahead, asked_store = 0.0, False
        while True:
            began = self.now()
            found = await self._book(model, ask, tried, ahead)
            ahead = self.now() - began  # a store this slow: what is taken for now would come too late again
            tried.store.seconds += ahead
            self.roster.watch.waits.append(ahead)
            if isinstance(found, Reservation):
                if ask.booked is not None and found.slot.start > self.now():
                    ask.booked(found.quota.project)
                if await self._wait_for(found, tried.trials):
                    tried.trials.discard(found.quota.project)
                    return found
                await asyncio.sleep(0)  # whatever the reason is: nobody turns in circles while others wait for a turn
                continue
            if any(refusal.why == STORE_DOWN for refusal in found.refusals.values()):
                if not asked_store and await self.desk.store_is_back():
                    asked_store = True
                    continue
                raise StoreUnavailableError(self.roster.watch.why)
            if await self.recovery.revive(model, tried, found.refusals, ask.deadline):
                continue
            probed = {name: r.until for name, r in found.refusals.items() if r.why.startswith("probing")}
            until = min(probed.values(), default=math.inf)
            if until > ask.deadline:
                return found
            await self._waits.until(max(until, self.now() + SHORTEST_SLEEP))
            bucket = self.roster.bucket(model)
            await asyncio.gather(*(self.roster.quota(name, bucket).ledger.refresh(PROBE_AGE) for name in probed))

    async def _book(self, model: str, ask: Ask, tried: Tried, ahead: float) -> Reservation | Full:
        looked: set[str] = set()
        said: dict[str, list[Refusal]] = defaultdict(list)
        while True:
            # What refuses again and again is left out, so that nobody turns in circles whatever the reason is.
            without = {name: refusals[-1] for name, refusals in said.items() if len(refusals) >= REFUSED_MOST}
            choice = await self._choose(model, ask, tried, ahead, without, len(looked))
            if isinstance(choice, Full):
                return choice
            project, key, found, at = choice
            owned = self.roster.quota(project.name, self.roster.bucket(model))
            if found.start > self.now() and project.name not in looked and self._is_stale(owned):
                looked.add(project.name)
                await self._refresh(owned, STALE)
                continue
            limits = self.roster.limits(project, model)
            others = ask.only is None and len(self.roster.projects) > 1 and len(said[project.name]) + 1 < REFUSED_MOST
            latest = max(found.start, self.now() + ahead) + SLOT if others else math.inf
            reserve = partial(self._reserve, project=project, model=model, ask=ask, ahead=ahead, latest=latest)
            deadline = _deadline(ask, limits)
            booked = await self.desk.book(owned, ask.want, limits, found, at, deadline, reserve, tried.store)
            if isinstance(booked, Refusal):
                said[project.name].append(booked)
            else:
                owned.used_at = self.roster.key_used[key.id] = next(self._uses)
                return Reservation(key, model, owned, booked.slot, ask.want, limits, booked.grant)

    def _reserve(
        self, state: State, now: float, project: Project, model: str, ask: Ask, ahead: float, latest: float
    ) -> tuple[State, Slot | Refusal]:
        """With the limits of this very state: another instance may have learned a smaller one. If so many were faster
        that the slot would be a later one than was thought, another project may have room sooner: it looks again."""
        limits = self.roster.limits_by(state, project, model)
        start = self._earliest(now + ahead)
        booked, slot = quota.reserve(state, start, ask.want, limits, _deadline(ask, limits), self.settings.window)
        if isinstance(slot, Slot) and slot.start > latest:
            return state, Refusal(slot.start, "busy")
        return booked, slot

    def _earliest(self, now: float) -> float:
        """Now, or the first slot after a pause."""
        return now if now >= self.pause_until else math.ceil(self.pause_until / SLOT) * SLOT

    async def _choose(
        self,
        model: str,
        ask: Ask,
        tried: Tried,
        ahead: float = 0.0,
        without: Mapping[str, Refusal] = MappingProxyType({}),
        looked: int = 0,
    ) -> "Choice | Full":
        """By the last seen states; the commit decides. Who is preferred comes first, if there is room at once."""
        roster, bucket = self.roster, self.roster.bucket(model)
        now = self._earliest(self.now())
        able, refusals = roster.candidates(model, tried.projects, tried.keys, now, ask.prefer_key, tried.trials)
        if ask.only is not None:
            able = [(project, key) for project, key in able if project.name == ask.only]
            refusals = {name: refusal for name, refusal in refusals.items() if name == ask.only}
        if self.pause_until > max(self.now(), ask.deadline):
            return Full(model, refusals | {project.name: Refusal(self.pause_until, "paused") for project, _ in able})
        preferred = self.served_by(ask.sticky)
        if ask.near and preferred not in ask.near:  # to bring there what it needs costs more than it saves
            preferred = None
        if ask.prefer_key is not None or preferred is not None:
            able.sort(key=lambda pair: (pair[1].id != ask.prefer_key, pair[0].name != preferred))
        await roster.read_unseen(roster.quota(project.name, bucket) for project, _ in able)
        now = self._earliest(self.now() + ahead)
        options: list[ranking.Option] = []
        strategy = self.settings.strategy
        turns = ranking.turns(roster, bucket) if strategy == "round_robin" else {}
        for project, key in able:
            if project.name in without:
                refusals[project.name] = without[project.name]
                continue
            owned, limits = roster.quota(project.name, bucket), roster.limits(project, model)
            found = self.desk.look(owned, ask.want, limits, now, _deadline(ask, limits))
            if isinstance(found, Refusal):
                refusals[project.name] = found
            elif found.start <= now and (key.id == ask.prefer_key or project.name == preferred):
                return Choice(project, key, found, now)
            else:
                options.append(ranking.ranked(strategy, project, key, owned, found, limits, now, turns))
        likely = [option for option in options if option.rank[0] * SLOT <= max(now, ask.deadline)]
        if not likely and looked < LOOKS:
            likely = options
        if not likely:
            guessed = {option.project.name: Refusal(option.rank[0] * SLOT, "busy") for option in options}
            return Full(model, refusals | guessed)
        at_once = [option for option in likely if option.slot.start <= now and option.project.name in ask.near]
        best = ranking.best(at_once or likely, strategy, now)
        return Choice(best.project, best.key, best.slot, now)

    async def look(self, model: str, ask: Ask) -> Full | None:
        """What every project says now, without reserving anything; None if one has a slot."""
        await self.roster.ready()
        found = await self._choose(model, ask, Tried())
        return found if isinstance(found, Full) else None

    async def pick(
        self,
        model: str | None,
        tried: Tried,
        only: str | None = None,
        prefer: str | None = None,
        home: str | None = None,
    ) -> Key | None:
        """A healthy key for a call that takes no quota: the preferred, else one of the home project, else the one used
        least recently. `only`: of that project."""
        await self.roster.ready()
        self.recovery.begin()
        used = self.roster.key_used
        while True:
            now = self.now()
            able, refusals = self.roster.candidates(model or "", tried.projects, tried.keys, now, prefer, tried.trials)
            keys = [key for project, key in able if only is None or project.name == only]
            if keys:
                break
            refusals = {name: refusal for name, refusal in refusals.items() if only in (None, name)}
            if not await self.recovery.revive(model or "", tried, refusals, now + PICK_WITHIN):
                return None
        key = min(keys, key=lambda key: (key.id != prefer, key.project != home, used.get(key.id, 0)))
        used[key.id] = next(self._uses)
        tried.trials.discard(key.project)
        return key

    async def _wait_for(self, reservation: Reservation, trials: Collection[str] = ()) -> bool:
        """Sleep until the slot. False: it was given back: too late, or what it would use rests by now."""
        owned, slot = reservation.quota, reservation.slot
        start = max(slot.start + self._margin(), self.pause_until)
        if start > self.now():
            self.waiting += 1
            try:
                await self._waits.until(start)
                await self._refresh(owned)
            except BaseException:
                reservation.give_back()
                raise
            finally:
                self.waiting -= 1
        now = self.now()
        cooling = owned.ledger.value.cooldown
        rests = cooling is not None and cooling.until > now and not slot.probe
        rests = rests or self.roster.is_aside(owned.project, reservation.model, reservation.key.id, now, trials)
        if rests or now < self.pause_until or self.is_late(reservation):
            reservation.give_back()
            return False
        return True

    def is_late(self, reservation: Reservation) -> bool:
        """Sent now, it might lie in a window that has no room for it."""
        return self.now() > reservation.slot.latest - self._margin()

    def _margin(self) -> float:
        """What is known of the time only roughly is left out at both ends of a slot's time."""
        return min(MARGIN_MOST, max(0.0, self.roster.store.error() - CLOCKS_OFF))

    def _is_stale(self, owned: Quota) -> bool:
        return not owned.ledger.alone and self.now() - owned.ledger.seen_at > STALE

    async def _refresh(self, owned: Quota, old: float = OLD) -> None:
        """What others did meanwhile. The slot is booked: while the store does not answer it may still be used."""
        if not self.roster.watch.down:
            with suppress(StoreUnavailableError):
                await owned.ledger.refresh(OLD_ALONE if owned.ledger.alone else old)

    def end(self, within: float) -> None:
        """The process stops: who would have to wait longer than that is told so at once, and gives its slot back."""
        self._waits.end(within)

    def served_by(self, conversation: int | None) -> str | None:
        """The project that served this conversation last."""
        return None if conversation is None else self._sticky.get(conversation)

    def stick(self, conversation: int | None, project: str) -> None:
        if conversation is not None and self.settings.sticky:
            self._sticky[conversation] = project


def _deadline(ask: Ask, limits: Limits) -> float:
    big = ask.patient and ask.want.tokens * 4 > limits.get("tpm", math.inf)
    return ask.deadline + PATIENCE if big else ask.deadline
