"""refreshing: when the old serves, when it is waited for, and what a CPU that sleeps in the middle does to it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.secret_manager import AGAIN_S, OLD_S, PATIENCE_S, STALE_S, Refreshing


class Far:
    """What is far away: each fetch ends when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fetches: list[asyncio.Future[None]] = []
        self.refreshing = Refreshing(self._fetch, lambda: self.now)

    async def _fetch(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.fetches.append(future)
        await future

    async def end(self, error: Exception | None = None) -> None:
        future = self.fetches[-1]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        await turns()

    async def fetched(self) -> None:
        asking = asyncio.create_task(self.refreshing())
        await turns()
        await self.end()
        await asking


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[Far], Coroutine[Any, Any, None]]) -> None:
    async def with_far() -> None:
        far = Far()
        try:
            await test(far)
        finally:
            await far.refreshing.close()

    asyncio.run(with_far())


def test_within_a_minute_one_request_after_another_keeps_it_fresh_and_none_waits() -> None:
    async def test(far: Far) -> None:
        await far.fetched()
        for _ in range(10):
            far.now += STALE_S
            await far.refreshing()
            await turns()
            await far.end()
        assert len(far.fetches) == 11

    run(test)


def test_whoever_waits_is_served_the_old_if_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux.backends.keys.secret_manager.PATIENCE_S", 0.01)

    async def test(far: Far) -> None:
        await far.fetched()
        far.now += OLD_S + 1
        await far.refreshing()
        assert len(far.fetches) == 2
        assert not far.fetches[-1].done()
        await far.refreshing()
        assert len(far.fetches) == 2  # it goes on, for all

    run(test)
    assert PATIENCE_S < OLD_S - STALE_S


def test_a_refresh_that_the_cpu_slept_through_counts_from_its_begin() -> None:
    async def test(far: Far) -> None:
        await far.fetched()
        far.now += STALE_S
        await far.refreshing()
        await turns()
        far.now += 3600  # in the middle of it
        await far.end()
        assert len(far.fetches) == 2
        asking = asyncio.create_task(far.refreshing())
        await turns()
        assert len(far.fetches) == 3  # what it brought may be an hour old
        assert not asking.done()
        await far.end()
        await asking

    run(test)


def test_one_that_failed_over_a_sleep_is_tried_again_at_once() -> None:
    async def test(far: Far) -> None:
        await far.fetched()
        far.now += STALE_S
        await far.refreshing()
        await turns()
        far.now += 3600
        await far.end(KeySourceError("no answer"))
        await far.refreshing()
        await turns()
        assert len(far.fetches) == 3

    run(test)


def test_a_clock_that_is_set_back_does_not_stop_it() -> None:
    async def test(far: Far) -> None:
        await far.fetched()
        far.now -= 86400
        asking = asyncio.create_task(far.refreshing())
        await turns()
        assert len(far.fetches) == 2
        await far.end()
        await asking

    run(test)


def test_an_error_that_nobody_thought_of_is_one_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test(far: Far) -> None:
        asking = asyncio.create_task(far.refreshing())
        await turns()
        await far.end(ZeroDivisionError("secret words"))
        with pytest.raises(KeySourceError, match=r"^a refresh failed: ZeroDivisionError$"):
            await asking
        far.now += AGAIN_S
        await far.fetched()
        assert far.refreshing.error is None

    run(test)
    assert "a refresh failed" in caplog.text


def test_the_end_cancels_what_is_under_way() -> None:
    async def test(far: Far) -> None:
        asking = asyncio.create_task(far.refreshing())
        await turns()
        await far.refreshing.close()
        assert far.fetches[0].cancelled()
        asking.cancel()

    run(test)
