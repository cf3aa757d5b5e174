"""Requests that name pooled files: may this client use them, which projects have copies, how a project gets one, and
what the files are called there.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from pollux.backends.store.contract import StoreError
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import GOOGLE, body_references, named_by, names_exactly, path_names
from pollux.gemini.rewrite import files_mentioned, may_be_named, renamed
from pollux.pool.pool import Pool
from pollux.pool.reservation import Ask, Tried
from pollux.relay.journal import Attempt
from pollux.relay.request import Request
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
"""Each unknown file costs a read of the store."""


@dataclass(eq=False)
class FileAccess:
    """Which pooled files a client may use and see, and their deletion."""

    pool: Pool
    ownership: Ownership
    records: FileRecords
    contents: Contents
    copies: Copies
    google: GoogleFiles

    async def check(self, request: Request, references: Iterable[str], names: Collection[str]) -> None:
        """Refuse copies, and other clients' files. `references`: all in the body, also those that only Google
        understands. `names`: the resources that Pollux understood."""
        texts = references if request.parsed is None else {*references, *may_be_named(request.parsed)}
        mentioned = files_mentioned(texts) - set(names)
        if len(names) + len(mentioned) > NAMED_MOST:
            raise GatewayError("BAD_REQUEST", f"the request names more than {NAMED_MOST} files")
        for name in (*names, *mentioned):
            if name.startswith(COPY):
                raise _not_yours(name)
        _check_owners(await self.ownership.confirmed_owners(mentioned), request.record.client)

    async def pooled_references(self, request: Request, owners: Mapping[str, Owner]) -> dict[str, str]:
        """The references to pooled files in the body, with the files' names."""
        pooled = {name: owner for name, owner in owners.items() if owner.pooled}
        _check_owners(pooled, request.record.client)
        if not pooled or request.parsed is None:
            return {}
        found = await asyncio.gather(*(self.records.find(name) for name in pooled))
        known = {file.name for file in found if file is not None} - set(path_names(request.call))
        bases = {GOOGLE, self.pool.settings.upstream}
        with suppress(GatewayError):  # with an invalid Host no URI can be ours
            bases |= {request.own_base(), self.pool.settings.public_url} - {""}
        named = {reference: named_by(reference, bases) for reference in body_references(request.parsed, request.call)}
        references = {reference: name for reference, name in named.items() if name is not None and name in known}
        if references:
            _make_renamable(request, references)
        return references

    async def hidden(self, names: Iterable[str], client: str) -> set[str]:
        """What this client does not see in a list: copies, and other clients' files."""
        copies = {name for name in names if name.startswith(COPY)}
        files = [name for name in names if name.startswith("files/") and name not in copies]
        owners = await self.ownership.confirmed_owners(files)
        return copies | {name for name, owner in owners.items() if owner.pooled and owner.client != client}

    async def delete(self, request: Request) -> bool:
        """True: the client has its answer, because other uploads of the same content still use the file. False: the
        request must go to the file's own project; the copies are deleted here."""
        name = next(iter(path_names(request.call)), "")
        owner = self.ownership.remembered(name)
        if owner is None or not owner.pooled or not names_exactly(request.call, name):
            return False
        file = await self.records.change(name, lambda file: replace(file, uses=file.uses - 1))
        if file is None:
            return False
        if file.uses > 0:
            headers = [(b"content-type", b"application/json; charset=UTF-8")]
            await request.reply.whole(200, headers, b"{}\n")
            return True
        now = self.records.now()
        copies = {project: copy for project in file.copies if (copy := file.copy_at(project, now)) is not None}
        copies.pop(file.home, None)
        with suppress(TimeoutError):  # a copy that stays is not used any more, and expires
            async with asyncio.timeout(DELETE_WITHIN):
                await asyncio.gather(*(self.google.delete(project, copy.name) for project, copy in copies.items()))
        await self.contents.drop(file.parts)
        await self.records.remove(file)
        return False


