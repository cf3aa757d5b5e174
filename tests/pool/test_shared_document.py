import asyncio
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.backends.store.contract import StoreUnavailableError
from pollux.pool.shared_document import SharedDocument
from tests.pools import FaultyStore, add, added, counts, memory, play, stored, take, up_to


async def _store(delay: float = 0.01) -> FaultyStore:
    return FaultyStore(await memory(), lambda: delay / 2)


def test_one_commit_is_under_way_and_all_that_waits_goes_with_the_next() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        first = document.apply(add("first"))
        await asyncio.sleep(0.001)
        others = [document.apply(add(f"n{number}")) for number in range(500)]
        assert document.busy
        assert await first == "first"
        assert await asyncio.gather(*others) == [f"n{number}" for number in range(500)]
        assert (store.commits, store.most_under_way) == (2, 1)
        assert len(await stored(store)) == 501
        assert not document.busy

    play(scene())


def test_results_are_seen_only_once_they_are_committed() -> None:
    async def scene() -> None:
        store = await _store(1)
        document = counts(store)
        future = document.apply(add("a"))
        await asyncio.sleep(0.9)
        assert not future.done()
        assert document.value == {}
        await future
        assert document.value == await stored(store) == {"a": 1}

    play(scene())


def test_a_change_that_changes_nothing_needs_no_commit() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        assert await document.apply(lambda value, now: (value, now)) == store.now()
        assert (store.commits, store.reads) == (0, 0)

    play(scene())


def test_after_a_conflict_the_changes_run_again_on_what_the_other_wrote() -> None:
    async def scene() -> None:
        store = await _store()
        mine, other = counts(store, "mine"), counts(store, "other")
        await mine.apply(add("a"))
        await other.apply(add("a", 10))
        assert await mine.apply(lambda value, _: (value | {"seen": value["a"]}, value["a"])) == 11
        assert await stored(store) == {"a": 11, "seen": 11}

    play(scene())


def test_many_writers_lose_no_count() -> None:
    async def scene() -> None:
        rng = random.Random(1)
        inner = await memory()
        documents = [counts(FaultyStore(inner, up_to(0.2, rng)), f"w{n}") for n in range(5)]

        async def writer(document: SharedDocument[dict[str, int]]) -> None:
            for _ in range(40):
                await asyncio.sleep(rng.uniform(0, 0.1))
                await document.apply(add("a"))

        await asyncio.gather(*(writer(document) for document in documents for _ in range(2)))
        assert await stored(FaultyStore(inner)) == {"a": 400}

    play(scene())


@pytest.mark.parametrize("fault", ["lost", "conflict"])
def test_a_lost_answer_is_applied_once(fault: str) -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        await document.apply(add("before"))
        store.faults = [fault]
        document.add_to_next_commit(added("unawaited"))
        await asyncio.gather(document.apply(add("a")), document.apply(add("b")))
        await document.apply(add("after"))
        await document.flush()
        assert await stored(store) == {"before": 1, "unawaited": 1, "a": 1, "b": 1, "after": 1}
        assert document.value == await stored(store)
        assert store.commits == 3

    play(scene())


@pytest.mark.parametrize("fault", ["lost", "conflict"])
def test_a_lost_answer_is_known_even_if_another_instance_wrote_since(fault: str) -> None:
    async def scene() -> None:
        store = await _store(1)
        other = counts(FaultyStore(store.inner), "other")
        mine = counts(store, "mine")
        store.faults = [fault]
        future = mine.apply(add("a"))
        mine.add_to_next_commit(added("unawaited"))
        await asyncio.sleep(0.75)
        await other.apply(add("a", 10))
        assert await future == "a"
        await mine.flush()
        assert await stored(store) == {"a": 11, "unawaited": 1}

    play(scene())


def test_a_change_that_was_not_written_is_an_error_for_its_caller_and_stays_undone() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        store.faults = ["down"]
        document.add_to_next_commit(added("unawaited"))
        with pytest.raises(StoreUnavailableError):
            await document.apply(add("a"))
        assert document.value == {"unawaited": 1}
        await document.apply(add("b"))
        assert await stored(store) == {"unawaited": 1, "b": 1}

    play(scene())


