"""To which project a request must go, by the resources that it names. Who owns what is remembered by `affinity`.

A name that nobody remembers is asked for, once, at every healthy project.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from urllib.parse import quote

from pollux import wire
from pollux.affinity import Affinity, Bound
from pollux.attempts import Failure
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.pool import Pool
from pollux.pooled.using import Using
from pollux.questions import Questions, Told
from pollux.verdict.causes import OF_RESOURCES
from pollux.wire.error import GatewayError

AT_ONCE = 8
SEARCHES_AT_ONCE = 8
"""Of all requests together: each has up to AT_ONCE connections open."""
SEARCHED_MOST = 16
"""So many names of one request are looked for: each costs a call to every project."""
WITH_RESOURCES = ("v1alpha", "v1beta")
"""In v1 Google has only models: there a name would be nowhere."""
SHOWN_MOST = 20
WITHIN = 8.0
"""No project is waited for longer when it is asked whether it knows a name."""
NOT_THERE = OF_RESOURCES | {"bad-request"}
"""Refusals that say: not mine. After any other nobody knows."""


class Owners:
    def __init__(self, pool: Pool, affinity: Affinity, questions: Questions) -> None:
        self._pool = pool
        self._affinity = affinity
        self._questions = questions
        self.pooled: Using | None = None
        """With POLLUX_FILES=pooled."""
        self._room = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._searches: dict[str, asyncio.Task[Bound | None]] = {}

    async def place(self, x: Exchange) -> None:
        """Hold the request to the owner of what it names, and turn URIs of ours in it back into Google's."""
        names = set(wire.path_names(x.call))
        if x.call.model is not None and "/" in (model := self._pool.roster.catalog.resolve(x.call.model)):
            names.update(filter(None, (wire.resource(model),)))  # a tuned one, which an alias or a body may name
        asked_for = frozenset(names)
        references = wire.references(x.parsed, x.call) if x.parsed is not None else frozenset()
        if references:
            names |= await self._of_body(x, references)
        if self.pooled is not None:
            self.pooled.refuse_copies(names)
            await self.pooled.refuse_others(x, references, names)
        if not names:
            if x.method == "POST" and wire.makes_what_goes_together(x.call):
                await self._pool.roster.ready()
                x.home = home_of(x.record.client, self._healthy(()))
            return
        await self._pool.roster.ready()
        # Agents of Google's own are called by bare names too: nobody owns those.
        agents = {name for name in names - asked_for if name.startswith("agents/")}
        owners = await self.of(x, sorted(names - agents))
        if agents:
            owners |= await self._affinity.owners(sorted(agents))
        x.names = tuple(sorted((names - agents) | owners.keys()))
        x.record.bound = x.names[:SHOWN_MOST]
        if self.pooled is not None:
            owners = await self.pooled.claim(x, owners)
        if owners:
            x.record.owner = ", ".join(sorted({bound.project for bound in owners.values()}))
            x.only = self._one(owners)
        elif x.names and x.files is None and not x.call.counted:
            x.only = self._likely(x.record.client)

    async def moved(self, x: Exchange, failure: Failure) -> bool:
        """After its owner did not know what a request names: whether the store has another owner by now. Then it is
        held to that one. What was deleted can be made again, by another instance and in another project.
        """
        if not x.record.owner or failure.verdict.cause not in OF_RESOURCES:
            return False
        projects = {bound.project for bound in (await self._affinity.owners(x.names)).values()}
        project = projects.pop() if len(projects) == 1 else x.only
        if project == x.only or project not in self._pool.roster.projects:
            return False
        x.only = x.record.owner = project
        return True

    async def of(self, x: Exchange, names: Sequence[str]) -> dict[str, Bound]:
        """Of those that are known, or found now."""
        files = [] if self.pooled is None else [name for name in names if name.startswith("files/")]
        owners = await self._affinity.certain(files)
        owners |= await self._affinity.owners([name for name in names if name not in owners])
        projects = self._pool.roster.projects
        lost = [name for name in names if name not in owners]
        # A project of another name by now, as a key may get one, is found again; else its own is told.
        gone = [name for name, bound in owners.items() if bound.project not in projects]
        if lost and len(projects) == 1:  # nobody else can own it
            owners |= {name: Bound(project, x.record.client, 0.0) for name in lost for project in projects}
        elif lost or gone:
            owners |= await self._searched(x, lost + gone)
        return owners

    async def _of_body(self, x: Exchange, references: Collection[str]) -> set[str]:
        settings = self._pool.settings
        own = [settings.public_url] if settings.public_url else []
        if any("://" in reference for reference in references):
            with suppress(GatewayError):  # a Host that is none: then nothing can be ours
                own.append(x.own_base())
        if settings.upstream != wire.GOOGLE:  # what stands in for Google knows only its own address
            own.append(wire.GOOGLE)
        own = [base for base in own if base]
        bases = [wire.GOOGLE, settings.upstream, *own]
        strangers = [
            found for reference in references if (found := wire.elsewhere(reference)) and found[0] not in bases
        ]
        if strangers:  # a gateway may be called by several names, one when a file is made and another when it is used
            known = await self._affinity.owners(sorted({name for _, name in strangers}))
            own += [base for base, name in strangers if name in known]
            bases += own
        if any(reference.startswith(base + "/") for reference in references for base in own):
            x.exchange(wire.to_upstream(x.readable, own, settings.upstream, references))
        return {name for reference in references if (name := wire.named_by(reference, bases)) is not None}

    def _one(self, owners: dict[str, Bound]) -> str:
        by_project = {bound.project: name for name, bound in sorted(owners.items(), reverse=True)}
        if len(by_project) > 1:
            listed = " and ".join(f"{name} to project {project}" for project, name in sorted(by_project.items()))
            raise GatewayError(
                "TWO_OWNERS",
                f"the request names resources of several projects, and none of them sees what another owns: {listed} "
                "belong; make them anew in one project, whose key x-pollux-key may name, or use them in requests of "
                "their own",
            )
        project, name = next(iter(by_project.items()))
        if project not in self._pool.roster.projects:
            raise GatewayError(
                "OWNER_GONE",
                f"{name} belongs to project {project}, of which the pool has no key any more; add one, or make {name} "
                "anew",
            )
        return project

    def _likely(self, client: str) -> str | None:
        """Where this client last made something, if a healthy key is there."""
        project = self._affinity.made_by(client)
        return project if project in self._healthy(()) else None

    def _healthy(self, first: Iterable[str | None]) -> Sequence[str]:
        able, _ = self._pool.roster.candidates("", (), (), self._pool.now())
        names = [project.name for project, _ in able]
        return sorted(names, key=lambda name: name not in first)

    async def _searched(self, x: Exchange, names: Sequence[str]) -> dict[str, Bound]:
        unknown = [name for name in names if not self._affinity.is_nowhere(name)][:SEARCHED_MOST]
        found = await asyncio.gather(*(self._search(x, name) for name in unknown))
        located = {name: bound for name, bound in zip(unknown, found, strict=True) if bound is not None}
        for name, bound in located.items():
            x.noted(Attempt("", bound.project, "", "located", None, detail=f"{name} was looked for and found there"))
        return located

    async def _search(self, x: Exchange, name: str) -> Bound | None:
        """One search at a time for each name, whoever asks; it goes on if one of them leaves."""
        task = self._searches.get(name)
        if task is None:
            version = x.call.path.strip("/").split("/")[0]
            target = f"/{version if version in WITH_RESOURCES else 'v1beta'}/{quote(name)}"
            task = self._searches[name] = asyncio.create_task(self._find(name, target, x.record.client))
            task.add_done_callback(lambda _: self._searches.pop(name, None))
        return await asyncio.shield(task)

    async def _find(self, name: str, target: str, client: str) -> Bound | None:
        try:
            async with asyncio.timeout(WITHIN):
                await self._room.acquire()
        except TimeoutError:
            return None
        try:
            return await self._asked_everywhere(name, target, client)
        finally:
            self._room.release()

    async def _asked_everywhere(self, name: str, target: str, client: str) -> Bound | None:
        self._affinity.searches += 1
        order = self._healthy((self._affinity.made_by(client),))
        unsaid = len(order) < len(self._pool.roster.projects)
        for start in range(0, len(order), AT_ONCE):
            asked = [asyncio.ensure_future(self._has(project, target)) for project in order[start : start + AT_ONCE]]
            try:
                for one in asyncio.as_completed(asked):
                    project, told = await one
                    if told is not None and told[0]:
                        await self._affinity.bind({name: told[1].get(name)}, project, client)
                        return self._affinity.remembered(name)
                    unsaid |= told is None
            finally:
                for question in asked:
                    question.cancel()
        if not unsaid:
            self._affinity.nowhere(name)
        return None

    async def _has(self, project: str, target: str) -> tuple[str, tuple[bool, dict[str, float | None]] | None]:
        """Whether it has it, and until when; None if it did not say."""
        told = await self._questions.ask(project, target, WITHIN)
        if isinstance(told, Told):
            return project, (True, wire.answer_names(told.document, wire.read_target("GET", target)))
        if told is not None and told.status and told.verdict.cause in NOT_THERE:
            return project, (False, {})
        return project, None


def home_of(client: str, projects: Iterable[str]) -> str | None:
    """Where a client's things are made, whichever instance makes them, so that one request can name several of them."""
    return max(
        projects, key=lambda project: blake2b(f"{client}\0{project}".encode(errors="replace")).digest(), default=None
    )
