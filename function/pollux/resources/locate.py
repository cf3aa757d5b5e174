"""Sends a request to the project that owns the resources it names. `ownership` has the owners.

If a name has no known owner, a search asks every healthy project for it once.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from urllib.parse import quote

from pollux.gemini.call import COUNTED, read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.names import (
    GOOGLE,
    answer_names,
    body_references,
    is_resource_call,
    may_combine,
    named_by,
    path_names,
    resource,
)
from pollux.gemini.rewrite import file_uri_parts, to_upstream
from pollux.gemini.verdict.causes import OF_RESOURCES
from pollux.relay.journal import Attempt
from pollux.relay.request import Request
from pollux.relay.retry import Relay
from pollux.resources.answers import Answers, OwnerPlacement
from pollux.resources.ask import Asker, JsonAnswer
from pollux.resources.ownership import Owner, Ownership
from pollux.resources.pooled.placement import FileAccess, PooledPlacement

AT_ONCE = 8
SEARCHES_AT_ONCE = 8
"""The most searches at once, of all requests together. Each has up to AT_ONCE open connections."""
SEARCHED_MOST = 16
"""The most names of one request that are searched: each costs a call to every project."""
WITH_RESOURCES = ("v1alpha", "v1beta")
"""The versions of Google's API that have resources. v1 has only models."""
WITHIN = 8.0
"""Seconds for which a search waits for a project's answer."""
NOT_THERE = OF_RESOURCES | {"bad-request"}
"""Causes of a refusal which show that the project does not have the resource. Other refusals show nothing."""


