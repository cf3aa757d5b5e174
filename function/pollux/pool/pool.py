"""Chooses a project and key for a request, reserves a slot there and waits for it.

`Pool.reserve` chooses (`_choose`), books the slot (`booking`) and sleeps until it (`_wait_for`). `projects` says which
projects can serve, `candidates` in which order to look at them.
"""

import asyncio
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import StoreUnavailableError
from pollux.pool.booking import Booking
from pollux.pool.candidates import READ_AT_ONCE, Candidates
from pollux.pool.projects import Project, Projects, Quota
from pollux.pool.recovery import Recovery
from pollux.pool.refusals import BUSY, PAUSED, STORE_DOWN, Refusal
from pollux.pool.reservation import Ask, Choice, Full, Reservation, StoppingError, Tried
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import SLOT
from pollux.settings import Settings

OLD, OLD_ALONE = 5.0, 60.0
"""A request that wakes for its slot reads the document again if the last read is older than this. The second value is
for documents that only this instance writes."""
STALE = 2.5
"""Before a future slot is booked, a document that others write is read again if the last read is older than this: a
read costs less than a conflict."""
PROBE_AGE = 0.5
"""A request that waits for another's probe reads the result about every second."""
SHORTEST_SLEEP = 0.05
REST_CHECK = 1.0
"""Seconds between two checks of a request that waits for a rest: it may be ended by hand, or a key may be added."""
REFUSED_MOST = 3
LOOKS = 1
"""How many documents a request reads again before it is refused because their slots are probably taken."""
CLOCKS_OFF = 0.2
"""The clock error that the window allows for: 61.5 s, less 1 s in which to send, less twice 0.2 s, less 0.1 s on the
way, is 60 s."""
MARGIN_MOST = 0.4
"""A larger margin would leave no time to send."""
STICKY_MOST = 10_000
PICK_WITHIN = 15.0
"""How long a call that takes no quota waits for a key that is being probed, if no other key can serve it."""


class _Search:
    """The slots and refusals that one request finds when it looks at projects."""

    def __init__(
        self, pool: "Pool", model: str, ask: Ask, tried: Tried, ahead: float, without: Mapping[str, Refusal]
    ) -> None:
        self.ask = ask
        self.bucket = pool.projects.bucket(model)
        self.choices: dict[str, Choice] = {}
        self.refusals: dict[str, Refusal] = {}
        self._pool = pool
        self._model = model
        self._tried = tried
        self._ahead = ahead
        self._without = without
        self._smallest = pool.projects.smallest_limits(model)
        self._presumed = pool.candidates.known(model).presumed
        self.now = self._soonest()
        """The earliest time at which a request that is booked now can be sent."""

    def _soonest(self) -> float:
        return self._pool.booking.earliest(self._pool.now() + self._ahead)

    def likely(self) -> list[Choice]:
        latest = max(self.now, self.ask.deadline)
        return [choice for choice in self.choices.values() if choice.rank[0] * SLOT <= latest]

    async def look_at(self, names: Iterable[str], *, read_ahead: bool = False) -> None:
        """Look once at each of these projects. `read_ahead`: also read the documents that will be needed next."""
        ask, tried, projects = self.ask, self._tried, self._pool.projects
        able: list[tuple[Project, Key, Quota]] = []
        unseen: list[Quota] = []
        for name in dict.fromkeys(names):
            project = projects.by_name.get(name)
            if project is None or name in tried.projects or name in self.choices or name in self.refusals:
                continue
            key = projects.usable_key(
                project, self._model, tried.keys, self.now, ask.prefer_key, ask.tools, tried.trials
            )
            if isinstance(key, Refusal):
                self.refusals[name] = key
            elif key is not None and name in self._without:
                self.refusals[name] = self._without[name]
            elif key is not None:
                owned = projects.quota(name, self.bucket)
                able.append((project, key, owned))
                if owned.document.seen_at == -math.inf:
                    unseen.append(owned)
        if unseen:
            soon = self._pool.candidates.first(self._model, self.now, READ_AT_ONCE) if read_ahead else []
            await projects.read_unseen(unseen + [projects.quota(name, self.bucket) for name in soon])
            self.now = self._soonest()
            # keys may have been removed meanwhile
            able = [found for found in able if projects.project_of.get(found[1].id) == found[0].name]
        booking, candidates = self._pool.booking, self._pool.candidates
        for project, key, owned in able:
            limits = projects.limits_by(owned.document.value, project, self._model)
            found = booking.look(owned, ask.want, limits, self.now, ask.latest(limits), self._presumed)
            if isinstance(found, Refusal):
                self.refusals[project.name] = found
                candidates.refused(self._model, project, ask.want, found)
            else:
                self.choices[project.name] = candidates.ranked(
                    project, key, owned, limits, found, self._smallest, self.now
                )

    async def look_at_others(self) -> None:
        pool, ask = self._pool, self.ask
        limit = pool.candidates.known(self._model).tokens_a_minute
        latest = max(self.now, ask.latest({"tpm": limit} if limit else {}))
        worth, refusals = pool.candidates.others(self._model, self.now, ask.want, latest)
        left = {name: refusal for name, refusal in refusals.items() if name not in self._tried.projects}
        self.refusals = left | self.refusals
        await self.look_at(worth)