def test_unawaited_of_a_lost_commit_count_once_even_if_reading_failed_too() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        await document.apply(add("before"))
        store.faults, store.read_faults = ["lost"], ["down"]
        document.add_to_next_commit(added("unawaited"))
        with pytest.raises(StoreUnavailableError):
            await document.apply(add("a"))
        document.add_to_next_commit(added("second"))
        await document.apply(add("b"))
        assert await stored(store) == {"before": 1, "unawaited": 1, "second": 1, "a": 1, "b": 1} == document.value

    play(scene())


def test_unawaited_of_a_commit_that_lands_late_count_once() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        await document.apply(add("before"))
        store.faults = ["late"]
        document.add_to_next_commit(added("unawaited"))
        with pytest.raises(StoreUnavailableError):
            await document.apply(add("a"))
        await asyncio.sleep(2)
        await document.apply(add("b"))
        await document.flush()
        assert await stored(store) == {"before": 1, "unawaited": 1, "a": 1, "b": 1} == document.value

    play(scene())


def test_reading_tells_of_a_lost_commit_as_well() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        store.faults, store.read_faults = ["lost"], ["down"]
        document.add_to_next_commit(added("unawaited"))
        with pytest.raises(StoreUnavailableError):
            await document.apply(add("a"))
        await document.refresh(0)
        assert document.value == {"unawaited": 1, "a": 1}
        await document.apply(add("b"))
        assert await stored(store) == {"unawaited": 1, "a": 1, "b": 1}

    play(scene())


def test_a_vanished_document_is_written_back() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        await document.apply(add("a"))
        (_, version) = (await store.inner.read(["counts"]))["counts"]
        await store.inner.delete("counts", version)
        document.add_to_next_commit(added("unawaited"))
        await document.apply(add("b"))
        assert await stored(store) == {"a": 1, "unawaited": 1, "b": 1}

    play(scene())


@pytest.mark.parametrize("turns", range(6))
def test_a_caller_that_leaves_gives_back_its_change_and_stops_no_commit(turns: int) -> None:
    """At every turn of the loop: before the commit, in it, and when its answer is there but was not looked at yet."""

    async def scene() -> None:
        store = await _store(0)
        document = counts(store)
        leaver = asyncio.create_task(document.perform(add("leaver"), take("leaver")))
        other = asyncio.create_task(document.perform(add("other"), take("other")))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaver.cancel()
        assert await other == "other"
        await asyncio.gather(leaver, return_exceptions=True)
        await document.flush()
        assert await stored(store) == ({"other": 1} if leaver.cancelled() else {"other": 1, "leaver": 1})

    play(scene())


def test_a_waiter_that_is_cancelled_in_the_turn_of_its_answer_gives_back() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        # Called in the turn in which both futures are done, before the waiter wakes.
        document.apply(add("b")).add_done_callback(lambda _: waiter.cancel())
        waiter = asyncio.create_task(document.perform(add("a"), take("a")))
        await asyncio.gather(waiter, return_exceptions=True)
        await document.flush()
        assert waiter.cancelled()
        assert await stored(store) == {"b": 1}

    play(scene())


def test_without_an_undo_a_cancelled_change_is_made_all_the_same() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        first = document.apply(add("a"))
        second = document.apply(add("b"))
        second.cancel()
        await first
        await document.flush()
        assert await stored(store) == {"a": 1, "b": 1}

    play(scene())


def test_what_rides_is_seen_at_once_and_goes_with_the_next_commit() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        document.add_to_next_commit(added("unawaited"))
        assert document.value == {"unawaited": 1}
        await asyncio.sleep(10)
        assert store.commits == 0
        await document.apply(add("a"))
        assert await stored(store) == {"unawaited": 1, "a": 1}
        assert store.commits == 1

    play(scene())


