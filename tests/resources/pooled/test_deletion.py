"""How pooled files end: deleted while something else happens to them, and what is left then."""

import asyncio

import pytest

from gemini_simulator import Fault
from pollux.backends.store.memory import MemoryStore
from tests.gateway import call, now, play, projects
from tests.resources.pooled.scenes import AT, MemoryBlobs, asks, gateway, generate, google, owned, upload

FLASH = "/v1beta/models/gemini-3.8-flash:generateContent"
PLAIN = {**AT, "x-pollux-fallback": "off"}


async def left(store: MemoryStore) -> list[str]:
    return [name for prefix in ("pooled/", "content/", "bound/files") for name in await store.scan(prefix)]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "at another instance"])
def test_deleted_while_it_is_copied(elsewhere: bool) -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as second,
        ):
            file = await upload(app)
            assert (await call(app, "POST", FLASH, PLAIN, asks(file))).status == 200
            upstream.simulator.faults.append(Fault(kind="slow", verb="upload.chunk", seconds=10.0))
            asking = asyncio.create_task(call(app, "POST", FLASH, PLAIN, asks(file)))
            await asyncio.sleep(3.0)
            at = second if elsewhere else app
            assert (await call(at, "DELETE", f"/v1beta/{file['name']}", AT)).status == 200
            assert (await asking).status == 403
            assert not owned(upstream.simulator)
            assert not blobs.all
            assert not await left(store)

    play(scene)


def test_deleted_while_a_copy_is_processed() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2, rpm=1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys, processing=30.0)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            await asyncio.sleep(31)
            assert (await call(app, "POST", FLASH, PLAIN, asks(file))).status == 200
            asking = asyncio.create_task(call(app, "POST", FLASH, PLAIN, asks(file)))
            await asyncio.sleep(5.0)
            assert len(owned(upstream.simulator)) == 2
            assert (await call(app, "DELETE", f"/v1beta/{file['name']}", AT)).status == 200
            assert (await asking).status == 403
            assert not owned(upstream.simulator)
            assert not await left(store)

    play(scene)


def test_deleted_and_uploaded_again_at_once() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as second,
        ):
            for at in (app, second):
                for _ in range(20):
                    file = await upload(app)
                    deleting = asyncio.create_task(call(app, "DELETE", f"/v1beta/{file['name']}", AT))
                    again = await upload(at)
                    assert (await deleting).status == 200
                    assert (await generate(at, again)).status == 200
                    assert (await call(at, "DELETE", f"/v1beta/{again['name']}", AT)).status == 200
                    assert not owned(upstream.simulator)
            assert not blobs.all
            assert not await left(store)

    play(scene)


def test_a_project_that_does_not_delete_is_asked_again() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=store) as app:
            file = await upload(app)
            upstream.simulator.faults.append(Fault(kind="internal", verb="files.delete", count=4))
            path = f"/v1beta/{file['name']}"
            first = await call(app, "DELETE", path, AT)
            assert first.status == 500
            while first.status == 500:
                first = await call(app, "DELETE", path, AT)
            assert not owned(upstream.simulator)
            assert not blobs.all
            assert not await left(store)

    play(scene)


def test_two_who_delete_what_two_uploaded() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as second,
        ):
            file = await upload(app)
            await upload(second)
            path = f"/v1beta/{file['name']}"
            got = await asyncio.gather(*(call(at, "DELETE", path, AT) for at in (app, second)))
            assert [one.status for one in got] == [200, 200]
            assert not owned(upstream.simulator)
            assert not await left(store)

    play(scene)
