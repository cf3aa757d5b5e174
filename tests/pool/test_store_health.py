"""store_health: when the store counts as down or slow, when as well again, and what is counted and told."""

import asyncio
import logging

import pytest

from pollux.backends.store.contract import StoreUnavailableError
from pollux.pool.store_health import Counters, StoreHealth
from tests.pools import FaultyStore, memory, play


async def _watch(delay: float = 0.0) -> tuple[StoreHealth, FaultyStore]:
    store = FaultyStore(await memory(), lambda: delay / 2)
    return StoreHealth(store), store


async def _commits(watch: StoreHealth, names: str, pause: float = 0.0) -> None:
    for name in names:
        await asyncio.sleep(pause)
        await watch.commit(name, {"n": 1}, None, Counters())


def test_three_slow_commits_in_a_row_are_trouble_and_one_quick_one_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        watch, store = await _watch(1.2)
        await _commits(watch, "abc")
        assert watch.trouble == "", "the first one opened the connection and is not judged"
        await _commits(watch, "d")
        assert watch.trouble == "slow"
        assert not watch.down
        assert watch.as_json()["state"] == "slow"
        assert watch.as_json()["why"] == "3 commits in a row took longer than 1 s"
        store.delay = lambda: 0.3
        await _commits(watch, "e")
        assert watch.trouble == ""

    with caplog.at_level(logging.WARNING, "pollux.store"):
        play(scene())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "the store is slow" in caplog.text
    assert "answers again" in caplog.text


def test_two_slow_ones_a_quick_one_and_two_slow_ones_are_no_trouble() -> None:
    async def scene() -> None:
        watch, store = await _watch()
        await _commits(watch, "a")
        for number, delay in enumerate([2.0, 2.0, 0.1, 2.0, 2.0]):
            store.delay = lambda delay=delay: delay / 2  # type: ignore[misc]
            await _commits(watch, str(number))
        assert watch.trouble == ""

    play(scene())


def test_the_first_after_a_rest_is_not_judged() -> None:
    """The process may have been frozen, as between two requests on Cloud Run."""

    async def scene() -> None:
        watch, _ = await _watch(3.0)
        await _commits(watch, "abcdef", pause=20.0)
        assert watch.trouble == ""

    play(scene())


def test_a_quick_one_after_a_rest_ends_it_too() -> None:
    """Else an instance with little to do would take the store for slow as long as it lives."""

    async def scene() -> None:
        watch, store = await _watch(1.2)
        await _commits(watch, "abcd")
        assert watch.trouble == "slow"
        await _commits(watch, "e", pause=20.0)
        assert watch.trouble == "slow", "a slow one after a rest tells nothing new"
        store.delay = lambda: 0.1
        await _commits(watch, "f", pause=20.0)
        assert watch.trouble == ""

    play(scene())


def test_a_commit_that_fails_is_trouble_until_a_commit_succeeds_and_a_read_does_not_end_it() -> None:
    async def scene() -> None:
        watch, store = await _watch()
        told: list[str] = []
        watch.recovered.append(lambda: told.append(watch.trouble))
        store.faults = ["down"]
        with pytest.raises(StoreUnavailableError):
            await _commits(watch, "a")
        assert watch.down
        await watch.read(["a"])
        assert watch.down
        await _commits(watch, "a")
        assert not watch.down
        assert told == [""]
        store.faults = ["down"]
        with pytest.raises(StoreUnavailableError):
            await _commits(watch, "b")
        assert watch.down

    play(scene())


def test_a_read_that_fails_is_trouble_until_one_succeeds() -> None:
    async def scene() -> None:
        watch, store = await _watch()
        store.read_faults = ["down"]
        with pytest.raises(StoreUnavailableError):
            await watch.read(["a"])
        assert watch.down
        await watch.read(["a"])
        assert not watch.down

    play(scene())


def test_everything_asked_of_the_store_is_counted_and_timed() -> None:
    async def scene() -> None:
        watch, _ = await _watch(0.2)
        mine = Counters()
        await watch.commit("a", {"n": 1}, None, mine)
        with pytest.raises(Exception, match="changed by another writer"):
            await watch.commit("a", {"n": 2}, None, mine)
        await watch.read(["a", "b", "c"])
        assert mine == Counters(commits=2, conflicts=1)
        assert watch.counters == Counters(commits=2, conflicts=1, reads=3)
        assert watch.seconds == pytest.approx(0.6)
        watch.waits.extend([0.001] * 99 + [0.5])
        found = watch.as_json()
        assert found["commit_ms"] == {"median": 200, "p99": 200}
        assert found["waited_ms"] == {"median": 1, "p99": 500}
        assert (found["state"], found["why"], found["since"]) == ("ok", None, None)

    play(scene())