class PooledPlacement(OwnerPlacement):
    """The placement of a request whose body names pooled files: where their copies are, or can be made."""

    prepares = True

    def __init__(
        self, access: FileAccess, request: Request, names: Collection[str], references: Mapping[str, str]
    ) -> None:
        super().__init__(access.ownership, request.record, names)
        self._pool = access.pool
        self._records = access.records
        self._contents = access.contents
        self._copies = access.copies
        self._deadline = request.deadline
        self._references = references
        """Reference in the body -> name of the file."""
        self._files = sorted({*references.values()})
        self._renames: dict[str, str] = {}
        """Names and URIs in the body -> those of the copies in the project of this attempt."""
        self._aliases: dict[bytes, bytes] = {}
        """Ids of copies -> the ids that the client knows."""
        self._lost: Failure | None = None
        """Google's answer when it had lost a copy, which was then made again: only once in a request."""
        self._prepared: frozenset[str] = frozenset()
        """The project for which copies were just made: it is preferred."""
        self._prefetches: dict[str, asyncio.Task[None]] = {}
        """By project: copies are made while the request waits for its slot there."""

    def counts_at(self) -> str | None:
        """A project that knows one of the files by its own name."""
        homes = (file.home for name in self._files if (file := self._records.known(name)) is not None)
        return self.only or next(homes, None)

    async def narrow(self, ask: Ask, tried: Tried) -> Ask:
        tried.projects |= await self._unreachable()
        return replace(ask, near=self._prepared or self._ready(), booked=self._prefetch)

    def ready(self, project: str) -> bool:
        self._prepared = frozenset()
        if project not in self._ready():
            return False
        self._rename(project)
        return True

    async def prepare(self, project: str, tried: Tried) -> None:
        if await self._copy_to(project):
            self._prepared = frozenset({project})
        elif self.only is not None:
            raise self._pending()
        else:
            tried.projects.add(project)

    async def choose(self) -> None:
        able, _ = self._pool.projects.candidates("", (), (), self._pool.now())
        names = [self.only] if self.only is not None else [project.name for project, _ in able]
        ready = self._ready()
        unreachable = await self._unreachable()
        for project in sorted(names, key=lambda name: name not in ready):
            if project in ready or (project not in unreachable and await self._copy_to(project)):
                self.only = self._record.owner = project
                self._rename(project)
                return
        raise self._pending()

    def rewritten(self, body: bytes) -> bytes:
        return renamed(body, self._renames)[0] if self._renames else body

    def shown(self, body: bytes) -> bytes:
        for copy, file in self._aliases.items():
            body = body.replace(copy, file)
        return body

    async def lost(self, failure: Failure) -> bool:
        """If Google has lost a copy, forget it, so that it is made again. Once in a request."""
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
                known = file.copies.get(project)
                if not isinstance(known, Copy) or known.name != gone.name:
                    return None  # another request has replaced it
                return replace(file.with_copy(project, None), round=file.round + 1)

            await self._records.change(name, forget)
        return self._lost is not None

    def exhausted(self) -> Failure | None:
        if self._ready():
            return None
        if self._lost is None:
            raise self._pending()
        return self._lost

    async def close(self) -> None:
        """Cancel the copies that only this request waits for."""
        tasks = {task for task in self._prefetches.values() if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ready(self) -> frozenset[str]:
        """The projects that have all files."""
        now = self._records.now()
        ready = frozenset(self._pool.projects.by_name)
        for name in self._files:
            file = self._records.known(name)
            ready &= frozenset() if file is None else file.ready_at(now)
        return ready

    async def _unreachable(self) -> set[str]:
        """The projects that lack a file and cannot get it at present."""
        missing = set(self._pool.projects.by_name) - self._ready()
        if missing and not await self._contents.usable():
            self._contents.counts["kept_to_copies"] += 1
            log.error(
                "request %s can only go to projects that have its files: the blob store does not work: %s",
                self._record.id,
                self._contents.trouble,
            )
            return missing
        return {project for project in missing if any(self._copies.refused(name, project) for name in self._files)}

    def _prefetch(self, project: str) -> None:
        """Make the copies while the request waits for its slot."""
        if project not in self._prefetches and project not in self._ready():
            self._prefetches[project] = asyncio.create_task(self._prefetched(project))

    async def _prefetched(self, project: str) -> None:
        with suppress(CopyError, CopyPendingError, StoreError):  # `prepare` gets the same error
            await asyncio.gather(*(self._copies.ensure(name, project, self._deadline) for name in self._files))

    async def _copy_to(self, project: str) -> bool:
        """Make the copies that the project lacks. False: it cannot get one."""
        began = self._pool.now()
        made = await asyncio.gather(
            *(self._copies.ensure(name, project, self._deadline) for name in self._files), return_exceptions=True
        )
        waited = self._pool.now() - began
        self._record.waited += waited
        for name, error in zip(self._files, made, strict=True):
            if error is not None and self._records.known(name) is None:
                raise _not_yours(name)
            if isinstance(error, CopyPendingError):
                raise GatewayError("COPY_PENDING", f"{error}; ask again", retry_after=PENDING_RETRY)
            if isinstance(error, CopyError):
                self._record.note(Attempt("", project, "", "not-copied", None, str(error)))
                return False
            if error is not None:
                raise error
        self._record.note(Attempt("", project, "", "copied", None, waited=waited))
        return True

    def _pending(self) -> GatewayError:
        where = "any healthy project" if self.only is None else f"project {self.only}"
        message = f"{', '.join(self._files)} cannot be copied to {where} at the moment"
        return GatewayError("COPY_PENDING", message, retry_after=PENDING_RETRY)

    def _rename(self, project: str) -> None:
        """Set what `rewritten` replaces, for an attempt in this project."""
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


def _make_renamable(request: Request, references: Iterable[str]) -> None:
    """Replace a body that is compressed, or that escapes the references, by one in which they can be renamed."""
    spellings = {text: text for reference in references for text in _spellings(reference)}
    _, found = renamed(request.readable, spellings)
    if all(found.intersection(_spellings(reference)) for reference in references):
        request.replace_body(request.readable)
    else:
        request.replace_body(json.dumps(request.parsed, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _spellings(reference: str) -> tuple[str, str]:
    """OpenAI's ids lack the collection."""
    return reference, reference.removeprefix("files/")


def _id(name: str) -> bytes:
    return name.removeprefix("files/").encode()


def _check_owners(owners: Mapping[str, Owner], client: str) -> None:
    for name, owner in owners.items():
        if owner.pooled and owner.client != client:
            raise _not_yours(name)


def _not_yours(name: str) -> GatewayError:
    """Google's words for a file of another project."""
    message = f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
    return GatewayError("FILE_OF_ANOTHER", message)
