"""The projects with their keys, quotas, limits, and what of them is set aside. `pool` chooses among them."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote, unquote

from pollux.backends.keys.contract import Key, Keyring
from pollux.backends.store.contract import Store, StoreUnavailableError
from pollux.gemini.catalog import Catalog
from pollux.gemini.verdict.rules import Verdict
from pollux.pool import health, quota, quota_document
from pollux.pool.grants import Grant
from pollux.pool.health import Health
from pollux.pool.instance import new_name
from pollux.pool.outage import SafeShare
from pollux.pool.quota import State
from pollux.pool.refusals import Refusal, Why
from pollux.pool.shared_document import Codec, SharedDocument
from pollux.pool.store_health import StoreHealth
from pollux.pool.windows import NOTHING, Limits

log = logging.getLogger("pollux.store")

HEALTH_AGE = 30.0
PROBED_WITHIN = 5.0
"""A key whose rest has ended is being probed: a request looks again after this time."""
CLOSE_WITHIN = 4.0
MOST_QUOTAS = 2000
MOST_QUOTAS_EACH = 10
"""In a large pool, for each project."""
ASSUMED = {"rpm": 5}
"""The smallest limit that Google gives a text model, for models whose limits the catalog does not have."""
QUOTA = "quota:"
KEPT_FOR = 8 * 86400.0
"""Seconds after which an unused document may be deleted. Everything in it has expired by then, even learned limits."""
QUOTA_CODEC = Codec(State(), quota_document.pack, quota_document.unpack, quota.tidy, KEPT_FOR)
HEALTH_CODEC = Codec(Health(), health.pack, health.unpack, health.tidy)


@dataclass(slots=True, eq=False)
class Quota:
    """The counters of one (project, bucket), as this process knows and uses them."""

    project: str
    bucket: str
    document: SharedDocument[State]
    used_at: int = 0
    """A counter, not a time: the quota that was used last has the largest value."""
    coming: int = 0
    """How many requests are being booked here now. A large pool prefers other projects meanwhile."""
    served: int = 0
    refused: int = 0
    grant: Grant | None = None
    grant_coming: "asyncio.Future[Grant | None] | None" = None
    """The next grant, while its commit is under way."""
    grants_taken: int = 0
    safe: SafeShare = field(default_factory=SafeShare)
    sleepers: "dict[asyncio.Future[None], None]" = field(default_factory=dict)
    """The sleeps of the requests that wait for a slot, in the order in which they began."""

    @property
    def is_idle(self) -> bool:
        """Whether this object can be dropped: the store has all of it, and running requests keep their reference."""
        document = self.document
        return not document.uncommitted and not document.busy and self.grant is None and document.value.cooldown is None

    def retire(self) -> None:
        """Give back what is left of the grant with the next commit."""
        grant, self.grant = self.grant, None
        if grant is not None and not grant.closed and (rest := grant.close()) != NOTHING:
            self.document.add_to_next_commit(lambda state, _: quota.amend(state, grant.slot, rest))

    def wake(self) -> None:
        """Make the requests that wait for a slot look again."""
        sleepers = list(self.sleepers)
        self.sleepers.clear()
        for sleeper in sleepers:
            sleeper.cancel()


@dataclass(slots=True)
class Project:
    """The keys of one project. Tier and limits are those of its first key."""

    name: str
    tier: str | None
    keys: list[Key] = field(default_factory=list)


class Projects:
    def __init__(self, store: Store, keyring: Keyring, catalog: Catalog) -> None:
        self.store = store
        self.keyring = keyring
        self.catalog = catalog
        self.store_health = StoreHealth(store)
        self.by_name: dict[str, Project] = {}
        """It is replaced by a new dictionary when keys change."""
        self.project_of: dict[str, str] = {}
        """Key id -> its project."""
        self.quotas: dict[tuple[str, str], Quota] = {}
        self.quota_changed: Callable[[str, str], None] = lambda project, bucket: None
        """Called with project and bucket when the state of a quota changed. Set before any quota is used."""
        self.granted: dict[str, dict[str, Quota]] = {}
        """Bucket -> project -> its quota, if a grant was taken; the grant may be spent by now."""
        self.key_used: dict[str, int] = {}
        self._by_use: dict[str, None] = {}
        """The names of the projects, ordered by how long ago their keys were used, the longest first."""
        self._writer = new_name(one_machine=getattr(store, "one_machine", False))
        self.health: SharedDocument[Health] = SharedDocument("health", HEALTH_CODEC, self._writer, self.store_health)
        self._keys: tuple[Key, ...] | None = None
        self._generations: dict[str, int] = {}
        self._declared: dict[tuple[str, str], dict[str, int]] = {}
        self._smallest: dict[str, dict[str, int]] = {}

    async def ready(self) -> None:
        """Bring keys and health up to date. It is cheap while nothing has changed."""
        keys = await self.keyring.keys()
        if keys is not self._keys:
            self._keys = keys
            self._declared.clear()
            projects: dict[str, Project] = {}
            for key in keys:
                projects.setdefault(key.project, Project(key.project, key.tier)).keys.append(key)
            self.by_name = projects
            self.project_of = {key.id: key.project for key in keys}
            self._by_use = {name: None for name in self._by_use if name in projects} | dict.fromkeys(projects)
            self._forgive(keys)
        if (age := self.store.now() - self.health.seen_at) > HEALTH_AGE:
            was_read = age < math.inf
            if was_read and self.store_health.down:
                return
            self.health.commit_soon(HEALTH_AGE)  # which keys Google accepted; the commit also reads
            try:
                await self.health.refresh(HEALTH_AGE)
            except StoreUnavailableError:
                if not was_read:
                    raise

    async def set_aside(self, kind: health.Kind, name: str, verdict: Verdict) -> None:
        seconds, ceiling = verdict.cooldown_s or 0.0, verdict.ceiling_s
        await self.health.note(
            lambda value, now: health.set_aside(value, now, kind, name, verdict.cause, seconds, ceiling)
        )

    def _forgive(self, keys: Iterable[Key]) -> None:
        """End the rests of keys that have a new value."""
        for key in keys:
            if key.generation > self._generations.setdefault(key.id, key.generation):
                self._generations[key.id] = key.generation
                self.health.add_to_next_commit(partial(_forgiven, key_id=key.id))
                self.health.commit_soon(0)

    def candidates(
        self,
        model: str,
        tried_projects: Collection[str],
        tried_keys: Collection[str],
        now: float,
    ) -> tuple[list[tuple[Project, Key]], dict[str, Refusal]]:
        """Returns (the projects that may serve a model, each with a key; the refusals of the others). Ignores quota."""
        able: list[tuple[Project, Key]] = []
        refusals: dict[str, Refusal] = {}
        for project in self.by_name.values():
            if project.name in tried_projects:
                continue
            found = self.usable_key(project, model, tried_keys, now)
            if isinstance(found, Refusal):
                refusals[project.name] = found
            elif found is not None:
                able.append((project, found))
        return able, refusals

    def usable_key(
        self,
        project: Project,
        model: str,
        tried_keys: Collection[str],
        now: float,
        prefer: str | None = None,
        tools: Collection[str] = (),
        trials: Collection[str] = (),
    ) -> Key | Refusal | None:
        """Returns the key with which a project may serve a model: the preferred one, or the one used least recently. A
        Refusal if the project or its keys rest; None if no key is left. `trials`: projects that may be used although
        they rest."""
        health_ = self.health.value
        if (health_.projects or health_.models or health_.tools) and project.name not in trials:
            resting = self.resting(project.name, model, now, tools)
            if resting is not None:
                return resting
        best: Key | None = None
        refusal: Refusal | None = None
        for key in project.keys:
            if not key.enabled or key.id in tried_keys:
                continue
            aside = health_.keys.get(key.id)
            if aside is not None and health.key_rests(aside, now):
                found = Refusal(max(aside.until, now + PROBED_WITHIN), Why(aside.reason, "aside"))
                refusal = found if refusal is None else min(refusal, found)
            elif key.id == prefer:
                return key
            elif best is None or self.key_used.get(key.id, 0) < self.key_used.get(best.id, 0):
                best = key
        return refusal if best is None else best

    def tool_rests(self, project: str, tools: Collection[str], now: float) -> bool:
        resting = (self.health.value.tools.get(f"{project}/{tool}") for tool in tools)
        return any(entry is not None and entry.until > now for entry in resting)

    def named_aside(self) -> frozenset[tuple[str, float]]:
        """Returns (project, end) for everything that is set aside."""
        aside = self.health.value
        found = {(name, entry.until) for name, entry in aside.projects.items()}
        found.update((name.partition("/")[0], entry.until) for name, entry in aside.models.items())
        of_project = self.project_of
        found.update((of_project.get(key, ""), e.until) for key, e in aside.keys.items() if e.until > e.since)
        return frozenset(found)

    def with_grants(self, bucket: str) -> list[str]:
        """Returns the projects that hold a grant, the one used least recently first."""
        granted = self.granted.get(bucket)
        if not granted:
            return []
        held = {name: owned for name, owned in granted.items() if owned.grant is not None}
        self.granted[bucket] = held
        return sorted(held, key=lambda name: held[name].used_at)

    def by_use(self) -> Iterable[Project]:
        """Yields all projects, beginning with those whose keys were used least recently."""
        return (self.by_name[name] for name in self._by_use)

    def used(self, key: Key, number: int) -> None:
        """Note that a request uses the key. `number` grows with each request."""
        self.key_used[key.id] = number
        if key.project in self._by_use:
            del self._by_use[key.project]
            self._by_use[key.project] = None

    def resting(self, project: str, model: str, now: float, tools: Collection[str] = ()) -> Refusal | None:
        """Returns the longest rest of the project, the model and the tools, or None if none of them rests."""
        aside = self.health.value
        entries = [("", aside.projects.get(project)), ("", aside.models.get(f"{project}/{model}"))]
        for tool in tools:
            entries.append((tool, aside.tools.get(f"{project}/{tool}")))
        longest: Refusal | None = None
        for tool, entry in entries:
            if entry is not None and entry.until > now:
                found = Refusal(entry.until, Why(entry.reason, "aside", tool))
                longest = found if longest is None else max(longest, found)
        return longest

    def is_aside(self, project: str, model: str, key_id: str, now: float, tools: Collection[str] = ()) -> bool:
        """Whether the key, the project, the model or a tool rests, as far as this process knows."""
        key = self.health.value.keys.get(key_id)
        return (key is not None and health.key_rests(key, now)) or self.resting(project, model, now, tools) is not None

    def bucket(self, model: str) -> str:
        return self.health.value.buckets.get(model) or self.catalog.bucket(model)

    def quota(self, project: str, bucket: str) -> Quota:
        owned = self.quotas.get((project, bucket))
        if owned is None:
            if len(self.quotas) >= self._most_quotas:
                self._forget()
            name = f"{QUOTA}{quote(project, safe='')}:{quote(bucket, safe='')}"
            document = SharedDocument(
                name, QUOTA_CODEC, self._writer, self.store_health, partial(self.quota_changed, project, bucket)
            )
            owned = self.quotas[project, bucket] = Quota(project, bucket, document)
        return owned

    @property
    def _most_quotas(self) -> int:
        return max(MOST_QUOTAS, MOST_QUOTAS_EACH * len(self.by_name))

    def _forget(self) -> None:
        """Drop half of the idle quotas, those used longest ago. Clients may invent names of models."""
        idle = sorted((owned for owned in self.quotas.values() if owned.is_idle), key=lambda owned: owned.used_at)
        for owned in idle[: len(idle) // 2]:
            del self.quotas[owned.project, owned.bucket]
        self._declared.clear()

    def limits(self, project: Project, model: str) -> Limits:
        """Returns the limits in force. Learned limits override those of the key file, which override the catalog's."""
        return self.limits_by(self.quota(project.name, self.bucket(model)).document.value, project, model)

    def limits_by(self, state: State, project: Project, model: str) -> Limits:
        """Like `limits`, for a given state, which may be newer than the last one seen."""
        declared = self._declared.get((project.name, model))
        if declared is None:
            if len(self._declared) >= self._most_quotas:  # clients may invent names of models
                self._declared.clear()
            key = project.keys[0]
            own = dict(key.limits.get("*", {})) | dict(key.limits.get(model, {}))
            declared = self._declared[project.name, model] = self.catalog.limits(model, key.tier) | own
        return quota.effective(state, self.store.now(), declared, project.tier) if state.learned else declared

    def smallest_limits(self, model: str) -> Limits:
        """Returns the limits of the smallest tier, which every project may be assumed to have."""
        found = self._smallest.get(model)
        if found is None:
            if len(self._smallest) >= MOST_QUOTAS:  # clients may invent names of models
                self._smallest.clear()
            found = self._smallest[model] = ASSUMED | self.catalog.smallest_limits(model)
        return found

    def learned_limits(self, model: str) -> Limits:
        """Returns the smallest limits at which projects without a tier were refused. They are assumed for others."""
        bucket, now = self.bucket(model), self.store.now()
        found: dict[str, int] = {}
        for project in self.by_name.values():
            owned = self.quotas.get((project.name, bucket))
            if owned is not None and owned.document.value.learned and project.tier is None:
                for name, value in quota.effective(owned.document.value, now, {}, None).items():
                    found[name] = min(value, found.get(name, value))
        return found

    def smallest_token_limit(self, model: str) -> int | None:
        return min((limits["tpm"] for limits in self.limits_of_all(model) if limits.get("tpm")), default=None)

    def limits_of_all(self, model: str) -> list[Limits]:
        return [self.limits(project, model) for project in self.by_name.values()]

    async def read_unseen(self, quotas: Iterable[Quota]) -> None:
        """Read the documents that were never read, in one round trip."""
        unseen = [owned.document for owned in quotas if owned.document.seen_at == -math.inf]
        if unseen and not self.store_health.down:
            asked = [document.commits_tried for document in unseen]
            try:
                found = await self.store_health.read([document.name for document in unseen])
            except StoreUnavailableError:  # another project may serve; if not, the request fails when it chooses
                return
            for document, tries in zip(unseen, asked, strict=True):
                if document.seen_at == -math.inf:  # another request may have read it meanwhile
                    document.load(found.get(document.name), tries)

    async def load_all(self) -> None:
        """Read every quota in the store, including those that only other processes used."""
        await self.ready()
        asked = {owned.document.name: owned.document.commits_tried for owned in self.quotas.values()}
        for name, found in (await self.store_health.scan(QUOTA)).items():
            project, bucket = map(unquote, name.removeprefix(QUOTA).split(":"))
            self.quota(project, bucket).document.load(found, asked.get(name, 0))

    def instances(self) -> int:
        """Returns how many instances, with this one, wrote within the last minute, as far as this one knows."""
        others = {self._writer}
        return len(others.union(*(owned.document.writers for owned in self.quotas.values())))

    async def close(self) -> None:
        """Give back grants and commit all documents in parallel, for a few seconds at most."""
        flushes = {asyncio.ensure_future(self._flushed(owned)) for owned in self.quotas.values()}
        flushes.add(asyncio.ensure_future(self.health.flush()))
        _, late = await asyncio.wait(flushes, timeout=CLOSE_WITHIN)
        for flush in late:
            flush.cancel()
        lost = sum(owned.document.uncommitted > 0 for owned in self.quotas.values())
        if lost:
            log.error("at the end %d documents could not be written: their last counts are lost", lost)

    @staticmethod
    async def _flushed(owned: Quota) -> None:
        while True:
            owned.retire()
            await owned.document.flush()
            if owned.grant is None:  # else a new one came with that commit
                return


def _forgiven(value: Health, _: float, key_id: str) -> Health:
    return health.lifted(value, key_id, None, well=False)
