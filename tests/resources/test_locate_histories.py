"""Random histories of things made, used, listed and deleted through two gateways: as if the pool were one project."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.backends.store.memory import MemoryStore
from pollux.server.app import App
from tests.gateway import FLASH, call, gateway, now, play, projects
from tests.resources.test_locate import Google, about

MAKE = {
    "cachedContents": ("/v1beta/cachedContents", {"model": f"models/{FLASH}"}),
    "fileSearchStores": ("/v1beta/fileSearchStores", {}),
    "interactions": ("/v1beta/interactions", {"model": FLASH, "input": "x"}),
    "batches": (f"/v1beta/models/{FLASH}:batchGenerateContent", {"batch": {}}),
}


class Shared(MemoryStore):
    """Closed by nobody but the test."""

    async def close(self) -> None:
        return None


class History:
    """`made` is what a client was told that it made, and has not deleted."""

    def __init__(self, seed: int, google: Google, apps: list[App]) -> None:
        self.rng = random.Random(seed)
        self.google = google
        self.apps = apps
        self.made: list[str] = []
        self.gone: list[str] = []

    async def step(self) -> None:
        await self.rng.choice((self.make, self.read, self.read, self.use, self.use_two, self.delete, self.forget))()

    def app(self) -> App:
        return self.rng.choice(self.apps)

    def one(self, *kinds: str) -> str | None:
        names = [name for name in self.made if not kinds or name.partition("/")[0] in kinds]
        return self.rng.choice(names) if names else None

    async def make(self) -> None:
        path, body = MAKE[self.rng.choice(list(MAKE))]
        before = set(self.google.owned)
        assert (await call(self.app(), path=path, body=body)).status == 200
        (name,) = set(self.google.owned) - before
        self.made.append(name)

    async def read(self) -> None:
        if self.gone and self.rng.random() < 0.2:
            assert (await call(self.app(), "GET", f"/v1beta/{self.rng.choice(self.gone)}")).status in (403, 404)
        elif (name := self.one()) is not None:
            got = await call(self.app(), "GET", f"/v1beta/{name}")
            assert (got.status, got.json["of"]) == (200, self.google.owned[name])

    def body_of(self, *names: str) -> dict[str, Any]:
        found: dict[str, Any] = about()
        for name in names:
            if name.startswith("cachedContents/"):
                found["cachedContent"] = name
            else:
                found.setdefault("tools", []).append({"file_search": {"file_search_store_names": [name]}})
        return found

    async def use(self) -> None:
        if (name := self.one("cachedContents", "fileSearchStores")) is not None:
            got = await call(self.app(), body=self.body_of(name))
            assert got.status == 200, got.body
            assert self.google.owned[name] in got.body.decode()

    async def use_two(self) -> None:
        cache, store = self.one("cachedContents"), self.one("fileSearchStores")
        if cache is not None and store is not None:
            got = await call(self.app(), body=self.body_of(cache, store))
            same = self.google.owned[cache] == self.google.owned[store]
            assert got.status == (200 if same else 400), got.body
            assert same or got.reason == "TWO_OWNERS"

    async def delete(self) -> None:
        if (name := self.one()) is not None:
            assert (await call(self.app(), "DELETE", f"/v1beta/{name}")).status == 200
            self.made.remove(name)
            self.gone.append(name)

    async def forget(self) -> None:
        """As an instance that was started anew knows nothing; now and then the store has lost it too."""
        app = self.app()
        app.ownership._owners.clear()
        if self.made and self.rng.random() < 0.3:
            name = self.rng.choice(self.made)
            for kept, (_, version) in (await app.store.read([f"bound/{name}"])).items():
                await app.store.delete(kept, version)
            for one in self.apps:
                one.ownership.forget(name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_a_client_finds_what_it_made(seed: int, count: int) -> None:
    async def scene() -> None:
        google = Google()
        store = Shared(now)
        await store.open()
        async with AsyncExitStack() as stack:
            apps = [await stack.enter_async_context(gateway(google, projects(count), store=store)) for _ in range(2)]
            history = History(seed, google, apps)
            for _ in range(40):
                await history.step()
                if history.rng.random() < 0.2:
                    await asyncio.sleep(history.rng.expovariate(0.2))
            for app in apps:
                health = app.projects.health.value
                assert (health.keys, health.models, health.projects) == ({}, {}, {}), "no thing is a reason to rest"

    play(scene)