class _Sleepers:
    """Lets requests sleep until a time of the store's clock, or until the process stops."""

    def __init__(self, now: Callable[[], float], sleep: Callable[[float], Coroutine[Any, Any, None]]) -> None:
        self._now = now
        self._sleep = sleep
        self._ends_at = math.inf
        self._all: set[asyncio.Future[None]] = set()

    async def until(self, moment: float, owned: Quota | None = None, *, at_most: float = math.inf) -> None:
        """`owned`: the quota whose `wake` ends the sleep early. `at_most`: seconds."""
        wakes = min(moment, self._now() + at_most)
        while (delay := wakes - self._now()) > 0:
            if moment > self._ends_at:
                raise StoppingError
            sleeper = asyncio.ensure_future(self._sleep(delay))
            self._all.add(sleeper)
            if owned is not None:
                owned.sleepers[sleeper] = None
            woken = False
            try:
                await asyncio.wait({sleeper})
                woken = owned is not None and sleeper not in owned.sleepers
            finally:
                sleeper.cancel()
                self._all.discard(sleeper)
                if owned is not None:
                    owned.sleepers.pop(sleeper, None)
            if woken:
                return

    def end(self, within: float) -> None:
        self._ends_at = self._now() + within
        for sleeper in self._all:
            sleeper.cancel()


