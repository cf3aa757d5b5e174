"""Documents of pooled files: changed at once by many requests and instances, cached, read again after a conflict."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.memory import MemoryStore
from pollux.pool.store_health import StoreHealth
from pollux.resources.pooled.documents import Lease, PooledFile
from pollux.resources.pooled.records import FileRecords
from pollux.server.wiring import make_app
from pollux.settings import Settings, SettingsError
from tests.gateway import BEGAN, FakeUpstream, now, play, projects
from tests.pools import FaultyStore

FILE = PooledFile("files/a", "me", "00", 3, "text/plain", "", "hash", "p1", BEGAN, BEGAN + 1000)


async def instances_over_one_store(count: int, delay: float = 0.0) -> tuple[MemoryStore, list[FileRecords]]:
    inner = MemoryStore(now)
    await inner.open()
    return inner, [FileRecords(StoreHealth(FaultyStore(inner, lambda: delay))) for _ in range(count)]


def used(file: PooledFile) -> PooledFile:
    return replace(file, uses=file.uses + 1)


@pytest.mark.parametrize("instances", [1, 3])
def test_no_change_is_lost(instances: int) -> None:
    async def scene() -> None:
        _, all_ = await instances_over_one_store(instances, 0.01)
        await all_[0].put(FILE)
        await asyncio.gather(*(records.change(FILE.name, used) for records in all_ for _ in range(15)))
        file = await all_[0].read(FILE.name)
        assert file is not None
        assert file.uses == 1 + 15 * instances

    play(scene)


def test_what_is_known_is_changed_with_one_commit_and_what_is_not_wanted_is_looked_at_again() -> None:
    async def scene() -> None:
        inner, (_, two) = await instances_over_one_store(2)
        store = FaultyStore(inner)
        one = FileRecords(StoreHealth(store))
        await one.put(FILE)
        reads, commits = store.reads, store.commits
        await one.change(FILE.name, used)
        assert (store.reads, store.commits) == (reads, commits + 1)
        await two.change(FILE.name, lambda file: file.with_copy("p2", Lease("two", 1.0)))
        seen: list[PooledFile] = []

        def look(file: PooledFile) -> None:
            seen.append(file)

        assert await one.change(FILE.name, look) == await two.read(FILE.name)
        assert [list(file.copies) for file in seen] == [[], ["p2"]]

    play(scene)


def test_what_ended_or_was_deleted_is_not_there() -> None:
    async def scene() -> None:
        inner, (one, two) = await instances_over_one_store(2)
        await one.put(FILE)
        assert await two.find(FILE.name) == FILE
        await one.remove(FILE)
        assert two.known(FILE.name) == FILE, "it cannot know"
        assert await two.change(FILE.name, used) is None
        assert two.known(FILE.name) is None
        await one.put(FILE)
        await asyncio.sleep(1001)
        for look in (one.find, one.read, partial(one.change, change=used)):
            assert await look(FILE.name) is None
        assert await inner.scan("pooled/"), "the store may delete it when it likes"

    play(scene)


@pytest.mark.parametrize("url", ["gs://NO", "s3://bucket", "file://"])
def test_an_invalid_place_for_blobs_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="POLLUX_BLOBS: blobs "):
        make_app(
            Settings(files="pooled", blobs=url),
            Tokens(["tester=test-token-of-a-client"], "", query_token=True),
            store=MemoryStore(now),
            keyring=projects(1),
            upstream=FakeUpstream([]),
        )
