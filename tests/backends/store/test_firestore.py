"""The Firestore store beyond the contract: documents as stored, versions, time, outages."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from pollux.backends.store import firestore_documents as documents
from pollux.backends.store.contract import ConflictError, StoreError, StoreUnavailableError, Write
from pollux.backends.store.firestore import FirestoreStore
from tests.backends.store.contract.backends import project
from tools.emulator import Emulator, started

Scene = Callable[[FirestoreStore], Awaitable[None]]


@pytest.fixture
def make(firestore_emulator: str, tmp_path: Path) -> Callable[..., FirestoreStore]:
    def made(**details: Any) -> FirestoreStore:
        return FirestoreStore(project(tmp_path), emulator=firestore_emulator, **details)

    return made


async def fields(store: FirestoreStore, name: str) -> Any:
    """What lies in Firestore itself."""
    calls: Any = store._calls
    request = calls.BatchGetDocuments(database=store._root, documents=[store._path(name)])
    answers = await store._answers(calls.batch_get, request, store._metadata)
    return answers[0].found.fields


async def put(store: FirestoreStore, name: str, change: Callable[[Any], None]) -> None:
    """Change what lies there, as another program might."""
    calls: Any = store._calls
    request = calls.Commit(database=store._root)
    update = request.writes.add().update
    update.name = store._path(name)
    documents.fill(update.fields, "{}", {}, "someone")
    change(update.fields)
    await calls.commit(request, metadata=store._metadata, timeout=5)


def play(store: FirestoreStore, scene: Scene) -> None:
    async def scenes() -> None:
        await store.open()
        try:
            await scene(store)
        finally:
            await store.close()

    asyncio.run(scenes())


def test_a_document_lies_there_as_one_text_with_an_envelope(make: Callable[..., FirestoreStore]) -> None:
    async def scene(store: FirestoreStore) -> None:
        await store.commit("a", {"text": "\ud800é", "n": 2**63 - 1}, None)
        there = await fields(store, "a")
        assert set(there) == {"v", "json", "nonce"}
        assert there["v"].integer_value == 1
        assert there["json"].string_value == '{"text":"\\ud800\\u00e9","n":9223372036854775807}'

    play(make(), scene)


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [(1_800_000_000, 1_800_000_000), (1.8e9 + 0.7, 1_800_000_000), (0, 0)],
)
def test_what_expires_says_so_to_firestore(make: Callable[..., FirestoreStore], expires: float, seconds: int) -> None:
    async def scene(store: FirestoreStore) -> None:
        await store.commit("a", {"expires": expires}, None)
        assert (await fields(store, "a"))["expires_at"].timestamp_value.seconds == seconds
        assert (await store.read(["a"]))["a"][0] == {"expires": expires}

    play(make(), scene)


@pytest.mark.parametrize("expires", [None, True, "tomorrow", -1, 1e300, [1]])
def test_what_is_no_time_does_not_expire(make: Callable[..., FirestoreStore], expires: object) -> None:
    async def scene(store: FirestoreStore) -> None:
        await store.commit("a", {"expires": expires}, None)
        assert "expires_at" not in await fields(store, "a")

    play(make(), scene)


def test_a_newer_format_is_an_error_that_says_upgrade(make: Callable[..., FirestoreStore]) -> None:
    def newer(there: Any) -> None:
        there["v"].integer_value = 2

    async def scene(store: FirestoreStore) -> None:
        await put(store, "a", newer)
        says = "document 'a' has format 2, this Pollux knows 1: upgrade"
        with pytest.raises(StoreError, match=says):
            await store.read(["a"])
        with pytest.raises(StoreError, match=says):
            await store.scan("")
        with pytest.raises(ConflictError):  # and nothing of it is overwritten
            await store.commit("a", {}, None)

    play(make(), scene)


@pytest.mark.parametrize("broken", ["json", "v"])
@pytest.mark.parametrize("how", ["missing", "another kind", "no JSON"])
def test_what_somebody_else_wrote_is_damaged(make: Callable[..., FirestoreStore], broken: str, how: str) -> None:
    def change(there: Any) -> None:
        if how == "missing":
            del there[broken]
        elif how == "another kind":
            there[broken].double_value = 1.0
        else:
            there[broken].string_value = "{"

    async def scene(store: FirestoreStore) -> None:
        await put(store, "a", change)
        with pytest.raises(StoreError, match="document 'a' is damaged"):
            await store.read(["a"])

    play(make(), scene)


def test_a_document_too_large_for_firestore_is_a_value_error(make: Callable[..., FirestoreStore]) -> None:
    async def scene(store: FirestoreStore) -> None:
        with pytest.raises(ValueError, match="document 'b' has 1000011 bytes, more than 1000000"):
            await store.commit_all([Write("a", {}, None), Write("b", {"body": "x" * 1_000_000}, None)])
        assert await store.scan("") == {}

    play(make(), scene)


AWKWARD = [".", "..", "...", "_", "__a__", "/", "%", "%2F", "a/b", "é" * 250, "/" * 500, "%" * 500, "__id7__"]


def test_names_that_firestore_forbids_are_names_all_the_same(make: Callable[..., FirestoreStore]) -> None:
    async def scene(store: FirestoreStore) -> None:
        await store.commit_all([Write(name, {"name": name}, None) for name in AWKWARD])
        found = await store.scan("")
        assert list(found) == sorted(AWKWARD)
        assert all(found[name][0] == {"name": name} for name in AWKWARD)
        assert await store.read(AWKWARD) == found
        for prefix in "./_%":
            assert list(await store.scan(prefix)) == sorted(name for name in AWKWARD if name.startswith(prefix))

    play(make(), scene)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("./_%"), min_size=1)


@given(NAMES, NAMES)
def test_ids_are_lawful_reversible_and_keep_prefixes(name: str, other: str) -> None:
    document_id = documents.escaped(name)
    assert documents.unescaped(document_id) == name
    assert "/" not in document_id
    assert document_id not in (".", "..")
    assert not document_id.startswith("__")
    assert documents.escaped(name + other).startswith(document_id)
    end = documents.successor(document_id)
    assert not end or document_id + documents.escaped("a" + other)[1:] < end


def test_versions_of_equal_writes_in_the_same_moment_differ(make: Callable[..., FirestoreStore]) -> None:
    async def scene(store: FirestoreStore) -> None:
        other = make()
        await other.open()
        version = await store.commit("a", {}, None)
        seen = {version}
        for turn in range(100):
            version = await (store, other)[turn % 2].commit("a", {}, version)
            seen.add(version)
        assert len(seen) == 101
        await other.close()

    play(make(), scene)


def is_right(store: FirestoreStore) -> bool:
    """The emulator's clock is that of this machine. Within its bounds, however long this process was held up."""
    before, said, after = time.time(), store.now(), time.time()
    return before - store.time.error - 0.01 <= said <= after + store.time.error + 0.01


