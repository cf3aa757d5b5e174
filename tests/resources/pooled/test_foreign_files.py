"""Another client's file, by every way that somebody who knows its name may try."""

import asyncio
import gzip
import json
import re
from typing import Any
from urllib.parse import unquote

import pytest

from pollux.backends.store.memory import MemoryStore
from tests.gateway import CHAT, COUNT, GENERATE, Got, call, now, play, projects
from tests.pools import FaultyStore
from tests.resources.pooled.scenes import (
    AT,
    OTHER,
    TEXT,
    MemoryBlobs,
    asks,
    chunk,
    gateway,
    generate,
    google,
    owned,
    start,
    upload,
)

NAME = "files/their-notes"
URI = f"https://generativelanguage.googleapis.com/v1beta/{NAME}"
ASKED = json.dumps({"contents": [{"parts": [{"fileData": {"fileUri": URI}}]}]})
UNREADABLE = {
    "single quotes, which Google's parser takes": ASKED.replace('"', "'").encode(),
    "a comma too many": ASKED.replace("]}]}", "],}]}").encode(),
    "names without quotes": ASKED.replace('"contents"', "contents").encode(),
    "no JSON at all": b"\x0a\x10" + URI.encode(),
    "a list": f"[{ASKED}]".encode(),
    "a name that stands twice": ASKED.replace(
        f'"fileUri": "{URI}"', f'"fileUri": "{URI}", "fileUri": "hello"'
    ).encode(),
    "more values than are read": ASKED.replace("}]}", '}], "x": [' + "1," * 500_001 + "1]}", 1).encode(),
}


def seen(simulator: Any, before: int) -> list[str]:
    return [c.path for c in list(simulator.calls)[before:]]


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("path", [GENERATE, COUNT, "/v1beta/cachedContents", "/v1beta/fileSearchStores/s:importFile"])
def test_what_cannot_be_read_here_does_not_travel(path: str, body: bytes) -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            await upload(app, TEXT, {"name": NAME})
            before = len(upstream.simulator.calls)
            headers = {**AT, "content-type": "application/json"}
            got = await call(app, "POST", path, headers, body, token=OTHER)
            assert got.status in (400, 413), got.body
            assert got.reason in ("BAD_REQUEST", "BODY_TOO_LARGE")
            assert not seen(upstream.simulator, before)

    play(scene)


def test_a_compression_that_is_not_known_does_not_travel_and_a_known_one_hides_nothing() -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            await upload(app, TEXT, {"name": NAME})
            headers = {**AT, "content-encoding": "br", "content-type": "application/json"}
            for path in (GENERATE, "/v1beta/cachedContents"):
                got = await call(app, "POST", path, headers, b"whatever that is", token=OTHER)
                assert got.status == 415
            headers["content-encoding"] = "gzip"
            got = await call(app, "POST", GENERATE, headers, gzip.compress(ASKED.encode()), token=OTHER)
            assert got.status == 403

    play(scene)


SPELT = [
    URI,
    NAME,
    URI.replace("/v1beta/", "/v1/"),
    URI.replace("https", "http"),
    URI.replace("https://generativelanguage", "HTTPS://Generativelanguage"),
    URI.replace(".com", ".com:443"),
    URI.replace("/v1beta/files", "/v1beta//files"),
    URI.replace("files/", "%66iles/"),
    URI.replace("files/", "files%2F"),
    URI + "?alt=media",
    URI + ":download?alt=media",
    URI.removeprefix("https:"),
    "/v1beta/" + NAME,
    "v1beta/" + NAME,
    " " + NAME,
    NAME + "/",
]


@pytest.mark.parametrize("uri", SPELT)
def test_however_its_uri_is_spelt(uri: str) -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            await upload(app, TEXT, {"name": NAME})
            before = len(upstream.simulator.calls)
            for path in (GENERATE, COUNT):
                got = await call(app, "POST", path, AT, asks({"uri": uri}), token=OTHER)
                assert got.status == 403, got.body
            assert not seen(upstream.simulator, before)

    play(scene)


PATHS = [
    f"/v1beta/{NAME}",
    f"/v1/{NAME}",
    f"/{NAME}",
    f"//v1beta//{NAME}/",
    f"/v1beta/v1beta/{NAME}",
    f"/v1beta/{NAME}:download?alt=media",
    f"/download/v1beta/{NAME}:download?alt=media",
    f"/upload/v1beta/{NAME}",
    f"/v1beta/{NAME}".replace("their", "%74heir"),
    f"/v1beta/{NAME}".replace("files/", "files%2F"),
    f"/v1beta/{NAME}".replace("files/", "./files/"),
    f"/v1beta/{NAME}".replace("files/", "models/../files/"),
    f"/v1beta/{NAME}".replace("files/", "files;a=b/"),
    f"/v1beta/{NAME}".replace("files/", "files//"),
    f"/v1beta/{NAME}?$httpMethod=DELETE",
    f"/v1beta/openai/{NAME}",
    f"/v1beta/openai/{NAME}/content",
    f"/v1/{NAME}/content",
    f"/v1beta/openai/files/{NAME}",
]


