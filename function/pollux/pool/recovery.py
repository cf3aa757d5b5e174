"""Brings back what is set aside. A free call probes a key; one real request tries a project, a model or a quota.

Requests start this work, because an instance may get no CPU between requests. It runs in the background while other
keys serve. A request that no other key can serve waits for the result.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import StoreUnavailableError
from pollux.gemini.verdict.causes import HALF_OPEN, LASTING, PROBED
from pollux.gemini.verdict.rules import Verdict
from pollux.pool import health, quota
from pollux.pool.health import Health
from pollux.pool.projects import Projects
from pollux.pool.refusals import Refusal, Why
from pollux.pool.reservation import StoppingError, Tried

log = logging.getLogger("pollux.pool")

AT_ONCE = 8
"""How many keys are probed at the same time."""
SOONEST, SLOWEST = 3.0, 60.0
"""While nothing else can serve, a key is probed after 3 s, and after twice that time with each refusal, up to 60 s."""
TRY_EVERY = 45.0
"""Seconds between two tries of a project, model or quota that rests, while nothing else can serve."""
MOST_TRIES = 3
"""How many projects one request tries for each model."""
FRESH = 2.0
"""Before a request is refused, the health document is read again if the last read is older than this."""
MOST_REMEMBERED, MOST_REMEMBERED_EACH = 4000, 10
"""How many tries are remembered: in all, and for each project of a large pool."""

RESTS = ("aside", "cooling")

FreeCall = Callable[[Key], Awaitable[Verdict | None]]
"""Returns Google's verdict on the key, or None if the answer says nothing about the key."""


class _Request(NamedTuple):
    """A request that was refused everywhere."""

    model: str
    tried: Tried
    refusals: Mapping[str, Refusal]
    tools: Collection[str]


