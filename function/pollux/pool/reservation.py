"""What a request asks of the pool, where it has been, and what it got: a slot, which is settled or given back."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pollux.backends.keys.contract import Key
from pollux.pool import quota
from pollux.pool.grants import Grant
from pollux.pool.projects import Quota
from pollux.pool.quota import Slot, State
from pollux.pool.refusals import Refusal, Why
from pollux.pool.store_health import StoreUse
from pollux.pool.windows import NOTHING, Limits, Want

PATIENCE = 65.0
"""A want above a quarter of the token limit may be booked this much later: among small ones it would starve."""


class StoppingError(Exception):
    """The process stops before the slot that a request waits for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs of the pool, whichever model serves it."""

    want: Want
    deadline: float
    patient: bool = True
    """The client set no limit of its own: a big want may wait longer."""
    sticky: int | None = None
    prefer_key: str | None = None
    only: str | None = None
    """The one project that can serve it."""
    near: frozenset[str] = frozenset()
    """Projects that have what it needs: they come first, if they have room at once."""
    tools: frozenset[str] = frozenset()
    """Those that Google counts by themselves: projects where one of them rests do not serve it."""
    booked: Callable[[str], None] | None = None
    """Is told the project of a slot that lies ahead."""

    def latest(self, limits: Limits) -> float:
        """Until when its slot may start in a quota with these limits."""
        big = self.patient and self.want.tokens * 4 > limits.get("tpm", math.inf)
        return self.deadline + PATIENCE if big else self.deadline


@dataclass(slots=True)
class Tried:
    """Where this request has been already, for one model."""

    projects: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    reread: set[str] = field(default_factory=set)
    """Keys whose source was read again after a refusal."""
    hoped: set[str] = field(default_factory=set)
    """Keys that were refused once, and may be used again if a free call finds them well."""
    rested: set[str] = field(default_factory=set)
    """Projects that refused once and may be asked again after their rest."""
    troubled: set[str] = field(default_factory=set)
    """Projects where Google had trouble: others come first."""
    trials: set[str] = field(default_factory=set)
    """Projects that are set aside, and that this request asks once all the same, because nothing else can serve."""
    tries: set[str] = field(default_factory=set)
    """All that were such."""
    waits_for: Why | None = None
    """What kept the request waiting last, as a refusal says it."""
    store: StoreUse = field(default_factory=StoreUse)
    """What the store was asked for on its way; of all models together, where the same one is given."""

    def refused(self, project: str, *, again: bool) -> None:
        """A project is asked once; twice if it is worth asking it again after its rest."""
        if again and project not in self.rested:
            self.rested.add(project)
        else:
            self.projects.add(project)

    def key_refused(self, key_id: str, *, probed: bool) -> None:
        """A key is used once; twice if a probe that ends its rest found it well in between."""
        if probed and key_id not in self.hoped:
            self.hoped.add(key_id)
        else:
            self.keys.add(key_id)

    def elsewhere(self) -> "Tried":
        """The same without the projects where Google had trouble."""
        return replace(self, projects=self.projects | self.troubled)


@dataclass(slots=True, eq=False)
class Reservation:
    key: Key
    model: str
    quota: Quota
    slot: Slot
    want: Want
    limits: Limits
    grant: Grant | None = None
    tools: frozenset[str] = frozenset()
    trial: bool = False
    """The project, or what the request needs of it, is set aside; the request tries whether it is well again."""
    sent: bool = False

    def give_back(self) -> None:
        """Free the slot of a request that is not sent, with a commit that nobody waits for."""
        if not self.sent:
            self.sent = True
            if self.grant is not None and not self.grant.closed:
                self.grant.add(self.want.times(-1))
            else:
                slot, want = self.slot, self.want
                self.quota.document.submit(lambda state, _: quota.give_back(state, slot, want))

    def let_go(self) -> None:
        """However the request ended: free what it still holds, its slot and its probe."""
        self.give_back()
        self.release()

    def release(self) -> None:
        """Let other requests probe, if no answer settled this probe. Does nothing for others, or a second time."""
        slot, document = self.slot, self.quota.document
        if slot.probe:
            self.slot = slot._replace(probe="")  # another request may hold a lease of the same slot later
            if quota.release(document.value, slot) is not document.value:
                document.submit(lambda state, _: quota.release(state, slot))

    def settle(self, tokens: int | None) -> "asyncio.Future[None] | None":
        """Put the true tokens in the place of the estimate. A commit to wait for, only where the difference matters."""
        slot, booked, document = self.slot, self.want, self.quota.document
        if tokens is None or tokens == booked.tokens:
            return None
        self.want = booked._replace(tokens=tokens)
        if self.grant is not None and not self.grant.closed:
            # Only what the grant does not hold is booked: otherwise no other instance would know of it.
            slot, booked, tokens = self.grant.slot, NOTHING, self.grant.settle(tokens - booked.tokens)

        def update(state: State, _: float) -> State:
            return quota.settle(state, slot, booked, tokens)

        more = abs(tokens - booked.tokens)
        limit = self.limits.get("tpm") or self.limits.get("tpd")
        if limit and more * 100 > limit:
            document.submit(update)
            return asyncio.ensure_future(document.flush())
        if more:
            document.add_to_next_commit(update)
        return None


@dataclass(frozen=True, slots=True)
class Full:
    """No project has a slot for this model in time: what each of them said."""

    model: str
    refusals: Mapping[str, Refusal]

    @property
    def until(self) -> float:
        return min((refusal.until for refusal in self.refusals.values()), default=math.inf)