class Pool:
    def __init__(
        self,
        settings: Settings,
        projects: Projects,
        *,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.settings = settings
        self.projects = projects
        self.now = projects.store.now
        self.booking = Booking(settings, projects)
        self.recovery = Recovery(projects)
        self._strategy = STRATEGIES[settings.strategy]
        self.candidates = Candidates(projects, self.booking, self._strategy)
        self.waiting = 0
        self._sleepers = _Sleepers(self.now, sleep)
        self._uses = itertools.count(1)
        self._sticky: OrderedDict[int, str] = OrderedDict()

    async def reserve(self, model: str, ask: Ask, tried: Tried) -> Reservation | Full:
        """Reserve the best slot for this model and wait until it begins."""
        await self.projects.ready()
        if self.projects.health.value.keys or self.recovery.keys_wait:
            self.recovery.begin()
        self.booking.asked(self.projects.bucket(model), ask.want)
        ahead, asked_store = 0.0, False
        while True:
            began = self.now()
            found = await self._book(model, ask, tried, ahead)
            now = self.now()
            ahead = now - began  # while a slow store commits, a slot that begins now would end
            tried.store.seconds += ahead
            self.projects.store_health.waits.append(ahead)
            if isinstance(found, Reservation):
                if found.slot.start > now:
                    paused = self.booking.pause_until > now
                    tried.waits_for = (
                        PAUSED if paused else self.booking.why_later(found.quota, found.want, found.limits, now)
                    )
                    if ask.booked is not None:
                        ask.booked(found.quota.project)
                if await self._wait_for(found):
                    return found
                await asyncio.sleep(0)  # avoid a busy loop
                continue
            if any(refusal.why == STORE_DOWN for refusal in found.refusals.values()):
                if not asked_store and await self.booking.store_is_back():
                    asked_store = True
                    continue
                raise StoreUnavailableError(self.projects.store_health.why)
            if await self.recovery.revive(model, tried, found.refusals, ask.deadline, ask.tools):
                continue
            tried.waits_for = min(found.refusals.values()).why if found.refusals else None
            if not await self.rest(found.refusals, ask.deadline):
                return found
            probed = [name for name, refusal in found.refusals.items() if refusal.why.kind == "probing"]
            bucket = self.projects.bucket(model)
            await asyncio.gather(*(self.projects.quota(name, bucket).document.refresh(PROBE_AGE) for name in probed))

    async def rest(self, refusals: Mapping[str, Refusal], deadline: float) -> bool:
        """Wait until the first key, project or probe that refused can be asked again, or until keys or their health
        change. Returns False if none of them can be asked again by the deadline."""
        refusals = self.recovery.worth_a_wait(refusals)
        until = max(min((r.until for r in refusals.values()), default=math.inf), self.now() + SHORTEST_SLEEP)
        if until > deadline:
            return False
        projects = self.projects
        health, by_name = projects.health.value, projects.by_name
        self.waiting += 1
        try:
            while self.now() < until and projects.health.value is health and projects.by_name is by_name:
                await self._sleepers.until(until, at_most=REST_CHECK)
                await projects.ready()
                self.recovery.begin()
        finally:
            self.waiting -= 1
        return True

    async def _book(self, model: str, ask: Ask, tried: Tried, ahead: float) -> Reservation | Full:
        """Choose a project and book there, until a booking succeeds or no project is left."""
        projects = self.projects
        reread: set[str] = set()
        refused: Counter[str] = Counter()
        without: dict[str, Refusal] = {}
        """Projects that refused several times. They are left out to avoid a busy loop."""
        while True:
            choice = await self._choose(model, ask, tried, ahead, without, likely_only=len(reread) >= LOOKS)
            if isinstance(choice, Full):
                return choice
            owned, name = choice.quota, choice.project.name
            now = self.now()
            if choice.slot.start > now and name not in reread and self._is_stale(owned):
                reread.add(name)
                await self._refresh(owned, STALE)
                continue
            others = ask.only is None and len(projects.by_name) > 1 and refused[name] + 1 < REFUSED_MOST
            latest = max(choice.slot.start, now + ahead) + SLOT if others else math.inf
            owned.used_at = next(self._uses)
            large = self.candidates.large
            if large:
                self.candidates.pending(model, owned, 1)
            try:
                booked = await self.booking.reserve(choice, model, ask, tried, ahead, latest)
            finally:
                if large:
                    self.candidates.pending(model, owned, -1)
            if isinstance(booked, Reservation):
                projects.used(choice.key, owned.used_at)
                return booked
            refused[name] += 1
            if refused[name] >= REFUSED_MOST:
                without[name] = booked

    async def _choose(
        self,
        model: str,
        ask: Ask,
        tried: Tried,
        ahead: float,
        without: Mapping[str, Refusal],
        *,
        likely_only: bool = False,
    ) -> Choice | Full:
        """Choose a project by the last seen states; the commit decides. A project that the request prefers comes first
        if it has room at once. `likely_only`: leave out slots that were probably taken since the last read."""
        projects = self.projects
        paused, now = self.booking.pause_until, self.now()
        is_paused = paused > max(now, ask.deadline)
        if is_paused:
            without = dict.fromkeys(projects.by_name, Refusal(paused, PAUSED))
        search = _Search(self, model, ask, tried, ahead, without)
        if ask.only is not None or is_paused:
            await search.look_at(projects.by_name if ask.only is None else [ask.only])
        elif (favourite := await self._favourite(search)) is not None:
            return favourite
        else:
            first = self.candidates.first(model, self.booking.earliest(now), tools=ask.tools)
            await search.look_at([*tried.trials, *ask.near, *first], read_ahead=True)
            if len(first) < len(projects.by_name) and not search.likely():
                await search.look_at_others()
        likely = search.likely() or ([] if likely_only else list(search.choices.values()))
        if not likely:
            unlikely = {name: Refusal(choice.rank[0] * SLOT, BUSY) for name, choice in search.choices.items()}
            return Full(search.refusals | unlikely)
        if ask.near:
            at_once = [found for found in likely if found.slot.start <= search.now and found.project.name in ask.near]
            likely = at_once or likely
        return self.candidates.best(likely, search.now)

    async def _favourite(self, search: _Search) -> Choice | None:
        """Returns the project of the preferred key, of the conversation or of a held grant, if it has room at once."""
        ask, projects = search.ask, self.projects
        conversation = self.served_by(ask.sticky)
        if ask.near and conversation not in ask.near:  # copying files there would cost more than it saves
            conversation = None
        for name in (projects.project_of.get(ask.prefer_key or ""), conversation):
            if name is not None:
                await search.look_at([name])
                choice = search.choices.get(name)
                wanted = name == conversation or (choice is not None and choice.key.id == ask.prefer_key)
                if choice is not None and wanted and choice.slot.start <= search.now:
                    return choice
        if self._strategy.prefers_own and not ask.near:
            for name in projects.with_grants(search.bucket):
                await search.look_at([name])
                choice = search.choices.get(name)
                if choice is not None and choice.slot.until and choice.slot.start <= search.now:
                    return choice
        return None

    async def look(self, model: str, ask: Ask) -> Full | None:
        """Returns the refusal of every project, without reserving anything, or None if a project has a slot."""
        await self.projects.ready()
        found = await self._choose(model, ask, Tried(), 0.0, {})
        return found if isinstance(found, Full) else None

    async def pick(
        self,
        model: str | None,
        tried: Tried,
        only: str | None = None,
        prefer: str | None = None,
        home: str | None = None,
    ) -> Key | None:
        """Returns a healthy key for a call that takes no quota: the preferred one, else one of the home project, else
        the one used least recently. `only`: the one project whose keys may be used."""
        projects = self.projects
        await projects.ready()
        self.recovery.begin()
        while True:
            refusals: dict[str, Refusal] = {}
            for project in self._for_a_key(only, prefer, home):
                if project.name in tried.projects:
                    continue
                key = projects.usable_key(project, model or "", tried.keys, self.now(), prefer, trials=tried.trials)
                if isinstance(key, Key):
                    projects.used(key, next(self._uses))
                    tried.trials.discard(key.project)
                    return key
                if key is not None:
                    refusals[project.name] = key
            if not await self.recovery.revive(model or "", tried, refusals, self.now() + PICK_WITHIN):
                return None

    def _for_a_key(self, only: str | None, prefer: str | None, home: str | None) -> Iterable[Project]:
        projects = self.projects
        if only is not None:
            return [projects.by_name[only]] if only in projects.by_name else []
        first = [projects.by_name.get(name or "") for name in (projects.project_of.get(prefer or ""), home)]
        return itertools.chain([project for project in first if project is not None], projects.by_use())

    async def _wait_for(self, reservation: Reservation) -> bool:
        """Sleep until the slot. Returns False if the slot was given back, because it is too late or because the quota,
        project or key rests by now."""
        owned, margin = reservation.quota, self._margin()
        start, now = max(reservation.slot.start + margin, self.booking.pause_until), self.now()
        if start > now:
            self.waiting += 1
            try:
                while start > self.now() and not self._is_void(reservation, start):
                    await self._sleepers.until(start, owned)
                await self._refresh(owned)
            except BaseException:
                reservation.let_go()
                raise
            finally:
                self.waiting -= 1
            now, margin = self.now(), self._margin()
        if self._is_void(reservation, now) or now < self.booking.pause_until or now > reservation.slot.latest - margin:
            reservation.let_go()
            return False
        return True

    def _is_void(self, reservation: Reservation, at: float) -> bool:
        """Whether its quota, project or key rests at that time, or a smaller limit was learned since it was booked."""
        owned, limits, projects = reservation.quota, reservation.limits, self.projects
        state, project = owned.document.value, projects.by_name.get(owned.project)
        if state.cooldown is not None and state.cooldown.until > at and not reservation.slot.probe:
            return True
        if not reservation.trial and projects.is_aside(
            owned.project, reservation.model, reservation.key.id, at, reservation.tools
        ):
            return True
        if not state.learned or project is None:
            return False
        known = projects.limits_by(state, project, reservation.model)
        return any(limit < limits.get(name, math.inf) for name, limit in known.items())

    def is_late(self, reservation: Reservation) -> bool:
        """Whether it is too late to send: Google might count the request in a window that has no room for it."""
        return self.now() > reservation.slot.latest - self._margin()

    def _margin(self) -> float:
        """Returns the seconds to leave out at both ends of a slot if the clock is less exact than allowed for."""
        return min(MARGIN_MOST, max(0.0, self.projects.store.error() - CLOCKS_OFF))

    def _is_stale(self, owned: Quota) -> bool:
        return not owned.document.is_only_writer and self.now() - owned.document.seen_at > STALE

    async def _refresh(self, owned: Quota, old: float = OLD) -> None:
        """Read the document again. If the store does not answer, a slot that is booked may still be used."""
        if not self.projects.store_health.down:
            with suppress(StoreUnavailableError):
                await owned.document.refresh(OLD_ALONE if owned.document.is_only_writer else old)

    def end(self, within: float) -> None:
        """The process stops. A request that would have to wait longer gets StoppingError, and its slot is given
        back."""
        self._sleepers.end(within)
        self.recovery.end(within)

    def served_by(self, conversation: int | None) -> str | None:
        """Returns the project that served this conversation last."""
        return None if conversation is None else self._sticky.get(conversation)

    def stick(self, conversation: int | None, project: str) -> None:
        if conversation is not None and self.settings.sticky:
            self._sticky[conversation] = project
            self._sticky.move_to_end(conversation)
            if len(self._sticky) > STICKY_MOST:
                self._sticky.popitem(last=False)
