"""Uploads to Cloud Storage in trouble: what is tried again, and that the bytes stay right."""

import random

import pytest

from pollux.backends.blobs.contract import Blobs, BlobUnavailableError
from pollux.backends.blobs.gcs_calls import DEADLINE_S
from tests.backends.blobs.backends import LATER, got, put
from tests.backends.blobs.gcs_scenes import Clock, CountingToken, play
from tests.backends.blobs.storage_server import Storage, Trouble

MIB = 1 << 20
DATA = random.Random(6).randbytes(17 * MIB + 5)


@pytest.mark.parametrize(
    "trouble",
    [
        [Trouble("POST", "503")],
        [Trouble("POST", "lose")],
        [Trouble("PUT", "break"), Trouble("PUT", "4030")],
        [Trouble("PUT", "503")],
        [Trouble("PUT", "429"), Trouble("PUT", "500"), Trouble("PUT", "drop")],
        [Trouble("PUT", "drop")],
        [Trouble("PUT", "lose")],
        [Trouble("PUT", "short")],
        [Trouble("PUT", "none")],
        [Trouble("PUT", "short"), Trouble("PUT", "lose"), Trouble("PUT", "503")],
        [Trouble("PUT", "lose"), Trouble("PUT", "lose"), Trouble("PUT", "lose"), Trouble("PUT", "lose")],
        [Trouble("PUT", "none"), Trouble("PUT", "lose"), Trouble("PUT", "none"), Trouble("PUT", "short")],
    ],
    ids=lambda trouble: "-".join(f"{each.method}:{each.what}" for each in trouble),
)
@pytest.mark.parametrize("size", [100, 8 * MIB, 17 * MIB + 5])
def test_an_upload_survives(server: Storage, trouble: list[Trouble], size: int) -> None:
    async def scene(blobs: Blobs) -> None:
        server.trouble = list(trouble)
        await put(blobs, "a", DATA[:size], step=MIB)
        assert server.objects["a"].data == DATA[:size]
        assert await got(blobs, "a") == DATA[:size]

    play(server.address, scene)


def test_the_last_answer_lost_is_found_again_and_nothing_sent_twice(server: Storage) -> None:
    async def scene(blobs: Blobs) -> None:
        async with blobs.write("a", LATER) as writer:
            await writer.write(DATA[:100])
            server.trouble = [Trouble("PUT", "lose")]
        assert [line.partition(" ")[0] for line in server.seen] == ["POST", "PUT", "PUT"]
        assert len({made.generation for made in server.objects.values()}) == 1

    play(server.address, scene)


def test_a_slow_upload_is_not_given_up(server: Storage) -> None:
    clock = Clock()

    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble("PUT", what) for _ in range(20) for what in ("short", "503", "")]
        await put(blobs, "a", DATA[: 8 * MIB])
        assert server.objects["a"].data == DATA[: 8 * MIB]

    play(server.address, scene, times=clock.times(chance=0.0))
    assert len(clock.slept) == 20
    assert max(clock.slept) == clock.slept[0]


def test_pauses_double_up_to_a_bound_within_the_deadline(server: Storage) -> None:
    clock = Clock()

    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble("GET", "503") for _ in range(100)]
        with pytest.raises(
            BlobUnavailableError, match=r"blob gs://pollux/a: .* answered 503, after tries for 60 s; try again"
        ):
            await blobs.size("a")

    play(server.address, scene, times=clock.times(chance=0.0))
    assert clock.slept[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert DEADLINE_S - 8 < sum(clock.slept) <= DEADLINE_S


def test_chance_spreads_the_pauses(server: Storage) -> None:
    clock = Clock()

    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble("GET", "503")]
        assert await blobs.size("a") is None

    play(server.address, scene, times=clock.times(chance=0.8))
    assert clock.slept == [pytest.approx(0.25 * 0.6)]


def test_a_session_elsewhere_gets_neither_bytes_nor_token(server: Storage) -> None:
    server.elsewhere = "http://127.0.0.1:1"

    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", b"x")
        assert server.objects["a"].data == b"x"

    play(server.address, scene, token=CountingToken())


def test_a_session_that_is_gone(server: Storage) -> None:
    async def lost(blobs: Blobs) -> None:
        async with blobs.write("a", LATER) as writer:
            await writer.write(DATA[: 8 * MIB])
            server.sessions.clear()
            await writer.write(DATA[: 8 * MIB])

    async def scene(blobs: Blobs) -> None:
        with pytest.raises(BlobUnavailableError, match="its upload session is gone; send the file again") as error:
            await lost(blobs)
        assert "upload_id" not in str(error.value)
        assert server.objects == {}

    play(server.address, scene)


def test_a_broken_writer_drops_its_session(server: Storage) -> None:
    async def broken(blobs: Blobs) -> None:
        async with blobs.write("a", LATER) as writer:
            await writer.write(DATA)
            assert len(server.sessions) == 1
            raise ZeroDivisionError

    async def scene(blobs: Blobs) -> None:
        with pytest.raises(ZeroDivisionError):
            await broken(blobs)
        assert (server.sessions, server.objects) == ({}, {})

    play(server.address, scene)


def test_what_arrives_changed_is_deleted(server: Storage) -> None:
    async def scene(blobs: Blobs) -> None:
        server.trouble = [Trouble("PUT", "corrupt")]
        with pytest.raises(BlobUnavailableError, match="what arrived differs from what was sent and was deleted"):
            await put(blobs, "a", DATA)
        assert server.objects == {}

    play(server.address, scene)