def test_what_rides_during_a_commit_does_not_make_another_one() -> None:
    async def scene() -> None:
        store = await _store()
        document = counts(store)
        future = document.apply(add("a"))
        await asyncio.sleep(0.001)
        document.add_to_next_commit(added("unawaited"))
        await future
        assert document.value == {"unawaited": 1, "a": 1}
        await asyncio.sleep(10)
        assert (store.commits, await stored(store)) == (1, {"a": 1})
        await document.flush()
        assert (store.commits, await stored(store)) == (2, {"a": 1, "unawaited": 1})

    play(scene())


def test_commit_soon_commits_at_most_so_often() -> None:
    async def scene() -> None:
        store = await _store(0.3)
        document = counts(store)
        for _ in range(1000):
            document.add_to_next_commit(added("a"))
            document.commit_soon(1.0)
            await asyncio.sleep(0.01)
        assert 9 <= store.commits <= 11
        assert document.value == {"a": 1000}
        await document.flush()
        assert await stored(store) == {"a": 1000}

    play(scene())


def test_commit_soon_commits_the_last_change_too() -> None:
    async def scene() -> None:
        store = await _store(0)
        document = counts(store)
        for _ in range(3):
            document.add_to_next_commit(added("a"))
            document.commit_soon(1.0)
        await asyncio.sleep(0.9)
        assert (store.commits, await stored(store)) == (1, {"a": 3})
        document.add_to_next_commit(added("a"))
        document.commit_soon(1.0)
        assert store.commits == 1
        await asyncio.sleep(1.1)  # nobody asks again
        assert (store.commits, await stored(store)) == (2, {"a": 4})
        await asyncio.sleep(10)
        assert store.commits == 2

    play(scene())


def test_what_is_due_now_does_not_wait_for_what_is_due_later() -> None:
    async def scene() -> None:
        store = await _store(0)
        document = counts(store)
        document.submit(added("a"))
        await asyncio.sleep(0.1)
        document.add_to_next_commit(added("a"))
        document.commit_soon(30.0)
        document.commit_soon(0)
        await asyncio.sleep(0.1)
        assert (store.commits, await stored(store)) == (2, {"a": 2})

    play(scene())


def test_flush_waits_for_the_commit_under_way_and_for_what_rides() -> None:
    async def scene() -> None:
        store = await _store(1)
        document = counts(store)
        document.submit(added("a"))
        await asyncio.sleep(0.5)
        document.add_to_next_commit(added("unawaited"))
        await document.flush()
        assert await stored(store) == {"a": 1, "unawaited": 1}
        await document.flush()
        assert store.commits == 2

    play(scene())


