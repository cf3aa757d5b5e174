"""One request: reserve a slot if it takes quota, send, judge the answer, then retry or fall back to the next model.

`attempt` makes one call upstream; `pool` chooses the project and counts; a verdict says what an answer means.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from pollux.backends.keys.contract import Key
from pollux.gemini.names import is_resource_call
from pollux.gemini.verdict.causes import PROBED
from pollux.pool import refusals
from pollux.pool.refusals import Refusal
from pollux.pool.reservation import Ask, Full, Reservation, Tried
from pollux.pool.windows import MINUTE_LIMITS, Want
from pollux.relay.attempt import AGAIN_WITHIN, Attempts, LateError, backoff
from pollux.relay.journal import Attempt
from pollux.relay.request import Request
from pollux.relay.send import Failure

PAID_BY_THE_PIECE = frozenset({"image", "video", "music"})
HELD_S = 10.0
"""How long a slot is held while its project is made ready for the request."""

Count = Callable[[Key, str, bytes], Awaitable[int | None]]
"""Asks Google, with this key, target and body, how many tokens a request has. None: unknown."""


@dataclass(slots=True)
class Progress:
    """What happened to a request so far, over all models. It does not grow with the number of refusals."""

    wanted: str
    """The model that the client asked for."""
    until: float = math.inf
    """The time after which the request is not sent again. Set when a slot is found for the first time."""
    troubles: int = 0
    for_client: Failure | None = None
    """The first failure of the wanted model that no key, project or quota is to blame for: the client gets it."""
    full: Full | None = None
    """Why each project had no slot for the wanted model."""

    def failed(self, failure: Failure, model: str) -> None:
        ours = failure.verdict.blames in ("key", "project", "quota")
        if self.for_client is None and self.full is None and model == self.wanted and not ours:
            self.for_client = failure


class Relay:
    def __init__(
        self,
        attempts: Attempts,
        count: Count,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.pool = attempts.pool
        self.attempts = attempts
        self._count = count
        self._settings = self.pool.settings
        self._catalog = self.pool.projects.catalog
        self._sleep = sleep
        self._jitter = jitter

    async def counted(self, request: Request) -> None:
        """A call that takes quota of a model."""
        wanted, *others = self._catalog.chain(request.call.model or "", request.mode)
        chain = [wanted, *others] if request.fallback and not request.placement.one_model else [wanted]
        request.record.wanted = wanted
        ask = request.ask(self._catalog.generation(wanted), self._catalog.kind(wanted))
        limit = self.pool.candidates.known(wanted).tokens_a_minute
        if limit and ask.want.tokens * 4 > limit:
            ask = await self._sized(request, wanted, ask)
        request.record.estimated = ask.want.tokens
        progress = Progress(wanted)
        tried: dict[str, Tried] = {}
        for deadline in self._deadlines(request, len(chain)):
            for model in chain:
                asked = ask if deadline == ask.deadline else replace(ask, deadline=deadline, patient=False)
                if model not in tried:
                    tried[model] = Tried(store=request.record.store)
                if await self._on_model(request, model, asked, tried[model], progress, last=model == chain[-1]):
                    return
        await self._refuse(request, ask, progress)

    def _deadlines(self, request: Request, models: int) -> Sequence[float]:
        """The chain is tried once until each: first until POLLUX_FALLBACK_AFTER, if that is set and shorter."""
        after = self._settings.fallback_after
        if after is None or models == 1 or self.pool.now() + after >= request.deadline:
            return (request.deadline,)
        return (self.pool.now() + after, request.deadline)

    async def _on_model(
        self, request: Request, model: str, ask: Ask, tried: Tried, progress: Progress, *, last: bool
    ) -> bool:
        """Try one model. True: the client has its answer."""
        while self._may_be_sent(request, progress):
            found = await self._reserve(request, model, ask, tried)
            if isinstance(found, Full):
                progress.full = found if model == progress.wanted else progress.full
                self._note_full(request, model, ask, tried, found)
                return False
            if request.placement.prepares and not request.placement.ready(found.quota.project):
                await self._prepare(request, found, tried)
                continue
            progress.until = min(progress.until, max(request.deadline, self.pool.now() + AGAIN_WITHIN))
            try:
                failure = await self.attempts.reserved(request, found)
            except LateError:
                continue
            if failure is None:
                return True
            if await request.placement.lost(failure):
                continue
            progress.failed(failure, model)
            ask = replace(ask, prefer_key=None)
            match failure.verdict.action:
                case "next-key":
                    if not await self.attempts.key_changed(found.key, failure.verdict, tried):
                        tried.key_refused(found.key.id, probed=failure.verdict.cause in PROBED)
                case "next-project":
                    tried.refused(found.quota.project, again=self._is_worth_a_wait(request, found, failure))
                case "retry" if self._may_have_made(request, model, ask, failure):
                    await self.attempts.give(request, failure)
                    return True
                case "retry":
                    tried.troubled.add(found.quota.project)
                    progress.troubles += 1
                    if progress.troubles + (not last) >= self._settings.max_attempts:
                        return False  # the last try is for the next model, if there is one
                    if self._may_be_sent(request, progress):
                        await self._sleep(backoff(progress.troubles, self._jitter()))
                case "same-project" if (
                    request.placement.only is None and (server := self._elsewhere(request, found)) is not None
                ):
                    ask = replace(ask, only=server)
                    tried.projects.discard(server)
                case _ if await request.placement.moved(failure):
                    ask = replace(ask, only=request.placement.only)
                # The client does not get the refusal of a model that it never asked for. A malformed answer is no
                # refusal: that model may have answered the request.
                case _ if model != progress.wanted and failure.verdict.cause != "malformed":
                    return False
                case _:
                    await self.attempts.give(request, failure)
                    return True
        return False

    def _note_full(self, request: Request, model: str, ask: Ask, tried: Tried, full: Full) -> None:
        asked_all = not full.refusals and (tried.projects or tried.keys)
        limits = self.pool.projects.limits_of_all(model) if asked_all else ()
        cause, detail = refusals.no_slot(model, full.refusals, self.pool.now(), ask.deadline, ask.want, limits)
        request.record.note(Attempt(model, "", "", cause, None, detail=detail))

    def _may_be_sent(self, request: Request, progress: Progress) -> bool:
        trouble = progress.troubles >= self._settings.max_attempts
        return request.can_be_sent and not trouble and self.pool.now() <= progress.until

    def _may_have_made(self, request: Request, model: str, ask: Ask, failure: Failure) -> bool:
        """Whether sending it again might make, and charge for, a second thing. An overloaded Google made nothing."""
        if failure.unsent:
            return False
        paid = ask.want.images > 0 or self._catalog.kind(model) in PAID_BY_THE_PIECE
        return is_resource_call(request.call) or (paid and failure.verdict.cause != "overloaded")

    def _is_worth_a_wait(self, request: Request, found: Reservation, failure: Failure) -> bool:
        """Whether to ask the project again after its rest: the refusal taught its limit, no other project can serve, or
        a tool rests, which rests for every model of the chain."""
        now, owned = self.pool.now(), found.quota
        cooling = owned.document.value.cooldown
        rests = cooling is not None and cooling.until > now
        rests = rests or self.pool.projects.is_aside(owned.project, found.model, found.key.id, now, found.tools)
        alone = request.placement.only is not None or failure.verdict.cause == "tool-quota"
        return rests and (alone or not failure.verdict.learned.keys().isdisjoint(MINUTE_LIMITS))

    async def _reserve(self, request: Request, model: str, ask: Ask, tried: Tried) -> Reservation | Full:
        if request.placement.prepares:
            ask = await request.placement.narrow(ask, tried)
        began = self.pool.now()
        found: Reservation | Full | None = None
        if tried.troubled and ask.only is None:  # elsewhere, if there is room at once
            found = await self.pool.reserve(model, replace(ask, deadline=began, patient=False), tried.elsewhere())
        if found is None or isinstance(found, Full):
            found = await self.pool.reserve(model, ask, tried)
        request.record.wait(model, tried.waits_for, self.pool.now() - began)
        tried.waits_for = None
        return found

    async def _prepare(self, request: Request, found: Reservation, tried: Tried) -> None:
        """Make the project ready and give the slot back: the caller reserves another, there or elsewhere. Until then
        the slot is held for a while, so that the next of many requests go to other projects.
        """
        held = asyncio.get_running_loop().call_later(HELD_S, found.let_go)
        try:
            await request.placement.prepare(found.quota.project, tried)
        finally:
            held.cancel()
            found.let_go()

    def _elsewhere(self, request: Request, found: Reservation) -> str | None:
        """The project that served this conversation last, if it is another one."""
        server = self.pool.served_by(request.sticky)
        return None if server == found.quota.project else server

    async def _refuse(self, request: Request, ask: Ask, progress: Progress) -> None:
        """No attempt is left: the client gets the first failure that it can act on, or why no project has a slot."""
        only = request.placement.only
        if (failure := request.placement.exhausted() or progress.for_client) is not None:
            await self.attempts.give(request, failure)
            return
        model, full, projects = progress.wanted, progress.full, self.pool.projects
        asked = 1 if only or request.placement.prepares else len(projects.by_name)  # few may be reachable
        if full is None or len(full.refusals) < asked:
            full = await self.pool.look(model, replace(ask, only=only, deadline=self.pool.now(), patient=False))
        if full is None:
            raise refusals.busy(request.record.sent, only)
        limits = [
            projects.limits(project, model) for project in projects.by_name.values() if only in (None, project.name)
        ]
        problem = refusals.problem(model, full.refusals, self.pool.now(), want=ask.want, limits=limits)
        raise refusals.of_owner(problem, only, request.placement.names)

    async def _sized(self, request: Request, model: str, ask: Ask) -> Ask:
        """The same, with the tokens that Google counts (free). For large requests only."""
        question = request.size_question(model)
        key = None if question is None else await self.pool.pick(model, Tried(), request.placement.counts_at())
        if question is None or key is None:
            return ask
        tokens = await self._count(key, *question)
        return ask if tokens is None else replace(ask, want=ask.want._replace(tokens=tokens))

    async def free(self, request: Request) -> None:
        """A call that takes no quota: sent with any healthy key of a project where it may go.

        A refusal of the key or the project is tried with another key. A call that may have had an effect is not sent
        again.
        """
        pool, placement, record = self.pool, request.placement, request.record
        tried, progress = Tried(), Progress("")
        model = self._catalog.resolve(request.call.model) if request.call.model else None
        last: Failure | None = None
        await pool.projects.ready()
        while self._may_be_sent(request, progress):
            prefer = request.prefer_key if last is None else None
            key = await pool.pick(model, tried.elsewhere(), placement.only, prefer, placement.home)
            if key is None and tried.troubled:
                key = await pool.pick(model, tried, placement.only, prefer, placement.home)
            if key is None:
                if await pool.rest(self._unusable(request, model, tried), request.deadline):
                    continue
                break
            progress.until = min(progress.until, max(request.deadline, pool.now() + AGAIN_WITHIN))
            record.used, record.key, record.project = model or "", key.id, key.project
            last = await self.attempts.free(request, key, model)
            if last is None:
                return
            last = placement.judged(last)
            verdict = last.verdict
            record.note(Attempt(model or "", key.project, key.id, verdict.cause, last.status, verdict.message))
            match verdict.action:
                case "next-key":
                    if not await self.attempts.key_changed(key, verdict, tried):
                        tried.key_refused(key.id, probed=verdict.cause in PROBED)
                case "next-project":
                    tried.projects.add(key.project)
                case "retry" if request.harmless:
                    progress.troubles += 1
                    tried.troubled.add(key.project)
                    if self._may_be_sent(request, progress):
                        await self._sleep(backoff(progress.troubles, self._jitter()))
                case _ if await placement.moved(last):
                    continue
                case _:
                    break
        if last is not None and last.verdict.blames != "key":
            await self.attempts.give(request, last)
            return
        found = self._unusable(request, model, Tried())
        if last is not None and len(found) < (1 if placement.only else len(pool.projects.by_name)):
            raise refusals.busy(record.sent, placement.only)
        problem = refusals.problem(model or "", found, pool.now(), want=Want())
        raise refusals.of_owner(problem, placement.only, placement.names)

    def _unusable(self, request: Request, model: str | None, tried: Tried) -> dict[str, Refusal]:
        """Why the projects where the request may go cannot serve it."""
        _, found = self.pool.projects.candidates(model or "", tried.projects, tried.keys, self.pool.now())
        return {name: refusal for name, refusal in found.items() if request.placement.only in (None, name)}
