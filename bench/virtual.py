"""An event loop whose clock jumps to the next timer: ten minutes of waiting take as long as their arithmetic."""

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """A selector that never waits, but tells how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


MOST_TURNS = 100_000
"""Of a PureLoop. A history takes a few thousand, or up to 40,000 where many wait for a rest and look every second."""


class HangError(RuntimeError):
    """A task waits for something that no other task will ever do."""


class _Nothing:
    """In the place of a selector, where there is no file to wait for."""

    def close(self) -> None:
        pass


class PureLoop(asyncio.BaseEventLoop):
    """Timers and tasks, nothing else: no sockets, threads, signals. Costs half of VirtualLoop to make, less to turn.

    Instead of waiting or turning for ever it raises HangError: with nothing left to happen, or after too many turns.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int

    def __init__(self, most: int = MOST_TURNS) -> None:
        super().__init__()
        self._selector = _Nothing()
        self._now = 0.0
        self._turns = 0
        self._most = most

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        self._turns += 1
        if self._turns > self._most:
            raise HangError(f"after {self._most:,} turns of the loop somebody still waits; it is {self._now:g} s now")
        while not ready:
            if not scheduled:
                raise HangError("nothing is left that could happen, and somebody still waits")
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer.cancelled():
                self._timer_cancelled_count -= 1
                continue
            self._now = max(self._now, timer.when())
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """No other thread sleeps here, so none needs to be woken."""


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def run_pure(main: Coroutine[Any, Any, T], most: int = MOST_TURNS) -> T:
    """The same for what needs timers alone. Whatever still runs at its end is cancelled."""
    with asyncio.Runner(loop_factory=lambda: PureLoop(most)) as runner:
        return runner.run(main)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def share(counts: Mapping[str, int], name: str, of: float) -> str:
    return f"{100 * counts[name] / of:.1f} %" if of else "-"
