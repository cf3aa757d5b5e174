"""Free calls of the gateway itself to one project: does it know a resource, what does it list, how many tokens.

A key that is refused is judged as in any other call, and another one of the project asks again.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pollux.backends.keys import probe
from pollux.backends.keys.contract import Key
from pollux.backends.upstream import UpstreamError
from pollux.gemini.body import total_tokens
from pollux.gemini.verdict.rules import Verdict, judge
from pollux.pool.pool import Tried
from pollux.relay.attempt import BACKOFF, Attempts
from pollux.relay.passing import collect
from pollux.relay.send import API_KEY, BEARER, Failure, broken

MOST_KEYS = 3
MOST_TROUBLES = 2
"""How often trouble that passes (503, 500, a broken connection) is tried again."""
ASKED_AT_ONCE = 96
"""Of all requests together: each holds a connection, of which some machines allow a process 256."""
COUNT_WITHIN = 5.0
PROBE = probe.target(probe.MODEL)
JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """A good answer. What is too long to be read, or no JSON object, has no document."""

    key: Key
    status: int
    document: dict[str, Any]


class Asker:
    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._upstream = attempts.upstream
        self._pool = attempts.pool
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
    ) -> JsonAnswer | Failure | None:
        """A GET. None: the project has no healthy key, or said nothing in time. A moment's trouble is outlived: what
        this project does not say is said by nobody. `whole`: an answer too long to be read is none.
        """
        tried, last, troubles = Tried(), None, 0
        try:
            async with asyncio.timeout(within), self._room:
                while len(tried.keys) < MOST_KEYS and (key := await self._pool.pick(None, tried, project)) is not None:
                    told = await self._once(key, target, headers, bearer, whole)
                    if isinstance(told, JsonAnswer):
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
    ) -> JsonAnswer | Failure:
        answer = await self._upstream.send(key, "GET", target, headers, credential=BEARER if bearer else API_KEY)
        if isinstance(answer, Failure):
            return answer
        try:
            body, complete = (await answer.read(), True) if whole else await collect(answer)
        except UpstreamError as error:
            return broken(key, error, self._pool.now())
        finally:
            answer.close()
        return JsonAnswer(key, answer.status, _document(body) if complete else {})

    async def test_key(self, key: Key) -> Verdict | None:
        """What Google says to a call that takes no quota. None: the key's value cannot be read, or no answer came."""
        try:
            async with asyncio.timeout(COUNT_WITHIN), self._room:
                said = await self._upstream.send(key, "POST", PROBE, JSON, probe.BODY, whole=True)
        except TimeoutError:
            return None
        if isinstance(said, Failure):
            return said.verdict if said.status else None
        return judge(said.status, said.body, now=self._pool.now())

    async def count_tokens(self, key: Key, target: str, body: bytes) -> int | None:
        """Google's own count; None if it cannot be had, then the estimate stands."""
        try:
            async with asyncio.timeout(COUNT_WITHIN):
                said = await self._upstream.send(key, "POST", target, JSON, body, whole=True)
        except TimeoutError:
            return None
        return None if isinstance(said, Failure) else total_tokens(said.body)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
