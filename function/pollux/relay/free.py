"""One request that takes no quota: sent with any healthy key of a project where it may go.

A refusal of the key or the project is tried with another key. A call that may have had an effect is not sent again.
"""

import math
from collections.abc import Awaitable, Callable

from pollux.gemini.verdict.causes import PROBED
from pollux.pool import refusals
from pollux.pool.pool import Tried
from pollux.pool.refusals import Refusal
from pollux.pool.windows import Want
from pollux.relay.attempt import AGAIN_WITHIN, Attempts, backoff
from pollux.relay.journal import Attempt
from pollux.relay.request import Request
from pollux.relay.send import Failure


async def run(
    request: Request, attempts: Attempts, sleep: Callable[[float], Awaitable[None]], jitter: Callable[[], float]
) -> None:
    pool, place = attempts.pool, request.place
    tried = Tried()
    troubles, until = 0, math.inf
    model = pool.projects.catalog.resolve(request.call.model) if request.call.model else None
    last: Failure | None = None

    def unusable(tried: Tried) -> dict[str, Refusal]:
        _, found = pool.projects.candidates(model or "", tried.projects, tried.keys, pool.now())
        return {name: refusal for name, refusal in found.items() if place.only in (None, name)}

    await pool.projects.ready()
    while request.can_be_sent and troubles < pool.settings.max_attempts and pool.now() <= until:
        prefer = request.prefer_key if last is None else None
        key = await pool.pick(model, tried.elsewhere(), place.only, prefer, place.home)
        if key is None and tried.troubled:
            key = await pool.pick(model, tried, place.only, prefer, place.home)
        if key is None:
            if await pool.rest(unusable(tried), request.deadline):
                continue
            break
        until = min(until, max(request.deadline, pool.now() + AGAIN_WITHIN))
        request.record.used, request.record.key, request.record.project = model or "", key.id, key.project
        last = await attempts.free(request, key, model)
        if last is None:
            return
        last = place.judged(last)
        request.record.note(
            Attempt(model or "", key.project, key.id, last.verdict.cause, last.status, last.verdict.message)
        )
        match last.verdict.action:
            case "next-key":
                if not await attempts.key_changed(key, last.verdict, tried):
                    tried.key_refused(key.id, probed=last.verdict.cause in PROBED)
            case "next-project":
                tried.projects.add(key.project)
            case "retry" if request.harmless:
                troubles += 1
                tried.troubled.add(key.project)
                if troubles < pool.settings.max_attempts and pool.now() <= until:
                    await sleep(backoff(troubles, jitter()))
            case _ if await place.moved(last):
                continue
            case _:
                break
    if last is not None and last.verdict.blames != "key":
        await attempts.give(request, last)
        return
    found = unusable(Tried())
    if last is not None and len(found) < (1 if place.only else len(pool.projects.by_name)):
        raise refusals.busy(request.record.sent, place.only)
    raise refusals.of_owner(refusals.problem(model or "", found, pool.now(), want=Want()), place.only, place.names)
