"""Uploads of pooled files: sessions as at Google's, in one request, by any instance; the same content once."""

import asyncio
import json

import pytest

from gemini_simulator import Fault
from pollux.backends.keys.contract import Key
from pollux.backends.store.memory import MemoryStore
from pollux.resources.upload_token import LIFETIME
from tests.gateway import HOST, TOKEN, Keys, call, now, play, projects
from tests.resources.pooled.scenes import (
    AT,
    FILES,
    KIB256,
    MIB,
    OTHER,
    TEXT,
    MemoryBlobs,
    chunk,
    contents,
    gateway,
    google,
    owned,
    sha256,
    start,
    status,
    upload,
    uploads,
)


def test_a_file_is_received_here_and_then_uploaded_to_one_project() -> None:
    async def scene() -> None:
        keys, blobs = projects(4), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            data = b"a" * KIB256 + b"end"
            address = await start(app, {"displayName": "Notes"}, len(data))
            assert address.startswith("/upload/v1beta/files?upload_id=")
            assert not upstream.simulator.calls, "Google is asked when all has come"
            assert status(await chunk(app, address, "upload", data[:KIB256])) == (200, "active")
            asked = await chunk(app, address, "query")
            assert (status(asked), asked.headers["x-goog-upload-size-received"]) == ((200, "active"), str(KIB256))
            done = await chunk(app, address, "upload, finalize", data[KIB256:], KIB256)
            assert status(done) == (200, "final")
            file = done.json["file"]
            assert (file["displayName"], file["sizeBytes"], file["mimeType"]) == ("Notes", str(len(data)), "text/plain")
            assert file["uri"] == f"http://{HOST}/v1beta/{file['name']}"
            assert not file["name"].startswith("files/px-")
            assert len(uploads(upstream.simulator)) == 1
            assert contents(upstream.simulator) == [sha256(data)]
            assert list(owned(upstream.simulator)) == [file["name"]]
            assert sorted(len(kept) for kept, _ in blobs.all.values()) == [3, KIB256]
            got = await call(app, "GET", f"/v1beta/{file['name']}", AT)
            assert got.json["uri"] == file["uri"]
            again = await chunk(app, address, "upload, finalize", data[KIB256:], KIB256)
            assert (status(again), again.json) == ((200, "final"), done.json), "whoever asks again is told again"
            final = await chunk(app, address, "query")
            assert (status(final), final.json) == ((200, "final"), done.json)
            assert len(uploads(upstream.simulator)) == 1

    play(scene)


def test_offsets_sizes_and_chunks_that_come_twice_are_as_at_google() -> None:
    async def scene() -> None:
        keys = projects(2)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            data = bytes(range(256)) * 2048  # 512 KiB
            address = await start(app, size=len(data))
            bad = await chunk(app, address, "upload", data[:100])
            assert status(bad) == (400, "active")
            assert "multiple of 262144" in bad.message
            assert status(await chunk(app, address, "upload", data[:KIB256])) == (200, "active")
            ahead = await chunk(app, address, "upload, finalize", data[KIB256:], KIB256 + 1)
            assert status(ahead) == (400, "active")
            assert ahead.message == f"Invalid offset {KIB256 + 1}: {KIB256} bytes have been received."
            short = await chunk(app, address, "upload, finalize", data[KIB256:-1], KIB256)
            assert status(short) == (400, "active")
            assert status(await chunk(app, address, "upload", data[:KIB256])) == (200, "active"), "sent again"
            asked = await chunk(app, address, "query")
            assert asked.headers["x-goog-upload-size-received"] == str(KIB256)
            assert status(await chunk(app, address, "upload, begin", data)) == (400, "active")
            done = await chunk(app, address, "upload, finalize", data, 0)  # all of it, of which half is there
            assert status(done) == (200, "final")
            assert contents(upstream.simulator) == [sha256(data)]

    play(scene)


