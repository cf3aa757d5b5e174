"""What a request asks of the pool, what was tried for it, and the slot that it got, which is settled or given back."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pollux.backends.keys.contract import Key
from pollux.pool import quota
from pollux.pool.grants import Grant
from pollux.pool.projects import Project, Quota
from pollux.pool.quota import Slot, State
from pollux.pool.refusals import Refusal, Why
from pollux.pool.store_health import StoreUse
from pollux.pool.windows import NOTHING, Limits, Want

PATIENCE = 65.0
"""How much later than its deadline a large request may be booked. Otherwise small requests would starve it."""


class StoppingError(Exception):
    """The process stops before the slot that a request waits for begins."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs of the pool, whichever model serves it."""

    want: Want
    deadline: float
    patient: bool = True
    """The client set no limit of its own, so a large request may wait longer."""
    sticky: int | None = None
    prefer_key: str | None = None
    only: str | None = None
    """The one project that can serve it."""
    near: frozenset[str] = frozenset()
    """Projects that have what it needs: they come first if they have room at once."""
    tools: frozenset[str] = frozenset()
    """Tools with a counter of their own at Google: a project where one of them rests is left out."""
    booked: Callable[[str], None] | None = None
    """Called with the project's name when a slot in the future was booked."""

    def latest(self, limits: Limits) -> float:
        """Returns the latest start of its slot in a quota with these limits."""
        large = self.patient and self.want.tokens * 4 > limits.get("tpm", math.inf)
        return self.deadline + PATIENCE if large else self.deadline


@dataclass(slots=True)
class Tried:
    """What was tried for this request so far, for one model."""

    projects: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    reread: set[str] = field(default_factory=set)
    """Keys whose value was read again after a refusal."""
    refused_once: set[str] = field(default_factory=set)
    """Keys that were refused once, and may be used again if a free call finds them well."""
    rested: set[str] = field(default_factory=set)
    """Projects that refused once and may be asked again after their rest."""
    troubled: set[str] = field(default_factory=set)
    """Projects where Google had trouble: others come first."""
    trials: set[str] = field(default_factory=set)
    """Projects that rest, but that this request may ask once because no other can serve it."""
    all_trials: set[str] = field(default_factory=set)
    """All projects that were ever in `trials`."""
    waits_for: Why | None = None
    """Why the request waited last."""
    store: StoreUse = field(default_factory=StoreUse)
    """What the request asked of the store. The models of a chain may share it."""

    def refused(self, project: str, *, again: bool) -> None:
        """A project is asked once, or twice if it is worth asking again after its rest."""
        if again and project not in self.rested:
            self.rested.add(project)
        else:
            self.projects.add(project)

    def key_refused(self, key_id: str, *, probed: bool) -> None:
        """A key is used once, or twice if a free call found it well in between."""
        if probed and key_id not in self.refused_once:
            self.refused_once.add(key_id)
        else:
            self.keys.add(key_id)

    def elsewhere(self) -> "Tried":
        """Returns a copy that also excludes the projects where Google had trouble."""
        return replace(self, projects=self.projects | self.troubled)


class Choice(NamedTuple):
    """A project that has room for a request, the key to use, and the slot."""

    rank: tuple[float, ...]
    """The smallest comes first."""
    project: Project
    key: Key
    quota: Quota
    limits: Limits
    slot: Slot
    at: float
    """The time for which the slot was looked up: now, or later."""


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
    """The project, or what the request needs of it, rests. The request tests if it works again."""
    sent: bool = False

    def let_go(self) -> None:
        """Free the slot if the request was not sent, and the probe. The commit runs in the background."""
        if not self.sent:
            self.sent = True
            if self.grant is not None and not self.grant.closed:
                self.grant.add(self.want.times(-1))
            else:
                slot, want = self.slot, self.want
                self.quota.document.submit(lambda state, _: quota.give_back(state, slot, want))
        if self.slot.probe:
            self.release()

    def release(self) -> None:
        """Let another request probe, unless an answer ended this probe already."""
        slot, document = self.slot, self.quota.document
        self.slot = slot._replace(probe="")  # another request may hold a lease of the same slot later
        if quota.release(document.value, slot) is not document.value:
            document.submit(lambda state, _: quota.release(state, slot))

    def settle(self, tokens: int | None) -> "asyncio.Future[None] | None":
        """Replace the estimate with the true tokens. Returns a commit to wait for if the difference is large."""
        slot, booked, document = self.slot, self.want, self.quota.document
        if tokens is None or tokens == booked.tokens:
            return None
        self.want = booked._replace(tokens=tokens)
        if self.grant is not None and not self.grant.closed:
            # Only what the grant does not hold is booked: otherwise no other instance would know of it.
            slot, booked, tokens = self.grant.slot, NOTHING, self.grant.settle(tokens - booked.tokens)
        more = abs(tokens - booked.tokens)
        if not more:
            return None

        def update(state: State, _: float) -> State:
            return quota.settle(state, slot, booked, tokens)

        limit = self.limits.get("tpm") or self.limits.get("tpd")
        if limit and more * 100 > limit:
            document.submit(update)
            return asyncio.ensure_future(document.flush())
        document.add_to_next_commit(update)
        return None


class Full(NamedTuple):
    """No project has a slot for the model in time. `refusals`: what each of them said."""

    refusals: Mapping[str, Refusal]
