"""No answer shows a key: every row of the routing table, with an upstream that echoes the key in all it says."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

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
    gateway,
    play,
)
from tests.resources.pooled.scenes import MemoryBlobs
from tests.resources.pooled.scenes import gateway as pooling_gateway

KEY = "Zx9Quartz-Opaque_Value-77881"  # looks like no key
ESCAPED_KEY = "Zx9/Quartz+Opaque=Value==77881"
FILES = "/upload/v1beta/files"
START = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
FINAL = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
ONCE = {"x-goog-upload-protocol": "raw", "content-type": "text/plain"}
CHATS = {"model": "gemini-3.8-flash", "messages": [{"role": "user", "content": "Hello"}]}
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsome text\r\n--b--\r\n'
OWNED = "/v1beta/files/a-1"


class Asked(NamedTuple):
    """A client's request. `{token}` in its path stands for the address of an upload under way."""

    method: str
    path: str
    headers: dict[str, str] = {}  # noqa: RUF012
    body: Any = b""


OF_ADMIN = {"authorization": f"Bearer {ADMIN}"}
REQUESTS: dict[str, list[Asked]] = {
    "health": [Asked("GET", "/health"), Asked("HEAD", "/health")],
    "admin": [
        Asked("GET", "/admin/status", OF_ADMIN),
        Asked("GET", "/admin/explain?model=gemini-3.8-flash", OF_ADMIN),
        Asked("GET", "/admin/nothing", OF_ADMIN),
        Asked("GET", "/admin"),
    ],
    "preflight": [Asked("OPTIONS", GENERATE)],
    "generate": [
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
        Asked("POST", GENERATE, body={"contents": [{"parts": [{"fileData": {"fileUri": "files/a-1"}}]}]}),
    ],
    "live": [Asked("GET", "/ws/live", {"upgrade": "websocket"})],
    "upload session": [
        Asked("POST", FILES + "?upload_id={token}", FINAL, b"some text"),
        Asked("POST", FILES + "?upload_id={token}", {"x-goog-upload-command": "query"}),
        Asked("PUT", FILES + "?upload_id={token}", {"content-range": "bytes 0-3/8"}, b"abcd"),
    ],
    "upload": [
        Asked("POST", FILES, START, {"file": {}}),
        Asked("POST", FILES + "?uploadType=resumable", {}, {"file": {}}),
        Asked("POST", FILES, ONCE, b"some text"),
        Asked("POST", FILES, ONCE, b"x" * (WHOLE_MOST + 1)),
        Asked("POST", "/v1beta/openai/files", {"content-type": "multipart/form-data; boundary=b"}, FORM),
        Asked("POST", "/upload/v1beta/fileSearchStores/s-1:uploadToFileSearchStore", START, {}),
    ],
    "guarded": [Asked("POST", "/v1beta/auth_tokens", body={}), Asked("GET", "/v1beta/tunedModels/t-1/permissions")],
    "list": [
        *(Asked("GET", f"/v1beta/{kind}") for kind in ("files", "cachedContents", "batches", "tunedModels", "corpora")),
        *(Asked("GET", f"/v1beta/openai/{kind}") for kind in ("files", "batches")),
    ],
    "everything else": [
        Asked("GET", "/v1beta/interactions/i-1"),
        Asked("POST", COUNT, body=HELLO),
        Asked("GET", "/v1beta/models"),
        Asked("GET", "/v1beta/models/gemini-3.8-flash"),
        Asked("GET", "/v1beta/openai/models"),
        Asked("GET", "/v1beta/openai/models/gemini-3.8-flash"),
        Asked("GET", OWNED),
        Asked("HEAD", OWNED),
        Asked("DELETE", OWNED),
        Asked("GET", OWNED + ":download?alt=media"),
        Asked("GET", "/v1beta/openai/files/a-1"),
        Asked("GET", "/v1beta/openai/files/a-1/content"),
        Asked("POST", "/v1beta/cachedContents", body={"model": "models/gemini-3.8-flash", **HELLO}),
        Asked("PATCH", "/v1beta/cachedContents/c-1", body=b'{"ttl": "60s"}'),
        Asked("GET", "/v1beta/cachedContents/c-1"),
        Asked("POST", GENERATE.replace(":generate", ":batchGenerate"), body={"batch": {"displayName": "b"}}),
        Asked(
            "POST", "/v1beta/openai/batches", body={"input_file_id": "files/a-1", "endpoint": "/v1/chat/completions"}
        ),
        Asked("GET", "/v1beta/batches/b-1"),
        Asked("POST", "/v1beta/batches/b-1:cancel"),
        Asked("GET", "/v1beta/some/thing/new"),
    ],
}
"""The name of each row of the routing table -> requests that it serves."""


