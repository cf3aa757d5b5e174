"""What the tests of a store in trouble share: whole gateways on one store, in virtual time, and load of which every
request can be told. Their simulator refuses nobody and remembers what it was sent."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pollux.backends.store.contract import Document, StoreUnavailableError, Version
from pollux.backends.store.memory import MemoryStore
from pollux.pool.quota_document import unpack
from pollux.server.app import App
from tests.gateway import ADMIN, Got, Simulated, call, gateway, now, projects, simulated, value_of
from tests.pools import FaultyStore

AT_ONCE = {"x-pollux-fallback": "off", "x-pollux-max-wait": "0"}
GIVEN_UP = 5.0
"""Seconds for which the Firestore store waits for an answer."""
FOREVER = 1e9


class Far(FaultyStore):
    """A store whose outage also affects `scan`. `hangs`: calls are not refused but wait until the timeout."""

    def fail(self, seconds: float = FOREVER, *, hangs: bool = False) -> None:
        self.out_until = asyncio.get_running_loop().time() + seconds
        self.delay = self._half if hangs else lambda: 0.0

    def _half(self) -> float:
        return GIVEN_UP / 2 if self._is_out() else 0.0

    async def scan(self, prefix: str) -> Mapping[str, tuple[Document, Version]]:
        if self._is_out():
            await asyncio.sleep(2 * self.delay())
            raise StoreUnavailableError("the store does not answer")
        return await super().scan(prefix)


@dataclass(slots=True)
class Asked:
    text: str
    at: float
    seconds: float
    got: Got


@dataclass(slots=True)
class House:
    apps: list[App]
    ways: list[Far]
    upstream: Simulated
    inner: MemoryStore
    asked: list[Asked] = field(default_factory=list)

    async def load(self, per_second: float, seconds: float, apps: Sequence[App] = ()) -> list[Asked]:
        """Evenly spread over the instances; returns when all are answered."""
        tasks = []
        for number in range(int(per_second * seconds)):
            tasks.append(asyncio.ensure_future(self._ask((apps or self.apps)[number % len(apps or self.apps)])))
            await asyncio.sleep(1 / per_second)
        return await asyncio.gather(*tasks)

    async def _ask(self, app: App) -> Asked:
        text, began = f"question {len(self.asked)} at {now()}", now()
        got = await call(app, headers=AT_ONCE, body={"contents": [{"parts": [{"text": text}]}]})
        asked = Asked(text, began, now() - began, got)
        self.asked.append(asked)
        return asked

    def check(self, most: int) -> None:
        """Every request is answered, what was served was sent once, the rest never, and no project over `most`."""
        sent = Counter(json.loads(c.body)["contents"][0]["parts"][0]["text"] for c in self.upstream.simulator.calls)
        assert all(asked.got.complete for asked in self.asked)
        assert sent == Counter(asked.text for asked in self.asked if asked.got.status == 200)
        assert max(self.peaks().values()) <= most

    def peaks(self) -> dict[str, int]:
        enforcer = self.upstream.simulator.enforcer
        return {project: enforcer.peak_in_60s(project, model).requests for project, model in enforcer.names()}

    async def booked(self) -> dict[str, int]:
        found = await self.inner.scan("quota:")
        return {
            name.split(":")[1]: sum(requests for requests, _ in unpack(document).days.values())
            for name, (document, _) in found.items()
        }

    def sent(self) -> dict[str, int]:
        return dict(Counter(call.project or "" for call in self.upstream.simulator.calls))


@contextlib.asynccontextmanager
async def house(instances: int = 2, rpm: int = 30, projects_: int = 4, **settings: Any) -> AsyncIterator[House]:
    keys = projects(projects_, rpm=rpm)
    upstream = simulated(keys, {})
    inner = MemoryStore(now)
    await inner.open()
    ways = [Far(inner) for _ in range(instances)]
    async with contextlib.AsyncExitStack() as stack:
        settings = {"max_instances": instances} | settings
        apps = [await stack.enter_async_context(gateway(upstream, keys, store=way, **settings)) for way in ways]
        yield House(apps, ways, upstream, inner)


async def see(app: App, path: str = "/admin/status") -> Any:
    got = await call(app, "GET", path, headers={"authorization": f"Bearer {ADMIN}"})
    assert got.status == 200, got.body
    return got.json


def statuses(asked: Sequence[Asked]) -> set[int]:
    return {one.got.status for one in asked}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All that the log says of the store, in the order of it; never a key's value."""
    assert not any(value_of(f"k{n}") in caplog.text for n in range(9))
    return [r.getMessage() for r in caplog.records if "store" in r.name or "store" in r.getMessage()]
