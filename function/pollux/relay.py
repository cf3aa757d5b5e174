"""The life of one request: reserve, send, judge, retry or fall back, until the client has its answer.

What is chosen and counted is in `pool`; a single call upstream, in `attempts`; what an answer means, in `verdict`.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pollux import reasons, uncounted, wire
from pollux.affinity import Affinity
from pollux.attempts import AGAIN_WITHIN, Attempts, Failure, backoff
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.listing import Listing, is_list
from pollux.owners import Owners
from pollux.pool import Ask, Full, Pool, Reservation, Tried
from pollux.pooled.using import Using
from pollux.questions import Questions
from pollux.resources import Resources
from pollux.upstream import Upstream
from pollux.verdict.causes import PROBED
from pollux.windows import MINUTE_LIMITS

PAID_BY_THE_PIECE = frozenset({"image", "video", "music"})
HELD_S = 10.0
"""So long a slot is held for a request that waits for a copy of its file."""


@dataclass(slots=True)
class Progress:
    """How far a request has come, over all models: what decides whether it is sent again, and what the client is told
    when nothing is left. It does not grow, however many projects refuse.
    """

    wanted: str
    """The model that the client asked for."""
    until: float = math.inf
    """After this nothing is sent again. Known once it could be sent for the first time."""
    troubles: int = 0
    told: Failure | None = None
    """The first failure of the wanted model that is the client's to hear: no key, project or quota is to blame."""
    full: Full | None = None
    """What the projects said when none had a slot for the wanted model."""

    def failed(self, failure: Failure) -> None:
        ours = failure.verdict.blames in ("key", "project", "quota")
        if self.told is None and self.full is None and failure.model == self.wanted and not ours:
            self.told = failure


