"""What has come whole becomes a file: one that is there already, or a new one at the project that is used least.

Over all instances one content of one client is uploaded once: who makes it has a lease in the content's document.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pollux.backends.store.contract import ConflictError, Document, StoreError, Version
from pollux.gemini.errors import GatewayError
from pollux.pool.pool import Pool, Tried
from pollux.relay.send import Failure
from pollux.resources.ask import JsonAnswer
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.copies import LEASED_S, RENEWED_S, copy_of
from pollux.resources.pooled.documents import (
    KEPT_S,
    SHARED_S,
    Part,
    PooledFile,
    content_hash,
    first_name,
    given_of,
    shown_of,
)
from pollux.resources.pooled.records import FileRecords, NamedLocks
from pollux.resources.pooled.upload_to_google import CreatedFile, GoogleFiles, NameTakenError, RefusedError

log = logging.getLogger("pollux.relay")

LOOK_EVERY = 0.5
RELEASE_WITHIN = 2.0


@dataclass(frozen=True, slots=True)
class CompleteUpload:
    """An upload that has come whole."""

    client: str
    parts: tuple[Part, ...]
    sha256: str
    kind: str
    described: Mapping[str, Any]
    """What the client says of the file."""

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


class Keeper:
    def __init__(
        self,
        pool: Pool,
        ownership: Ownership,
        records: FileRecords,
        contents: Contents,
        google: GoogleFiles,
        instance: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool = pool
        self._ownership = ownership
        self._records = records
        self._contents = contents
        self._google = google
        self._instance = instance
        self._sleep = sleep
        self._locks = NamedLocks()
        self.uploaded = self.found = 0

    async def keep(self, upload: CompleteUpload) -> bytes:
        """Google's answer for the file. Raises RefusedError with Google's refusal."""
        key = content_hash(upload.client, upload.sha256, upload.kind, upload.described)
        async with self._locks.of(key):  # of many at once the first uploads, the others find what it made
            return await self._kept(key, upload)

    async def _kept(self, key: str, upload: CompleteUpload) -> bytes:
        while True:
            now = self._records.now()
            said, version = await self._records.content(key)
            if (name := said.get("file")) is not None and said.get("expires", 0) - now >= SHARED_S:
                answer = await self._there(str(name), upload)
                if answer is not None:
                    return answer
            elif name is None and said.get("until", 0) > now and said.get("by") != self._instance:
                await self._sleep(LOOK_EVERY)
                continue
            left = said if name is None else {}
            lease: Document = {
                "v": 1,
                "by": self._instance,
                "until": now + LEASED_S,
                "born": left.get("born", now),
                "project": left.get("project", ""),
                "expires": int(now + KEPT_S),
            }
            try:
                version = await self._records.put_content(key, lease, version)
            except ConflictError:
                continue
            return await self._uploaded(key, lease, version, upload)

    async def _there(self, name: str, upload: CompleteUpload) -> bytes | None:
        """The file that has this content already, if Google still has it."""
        file = await self._records.read(name)
        if file is None or file.uses < 1 or file.expires - self._records.now() < SHARED_S:
            return None
        own = file.parts == upload.parts  # the end of this very upload was asked for twice
        if given_of(upload.described) and not own:
            await self._contents.drop(upload.parts)
            raise _exists()
        told = await self._google.get(file.home, name)
        if isinstance(told, Failure) and told.status in (403, 404):
            await self._records.remove(file)
            if not own:
                await self._contents.drop(file.parts)
            return None
        if told is None:  # its project has no healthy key: another one takes the content
            return None
        if not isinstance(told, JsonAnswer):
            raise RefusedError(file.home, told)
        if not own:
            counted = await self._records.change(name, _used_again)
            if counted is None or counted.uses < 1:
                return None  # deleted just now
            await self._contents.drop(upload.parts)
            self.found += 1
        return json.dumps({"file": told.document}, indent=2).encode()

    async def _uploaded(self, key: str, lease: Document, version: Version, upload: CompleteUpload) -> bytes:
        holder = _ContentLease(self._records, key, lease, version)
        keeper = asyncio.create_task(holder.keep(self._sleep))
        try:
            await self._check_name(key, upload)
            made = await self._sent(key, holder, upload)
        except BaseException:
            keeper.cancel()
            await asyncio.wait({keeper})
            with suppress(StoreError, ConflictError, TimeoutError):
                async with asyncio.timeout(RELEASE_WITHIN):
                    await holder.write(until=0)
            raise
        keeper.cancel()
        await asyncio.wait({keeper})
        await self._note(key, holder, upload, made)
        self.uploaded += 1
        return made.body

    async def _check_name(self, key: str, upload: CompleteUpload) -> None:
        """A name that the client chose is taken once, whichever project has it."""
        name = given_of(upload.described)
        file = await self._records.read(name) if name else None
        if file is not None and (file.client, file.content, file.parts) != (upload.client, key, upload.parts):
            await self._contents.drop(upload.parts)
            raise _exists()

    async def _sent(self, key: str, holder: "_ContentLease", upload: CompleteUpload) -> CreatedFile:
        tried = Tried()
        last: RefusedError | None = None
        project = str(holder.lease["project"])
        troubles = 0
        while troubles < self._pool.settings.max_attempts:
            if project not in self._pool.projects.by_name or project in tried.projects:
                if (picked := await self._pool.pick(None, tried)) is None:
                    break
                project = picked.project
            if holder.lease["project"] != project:
                with suppress(ConflictError):  # the lease is another's by now: both come upon the same file
                    await holder.write(project=project)  # whoever takes this over begins there
            described = dict(upload.described)
            described["name"] = name = given_of(described) or first_name(key, holder.lease["born"], project)
            # First whose it is: from the moment at which it is there, others could come upon it.
            if not await self._ownership.claim(name, project, upload.client, self._records.now() + KEPT_S):
                raise _exists()
            read = partial(self._contents.read, upload.parts)
            try:
                return await self._google.upload(project, described, upload.kind, upload.size, read, upload.sha256)
            except NameTakenError:
                await self._ownership.unclaim(name)
                raise
            except RefusedError as error:
                last = error
                action = None if error.failure is None else error.failure.verdict.action
                if action == "to-client":
                    raise
                troubles += action == "retry"
                tried.projects.add(project)
        raise last or RefusedError(project, None)

    async def _note(self, key: str, holder: "_ContentLease", upload: CompleteUpload, made: CreatedFile) -> None:
        now, project = self._records.now(), made.key.project
        copy = copy_of(made.document, now + KEPT_S)
        await self._ownership.bind({copy.name: copy.expires}, project, upload.client, pooled=True)
        file = PooledFile(
            name=copy.name,
            client=upload.client,
            sha256=upload.sha256,
            size=upload.size,
            kind=upload.kind,
            shown=shown_of(upload.described),
            content=key,
            home=project,
            born=now,
            expires=copy.expires,
            parts=upload.parts,
            copies={project: copy},
        )
        await self._records.put(file)
        try:
            await holder.note(file)
        except ConflictError:  # its lease was over, and another instance has made one of its own
            log.warning("the content of %s was uploaded by two instances", file.name)


def _used_again(file: PooledFile) -> PooledFile | None:
    return replace(file, uses=file.uses + 1) if file.uses > 0 else None


def _exists() -> GatewayError:
    return GatewayError("FILE_EXISTS", "Requested entity already exists")


class _ContentLease:
    """The lease of one content, while this instance uploads it."""

    def __init__(self, records: FileRecords, key: str, lease: Document, version: Version) -> None:
        self._records = records
        self._key = key
        self.lease = lease
        self._version = version
        self._lock = asyncio.Lock()

    async def write(self, **changes: Any) -> None:
        async with self._lock:
            lease = self.lease | changes
            self._version = await self._records.put_content(self._key, lease, self._version)
            self.lease = lease

    async def note(self, file: PooledFile) -> None:
        async with self._lock:
            document: Document = {"v": 1, "file": file.name, "expires": int(file.expires)}
            await self._records.put_content(self._key, document, self._version)

    async def keep(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            await sleep(RENEWED_S)
            with suppress(StoreError, ConflictError):
                await self.write(until=self._records.now() + LEASED_S)
