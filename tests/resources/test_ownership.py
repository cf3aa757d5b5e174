"""Who owns what: remembered, kept in the store, and never a reason for an error."""

import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from bench import virtual
from pollux.resources.ownership import ABSENT_FOR, BOUND, DAY, MISSING_FOR, READ_MOST, Owner, Ownership
from tests.pools import BEGAN, FaultyStore, Keys, Projects, catalog, keys_of, memory, play


async def instance(store: FaultyStore | None = None, keys: Keys | None = None, most: int = 100) -> Ownership:
    found = store or FaultyStore(await memory())
    return Ownership(Projects(found, keys or keys_of(4), catalog()), most)


async def owner_of(ownership: Ownership, name: str) -> Owner | None:
    return (await ownership.owners([name])).get(name)


def store_of(ownership: Ownership) -> FaultyStore:
    store = ownership.projects.store
    assert isinstance(store, FaultyStore)
    return store


def scene(test: Any) -> Any:
    """In virtual time."""

    def run(*args: Any, **more: Any) -> None:
        made: Coroutine[Any, Any, None] = test(*args, **more)
        play(made)

    run.__name__ = test.__name__
    return run


@scene
async def test_one_instance_makes_another_finds() -> None:
    one = await instance()
    await one.bind({"files/a": BEGAN + DAY}, "p1", "alice")
    other = await instance(store_of(one))
    assert await owner_of(other, "files/a") == Owner("p1", "alice", BEGAN + DAY)
    found = await store_of(one).inner.read([BOUND + "files/a"])
    assert found[BOUND + "files/a"][0] == {"v": 1, "project": "p1", "client": "alice", "expires": int(BEGAN + DAY)}


@scene
async def test_what_is_remembered_costs_the_store_nothing() -> None:
    ownership = await instance()
    await ownership.bind({"files/a": None, "files/b": None}, "p1", "alice")
    reads, commits = ownership._watch.counters.reads, store_of(ownership).commits
    for _ in range(3):
        assert {owner.project for owner in (await ownership.owners(["files/a", "files/b"])).values()} == {"p1"}
        await ownership.bind({"files/a": None}, "p1", "bob")
    assert (ownership._watch.counters.reads, store_of(ownership).commits) == (reads, commits)
    assert reads == 0
    assert commits == 2


@scene
async def test_unknown_names_are_read_at_once_and_not_again_for_some_seconds() -> None:
    store = FaultyStore(await memory())
    ownership = await instance(store)
    assert await ownership.owners(["files/a", "files/b", "caches/c"]) == {}
    assert store.reads == 1
    assert await ownership.owners(["files/a", "files/b"]) == {}
    assert store.reads == 1
    await (await instance(store)).bind({"files/a": None}, "p2", "alice")
    await store.sleep(ABSENT_FOR + 0.1)
    owner = await owner_of(ownership, "files/a")
    assert owner is not None
    assert owner.project == "p2"
    assert store.reads == 2


@pytest.mark.parametrize(
    ("name", "days"),
    [("files/a", 2), ("interactions/i", 60), ("fileSearchStores/s", 30), ("models/m/operations/o", 30)],
)
def test_a_binding_ends_as_such_things_do(name: str, days: int) -> None:
    async def months() -> None:
        ownership = await instance()
        await ownership.bind({name: None}, "p1", "alice")
        owner = await owner_of(ownership, name)
        assert owner is not None
        assert owner.expires == pytest.approx(BEGAN + days * DAY)
        await store_of(ownership).sleep(days * DAY + 1)
        assert await owner_of(ownership, name) is None
        assert await owner_of(await instance(store_of(ownership)), name) is None

    virtual.run(months())


@scene
async def test_a_later_end_is_written_and_who_made_it_stays() -> None:
    ownership = await instance()
    await ownership.bind({"cachedContents/c": BEGAN + 600}, "p1", "alice")
    await ownership.bind({"cachedContents/c": BEGAN + 610}, "p1", "bob")  # not worth it
    assert store_of(ownership).commits == 1
    await ownership.bind({"cachedContents/c": BEGAN + 7200}, "p1", "bob")
    assert await owner_of(await instance(store_of(ownership)), "cachedContents/c") == Owner("p1", "alice", BEGAN + 7200)


@scene
async def test_what_google_says_wins_over_what_was_written() -> None:
    one = await instance()
    await one.bind({"tunedModels/mine": None}, "p1", "alice")
    other = await instance(store_of(one))
    await other.bind({"tunedModels/mine": None}, "p3", "bob")  # made anew elsewhere, under the same name
    third = await instance(store_of(one))
    owner = await owner_of(third, "tunedModels/mine")
    assert owner is not None
    assert owner.project == "p3"
    one.forget("tunedModels/mine")
    found = await owner_of(one, "tunedModels/mine")
    assert found is not None
    assert found.project == "p3"