@pytest.mark.parametrize("path", PATHS)
def test_however_its_path_is_spelt(path: str) -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            await upload(app, TEXT, {"name": NAME})
            before = len(upstream.simulator.calls)
            for method in ("GET", "HEAD", "DELETE", "PATCH", "PUT"):
                for headers in (AT, AT | {"authorization": f"Bearer {OTHER}"}):
                    got = await call(app, method, path, headers, {}, token=OTHER)
                    assert got.status in (400, 403, 404, 405), (method, got.status, got.body)
            reached = [at for at in seen(upstream.simulator, before) if NAME in unquote(at)]
            assert not reached
            assert NAME in owned(upstream.simulator)

    play(scene)


BATCH = "/v1beta/models/gemini-3.8-flash:batchGenerateContent"


def _bodies(name: str, uri: str) -> dict[str, tuple[str, Any]]:
    part = {"parts": [{"fileData": {"fileUri": uri}}]}
    both = {"parts": [{"fileData": {"mimeType": "text/plain"}, "file_data": {"file_uri": uri}}]}
    inside = {"parts": [{"fileData": {"fileUri": "gs://mine/file", "file_uri": uri}}]}
    answered = {"functionResponse": {"name": "f", "parts": [{"file_data": {"file_uri": uri}}]}}
    return {
        "both spellings": (GENERATE, {"contents": [both]}),
        "both spellings inside": (GENERATE, {"contents": [inside]}),
        "both contents": (GENERATE, {"systemInstruction": {"parts": [{"text": "a"}]}, "system_instruction": part}),
        "a field that is not known here": (GENERATE, {"contents": [{"parts": [{"newFile": {"file_uri": uri}}]}]}),
        "a picture of a film": (
            "/v1beta/models/veo-3.1-generate-preview:predictLongRunning",
            {"instances": [{"prompt": "a", "referenceImages": [{"image": {"uri": uri}}]}]},
        ),
        "an answer of a function": (GENERATE, {"contents": [{"parts": [answered]}]}),
        "a cache": ("/v1beta/cachedContents", {"model": "models/gemini-3.8-flash", "contents": [part]}),
        "a batch": (BATCH, {"batch": {"inputConfig": {"fileName": name}}}),
        "requests of a batch": (
            BATCH,
            {"batch": {"input_config": {"requests": {"requests": [{"request": {"contents": [part]}}]}}}},
        ),
        "an import": ("/v1beta/fileSearchStores/s:importFile", {"file_name": name}),
        "an interaction": (
            "/v1beta/interactions",
            {"model": "gemini-3.8-flash", "input": [{"type": "document", "uri": uri}]},
        ),
        "an interaction of unknown type": (
            "/v1beta/interactions",
            {"model": "gemini-3.8-flash", "input": [{"type": "DOCUMENT", "uri": uri}]},
        ),
        "a chat": (CHAT, {"model": "gemini-3.8-flash", "messages": [
            {"role": "user", "content": [{"type": "file", "file": {"file_id": name}}]}]}),
        "OpenAI's batch": ("/v1beta/openai/batches", {"input_file_id": name, "endpoint": "/v1/chat/completions"}),
    }  # fmt: skip


@pytest.mark.parametrize("what", _bodies("", ""))
@pytest.mark.parametrize("escaped", [False, True])
def test_wherever_it_is_named(what: str, escaped: bool) -> None:
    async def scene() -> None:
        keys = projects(1)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs()) as app:
            await upload(app, TEXT, {"name": NAME})
            before = len(upstream.simulator.calls)
            path, body = _bodies(NAME, URI)[what]
            text = json.dumps(body)
            if escaped:
                text = re.sub("[fFuU]", lambda found: f"\\u{ord(found[0]):04x}", text)
            got = await call(app, "POST", path, {**AT, "content-type": "application/json"}, text.encode(), token=OTHER)
            assert got.status == 403, got.body
            assert not seen(upstream.simulator, before)

    play(scene)


def test_after_hundreds_of_unknown_names() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as fresh,
        ):
            await upload(app, TEXT, {"name": NAME})
            before = len(upstream.simulator.calls)
            files = [{"uri": f"files/a{number}"} for number in range(600)]
            got = await generate(fresh, *files, {"uri": NAME}, token=OTHER)
            assert got.status in (403, 503), got.body
            assert not [path for path in seen(upstream.simulator, before) if path.endswith("generateContent")]

    play(scene)


def test_a_name_that_was_asked_for_before_it_was_anybodys() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(1), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as fresh,
        ):
            assert (await call(fresh, "GET", f"/v1beta/{NAME}", AT, token=OTHER)).status in (403, 404)
            await upload(app, TEXT, {"name": NAME})
            assert (await call(fresh, "GET", f"/v1beta/{NAME}", AT, token=OTHER)).status == 403
            got = await generate(fresh, {"uri": NAME}, token=OTHER)
            assert (got.status, got.reason) == (403, "FILE_OF_ANOTHER"), got.body

    play(scene)


