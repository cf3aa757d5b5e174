"""Blobs in one folder that several processes may share. A blob expires at its mtime.

File system calls run in threads of their own, so that a slow disk delays neither the event loop nor the look-up of
host names, which uses asyncio's threads.
"""

import asyncio
import errno
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pollux.backends.blobs.contract import NAMES, BlobError, BlobMissingError, BlobUnavailableError, Writer, checked
from pollux.backends.keys import private

PIECE = 1 << 20
"""Bytes written or read at once."""
THREADS = 8
PARTIAL = ".part"
ABANDONED_S = 24 * 3600.0
"""A partial file that was not written to for this time was left by a process that was killed."""
LOCK = "names"
"""Locked while a blob gets its name or is swept: a sweep must not delete a blob that was replaced after it looked."""

T = TypeVar("T")


class FolderBlobs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        await self._run(self._make)

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)

    @asynccontextmanager
    async def write(self, name: str, expires: float) -> AsyncIterator[Writer]:
        partial = _Partial(self._folder, checked(name), expires)

        def add(data: bytes) -> None:
            partial.append(data)
            writer.digest.update(data)

        async def put(data: bytes) -> None:
            await self._run(lambda: add(data))

        writer = Writer(PIECE, put)
        try:
            await self._run(partial.begin)
            yield writer
            await put(writer.drain())
            await self._run(partial.finish)
        except BaseException:
            await self._run(partial.discard)  # the thread does it even if this is cancelled again
            raise

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        path = self._folder / checked(name)

        def opened() -> BinaryIO | None:
            with suppress(FileNotFoundError):
                file = path.open("rb", buffering=PIECE)
                file.seek(offset)
                return file
            return None

        file = await self._run(opened)
        if file is None:
            raise BlobMissingError(f"there is no blob {name} in {self._folder}")
        # Buffered files have a lock: `close` waits for a `read` that a cancelled task left in its thread, which could
        # otherwise read from another file that got the same descriptor.
        try:
            while data := await self._run(lambda: file.read(PIECE)):
                yield data
        finally:
            await self._run(file.close)

    async def size(self, name: str) -> int | None:
        path = self._folder / checked(name)

        def looked() -> int | None:
            with suppress(FileNotFoundError):
                return path.stat().st_size
            return None

        return await self._run(looked)

    async def delete(self, name: str) -> bool:
        path = self._folder / checked(name)

        def gone() -> bool:
            with suppress(FileNotFoundError):
                path.unlink()
                return True
            return False

        return await self._run(gone)

    async def sweep(self, now: float) -> int:
        return await self._run(lambda: _swept(self._folder, now))

    async def _run(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "blobs")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except OSError as error:
            failure = _explained(self._folder, error)
        raise failure

    def _make(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise BlobError(f"blobs {self._folder}: this is not a folder; name one, or a path where one can be created")
        for folder in reversed((self._folder, *self._folder.parents)):
            if not folder.exists():
                folder.mkdir(mode=private.FOLDER_MODE, exist_ok=True)
        with private.locked(self._folder / LOCK):  # shows that it can be written to
            pass


class _Partial:
    """A blob that is being written, under a name that readers ignore. With the lock, a call that a cancelled task left
    in its thread cannot write after `discard`."""

    def __init__(self, folder: Path, name: str, expires: float) -> None:
        self._path = folder / f".{name}.{secrets.token_hex(8)}{PARTIAL}"
        self._target = folder / name
        self._expires = expires
        self._file: BinaryIO | None = None
        self._over = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            if not self._over:
                handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private.FILE_MODE)
                self._file = os.fdopen(handle, "wb", buffering=0)

    def append(self, data: bytes) -> None:
        rest = memoryview(data)
        with self._lock:
            while rest and self._file is not None:
                rest = rest[self._file.write(rest) :]  # a full disk may take a part

    def finish(self) -> None:
        """Sync the file before it gets its name, and the folder before this returns, so that a client that was told of
        a file has it after a power cut too. That is cheap, once for a file that took seconds to arrive."""
        with self._lock:
            if self._file is None:
                return
            os.fsync(self._file.fileno())
            self._close()
            os.utime(self._path, (self._expires, self._expires))
            with private.locked(self._target.with_name(LOCK)):
                self._path.replace(self._target)
        private.sync_folder(self._target.parent)

    def discard(self) -> None:
        with self._lock:
            self._close()
            with suppress(OSError):
                self._path.unlink()

    def _close(self) -> None:
        self._over = True
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _swept(folder: Path, now: float) -> int:
    gone = 0
    for entry in os.scandir(folder):
        partial = entry.name.startswith(".") and entry.name.endswith(PARTIAL)
        if not partial and not NAMES.fullmatch(entry.name):
            continue  # not ours
        with private.locked(folder / LOCK), suppress(FileNotFoundError):
            if Path(entry).stat().st_mtime + (ABANDONED_S if partial else 0) <= now:
                Path(entry).unlink()
                gone += not partial
    return gone


def _explained(folder: Path, error: OSError) -> BlobError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BlobUnavailableError(f"blobs {folder}: {reason}; make room there, or name another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or folder
        return BlobError(f"blobs {folder}: {where}: {reason}; allow this user to write there, or name another folder")
    if error.errno == errno.ENOENT:
        return BlobUnavailableError(
            f"blobs {folder}: the folder, or a file being written, was deleted; restart to create it"
        )
    return BlobUnavailableError(f"blobs {folder}: {reason}; try again, and check that disk if it fails again")
