"""Whatever Google answers, on whichever path: no header and no body that a client gets holds a key.

The upstream here puts the key's value into everything it says: every header that may pass, and every body.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from pollux.backends.keys.contract import Key, Secret
from pollux.backends.upstream import UpstreamError
from pollux.gemini.headers import TO_CLIENT
from pollux.gemini.upload import UPLOAD_ADDRESSES
from pollux.relay.passing import WHOLE_MOST
from pollux.resources.upload_token import LIFETIME, Session, seal
from pollux.server.app import App
from tests.gateway import (
    ADMIN,
    BEGAN,
    CHAT,
    COUNT,
    GENERATE,
    HELLO,
    STREAM,
    FakeUpstream,
    Got,
    Keys,
    Says,
    Sent,
    call,
    event,
    gateway,
    play,
)
from tests.resources.pooled.scenes import MemoryBlobs
from tests.resources.pooled.scenes import gateway as pooling_gateway

KEY = "Zx9Quartz-Opaque_Value-77881"  # only its value tells that it is a key
FILES = "/upload/v1beta/files"
START = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
FINAL = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
ONCE = {"x-goog-upload-protocol": "raw", "content-type": "text/plain"}
CHATS = {"model": "gemini-3.8-flash", "messages": [{"role": "user", "content": "Hello"}]}
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsome text\r\n--b--\r\n'
OWNED = "/v1beta/files/a-1"


class Asked(NamedTuple):
    """A request of a client. `{token}` in its path stands for an upload under way."""

    method: str
    path: str
    headers: dict[str, str] = {}  # noqa: RUF012
    body: Any = b""


CALLS = [
    Asked("POST", GENERATE, body=HELLO),
    Asked("POST", STREAM, body=HELLO),
    Asked("POST", STREAM.partition("?")[0], body=HELLO),
    Asked("POST", STREAM.replace("v1beta", "v1") + "&foo=bar", body=HELLO),
    Asked("POST", CHAT, body=CHATS),
    Asked("POST", CHAT, body=CHATS | {"stream": True}),
    Asked("POST", "/v1beta/openai/embeddings", body={"model": "gemini-embedding-001", "input": "Hello"}),
    Asked("POST", "/v1beta/models/gemini-embedding-001:batchEmbedContents", body={"requests": [HELLO]}),
    Asked("POST", "/v1beta/models/imagen-4.0-generate-001:predict", body={"instances": [{"prompt": "a cat"}]}),
    Asked("POST", "/v1beta/models/veo-3.0-generate-001:predictLongRunning", body={"instances": [{"prompt": "x"}]}),
    Asked("POST", "/v1beta/interactions", body={"model": "gemini-3.8-flash", "input": "Hello"}),
    Asked("POST", "/v1beta/interactions", body={"model": "gemini-3.8-flash", "input": "Hello", "stream": True}),
    Asked("GET", "/v1beta/interactions/i-1"),
    Asked("POST", COUNT, body=HELLO),
    Asked("GET", "/v1beta/models"),
    Asked("GET", "/v1beta/models/gemini-3.8-flash"),
    Asked("GET", "/v1beta/openai/models"),
    Asked("GET", "/v1beta/openai/models/gemini-3.8-flash"),
    *(Asked("GET", f"/v1beta/{kind}") for kind in ("files", "cachedContents", "batches", "tunedModels", "corpora")),
    *(Asked("GET", f"/v1beta/openai/{kind}") for kind in ("files", "batches")),
    Asked("GET", OWNED),
    Asked("HEAD", OWNED),
    Asked("DELETE", OWNED),
    Asked("GET", OWNED + ":download?alt=media"),
    Asked("GET", "/v1beta/openai/files/a-1"),
    Asked("GET", "/v1beta/openai/files/a-1/content"),
    Asked("POST", GENERATE, body={"contents": [{"parts": [{"fileData": {"fileUri": "files/a-1"}}]}]}),
    Asked("POST", "/v1beta/cachedContents", body={"model": "models/gemini-3.8-flash", **HELLO}),
    Asked("PATCH", "/v1beta/cachedContents/c-1", body=b'{"ttl": "60s"}'),
    Asked("GET", "/v1beta/cachedContents/c-1"),
    Asked("POST", GENERATE.replace(":generate", ":batchGenerate"), body={"batch": {"displayName": "b"}}),
    Asked("POST", "/v1beta/openai/batches", body={"input_file_id": "files/a-1", "endpoint": "/v1/chat/completions"}),
    Asked("GET", "/v1beta/batches/b-1"),
    Asked("POST", "/v1beta/batches/b-1:cancel"),
    Asked("GET", "/v1beta/some/thing/new"),
    Asked("POST", FILES, START, {"file": {}}),
    Asked("POST", FILES + "?uploadType=resumable", {}, {"file": {}}),
    Asked("POST", FILES, ONCE, b"some text"),
    Asked("POST", FILES, ONCE, b"x" * (WHOLE_MOST + 1)),
    Asked("POST", "/v1beta/openai/files", {"content-type": "multipart/form-data; boundary=b"}, FORM),
    Asked("POST", FILES + "?upload_id={token}", FINAL, b"some text"),
    Asked("POST", FILES + "?upload_id={token}", {"x-goog-upload-command": "query"}),
    Asked("PUT", FILES + "?upload_id={token}", {"content-range": "bytes 0-3/8"}, b"abcd"),
    Asked("POST", "/upload/v1beta/fileSearchStores/s-1:uploadToFileSearchStore", START, {}),
    Asked("GET", "/health"),
    Asked("OPTIONS", GENERATE),
    Asked("GET", "/admin/status", {"authorization": f"Bearer {ADMIN}"}),
    Asked("GET", "/admin/explain?model=gemini-3.8-flash", {"authorization": f"Bearer {ADMIN}"}),
]


def says(sent: Sent, status: int, shape: str) -> Says | UpstreamError:
    """An answer of Google's with the key in all of it. `shape`: whole, pieces (cut in the midst of the key), long."""
    if shape == "breaks":
        return UpstreamError("reset", f"the connection of {KEY} broke")
    headers = [(name, KEY.encode()) for name in sorted(TO_CLIENT - {b"content-length", b"content-encoding"})]
    headers = [(name, text) for name, text in headers if name != b"content-type" and name not in UPLOAD_ADDRESSES]
    address = f"https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id={KEY}&key={KEY}".encode()
    headers += [(name, address) for name in UPLOAD_ADDRESSES]
    headers += [(b"Range", KEY.encode()), (b"ETag", f'"{KEY}"'.encode()), (b"X-Other", KEY.encode())]
    streams = "stream" in sent.target or b'"stream": true' in sent.body
    media = "alt=media" in sent.target or sent.target.endswith("/content")
    if status >= 300:
        data = json.dumps({"error": {"code": status, "message": f"no: {KEY}", "status": "INVALID_ARGUMENT"}}).encode()
        kind = b"application/json"
    elif streams and "alt=sse" not in sent.target and "openai" not in sent.target and "interactions" not in sent.target:
        data, kind = json.dumps([good(), good()]).encode(), b"application/json"
    elif streams:
        data, kind = event(good()) + event(good()) + event({"error": {"message": KEY}}), b"text/event-stream"
    elif media:
        data, kind = KEY.encode() * 3, b"application/octet-stream"
    else:
        data, kind = json.dumps(good()).encode(), b"application/json"
    if shape == "long":
        data += b" " * (WHOLE_MOST + 1) + KEY.encode()
    headers.append((b"Content-Type", kind))
    if shape == "pieces":
        at = data.index(KEY.encode()) + 9
        return Says([data[:at], data[at:]], status, headers)
    return Says([data], status, [*headers, (b"Content-Length", b"%d" % len(data))], length=len(data))


