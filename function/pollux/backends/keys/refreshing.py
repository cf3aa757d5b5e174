"""Keeps what lies far away fresh while it is used: the old serves while the new is fetched. No I/O of its own."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from pollux.backends.keys.contract import KeySourceError

log = logging.getLogger("pollux.keys")

STALE_S = 30.0
OLD_S = 60.0
AGAIN_S = 5.0
PATIENCE_S = 3.0


class Refreshing:
    """Ask for it before each use. After 30 s a refresh starts beside the caller; beyond 60 s the caller waits for it,
    but not long, and not if the last one failed. One refresh serves all who ask, and one that failed is not repeated
    within 5 s. `error` is the last failure, until a success. Raises KeySourceError only while nothing was ever fetched.

    By the wall clock, and from a refresh's begin: without requests the CPU may sleep in the middle of one.
    """

    def __init__(self, fetch: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
        self.error: KeySourceError | None = None
        self._fetch = fetch
        self._clock = clock
        self._fetched_at = -math.inf
        self._began_at = -math.inf
        self._task: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        now = self._clock()
        age = abs(now - self._fetched_at)  # a clock that was set back must not stop it
        if age < STALE_S:
            return
        if self._task is None and abs(now - self._began_at) >= AGAIN_S:
            self._began_at = now
            self._task = asyncio.create_task(self._refresh())
        if self._fetched_at == -math.inf:
            if self._task is not None:
                await asyncio.shield(self._task)  # a client that leaves ends its own wait only
            if self.error is not None:
                raise KeySourceError(str(self.error)) from None
        elif self._task is not None and age > OLD_S and self.error is None:
            await asyncio.wait({self._task}, timeout=PATIENCE_S)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _refresh(self) -> None:
        began = self._began_at
        try:
            await self._fetch()
        except KeySourceError as error:
            if self.error is None and self._fetched_at > -math.inf:  # else whoever asked is told
                log.warning("%s", error)
            self.error = error
        except Exception as error:
            log.exception("a refresh failed")
            self.error = KeySourceError(f"a refresh failed: {type(error).__name__}")
        else:
            self.error = None
            self._fetched_at = began
        finally:
            self._task = None
