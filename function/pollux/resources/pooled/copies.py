"""Copies of pooled files: each made once, however many wait for it, in this instance or in others.

A copy that is being made is a flight: whoever needs it waits for it, up to its own deadline. Over all instances there
is a lease in the file's document, which ends by time if its holder dies.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pollux.backends.blobs.contract import BlobError, BlobUnavailableError
from pollux.backends.store.contract import StoreError
from pollux.gemini.call import read_target
from pollux.gemini.names import GOOGLE, answer_names
from pollux.lru import Recent
from pollux.resources.ask import JsonAnswer
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import Copy, Lease, PooledFile, copy_name
from pollux.resources.pooled.records import FileRecords
from pollux.resources.pooled.upload_to_google import CreatedFile, GoogleFiles, NameTakenError, RefusedError

log = logging.getLogger("pollux.relay")

LEASED_S, RENEWED_S = 60.0, 20.0
REFUSED_S = 60.0
"""So long a project that did not take a file is not asked again to take it."""
FIRST_LOOK, LONGEST_LOOK, LOOK_GROWS = 0.25, 5.0, 1.6
PROCESSED_WITHIN = 1800.0
RELEASE_WITHIN = 2.0


class CopyError(Exception):
    """There is no copy, and there will be none just now: why."""


class CopyPendingError(Exception):
    """The copy was not there in time; it goes on, or will begin anew."""


class _CopyTask:
    def __init__(self, task: "asyncio.Task[None]") -> None:
        self.task = task
        self.waiters = 0


class Copies:
    """`lingers`: what is being made goes on when nobody waits any more because of a deadline; else it must end then,
    as it would freeze with the instance."""

    def __init__(
        self,
        records: FileRecords,
        contents: Contents,
        google: GoogleFiles,
        instance: str,
        *,
        lingers: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._records = records
        self._contents = contents
        self._google = google
        self._instance = instance
        self._lingers = lingers
        self._sleep = sleep
        self._flights: dict[tuple[str, str], _CopyTask] = {}
        self._refused: Recent[tuple[str, str], tuple[float, str]] = Recent(1000)
        self.made = 0

    def refused(self, name: str, project: str) -> str | None:
        """Why the project did not take the file lately."""
        until, why = self._refused.get((name, project), (0.0, ""))
        return why if until > self._records.now() else None

    async def ensure(self, name: str, project: str, deadline: float) -> None:
        """Comes back when the copy can be used. Raises CopyError, or CopyPendingError at the deadline."""
        file = self._records.known(name)
        if file is not None and project in file.ready_at(self._records.now()):
            return
        if (why := self.refused(name, project)) is not None:
            raise CopyError(why)
        key = name, project
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _CopyTask(asyncio.create_task(self._make(name, project)))
            flight.task.add_done_callback(partial(self._landed, key))
        flight.waiters += 1
        left = False
        try:
            async with asyncio.timeout(max(0.0, deadline - self._records.now())):
                await asyncio.shield(flight.task)
        except TimeoutError:
            raise CopyPendingError(f"the copy of {name} at project {project} is not ready yet") from None
        except asyncio.CancelledError:
            if flight.task.cancelled():
                raise CopyError(f"the copy of {name} at project {project} was given up") from None
            left = True
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done() and (left or not self._lingers):
                flight.task.cancel()
                self._landed(key, flight.task)  # whoever comes now begins anew
                await asyncio.wait({flight.task}, timeout=RELEASE_WITHIN)

    def _landed(self, key: tuple[str, str], task: "asyncio.Task[None]") -> None:
        if (flight := self._flights.get(key)) is not None and flight.task is task:
            del self._flights[key]
        if task.done() and not task.cancelled():
            task.exception()  # seen: who waited has it, and the log

    async def close(self) -> None:
        tasks = {flight.task for flight in self._flights.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=RELEASE_WITHIN)

    # --- one flight --------------------------------------------------------------------------------------------------

    async def _make(self, name: str, project: str) -> None:
        try:
            copy = await self._begun(name, project)
            if copy is None:
                copy = await self._leased(name, project)
            if not copy.active:
                await self._until_active(name, project, copy)
        except (RefusedError, BlobError, StoreError) as error:
            if not isinstance(error, BlobUnavailableError):
                self._refused[name, project] = self._records.now() + REFUSED_S, str(error)
            log.warning("%s was not copied to project %s: %s", name, project, error)
            raise CopyError(str(error)) from None
        except CopyError as error:
            self._refused[name, project] = self._records.now() + REFUSED_S, str(error)
            log.warning("%s was not copied to project %s: %s", name, project, error)
            raise

    async def _begun(self, name: str, project: str) -> Copy | None:
        """The copy that is there; None when this instance has the lease to make one."""
        pause = FIRST_LOOK
        while True:
            now = self._records.now()
            mine = Lease(self._instance, now + LEASED_S)

            def take(file: PooledFile, now: float = now, mine: Lease = mine) -> PooledFile | None:
                held = file.copies.get(project)
                if file.uses < 1 or file.copy_at(project, now) is not None:
                    return None
                if isinstance(held, Lease) and held.until > now and held.by != self._instance:
                    return None
                return file.with_copy(project, mine)

            file = await self._records.change(name, take)
            if file is None or file.uses < 1:
                raise CopyError(f"{name} is gone")
            if (copy := file.copy_at(project, now)) is not None:
                return copy
            if file.copies.get(project) == mine:
                return None
            await self._sleep(pause)
            pause = min(pause * LOOK_GROWS, LONGEST_LOOK)

    async def _leased(self, name: str, project: str) -> Copy:
        keeper = asyncio.create_task(self._keep_lease(name, project))
        try:
            file = await self._records.find(name)
            if file is None:
                raise CopyError(f"{name} is gone")
            copy = copy_of((await self._sent(file, project)).document, file.expires)
            noted = await self._note(name, project, copy)
            if noted is None or noted.uses < 1:  # it was deleted meanwhile, and the copy with it
                await self._google.delete(project, copy.name)
                raise CopyError(f"{name} is gone")
            self.made += 1
            return copy
        except BaseException:
            # Of a cancelled task too: whoever comes next must not wait for a lease that nobody uses.
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(RELEASE_WITHIN):
                    await self._records.change(name, partial(self._released, project))
            raise
        finally:
            keeper.cancel()

    def _released(self, project: str, file: PooledFile) -> PooledFile | None:
        held = file.copies.get(project)
        mine = isinstance(held, Lease) and held.by == self._instance
        return file.with_copy(project, None) if mine else None

    async def _sent(self, file: PooledFile, project: str) -> CreatedFile:
        described: dict[str, Any] = {"displayName": file.shown} if file.shown else {}
        read = partial(self._contents.read, file.parts)
        if project == file.home:  # lost there: the same file again, if its name is free
            with suppress(NameTakenError):
                return await self._google.upload(project, {"name": file.name, **described}, file.kind, file.size, read)
        named = {"name": copy_name(file, project), **described}
        return await self._google.upload(project, named, file.kind, file.size, read)

    async def _keep_lease(self, name: str, project: str) -> None:
        while True:
            await self._sleep(RENEWED_S)
            until = self._records.now() + LEASED_S

            def renew(file: PooledFile, until: float = until) -> PooledFile | None:
                held = file.copies.get(project)
                mine = isinstance(held, Lease) and held.by == self._instance
                return file.with_copy(project, Lease(self._instance, until)) if mine else None

            with suppress(StoreError):
                await self._records.change(name, renew)

    async def _until_active(self, name: str, project: str, copy: Copy) -> None:
        pause, until = FIRST_LOOK, self._records.now() + PROCESSED_WITHIN
        while self._records.now() < until:
            await self._sleep(pause)
            pause = min(pause * LOOK_GROWS, LONGEST_LOOK)
            told = await self._google.get(project, copy.name)
            if not isinstance(told, JsonAnswer):
                if told is not None and told.status in (403, 404):
                    await self._note(name, project, None)
                    raise CopyError(f"project {project} lost its copy of {name} while it was processed")
                continue
            match told.document.get("state"):
                case "ACTIVE" | None:
                    await self._note(name, project, copy._replace(active=True))
                    return
                case "FAILED":
                    await self._note(name, project, None)
                    await self._google.delete(project, copy.name)
                    raise CopyError(f"Google could not process the copy of {name} at project {project}")
        raise CopyError(f"the copy of {name} at project {project} was processed for too long")

    async def _note(self, name: str, project: str, copy: Copy | None) -> PooledFile | None:
        return await self._records.change(name, lambda file: file.with_copy(project, copy) if file.uses > 0 else None)


def copy_of(document: dict[str, Any], expires: float) -> Copy:
    """What Google says of a file, as it is noted."""
    name = str(document["name"])
    uri = document.get("uri")
    names = answer_names({"file": document}, read_target("POST", "/upload/v1beta/files"))
    end = names.get(name) or expires
    active = document.get("state") in ("ACTIVE", None)
    return Copy(name, uri if isinstance(uri, str) else f"{GOOGLE}/v1beta/{name}", end, active)
