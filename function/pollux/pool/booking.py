"""Books the slot that `pool` chose for a request: from a grant or by a commit, or from this instance's safe share while
the store does not answer.
"""

import asyncio
import math
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from pollux.backends.store.contract import StoreUnavailableError
from pollux.pool import grants, quota
from pollux.pool.grants import Grant
from pollux.pool.outage import READ_WITHIN
from pollux.pool.projects import Projects, Quota
from pollux.pool.quota import Slot, State
from pollux.pool.refusals import BUSY, STORE_DOWN, Refusal, Why
from pollux.pool.reservation import Ask, Choice, Reservation, Tried
from pollux.pool.shared_document import Update
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import SLOT, Limits, Want, fast
from pollux.settings import Settings

UNLIMITED_COMMIT = 1.0
"""Seconds between two commits of a quota without known limits, whose requests are only counted."""
PACE_FOR = 5.0
NOTHING_PRESUMED: Limits = MappingProxyType({})
MOST_PACES = 1000
"""Clients may invent names of models."""
PROBE_WITHIN = 1.0
"""Seconds for which a request that would be refused waits to see if the store is back."""


class Pace(NamedTuple):
    """How many requests and tokens a second this instance was asked for in the last seconds."""

    requests: float = 0.0
    tokens: float = 0.0
    at: float = -math.inf

    def after(self, now: float, want: Want) -> "Pace":
        kept = math.exp(min(0.0, self.at - now) / PACE_FOR)
        return Pace(self.requests * kept + want.requests / PACE_FOR, self.tokens * kept + want.tokens / PACE_FOR, now)

    def for_a_grant(self, share: float = 1.0) -> Want:
        return Want(int(self.requests * grants.LIFE * share), int(self.tokens * grants.LIFE * share))


NO_PACE = Pace()


