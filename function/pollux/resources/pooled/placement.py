"""Requests that name pooled files: whose the files are, which projects have copies, how a copy gets to a project, and
what the files are called there.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from pollux.backends.store.contract import StoreError
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import GOOGLE, named_by, names_exactly, path_names
from pollux.gemini.names import references as named_in_body
from pollux.gemini.rewrite import may_be_named, renamed
from pollux.gemini.rewrite import mentioned as files_mentioned
from pollux.pool.pool import Ask, Pool, Tried
from pollux.relay.journal import Attempt
from pollux.relay.request import Exchange
from pollux.relay.send import Failure
from pollux.resources.answers import OwnerPlacement
from pollux.resources.ownership import Owner, Ownership
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.copies import Copies, CopyError, CopyPendingError
from pollux.resources.pooled.documents import COPY, Copy, PooledFile
from pollux.resources.pooled.records import FileRecords
from pollux.resources.pooled.upload_to_google import GoogleFiles

log = logging.getLogger("pollux.relay")

DELETE_WITHIN = 10.0
PENDING_RETRY = 5.0
NAMED_MOST = 10_000
"""Each file that is not known costs a read."""


class FileAccess:
    def __init__(
        self,
        pool: Pool,
        ownership: Ownership,
        records: FileRecords,
        contents: Contents,
        copies: Copies,
        google: GoogleFiles,
    ) -> None:
        self.pool = pool
        self.ownership = ownership
        self.records = records
        self.contents = contents
        self.copies = copies
        self._google = google

    def refuse_copies(self, names: Iterable[str]) -> None:
        """A copy belongs to a project, not to a client: clients never name one."""
        for name in names:
            if name.startswith(COPY):
                raise _not_yours(name)

    async def refuse_others(self, x: Exchange, references: Iterable[str], names: Collection[str]) -> None:
        """Refuse other clients' files, also behind references that only Google understands, as it may be more lenient.
        `names`: those that Pollux understood."""
        said = references if x.parsed is None else {*references, *may_be_named(x.parsed)}
        mentioned = files_mentioned(said) - set(names)
        if len(names) + len(mentioned) > NAMED_MOST:
            raise GatewayError("BAD_REQUEST", f"the request names more than {NAMED_MOST} files")
        self.refuse_copies(mentioned)
        _refuse_others_of(await self.ownership.confirmed_owners(mentioned), x.record.client)

    async def claimed(self, x: Exchange, owners: Mapping[str, Owner]) -> dict[str, str]:
        """The references in the body to pooled files, with the files' names: any project can get a copy of those."""
        pooled = {name: owner for name, owner in owners.items() if owner.pooled}
        _refuse_others_of(pooled, x.record.client)
        if not pooled or x.parsed is None:
            return {}
        found = await asyncio.gather(*(self.records.find(name) for name in pooled))
        known = {file.name for file in found if file is not None} - set(path_names(x.call))
        bases = {GOOGLE, self.pool.settings.upstream}
        with suppress(GatewayError):  # an address of ours stays in the body if it is spelt oddly
            bases |= {x.own_base(), self.pool.settings.public_url} - {""}
        named = {reference: named_by(reference, bases) for reference in named_in_body(x.parsed, x.call)}
        references = {reference: name for reference, name in named.items() if name is not None and name in known}
        if references:
            _make_readable(x, references)
        return references

    async def hidden(self, names: Iterable[str], client: str) -> set[str]:
        """What this client does not see of a list: copies, and other clients' files."""
        copies = {name for name in names if name.startswith(COPY)}
        owners = await self.ownership.confirmed_owners(
            [name for name in names if name.startswith("files/") and name not in copies]
        )
        return copies | {name for name, owner in owners.items() if owner.pooled and owner.client != client}

    async def release(self, x: Exchange) -> bool:
        """A file is deleted. True: the client has its answer, as the same content was uploaded more than once and is
        still in use. Otherwise the file itself is still to be deleted where it lives."""
        name = next(iter(path_names(x.call)), "")
        owner = self.ownership.remembered(name)
        if x.method != "DELETE" or owner is None or not owner.pooled or not names_exactly(x.call, name):
            return False
        file = await self.records.change(name, lambda file: replace(file, uses=file.uses - 1))
        if file is None:
            return False
        if file.uses > 0:
            headers = [(b"content-type", b"application/json; charset=UTF-8")]
            await x.reply.whole(200, headers, b"{}\n")
            return True
        now = self.records.now()
        elsewhere = {project: copy for project in file.copies if (copy := file.copy_at(project, now)) is not None}
        elsewhere.pop(file.home, None)
        with suppress(TimeoutError):  # a copy that stays is unused, and expires
            async with asyncio.timeout(DELETE_WITHIN):
                await asyncio.gather(*(self._google.delete(project, copy.name) for project, copy in elsewhere.items()))
        await self.contents.drop(file.parts)
        await self.records.remove(file)
        return False