class Relay:
    def __init__(
        self,
        pool: Pool,
        upstream: Upstream,
        affinity: Affinity,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.pool = pool
        self.attempts = Attempts(pool, upstream, Resources(affinity, pool.settings.upstream))
        self.questions = Questions(self.attempts, upstream)
        pool.recovery.free_call = self.questions.free_call
        self.owners = Owners(pool, affinity, self.questions)
        self._listing = Listing(self.attempts, self.questions, self.owners, affinity)
        self._settings = pool.settings
        self._catalog = pool.roster.catalog
        self._sleep = sleep
        self._jitter = jitter

    async def run(self, x: Exchange) -> None:
        await self.owners.place(x)
        if self.pooled is not None and await self.pooled.release(x):
            return
        try:
            if is_list(x.method, x.call):
                await self._listing.run(x)
            elif x.call.counted and x.call.model:
                await self._counted(x)
            else:
                if self.pooled is not None and x.files is not None:
                    await self.pooled.held(x)
                await uncounted.run(x, self.attempts, self.owners.moved, self._sleep, self._jitter)
        finally:
            if x.files is not None:
                await x.files.close()

    @property
    def pooled(self) -> Using | None:
        return self.owners.pooled

    async def _counted(self, x: Exchange) -> None:
        chain = self._catalog.chain(x.call.model or "", x.mode)
        cached = any(name.startswith("cachedContents/") for name in x.names)  # made for one model
        chain = chain if x.fallback and not cached else chain[:1]
        x.record.wanted = chain[0]
        ask = x.ask(self._catalog.generation(chain[0]), self._catalog.kind(chain[0]))
        ask = await self._sized(x, chain[0], ask)
        x.record.estimated = ask.want.tokens
        progress = Progress(chain[0])
        tried = {model: Tried(store=x.record.store) for model in chain}
        for deadline in self._passes(x, len(chain)):
            for model in chain:
                asked = replace(ask, deadline=deadline, patient=ask.patient and deadline == x.deadline)
                if await self._on_model(x, model, asked, tried[model], progress, last=model == chain[-1]):
                    return
        await self._refuse(x, ask, progress)

    def _passes(self, x: Exchange, models: int) -> Sequence[float]:
        """The deadlines to try the chain with: first a short one, if falling back comes before waiting long."""
        after = self._settings.fallback_after
        if after is None or models == 1 or self.pool.now() + after >= x.deadline:
            return (x.deadline,)
        return (self.pool.now() + after, x.deadline)

    async def _on_model(
        self, x: Exchange, model: str, ask: Ask, tried: Tried, progress: Progress, *, last: bool
    ) -> bool:
        """True when the client has its answer."""
        while self._may_be_sent(x, progress):
            found = await self._reserve(x, model, ask, tried)
            if isinstance(found, Full):
                progress.full = found if model == progress.wanted else progress.full
                asked_all = not found.refusals and (tried.projects or tried.keys)
                limits = self.pool.roster.limits_of_all(model) if asked_all else ()
                said = reasons.no_slot(model, found.refusals, self.pool.now(), ask.deadline, ask.want, limits)
                x.noted(Attempt(model, "", "", said.cause, None, detail=said.detail))
                return False
            if not await self._at_hand(x, found, tried):
                continue
            progress.until = min(progress.until, max(x.deadline, self.pool.now() + AGAIN_WITHIN))
            if not await self.attempts.in_time(found):
                continue
            failure = await self.attempts.reserved(x, found)
            if failure is None:
                return True
            if self.pooled is not None and await self.pooled.lost(x, failure):
                continue
            progress.failed(failure)
            ask = replace(ask, prefer_key=None)
            match failure.verdict.action:
                case "next-key":
                    if not await self.attempts.key_changed(found.key, failure.verdict, tried):
                        tried.key_refused(found.key.id, probed=failure.verdict.cause in PROBED)
                case "next-project":
                    tried.refused(found.quota.project, again=self._is_worth_a_wait(x, found, failure))
                case "retry" if self._may_have_made(x, model, ask, failure):
                    await self.attempts.give(x, failure)
                    return True
                case "retry":
                    tried.troubled.add(found.quota.project)
                    progress.troubles += 1
                    if progress.troubles + (not last) >= self._settings.max_attempts:
                        return False  # the last try is for the next model, if there is one
                    if self._may_be_sent(x, progress):
                        await self._sleep(backoff(progress.troubles, self._jitter()))
                case "same-project" if x.only is None and (server := self._elsewhere(x, found)) is not None:
                    ask = replace(ask, only=server)
                    tried.projects.discard(server)
                case _ if await self.owners.moved(x, failure):
                    ask = replace(ask, only=x.only)
                case _:
                    # The refusal of a model that the client never asked for is not its business.
                    if model != progress.wanted:
                        return False
                    await self.attempts.give(x, failure)
                    return True
        return False

    def _may_be_sent(self, x: Exchange, progress: Progress) -> bool:
        """Once more, as far as this request is concerned."""
        trouble = progress.troubles >= self._settings.max_attempts
        return x.can_be_sent and not trouble and self.pool.now() <= progress.until

    def _may_have_made(self, x: Exchange, model: str, ask: Ask, failure: Failure) -> bool:
        """Sent again, it might make a second thing, which is paid for. Google says when it did not begin with one."""
        if failure.unsent:
            return False
        paid = ask.want.images > 0 or self._catalog.kind(model) in PAID_BY_THE_PIECE
        return wire.is_resource_call(x.call) or (paid and failure.verdict.cause != "overloaded")

    def _is_worth_a_wait(self, x: Exchange, found: Reservation, failure: Failure) -> bool:
        """Whether to ask the project once more after its rest: its limit is known by now, or no other can serve, or it
        is a tool that rests, and with it for every model of the chain."""
        now, owned = self.pool.now(), found.quota
        cooling = owned.ledger.value.cooldown
        rests = cooling is not None and cooling.until > now
        rests = rests or self.pool.roster.is_aside(owned.project, found.model, found.key.id, now, found.tools)
        alone = x.only is not None or failure.verdict.cause == "tool-quota"
        return rests and (alone or not failure.verdict.learned.keys().isdisjoint(MINUTE_LIMITS))

    async def _reserve(self, x: Exchange, model: str, ask: Ask, tried: Tried) -> Reservation | Full:
        """A slot, rather where the files are that the request names."""
        if self.pooled is not None and x.files is not None:
            tried.projects |= await self.pooled.out_of_reach(x)
            ask = replace(ask, near=x.files.brought or self.pooled.near(x), booked=partial(self.pooled.prefetch, x))
        began = self.pool.now()
        found: Reservation | Full | None = None
        if tried.troubled and ask.only is None:  # elsewhere, if there is room at once
            found = await self.pool.reserve(model, replace(ask, deadline=began, patient=False), tried.elsewhere())
        if found is None or isinstance(found, Full):
            found = await self.pool.reserve(model, ask, tried)
        x.record.wait(model, tried.waits_for, self.pool.now() - began)
        tried.waits_for = None
        return found

    async def _at_hand(self, x: Exchange, found: Reservation, tried: Tried) -> bool:
        """Whether the project has the files that the request names. If not, they are copied there, and another slot is
        looked for, which may be there or elsewhere. Meanwhile the slot is held for a while: of many requests the next
        ones go on to other projects.
        """
        project = found.quota.project
        if self.pooled is None or x.files is None:
            return True
        x.files.brought = frozenset()
        if project in self.pooled.near(x):
            self.pooled.rename(x, project)
            return True
        held = asyncio.get_running_loop().call_later(HELD_S, found.let_go)
        try:
            if await self.pooled.bring(x, project):
                x.files.brought = frozenset({project})
            elif x.only is not None:
                raise self.pooled.unreachable(x)
            else:
                tried.projects.add(project)
        finally:
            held.cancel()
            found.let_go()
        return False

    def _elsewhere(self, x: Exchange, found: Reservation) -> str | None:
        """Another project that served this conversation last."""
        server = self.pool.served_by(x.sticky)
        return None if server == found.quota.project else server

    async def _refuse(self, x: Exchange, ask: Ask, progress: Progress) -> None:
        """Nothing is left: the first refusal that says something is the client's."""
        if self.pooled is not None and x.files is not None and not self.pooled.near(x):
            if x.files.lost is None:
                raise self.pooled.unreachable(x)
            await self.attempts.give(x, x.files.lost)
            return
        if progress.told is not None:
            await self.attempts.give(x, progress.told)
            return
        model, full, roster = progress.wanted, progress.full, self.pool.roster
        asked = 1 if x.only or x.files is not None else len(roster.projects)  # files may hold it to a few
        if full is None or len(full.refusals) < asked:
            full = await self.pool.look(model, replace(ask, only=x.only, deadline=self.pool.now(), patient=False))
        if full is None:
            raise reasons.busy(x.record.sent, x.only)
        limits = [
            roster.limits(project, model) for project in roster.projects.values() if x.only in (None, project.name)
        ]
        problem = reasons.problem(model, full.refusals, self.pool.now(), want=ask.want, limits=limits)
        raise reasons.of_owner(problem, x.only, x.names)

    async def _sized(self, x: Exchange, model: str, ask: Ask) -> Ask:
        """Large wants are counted by Google (free) before they are booked."""
        limit = self.pool.candidates.smallest_token_limit(model)
        question = x.size_question(model) if limit and ask.want.tokens * 4 > limit else None
        if question is None:
            return ask
        only = self.pooled.home(x) if x.only is None and self.pooled is not None else x.only
        key = await self.pool.pick(model, Tried(), only)
        tokens = None if key is None else await self.questions.count(key, *question)
        return ask if tokens is None else replace(ask, want=ask.want._replace(tokens=tokens))
