"""What a request asks of the pool, where it has been, and what it got: a slot, which is settled or given back."""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from pollux import quota
from pollux.desk import returned
from pollux.grants import Grant
from pollux.keys import Key
from pollux.quota import Refusal, Slot, State
from pollux.roster import Quota
from pollux.storewatch import StoreUse
from pollux.windows import MINUTE_LIMITS, Limits, Want


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
    booked: Callable[[str], None] | None = None
    """Is told the project of a slot that lies ahead."""


@dataclass(slots=True)
class Tried:
    """Where this request has been already, for one model."""

    projects: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    reread: set[str] = field(default_factory=set)
    """Keys whose source was read again after a refusal."""
    taught: dict[str, str] = field(default_factory=dict)
    """Project -> key, where a refusal taught a limit of the minute that was not known."""
    readmitted: set[str] = field(default_factory=set)
    trials: set[str] = field(default_factory=set)
    """Projects that are set aside, and that this request asks once all the same, because nothing else can serve."""
    tries: int = 0
    """How often it did so."""
    store: StoreUse = field(default_factory=StoreUse)
    """What the store was asked for on its way; of all models together, where the same one is given."""

    def leave(self, project: str, key: str, learned: Collection[str]) -> None:
        """After a refusal, with the limits that it taught."""
        self.projects.add(project)
        if not set(MINUTE_LIMITS).isdisjoint(learned):
            self.taught[project] = key

    def readmit(self) -> bool:
        """Nobody else is left: wait, once, for those whose limit is known by now. True if there are any."""
        back = {project: key for project, key in self.taught.items() if project not in self.readmitted}
        self.readmitted |= set(back)
        self.projects -= set(back)
        self.keys -= set(back.values())
        return bool(back)


@dataclass(slots=True, eq=False)
class Reservation:
    key: Key
    model: str
    quota: Quota
    slot: Slot
    want: Want
    limits: Limits
    grant: Grant | None = None
    sent: bool = False

    def give_back(self) -> None:
        """It will not be sent: its slot is free for others. Nobody waits for the commit."""
        if not self.sent:
            self.sent = True
            if self.grant is not None and not self.grant.closed:
                self.grant.add(Want(*(-amount for amount in self.want)))
            else:
                self.quota.ledger.submit(returned(self.slot, self.want))

    def let_go(self) -> None:
        """Whatever became of it, it holds nothing any more that somebody else could use."""
        self.give_back()
        self.release()

    def release(self) -> None:
        """However it ended: a probe that no answer settled holds back nobody else. Once; for others it does nothing."""
        slot, ledger = self.slot, self.quota.ledger
        if slot.probe:
            self.slot = slot._replace(probe="")  # another request may hold a lease of the same slot later
            if quota.release(ledger.value, slot) is not ledger.value:
                ledger.submit(lambda state, _: (quota.release(state, slot), None))

    def settle(self, tokens: int | None) -> "asyncio.Future[None] | None":
        """Put the true tokens in the place of the estimate. A commit to wait for, only where the difference matters."""
        booked = self.want
        if tokens is None or tokens == booked.tokens:
            return None
        self.want = booked._replace(tokens=tokens)
        more, ledger = tokens - booked.tokens, self.quota.ledger
        if self.grant is not None and not self.grant.closed:
            more = self.grant.settle(more)  # what it does not hold must be booked, or nobody else would know
            change = partial(_amended, slot=self.grant.slot, more=more)
        else:
            change = partial(_settled, slot=self.slot, booked=booked, tokens=tokens)
        limit = self.limits.get("tpm") or self.limits.get("tpd")
        if limit and abs(more) * 100 > limit:
            ledger.submit(change)
            return asyncio.ensure_future(ledger.flush())
        if more:
            ledger.ride(change)
        return None


@dataclass(frozen=True, slots=True)
class Full:
    """No project has a slot for this model in time: what each of them said."""

    model: str
    refusals: Mapping[str, Refusal]

    @property
    def until(self) -> float:
        return min((refusal.until for refusal in self.refusals.values()), default=math.inf)


def _amended(state: State, _: float, slot: Slot, more: int) -> tuple[State, None]:
    return quota.amend(state, slot, Want(0, more)), None


def _settled(state: State, _: float, slot: Slot, booked: Want, tokens: int) -> tuple[State, None]:
    return quota.settle(state, slot, booked, tokens), None
