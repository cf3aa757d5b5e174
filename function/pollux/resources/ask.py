"""Makes free calls for the gateway itself: looks up resources, reads lists, counts tokens and tests keys."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pollux.backends.keys import probe
from pollux.backends.keys.contract import Key
from pollux.backends.upstream import UpstreamError
from pollux.gemini.body import json_of, total_tokens
from pollux.gemini.verdict.rules import Verdict, judge
from pollux.pool.reservation import Tried
from pollux.relay.attempt import BACKOFF, Attempts
from pollux.relay.passing import collect
from pollux.relay.send import API_KEY, BEARER, CoveredAnswer, Failure, broken

TRIES = 4
ASKED_AT_ONCE = 96
"""The most calls at once, of all requests together. Each holds a connection, and some systems allow a process 256."""
COUNT_WITHIN = 5.0
PROBE = probe.target(probe.MODEL)
JSON = (("content-type", "application/json"),)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """A good answer. `document` is empty if the body is too long to be read or is not a JSON object."""

    key: Key
    status: int
    document: dict[str, Any]


class Asker:
    def __init__(self, attempts: Attempts) -> None:
        self.pool = attempts.pool
        self.upstream = attempts.upstream
        self._attempts = attempts
        self._room = asyncio.Semaphore(ASKED_AT_ONCE)

    async def with_keys(
        self, project: str, call: Callable[[Key], Awaitable[T | Failure]], pause: float = BACKOFF
    ) -> T | Failure | None:
        """Make a call with a healthy key of the project. It is repeated with another key if Google refuses the key, and
        after a pause if Google has trouble. Returns None if the project has no healthy key."""
        tried, last = Tried(), None
        for _ in range(TRIES):
            if (key := await self.pool.pick(None, tried, project)) is None:
                break
            answer = await call(key)
            if not isinstance(answer, Failure):
                return answer
            last = answer
            match answer.verdict.action:
                case "next-key":
                    if not await self._attempts.key_changed(key, answer.verdict, tried):
                        tried.keys.add(key.id)
                case "retry":
                    await asyncio.sleep(pause)
                    pause *= 2
                case _:
                    break
        return last

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
        """Send a GET to a project. `whole`: read the answer however long it is. Returns None if the project has no
        healthy key or did not answer in time."""
        last: JsonAnswer | Failure | None = None

        async def get(key: Key) -> JsonAnswer | Failure:
            nonlocal last
            credential = BEARER if bearer else API_KEY
            answer = await self.upstream.send(key, "GET", target, headers, credential=credential)
            last = answer if isinstance(answer, Failure) else await self._read(key, answer, whole)
            return last

        try:
            async with asyncio.timeout(within), self._room:
                return await self.with_keys(project, get)
        except TimeoutError:
            return last

    async def _read(self, key: Key, answer: CoveredAnswer, whole: bool) -> JsonAnswer | Failure:
        try:
            body, complete = (await answer.read(), True) if whole else await collect(answer)
        except UpstreamError as error:
            return broken(key, error, self.pool.now())
        finally:
            answer.close()
        document = json_of(body) if complete else None
        return JsonAnswer(key, answer.status, document if isinstance(document, dict) else {})

    async def test_key(self, key: Key) -> Verdict | None:
        """Returns Google's verdict on a free call, or None if the key's value cannot be read or no answer came."""
        answer = await self._post(key, PROBE, probe.BODY)
        if isinstance(answer, Failure):
            return answer.verdict if answer.status else None
        return None if answer is None else judge(answer.status, answer.body, now=self.pool.now())

    async def count_tokens(self, key: Key, target: str, body: bytes) -> int | None:
        """Returns Google's own count, or None if the call fails: then the estimate is used."""
        answer = await self._post(key, target, body)
        return total_tokens(answer.body) if isinstance(answer, CoveredAnswer) else None

    async def _post(self, key: Key, target: str, body: bytes) -> CoveredAnswer | Failure | None:
        try:
            async with asyncio.timeout(COUNT_WITHIN):
                return await self.upstream.send(key, "POST", target, JSON, body, whole=True)
        except TimeoutError:
            return None
