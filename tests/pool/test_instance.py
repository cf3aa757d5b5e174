"""Instances on one machine: a process that ended no longer counts as a writer."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pollux.backends.store.memory import MemoryStore
from pollux.backends.store.sqlite import SqliteStore
from pollux.pool.instance import has_ended, new_name
from pollux.pool.shared_document import WRITER_FOR, Writers
from pollux.pool.windows import Want
from pollux.settings import Settings
from tests.pools import MODEL, Ask, Pool, Projects, Reservation, Tried, catalog, keys_of

NAME = "from pollux.pool.instance import new_name; print(new_name(one_machine=True))"


def of_another_process() -> str:
    """The name that a process had which has ended by now."""
    return subprocess.run([sys.executable, "-c", NAME], check=True, capture_output=True, text=True).stdout.strip()


def test_a_process_that_ended_is_told_from_those_that_run() -> None:
    assert has_ended(of_another_process())
    assert not has_ended(new_name(one_machine=True))
    parent = f"{new_name(one_machine=True).partition('.')[0]}.{os.getppid()}.0"
    assert not has_ended(parent)


@pytest.mark.parametrize(
    "name", ["", "0badcafe", "0badcafe.1.0badcafe", "0badcafe.x", "elsewhere.999999999999999999.0"]
)
def test_of_others_nothing_is_known(name: str) -> None:
    assert not has_ended(name)


def test_where_writers_may_be_anywhere_a_name_tells_nothing() -> None:
    assert "." not in new_name(one_machine=False)


def test_a_process_that_ended_is_no_writer_and_one_that_runs_is_for_a_minute() -> None:
    me, dead = new_name(one_machine=True), of_another_process()
    author = Writers(me)
    author.read({dead: [3, 100.0], "far": [1, 100.0]}, changed=True)
    assert author.names(101.0) == {me, "far"}
    assert set(author.sign(101.0, 0)) == {me, "far"}
    assert author.is_alone(100.0 + WRITER_FOR)
    author.read({dead: [3, 100.0], me: [1, 101.0]}, changed=True)
    assert author.is_alone(101.0)


async def _instances_after_a_request(store: SqliteStore, name: str = "") -> int:
    """As a gateway counts them that has just begun."""
    projects = Projects(store, keys_of(1, rpm=30), catalog())
    if name:
        projects._writer = name
    pool = Pool(Settings(), projects)
    assert isinstance(await pool.reserve(MODEL, Ask(Want(1), pool.now()), Tried()), Reservation)
    await projects.load_all()
    return projects.instances()


def test_a_gateway_that_was_killed_is_not_counted_beside_the_one_that_follows(tmp_path: Path) -> None:
    dead = of_another_process()

    async def scene() -> None:
        store = SqliteStore(tmp_path / "pollux.db")
        await store.open()
        try:
            assert await _instances_after_a_request(store, dead) == 1
            assert await _instances_after_a_request(store) == 1
            assert await _instances_after_a_request(store) == 2, "the one before runs"
        finally:
            await store.close()

    asyncio.run(scene())


def test_a_memory_has_one_writer_anyway() -> None:
    assert not getattr(MemoryStore(), "one_machine", False)
