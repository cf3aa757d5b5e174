"""Books a want in the quota that was chosen for it: from a grant, by a commit, or from this instance's safe share while
the store does not answer. Which quota that is, is `pool`'s to say.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from pollux import grants, quota
from pollux.grants import Grant, Pace
from pollux.ledger import Change
from pollux.quota import Slot, State
from pollux.reasons import BUSY, STORE_DOWN, Refusal, Why
from pollux.roster import Quota, Roster
from pollux.safe import READ_WITHIN
from pollux.settings import Settings
from pollux.store import StoreUnavailableError
from pollux.storewatch import StoreUse
from pollux.windows import Limits, Want, fast

UNLIMITED_COMMIT = 1.0
NO_PACE = Pace()
NOTHING_PRESUMED: Limits = MappingProxyType({})
MOST_PACES = 1000
"""Clients may invent names of models."""
PROBE_WITHIN = 1.0
"""How long a request waits for word that the store is back, before it is refused."""


class Booked(NamedTuple):
    slot: Slot
    grant: Grant | None = None


Reserve = Callable[[State, float], tuple[State, Slot | Refusal]]


class Desk:
    def __init__(self, settings: Settings, roster: Roster) -> None:
        self._settings = settings
        self._roster = roster
        self._watch = roster.watch
        self._paces: dict[str, Pace] = {}
        self._watch.recovered.append(self._recovered)

    def look(
        self,
        owned: Quota,
        want: Want,
        limits: Limits,
        now: float,
        deadline: float,
        presumed: Limits = NOTHING_PRESUMED,
    ) -> Slot | Refusal:
        """Where the want would go, as far as is known here; a commit decides. `presumed`: what others of its kind have,
        where its own limits are not known."""
        grant = self._held(owned, want, limits, now)
        if grant is not None:
            return grant.slot
        state = owned.ledger.value
        found = quota.find(state, now, want, limits, deadline, self._settings.window)
        if presumed and isinstance(found, Slot):
            found = quota.spaced(state, found, want, limits, presumed)
            found = found if found.start <= max(now, deadline) else Refusal(found.start, BUSY)
        if self._watch.trouble and (limits or not isinstance(found, Slot) or found.probe):  # as `book` will see it
            safe = self._safely(owned, want, limits, now, deadline if self._watch.down else now)
            if isinstance(safe, Slot) or self._watch.down:
                return safe
        return found

    def why_later(self, owned: Quota, want: Want, limits: Limits) -> Why:
        """What keeps a want from being sent now."""
        now = self._roster.store.now()
        held = self.look(owned, want, limits, now, now)
        return held.why if isinstance(held, Refusal) else BUSY

    async def book(
        self,
        owned: Quota,
        want: Want,
        limits: Limits,
        found: Slot,
        at: float,
        deadline: float,
        reserve: Reserve,
        use: StoreUse,
    ) -> Booked | Refusal:
        """`found` is what `look` said for the time `at`; `reserve` decides by the state that is really there."""
        ledger = owned.ledger
        if not limits and not found.probe:  # nothing to enforce: counted in memory, committed now and then
            if not ledger.is_full:
                ledger.ride(partial(_booked, slot=found, want=want, limits=limits))
                ledger.commit_soon(UNLIMITED_COMMIT)
            return Booked(found)
        if fast(limits) and (booked := await self._from_grant(owned, want, limits, at)):
            return booked
        now = max(at, self._roster.store.now())
        if self._watch.trouble:  # a slow store is waited for, but only where nothing can be had without it
            slot = self._spend(owned, want, limits, now, deadline if self._watch.down else now)
            if isinstance(slot, Slot):
                return Booked(slot)
            if self._watch.down:
                return slot
        before = ledger.counters.commits, ledger.counters.conflicts
        try:
            slot = await ledger.perform(reserve, partial(_undo, want=want))
        except StoreUnavailableError:
            slot = self._spend(owned, want, limits, max(at, self._roster.store.now()), deadline)
        finally:
            use.commits += ledger.counters.commits - before[0]
            use.conflicts += ledger.counters.conflicts - before[1]
        return Booked(slot) if isinstance(slot, Slot) else slot

    def asked(self, bucket: str, want: Want) -> None:
        """A request asks, once, wherever it goes."""
        if len(self._paces) >= MOST_PACES:
            self._paces.clear()
        self._paces[bucket] = self._paces.get(bucket, NO_PACE).after(self._roster.store.now(), want)

    def _held(self, owned: Quota, want: Want, limits: Limits, now: float) -> Grant | None:
        """The grant that covers the want. One that nobody will spend any more goes back."""
        grant = owned.purse.grant
        if grant is None:
            return None
        if grant.is_over(now) or not fast(limits):
            owned.retire()
            return None
        return owned.purse.held(owned.ledger.value, want, now)

    async def _from_grant(self, owned: Quota, want: Want, limits: Limits, at: float) -> Booked | None:
        """Out of the grant that is held, or that is on its way. If there is none, one is asked for with the commit that
        this request needs anyway."""
        purse = owned.purse
        if purse.coming is not None:
            await asyncio.wait({purse.coming})
        now = max(at, self._roster.store.now())
        grant = self._held(owned, want, limits, now)
        if grant is not None:
            grant.add(want)
            return Booked(grant.slot, grant)
        if purse.coming is None and purse.grant is None and at <= self._roster.store.now() and not self._watch.down:
            self._ask(owned, limits)
        return None

    def _ask(self, owned: Quota, limits: Limits) -> None:
        """As much as is used in a grant's life, at the pace of late; other strategies spread that over all projects."""
        share = 1.0 if self._settings.strategy == "earliest" else 1 / max(1, len(self._roster.projects))
        wanted = self._paces.get(owned.bucket, NO_PACE).for_a_grant(share)
        if wanted.requests < grants.LEAST:
            return
        take = partial(grants.take, wanted=wanted, limits=limits, window=self._settings.window)
        owned.purse.coming = coming = owned.ledger.apply(take)
        coming.add_done_callback(partial(self._arrived, owned))

    def _arrived(self, owned: Quota, coming: "asyncio.Future[Grant | None]") -> None:
        owned.purse.coming = None
        if not coming.cancelled() and coming.exception() is None and (grant := coming.result()) is not None:
            owned.purse.grant = grant
            owned.purse.taken += 1
            self._roster.granted.setdefault(owned.bucket, {})[owned.project] = owned

    def _safely(self, owned: Quota, want: Want, limits: Limits, now: float, deadline: float) -> Slot | Refusal:
        ledger = owned.ledger
        if self._settings.store_down == "closed" or now - ledger.seen_at > READ_WITHIN or ledger.is_full:
            return Refusal(now + PROBE_WITHIN, STORE_DOWN)
        return owned.safe.find(
            ledger.value, now, want, limits, deadline, self._settings.window, instances=self._settings.most_instances
        )

    def _spend(self, owned: Quota, want: Want, limits: Limits, now: float, deadline: float) -> Slot | Refusal:
        """From the safe share. It is booked with a commit that nobody waits for, which also tries the store."""
        slot = self._safely(owned, want, limits, now, deadline)
        if isinstance(slot, Slot):
            owned.safe.spend(now, slot, want)
            owned.ledger.submit_later(partial(_booked, slot=slot, want=want, limits=limits))
        return slot

    async def store_is_back(self) -> bool:
        """Try a commit that changes nothing, one for all who wait, and not for long."""
        health = self._roster.health
        if not health.riding:
            health.ride(lambda value, _: (value, None))
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_WITHIN):
                await health.flush()
        return not self._watch.down

    def _recovered(self) -> None:
        """What was spent meanwhile is booked now."""
        for owned in self._roster.quotas.values():
            owned.ledger.commit_soon(0)


# Changes of a quota's state, as `ledger` takes them.


def _booked(state: State, now: float, slot: Slot, want: Want, limits: Limits) -> tuple[State, None]:
    return quota.book(state, now, slot, want, limits), None


def returned(slot: Slot, want: Want) -> Change[State, None]:
    return lambda state, _: (quota.give_back(state, slot, want), None)


def _undo(found: Slot | Refusal, want: Want) -> Change[State, None] | None:
    """The client left while its slot was being committed."""
    return None if isinstance(found, Refusal) else returned(found, want)
