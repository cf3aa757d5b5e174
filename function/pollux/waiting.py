"""Sleeping towards a moment of the store's clock, until the process stops."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

Sleepers = dict["asyncio.Future[None]", None]
"""In the order in which they began to wait."""


class StoppingError(Exception):
    """The process stops before the slot that a request waits for."""


class Waiting:
    def __init__(self, now: Callable[[], float], sleep: Callable[[float], Coroutine[Any, Any, None]]) -> None:
        self._now = now
        self._sleep = sleep
        self._ends_at = math.inf
        self._sleepers: set[asyncio.Future[None]] = set()

    async def until(self, moment: float, together: "Sleepers | None" = None, *, at_most: float = math.inf) -> None:
        """`together`: those whom `wake` lets go on before that. `at_most`: sleep no longer than so many seconds."""
        wakes = min(moment, self._now() + at_most)
        while (delay := wakes - self._now()) > 0:
            if moment > self._ends_at:
                raise StoppingError
            sleeper = asyncio.ensure_future(self._sleep(delay))
            self._sleepers.add(sleeper)
            if together is not None:
                together[sleeper] = None
            woken = False
            try:
                await asyncio.wait({sleeper})
                woken = together is not None and sleeper not in together
            finally:
                sleeper.cancel()
                self._sleepers.discard(sleeper)
                if together is not None:
                    together.pop(sleeper, None)
            if woken:
                return

    def end(self, within: float) -> None:
        """Who would have to wait longer than that is told so at once."""
        self._ends_at = self._now() + within
        for sleeper in self._sleepers:
            sleeper.cancel()


def wake(together: Sleepers) -> None:
    """Those who sleep look again."""
    sleepers = list(together)
    together.clear()
    for sleeper in sleepers:
        sleeper.cancel()