@scene
async def test_an_unbound_name_is_unknown_to_all_instances() -> None:
    one = await instance()
    await one.bind({"files/a": None}, "p1", "alice")
    await one.unbind("files/a")
    assert await owner_of(one, "files/a") is None
    assert await owner_of(await instance(store_of(one)), "files/a") is None
    await one.unbind("files/never")


@pytest.mark.parametrize("fault", ["down", "late", "lost", "spurious"])
def test_trouble_of_the_store_is_told_and_this_instance_remembers(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    @scene
    async def run() -> None:
        ownership = await instance()
        store_of(ownership).faults = [fault]
        await ownership.bind({"files/a": None}, "p1", "alice")
        owner = await owner_of(ownership, "files/a")
        assert owner is not None
        assert owner.project == "p1"

    run()
    told = [
        record.message for record in caplog.records if record.levelno == logging.ERROR and "files/a" in record.message
    ]
    assert bool(told) == (fault in ("down", "late", "lost"))


@scene
async def test_no_request_waits_long_for_a_store_that_hangs() -> None:
    store = FaultyStore(await memory())
    ownership = await instance(store)
    store.delay = lambda: 30.0
    began = store.now()
    await ownership.bind({"files/a": None}, "p1", "alice")
    assert store.now() - began == pytest.approx(2.0)
    assert (await owner_of(ownership, "files/a")) is not None
    assert await owner_of(ownership, "files/b") is None
    assert store.now() - began == pytest.approx(4.0)
    await ownership.unbind("files/a")
    assert store.now() - began == pytest.approx(6.0)
    await store.sleep(100)


@scene
async def test_a_body_of_countless_names_costs_few_reads() -> None:
    ownership = await instance()
    store = store_of(ownership)
    asked: list[str] = []
    inner = store.inner.read

    async def read(names: Any) -> Any:
        asked.extend(names)
        return await inner(names)

    store.inner.read = read  # type: ignore[method-assign]
    await ownership.bind({"files/z": None}, "p1", "alice")
    found = await ownership.owners([*(f"files/{number}" for number in range(100_000)), "files/z"])
    assert set(found) == {"files/z"}, "what is remembered counts, wherever it stands"
    assert len(asked) == READ_MOST


def test_a_read_that_takes_too_long_is_told_with_its_reason_and_few_names(caplog: pytest.LogCaptureFixture) -> None:
    @scene
    async def run() -> None:
        store = FaultyStore(await memory(), lambda: 30.0)
        await (await instance(store)).owners([f"files/{number}" for number in range(100)])
        await store.sleep(100)

    run()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told.endswith("files/19 and 80 more cannot be read: no answer in time")


@scene
async def test_a_store_that_does_not_answer_is_not_taken_for_one_that_knows_nothing() -> None:
    one = await instance()
    await one.bind({"files/a": None}, "p1", "alice")
    store = FaultyStore(store_of(one).inner)
    other = await instance(store)
    store.read_faults = ["down"]
    assert await owner_of(other, "files/a") is None
    found = await owner_of(other, "files/a")
    assert found is not None
    assert found.project == "p1"


@scene
async def test_memory_is_bounded_and_the_oldest_goes() -> None:
    ownership = await instance(most=3)
    for name in "abc":
        await ownership.bind({f"files/{name}": None}, "p1", "alice")
    assert ownership.remembered("files/a") is not None  # used: not the oldest any more
    await ownership.bind({"files/d": None}, "p1", "alice")
    assert ownership.remembered("files/b") is None
    assert ownership.remembered("files/a") is not None
    assert await owner_of(ownership, "files/b") is not None


@scene
async def test_a_list_is_remembered_here_only() -> None:
    ownership = await instance()
    ownership.remember({"files/a": None}, "p1", "alice")
    assert ownership.remembered("files/a") is not None
    assert store_of(ownership).commits == 0


@scene
async def test_where_a_client_made_something_last_and_what_is_nowhere() -> None:
    ownership = await instance()
    assert ownership.last_project("alice") is None
    await ownership.bind({"files/a": None}, "p1", "alice")
    await ownership.bind({"files/b": None}, "p2", "alice")
    assert ownership.last_project("alice") == "p2"
    ownership.remember_missing("files/x")
    assert ownership.is_missing("files/x")
    await store_of(ownership).sleep(MISSING_FOR + 1)
    assert not ownership.is_missing("files/x")
    ownership.remember_missing("files/x")
    await ownership.bind({"files/x": None}, "p1", "alice")
    assert not ownership.is_missing("files/x")


@scene
async def test_a_document_of_another_form_is_no_owner() -> None:
    ownership = await instance()
    await store_of(ownership).inner.commit(BOUND + "files/a", {"v": 9, "owners": ["p1"], "expires": 9e9}, None)
    assert await owner_of(ownership, "files/a") is None
