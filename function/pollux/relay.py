"""The life of one request: reserve, send, judge, retry or fall back, until the client has its answer.

What is chosen and counted is in `pool`; a single call upstream, in `attempts`; what an answer means, in `verdict`.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pollux import reasons, uncounted
from pollux.attempts import Attempts, Failure
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.pool import Ask, Full, Pool, Tried
from pollux.upstream import Upstream
from pollux.windows import MINUTE_LIMITS

MOST_TROUBLES = 2
"""How often a model's trouble (503, 500, a broken connection) is tried again on another project."""
FOR_LONG = frozenset({"unsupported", "model-access", "rpd", "tpd"})
"""Refusals that no waiting mends."""
BACKOFF = 0.25


class Relay:
    def __init__(
        self,
        pool: Pool,
        upstream: Upstream,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.pool = pool
        self._attempts = Attempts(pool, upstream)
        self._settings = pool.settings
        self._catalog = pool.roster.catalog
        self._sleep = sleep
        self._jitter = jitter

    async def run(self, x: Exchange) -> None:
        if x.call.counted and x.call.model:
            await self._counted(x)
        else:
            await uncounted.run(x, self._attempts)

    async def _counted(self, x: Exchange) -> None:
        chain = self._catalog.chain(x.call.model or "", x.mode)
        chain = chain if x.fallback else chain[:1]
        ask = x.ask(self._catalog.generation(chain[0]), self._catalog.kind(chain[0]))
        ask = await self._sized(x, chain[0], ask)
        x.record.estimated = ask.want.tokens
        failures: list[Failure | Full] = []
        tried = {model: Tried(store=x.record.store) for model in chain}
        for deadline in self._passes(x, len(chain)):
            for model in chain:
                asked = replace(ask, deadline=deadline, patient=ask.patient and deadline == x.deadline)
                if await self._on_model(x, model, asked, tried[model], failures, last=model == chain[-1]):
                    return
                if not x.may_try(self._settings.max_attempts):
                    break
        await self._refuse(x, chain[0], ask, failures)

    def _passes(self, x: Exchange, models: int) -> Sequence[float]:
        """The deadlines to try the chain with: first a short one, if falling back comes before waiting long."""
        after = self._settings.fallback_after
        if after is None or models == 1 or self.pool.now() + after >= x.deadline:
            return (x.deadline,)
        return (self.pool.now() + after, x.deadline)

    async def _on_model(
        self, x: Exchange, model: str, ask: Ask, tried: Tried, failures: list[Failure | Full], *, last: bool
    ) -> bool:
        """True when the client has its answer."""
        troubles = 0
        while x.may_try(self._settings.max_attempts):
            began = self.pool.now()
            found = await self.pool.reserve(model, ask, tried)
            x.record.waited += self.pool.now() - began
            if isinstance(found, Full):
                if tried.readmit():
                    continue
                failures.append(found)
                x.noted(Attempt(model, "", "", "full", None, detail=_said(found)))
                return False
            if not await self._attempts.in_time(found):
                continue
            failure = await self._attempts.reserved(x, found)
            if failure is None:
                return True
            failures.append(failure)
            ask = replace(ask, prefer_key=None)
            tried.keys.add(found.key.id)
            match failure.verdict.action:
                case "next-key":
                    if await self._attempts.key_changed(found.key, failure.verdict, tried):
                        tried.keys.discard(found.key.id)
                case "next-project":
                    tried.projects.add(found.quota.project)
                    if not set(MINUTE_LIMITS).isdisjoint(failure.verdict.learned):
                        tried.taught[found.quota.project] = found.key.id
                    final = x.record.sent + 1 == self._settings.max_attempts
                    if final and not last and failure.verdict.cause in FOR_LONG:
                        return False  # more projects than attempts: the last one is for a model that may be there
                case "retry":
                    hung = sum(isinstance(f, Failure) and f.timed_out for f in failures)
                    if hung > 1 or (hung and self.pool.now() > x.deadline):
                        await self._attempts.give(x, failure)  # each took as long as it may: nobody waits for a third
                        return True
                    tried.projects.add(found.quota.project)
                    troubles += 1
                    if troubles > MOST_TROUBLES or self.pool.now() > x.deadline:
                        return False
                    await self._sleep(BACKOFF * 2 ** (troubles - 1) * (0.5 + self._jitter()))
                case "same-project" if (owner := self.pool.served_by(x.sticky)) not in (None, found.quota.project):
                    ask = replace(ask, only=owner)
                    tried.projects.discard(owner or "")
                case _:
                    # The refusal of a model that the client never asked for is not its business.
                    if any(earlier.model != model for earlier in failures):
                        return False
                    await self._attempts.give(x, failure)
                    return True
        return False

    async def _refuse(self, x: Exchange, model: str, ask: Ask, failures: Sequence[Failure | Full]) -> None:
        """Nothing is left: the first refusal that says something is the client's."""
        for failure in failures:
            if isinstance(failure, Full):
                break
            if failure.model == model and failure.verdict.blames not in ("key", "project", "quota"):
                await self._attempts.give(x, failure)
                return
        full = next((f for f in reversed(failures) if isinstance(f, Full) and f.model == model), None)
        if full is None or len(full.refusals) < len(self.pool.roster.projects):
            full = await self.pool.look(model, ask)
        if full is None:
            raise reasons.busy(x.record.sent)
        limits = self.pool.roster.limits_of_all(model)
        raise reasons.problem(model, full.refusals, self.pool.now(), want=ask.want, limits=limits)

    async def _sized(self, x: Exchange, model: str, ask: Ask) -> Ask:
        """Large wants are counted by Google (free) before they are booked."""
        limit = self.pool.roster.smallest_token_limit(model)
        question = x.size_question(model) if limit and ask.want.tokens * 4 > limit else None
        if question is None:
            return ask
        key = await self.pool.pick(model, Tried())
        tokens = None if key is None else await self._attempts.count(key, *question)
        return ask if tokens is None else replace(ask, want=ask.want._replace(tokens=tokens))


def _said(full: Full) -> str:
    if not full.refusals:
        return "no project is left"
    first = min(full.refusals.values())
    return reasons.words(first.why) + ("" if first.until == math.inf else "; later than the request may wait")
