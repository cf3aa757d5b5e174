"""Sleeping towards a moment of the store's clock, until the process stops."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any


class StoppingError(Exception):
    """The process stops before the slot that a request waits for."""


class Waiting:
    def __init__(self, now: Callable[[], float], sleep: Callable[[float], Coroutine[Any, Any, None]]) -> None:
        self._now = now
        self._sleep = sleep
        self._ends_at = math.inf
        self._sleepers: set[asyncio.Future[None]] = set()

    async def until(self, moment: float, at_most: float = math.inf) -> None:
        """`at_most`: no longer than so many seconds, whatever the time is then."""
        wakes = min(moment, self._now() + at_most)
        while (delay := wakes - self._now()) > 0:
            if moment > self._ends_at:
                raise StoppingError
            sleeper = asyncio.ensure_future(self._sleep(delay))
            self._sleepers.add(sleeper)
            try:
                await asyncio.wait({sleeper})
            finally:
                sleeper.cancel()
                self._sleepers.discard(sleeper)

    def end(self, within: float) -> None:
        """Who would have to wait longer than that is told so at once."""
        self._ends_at = self._now() + within
        for sleeper in self._sleepers:
            sleeper.cancel()
