"""pooled.contents: parts read as one, a blob store that comes and goes, sweeping; and the documents."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace

import pytest

from pollux.backends.blobs.contract import BlobError, BlobMissingError
from pollux.resources.pooled import documents
from pollux.resources.pooled.contents import SWEEP_EVERY, Contents
from pollux.resources.pooled.documents import Copy, Lease, Part, PooledFile, content_hash, copy_name, first_name
from tests.gateway import now, play
from tests.resources.pooled.scenes import MemoryBlobs, sha256


async def put(contents: Contents, *datas: bytes) -> list[Part]:
    parts = []
    for number, data in enumerate(datas):
        async with contents.write(f"part-{number}", now() + 100) as writer:
            await writer.write(data)
        parts.append(Part(f"part-{number}", len(data)))
    return parts


async def read(contents: Contents, parts: list[Part], offset: int = 0) -> bytes:
    async with aclosing(contents.read(parts, offset)) as pieces:
        return b"".join([piece async for piece in pieces])


def test_parts_are_read_as_one_from_any_place() -> None:
    async def scene() -> None:
        contents = Contents(MemoryBlobs(), now, sweeps=False)
        datas = [b"a" * 100, b"b", b"c" * 250_000]
        parts, whole = await put(contents, *datas), b"".join(datas)
        for offset in (0, 1, 99, 100, 101, 102, 100_000, len(whole) - 1, len(whole)):
            assert await read(contents, parts, offset) == whole[offset:]
        assert await contents.sha256(parts) == sha256(whole)

    play(scene)


def test_a_part_that_is_gone_or_short_is_told() -> None:
    async def scene() -> None:
        blobs = MemoryBlobs()
        contents = Contents(blobs, now, sweeps=False)
        parts = await put(contents, b"abc", b"def")
        with pytest.raises(BlobMissingError, match="part-1 ends 1 bytes off"):
            await read(contents, [parts[0], Part("part-1", 4)])
        await blobs.delete("part-0")
        with pytest.raises(BlobMissingError):
            await read(contents, parts)
        assert await contents.usable(), "one blob is gone, not the store"

    play(scene)


def test_a_store_that_is_down_is_told_once_and_not_asked_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        blobs = MemoryBlobs()
        contents = Contents(blobs, now, sweeps=False)
        assert await contents.usable()
        blobs.down = True
        assert await contents.usable(), "it answered a moment ago"
        with pytest.raises(BlobError):
            await put(contents, b"a")
        assert not await contents.usable()
        assert contents.as_json()["blobs"] == "down"
        blobs.down = False
        assert not await contents.usable(), "it is left alone for a while"
        await asyncio.sleep(16)
        assert await contents.usable()
        assert contents.as_json()["why"] is None

    with caplog.at_level(logging.WARNING):
        play(scene)
    said = [record.message for record in caplog.records if record.name == "pollux.blobs"]
    assert len(said) == 2
    assert "does not work" in said[0]
    assert getattr(caplog.records[-2], "event", "") == "blobs-trouble"
    assert said[1] == "the blob store works again"


def test_a_folder_is_swept_at_the_start_and_at_most_hourly() -> None:
    async def scene() -> None:
        blobs = MemoryBlobs()
        contents = Contents(blobs, now, sweeps=True)
        await contents.open()
        await put(contents, b"a")
        for _ in range(5):
            contents.sweep()
            await asyncio.sleep(1)
        assert len(blobs.swept) == 1
        await asyncio.sleep(SWEEP_EVERY)
        contents.sweep()
        await asyncio.sleep(1)
        assert len(blobs.swept) == 2
        assert not blobs.all, "it expired"
        await contents.close()

    play(scene)


FILE = PooledFile("files/a", "me", "00ff", 3, "text/plain", "Ä", "hash", "p1", 1.5, 2000.25, (Part("b", 3),), 2, 1)


def test_a_document_comes_back_as_it_was() -> None:
    copies: dict[str, Copy | Lease] = {
        "p1": Copy("files/a", "https://x/files/a", 1900.5, True),
        "p2": Lease("me", 77.0),
    }
    for file in (FILE, FILE.with_copy("p1", copies["p1"]).with_copy("p2", copies["p2"])):
        packed = documents.packed(file)
        assert packed["expires"] == 2001, "whole seconds, for the store"
        assert documents.unpacked_file(packed) == replace(file, expires=2001)
    for odd in ({}, {"v": 2, **documents.packed(FILE), "copies": None}, documents.packed(FILE) | {"v": 9}):
        assert documents.unpacked_file(odd) is None


def test_where_a_file_can_be_used() -> None:
    file = FILE.with_copy("p1", Copy("files/a", "u", 1000.0, False)).with_copy(
        "p2", Copy("files/px-2", "u", 1000.0, False)
    )
    file = file.with_copy("p3", Lease("me", 900.0)).with_copy("p4", Copy("files/px-4", "u", 1000.0, True))
    assert file.ready_at(0.0) == {"p1", "p4"}, "how far its own is, the client asks; a copy must be active"
    assert not file.ready_at(950.0), "they are about to end"
    assert file.with_copy("p4", None).ready_at(0.0) == {"p1"}


def test_names_that_follow_from_what_a_file_is() -> None:
    described = {"displayName": "N"}
    one = content_hash("me", "00", "text/plain", described)
    assert one == content_hash("me", "00", "text/plain", {"display_name": "N", "sizeBytes": "3"})
    others = [
        content_hash("you", "00", "text/plain", described),
        content_hash("me", "01", "text/plain", described),
        content_hash("me", "00", "text/html", described),
        content_hash("me", "00", "text/plain", {"displayName": "M"}),
        content_hash("me", "00", "text/plain", {"displayName": "N", "name": "files/x"}),
    ]
    assert len({one, *others}) == 6
    assert first_name(one, 1.0, "p1") == first_name(one, 1.0, "p1")
    assert len({first_name(one, 1.0, "p1"), first_name(one, 2.0, "p1"), first_name(one, 1.0, "p2")}) == 3
    names = {copy_name(FILE, "p1"), copy_name(FILE, "p2"), copy_name(replace(FILE, round=2), "p1")}
    assert len(names) == 3
    assert all(name.startswith("files/px-") and len(name) <= 46 for name in names)
