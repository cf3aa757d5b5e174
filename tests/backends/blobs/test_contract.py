"""What every blob store must do, whatever is under it: whole or not at all, offsets, names, expiry, races."""

import asyncio
import hashlib
import random
from contextlib import aclosing

import pytest

from pollux.backends.blobs.contract import BlobError, BlobMissingError, Blobs
from pollux.backends.blobs.opening import open_blobs
from tests.backends.blobs.backends import LATER, Place, got, in_blobs, put

MIB = 1 << 20
DATA = random.Random(5).randbytes(9 * MIB + 17)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 9 * MIB + 17])
def test_what_was_written_is_read(place: Place, size: int) -> None:
    async def scene(blobs: Blobs) -> None:
        writer = await put(blobs, "a", DATA[:size])
        assert (writer.size, writer.sha256) == (size, hashlib.sha256(DATA[:size]).hexdigest())
        assert await blobs.size("a") == size
        assert await got(blobs, "a") == DATA[:size]

    in_blobs(place, scene)


def test_one_large_piece_is_taken_like_many_small_ones(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", DATA, step=len(DATA))
        assert await got(blobs, "a") == DATA

    in_blobs(place, scene)


def test_reading_begins_at_an_offset(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        data = DATA[: 3 * MIB]
        await put(blobs, "a", data)
        for offset in (1, 300_000, len(data) - 1, len(data), len(data) + 1):
            assert await got(blobs, "a", offset) == data[offset:]

    in_blobs(place, scene)


def test_what_is_not_there(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        assert await blobs.size("a") is None
        assert await blobs.delete("a") is False
        with pytest.raises(BlobMissingError, match="a"):
            await got(blobs, "a")

    in_blobs(place, scene)


def test_deleted_is_gone(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", b"one")
        assert await blobs.delete("a") is True
        assert await blobs.size("a") is None
        with pytest.raises(BlobMissingError):
            await got(blobs, "a")

    in_blobs(place, scene)


def test_nothing_is_seen_before_the_end(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        async with blobs.write("a", LATER) as writer:
            await writer.write(DATA)
            assert await blobs.size("a") is None
        assert await blobs.size("a") == len(DATA)

    in_blobs(place, scene)


def test_a_failed_writer_leaves_what_was_there(place: Place) -> None:
    async def broken(blobs: Blobs, name: str) -> None:
        async with blobs.write(name, LATER) as writer:
            await writer.write(DATA)
            raise ZeroDivisionError

    async def scene(blobs: Blobs) -> None:
        await put(blobs, "old", b"whole")
        for name in ("old", "new"):
            with pytest.raises(ZeroDivisionError):
                await broken(blobs, name)
        assert await blobs.size("new") is None
        assert await got(blobs, "old") == b"whole"

    in_blobs(place, scene)


def test_a_cancelled_writer_leaves_nothing(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        begun = asyncio.Event()

        async def endless() -> None:
            async with blobs.write("a", LATER) as writer:
                while True:
                    await writer.write(DATA)
                    begun.set()

        task = asyncio.create_task(endless())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await blobs.size("a") is None

    in_blobs(place, scene)


def test_of_two_writers_the_last_to_finish_wins_whole(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        first_done = asyncio.Event()

        async def slow() -> None:
            async with blobs.write("a", LATER) as writer:
                await writer.write(b"s" * MIB)
                await first_done.wait()
                await writer.write(b"s" * MIB)

        task = asyncio.create_task(slow())
        await put(blobs, "a", b"f" * (3 * MIB))
        assert await got(blobs, "a") == b"f" * (3 * MIB)
        first_done.set()
        await task
        assert await got(blobs, "a") == b"s" * (2 * MIB)

    in_blobs(place, scene)


def test_many_writers_of_one_name_leave_one_whole_blob(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        other = open_blobs(place.url, place.environ)
        wholes = [bytes([65 + i]) * (500_000 + i) for i in range(8)]
        async with asyncio.TaskGroup() as group:
            for i, whole in enumerate(wholes):
                group.create_task(put(other if i % 2 else blobs, "a", whole))
        assert await got(blobs, "a") in wholes
        assert await blobs.delete("a") is True
        await other.close()

    in_blobs(place, scene)


def test_a_reader_never_sees_two_blobs(parallel: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        old, new = b"o" * (8 * MIB), b"n" * (8 * MIB)
        await put(blobs, "a", old)
        async with aclosing(blobs.read("a")) as chunks:
            seen = bytearray(await anext(chunks))
            await put(blobs, "a", new)
            try:
                async for chunk in chunks:
                    seen += chunk
            except BlobError:
                assert old.startswith(seen)
            else:
                assert seen == old
        assert await got(blobs, "a") == new

    in_blobs(parallel, scene)


def test_a_reader_that_leaves_early_harms_no_other(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        await put(blobs, "a", DATA)
        async with aclosing(blobs.read("a")) as chunks:
            assert DATA.startswith(await anext(chunks))
        assert await got(blobs, "a") == DATA

    in_blobs(place, scene)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "A", ".a", "-a", "a b", "a%2fb", "ä", "a\0", "a" * 201])
def test_a_name_is_never_a_path(place: Place, name: str) -> None:
    async def scene(blobs: Blobs) -> None:
        with pytest.raises(ValueError, match="is not a blob name"):
            await put(blobs, name, b"x")
        with pytest.raises(ValueError, match="is not a blob name"):
            await got(blobs, name)
        with pytest.raises(ValueError, match="is not a blob name"):
            await blobs.size(name)
        with pytest.raises(ValueError, match="is not a blob name"):
            await blobs.delete(name)

    in_blobs(place, scene)


def test_a_sweep_takes_what_has_expired_and_nothing_else(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        await put(blobs, "old", b"1", expires=1_800_000_000)
        await put(blobs, "just", b"2", expires=1_800_000_100.5)
        await put(blobs, "fresh", b"3", expires=1_800_000_200)
        await put(blobs, "renewed", b"4", expires=1_800_000_000)
        await put(blobs, "renewed", b"4", expires=LATER)
        assert await blobs.sweep(1_799_999_999) == 0
        assert await blobs.sweep(1_800_000_101) == 2
        assert [await blobs.size(name) for name in ("old", "just", "fresh", "renewed")] == [None, None, 1, 1]
        assert await blobs.sweep(1_800_000_101) == 0

    in_blobs(place, scene)


def test_blobs_outlive_who_wrote_them(place: Place) -> None:
    async def write(blobs: Blobs) -> None:
        await put(blobs, "a" * 200, DATA[:MIB])

    async def read(blobs: Blobs) -> None:
        assert await got(blobs, "a" * 200) == DATA[:MIB]
        await blobs.close()
        await blobs.close()

    in_blobs(place, write)
    in_blobs(place, read)


def test_many_at_once(place: Place) -> None:
    async def scene(blobs: Blobs) -> None:
        names = [f"blob-{i}" for i in range(20)]
        await asyncio.gather(*(put(blobs, name, name.encode() * 10_000) for name in names))
        found = await asyncio.gather(*(got(blobs, name) for name in names))
        assert found == [name.encode() * 10_000 for name in names]

    in_blobs(place, scene)
