"""Calls that take no quota: lists, counts, files, whatever else the API has. Any healthy key will do: of the project
that owns what they name, if they name something.

What is surely refused (a bad key, a 429) is tried with another; what may have had an effect is never sent twice.
"""

import asyncio
from collections.abc import Awaitable, Callable

from pollux import reasons
from pollux.attempts import BACKOFF, MOST_TROUBLES, Attempts, Failure
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.pool import Tried
from pollux.windows import Want


async def run(
    x: Exchange,
    attempts: Attempts,
    moved: Callable[[Exchange, Failure], Awaitable[bool]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    pool = attempts.pool
    tried = Tried()
    troubles = 0
    model = pool.roster.catalog.resolve(x.call.model) if x.call.model else None
    last: Failure | None = None
    await pool.roster.ready()
    while x.may_try(pool.settings.max_attempts):
        key = await pool.pick(model, tried, x.only, x.prefer_key if last is None else None, x.home)
        if key is None:
            break
        x.record.used, x.record.key, x.record.project = model or "", key.id, key.project
        last = await attempts.free(x, key, model)
        if last is None:
            return
        last = attempts.of_resources(x, last)
        x.noted(Attempt(model or "", key.project, key.id, last.verdict.cause, last.status, last.verdict.message))
        tried.keys.add(key.id)
        match last.verdict.action:
            case "next-key":
                if await attempts.key_changed(key, last.verdict, tried):
                    tried.keys.discard(key.id)
            case "next-project":
                tried.projects.add(key.project)
            case "retry" if x.harmless and x.only is None:
                tried.projects.add(key.project)
            case "retry" if x.harmless and troubles < MOST_TROUBLES and not last.timed_out:
                troubles += 1
                await sleep(BACKOFF * 2 ** (troubles - 1))
                if await pool.pick(model, tried, x.only) is None:  # no other key of that project: the same once more
                    tried.keys.clear()
            case _ if await moved(x, last):
                continue
            case _:
                break
    if last is not None and last.verdict.blames != "key":
        await attempts.give(x, last)
        return
    _, refusals = pool.roster.candidates(model or "", (), (), pool.now())
    refusals = {name: refusal for name, refusal in refusals.items() if x.only in (None, name)}
    if last is not None and len(refusals) < (1 if x.only else len(pool.roster.projects)):
        raise reasons.busy(x.record.sent, x.only)
    raise reasons.of_owner(reasons.problem(model or "", refusals, pool.now(), want=Want()), x.only, x.names)
