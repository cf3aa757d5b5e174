"""What a request that names pooled files needs: whose they are, where they can be used, a copy where none is, and their
names there.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pollux import wire
from pollux.affinity import Affinity, Bound
from pollux.attempts import Failure
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.pool import Pool
from pollux.pooled.contents import Contents
from pollux.pooled.copies import Copies, CopyError, LateError
from pollux.pooled.documents import COPY, Copy, PooledFile
from pollux.pooled.sender import Sender
from pollux.pooled.shelf import Shelf
from pollux.store import StoreError
from pollux.wire.error import GatewayError

log = logging.getLogger("pollux.relay")

DELETE_WITHIN = 10.0
PENDING_RETRY = 5.0
NAMED_MOST = 10_000
"""Each that is not known costs a read."""


@dataclass(slots=True)
class Named:
    """The pooled files that one request's body names."""

    references: Mapping[str, str]
    """As it stands there -> the file's name."""
    lost: Failure | None = None
    """A copy was lost, so said Google, and made again: once is enough."""
    brought: frozenset[str] = frozenset()
    """Where a copy was made just now, while a slot was held there: so that slot comes first."""
    fetched: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    """Copies that are made while the request waits for its slot."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.references.values())

    async def close(self) -> None:
        """The request is over: what it alone waited for ends."""
        tasks = {task for task in self.fetched.values() if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Using:
    def __init__(
        self, pool: Pool, affinity: Affinity, shelf: Shelf, contents: Contents, copies: Copies, sender: Sender
    ) -> None:
        self._pool = pool
        self._affinity = affinity
        self._shelf = shelf
        self._contents = contents
        self._copies = copies
        self._sender = sender

    # --- whose they are ----------------------------------------------------------------------------------------------

    def refuse_copies(self, names: Iterable[str]) -> None:
        """Nobody asks for a copy: it is a project's, not a client's."""
        for name in names:
            if name.startswith(COPY):
                raise _not_yours(name)

    async def refuse_others(self, x: Exchange, references: Iterable[str], names: Collection[str]) -> None:
        """Files behind references that are none as Pollux reads them: Google may be more lenient. `names`: those that
        were understood."""
        said = references if x.parsed is None else {*references, *wire.may_be_named(x.parsed)}
        mentioned = wire.mentioned(said) - set(names)
        if len(names) + len(mentioned) > NAMED_MOST:
            raise GatewayError("BAD_REQUEST", f"the request names more than {NAMED_MOST} files")
        self.refuse_copies(mentioned)
        for name, bound in (await self._affinity.certain(mentioned)).items():
            if bound.pooled and bound.client != x.record.client:
                raise _not_yours(name)

    async def claim(self, x: Exchange, owners: dict[str, Bound]) -> dict[str, Bound]:
        """The owners that hold the request to a project: those of pooled files in its body do not."""
        pooled = {name: bound for name, bound in owners.items() if bound.pooled}
        for name, bound in pooled.items():
            if bound.client != x.record.client:
                raise _not_yours(name)
        if not pooled or x.parsed is None:
            return owners
        found = await asyncio.gather(*(self._shelf.find(name) for name in pooled))
        known = {file.name for file in found if file is not None} - set(wire.path_names(x.call))
        bases = {wire.GOOGLE, self._pool.settings.upstream}
        with suppress(GatewayError):  # one of ours stands there still if it is spelt oddly
            bases |= {x.own_base(), self._pool.settings.public_url} - {""}
        named = {reference: wire.named_by(reference, bases) for reference in wire.references(x.parsed, x.call)}
        references = {reference: name for reference, name in named.items() if name is not None and name in known}
        if references:
            self._make_readable(x, references)
            x.files = Named(references)
        return {name: bound for name, bound in owners.items() if name not in references.values()}

    def _make_readable(self, x: Exchange, references: Mapping[str, str]) -> None:
        """So that they can be renamed: not compressed, and not spelt oddly."""
        _, found = wire.renamed(x.readable, {name: name for name in _spellings(references)})
        if all(found & {*_spellings([reference])} for reference in references):
            x.exchange(x.readable)
        else:
            x.exchange(json.dumps(x.parsed, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    async def hidden(self, names: Iterable[str], client: str) -> set[str]:
        """Of a list, what this client does not see: copies, and other clients' files."""
        files = [name for name in names if name.startswith("files/")]
        owners = await self._affinity.certain([name for name in files if not name.startswith(COPY)])
        others = {name for name, bound in owners.items() if bound.pooled and bound.client != client}
        return others | {name for name in files if name.startswith(COPY)}

    # --- where they can be used --------------------------------------------------------------------------------------

    def near(self, x: Exchange) -> frozenset[str]:
        """The projects that have them all."""
        now = self._shelf.now()
        everywhere = frozenset(self._pool.roster.projects)
        if x.files is None:
            return everywhere
        for name in x.files.names:
            file = self._shelf.known(name)
            everywhere &= frozenset() if file is None else file.ready_at(now)
        return everywhere

    def home(self, x: Exchange) -> str | None:
        """A project that knows one of the files by its own name."""
        names = () if x.files is None else sorted(x.files.names)
        return next((file.home for name in names if (file := self._shelf.known(name)) is not None), None)

    async def out_of_reach(self, x: Exchange) -> set[str]:
        """Projects that have no copy and cannot get one just now."""
        assert x.files is not None
        far = set(self._pool.roster.projects) - self.near(x)
        if far and not await self._contents.usable():
            self._contents.counts["kept_to_copies"] += 1
            log.error(
                "request %s is held to the projects that have its files, as there is no blob store to copy from: %s",
                x.record.id,
                self._contents.trouble,
            )
            return far
        return {project for project in far if any(self._copies.refused(name, project) for name in x.files.names)}

    def prefetch(self, x: Exchange, project: str) -> None:
        """Its slot lies ahead: the copies are made meanwhile."""
        if x.files is not None and project not in x.files.fetched and project not in self.near(x):
            x.files.fetched[project] = asyncio.create_task(self._prefetched(x, project))

    async def _prefetched(self, x: Exchange, project: str) -> None:
        assert x.files is not None
        with suppress(CopyError, LateError, StoreError):  # the request comes upon it itself
            await asyncio.gather(*(self._copies.ensure(name, project, x.deadline) for name in x.files.names))

    async def bring(self, x: Exchange, project: str) -> bool:
        """Make what the project lacks, and wait for it. False: it cannot be had there."""
        assert x.files is not None
        names = sorted(x.files.names)
        began = self._pool.now()
        made = await asyncio.gather(
            *(self._copies.ensure(name, project, x.deadline) for name in names), return_exceptions=True
        )
        x.record.waited += self._pool.now() - began
        for name, trouble in zip(names, made, strict=True):
            if trouble is not None and self._shelf.known(name) is None:
                raise _not_yours(name)
            if isinstance(trouble, LateError):
                raise GatewayError("COPY_PENDING", f"{trouble}; ask again", retry_after=PENDING_RETRY)
            if isinstance(trouble, CopyError):
                x.noted(Attempt("", project, "", "not-copied", None, str(trouble)))
                return False
            if trouble is not None:
                raise trouble
        x.noted(Attempt("", project, "", "copied", None, waited=self._pool.now() - began))
        return True

    async def held(self, x: Exchange) -> None:
        """For a call that takes no quota: one project, rather one that has the files."""
        assert x.files is not None
        able, _ = self._pool.roster.candidates("", (), (), self._pool.now())
        names = [x.only] if x.only is not None else [project.name for project, _ in able]
        near = self.near(x)
        far = await self.out_of_reach(x)
        for project in sorted(names, key=lambda name: name not in near):
            if project in near or (project not in far and await self.bring(x, project)):
                x.only = x.record.owner = project
                self.rename(x, project)
                return
        raise self.unreachable(x)

    def unreachable(self, x: Exchange) -> GatewayError:
        assert x.files is not None
        said = ", ".join(sorted(x.files.names))
        where = "any project that is well" if x.only is None else f"project {x.only}"
        return GatewayError(
            "COPY_PENDING", f"{said} cannot be copied to {where} at the moment", retry_after=PENDING_RETRY
        )

    def rename(self, x: Exchange, project: str) -> None:
        """For the next attempt, which goes there."""
        x.renames = {}
        if x.files is None:
            return
        for reference, name in x.files.references.items():
            file = self._shelf.known(name)
            copy = None if file is None else file.copy_at(project, self._shelf.now())
            known_there = "://" not in reference or reference.startswith((wire.GOOGLE, self._pool.settings.upstream))
            if copy is None or (copy.name == name and known_there):
                continue
            x.renames[reference] = copy.uri if "://" in reference else copy.name
            if reference.startswith("files/"):
                x.renames[reference.removeprefix("files/")] = copy.name
            x.aliases[_id(copy.name)] = _id(name)

    # --- their ends --------------------------------------------------------------------------------------------------

    async def lost(self, x: Exchange, failure: Failure) -> bool:
        """Google does not know a copy any more: forget it, so that it is made again. Once in a request."""
        if x.files is None or x.files.lost is not None or failure.status not in (403, 404):
            return False
        project = failure.key.project
        for name in x.files.names:
            file = self._shelf.known(name)
            copy = None if file is None else file.copies.get(project)
            if not isinstance(copy, Copy) or _id(copy.name) not in failure.body:
                continue
            x.files.lost = failure

            def forget(file: PooledFile, gone: Copy = copy) -> PooledFile | None:
                there = file.copies.get(project)
                if not isinstance(there, Copy) or there.name != gone.name:
                    return None  # somebody else was here
                return replace(file.with_copy(project, None), round=file.round + 1)

            await self._shelf.change(name, forget)
        return x.files.lost is not None

    async def release(self, x: Exchange) -> bool:
        """A file is deleted. True: the client has its answer, for the same content was uploaded more than once, and
        is still in use. Else the file itself is still to be deleted where it lives."""
        name = next(iter(wire.path_names(x.call)), "")
        bound = self._affinity.remembered(name)
        if x.method != "DELETE" or bound is None or not bound.pooled or not wire.names_exactly(x.call, name):
            return False
        file = await self._shelf.change(name, lambda file: replace(file, uses=file.uses - 1))
        if file is None:
            return False
        if file.uses > 0:
            headers = [(b"content-type", b"application/json; charset=UTF-8")]
            await x.reply.whole(200, headers, b"{}\n")
            return True
        now = self._shelf.now()
        elsewhere = {project: copy for project in file.copies if (copy := file.copy_at(project, now)) is not None}
        elsewhere.pop(file.home, None)
        with suppress(TimeoutError):  # what stays is used by nobody, and ends by itself
            async with asyncio.timeout(DELETE_WITHIN):
                await asyncio.gather(*(self._sender.delete(project, copy.name) for project, copy in elsewhere.items()))
        await self._contents.drop(file.parts)
        await self._shelf.remove(file)
        return False


def _spellings(references: Iterable[str]) -> list[str]:
    """OpenAI's ids come without their collection."""
    return [text for reference in references for text in (reference, reference.removeprefix("files/"))]


def _id(name: str) -> bytes:
    return name.removeprefix("files/").encode()


def _not_yours(name: str) -> GatewayError:
    """In Google's words for what another project owns."""
    said = f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
    return GatewayError("FILE_OF_ANOTHER", said)