def good() -> dict[str, Any]:
    """An answer that serves for anything."""
    part = {"text": f"your key is {KEY}"}
    file = {"name": "files/a-1", "displayName": KEY, "state": "ACTIVE", "uri": f"https://google.test/v1beta/{KEY}"}
    return {
        "candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}],
        "choices": [{"delta": {"content": KEY}, "message": {"content": KEY}, "finish_reason": "stop"}],
        "usageMetadata": {"promptTokenCount": 2},
        "totalTokens": 2,
        "nextPageToken": KEY,
        "file": file,
        "data": [{"id": "files/a-1", "filename": KEY}],
        "models": [{"name": f"models/{KEY}"}],
        **{kind: [file] for kind in ("files", "cachedContents", "batches", "operations", "tunedModels", "corpora")},
        **file,
    }


class OpaqueKeys(Keys):
    async def value(self, key_id: str) -> Secret:
        return Secret(KEY)


def opened(upstream: FakeUpstream, files: str) -> AbstractAsyncContextManager[App]:
    keys = OpaqueKeys([Key("k1", "p1"), Key("k2", "p2")])
    return gateway(upstream, keys) if files == "direct" else pooling_gateway(upstream, keys, MemoryBlobs())


def shown(got: Got) -> Iterator[str]:
    """All that a client can read of an answer, also within the token of an upload."""
    yield got.body.decode("latin-1")
    for name, value in got.headers.items():
        yield f"{name}: {value}"
        for token in parse_qs(urlsplit(value).query).get("upload_id", []):
            text = token.partition(".")[0]
            yield base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1") if len(text) > 50 else ""


