"""Remembers which project owns a resource, in a cache of this instance and in the store. It sends nothing to Google.

The document `bound/NAME` has the owner of a resource. A cached owner is read again where it decides who may see a file
(`confirmed_owners`), and after `forget`, when the owner has lost the resource.
"""

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pollux.backends.store.contract import ConflictError, Document, StoreError, StoreUnavailableError, Version
from pollux.lru import Recent
from pollux.pool.projects import Projects
from pollux.pool.store_health import Counters

log = logging.getLogger("pollux.store")

BOUND = "bound/"
REMEMBERED, CLIENTS = 20_000, 10_000
ABSENT_FOR = 5.0
"""Seconds for which the store is not asked again for a name that it does not have."""
READ_MOST = 500
"""The most names of one request that are read from the store: each read costs money, and a body may have 100,000."""
CLAIMS = 5
SHOWN_MOST = 20
MISSING_FOR = 60.0
"""Seconds for which projects are not asked again for a name that none of them has."""
WITHIN = 2.0
"""How long a request waits for the store to read, write or delete owners."""
LATER = 60.0
"""A change of the expiry by less than this is not committed."""
DAY = 86400.0
KEPT_FOR = {"files": 2 * DAY, "generatedFiles": 2 * DAY, "interactions": 60 * DAY}
KEPT_ELSE = 30 * DAY


class Owner(NamedTuple):
    project: str
    client: str
    """The client that made the resource, or used it here first."""
    expires: float
    pooled: bool = False
    """A pooled file: other projects can get a copy, other clients cannot use it."""