class Locator:
    def __init__(self, relay: Relay, ownership: Ownership, asker: Asker) -> None:
        self._relay = relay
        self._pool = relay.pool
        self._projects = relay.pool.projects
        self._ownership = ownership
        self._asker = asker
        self._answers = Answers(ownership, relay.pool.settings.upstream)
        self.pooled: FileAccess | None = None
        """Set with POLLUX_FILES=pooled."""
        self._room = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._searches: dict[str, asyncio.Task[Owner | None]] = {}

    async def serve(self, request: Request) -> None:
        """Find the owner of the resources that the request names, and hand the request to the relay."""
        call, parsed = request.call, request.parsed
        if is_resource_call(call):
            request.own_base()  # refuse an invalid Host before anything is made
            request.pass_on = self._answers.pass_on
        names = set(path_names(call))
        if call.model is not None and "/" in (model := self._projects.catalog.resolve(call.model)):
            names.update(filter(None, (resource(model),)))  # a tuned model, named by an alias or by the body
        references = frozenset() if parsed is None else body_references(parsed, call)
        if names or references or call.kind == "other" or self.pooled is not None:
            await self._locate(request, names, references)
        placement = request.placement if isinstance(request.placement, PooledPlacement) else None
        try:
            if call.kind in COUNTED and call.model:
                await self._relay.counted(request)
            elif self.pooled is None or request.method != "DELETE" or not await self.pooled.delete(request):
                if placement is not None:
                    await placement.choose()
                await self._relay.free(request)
        finally:
            if placement is not None:
                await placement.close()

    async def _locate(self, request: Request, names: set[str], references: Collection[str]) -> None:
        """Set `request.placement`, and turn our URIs in the body back into Google's. `names`: those in the path."""
        in_path = frozenset(names)
        if references:
            names |= await self._names_of(request, references)
        if self.pooled is not None:
            await self.pooled.check(request, references, names)
        if not names:
            if request.method == "POST" and may_combine(request.call):
                await self._projects.ready()
                request.placement = OwnerPlacement(self._ownership, request.record)
                request.placement.home = home_of(request.record.client, self._healthy(()))
            return
        await self._projects.ready()
        # Bodies name Google's own agents by bare ids too: those have no owner, and are not searched.
        agents = {name for name in names - in_path if name.startswith("agents/")}
        owners = await self.owners(request, sorted(names - agents))
        if agents:
            owners |= await self._ownership.owners(sorted(agents))
        names = (names - agents) | owners.keys()
        request.placement = OwnerPlacement(self._ownership, request.record, names)
        if self.pooled is not None and (files := await self.pooled.pooled_references(request, owners)):
            owners = {name: owner for name, owner in owners.items() if name not in files.values()}
            request.placement = PooledPlacement(self.pooled, request, names, files)
        if owners:
            request.record.owner = ", ".join(sorted({owner.project for owner in owners.values()}))
            request.placement.only = self._single_project(owners)
        elif names and not request.placement.prepares and not request.call.counted:
            project = self._ownership.last_project(request.record.client)
            request.placement.only = project if project in self._healthy(()) else None

    async def owners(self, request: Request, names: Sequence[str]) -> dict[str, Owner]:
        """Returns the owners that are known, and those that a search finds."""
        files = [] if self.pooled is None else [name for name in names if name.startswith("files/")]
        owners = await self._ownership.confirmed_owners(files)
        owners |= await self._ownership.owners([name for name in names if name not in owners])
        projects = self._projects.by_name
        unknown = [name for name in names if name not in owners]
        # A search finds these again if the operator has renamed their project.
        gone = [name for name, owner in owners.items() if owner.project not in projects]
        if unknown and len(projects) == 1:  # no other project can own it
            owners |= {name: Owner(project, request.record.client, 0.0) for name in unknown for project in projects}
        elif unknown or gone:
            owners |= await self._search(request, unknown + gone)
        return owners

    async def _names_of(self, request: Request, references: Collection[str]) -> set[str]:
        """Returns the resources that the body refers to, and turns our URIs in the body into the upstream's."""
        settings = self._pool.settings
        own = [settings.public_url] if settings.public_url else []
        if any("://" in reference for reference in references):
            with suppress(GatewayError):  # with an invalid Host no URI can be ours
                own.append(request.own_base())
        if settings.upstream != GOOGLE:  # a stand-in for Google knows only its own address
            own.append(GOOGLE)
        own = [base for base in own if base]
        bases = [GOOGLE, settings.upstream, *own]
        others = [found for reference in references if (found := file_uri_parts(reference)) and found[0] not in bases]
        if others:  # the gateway may have had another address when the file was made
            known = await self._ownership.owners(sorted({name for _, name in others}))
            own += [base for base, name in others if name in known]
            bases += own
        if any(reference.startswith(base + "/") for reference in references for base in own):
            request.replace_body(to_upstream(request.readable, own, settings.upstream, references))
        return {name for reference in references if (name := named_by(reference, bases)) is not None}

    def _single_project(self, owners: dict[str, Owner]) -> str:
        by_project = {owner.project: name for name, owner in sorted(owners.items(), reverse=True)}
        if len(by_project) > 1:
            listed = " and ".join(f"{name} to project {project}" for project, name in sorted(by_project.items()))
            raise GatewayError(
                "TWO_OWNERS",
                f"the request names resources of several projects, and no project sees what another owns: {listed} "
                "belong; make them again in one project, whose key x-pollux-key may name, or use them in separate "
                "requests",
            )
        project, name = next(iter(by_project.items()))
        if project not in self._projects.by_name:
            raise GatewayError(
                "OWNER_GONE",
                f"{name} belongs to project {project}, of which the pool has no key any more; add one, or make {name} "
                "again",
            )
        return project

    def _healthy(self, first: Iterable[str | None]) -> Sequence[str]:
        """Returns the projects with a healthy key, those in `first` before the others."""
        able, _ = self._projects.candidates("", (), (), self._pool.now())
        names = [project.name for project, _ in able]
        return sorted(names, key=lambda name: name not in first)

    # --- searches ----------------------------------------------------------------------------------------------------

    async def _search(self, request: Request, names: Sequence[str]) -> dict[str, Owner]:
        unknown = [name for name in names if not self._ownership.is_missing(name)][:SEARCHED_MOST]
        found = await asyncio.gather(*(self._search_one(request, name) for name in unknown))
        located = {name: owner for name, owner in zip(unknown, found, strict=True) if owner is not None}
        for name, owner in located.items():
            detail = f"{name} was searched and found there"
            request.record.note(Attempt("", owner.project, "", "located", None, detail=detail))
        return located

    async def _search_one(self, request: Request, name: str) -> Owner | None:
        """Search for a name once for all requests that wait for it. The search continues if one of them leaves."""
        task = self._searches.get(name)
        if task is None:
            version = request.call.path.strip("/").split("/")[0]
            target = f"/{version if version in WITH_RESOURCES else 'v1beta'}/{quote(name)}"
            task = self._searches[name] = asyncio.create_task(self._when_allowed(name, target, request.record.client))
            task.add_done_callback(lambda _: self._searches.pop(name, None))
        return await asyncio.shield(task)

    async def _when_allowed(self, name: str, target: str, client: str) -> Owner | None:
        try:
            async with asyncio.timeout(WITHIN):
                await self._room.acquire()
        except TimeoutError:
            return None
        try:
            return await self._ask_everywhere(name, target, client)
        finally:
            self._room.release()

    async def _ask_everywhere(self, name: str, target: str, client: str) -> Owner | None:
        self._ownership.searches += 1
        projects = self._healthy((self._ownership.last_project(client),))
        incomplete = len(projects) < len(self._projects.by_name)
        for start in range(0, len(projects), AT_ONCE):
            calls = [
                asyncio.ensure_future(self._asker.ask(project, target, WITHIN))
                for project in projects[start : start + AT_ONCE]
            ]
            try:
                for call in asyncio.as_completed(calls):
                    answer = await call
                    if isinstance(answer, JsonAnswer):
                        names = answer_names(answer.document, read_target("GET", target))
                        await self._ownership.bind({name: names.get(name)}, answer.key.project, client)
                        return self._ownership.remembered(name)
                    incomplete |= answer is None or not answer.status or answer.verdict.cause not in NOT_THERE
            finally:
                for call in calls:
                    call.cancel()
        if not incomplete:
            self._ownership.remember_missing(name)
        return None


def home_of(client: str, projects: Iterable[str]) -> str | None:
    """Returns the project for a client's new resources. All instances choose the same, so a request can use several."""
    return max(
        projects, key=lambda project: blake2b(f"{client}\0{project}".encode(errors="replace")).digest(), default=None
    )
