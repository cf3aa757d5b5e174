"""Free questions of our own to one project: whether it knows a resource, what it lists, how many tokens a request has.

A key that is refused is judged as in any other call, and another one of the project asks again.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pollux import wire
from pollux.attempts import BACKOFF, Attempts, Failure, judged, unreached, unreadable
from pollux.keys import Key, KeySourceError, probe
from pollux.log import guard
from pollux.outbound import collect, covered
from pollux.pool import Tried
from pollux.upstream import Upstream, UpstreamError
from pollux.verdict.rules import Verdict

MOST_KEYS = 3
MOST_TROUBLES = 2
"""How often trouble that passes (503, 500, a broken connection) is tried again."""
ASKED_AT_ONCE = 96
"""Of all requests together: each holds a connection, of which some machines allow a process 256."""
COUNT_WITHIN = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """A good answer. What is too long to be read, or no JSON object, has no document."""

    key: Key
    status: int
    document: dict[str, Any]


class Questions:
    def __init__(self, attempts: Attempts, upstream: Upstream) -> None:
        self._attempts = attempts
        self._upstream = upstream
        self._pool = attempts.pool
        self._keyring = attempts.pool.roster.keyring
        self._room = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(
        self,
        project: str,
        target: str,
        within: float,
        headers: Sequence[tuple[str, str]] = (),
        *,
        bearer: bool = False,
        whole: bool = False,
    ) -> Told | Failure | None:
        """A GET. None: the project has no healthy key, or said nothing in time. A moment's trouble is outlived: what
        this project does not say is said by nobody. `whole`: an answer too long to be read is none.
        """
        tried, last, troubles = Tried(), None, 0
        try:
            async with asyncio.timeout(within), self._room:
                while len(tried.keys) < MOST_KEYS and (key := await self._pool.pick(None, tried, project)) is not None:
                    told = await self._once(key, target, headers, bearer, whole)
                    if isinstance(told, Told):
                        return told
                    last = told
                    tried.keys.add(key.id)
                    match told.verdict.action:
                        case "next-key":
                            if await self._attempts.key_changed(key, told.verdict, tried):
                                tried.keys.discard(key.id)
                        case "retry" if troubles < MOST_TROUBLES and not last.timed_out:
                            troubles += 1
                            await asyncio.sleep(BACKOFF)
                            tried.keys.clear()
                        case "retry":
                            continue
                        case _:
                            break
        except TimeoutError:
            return last
        return last

    async def _once(
        self, key: Key, target: str, headers: Sequence[tuple[str, str]], bearer: bool, whole: bool
    ) -> Told | Failure:
        try:
            value = (await self._keyring.value(key.id)).reveal()
        except KeySourceError as error:
            return unreadable("", key, error)
        guard(value)
        credential = ("authorization", f"Bearer {value}") if bearer else ("x-goog-api-key", value)
        try:
            answer = await self._upstream.send("GET", target, [*headers, credential], b"")
            try:
                if answer.status < 300:
                    body, complete = (await answer.read(), True) if whole else await collect(answer)
                    return Told(key, answer.status, _document(covered(body, value)) if complete else {})
                verdict, shown, body = judged(
                    answer.status, wire.client_headers(answer.headers), await answer.read(), value, self._pool.now()
                )
                return Failure(verdict, "", key, answer.status, shown, body)
            finally:
                answer.close()
        except UpstreamError as error:
            return unreached("", key, error, value, self._pool.now())

    async def free_call(self, key: Key) -> Verdict | None:
        """What Google says to a call that takes no quota. None: the key's value cannot be read, or no answer came."""
        try:
            value = (await self._keyring.value(key.id)).reveal()
        except KeySourceError:
            return None
        guard(value)
        headers = [("content-type", "application/json"), ("x-goog-api-key", value)]
        try:
            async with asyncio.timeout(COUNT_WITHIN), self._room:
                answer = await self._upstream.send("POST", probe.target(probe.MODEL), headers, probe.BODY)
                try:
                    shown = wire.client_headers(answer.headers)
                    return judged(answer.status, shown, await answer.read(), value, self._pool.now())[0]
                finally:
                    answer.close()
        except (UpstreamError, TimeoutError):
            return None

    async def count(self, key: Key, target: str, body: bytes) -> int | None:
        """Google's own count; None if it cannot be had, then the estimate stands."""
        try:
            value = await self._keyring.value(key.id)
            headers = [("content-type", "application/json"), ("x-goog-api-key", value.reveal())]
            async with asyncio.timeout(COUNT_WITHIN):
                answer = await self._upstream.send("POST", target, headers, body)
                try:
                    return wire.total_tokens(await answer.read()) if answer.status == 200 else None
                finally:
                    answer.close()
        except (UpstreamError, KeySourceError, TimeoutError):
            return None


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