class PooledPlacement(OwnerPlacement):
    """The placement of a request whose body names pooled files: where their copies are, or can be made."""

    prepares = True

    def __init__(self, access: FileAccess, x: Exchange, names: Collection[str], references: Mapping[str, str]) -> None:
        super().__init__(access.ownership, x.record, names)
        self._access = access
        self._pool = access.pool
        self._records = access.records
        self._deadline = x.deadline
        self._references = references
        """As it stands in the body -> the file's name."""
        self._files = sorted({*references.values()})
        self._renames: dict[str, str] = {}
        """Names and URIs in the body, and those of the copies at the project of this attempt."""
        self._aliases: dict[bytes, bytes] = {}
        """Ids of copies, and the ids by which the client knows the files."""
        self._lost: Failure | None = None
        """Google said that it lost a copy, which was made again: once is enough."""
        self._brought: frozenset[str] = frozenset()
        """Where a copy was made just now while a slot was held there: that project comes first."""
        self._fetched: dict[str, asyncio.Task[None]] = {}
        """Copies that are made while the request waits for its slot."""

    def counts_at(self) -> str | None:
        """A project that knows one of the files by its own name."""
        homes = (file.home for name in self._files if (file := self._records.known(name)) is not None)
        return self.only or next(homes, None)

    async def narrow(self, ask: Ask, tried: Tried) -> Ask:
        tried.projects |= await self._out_of_reach()
        return replace(ask, near=self._brought or self._near(), booked=self._prefetch)

    def ready(self, project: str) -> bool:
        self._brought = frozenset()
        if project not in self._near():
            return False
        self._rename(project)
        return True

    async def prepare(self, project: str, tried: Tried) -> None:
        if await self._bring(project):
            self._brought = frozenset({project})
        elif self.only is not None:
            raise self._unreachable()
        else:
            tried.projects.add(project)

    async def choose(self) -> None:
        """A project that has the files, if there is one."""
        able, _ = self._pool.projects.candidates("", (), (), self._pool.now())
        names = [self.only] if self.only is not None else [project.name for project, _ in able]
        near = self._near()
        far = await self._out_of_reach()
        for project in sorted(names, key=lambda name: name not in near):
            if project in near or (project not in far and await self._bring(project)):
                self.only = self._record.owner = project
                self._rename(project)
                return
        raise self._unreachable()

    def rewritten(self, body: bytes) -> bytes:
        return renamed(body, self._renames)[0] if self._renames else body

    def shown(self, body: bytes) -> bytes:
        for copy, file in self._aliases.items():
            body = body.replace(copy, file)
        return body

    async def lost(self, failure: Failure) -> bool:
        """Forget a copy that Google does not know any more, so that it is made again. Once in a request."""
        if self._lost is not None or failure.status not in (403, 404):
            return False
        project = failure.key.project
        for name in self._files:
            file = self._records.known(name)
            copy = None if file is None else file.copies.get(project)
            if not isinstance(copy, Copy) or _id(copy.name) not in failure.body:
                continue
            self._lost = failure

            def forget(file: PooledFile, gone: Copy = copy) -> PooledFile | None:
                there = file.copies.get(project)
                if not isinstance(there, Copy) or there.name != gone.name:
                    return None  # another request has replaced it
                return replace(file.with_copy(project, None), round=file.round + 1)

            await self._records.change(name, forget)
        return self._lost is not None

    def exhausted(self) -> Failure | None:
        if self._near():
            return None
        if self._lost is None:
            raise self._unreachable()
        return self._lost

    async def close(self) -> None:
        """Cancel the copies that this request alone waits for."""
        tasks = {task for task in self._fetched.values() if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _near(self) -> frozenset[str]:
        """The projects that have all files."""
        now = self._records.now()
        everywhere = frozenset(self._pool.projects.by_name)
        for name in self._files:
            file = self._records.known(name)
            everywhere &= frozenset() if file is None else file.ready_at(now)
        return everywhere

    async def _out_of_reach(self) -> set[str]:
        """Projects that have no copy and cannot get one at the moment."""
        far, contents = set(self._pool.projects.by_name) - self._near(), self._access.contents
        if far and not await contents.usable():
            contents.counts["kept_to_copies"] += 1
            log.error(
                "request %s is held to the projects that have its files, as there is no blob store to copy from: %s",
                self._record.id,
                contents.trouble,
            )
            return far
        return {project for project in far if any(self._access.copies.refused(name, project) for name in self._files)}

    def _prefetch(self, project: str) -> None:
        """Its slot lies ahead: the copies are made meanwhile."""
        if project not in self._fetched and project not in self._near():
            self._fetched[project] = asyncio.create_task(self._prefetched(project))

    async def _prefetched(self, project: str) -> None:
        with suppress(CopyError, CopyPendingError, StoreError):  # the request meets the trouble itself
            await asyncio.gather(*(self._access.copies.ensure(name, project, self._deadline) for name in self._files))

    async def _bring(self, project: str) -> bool:
        """Make the copies that the project lacks. False: it cannot have one."""
        began = self._pool.now()
        made = await asyncio.gather(
            *(self._access.copies.ensure(name, project, self._deadline) for name in self._files), return_exceptions=True
        )
        self._record.waited += self._pool.now() - began
        for name, trouble in zip(self._files, made, strict=True):
            if trouble is not None and self._records.known(name) is None:
                raise _not_yours(name)
            if isinstance(trouble, CopyPendingError):
                raise GatewayError("COPY_PENDING", f"{trouble}; ask again", retry_after=PENDING_RETRY)
            if isinstance(trouble, CopyError):
                self._record.note(Attempt("", project, "", "not-copied", None, str(trouble)))
                return False
            if trouble is not None:
                raise trouble
        self._record.note(Attempt("", project, "", "copied", None, waited=self._pool.now() - began))
        return True

    def _unreachable(self) -> GatewayError:
        where = "any project that is well" if self.only is None else f"project {self.only}"
        said = f"{', '.join(self._files)} cannot be copied to {where} at the moment"
        return GatewayError("COPY_PENDING", said, retry_after=PENDING_RETRY)

    def _rename(self, project: str) -> None:
        """For the next attempt, which goes there."""
        self._renames = {}
        for reference, name in self._references.items():
            file = self._records.known(name)
            copy = None if file is None else file.copy_at(project, self._records.now())
            known_there = "://" not in reference or reference.startswith((GOOGLE, self._pool.settings.upstream))
            if copy is None or (copy.name == name and known_there):
                continue
            self._renames[reference] = copy.uri if "://" in reference else copy.name
            if reference.startswith("files/"):
                self._renames[reference.removeprefix("files/")] = copy.name
            self._aliases[_id(copy.name)] = _id(name)


def _make_readable(x: Exchange, references: Mapping[str, str]) -> None:
    """So that they can be renamed: not compressed, and not spelt oddly."""
    _, found = renamed(x.readable, {name: name for name in _spellings(references)})
    if all(found & {*_spellings([reference])} for reference in references):
        x.replace_body(x.readable)
    else:
        x.replace_body(json.dumps(x.parsed, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _spellings(references: Iterable[str]) -> list[str]:
    """OpenAI's ids come without their collection."""
    return [text for reference in references for text in (reference, reference.removeprefix("files/"))]


def _id(name: str) -> bytes:
    return name.removeprefix("files/").encode()


def _refuse_others_of(owners: Mapping[str, Owner], client: str) -> None:
    for name, owner in owners.items():
        if owner.pooled and owner.client != client:
            raise _not_yours(name)


def _not_yours(name: str) -> GatewayError:
    """In Google's words for what another project owns."""
    said = f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
    return GatewayError("FILE_OF_ANOTHER", said)
