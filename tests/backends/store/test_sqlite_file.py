"""The SQLite file: where it is made, who may read it, and the error for one that is locked, damaged or not ours."""

import asyncio
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pollux.backends.store.contract import StoreError
from pollux.backends.store.sqlite import SqliteStore
from tests.backends.store.sqlite_scenes import Naps, file_size_limit, filled, in_store, nothing, other


def refusal(path: Path, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> str:
    """What opening says, as one line that names the file, with the file left as it was."""
    # By its date and size, not its content: closing it here would release the locks of those who hold it.
    before = path.stat() if path.exists() else None
    with pytest.raises(StoreError) as error:
        in_store(path, nothing, SqliteStore(path, sleep=sleep))
    assert type(error.value) is StoreError
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    if before is not None:
        after = path.stat()
        assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    return str(error.value)


def test_missing_folders_and_the_file_are_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "pollux.db"
    modes: dict[str, int] = {}

    async def scene(store: SqliteStore) -> None:
        await store.commit("a", {}, None)
        modes.update({found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()})

    in_store(path, scene)
    assert modes == {"pollux.db": 0o600, "pollux.db-wal": 0o600, "pollux.db-shm": 0o600}
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "a", path.parent)] == [0o700, 0o700]


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore(Path("pollux.db"))
    monkeypatch.chdir("/")
    in_store(store.path, nothing, store)
    assert (tmp_path / "pollux.db").is_file()


def test_odd_file_names_are_taken_literally(tmp_path: Path) -> None:
    for name in ("a b%41?mode=ro#x.db", "ä🦒.db", ":memory:"):
        in_store(tmp_path / name, nothing)
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    "statements",
    [["PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "UPDATE meta SET value = value"], ["BEGIN IMMEDIATE"]],
)
def test_opening_a_file_that_is_held_says_so(tmp_path: Path, statements: list[str]) -> None:
    path = filled(tmp_path / "pollux.db")
    with other(path, *statements):
        assert "locked by another program for 5 s; close what holds it" in refusal(path, Naps())


def test_opening_waits_for_one_who_lets_go(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db")
    with other(path, "BEGIN IMMEDIATE") as db:
        in_store(path, nothing, SqliteStore(path, sleep=Naps(3, lambda: db.execute("COMMIT"))))


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "pollux.db"
    path.write_text("GEMINI_API_KEY is not in here\n" * 200)
    assert "is not an SQLite database" in refusal(path)


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder or a device" in refusal(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}" in refusal(tmp_path / "file" / "pollux.db")
    assert "cannot be created" in refusal(tmp_path / "file" / "sub" / "pollux.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission(tmp_path: Path) -> None:
    path = filled(tmp_path / "sub" / "pollux.db")
    path.chmod(0o400)
    assert "right to write" in refusal(path)
    path.chmod(0o000)
    with pytest.raises(StoreError, match="cannot be opened"):
        in_store(path, nothing)
    path.parent.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        in_store(path.with_name("other.db"), nothing)
    path.parent.chmod(0o700)


@pytest.mark.parametrize("left", [10, 100, 4096, 5000, 30_000])
def test_a_file_cut_short(tmp_path: Path, left: int) -> None:
    path = filled(tmp_path / "pollux.db")
    os.truncate(path, left)
    refusal(path)


def test_a_file_cut_to_nothing_beside_its_log(tmp_path: Path) -> None:
    path, copy = tmp_path / "pollux.db", tmp_path / "copy.db"

    async def scene(store: SqliteStore) -> None:
        await store.commit("a", {}, None)
        shutil.copy(f"{path}-wal", f"{copy}-wal")

    in_store(path, scene)
    copy.touch()
    log = Path(f"{copy}-wal").read_bytes()
    assert "was cut short" in refusal(copy)
    assert Path(f"{copy}-wal").read_bytes() == log


def test_damaged_pages_are_found_at_the_start(tmp_path: Path) -> None:
    path = filled(tmp_path / "pollux.db")
    content = path.read_bytes()
    for page in range(1, len(content) // 4096):
        path.write_bytes(content[: page * 4096] + os.urandom(4096) + content[(page + 1) * 4096 :])
        said = refusal(path)
        assert "restore a copy, or move it away with its -wal and -shm files" in said


@pytest.mark.parametrize("change", ["UPDATE meta SET value = 2 WHERE name = 'schema'", "DELETE FROM meta"])
def test_an_unknown_schema(tmp_path: Path, change: str) -> None:
    path = filled(tmp_path / "pollux.db")
    with other(path, change):
        pass
    assert "not 1: use the Pollux version that created it, or another file" in refusal(path)


@pytest.mark.parametrize("table", ["CREATE TABLE users (id)", "CREATE VIEW v AS SELECT 1", "CREATE TABLE meta (a)"])
def test_the_database_of_another_program(tmp_path: Path, table: str) -> None:
    path = tmp_path / "pollux.db"
    with other(path, table):
        pass
    assert "is a database of another program" in refusal(path)


def test_tables_that_only_look_like_ours(tmp_path: Path) -> None:
    path = tmp_path / "pollux.db"
    with other(path, "CREATE TABLE meta (a)", "CREATE TABLE documents (a)"):
        pass
    assert "cannot be used" in refusal(path)


def test_a_disk_that_takes_nothing_when_opening(tmp_path: Path) -> None:
    with file_size_limit(2048), pytest.raises(StoreError, match=r"pollux\.db (its disk|cannot be)"):
        in_store(tmp_path / "pollux.db", nothing)
    in_store(tmp_path / "pollux.db", nothing)