def holds_no_key(got: Got) -> None:
    for text in shown(got):
        for piece in (KEY, KEY[4:], KEY[:-4]):
            assert piece not in text, text[:300].replace(KEY, "THE KEY")


def walk(asked: Asked, status: int, shape: str, files: str) -> None:
    async def scene() -> None:
        token = seal(Session(f"{FILES}?upload_id=G1", "p1", "k1", "tester", BEGAN + LIFETIME), Secret(KEY))
        upstream = FakeUpstream(lambda sent: says(sent, status, shape))
        async with opened(upstream, files) as app:
            got = await call(app, asked.method, asked.path.replace("{token}", token), asked.headers, asked.body)
            assert got.status or got.broken
            holds_no_key(got)
            admin = {"authorization": f"Bearer {ADMIN}"}
            found = got.headers.get("x-pollux-request-id", "")
            for path in ("/admin/status", f"/admin/requests/{found}"):
                holds_no_key(await call(app, "GET", path, admin, token=None))

    play(scene)


@pytest.mark.parametrize("files", ["direct", "pooled"])
@pytest.mark.parametrize(
    "asked", CALLS, ids=(f"{number}-{asked.method}-{asked.path}" for number, asked in zip(count(), CALLS))
)
def test_no_answer_shows_the_key(asked: Asked, files: str) -> None:
    for shape in ("whole", "pieces", "long", "breaks"):
        walk(asked, 200, shape, files)
    walk(asked, 400, "pieces", files)
    for status in (302, 308, 400, 401, 403, 404, 429, 500):
        walk(asked, status, "whole", files)


@pytest.mark.parametrize("files", ["direct", "pooled"])
def test_nor_does_an_upload_that_begins_in_one_way_and_goes_on_in_another(files: str) -> None:
    """Google takes the start, and refuses or breaks what follows, or the other way about."""

    async def scene(*statuses: int) -> None:
        rest = list(statuses)
        upstream = FakeUpstream(lambda sent: says(sent, rest.pop(0) if rest else 200, "whole"))
        async with opened(upstream, files) as app:
            began = await call(app, "POST", FILES, START, {"file": {}})
            holds_no_key(began)
            if "x-goog-upload-url" in began.headers:
                path = began.headers["x-goog-upload-url"].partition("gateway.test")[2]
                for headers, body in ((FINAL, b"some text"), ({"x-goog-upload-command": "query"}, b"")):
                    holds_no_key(await call(app, "POST", path, headers, body))
            holds_no_key(await call(app, "GET", OWNED))
            holds_no_key(await call(app, "DELETE", OWNED))

    for statuses in ((200, 200, 200), (200, 400), (200, 500, 500, 500, 500), (200, 200, 404), (400, 200), (200, 409)):
        play(lambda statuses=statuses: scene(*statuses))  # type: ignore[misc]