# --- what Google answers ---------------------------------------------------------------------------------------------


def escaped(key: str) -> str:
    """As Google's JSON writes it inside a string."""
    return key.replace("=", "\\u003d")


def echoes(key: str) -> str:
    """A placeholder for each form of the key; `encoded` puts them in."""
    return f"plain {key}, escaped @, wholly # and partly ~, in a URL {quote(key, safe='')} or {percent(key)}."


def wholly(key: str) -> str:
    return "".join(f"\\u{ord(character):04X}" for character in key)


def percent(key: str) -> str:
    return "".join(f"%{ord(character):02x}" for character in key)


def encoded(answer: Any, key: str) -> bytes:
    text = (
        json.dumps(answer).replace("escaped @", f"escaped {escaped(key)}").replace("wholly #", f"wholly {wholly(key)}")
    )
    return text.replace("partly ~", f"partly {wholly(key[:1])}{key[1:]}").encode()


def says(sent: Sent, status: int, shape: str, key: str) -> Says | UpstreamError:
    """An answer with the key in every header and in its body, in each of its forms.

    `shape`: whole, pieces (cut within the key), long, breaks (no answer at all).
    """
    if shape == "breaks":
        return UpstreamError("reset", f"the connection of {key} broke")
    body, kind = answered(sent, status, key)
    if shape == "long":
        body += b" " * (WHOLE_MOST + 1) + key.encode()
    headers = [*echoing_headers(key), (b"Content-Type", kind)]
    if shape == "pieces":
        at = body.index(key.encode()) + 9
        return Says([body[:at], body[at:]], status, headers)
    return Says([body], status, [*headers, (b"Content-Length", b"%d" % len(body))], length=len(body))


def echoing_headers(key: str) -> list[tuple[bytes, bytes]]:
    """Every header that may pass, and others that Google, or a proxy in front of it, may send."""
    text = f"{key}; {quote(key, safe='')}; {percent(key)}; {wholly(key)}".encode()
    others = (b"location", b"link", b"set-cookie", b"range", b"x-goog-request-id", b"www-authenticate", b"x-other")
    written_below = {b"content-length", b"content-encoding", b"content-type", *UPLOAD_ADDRESSES}
    headers = [(name.title(), text) for name in sorted({*TO_CLIENT, *others} - written_below)]
    for value in (key, quote(key, safe="")):
        address = f"https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id={value}&key={value}"
        headers += [(name, address.encode()) for name in UPLOAD_ADDRESSES]
    return headers


def answered(sent: Sent, status: int, key: str) -> tuple[bytes, bytes]:
    """The body, and its content type."""
    streams = "stream" in sent.target or b'"stream": true' in sent.body
    if status >= 300:
        error = {"code": status, "message": f"no: {echoes(key)}", "status": "INVALID_ARGUMENT"}
        return encoded({"error": error}, key), b"application/json"
    if streams and "alt=sse" not in sent.target and "openai" not in sent.target and "interactions" not in sent.target:
        return encoded([good(key), good(key)], key), b"application/json"
    if streams:
        events = (good(key), good(key), {"error": {"message": echoes(key)}})
        return b"".join(b"data: " + encoded(each, key) + b"\r\n\r\n" for each in events), b"text/event-stream"
    if "alt=media" in sent.target or sent.target.endswith("/content"):
        return key.encode() * 3, b"application/octet-stream"
    return encoded(good(key), key), b"application/json"


def good(key: str) -> dict[str, Any]:
    """An answer that fits every request."""
    text = echoes(key)
    part = {"text": f"your key is {text}"}
    file = {"name": "files/a-1", "displayName": text, "state": "ACTIVE", "uri": f"https://google.test/v1beta/{key}"}
    return {
        "candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}],
        "choices": [{"delta": {"content": text}, "message": {"content": text}, "finish_reason": "stop"}],
        "usageMetadata": {"promptTokenCount": 2},
        "totalTokens": 2,
        "nextPageToken": key,
        "file": file,
        "data": [{"id": "files/a-1", "filename": text}],
        "models": [{"name": f"models/{key}"}],
        **{kind: [file] for kind in ("files", "cachedContents", "batches", "operations", "tunedModels", "corpora")},
        **file,
    }


# --- what the client gets --------------------------------------------------------------------------------------------


class FixedKeys(Keys):
    """Two keys with one value."""

    def __init__(self, value: str) -> None:
        super().__init__([Key("k1", "p1"), Key("k2", "p2")])
        self._values = dict.fromkeys(self._values, value)


def opened(upstream: FakeUpstream, files: str, key: str = KEY) -> AbstractAsyncContextManager[App]:
    keys = FixedKeys(key)
    return gateway(upstream, keys) if files == "direct" else pooling_gateway(upstream, keys, MemoryBlobs())