def test_a_cancelled_upload_leaves_nothing() -> None:
    async def scene() -> None:
        keys, blobs = projects(2), MemoryBlobs()
        async with gateway(google(keys), keys, blobs) as app:
            address = await start(app)
            await chunk(app, address, "upload", b"a" * KIB256)
            assert status(await chunk(app, address, "cancel")) == (200, "cancelled")
            assert not blobs.all
            more = await chunk(app, address, "upload, finalize", b"b", KIB256)
            assert status(more) == (400, "cancelled")

    play(scene)


def test_what_came_of_a_chunk_that_broke_stays() -> None:
    async def scene() -> None:
        keys = projects(2)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            data = b"abc" * 1000
            address = await start(app)
            headers = {**AT, "x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
            cut = await call(app, "POST", address, headers, token=None, gone_after=[data[:1200]])
            assert cut.status == 0
            asked = await chunk(app, address, "query")
            assert asked.headers["x-goog-upload-size-received"] == "1200"
            assert status(await chunk(app, address, "upload, finalize", data[1200:], 1200)) == (200, "final")
            assert contents(upstream.simulator) == [sha256(data)]

    play(scene)


def test_a_chunk_of_unknown_length_beyond_the_declared_size_is_refused() -> None:
    async def scene() -> None:
        keys = projects(2)
        async with gateway(google(keys), keys, MemoryBlobs()) as app:
            address = await start(app, size=KIB256)
            headers = {**AT, "x-goog-upload-command": "upload", "x-goog-upload-offset": "0"}
            got = await call(app, "POST", address, headers, pieces=[b"x" * KIB256, b"y" * KIB256], token=None)
            assert status(got) == (400, "active")
            assert got.message == f"Invalid size: {2 * KIB256} bytes, but {KIB256} were declared."
            assert (await chunk(app, address, "query")).headers["x-goog-upload-size-received"] == "0"

    play(scene)


def test_an_upload_begun_by_one_instance_goes_on_at_another() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as one,
            gateway(upstream, keys, blobs, store=store) as two,
        ):
            data = b"x" * KIB256 + b"y" * KIB256 + b"z"
            address = await start(one)
            assert status(await chunk(one, address, "upload", data[:KIB256])) == (200, "active")
            assert status(await chunk(two, address, "upload", data[KIB256 : 2 * KIB256], KIB256)) == (200, "active")
            done = await chunk(one, address, "upload, finalize", data[2 * KIB256 :], 2 * KIB256)
            assert status(done) == (200, "final")
            assert contents(upstream.simulator) == [sha256(data)]

    play(scene)


def test_an_upload_ends_after_a_day_and_cannot_be_forged() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        async with gateway(google(keys), keys, blobs, store=store) as app:
            address = await start(app)
            (name,) = list(await store.scan("upload/"))
            forged = address.replace("upload_id=", "upload_id=e30")
            assert (await chunk(app, forged, "query")).status == 401
            _, version = (await store.read([name]))[name]
            await store.delete(name, version)
            gone = await chunk(app, address, "upload, finalize", b"x")
            assert status(gone) == (404, "final")
            assert gone.message == "Requested entity was not found."
            address = await start(app)
            await asyncio.sleep(LIFETIME + 1)
            assert (await chunk(app, address, "query")).status == 401

    play(scene)