class Booking:
    def __init__(self, settings: Settings, projects: Projects) -> None:
        self.pause_until = 0.0
        """Nothing is booked before this time, because all projects were refused at once."""
        self._settings = settings
        self._strategy = STRATEGIES[settings.strategy]
        self._projects = projects
        self._now = projects.store.now
        self._watch = projects.store_health
        self._paces: dict[str, Pace] = {}
        self._watch.recovered.append(self._recovered)

    def earliest(self, now: float) -> float:
        """Now, or the first slot after a pause."""
        return now if now >= self.pause_until else math.ceil(self.pause_until / SLOT) * SLOT

    def look(
        self,
        owned: Quota,
        want: Want,
        limits: Limits,
        now: float,
        deadline: float,
        presumed: Limits = NOTHING_PRESUMED,
    ) -> Slot | Refusal:
        """Find where the want would be booked by the last seen state; the commit decides. `presumed`: the limits
        assumed for projects without a tier where no other limit is known."""
        if owned.grant is not None and (grant := self._usable_grant(owned, want, limits, now)) is not None:
            return grant.slot
        state = owned.document.value
        found = quota.find(state, now, want, limits, deadline, self._settings.window)
        project = self._projects.by_name.get(owned.project) if presumed else None
        if project is not None and project.tier is None and isinstance(found, Slot):
            found = quota.spaced(state, found, want, limits, presumed)
            found = found if found.start <= max(now, deadline) else Refusal(found.start, BUSY)
        if self._watch.trouble and (limits or not isinstance(found, Slot) or found.probe):  # as `reserve` will see it
            safe = self._safely(owned, want, limits, now, deadline if self._watch.down else now)
            if isinstance(safe, Slot) or self._watch.down:
                return safe
        return found

    def why_later(
        self, owned: Quota, want: Want, limits: Limits, now: float, presumed: Limits = NOTHING_PRESUMED
    ) -> Why:
        """Says why a want cannot be sent now."""
        found = self.look(owned, want, limits, now, now, presumed)
        return found.why if isinstance(found, Refusal) else BUSY

    async def reserve(
        self, choice: Choice, model: str, ask: Ask, tried: Tried, ahead: float, latest: float
    ) -> Reservation | Refusal:
        """Book the slot that was chosen, or another one if the stored state has no room there. `ahead`: how long after
        now it can be sent; `latest`: a slot that starts later is refused."""
        project, owned, limits = choice.project, choice.quota, choice.limits
        grant: Grant | None = None
        if not limits and not choice.slot.probe:  # no limit to enforce: it is only counted
            slot: Slot | Refusal = choice.slot
            if not owned.document.is_full:
                owned.document.add_to_next_commit(partial(quota.book, slot=choice.slot, want=ask.want, limits=limits))
                owned.document.commit_soon(UNLIMITED_COMMIT)
        elif fast(limits) and (grant := await self._from_grant(owned, ask.want, limits, choice.at)) is not None:
            slot = grant.slot
        else:
            slot = await self._without_grant(choice, model, ask, tried, ahead, latest)
        if isinstance(slot, Refusal):
            return slot
        trial = project.name in tried.trials
        tried.trials.discard(project.name)
        return Reservation(choice.key, model, owned, slot, ask.want, limits, grant, ask.tools, trial)

    async def _without_grant(
        self, choice: Choice, model: str, ask: Ask, tried: Tried, ahead: float, latest: float
    ) -> Slot | Refusal:
        owned, want, limits, document = choice.quota, ask.want, choice.limits, choice.quota.document
        deadline = ask.latest(limits)
        now = max(choice.at, self._now())
        if self._watch.trouble:  # a slow store is waited for only where nothing can be had without it
            slot = self._spend(owned, want, limits, now, deadline if self._watch.down else now)
            if isinstance(slot, Slot) or self._watch.down:
                return slot
        reserve = partial(self._reserve, choice=choice, model=model, ask=ask, ahead=ahead, latest=latest)
        before = document.counters.commits, document.counters.conflicts
        try:
            return await document.perform(reserve, partial(_undo, want=want))
        except StoreUnavailableError:
            return self._spend(owned, want, limits, max(choice.at, self._now()), deadline)
        finally:
            tried.store.commits += document.counters.commits - before[0]
            tried.store.conflicts += document.counters.conflicts - before[1]

    def _reserve(
        self, state: State, now: float, choice: Choice, model: str, ask: Ask, ahead: float, latest: float
    ) -> tuple[State, Slot | Refusal]:
        """The change to commit, which runs again after a conflict. It uses the limits of the state it gets, because
        another instance may have learned a smaller one. If other instances were faster and the slot now starts after
        `latest`, the want is refused: another project may have room sooner."""
        limits = self._projects.limits_by(state, choice.project, model)
        start, deadline = self.earliest(now + ahead), ask.latest(limits)
        booked, slot = quota.reserve(state, start, ask.want, limits, deadline, self._settings.window)
        if isinstance(slot, Slot) and slot.start > latest:
            return state, Refusal(slot.start, BUSY)
        return booked, slot

    # --- grants -------------------------------------------------------------------------------------------------------

    def asked(self, bucket: str, want: Want) -> None:
        """Count a request for this bucket. Called once for each request, before a project is chosen."""
        if len(self._paces) >= MOST_PACES:
            self._paces.clear()
        self._paces[bucket] = self._paces.get(bucket, NO_PACE).after(self._now(), want)

    def _usable_grant(self, owned: Quota, want: Want, limits: Limits, now: float) -> Grant | None:
        """Returns the held grant if the want may be spent from it. After a refusal it may not. A grant that is over is
        given back."""
        grant = owned.grant
        if grant is None:
            return None
        if grant.is_over(now) or not fast(limits):
            owned.retire()
            return None
        return grant if owned.document.value.cooldown is None and grant.fits(want, now) else None

    async def _from_grant(self, owned: Quota, want: Want, limits: Limits, at: float) -> Grant | None:
        """Spend the want from the grant that is held or arrives, and return the grant. If there is none, ask for one
        with the commit that this request needs anyway."""
        if owned.grant_coming is not None:
            await asyncio.wait({owned.grant_coming})
        grant = self._usable_grant(owned, want, limits, max(at, self._now()))
        if grant is not None:
            grant.add(want)
        elif owned.grant_coming is None and owned.grant is None and at <= self._now() and not self._watch.down:
            self._ask(owned, limits)
        return grant

    def _ask(self, owned: Quota, limits: Limits) -> None:
        """Ask for as much as is used in 3 s at the present pace, or for one project's share of it where the strategy
        spreads the load over all projects."""
        share = 1.0 if self._strategy.prefers_own else 1 / max(1, len(self._projects.by_name))
        wanted = self._paces.get(owned.bucket, NO_PACE).for_a_grant(share)
        if wanted.requests < grants.LEAST:
            return
        take = partial(grants.take, wanted=wanted, limits=limits, window=self._settings.window)
        owned.grant_coming = coming = owned.document.apply(take)
        coming.add_done_callback(partial(self._arrived, owned))

    def _arrived(self, owned: Quota, coming: "asyncio.Future[Grant | None]") -> None:
        owned.grant_coming = None
        if not coming.cancelled() and coming.exception() is None and (grant := coming.result()) is not None:
            owned.grant = grant
            owned.grants_taken += 1
            self._projects.granted.setdefault(owned.bucket, {})[owned.project] = owned

    # --- while the store does not answer ------------------------------------------------------------------------------

    def _safely(self, owned: Quota, want: Want, limits: Limits, now: float, deadline: float) -> Slot | Refusal:
        document = owned.document
        if self._settings.store_down == "closed" or now - document.seen_at > READ_WITHIN or document.is_full:
            return Refusal(now + PROBE_WITHIN, STORE_DOWN)
        return owned.safe.find(
            document.value, now, want, limits, deadline, self._settings.window, instances=self._settings.most_instances
        )

    def _spend(self, owned: Quota, want: Want, limits: Limits, now: float, deadline: float) -> Slot | Refusal:
        """Spend from the safe share. Its commit runs in the background and shows whether the store is back."""
        slot = self._safely(owned, want, limits, now, deadline)
        if isinstance(slot, Slot):
            owned.safe.spend(now, slot, want)
            owned.document.submit_later(partial(quota.book, slot=slot, want=want, limits=limits))
        return slot

    async def store_is_back(self) -> bool:
        """Try a commit that changes nothing, for a second at most. All waiting requests share it."""
        health = self._projects.health
        if not health.uncommitted:
            health.add_to_next_commit(lambda value, _: value)
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_WITHIN):
                await health.flush()
        return not self._watch.down

    def _recovered(self) -> None:
        """Commit what was spent while the store did not answer."""
        for owned in self._projects.quotas.values():
            owned.document.commit_soon(0)


def _undo(found: Slot | Refusal, want: Want) -> Update[State] | None:
    """Returns the change that gives the slot back, for a client that left while its slot was being committed."""
    if isinstance(found, Refusal):
        return None
    return lambda state, _: quota.give_back(state, found, want)