def record_rows(app: App) -> list[str]:
    """The names of the rows that serve requests from now on, in turn."""
    served: list[str] = []

    def recording(row: Any) -> Any:
        async def serve(*given: Any) -> None:
            served.append(row.name)
            await row.serve(*given)

        return row._replace(serve=serve)

    app.routes.own = tuple(recording(row) for row in app.routes.own)
    app.routes.api = tuple(recording(row) for row in app.routes.api)
    return served


def shown(got: Got) -> Iterator[str]:
    """All that a client can read of an answer, also within the token of an upload."""
    yield got.body.decode("latin-1")
    for name, value in got.headers.items():
        yield f"{name}: {value}"
        for token in parse_qs(urlsplit(value).query).get("upload_id", []):
            text = token.partition(".")[0]
            yield base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1") if len(text) > 50 else ""


def check_no_key(got: Got, key: str = KEY) -> None:
    for text in shown(got):
        unescaped = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
        for read in (text, unescaped, unquote(text)):
            for piece in (key, key[4:], key[:-4]):
                assert piece not in read, text[:300].replace(key, "THE KEY")


async def check_answer(row: str, asked: Asked, status: int, shape: str, files: str, key: str) -> None:
    token = seal(Session(f"{FILES}?upload_id=G1", "p1", "k1", "tester", BEGAN + LIFETIME), Secret(key))
    upstream = FakeUpstream(lambda sent: says(sent, status, shape, key))
    async with opened(upstream, files, key) as app:
        served = record_rows(app)
        got = await call(app, asked.method, asked.path.replace("{token}", token), asked.headers, asked.body)
        assert served == [row]
        assert got.status or got.broken
        check_no_key(got, key)
        found = got.headers.get("x-pollux-request-id", "")
        for path in ("/admin/status", f"/admin/requests/{found}"):
            check_no_key(await call(app, "GET", path, OF_ADMIN, token=None), key)


def check_all(row: str, asked: Asked, files: str, key: str, answers: Iterable[tuple[int, str]]) -> None:
    async def scene() -> None:
        for status, shape in answers:
            await check_answer(row, asked, status, shape, files, key)

    play(scene)


WALK = [(row, asked) for row, requests in REQUESTS.items() for asked in requests]
each_request = pytest.mark.parametrize(
    ("row", "asked"), WALK, ids=[f"{row}-{number}-{asked.method}" for number, (row, asked) in enumerate(WALK)]
)
each_way_of_files = pytest.mark.parametrize("files", ["direct", "pooled"])


def test_every_row_of_the_routing_table_has_a_request() -> None:
    """Fails when a row is added: give it requests in REQUESTS."""

    async def scene() -> None:
        async with opened(FakeUpstream([]), "direct") as app:
            assert [row.name for row in (*app.routes.own, *app.routes.api)] == list(REQUESTS)

    play(scene)


@each_way_of_files
@each_request
def test_no_answer_shows_the_key(row: str, asked: Asked, files: str) -> None:
    good = [(200, shape) for shape in ("whole", "pieces", "long", "breaks")]
    refused = [(status, "whole") for status in (302, 308, 400, 401, 403, 404, 429, 500)]
    check_all(row, asked, files, KEY, [*good, (400, "pieces"), *refused])


@each_way_of_files
@each_request
def test_no_answer_shows_a_key_that_json_and_urls_write_otherwise(row: str, asked: Asked, files: str) -> None:
    check_all(row, asked, files, ESCAPED_KEY, [(200, "whole"), (200, "pieces"), (400, "whole"), (429, "pieces")])


@each_way_of_files
def test_no_step_of_an_upload_shows_the_key_when_another_step_fails(files: str) -> None:
    """Google accepts the start and refuses or breaks what follows, or refuses the start."""

    async def scene(*statuses: int) -> None:
        rest = list(statuses)
        upstream = FakeUpstream(lambda sent: says(sent, rest.pop(0) if rest else 200, "whole", KEY))
        async with opened(upstream, files) as app:
            began = await call(app, "POST", FILES, START, {"file": {}})
            check_no_key(began)
            if "x-goog-upload-url" in began.headers:
                path = began.headers["x-goog-upload-url"].partition("gateway.test")[2]
                for headers, body in ((FINAL, b"some text"), ({"x-goog-upload-command": "query"}, b"")):
                    check_no_key(await call(app, "POST", path, headers, body))
            check_no_key(await call(app, "GET", OWNED))
            check_no_key(await call(app, "DELETE", OWNED))

    for statuses in ((200, 200, 200), (200, 400), (200, 500, 500, 500, 500), (200, 200, 404), (400, 200), (200, 409)):
        play(lambda statuses=statuses: scene(*statuses))  # type: ignore[misc]
