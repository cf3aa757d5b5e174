"""Chooses a project and key for a request, reserves a slot there and waits for it.

Who can serve is known by `roster`, the arithmetic is in `quota`, `desk` books, `ledger` commits, and what an answer of
Google's means for the pool is in `outcome`.
"""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from pollux import quota, ranking
from pollux.candidates import READ_AT_ONCE, Candidates
from pollux.desk import NOTHING_PRESUMED, Desk
from pollux.keys import Key
from pollux.quota import Slot, State
from pollux.reasons import BUSY, PAUSED, STORE_DOWN, Refusal
from pollux.recent import Recent
from pollux.recovery import Recovery
from pollux.reservation import Ask, Full, Reservation, Tried
from pollux.roster import Project, Quota, Roster
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
REST_CHECK = 1.0
"""Whoever waits for the end of a rest looks every second whether it was ended by hand, or a key was added."""
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


class _Search:
    """What one request finds at the projects that it looks at."""

    def __init__(
        self, pool: "Pool", model: str, ask: Ask, tried: Tried, ahead: float, without: Mapping[str, Refusal]
    ) -> None:
        self.ask = ask
        self.bucket = pool.roster.bucket(model)
        self.options: dict[str, ranking.Option] = {}
        self.refusals: dict[str, Refusal] = {}
        self._pool = pool
        self._model = model
        self._tried = tried
        self._ahead = ahead
        self._without = without
        self._smallest = pool.roster.smallest_limits(model)
        self._presumed = pool.candidates.presumed(model)
        self.now = self._soonest()
        """When what is booked now can be sent."""

    def _soonest(self) -> float:
        return self._pool.earliest(self._pool.now() + self._ahead)

    def likely(self) -> list[ranking.Option]:
        latest = max(self.now, self.ask.deadline)
        return [option for option in self.options.values() if option.rank[0] * SLOT <= latest]

    def choice(self, option: ranking.Option) -> Choice:
        return Choice(option.project, option.key, option.slot, self.now)

    async def look_at(self, names: Iterable[str], *, read_ahead: bool = False) -> None:
        """Those that were not looked at yet."""
        roster = self._pool.roster
        able: list[tuple[Project, Key, Quota]] = []
        for name in dict.fromkeys(names):
            project = roster.projects.get(name)
            if project is None or name in self._tried.projects or name in self.options or name in self.refusals:
                continue
            ask = self.ask
            key = roster.usable_key(
                project, self._model, self._tried.keys, self.now, ask.prefer_key, ask.tools, self._tried.trials
            )
            if isinstance(key, Refusal):
                self.refusals[name] = key
            elif name in self._without:
                self.refusals[name] = self._without[name]
            elif key is not None:
                able.append((project, key, roster.quota(name, self.bucket)))
        if any(owned.ledger.seen_at == -math.inf for _, _, owned in able):
            soon = self._pool.candidates.first(self._model, self.now, READ_AT_ONCE) if read_ahead else []
            await roster.read_unseen(
                [owned for _, _, owned in able] + [roster.quota(project.name, self.bucket) for project in soon]
            )
            self.now = self._soonest()
            # keys may have been removed meanwhile
            able = [found for found in able if roster.project_of.get(found[1].id) == found[0].name]
        for project, key, owned in able:
            self._look(project, key, owned)

    def _look(self, project: Project, key: Key, owned: Quota) -> None:
        pool, now, want = self._pool, self.now, self.ask.want
        limits = pool.roster.limits(project, self._model)
        presumed = self._presumed if project.tier is None else NOTHING_PRESUMED
        found = pool.desk.look(owned, want, limits, now, _deadline(self.ask, limits), presumed)
        if isinstance(found, Refusal):
            self.refusals[project.name] = found
            pool.candidates.refused(self._model, project, want, found)
            return
        strategy = pool.settings.strategy
        turn = pool.candidates.turn(self._model, project) if strategy == "round_robin" else owned.used_at
        self.options[project.name] = ranking.ranked(
            strategy, project, key, owned, found, limits, self._smallest, turn, now
        )

    async def look_at_others(self) -> None:
        pool, ask = self._pool, self.ask
        limit = pool.candidates.smallest_token_limit(self._model)
        latest = max(self.now, _deadline(ask, {"tpm": limit} if limit else {}))
        worth, refusals = pool.candidates.others(self._model, self.now, ask.want, latest)
        left = {name: refusal for name, refusal in refusals.items() if name not in self._tried.projects}
        self.refusals = left | self.refusals
        await self.look_at([project.name for project in worth])


