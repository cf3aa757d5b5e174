"""Cloud Storage in trouble: what is tried again, what is not, what an error says; downloads and sweeps."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable

import pytest

from pollux.backends.blobs.contract import BlobError, BlobMissingError, Blobs, BlobUnavailableError
from pollux.backends.blobs.gcs_calls import DEADLINE_S, Times
from pollux.backends.blobs.opening import open_blobs
from tests.backends.blobs.backends import LATER, got, put
from tests.backends.blobs.gcs_scenes import Clock, CountingToken, play
from tests.backends.blobs.storage_server import BUCKET, Storage, Trouble

DATA = random.Random(6).randbytes((17 << 20) + 5)
CALLS: dict[str, Callable[[Blobs], Awaitable[object]]] = {
    "open": lambda blobs: blobs.open(),
    "write": lambda blobs: put(blobs, "a", b"x"),
    "read": lambda blobs: got(blobs, "a"),
    "size": lambda blobs: blobs.size("a"),
    "delete": lambda blobs: blobs.delete("a"),
    "sweep": lambda blobs: blobs.sweep(0.0),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_a_server_that_is_down(call: Callable[[Blobs], Awaitable[object]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def scene(blobs: Blobs) -> None:
        with pytest.raises(BlobUnavailableError, match=r"no answer from Cloud Storage .*try again later"):
            await call(blobs)

    play(address, scene)


@every_call
def test_a_server_that_hangs(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.at += DEADLINE_S

    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble(method, "hang") for method in ("GET", "POST", "DELETE") for _ in range(2)]
        with pytest.raises(BlobUnavailableError, match="within the time allowed"):
            await call(blobs)

    play(server.address, scene, times=Times(lambda: clock.at, sleep, lambda: 0.0, DEADLINE_S, 0.05))


@every_call
def test_a_missing_bucket(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    async def scene(blobs: Blobs) -> None:
        if call is CALLS["open"] or call is CALLS["sweep"]:
            said = "there is no bucket elsewhere; create it, or name another in POLLUX_BLOBS"
        else:
            said = "gs://elsewhere/a: there is no bucket elsewhere; create it"
        with pytest.raises(BlobError, match=said) as error:
            await call(blobs)
        assert not isinstance(error.value, BlobMissingError | BlobUnavailableError)

    play(server.address, scene, bucket="elsewhere")


@pytest.mark.parametrize("call", [CALLS[name] for name in ("open", "write", "size", "sweep")])
def test_an_answer_that_is_not_from_cloud_storage(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble(method, "odd") for method in ("GET", "POST")]
        with pytest.raises(
            BlobError, match="that is not an answer of Cloud Storage; check STORAGE_EMULATOR_HOST"
        ) as error:
            await call(blobs)
        assert not isinstance(error.value, BlobUnavailableError)
        assert "Welcome" not in str(error.value)

    play(server.address, scene)


@every_call
def test_who_may_not_is_told_the_role(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble(method, "403") for method in ("GET", "POST", "DELETE")]
        said = r"not allowed \(trouble\); grant roles/storage.objectUser on bucket pollux"
        with pytest.raises(BlobError, match=said) as error:
            await call(blobs)
        assert not isinstance(error.value, BlobUnavailableError)

    play(server.address, scene)


@every_call
def test_a_refused_token_is_renewed_once(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    server.token = "good"
    server.put("a", b"x")
    token = CountingToken("stale")

    async def scene(blobs: Blobs) -> None:
        await call(blobs)
        assert token.forgotten == 1

    play(server.address, scene, token=token)


@every_call
def test_a_token_that_stays_refused(server: Storage, call: Callable[[Blobs], Awaitable[object]]) -> None:
    server.token = "good"
    token = CountingToken("stale", after="stale too")

    async def scene(blobs: Blobs) -> None:
        with pytest.raises(BlobError, match="does not accept these Google credentials") as error:
            await call(blobs)
        assert "stale" not in str(error.value)
        assert len(server.seen) == 2

    play(server.address, scene, token=token)


def test_an_emulator_sees_no_token(server: Storage) -> None:
    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", b"x")
        assert server.authorizations == [None, None]

    play(server.address, scene)


def test_a_download_that_breaks_goes_on_where_it_was(server: Storage) -> None:
    async def scene(blobs: Blobs) -> None:
        server.put("a", DATA)
        server.trouble = [Trouble("GET", "break"), Trouble("GET", "503"), Trouble("GET", "break")]
        assert await got(blobs, "a") == DATA
        assert [("generation=" in line) for line in server.seen] == [False, True, True, True]

    play(server.address, scene)


def test_a_download_that_breaks_never_goes_on_with_another_blob(server: Storage) -> None:
    seen = bytearray()

    async def read(blobs: Blobs) -> None:
        async for chunk in blobs.read("a"):
            if not seen:
                server.put("a", DATA[::-1])
            seen.extend(chunk)

    async def scene(blobs: Blobs) -> None:
        server.put("a", DATA)
        server.trouble = [Trouble("GET", "break")]
        with pytest.raises(BlobUnavailableError, match="replaced or deleted during reading"):
            await read(blobs)
        assert 0 < len(seen) < len(DATA)
        assert DATA.startswith(seen)

    play(server.address, scene)


def test_a_sweep_goes_through_all_pages_and_leaves_what_is_not_ours(server: Storage) -> None:
    server.page = 3
    for i in range(20):
        server.put(f"some/old-{i}", b"x", "2026-01-01T00:00:00Z")
    kept = ("some/Other", "some/deeper/old", "other/old", "some/no-time", "some/odd-time")
    for name in kept:
        server.put(name, b"x", {"some/no-time": None, "some/odd-time": "soon"}.get(name, "2026-01-01T00:00:00Z"))

    async def scene() -> None:
        blobs = open_blobs(f"gs://{BUCKET}/some/", {"STORAGE_EMULATOR_HOST": server.address})
        assert await blobs.sweep(LATER) == 20
        await blobs.close()

    asyncio.run(scene())
    assert sum(line.startswith("GET") for line in server.seen) == 8
    assert sorted(server.objects) == sorted(kept)


def test_a_sweep_spares_what_was_replaced_since_it_looked(server: Storage) -> None:
    server.put("a", b"old", "2026-01-01T00:00:00Z")
    server.before_delete = lambda: server.objects.update(a=server.put("a", b"new", "2036-01-01T00:00:00Z"))

    async def scene(blobs: Blobs) -> None:
        assert await blobs.sweep(1_800_000_000) == 0
        assert await got(blobs, "a") == b"new"

    play(server.address, scene)


@pytest.mark.parametrize(
    "url",
    [
        "gs://",
        "gs:///x",
        "gs://a",
        "gs://UPPER",
        "gs://b/x\ny",
        "s3://bucket",
        "blobs",
        "file://",
        "file:///",
        "file://x/y",
    ],
)
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(BlobError, match=r"gs://BUCKET|prefix"):
        open_blobs(url, {})
