"""To which project a request must go, by the resources that it names. `ownership` remembers who owns what.

A name without a known owner is searched: every healthy project is asked for it once.
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
    is_resource_call,
    makes_what_goes_together,
    named_by,
    path_names,
    resource,
)
from pollux.gemini.names import references as named_in_body
from pollux.gemini.rewrite import elsewhere, to_upstream
from pollux.gemini.verdict.causes import OF_RESOURCES
from pollux.relay.journal import Attempt
from pollux.relay.request import Exchange
from pollux.relay.retry import Relay
from pollux.resources.answers import Answers, OwnerPlacement
from pollux.resources.ask import Asker, JsonAnswer
from pollux.resources.ownership import Owner, Ownership
from pollux.resources.pooled.placement import FileAccess, PooledPlacement

AT_ONCE = 8
SEARCHES_AT_ONCE = 8
"""Of all requests together: each has up to AT_ONCE connections open."""
SEARCHED_MOST = 16
"""The most names of one request that are searched: each costs a call to every project."""
WITH_RESOURCES = ("v1alpha", "v1beta")
"""Google's v1 has only models: no name is found there."""
WITHIN = 8.0
"""How long a project may take to say whether it has a name."""
NOT_THERE = OF_RESOURCES | {"bad-request"}
"""Refusals that say that the project does not have it. Any other refusal says nothing."""