@pytest.mark.parametrize("cut", [1, 7, 40, 100, 500])
def test_a_file_in_one_multipart_request(cut: int) -> None:
    async def scene() -> None:
        keys = projects(2)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            content = b"line\r\n--not-the-boundary\r\n" * 20
            body = (
                b"--B\r\nContent-Type: application/json; charset=utf-8\r\n\r\n"
                + json.dumps({"file": {"displayName": "One"}}).encode()
                + b"\r\n--B\r\nContent-Type: text/markdown\r\n\r\n"
                + content
                + b"\r\n--B--\r\n"
            )
            headers = {**AT, "x-goog-upload-protocol": "multipart", "content-type": "multipart/related; boundary=B"}
            pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
            got = await call(app, "POST", FILES, headers, pieces=pieces)
            assert status(got) == (200, "final"), got.body
            file = got.json["file"]
            assert (file["displayName"], file["mimeType"]) == ("One", "text/markdown")
            assert contents(upstream.simulator) == [sha256(content)]
            small = await call(app, "POST", FILES, headers, body)
            assert small.json["file"]["name"] == file["name"]
            half = await call(app, "POST", FILES, headers, pieces=pieces[: len(pieces) // 2])
            assert half.status == 400

    play(scene)


def test_a_file_in_one_raw_request() -> None:
    async def scene() -> None:
        keys, blobs = projects(2), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            headers = {**AT, "x-goog-upload-protocol": "raw", "content-type": "text/plain"}
            got = await call(app, "POST", FILES, headers, pieces=[TEXT[:100], TEXT[100:]])
            assert status(got) == (200, "final"), got.body
            small = await call(app, "POST", FILES, headers | {"x-goog-upload-command": "upload, finalize"}, TEXT)
            assert (status(small), small.json) == ((200, "final"), got.json), "of announced length"
            assert got.json["file"]["sizeBytes"] == str(len(TEXT))
            assert contents(upstream.simulator) == [sha256(TEXT)]

    play(scene)


def test_the_same_content_is_uploaded_once_by_twenty_at_once() -> None:
    async def scene() -> None:
        keys, blobs = projects(4), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            files = await asyncio.gather(*(upload(app, TEXT, {"displayName": "Same"}) for _ in range(20)))
            assert len({file["name"] for file in files}) == 1
            assert len(uploads(upstream.simulator)) == 1
            assert len(blobs.all) == 1, "the others' contents are gone"
            different = await upload(app, TEXT, {"displayName": "Other name"})
            theirs = await upload(app, TEXT, {"displayName": "Same"}, token=OTHER)
            assert len({files[0]["name"], different["name"], theirs["name"]}) == 3
            path = f"/v1beta/{files[0]['name']}"
            for left in range(19, 0, -1):
                gone = await call(app, "DELETE", path, AT)
                assert (gone.status, gone.json) == (200, {}), left
                assert (await call(app, "GET", path, AT)).status == 200
            assert (await call(app, "DELETE", path, AT)).status == 200
            assert files[0]["name"] not in owned(upstream.simulator)
            assert (await call(app, "GET", path, AT)).status == 403
            fresh = await upload(app, TEXT, {"displayName": "Same"})
            assert fresh["name"] in owned(upstream.simulator)

    play(scene)


def test_the_same_content_is_uploaded_once_by_two_instances() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(4), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as one,
            gateway(upstream, keys, blobs, store=store) as two,
        ):
            blobs.slow = 1.0  # the content is read for a while: the other instance comes upon the lease
            files = await asyncio.gather(*(upload(app, TEXT) for app in (one, two) * 5))
            assert len({file["name"] for file in files}) == 1
            assert len(uploads(upstream.simulator)) == 1

    play(scene)


def test_content_with_less_than_a_day_left_is_uploaded_again_and_the_old_file_stays() -> None:
    async def scene() -> None:
        keys = projects(2)
        async with gateway(google(keys), keys, MemoryBlobs()) as app:
            old = await upload(app)
            await asyncio.sleep(25 * 3600)
            new = await upload(app)
            assert new["name"] != old["name"]
            for file in (old, new):
                assert (await call(app, "GET", f"/v1beta/{file['name']}", AT)).status == 200
            assert (await upload(app))["name"] == new["name"]

    play(scene)


def test_a_name_that_the_client_chose_is_taken_once() -> None:
    async def scene() -> None:
        keys = projects(2)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            file = await upload(app, TEXT, {"name": "files/my-notes"})
            assert file["name"] == "files/my-notes"
            address = await start(app, {"name": "files/my-notes"})
            taken = await chunk(app, address, "upload, finalize", TEXT)
            assert (taken.status, taken.message) == (409, "Requested entity already exists")
            address = await start(app, {"name": "files/my-notes"})
            other = await chunk(app, address, "upload, finalize", b"something else")
            assert (other.status, other.json["error"]["status"]) == (409, "ALREADY_EXISTS")
            assert list(owned(upstream.simulator)) == ["files/my-notes"]

    play(scene)


def test_a_client_without_a_token_starts_nothing_and_another_does_not_go_on() -> None:
    async def scene() -> None:
        keys = projects(2)
        async with gateway(google(keys), keys, MemoryBlobs()) as app:
            headers = {**AT, "x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
            assert (await call(app, "POST", FILES, headers, {"file": {}}, token=None)).status == 401
            address = await start(app)
            assert (await chunk(app, address, "upload", b"a" * KIB256, token=OTHER)).status == 403
            assert status(await chunk(app, address, "upload", b"a" * KIB256, token=TOKEN)) == (200, "active")

    play(scene)


def test_what_google_refuses_at_the_end_is_told_and_the_session_goes_on() -> None:
    async def scene() -> None:
        keys = projects(3)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            upstream.simulator.faults.append(Fault(kind="overloaded", verb="upload.start"))
            address = await start(app)
            refused = await chunk(app, address, "upload, finalize", TEXT)
            assert status(refused) == (503, None), "without a status the SDKs send the chunk again"
            upstream.simulator.faults.clear()
            again = await chunk(app, address, "upload, finalize", TEXT)
            assert status(again) == (200, "final")
            assert contents(upstream.simulator) == [sha256(TEXT)]

    play(scene)


@pytest.mark.parametrize("kind", ["overloaded", "prepay", "invalid-key", "mid-reset"])
def test_a_project_that_does_not_take_the_file_is_passed_over(kind: str) -> None:
    async def scene() -> None:
        keys = projects(2)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            for verb in ("upload.start", "upload.chunk"):
                upstream.simulator.faults.append(Fault(kind=kind, verb=verb, project="p1"))
            files = [await upload(app, b"%d" % number) for number in range(3)]
            assert {owned(upstream.simulator)[file["name"]] for file in files} == {"p2"}

    play(scene)


def test_every_project_that_may_take_the_file_is_asked() -> None:
    async def scene() -> None:
        keys = projects(8)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            for number in range(1, 8):
                upstream.simulator.faults.append(Fault(kind="invalid-key", verb="upload.start", project=f"p{number}"))
            file = await upload(app, TEXT)
            assert owned(upstream.simulator)[file["name"]] == "p8"

    play(scene)


def test_an_upload_that_does_not_begin_is_tried_with_the_projects_other_key_and_again() -> None:
    async def scene() -> None:
        keys = Keys([Key("k1", "p1"), Key("k2", "p1")])
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            upstream.simulator.faults.append(Fault(kind="invalid-key", verb="upload.start", key="k1"))
            upstream.simulator.faults.append(Fault(kind="overloaded", verb="upload.start", key="k2", count=2))
            await upload(app, TEXT)
            assert contents(upstream.simulator) == [sha256(TEXT)]
            starts = [call.status or 0 for call in upstream.simulator.calls if call.verb == "upload.start"]
            assert sorted(starts) == [200, 400, 503, 503]

    play(scene)


def test_trouble_while_google_takes_the_file_is_gone_on_from_where_it_came_to() -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            data = bytes(range(256)) * 4096
            upstream.simulator.faults.append(Fault(kind="mid-reset", verb="upload.chunk", count=1))
            upstream.simulator.faults.append(Fault(kind="overloaded", verb="upload.chunk", count=1))
            await upload(app, data)
            assert contents(upstream.simulator) == [sha256(data)]
            assert sum(call.verb == "upload.start" for call in upstream.simulator.calls) == 1

    play(scene)


def test_a_file_whose_answer_was_lost_is_found_by_the_instance_that_takes_over() -> None:
    async def scene() -> None:
        keys, store = projects(3), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs(), store=store) as app:
            first = await upload(app)
            ((name, (document, version)),) = (await store.scan("content/")).items()
            # As it was just before the end: the lease of an instance that died then.
            made = next(iter((await store.scan("bound/files")).values()))[0]
            home = made["project"]
            lease = {
                "v": 1,
                "by": "dead",
                "until": now() - 1,
                "born": now(),
                "project": home,
                "expires": document["expires"],
            }
            await store.commit(name, lease, version)
            for gone, (_, its) in {**await store.scan("pooled/"), **await store.scan("bound/")}.items():
                await store.delete(gone, its)
            found = await upload(app)
            assert found["name"] == first["name"]
            assert len(owned(upstream.simulator)) == 1

    play(scene)


def test_more_than_google_takes_is_refused_at_once() -> None:
    async def scene() -> None:
        keys = projects(1)
        async with gateway(google(keys), keys, MemoryBlobs()) as app:
            headers = {**AT, "x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
            headers["x-goog-upload-header-content-length"] = str(2 * 2**30 + 1)
            refused = await call(app, "POST", FILES, headers, {"file": {}})
            assert (refused.status, refused.reason) == (400, "BAD_REQUEST")
            odd = await call(
                app, "POST", FILES, headers | {"x-goog-upload-header-content-length": "many"}, {"file": {}}
            )
            assert odd.status == 400
            for body in (b"{", b"[]", b'{"file": 3}'):
                assert (
                    await call(app, "POST", FILES, {k: v for k, v in headers.items() if "length" not in k}, body)
                ).status == 400

    play(scene)


def test_a_chunk_that_came_to_nothing_is_not_in_the_hash() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(1), MemoryBlobs(), MemoryStore(now)
        async with gateway(google(keys), keys, blobs, store=store) as app:
            first, second = b"a" * 2 * MIB, b"b" * 2 * MIB
            address = await start(app)
            assert status(await chunk(app, address, "upload", first)) == (200, "active")
            blobs.down_after = 1  # pieces
            assert (await chunk(app, address, "upload, finalize", second, len(first))).status == 503
            blobs.down, blobs.down_after = False, None
            await asyncio.sleep(20)
            reads = blobs.reads
            assert status(await chunk(app, address, "upload, finalize", second, len(first))) == (200, "final")
            ((document, _),) = (await store.scan("pooled/")).values()
            assert document["sha256"] == sha256(first + second)
            assert blobs.reads == reads + 2, "read for Google alone"

    play(scene)


def test_chunks_of_unknown_length_that_do_not_fit_leave_nothing() -> None:
    async def scene() -> None:
        keys, blobs = projects(1), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            address = await start(app, size=KIB256 + 5)
            headers = {**AT, "x-goog-upload-offset": "0"}
            odd = await call(
                app, "POST", address, headers | {"x-goog-upload-command": "upload"}, pieces=[b"a" * 1000], token=None
            )
            assert status(odd) == (400, "active")
            end = {"x-goog-upload-command": "upload, finalize"}
            short = await call(app, "POST", address, headers | end, pieces=[b"a" * 1000], token=None)
            assert status(short) == (400, "active")
            assert not blobs.all
            data = b"a" * KIB256 + b"12345"
            done = await call(app, "POST", address, headers | end, pieces=[data[:70_000], data[70_000:]], token=None)
            assert status(done) == (200, "final")
            assert contents(upstream.simulator) == [sha256(data)]

    play(scene)


def test_two_chunks_of_one_upload_at_once() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as one,
            gateway(upstream, keys, blobs, store=store) as two,
        ):
            address = await start(one)
            data = b"x" * KIB256
            got = await asyncio.gather(*(chunk(app, address, "upload", data) for app in (one, two, one)))
            assert {found.status for found in got} <= {200, 409}
            asked = await chunk(two, address, "query")
            assert asked.headers["x-goog-upload-size-received"] == str(KIB256)
            ends = await asyncio.gather(
                *(chunk(app, address, "upload, finalize", b"end", KIB256) for app in (one, two, one, two))
            )
            assert (200, "final") in [status(end) for end in ends]
            assert {status(end) for end in ends} <= {(200, "final"), (409, None)}
            assert contents(upstream.simulator) == [sha256(data + b"end")]
            name = next(iter(owned(upstream.simulator)))
            assert (await call(one, "DELETE", f"/v1beta/{name}", AT)).status == 200
            assert not owned(upstream.simulator), "it counts as one use"

    play(scene)