def test_a_list_shows_nothing_while_the_store_does_not_name_the_owners() -> None:
    async def scene() -> None:
        keys, blobs, inner = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, blobs, store=inner) as app:
            file = await upload(app)
            store = FaultyStore(inner)
            async with gateway(upstream, keys, blobs, store=store) as fresh:
                store.out_until = asyncio.get_running_loop().time() + 30
                got = await call(fresh, "GET", "/v1beta/files", AT, token=OTHER)
                assert (got.status, got.reason) == (503, "STORE_DOWN")
                await asyncio.sleep(60)
                assert (await call(fresh, "GET", f"/v1beta/{file['name']}", AT, token=OTHER)).status == 403

    play(scene)


def test_a_list_that_comes_just_as_a_file_is_made() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(2), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as fresh,
        ):
            listed: list[Got] = []

            async def watch() -> None:
                while not listed or not owned(upstream.simulator):
                    listed.append(await call(fresh, "GET", "/v1beta/files", AT, token=OTHER))
                for _ in range(3):
                    listed.append(await call(fresh, "GET", "/v1beta/files", AT, token=OTHER))

            watching = asyncio.create_task(watch())
            file = await upload(app)
            await watching
            assert not [got.body for got in listed if file["name"].encode() in got.body]
            assert (await call(fresh, "GET", f"/v1beta/{file['name']}", AT, token=OTHER)).status == 403

    play(scene)


@pytest.mark.parametrize("same", [True, False], ids=["the same content", "another content"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_name_that_is_another_clients_is_not_to_be_had(number: int, same: bool) -> None:
    async def scene() -> None:
        keys, blobs, store = projects(number), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as second,
        ):
            await upload(app, TEXT, {"name": NAME})
            assert (await generate(app, {"uri": URI})).status == 200
            for at in (app, second):
                data = TEXT if same else b"something else"
                address = await start(at, {"name": NAME}, len(data), token=OTHER)
                got = await chunk(at, address, "upload, finalize", data)
                assert got.status == 409, got.body
                assert (await call(at, "GET", f"/v1beta/{NAME}", AT, token=OTHER)).status == 403
                assert (await call(at, "GET", f"/v1beta/{NAME}", AT)).status == 200
            assert len(owned(upstream.simulator)) == 1

    play(scene)


def test_an_upload_that_passes_through_does_not_take_a_name_that_is_kept_here() -> None:
    async def scene() -> None:
        keys, blobs, store = projects(3), MemoryBlobs(), MemoryStore(now)
        upstream = google(keys)
        async with (
            gateway(upstream, keys, blobs, store=store) as app,
            gateway(upstream, keys, blobs, store=store) as second,
        ):
            await upload(app, TEXT, {"name": NAME})
            blobs.down = True
            await asyncio.sleep(60)
            for at in (app, second):
                for key in ("k1", "k2", "k3"):
                    address = await start(at, {"name": NAME}, 5, token=OTHER)
                    await chunk(at, address, "upload, finalize", b"other")
                    assert (await call(at, "GET", f"/v1beta/{NAME}", AT, token=OTHER)).status == 403, key
                    assert (await call(at, "GET", f"/v1beta/{NAME}", AT)).status == 200, key

    play(scene)


@pytest.mark.parametrize(
    "name", ["files/px-mine", "mine", "cachedContents/mine", "files/a/b", "files/", "files/" + "a" * 999]
)
def test_a_client_cannot_choose_an_invalid_file_name(name: str) -> None:
    async def scene() -> None:
        keys, store = projects(2), MemoryStore(now)
        upstream = google(keys)
        async with gateway(upstream, keys, MemoryBlobs(), store=store) as app:
            headers = {**AT, "x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
            got = await call(app, "POST", "/upload/v1beta/files", headers, {"file": {"name": name}})
            assert got.status == 400, got.body
            headers = {**AT, "content-type": "multipart/related; boundary=b"}
            said = json.dumps({"file": {"name": name}})
            body = f"--b\r\ncontent-type: application/json\r\n\r\n{said}\r\n--b\r\n\r\ntext\r\n--b--\r\n".encode()
            got = await call(app, "POST", "/upload/v1beta/files?uploadType=multipart", headers, body)
            assert got.status == 400, got.body
            assert not await store.scan("bound/")
            assert not upstream.simulator.calls

    play(scene)


def test_a_name_of_a_file_that_is_not_pooled_stays_its() -> None:
    async def scene() -> None:
        keys, blobs = projects(1), MemoryBlobs()
        upstream = google(keys)
        async with gateway(upstream, keys, blobs) as app:
            blobs.down = True
            await upload(app, TEXT, {"name": NAME})
            blobs.down = False
        store = MemoryStore(now)
        async with gateway(upstream, keys, blobs, store=store) as fresh:  # its store does not know of it
            address = await start(fresh, {"name": NAME}, token=OTHER)
            got = await chunk(fresh, address, "upload, finalize", b"something else")
            assert got.status == 409, got.body
            assert await store.scan("bound/") == {}
            assert (await call(fresh, "GET", f"/v1beta/{NAME}", AT)).status == 200

    play(scene)