class Recovery:
    def __init__(self, projects: Projects) -> None:
        self.free_call: FreeCall | None = None
        """If None, keys are not probed: a rest just ends when its time is over."""
        self.keys_wait = False
        """Whether keys waited for a probe at the last `begin`."""
        self._projects = projects
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}
        self._refused: set[str] = set()
        """Keys that a free call found refused since they were set aside."""
        self._tried: dict[tuple[str, str], float] = {}
        self._seen: tuple[Health, object] | None = None
        self._due: list[tuple[float, str]] = []
        self._stopping = asyncio.Event()
        self._keys: dict[str, Key] = {}
        """The keys that wait for a probe. A new dictionary whenever they change, and only then."""

    def begin(self) -> None:
        """Probe the keys whose rest is over, in the background."""
        self._look()
        while self._due and self._due[0][0] <= self._projects.store.now() and len(self._probes) < AT_ONCE:
            _, key_id = heapq.heappop(self._due)
            if self.free_call is None:
                self._projects.health.add_to_next_commit(partial(health.found_well, key_id=key_id))
            else:
                self._start(key_id)

    async def revive(
        self,
        model: str,
        tried: Tried,
        refusals: Mapping[str, Refusal],
        deadline: float,
        tools: Collection[str] = (),
    ) -> bool:
        """Called before a request is refused. Returns True if the request should look again, because a key was found
        well or because the request may try a project that rests."""
        if not any(refusal.why.kind in RESTS for refusal in refusals.values()):
            return False
        request, document = _Request(model, tried, refusals, tools), self._projects.health
        before = document.value
        if not self._projects.store_health.down:
            with suppress(StoreUnavailableError):
                await document.refresh(FRESH)
        return (
            (document.value is not before and self._is_served(request))
            or await self._probed(request, deadline)
            or await self._may_try(request)
        )

    def worth_a_wait(self, refusals: Mapping[str, Refusal]) -> dict[str, Refusal]:
        """Returns the refusals whose rest a request should wait for. If Google refused a key once, requests wait for
        its free call. If Google refused it twice, the key is probably wrong, and no request waits for it."""
        if self.free_call is None:
            return dict(refusals)
        self._look()
        soon = self._projects.store.now() + SOONEST
        worth: dict[str, Refusal] = {}
        for name, refusal in refusals.items():
            project = self._projects.by_name.get(name) if refusal.why.cause in PROBED else None
            waiting = {key.id for key in project.keys if key.id in self._keys} if project is not None else set()
            if not waiting:
                worth[name] = refusal
            elif waiting - self._refused:
                worth[name] = refusal._replace(until=min(refusal.until, soon))
        return worth

    def end(self, within: float) -> None:
        """The process stops. Requests that still wait for a free call after `within` seconds get StoppingError."""
        asyncio.get_running_loop().call_later(within, self._stopping.set)

    async def close(self) -> None:
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    # --- keys -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find the keys that wait for a probe, if keys or their health changed since the last look."""
        value, by_name = self._projects.health.value, self._projects.by_name
        if self._seen is not None and self._seen[0] is value and self._seen[1] is by_name:
            return
        self._seen = (value, by_name)
        waiting = {key_id: entry for key_id, entry in value.keys.items() if health.awaits_probe(entry)}
        self.keys_wait = bool(waiting)
        keys: dict[str, Key] = {}
        if waiting:
            everyone = (key for project in by_name.values() for key in project.keys)
            keys = {key.id: key for key in everyone if key.enabled and key.id in waiting}
        if keys != self._keys:
            self._keys = keys
        self._asked = {key_id: when for key_id, when in self._asked.items() if key_id in waiting}
        self._refused &= waiting.keys()
        self._due = [
            (max(waiting[key_id].until, self._asked.get(key_id, 0.0) + SOONEST), key_id) for key_id in self._keys
        ]
        heapq.heapify(self._due)

    async def _probed(self, request: _Request, deadline: float) -> bool:
        """Probe the keys that could serve the request, even before their rests end, until one is well or none is left.
        Requests that arrive meanwhile wait for the same free calls."""
        waiting: dict[str, Key] | None = None
        wanted: frozenset[str] = frozenset()
        while True:
            self._look()
            if waiting is not self._keys:  # a key is well, or new
                if waiting is not None and self._is_served(request):
                    return True
                waiting, refusals, used = self._keys, request.refusals, request.tried.keys
                wanted = frozenset(id_ for id_, key in waiting.items() if key.project in refusals and id_ not in used)
            now = self._projects.store.now()
            if self.free_call is not None and len(self._probes) < AT_ONCE:
                self._ask(wanted, now)
            running = [probe for key_id, probe in self._probes.items() if key_id in wanted]
            if not running or deadline <= now:
                return False
            if self._stopping.is_set():
                raise StoppingError
            stops = asyncio.ensure_future(self._stopping.wait())
            try:
                await asyncio.wait([*running, stops], timeout=deadline - now, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stops.cancel()

    def _ask(self, wanted: Collection[str], now: float) -> None:
        """Start as many probes as allowed, beginning with the keys that were probed longest ago."""
        entries = self._projects.health.value.keys
        due = []
        for key_id in wanted:
            entry = entries.get(key_id)
            if entry is not None and key_id not in self._probes:
                asked = self._asked.get(key_id, entry.since)
                if now - asked >= min(SLOWEST, SOONEST * 2.0 ** min(entry.streak - 1, 8)):
                    due.append((asked, key_id))
        for _, key_id in heapq.nsmallest(AT_ONCE - len(self._probes), due):
            self._start(key_id)

    def _is_served(self, request: _Request) -> bool:
        """Whether a project that was set aside can serve the request now."""
        model, tried, refusals, tools = request
        projects, now = self._projects, self._projects.store.now()
        for name, refusal in refusals.items():
            project = projects.by_name.get(name)
            if project is not None and refusal.why.kind == "aside":
                found = projects.usable_key(project, model, tried.keys, now, tools=tools)
                if isinstance(found, Key):
                    return True
        return False

    def _start(self, key_id: str) -> None:
        key = self._keys.get(key_id)
        if key is None or key_id in self._probes:
            return
        self._asked[key_id] = self._projects.store.now()
        task = asyncio.get_running_loop().create_task(self._probe(key))
        self._probes[key_id] = task
        task.add_done_callback(partial(self._ended, key_id))

    def _ended(self, key_id: str, task: "asyncio.Task[None]") -> None:
        del self._probes[key_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the probe of key %s failed by a fault in Pollux: %r", key_id, error)
        heapq.heappush(self._due, (self._projects.store.now() + SOONEST, key_id))  # if nothing was learned

    async def _probe(self, key: Key) -> None:
        verdict = None if self.free_call is None else await self.free_call(key)
        if verdict is None or verdict.blames in ("model", "gateway"):
            return  # it says nothing about the key
        if verdict.blames == "key":
            self._refused.add(key.id)
            await self._projects.set_aside("keys", key.id, verdict)
            return
        if verdict.blames == "project":
            await self._projects.set_aside("projects", key.project, verdict)
        await self._projects.health.note(partial(health.found_well, key_id=key.id))
        log.warning(
            "Google accepts the key %s again: it serves from now on",
            key.id,
            extra={"event": "well-again", "kind": "key", "subject": key.id},
        )

    # --- projects, models, quotas -----------------------------------------------------------------------------------

    async def _may_try(self, request: _Request) -> bool:
        """Let this request try the project that was tried longest ago, if no other can serve it soon. One request at a
        time tries a project."""
        tried, refusals = request.tried, request.refusals
        if len(tried.all_trials) >= MOST_TRIES or any(_serves_soon(refusal.why) for refusal in refusals.values()):
            return False
        now = self._projects.store.now()
        due = [(when, name) for name, when in self._last_tries(request, now) if now - when >= TRY_EVERY]
        if not due:
            return False
        _, name = min(due)
        self._tried[name, request.model] = now
        tried.all_trials.add(name)
        tried.trials.add(name)
        owned = self._projects.quotas.get((name, self._projects.bucket(request.model)))
        if owned is not None and owned.document.value.cooldown is not None:
            await owned.document.note(quota.try_early)
        return True

    def _last_tries(self, request: _Request, now: float) -> Iterator[tuple[str, float]]:
        """Yields (name, time of the last try) for each project that the request may try."""
        model, tried, refusals, _ = request
        if len(self._tried) >= max(MOST_REMEMBERED, MOST_REMEMBERED_EACH * len(self._projects.by_name)):
            self._tried.clear()
        aside = self._projects.health.value
        for name, refusal in refusals.items():
            if name not in self._projects.by_name or name in tried.projects or name in tried.all_trials:
                continue
            cause, kind, tool = refusal.why
            if kind == "cooling" and cause in HALF_OPEN:
                yield name, self._tried.setdefault((name, model), now)
            elif kind == "aside":
                entries = [aside.projects.get(name), aside.models.get(f"{name}/{model}")]
                if tool:
                    entries.append(aside.tools.get(f"{name}/{tool}"))
                since = [entry.since for entry in entries if entry is not None and entry.until > now]
                if since:
                    yield name, self._tried.get((name, model), max(since))


def _serves_soon(why: Why) -> bool:
    """Whether the project can serve soon. It cannot if something rests, or if our own counts leave no room for long."""
    return why.kind == "probing" or (not why.kind and why.cause not in LASTING)
