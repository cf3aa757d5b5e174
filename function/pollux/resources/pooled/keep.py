"""Makes a file of an upload that is complete: an existing one with the same content, or a new one in some project.

The same content of one client is uploaded to Google once, over all instances: under a lease in the content's document.
"""

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from pollux.backends.store.contract import ConflictError, Document, Version
from pollux.gemini.errors import GatewayError
from pollux.pool.pool import Pool
from pollux.pool.reservation import Tried
from pollux.relay.send import Failure
from pollux.resources.ask import JsonAnswer
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import (
    CONTENT,
    KEPT_S,
    SHARED_S,
    PooledFile,
    PooledUpload,
    content_hash,
    copy_of,
    first_name,
    given_of,
    shown_of,
)
from pollux.resources.pooled.records import LEASED_S, FileRecords, Locks, leased, lock_of
from pollux.resources.pooled.upload_to_google import CreatedFile, GoogleFiles, NameTakenError, RefusedError

log = logging.getLogger("pollux.relay")

LOOK_EVERY = 0.5


@dataclass(eq=False)
class Keeper:
    pool: Pool
    ownership: Ownership
    records: FileRecords
    contents: Contents
    google: GoogleFiles
    instance: str
    uploaded: int = 0
    found: int = 0
    """Uploads that got an existing file."""

    def __post_init__(self) -> None:
        self._locks: Locks = WeakValueDictionary()

    async def keep(self, upload: PooledUpload, sha256: str) -> bytes:
        """Google's answer for the file. Raises RefusedError if Google refuses it."""
        key = content_hash(upload.client, sha256, upload.kind, upload.described)
        async with lock_of(self._locks, key):  # of several at once the first uploads, the others find its file
            while True:
                now = self.records.now()
                known, version = await self.records.document(CONTENT + key)
                name = known.get("file")
                if name is not None and known.get("expires", 0) - now >= SHARED_S:
                    if (answer := await self._existing(str(name), upload)) is not None:
                        return answer
                elif name is None and known.get("until", 0) > now and known.get("by") != self.instance:
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                began = known if name is None else {}  # another instance may have begun, and died
                document: Document = {
                    "v": 1,
                    "by": self.instance,
                    "until": now + LEASED_S,
                    "born": began.get("born", now),
                    "project": began.get("project", ""),
                    "expires": int(now + KEPT_S),
                }
                lease = _ContentLease(self.records, key, document, version)
                try:
                    await lease.change()
                except ConflictError:
                    continue
                return await self._new(lease, upload, sha256)

    async def _existing(self, name: str, upload: PooledUpload) -> bytes | None:
        """The file that has this content already, if Google still has it."""
        file = await self.records.read(name)
        if file is None or file.uses < 1 or file.expires - self.records.now() < SHARED_S:
            return None
        own = file.parts == upload.parts  # the client asked twice for the end of this upload
        if given_of(upload.described) and not own:
            await self.contents.drop(upload.parts)
            raise _exists()
        answer = await self.google.get(file.home, name)
        if isinstance(answer, Failure) and answer.status in (403, 404):
            await self.records.remove(file)
            if not own:
                await self.contents.drop(file.parts)
            return None
        if answer is None:  # its project has no healthy key: another one takes the content
            return None
        if not isinstance(answer, JsonAnswer):
            raise RefusedError(file.home, answer)
        if not own:
            counted = await self.records.change(
                name, lambda file: replace(file, uses=file.uses + 1) if file.uses > 0 else None
            )
            if counted is None or counted.uses < 1:
                return None  # deleted just now
            await self.contents.drop(upload.parts)
            self.found += 1
        return json.dumps({"file": answer.document}, indent=2).encode()

    async def _new(self, lease: "_ContentLease", upload: PooledUpload, sha256: str) -> bytes:
        async with leased(lease.extend):
            await self._check_name(lease.key, upload)
            created = await self._upload(lease, upload, sha256)
        await self._note(lease, upload, sha256, created)
        self.uploaded += 1
        return created.body

    async def _check_name(self, key: str, upload: PooledUpload) -> None:
        """A name that the client chose is used once, over all projects."""
        name = given_of(upload.described)
        file = await self.records.read(name) if name else None
        if file is not None and (file.client, file.content, file.parts) != (upload.client, key, upload.parts):
            await self.contents.drop(upload.parts)
            raise _exists()

    async def _upload(self, lease: "_ContentLease", upload: PooledUpload, sha256: str) -> CreatedFile:
        """Upload to one project after another until one takes it."""
        tried = Tried()
        last: RefusedError | None = None
        project = str(lease.document["project"])
        troubles = 0
        while troubles < self.pool.settings.max_attempts:
            if project not in self.pool.projects.by_name or project in tried.projects:
                if (picked := await self.pool.pick(None, tried)) is None:
                    break
                project = picked.project
            if lease.document["project"] != project:
                with suppress(ConflictError):  # another instance has the lease by now: both make the same file
                    await lease.change(project=project)  # an instance that takes over begins with this project
            described = dict(upload.described)
            described["name"] = name = given_of(described) or first_name(lease.key, lease.document["born"], project)
            # Claimed first: once the file exists, other clients could use it.
            if not await self.ownership.claim(name, project, upload.client, self.records.now() + KEPT_S):
                raise _exists()
            read = partial(self.contents.read, upload.parts)
            try:
                return await self.google.upload(project, described, upload.kind, upload.received, read, sha256)
            except NameTakenError:
                await self.ownership.unclaim(name)
                raise
            except RefusedError as error:
                last = error
                action = None if error.failure is None else error.failure.verdict.action
                if action == "to-client":
                    raise
                troubles += action == "retry"
                tried.projects.add(project)
        raise last or RefusedError(project, None)

    async def _note(self, lease: "_ContentLease", upload: PooledUpload, sha256: str, created: CreatedFile) -> None:
        now, project = self.records.now(), created.key.project
        copy = copy_of(created.document, now + KEPT_S)
        await self.ownership.bind({copy.name: copy.expires}, project, upload.client, pooled=True)
        file = PooledFile(
            name=copy.name,
            client=upload.client,
            sha256=sha256,
            size=upload.received,
            kind=upload.kind,
            shown=shown_of(upload.described),
            content=lease.key,
            home=project,
            born=now,
            expires=copy.expires,
            parts=upload.parts,
            copies={project: copy},
        )
        await self.records.put(file)
        try:
            await lease.replace({"v": 1, "file": file.name, "expires": int(file.expires)})
        except ConflictError:  # the lease had ended, and another instance got it
            log.warning("the content of %s was uploaded by two instances", file.name)


class _ContentLease:
    """A content's document while this instance uploads the content."""

    def __init__(self, records: FileRecords, key: str, document: Document, version: Version | None) -> None:
        self.key = key
        self.document = document
        self._records = records
        self._version = version
        self._lock = asyncio.Lock()

    async def change(self, **fields: Any) -> None:
        async with self._lock:
            await self._write(self.document | fields)

    async def extend(self, seconds: float) -> None:
        await self.change(until=self._records.now() + seconds if seconds else 0)

    async def replace(self, document: Document) -> None:
        async with self._lock:
            await self._write(document)

    async def _write(self, document: Document) -> None:
        self._version = await self._records.write(CONTENT + self.key, document, self._version)
        self.document = document


def _exists() -> GatewayError:
    return GatewayError("FILE_EXISTS", "Requested entity already exists")
