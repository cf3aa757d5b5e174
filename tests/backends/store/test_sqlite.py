"""What is SQLite's own in use: its log, waiting for others, trouble that leaves as a StoreError, versions."""

import asyncio
import time
from pathlib import Path

import pytest

from pollux.backends.store import sqlite as module
from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Write
from pollux.backends.store.sqlite import SqliteStore
from tests.backends.store.sqlite_scenes import Naps, file_size_limit, filled, in_store, other


def test_it_is_a_write_ahead_log_synced_at_checkpoints_only(tmp_path: Path) -> None:
    async def scene(store: SqliteStore) -> None:
        db = store._connection()
        pragmas = [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
        assert pragmas == ["wal", 1, 0]

    in_store(tmp_path / "pollux.db", scene)


def test_the_log_stays_short_under_steady_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_COMMITS", 100)
    path, count, log_sizes = tmp_path / "pollux.db", 3000, []

    async def scene(store: SqliteStore) -> None:
        version = None
        for number in range(count):
            version = await store.commit("a", {"n": number, "body": "x" * 3000}, version)
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number % 500 == 499 and store._checkpointing is not None:
                await store._checkpointing
                log_sizes.append(path.with_name("pollux.db-wal").stat().st_size)
        assert (await store.read(["a"]))["a"] == ({"n": count - 1, "body": "x" * 3000}, version)

    in_store(path, scene)
    assert len(log_sizes) == 6
    assert max(log_sizes) < 5_000_000  # all commits together: 12 MB
    with other(path) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'checkpoints'").fetchone()[0] >= 6
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_checkpoint_that_fails_is_told_and_hurts_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module.checkpoint(tmp_path / "absent.db")
    assert "absent.db: no checkpoint" in caplog.text
    assert not (tmp_path / "absent.db").exists()


def test_a_commit_waits_for_another_writer_without_blocking(tmp_path: Path) -> None:
    path, naps = tmp_path / "pollux.db", Naps()

    async def scene(store: SqliteStore) -> None:
        with other(path, "BEGIN IMMEDIATE") as db:
            naps.at, naps.wake = 5, lambda: db.execute("COMMIT")
            started = time.perf_counter()
            await store.commit("a", {"n": 1}, None)
            assert time.perf_counter() - started < 4  # SQLite's own waiting takes 5 s a turn
        assert (await store.read(["a"]))["a"][0] == {"n": 1}

    in_store(path, scene, SqliteStore(path, sleep=naps, jitter=lambda: 0.5))
    assert naps.taken == [0.0005, 0.001, 0.002, 0.004, 0.008]


def test_after_five_seconds_nothing_was_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db", 1)
    naps = Naps()

    async def scene(store: SqliteStore) -> None:
        before = await store.scan("")
        with other(path, "BEGIN IMMEDIATE"):
            for attempt in (
                store.commit("a", {}, None),
                store.commit_all([Write("a", {}, None), Write("b", {}, None)]),
                store.delete("n000", before["n000"][1]),
            ):
                naps.taken.clear()
                with pytest.raises(StoreUnavailableError, match=r"pollux\.db was locked .* nothing was written"):
                    await attempt
                assert 5 <= sum(naps.taken) < 5.1
                assert max(naps.taken) < 0.031
            assert await store.scan("") == before  # readers are not held up
        assert await store.scan("") == before
        await store.commit("a", {}, None)

    in_store(path, scene, SqliteStore(path, sleep=naps))


def test_a_cancelled_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db", 1)

    async def scene(store: SqliteStore) -> None:
        with other(path, "BEGIN IMMEDIATE"), pytest.raises(TimeoutError):
            await asyncio.wait_for(store.commit_all([Write("a", {}, None)]), 0.01)
        assert await store.read(["a"]) == {}
        await store.commit("a", {}, None)

    in_store(path, scene)


def test_pages_damaged_while_in_use_are_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKED_PAGES", 0)
    path = filled(tmp_path / "pollux.db", 200)
    content = path.read_bytes()
    path.write_bytes(content[: 8 * 4096] + b"\xff" * (len(content) - 8 * 4096))

    async def scene(store: SqliteStore) -> None:
        for use in (store.scan(""), store.read(f"n{number:03}" for number in range(200))):
            with pytest.raises(StoreError, match=r"pollux\.db is damaged; restore a copy, or move it"):
                await use

    in_store(path, scene)


@pytest.mark.parametrize("body", ["'not json'", "'[1]'", "x'00ff'", "''", "12"])
def test_a_body_that_is_no_document_names_it_and_shows_nothing(tmp_path: Path, body: str) -> None:
    path = filled(tmp_path / "pollux.db")
    with other(path, f"UPDATE documents SET body = {body} WHERE name = 'n003'"):  # noqa: S608
        pass

    async def scene(store: SqliteStore) -> None:
        errors = []
        for use in (store.scan(""), store.read(["n001", "n003", "n005"])):
            with pytest.raises(StoreError, match="document 'n003' is damaged") as error:
                await use
            assert error.value.__cause__ is None
            assert "json" not in str(error.value)
            errors.append(error)  # whose tracebacks keep alive what was at work
        # Nothing is left open that would hold an old state.
        with other(path, "UPDATE documents SET body = '{}' WHERE name = 'n003'"):
            pass
        document, version = (await store.read(["n003"]))["n003"]
        assert document == {}
        await store.commit("n003", {"n": 1}, version)

    in_store(path, scene)


def test_a_disk_that_takes_no_more_while_in_use(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db")

    async def scene(store: SqliteStore) -> None:
        before = await store.scan("")
        large: Document = {"body": "x" * 200_000}
        with file_size_limit(100_000):
            for attempt in (
                store.commit("a", large, None),
                store.commit_all([Write("a", {}, None), Write("b", large, None)]),
            ):
                with pytest.raises(StoreUnavailableError, match=r"pollux\.db (its disk|cannot be)"):
                    await attempt
            assert await store.scan("") == before
        await store.commit("a", large, None)

    in_store(path, scene)


def test_a_full_disk_says_that_nothing_was_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db")

    async def scene(store: SqliteStore) -> None:
        store._connection().execute("PRAGMA max_page_count = 1")
        large: Document = {"body": "x" * 200_000}
        for attempt in (
            store.commit("a", large, None),
            store.commit_all([Write("b", {}, None), Write("a", large, None)]),
        ):
            with pytest.raises(StoreUnavailableError, match="disk is full; free some space; nothing was written"):
                await attempt
        assert await store.read(["a", "b"]) == {}

    in_store(path, scene)


def test_a_file_that_may_not_be_written_any_more(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db")

    async def scene(store: SqliteStore) -> None:
        store._connection().execute("PRAGMA query_only = 1")
        with pytest.raises(StoreError, match="is read-only; give this user write access"):
            await store.commit("a", {}, None)

    in_store(path, scene)


def test_two_stores_on_one_file_never_give_the_same_version(tmp_path: Path) -> None:
    async def scene(first: SqliteStore) -> None:
        second = SqliteStore(first.path)
        await second.open()
        versions = set()
        for _ in range(50):
            for store in (first, second):
                version = await store.commit("a", {}, None)
                with pytest.raises(ConflictError):
                    await (first if store is second else second).commit("a", {}, None)
                await store.delete("a", version)
                versions.add(version)
        await second.close()
        assert len(versions) == 100

    in_store(tmp_path / "pollux.db", scene)