class Pool:
    def __init__(
        self, settings: Settings, roster: Roster, *, sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep
    ) -> None:
        self.settings = settings
        self.roster = roster
        self.desk = Desk(settings, roster)
        self.recovery = Recovery(roster)
        self.candidates = Candidates(roster, self.desk, settings.strategy)
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
                if found.slot.start > self.now():
                    tried.waits_for = (
                        PAUSED
                        if self.pause_until > self.now()
                        else self.desk.why_later(found.quota, found.want, found.limits)
                    )
                if ask.booked is not None and found.slot.start > self.now():
                    ask.booked(found.quota.project)
                if await self._wait_for(found):
                    return found
                await asyncio.sleep(0)  # whatever the reason is: nobody turns in circles while others wait for a turn
                continue
            if any(refusal.why == STORE_DOWN for refusal in found.refusals.values()):
                if not asked_store and await self.desk.store_is_back():
                    asked_store = True
                    continue
                raise StoreUnavailableError(self.roster.watch.why)
            if await self.recovery.revive(model, tried, found.refusals, ask.deadline, ask.tools):
                continue
            tried.waits_for = min(found.refusals.values()).why if found.refusals else None
            if not await self.rest(found.refusals, ask.deadline):
                return found
            probed = [name for name, refusal in found.refusals.items() if refusal.why.kind == "probing"]
            bucket = self.roster.bucket(model)
            await asyncio.gather(*(self.roster.quota(name, bucket).ledger.refresh(PROBE_AGE) for name in probed))

    async def rest(self, refusals: Mapping[str, Refusal], deadline: float) -> bool:
        """Wait for the first of those who refused that can be asked again in time: a key, a project or a probe. It ends
        early when something changed about keys. False: nobody can be asked again by the deadline."""
        refusals = self.recovery.worth_a_wait(refusals)
        until = max(min((r.until for r in refusals.values()), default=math.inf), self.now() + SHORTEST_SLEEP)
        if until > deadline:
            return False
        roster = self.roster
        health, projects = roster.health.value, roster.projects
        self.waiting += 1
        try:
            while self.now() < until and roster.health.value is health and roster.projects is projects:
                await self._waits.until(until, at_most=REST_CHECK)
                await roster.ready()
                self.recovery.begin()
        finally:
            self.waiting -= 1
        return True

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
            # In a large pool, requests that come together would all look at the same few projects and be in each
            # other's way. In a small one they rather share a commit.
            coming = int(self.candidates.large)
            owned.coming += coming
            owned.used_at = next(self._uses)
            self.candidates.used(model, project.name)
            try:
                booked = await self.desk.book(owned, ask.want, limits, found, at, deadline, reserve, tried.store)
            finally:
                owned.coming -= coming
                self.candidates.used(model, project.name)
            if isinstance(booked, Refusal):
                said[project.name].append(booked)
            else:
                self.roster.used(key, owned.used_at)
                trial = project.name in tried.trials
                tried.trials.discard(project.name)
                return Reservation(key, model, owned, booked.slot, ask.want, limits, booked.grant, ask.tools, trial)

    def _reserve(
        self, state: State, now: float, project: Project, model: str, ask: Ask, ahead: float, latest: float
    ) -> tuple[State, Slot | Refusal]:
        """With the limits of this very state: another instance may have learned a smaller one. If so many were faster
        that the slot would be a later one than was thought, another project may have room sooner: it looks again."""
        limits = self.roster.limits_by(state, project, model)
        start = self.earliest(now + ahead)
        booked, slot = quota.reserve(state, start, ask.want, limits, _deadline(ask, limits), self.settings.window)
        if isinstance(slot, Slot) and slot.start > latest:
            return state, Refusal(slot.start, BUSY)
        return booked, slot

    def earliest(self, now: float) -> float:
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
        roster = self.roster
        now = self.earliest(self.now())
        if self.pause_until > max(self.now(), ask.deadline):
            able, refusals = roster.candidates(model, tried.projects, tried.keys, now, ask.prefer_key, ask.tools)
            refusals |= {project.name: Refusal(self.pause_until, PAUSED) for project, _ in able}
            return Full(model, {name: refusals[name] for name in refusals if ask.only in (None, name)})
        search = _Search(self, model, ask, tried, ahead, without)
        if ask.only is not None:
            await search.look_at([ask.only])
        elif (favourite := await self._favourite(search)) is not None:
            return favourite
        else:
            first = [project.name for project in self.candidates.first(model, now, tools=ask.tools)]
            await search.look_at([*tried.trials, *ask.near, *first], read_ahead=True)
            if not search.likely() and len(first) < len(roster.projects):
                await search.look_at_others()
        likely = search.likely() or (list(search.options.values()) if looked < LOOKS else [])
        if not likely:
            guessed = {name: Refusal(option.rank[0] * SLOT, BUSY) for name, option in search.options.items()}
            return Full(model, search.refusals | guessed)
        at_once = [option for option in likely if option.slot.start <= search.now and option.project.name in ask.near]
        return search.choice(ranking.best(at_once or likely, self.settings.strategy, search.now))

    async def _favourite(self, search: "_Search") -> Choice | None:
        """The preferred key's project, the conversation's, or one of which a grant is held, if it has room at once."""
        ask, roster = search.ask, self.roster
        conversation = self.served_by(ask.sticky)
        if ask.near and conversation not in ask.near:  # to bring there what it needs costs more than it saves
            conversation = None
        for name in (roster.project_of.get(ask.prefer_key or ""), conversation):
            if name is not None:
                await search.look_at([name])
                option = search.options.get(name)
                wanted = name == conversation or (option is not None and option.key.id == ask.prefer_key)
                if option is not None and wanted and option.slot.start <= search.now:
                    return search.choice(option)
        if self.settings.strategy == "earliest" and not ask.near:
            for name in roster.with_grants(search.bucket):
                await search.look_at([name])
                option = search.options.get(name)
                if option is not None and option.slot.until and option.slot.start <= search.now:
                    return search.choice(option)
        return None

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
        refusals: dict[str, Refusal] = {}
        while (key := self._picked(model or "", tried, only, prefer, home, refusals)) is None:
            if not await self.recovery.revive(model or "", tried, refusals, self.now() + PICK_WITHIN):
                return None
            refusals.clear()
        tried.trials.discard(key.project)
        return key

    def _picked(
        self,
        model: str,
        tried: Tried,
        only: str | None,
        prefer: str | None,
        home: str | None,
        refusals: dict[str, Refusal],
    ) -> Key | None:
        """If there is none, why not is put into `refusals`."""
        roster = self.roster
        if only is not None:
            projects: Iterable[Project] = [roster.projects[only]] if only in roster.projects else []
        else:
            first = [roster.projects.get(name or "") for name in (roster.project_of.get(prefer or ""), home)]
            projects = itertools.chain([project for project in first if project is not None], roster.by_use())
        for project in projects:
            if project.name not in tried.projects:
                found = roster.usable_key(project, model, tried.keys, self.now(), prefer, trials=tried.trials)
                if isinstance(found, Key):
                    roster.used(found, next(self._uses))
                    return found
                if found is not None:
                    refusals[project.name] = found
        return None

    async def _wait_for(self, reservation: Reservation) -> bool:
        """Sleep until the slot. False: it was given back: too late, or what it would use rests by now."""
        owned = reservation.quota
        start = max(reservation.slot.start + self._margin(), self.pause_until)
        if start > self.now():
            self.waiting += 1
            try:
                while start > self.now() and not self._is_void(reservation, start):
                    await self._waits.until(start, owned.sleepers)
                await self._refresh(owned)
            except BaseException:
                reservation.give_back()
                raise
            finally:
                self.waiting -= 1
        now = self.now()
        if self._is_void(reservation, now) or now < self.pause_until or self.is_late(reservation):
            reservation.give_back()
            return False
        return True

    def _is_void(self, reservation: Reservation, at: float) -> bool:
        """What it would use rests at that time, or a smaller limit was learned than the one that it was booked by."""
        owned, limits, roster = reservation.quota, reservation.limits, self.roster
        state, project = owned.ledger.value, roster.projects.get(owned.project)
        if state.cooldown is not None and state.cooldown.until > at and not reservation.slot.probe:
            return True
        if not reservation.trial and roster.is_aside(
            owned.project, reservation.model, reservation.key.id, at, reservation.tools
        ):
            return True
        if not state.learned or project is None:
            return False
        known = roster.limits_by(state, project, reservation.model)
        return any(limit < limits.get(name, math.inf) for name, limit in known.items())

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
        self.recovery.end(within)

    def served_by(self, conversation: int | None) -> str | None:
        """The project that served this conversation last."""
        return None if conversation is None else self._sticky.get(conversation)

    def stick(self, conversation: int | None, project: str) -> None:
        if conversation is not None and self.settings.sticky:
            self._sticky[conversation] = project


def _deadline(ask: Ask, limits: Limits) -> float:
    big = ask.patient and ask.want.tokens * 4 > limits.get("tpm", math.inf)
    return ask.deadline + PATIENCE if big else ask.deadline