class Ownership:
    def __init__(self, projects: Projects, most: int = REMEMBERED) -> None:
        self.projects = projects
        self._watch = projects.store_health
        self._owners: Recent[str, Owner] = Recent(most)
        self._absent: Recent[str, float] = Recent(most)
        self._missing: Recent[str, float] = Recent(most)
        self._last: Recent[str, str] = Recent(CLIENTS)
        self._tasks: set[asyncio.Task[bool]] = set()
        self.counters = Counters()
        self.searches = 0
        """How many searches asked the projects for a name."""

    # --- who owns it -------------------------------------------------------------------------------------------------

    async def owners(self, names: Iterable[str]) -> dict[str, Owner]:
        """Returns the known owners: from the cache, or from the store in one round trip, if it answers."""
        found: dict[str, Owner] = {}
        unknown: list[str] = []
        for name in names:
            if (owner := self.remembered(name)) is not None:
                found[name] = owner
            elif self._absent.get(name, 0.0) <= self._now():
                unknown.append(name)
        if unknown:
            found |= await self._read(unknown[:READ_MOST]) or {}
        return found

    async def confirmed_owners(self, names: Iterable[str]) -> dict[str, Owner]:
        """Returns the owners where they decide who may see a file. Only owners of pooled files come from the cache; all
        others are read from the store. Raises StoreUnavailableError if it does not answer."""
        known = {name: self.remembered(name) for name in names}
        found = {name: owner for name, owner in known.items() if owner is not None}
        asked = [name for name, owner in known.items() if owner is None or not owner.pooled]
        for start in range(0, len(asked), READ_MOST):
            some = asked[start : start + READ_MOST]
            owners = await self._read(some)
            if owners is None and (unknown := [name for name in some if name not in found]):
                raise StoreUnavailableError(f"the store did not say who owns {_some(unknown)}")
            found |= owners or {}
        return found

    def remembered(self, name: str) -> Owner | None:
        """Returns the owner from the cache."""
        owner = self._owners.get(name)
        if owner is None or owner.expires <= self._now():
            return None
        self._owners.move_to_end(name)
        return owner

    async def _read(self, names: list[str]) -> dict[str, Owner] | None:
        """Returns None if the store did not answer."""
        try:
            async with asyncio.timeout(WITHIN):
                documents = await self._watch.read([BOUND + name for name in names])
        except (StoreError, TimeoutError) as error:
            if not isinstance(error, StoreUnavailableError):  # `StoreHealth` logs that
                log.error("the owner of %s cannot be read: %s", _some(names), str(error) or "no answer in time")
            return None
        found: dict[str, Owner] = {}
        for name in names:
            document, _ = documents.get(BOUND + name, ({}, ""))
            owner = _unpacked(document)
            if owner is not None and owner.expires > self._now():
                found[name] = self._owners[name] = owner
            else:
                self._absent[name] = self._now() + ABSENT_FOR
        return found

    def last_project(self, client: str) -> str | None:
        """Returns the project where this client last made a resource."""
        return self._last.get(client)

    def is_missing(self, name: str) -> bool:
        """Whether a search within the last minute found it in no project."""
        return self._missing.get(name, 0.0) > self._now()

    def remember_missing(self, name: str) -> None:
        self._missing[name] = self._now() + MISSING_FOR

    def as_json(self) -> dict[str, int]:
        """For `status`."""
        return {"remembered": len(self._owners), "searches": self.searches, "commits": self.counters.commits}

    # --- changes -----------------------------------------------------------------------------------------------------

    async def claim(self, name: str, project: str, client: str, expires: float) -> bool:
        """Reserve a name for this client before its pooled file is made. Returns False if the name is taken."""
        owner = Owner(project, client, expires, pooled=True)
        version: Version | None = None
        for _ in range(CLAIMS):
            try:
                await self._watch.commit(BOUND + name, _packed(owner), version, self.counters)
            except ConflictError:
                stored, version = await self._document(name)
                held = _unpacked(stored)
                if held is not None and held.expires > self._now() and (held.client != client or not held.pooled):
                    return False
            else:
                self._remember(name, owner)
                return True
        raise StoreUnavailableError(f"the document of {BOUND + name} was changed by others {CLAIMS} times in a row")

    async def unclaim(self, name: str) -> None:
        """Undo a claim, because Google has another file of that name already."""
        self.forget(name)
        await self._in_tasks({name: self._delete(name)}, "deleted")

    async def bind(self, names: Mapping[str, float | None], project: str, client: str, *, pooled: bool = False) -> None:
        """Cache and store that the project owns these names until they expire (None: after the usual time). This never
        raises: errors of the store are logged."""
        changed: dict[str, Owner] = {}
        for name, end in names.items():
            known = self.remembered(name)
            if known is not None and known.pooled and known.client != client and known.project in self.projects.by_name:
                continue  # another project has a file of the same name: the pooled one keeps the name
            if known is not None and known.project == project and not pooled:
                if end is None or abs(end - known.expires) < LATER:
                    continue
                changed[name] = known._replace(expires=end)
            else:
                end = self._now() + _kept_for(name) if end is None else end
                kept = known is not None and known.pooled  # the operator may have renamed its project
                changed[name] = Owner(project, known.client if known and kept else client, end, pooled or kept)
        for name, owner in changed.items():
            self._remember(name, owner)
        if changed:
            self._last[client] = project
            await self._in_tasks({name: self._commit(name, owner) for name, owner in changed.items()}, "stored")

    def remember(self, names: Mapping[str, float | None], project: str, client: str) -> None:
        """Cache the owner of what a list named. It is not stored, because the projects can be asked again."""
        for name, end in names.items():
            if self.remembered(name) is None:
                self._owners[name] = Owner(project, client, self._now() + _kept_for(name) if end is None else end)
                self._missing.pop(name, None)

    async def unbind(self, name: str) -> None:
        """Remove the owner of a deleted resource."""
        self.forget(name)
        self._absent[name] = self._now() + ABSENT_FOR
        self.remember_missing(name)
        await self._in_tasks({name: self._delete(name)}, "deleted")

    def forget(self, name: str) -> None:
        """Drop the owner from the cache, because it has lost the resource. The next request reads the store."""
        self._owners.pop(name, None)

    def _remember(self, name: str, owner: Owner) -> None:
        self._owners[name] = owner
        self._absent.pop(name, None)
        self._missing.pop(name, None)

    def _now(self) -> float:
        return self.projects.store.now()

    async def _in_tasks(self, changes: Mapping[str, Coroutine[Any, Any, None]], what: str) -> None:
        """Apply the changes in tasks that continue when the client leaves. Log those that fail or are late."""
        tasks = {asyncio.create_task(_applied(name, change, what)): name for name, change in changes.items()}
        self._tasks.update(tasks)
        for task in tasks:
            task.add_done_callback(self._tasks.discard)
        _, late = await asyncio.wait(tasks, timeout=WITHIN)
        failed = [name for task, name in tasks.items() if task in late or not task.result()]
        if failed:
            log.error(
                "the store has not %s the owner of %s: other instances must search for it until it has",
                what,
                _some(failed),
            )

    async def _document(self, name: str) -> tuple[Mapping[str, Any], Version | None]:
        return (await self._watch.read([BOUND + name])).get(BOUND + name, ({}, None))

    async def _commit(self, name: str, owner: Owner) -> None:
        document = _packed(owner)
        try:
            await self._watch.commit(BOUND + name, document, None, self.counters)
        except ConflictError:
            stored, version = await self._document(name)
            held = _unpacked(stored)
            if held is not None and held.pooled and not owner.pooled and held.expires > self._now():
                self._owners[name] = held
            elif stored != document:
                await self._watch.commit(BOUND + name, document, version, self.counters)

    async def _delete(self, name: str) -> None:
        _, version = await self._document(name)
        if version is not None:
            await self._watch.store.delete(BOUND + name, version)


async def _applied(name: str, change: Coroutine[Any, Any, None], what: str) -> bool:
    try:
        await change
    except ConflictError:  # another instance changed it at the same time, from an answer that it got
        return True
    except StoreError as error:
        log.warning("the owner of %s could not be %s: %s", name, what, error)
        return False
    return True


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_MOST} more" if len(names) > SHOWN_MOST else ""
    return ", ".join(names[:SHOWN_MOST]) + more


def _kept_for(name: str) -> float:
    return KEPT_FOR.get(name.partition("/")[0], KEPT_ELSE)


def _packed(owner: Owner) -> Document:
    document: Document = {"v": 1, **owner._asdict(), "expires": math.ceil(owner.expires)}
    if not owner.pooled:
        del document["pooled"]
    return document


def _unpacked(document: Mapping[str, Any]) -> Owner | None:
    """Returns None for a document of another form, from an older or newer version."""
    project, client, expires = document.get("project"), document.get("client"), document.get("expires")
    if not isinstance(project, str) or not isinstance(client, str) or not isinstance(expires, int | float):
        return None
    return Owner(project, client, float(expires), document.get("pooled") is True)
