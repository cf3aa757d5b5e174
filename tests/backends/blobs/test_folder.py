"""The folder: who may read it, what a killed process leaves, a disk that is full, slow or gone."""

import asyncio
import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from pollux.backends.blobs import folder as module
from pollux.backends.blobs.contract import BlobError, Blobs, BlobUnavailableError
from pollux.backends.blobs.folder import ABANDONED_S, PARTIAL, PIECE, FolderBlobs
from pollux.backends.blobs.opening import open_blobs
from tests.backends.blobs.backends import LATER, Place, got, in_blobs, put

NOW = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


def place(folder: Path) -> Place:
    return Place(f"file://{folder}", {})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(PARTIAL)]


def test_only_the_owner_may_read(folder: Path) -> None:
    async def scene(blobs: Blobs) -> None:
        async with blobs.write("a", LATER) as writer:
            await writer.write(b"x" * PIECE)
            (partial,) = partials(folder)
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600

    before = os.umask(0)
    try:
        in_blobs(place(folder), scene)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_sweep_takes_what_a_killed_process_left_a_day_ago(folder: Path) -> None:
    async def scene(blobs: Blobs) -> None:
        old, young, foreign = (folder / name for name in (f".a.1{PARTIAL}", f".a.2{PARTIAL}", "README.md"))
        for path, age in ((old, ABANDONED_S), (young, ABANDONED_S - 1), (foreign, 10 * ABANDONED_S)):
            path.write_bytes(b"x")
            os.utime(path, (NOW - age, NOW - age))
        assert await blobs.sweep(NOW) == 0
        assert [old.exists(), young.exists(), foreign.exists()] == [False, True, True]

    in_blobs(place(folder), scene)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.ENOSPC, BlobUnavailableError, "No space left on device; make room there"),
        (errno.EDQUOT, BlobUnavailableError, "uota exceeded; make room there"),
        (errno.EACCES, BlobError, "Permission denied; allow this user to write there"),
        (errno.EROFS, BlobError, "Read-only file system; allow this user to write there"),
        (errno.EIO, BlobUnavailableError, "Input/output error; try again, and check that disk"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "utime"])
def test_a_disk_that_fails_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[BlobError], said: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    async def scene(blobs: Blobs) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(os, call, failing)
            with pytest.raises(BlobError, match=said) as error:
                await put(blobs, "a", b"x" * (3 * PIECE))
        assert type(error.value) is kind
        assert str(folder) in str(error.value)
        assert await blobs.size("a") is None
        assert partials(folder) == []
        await put(blobs, "a", b"again")
        assert await got(blobs, "a") == b"again"

    in_blobs(place(folder), scene)


def test_a_disk_that_is_full_takes_a_part_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is cut short by the full disk is not taken for a whole one."""
    taken: list[int] = []

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if len(taken) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken.append(min(len(data), 1000))
            return taken[-1]

        def close(self) -> None:
            self.file.close()  # type: ignore[attr-defined]

    opened = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args, **more: Full(opened(*args, **more)))

    async def scene(blobs: Blobs) -> None:
        with pytest.raises(BlobUnavailableError, match="No space left"):
            await put(blobs, "a", b"x" * PIECE)
        assert taken == [1000, 1000, 1000]
        assert names(folder) == [".names.lock"]

    in_blobs(place(folder), scene)


@pytest.mark.parametrize("step", ["begin", "append", "finish"])
def test_a_slow_disk_holds_up_nothing_else_and_a_writer_cancelled_on_it_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    slow, reached, real = threading.Event(), threading.Event(), getattr(module._Partial, step)

    def waiting(*args: object) -> None:
        reached.set()
        slow.wait(20)
        real(*args)

    monkeypatch.setattr(module._Partial, step, waiting)

    async def scene(blobs: Blobs) -> None:
        task = asyncio.create_task(put(blobs, "a", b"x" * (2 * PIECE)))
        assert await asyncio.to_thread(reached.wait, 20)
        assert await blobs.size("b") is None  # the loop runs, and so does another call
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(folder) == [".names.lock"]
        slow.set()
        await blobs.close()  # waits for the thread, which finds nothing left to do
        assert names(folder) == [".names.lock"]

    in_blobs(place(folder), scene)


def test_a_folder_that_was_deleted(folder: Path) -> None:
    async def scene(blobs: Blobs) -> None:
        shutil.rmtree(folder)
        assert await blobs.size("a") is None
        with pytest.raises(BlobUnavailableError, match="was deleted; restart"):
            await put(blobs, "a", b"x")
        with pytest.raises(BlobUnavailableError, match="was deleted; restart"):
            await blobs.sweep(NOW)

    in_blobs(place(folder), scene)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def scene(path: Path) -> None:
        blobs = FolderBlobs(path)
        try:
            await blobs.open()
        finally:
            await blobs.close()

    with pytest.raises(BlobError, match="this is not a folder; name one"):
        asyncio.run(scene(tmp_path / "file"))
    with pytest.raises(BlobError, match="Not a directory"):
        asyncio.run(scene(tmp_path / "file" / "blobs"))


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", b"x")

    in_blobs(Place("file:///~/some%20blobs", {}), scene)
    assert (tmp_path / "some%20blobs" / "a").read_bytes() == b"x"


def test_nobodys_home_folder() -> None:
    with pytest.raises(BlobError, match="write the whole path"):
        open_blobs("file:///~nobody-of-this-name/blobs", {})
