"""Copies of pooled files in other projects. Each is made once, however many requests and instances wait for it: by a
task in this instance, and under a lease in the file's document among instances.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pollux.backends.blobs.contract import BlobError, BlobUnavailableError
from pollux.backends.store.contract import StoreError
from pollux.lru import Recent
from pollux.resources.ask import JsonAnswer
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import Copy, Lease, PooledFile, copy_name, copy_of
from pollux.resources.pooled.records import LEASED_S, RELEASE_WITHIN, FileRecords, leased
from pollux.resources.pooled.upload_to_google import CreatedFile, GoogleFiles, NameTakenError, RefusedError

log = logging.getLogger("pollux.relay")

REFUSED_S = 60.0
"""How long a project that refused a file is not offered it again."""
FIRST_LOOK, LONGEST_LOOK, LOOK_GROWS = 0.25, 5.0, 1.6
PROCESSED_WITHIN = 1800.0


class CopyError(Exception):
    """There is no copy, and at present none can be made."""


class CopyPendingError(Exception):
    """The copy was not ready before the deadline."""


@dataclass
class _CopyTask:
    task: "asyncio.Task[None]"
    waiters: int = 0


@dataclass(eq=False)
class Copies:
    records: FileRecords
    contents: Contents
    google: GoogleFiles
    instance: str
    lingers: bool
    """A copy is completed after the deadlines of all requests that waited for it. Not in the cloud, where the CPU stops
    after the last request."""
    made: int = 0

    def __post_init__(self) -> None:
        self._tasks: dict[tuple[str, str], _CopyTask] = {}
        self._refused: Recent[tuple[str, str], tuple[float, str]] = Recent(1000)

    def refused(self, name: str, project: str) -> str | None:
        """Why the project refused the file recently."""
        until, why = self._refused.get((name, project), (0.0, ""))
        return why if until > self.records.now() else None

    async def ensure(self, name: str, project: str, deadline: float) -> None:
        """Return when the copy can be used. Raises CopyError, or CopyPendingError at the deadline."""
        file = self.records.known(name)
        if file is not None and project in file.ready_at(self.records.now()):
            return
        if (why := self.refused(name, project)) is not None:
            raise CopyError(why)
        key = name, project
        copying = self._tasks.get(key)
        if copying is None:
            copying = self._tasks[key] = _CopyTask(asyncio.create_task(self._make(name, project)))
            copying.task.add_done_callback(partial(self._ended, key))
        copying.waiters += 1
        left = False
        try:
            async with asyncio.timeout(max(0.0, deadline - self.records.now())):
                await asyncio.shield(copying.task)
        except TimeoutError:
            raise CopyPendingError(f"the copy of {name} at project {project} is not ready yet") from None
        except asyncio.CancelledError:
            if copying.task.cancelled():
                raise CopyError(f"the copy of {name} at project {project} was given up") from None
            left = True
            raise
        finally:
            copying.waiters -= 1
            if not copying.waiters and not copying.task.done() and (left or not self.lingers):
                copying.task.cancel()
                self._ended(key, copying.task)  # the next request begins anew
                await asyncio.wait({copying.task}, timeout=RELEASE_WITHIN)

    def _ended(self, key: tuple[str, str], task: "asyncio.Task[None]") -> None:
        if (copying := self._tasks.get(key)) is not None and copying.task is task:
            del self._tasks[key]
        if task.done() and not task.cancelled():
            task.exception()  # marked as retrieved: the waiters got it, and it is logged

    async def close(self) -> None:
        tasks = {copying.task for copying in self._tasks.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=RELEASE_WITHIN)

    # --- one copy ----------------------------------------------------------------------------------------------------

    async def _make(self, name: str, project: str) -> None:
        try:
            copy = await self._found_or_leased(name, project)
            if copy is None:
                copy = await self._upload(name, project)
            if not copy.active:
                await self._until_active(name, project, copy)
        except (RefusedError, BlobError, StoreError, CopyError) as error:
            if not isinstance(error, BlobUnavailableError):
                self._refused[name, project] = self.records.now() + REFUSED_S, str(error)
            log.warning("%s was not copied to project %s: %s", name, project, error)
            raise CopyError(str(error)) from None

    async def _found_or_leased(self, name: str, project: str) -> Copy | None:
        """Wait for the copy that another instance makes, or get the lease to make it: then None."""
        pause = FIRST_LOOK
        while True:
            now = self.records.now()
            mine = Lease(self.instance, now + LEASED_S)

            def take(file: PooledFile, now: float = now, mine: Lease = mine) -> PooledFile | None:
                held = file.copies.get(project)
                if file.uses < 1 or file.copy_at(project, now) is not None:
                    return None
                if isinstance(held, Lease) and held.until > now and held.by != self.instance:
                    return None
                return file.with_copy(project, mine)

            file = await self.records.change(name, take)
            if file is None or file.uses < 1:
                raise CopyError(f"{name} is gone")
            if (copy := file.copy_at(project, now)) is not None:
                return copy
            if file.copies.get(project) == mine:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * LOOK_GROWS, LONGEST_LOOK)

    async def _upload(self, name: str, project: str) -> Copy:
        """Make the copy under this instance's lease."""
        async with leased(partial(self._set_lease, name, project)):
            file = await self.records.find(name)
            if file is None:
                raise CopyError(f"{name} is gone")
            copy = copy_of((await self._send(file, project)).document, file.expires)
            noted = await self._note(name, project, copy)
            if noted is None or noted.uses < 1:  # the file was deleted meanwhile
                await self.google.delete(project, copy.name)
                raise CopyError(f"{name} is gone")
            self.made += 1
            return copy

    async def _set_lease(self, name: str, project: str, seconds: float) -> None:
        lease = Lease(self.instance, self.records.now() + seconds) if seconds else None

        def change(file: PooledFile) -> PooledFile | None:
            held = file.copies.get(project)
            mine = isinstance(held, Lease) and held.by == self.instance
            return file.with_copy(project, lease) if mine else None

        await self.records.change(name, change)

    async def _send(self, file: PooledFile, project: str) -> CreatedFile:
        described = {"displayName": file.shown} if file.shown else {}
        read = partial(self.contents.read, file.parts)
        if project == file.home:  # the file was lost there: make it again, if its name is free
            with suppress(NameTakenError):
                return await self.google.upload(project, {"name": file.name, **described}, file.kind, file.size, read)
        named = {"name": copy_name(file, project), **described}
        return await self.google.upload(project, named, file.kind, file.size, read)

    async def _until_active(self, name: str, project: str, copy: Copy) -> None:
        """Wait until Google has processed the copy."""
        pause, until = FIRST_LOOK, self.records.now() + PROCESSED_WITHIN
        while self.records.now() < until:
            await asyncio.sleep(pause)
            pause = min(pause * LOOK_GROWS, LONGEST_LOOK)
            answer = await self.google.get(project, copy.name)
            if not isinstance(answer, JsonAnswer):
                if answer is not None and answer.status in (403, 404):
                    await self._note(name, project, None)
                    raise CopyError(f"project {project} lost its copy of {name} while it was processed")
                continue
            match answer.document.get("state"):
                case "ACTIVE" | None:
                    await self._note(name, project, copy._replace(active=True))
                    return
                case "FAILED":
                    await self._note(name, project, None)
                    await self.google.delete(project, copy.name)
                    raise CopyError(f"Google could not process the copy of {name} at project {project}")
        raise CopyError(f"the copy of {name} at project {project} was processed for too long")

    async def _note(self, name: str, project: str, copy: Copy | None) -> PooledFile | None:
        return await self.records.change(name, lambda file: file.with_copy(project, copy) if file.uses > 0 else None)
