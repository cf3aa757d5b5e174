"""What every store must do, whatever is under it: versions, conflicts, atomicity, names, open and close."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pollux.backends.store.contract import ConflictError, Store, StoreError, Write
from pollux.backends.store.opening import open_store
from tests.backends.store.contract.backends import in_store, opened


def test_a_commit_without_version_creates(url: str) -> None:
    async def scene(store: Store) -> None:
        version = await store.commit("a", {"n": 1}, None)
        assert await store.read(["a"]) == {"a": ({"n": 1}, version)}

    in_store(url, scene)


def test_creating_what_exists_is_a_conflict(url: str) -> None:
    async def scene(store: Store) -> None:
        version = await store.commit("a", {"n": 1}, None)
        with pytest.raises(ConflictError) as conflict:
            await store.commit("a", {"n": 2}, None)
        assert conflict.value.name == "a"
        assert await store.read(["a"]) == {"a": ({"n": 1}, version)}

    in_store(url, scene)


def test_a_stale_version_is_a_conflict(url: str) -> None:
    async def scene(store: Store) -> None:
        first = await store.commit("a", {"n": 1}, None)
        second = await store.commit("a", {"n": 2}, first)
        assert second != first
        for stale in (first, "", "no version", f"{second}0"):
            with pytest.raises(ConflictError):
                await store.commit("a", {"n": 3}, stale)
            with pytest.raises(ConflictError):
                await store.delete("a", stale)
        assert await store.read(["a"]) == {"a": ({"n": 2}, second)}

    in_store(url, scene)


def test_an_equal_document_gets_a_new_version(url: str) -> None:
    async def scene(store: Store) -> None:
        first = await store.commit("a", {"n": 1}, None)
        assert await store.commit("a", {"n": 1}, first) != first

    in_store(url, scene)


def test_a_document_that_vanished_is_a_conflict(url: str) -> None:
    async def scene(store: Store) -> None:
        version = await store.commit("a", {"n": 1}, None)
        await store.delete("a", version)
        assert await store.read(["a"]) == {}
        with pytest.raises(ConflictError):
            await store.commit("a", {"n": 2}, version)
        with pytest.raises(ConflictError):
            await store.delete("a", version)
        assert await store.read(["a"]) == {}

    in_store(url, scene)


def test_versions_never_come_again(url: str) -> None:
    async def scene(store: Store) -> None:
        seen: set[str] = set()
        for _ in range(20):
            version = await store.commit("a", {"n": 1}, None)
            again = await store.commit("a", {"n": 1}, version)
            await store.delete("a", again)
            seen |= {version, again}
        assert len(seen) == 40

    in_store(url, scene)


def test_versions_never_come_again_after_reopening(shared_url: str) -> None:
    async def play() -> None:
        seen: set[str] = set()
        for _ in range(5):
            async with opened(shared_url) as store:
                version = await store.commit("a", {"n": 1}, None)
                await store.delete("a", version)
                seen.add(version)
        assert len(seen) == 5

    asyncio.run(play())


def test_documents_outlive_a_close(shared_url: str) -> None:
    async def play() -> None:
        async with opened(shared_url) as store:
            version = await store.commit("a", {"n": 1}, None)
        async with opened(shared_url) as store:
            assert await store.read(["a"]) == {"a": ({"n": 1}, version)}
            await store.commit("a", {"n": 2}, version)

    asyncio.run(play())


def test_commit_all_creates_changes_and_deletes_together(url: str) -> None:
    async def scene(store: Store) -> None:
        change, gone = await store.commit("change", {"n": 1}, None), await store.commit("gone", {"n": 1}, None)
        versions = await store.commit_all(
            [Write("new", {"n": 9}, None), Write("gone", None, gone), Write("change", {"n": 2}, change)]
        )
        assert versions[1] == ""
        assert await store.read(["new", "gone", "change"]) == {
            "new": ({"n": 9}, versions[0]),
            "change": ({"n": 2}, versions[2]),
        }
        assert await store.commit_all([]) == []

    in_store(url, scene)


@pytest.mark.parametrize(
    "stale",
    [Write("c", {"n": 2}, "1"), Write("a", {"n": 2}, None), Write("a", None, "1"), Write("absent", None, "1")],
    ids=["version", "exists", "delete", "vanished"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_conflict_of_three_applies_nothing(url: str, stale: Write, place: int) -> None:
    async def scene(store: Store) -> None:
        for name in ("a", "b", "c"):
            await store.commit(name, {"n": 1}, None)
        before = await store.scan("")
        writes = [Write("b", None, before["b"][1]), Write("d", {"n": 1}, None)]
        writes.insert(place, stale)
        with pytest.raises(ConflictError) as conflict:
            await store.commit_all(writes)
        assert conflict.value.name == stale.name
        assert await store.scan("") == before
        await store.commit("d", {"n": 1}, None)  # nothing was left half open

    in_store(url, scene)


def test_a_commit_that_makes_no_sense_is_a_value_error(url: str) -> None:
    async def scene(store: Store) -> None:
        version = await store.commit("a", {"n": 1}, None)
        with pytest.raises(ValueError, match="twice"):
            await store.commit_all([Write("a", {"n": 2}, version), Write("b", {}, None), Write("a", None, version)])
        with pytest.raises(ValueError, match="version"):
            await store.commit_all([Write("a", None, None)])
        assert await store.scan("") == {"a": ({"n": 1}, version)}

    in_store(url, scene)


def test_one_read_for_many_leaves_out_what_is_absent(url: str) -> None:
    async def scene(store: Store) -> None:
        await store.commit_all([Write(f"n{number}", {"n": number}, None) for number in range(0, 2000, 2)])
        found = await store.read(f"n{number}" for number in range(2000))
        assert {name: document["n"] for name, (document, _) in found.items()} == {
            f"n{number}": number for number in range(0, 2000, 2)
        }
        assert await store.read([]) == {}
        assert list(await store.read(["n2", "n2", "absent"])) == ["n2"]

    in_store(url, scene)


NAMES = [
    "a",
    "ab",
    "a%",
    "a_b",
    "a'b",
    'a"b',
    "a*b",
    "a[b]",
    "a?",
    "A",
    "a/b/c",
    "../a",
    "ä",
    "аб",
    "日本",
    "🦒",
    "🦒x",
]
NAMES += [
    "a\U0010ffff",
    "a\U0010ffffz",
    "a\ud7ff",
    "b" * 500,
    " ",
    "a b",
    "a\nb",
    "--a",
    "a;DROP TABLE documents",
    "1",
]


@pytest.mark.parametrize(
    "prefix", ["", "a", "a%", "a_", "a'", "a[", "ä", "🦒", "b" * 499, "a\U0010ffff", "a\ud7ff", "zz", "%", "_"]
)
def test_scan_takes_a_prefix_literally(url: str, prefix: str) -> None:
    async def scene(store: Store) -> None:
        await store.commit_all([Write(name, {"name": name}, None) for name in NAMES])
        found = await store.scan(prefix)
        assert list(found) == sorted(name for name in NAMES if name.startswith(prefix))
        assert all(document == {"name": name} for name, (document, _) in found.items())
        assert await store.read(NAMES) == await store.scan("")

    in_store(url, scene)


def test_the_clock_is_the_one_that_was_given(url: str) -> None:
    assert open_store(url, lambda: 1234.5).now() == 1234.5


def test_closing_twice_is_harmless_and_use_outside_of_open_an_error(url: str) -> None:
    async def play() -> None:
        store = open_store(url)
        await store.close()
        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: store.read(["a"]),
            lambda: store.commit("a", {}, None),
            lambda: store.commit_all([Write("a", {}, None)]),
            lambda: store.scan(""),
            lambda: store.delete("a", "1"),
        ]
        for use in uses:
            with pytest.raises(StoreError, match="not open"):
                await use()
        await store.open()
        await store.open()
        await store.commit("a", {}, None)
        await store.close()
        await store.close()
        for use in uses:
            with pytest.raises(StoreError, match="not open"):
                await use()

    asyncio.run(play())