def test_flush_ends_although_the_store_is_down(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        store = await _store()
        store.faults = ["down"] * 9
        document = counts(store)
        document.submit(added("a"))
        document.add_to_next_commit(added("unawaited"))
        await document.flush()
        assert document.value == {"a": 1, "unawaited": 1}
        store.faults = []
        await document.flush()
        assert await stored(store) == {"a": 1, "unawaited": 1}

    with caplog.at_level(logging.WARNING, "pollux.store"):
        play(scene())
    assert [record.message for record in caplog.records][:1] == ["the store is down: the store does not answer"]


def test_a_document_that_never_stands_still_is_an_error_and_not_an_endless_loop() -> None:
    async def scene() -> None:
        store = await _store(1)
        other = counts(FaultyStore(store.inner), "other")
        document = counts(store)

        async def disturb() -> None:
            while True:
                await other.apply(add("other"))
                await asyncio.sleep(0.1)

        disturber = asyncio.create_task(disturb())
        with pytest.raises(StoreUnavailableError, match="changed 50 times"):
            await document.apply(add("a"))
        disturber.cancel()
        await document.apply(add("a"))
        assert (await stored(store))["a"] == 1

    play(scene())


def test_an_error_in_a_change_reaches_its_callers_and_the_document_goes_on() -> None:
    async def scene() -> None:
        document = counts(await _store())
        with pytest.raises(ZeroDivisionError):
            await document.apply(lambda value, _: (value, 1 // 0))
        assert await document.apply(add("a")) == "a"

    play(scene())


def test_a_refresh_reads_once_for_all_who_ask_and_only_if_what_is_known_is_old() -> None:
    async def scene() -> None:
        store = await _store()
        document, other = counts(store), counts(FaultyStore(store.inner), "other")
        await document.apply(add("a"))
        await other.apply(add("a"))
        await asyncio.gather(*(document.refresh(5) for _ in range(20)))
        assert (store.reads, document.value) == (0, {"a": 1})
        await asyncio.sleep(6)
        await asyncio.gather(*(document.refresh(5) for _ in range(20)))
        assert (store.reads, document.value) == (1, {"a": 2})

    play(scene())


def test_a_refresh_waits_for_the_commit_under_way_which_tells_as_much() -> None:
    async def scene() -> None:
        store = await _store(0.4)
        document, other = counts(store), counts(FaultyStore(store.inner), "other")
        await document.apply(add("a"))
        await other.apply(add("a"))
        await asyncio.sleep(6)
        document.submit(added("mine"))
        await document.refresh(5)
        assert document.value == {"a": 2, "mine": 1}

    play(scene())


def test_an_answer_to_a_read_older_than_a_commit_is_not_taken_over() -> None:
    async def scene() -> None:
        inner = await memory()
        delays = iter([0.0, 0.0, 0.0, 5.0, 0.0, 0.0])  # commit there and back, read there and slowly back, commit
        store = FaultyStore(inner, lambda: next(delays))
        document = counts(store)
        await document.apply(add("a"))
        await asyncio.sleep(1)
        reading = asyncio.create_task(document.refresh(0))
        await asyncio.sleep(0.1)
        await document.apply(add("b"))
        await reading
        assert document.value == {"a": 1, "b": 1}
        store.delay = lambda: 0.0
        await document.apply(add("c"))
        assert store.commits == 3  # no conflict: the version was not an old one either

    play(scene())


_FAULTS = st.lists(st.sampled_from(["", "", "down", "lost", "conflict", "late"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    mine=_FAULTS,
    other=_FAULTS,
    reads=st.lists(st.sampled_from(["", "", "down"]), max_size=6),
    acts=st.lists(st.tuples(st.sampled_from("abr"), st.floats(0, 0.5)), max_size=14),
    seed=st.integers(0, 99),
)
def test_whatever_befalls_the_store_nothing_is_lost_or_made_twice(
    mine: list[str], other: list[str], reads: list[str], acts: list[tuple[str, float]], seed: int
) -> None:
    """Two writers. What was told to be done is there once; what failed is there once or not at all; unawaited once."""

    async def scene() -> None:
        rng = random.Random(seed)
        inner = await memory()
        stores = [FaultyStore(inner, up_to(0.3, rng)) for _ in range(2)]
        stores[0].faults, stores[1].faults, stores[0].read_faults = list(mine), list(other), list(reads)
        documents = [counts(store, writer) for store, writer in zip(stores, "ab", strict=True)]
        waiting: dict[str, asyncio.Future[str]] = {}
        unawaited = []
        for number, (act, pause) in enumerate(acts):
            name = f"{act}{number}"
            if act == "r":
                documents[0].add_to_next_commit(added(name))
                unawaited.append(name)
            else:
                waiting[name] = documents[act == "b"].apply(add(name))
            await asyncio.sleep(pause)
        results = dict(zip(waiting, await asyncio.gather(*waiting.values(), return_exceptions=True), strict=True))
        await asyncio.sleep(5)
        for store in stores:
            store.faults, store.read_faults = [], []
        for document in documents:
            await document.flush()
            await document.refresh(0)
        found = await stored(stores[0])
        assert set(found.values()) <= {1}
        assert set(found) >= {name for name, result in results.items() if result == name}
        assert set(found) >= set(unawaited)
        assert all(document.value == found for document in documents)

    play(scene())