@pytest.mark.parametrize("wrong", [0.0, 2.8, -86400.0, 1e6])
def test_the_time_is_that_of_the_store(make: Callable[..., FirestoreStore], wrong: float) -> None:
    async def scene(store: FirestoreStore) -> None:
        version = None
        for turn in range(20):
            version = await store.commit("a", {"n": turn}, version)
        assert is_right(store)
        assert store.time.error < 1
        await store.read(["absent"])
        await store.scan("absent")
        assert is_right(store)

    play(make(clock=lambda: time.time() + wrong), scene)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_it_opens_and_closes_many_times_in_one_process(
    make: Callable[..., FirestoreStore], run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def cycle(turn: int) -> None:
        stores = [make(), make()]
        for store in stores:
            await store.open()
        await asyncio.gather(*(store.commit(f"{turn}-{id(store)}", {}, None) for store in stores))
        for store in stores:
            await store.close()

    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    with caplog.at_level(logging.WARNING):
        for turn in range(20):
            run(cycle(turn))
    assert caplog.records == []
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 8


@pytest.fixture(scope="module")
def breakable() -> Any:
    with started() as emulator:
        yield emulator


def short(emulator: Emulator) -> FirestoreStore:
    return FirestoreStore("demo-faults", emulator=emulator.host, timeout=0.3)


def test_a_store_that_does_not_answer_is_unavailable_in_time_and_works_again_later(breakable: Emulator) -> None:
    async def scene() -> None:
        store = FirestoreStore("demo-faults", emulator=breakable.host)
        await store.open()
        version = await store.commit("paused", {"n": 1}, None)
        store._timeout = 0.3
        breakable.pause()
        try:
            for use in (lambda: store.commit("paused", {"n": 2}, version), lambda: store.read(["a"])):
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.3 s"):
                    await use()
                assert time.monotonic() - began < 3
            with pytest.raises(StoreError, match="did not answer"):
                await short(breakable).open()
        finally:
            breakable.resume()
        store._timeout = 5
        document, version = (await store.read(["paused"]))["paused"]
        assert document["n"] in (1, 2)  # a commit without an answer may have been applied
        await store.commit("paused", {"n": 3}, version)
        await store.close()

    asyncio.run(scene())


def test_closing_ends_what_is_under_way_with_an_error_and_a_cancelled_task_is_cancelled(breakable: Emulator) -> None:
    async def scene() -> None:
        store = FirestoreStore("demo-faults", emulator=breakable.host)
        await store.open()
        breakable.pause()
        try:
            left = asyncio.ensure_future(store.commit("left", {}, None))
            under_way = [asyncio.ensure_future(store.read(["a"])), asyncio.ensure_future(store.commit("b", {}, None))]
            await asyncio.sleep(0.05)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            await store.close()
            for task in under_way:
                with pytest.raises(StoreUnavailableError, match="closed while a request was under way"):
                    await task
        finally:
            breakable.resume()

    asyncio.run(scene())


def test_a_store_that_died_and_came_back_empty_is_used_again_soon(breakable: Emulator) -> None:
    async def scene() -> None:
        store = FirestoreStore("demo-faults", emulator=breakable.host)
        await store.open()
        version = await store.commit("a", {"n": 1}, None)
        breakable.kill()
        for use in (lambda: store.commit("a", {"n": 2}, version), lambda: store.read(["a"]), lambda: store.scan("")):
            with pytest.raises(StoreUnavailableError, match="no emulator answers at 127"):
                await use()
        with pytest.raises(StoreError, match=r"python -m tools\.emulator --port"):
            await short(breakable).open()
        breakable.start()
        began = time.monotonic()
        for _ in itertools.count():
            try:
                assert await store.read(["a"]) == {}
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 10  # not minutes, as by default
        with pytest.raises(ConflictError):
            await store.commit("a", {"n": 2}, version)
        await store.commit("a", {"n": 2}, None)
        breakable.wipe("demo-faults")
        assert await store.read(["a"]) == {}
        await store.close()

    asyncio.run(scene())