class Locator:
    def __init__(self, relay: Relay, ownership: Ownership, asker: Asker) -> None:
        self._relay = relay
        self._pool = relay.pool
        self._ownership = ownership
        self._asker = asker
        self._answers = Answers(ownership, relay.pool.settings.upstream)
        self.pooled: FileAccess | None = None
        """With POLLUX_FILES=pooled."""
        self._room = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._searches: dict[str, asyncio.Task[Owner | None]] = {}

    async def counted(self, x: Exchange) -> None:
        """A call that takes quota, sent where the resources are that it names."""
        if x.call.kind not in COUNTED or not x.call.model:  # the body names no model
            await self.free(x)
            return
        place = await self._placed(x)
        try:
            await self._relay.counted(x)
        finally:
            if place is not None:
                await place.close()

    async def free(self, x: Exchange) -> None:
        """Any other call, sent where the resources are that it names."""
        place = await self._placed(x)
        if self.pooled is not None and x.method == "DELETE" and await self.pooled.release(x):
            return
        try:
            if place is not None:
                await place.choose()
            await self._relay.free(x)
        finally:
            if place is not None:
                await place.close()

    async def _placed(self, x: Exchange) -> OwnerPlacement | None:
        """Set where the request may go, and turn URIs of ours in its body back into Google's. None: anywhere."""
        call = x.call
        if is_resource_call(call):
            x.own_base()  # an invalid Host is refused before anything is made
            x.pass_on = self._answers.pass_on
        names = set(path_names(call))
        if call.model is not None and "/" in (model := self._pool.projects.catalog.resolve(call.model)):
            names.update(filter(None, (resource(model),)))  # a tuned one, which an alias or a body may name
        asked_for = frozenset(names)
        references = named_in_body(x.parsed, call) if x.parsed is not None else frozenset()
        if references:
            names |= await self._of_body(x, references)
        if self.pooled is not None:
            self.pooled.refuse_copies(names)
            await self.pooled.refuse_others(x, references, names)
        if not names:
            if x.method != "POST" or call.kind != "other" or not makes_what_goes_together(call):
                return None
            await self._pool.projects.ready()
            x.place = place = OwnerPlacement(self._ownership, x.record)
            place.home = home_of(x.record.client, self._healthy(()))
            return place
        await self._pool.projects.ready()
        # Agents of Google's own are called by bare names too: nobody owns those.
        agents = {name for name in names - asked_for if name.startswith("agents/")}
        owners = await self.of(x, sorted(names - agents))
        if agents:
            owners |= await self._ownership.owners(sorted(agents))
        names = (names - agents) | owners.keys()
        x.place = place = OwnerPlacement(self._ownership, x.record, names)
        if self.pooled is not None and (files := await self.pooled.claimed(x, owners)):
            owners = {name: owner for name, owner in owners.items() if name not in files.values()}
            x.place = place = PooledPlacement(self.pooled, x, names, files)
        if owners:
            x.record.owner = ", ".join(sorted({owner.project for owner in owners.values()}))
            place.only = self._one(owners)
        elif names and not place.prepares and not call.counted:
            place.only = self._likely(x.record.client)
        return place

    async def of(self, x: Exchange, names: Sequence[str]) -> dict[str, Owner]:
        """The owners that are known, or found by a search."""
        files = [] if self.pooled is None else [name for name in names if name.startswith("files/")]
        owners = await self._ownership.confirmed_owners(files)
        owners |= await self._ownership.owners([name for name in names if name not in owners])
        projects = self._pool.projects.by_name
        lost = [name for name in names if name not in owners]
        # A key may have got another project name since: then the search finds it under the new name.
        gone = [name for name, owner in owners.items() if owner.project not in projects]
        if lost and len(projects) == 1:  # no other project can own it
            owners |= {name: Owner(project, x.record.client, 0.0) for name in lost for project in projects}
        elif lost or gone:
            owners |= await self._searched(x, lost + gone)
        return owners

    async def _of_body(self, x: Exchange, references: Collection[str]) -> set[str]:
        """The names behind references in the body. URIs of ours become the upstream's."""
        settings = self._pool.settings
        own = [settings.public_url] if settings.public_url else []
        if any("://" in reference for reference in references):
            with suppress(GatewayError):  # an invalid Host: no URI can be ours then
                own.append(x.own_base())
        if settings.upstream != GOOGLE:  # an upstream that stands in for Google knows only its own address
            own.append(GOOGLE)
        own = [base for base in own if base]
        bases = [GOOGLE, settings.upstream, *own]
        strangers = [found for reference in references if (found := elsewhere(reference)) and found[0] not in bases]
        if strangers:  # the gateway may have had another address when the file was made
            known = await self._ownership.owners(sorted({name for _, name in strangers}))
            own += [base for base, name in strangers if name in known]
            bases += own
        if any(reference.startswith(base + "/") for reference in references for base in own):
            x.replace_body(to_upstream(x.readable, own, settings.upstream, references))
        return {name for reference in references if (name := named_by(reference, bases)) is not None}

    def _one(self, owners: dict[str, Owner]) -> str:
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
        if project not in self._pool.projects.by_name:
            raise GatewayError(
                "OWNER_GONE",
                f"{name} belongs to project {project}, of which the pool has no key any more; add one, or make {name} "
                "again",
            )
        return project

    def _likely(self, client: str) -> str | None:
        """Where this client last made something, if a healthy key is there."""
        project = self._ownership.last_project(client)
        return project if project in self._healthy(()) else None

    def _healthy(self, first: Iterable[str | None]) -> Sequence[str]:
        able, _ = self._pool.projects.candidates("", (), (), self._pool.now())
        names = [project.name for project, _ in able]
        return sorted(names, key=lambda name: name not in first)

    async def _searched(self, x: Exchange, names: Sequence[str]) -> dict[str, Owner]:
        unknown = [name for name in names if not self._ownership.is_missing(name)][:SEARCHED_MOST]
        found = await asyncio.gather(*(self._search(x, name) for name in unknown))
        located = {name: owner for name, owner in zip(unknown, found, strict=True) if owner is not None}
        for name, owner in located.items():
            found_there = f"{name} was looked for and found there"
            x.record.note(Attempt("", owner.project, "", "located", None, detail=found_there))
        return located

    async def _search(self, x: Exchange, name: str) -> Owner | None:
        """One search at a time for each name. It goes on if a client that waits for it leaves."""
        task = self._searches.get(name)
        if task is None:
            version = x.call.path.strip("/").split("/")[0]
            target = f"/{version if version in WITH_RESOURCES else 'v1beta'}/{quote(name)}"
            task = self._searches[name] = asyncio.create_task(self._find(name, target, x.record.client))
            task.add_done_callback(lambda _: self._searches.pop(name, None))
        return await asyncio.shield(task)

    async def _find(self, name: str, target: str, client: str) -> Owner | None:
        try:
            async with asyncio.timeout(WITHIN):
                await self._room.acquire()
        except TimeoutError:
            return None
        try:
            return await self._asked_everywhere(name, target, client)
        finally:
            self._room.release()

    async def _asked_everywhere(self, name: str, target: str, client: str) -> Owner | None:
        self._ownership.searches += 1
        order = self._healthy((self._ownership.last_project(client),))
        unsaid = len(order) < len(self._pool.projects.by_name)
        for start in range(0, len(order), AT_ONCE):
            asked = [
                asyncio.ensure_future(self._asker.ask(project, target, WITHIN))
                for project in order[start : start + AT_ONCE]
            ]
            try:
                for one in asyncio.as_completed(asked):
                    told = await one
                    if isinstance(told, JsonAnswer):
                        names = answer_names(told.document, read_target("GET", target))
                        await self._ownership.bind({name: names.get(name)}, told.key.project, client)
                        return self._ownership.remembered(name)
                    unsaid |= told is None or not told.status or told.verdict.cause not in NOT_THERE
            finally:
                for question in asked:
                    question.cancel()
        if not unsaid:
            self._ownership.remember_missing(name)
        return None


def home_of(client: str, projects: Iterable[str]) -> str | None:
    """The project for a client's new resources, the same in every instance, so that a request can name several."""
    return max(
        projects, key=lambda project: blake2b(f"{client}\0{project}".encode(errors="replace")).digest(), default=None
    )
