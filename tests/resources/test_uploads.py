"""Uploads without a network: our addresses, who may use them, what passes."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from gemini_simulator import Fault
from pollux.backends.keys.contract import Key, Secret
from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import UpstreamError
from pollux.cli.terminal import as_text
from pollux.cli.watch import request_view
from pollux.redaction import redact_known
from pollux.relay.client import STALLED_AFTER
from pollux.resources.upload_token import LIFETIME, claimed, seal
from pollux.resources.uploads import HELD_MOST
from pollux.server.app import App
from tests.gateway import (
    ADMIN,
    BEGAN,
    TOKEN,
    FakeUpstream,
    Got,
    Keys,
    Says,
    call,
    gateway,
    now,
    play,
    projects,
    simulated,
    value_of,
    whole,
)
from tests.resources.test_ownership import owner_of

FILES = "/upload/v1beta/files"
START = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start", "host": "pollux.example:3145"}
HOST = {"host": "pollux.example:3145"}
KIB256 = 256 * 1024
DONE = {"file": {"name": "files/a-1", "uri": "https://generativelanguage.googleapis.com/v1beta/files/a-1"}}
AT_GOOGLE = "https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id=G1&upload_protocol=resumable"


async def start(app: Any, path: str = FILES, headers: Mapping[str, str] | None = None, **more: Any) -> str:
    """The path and query of a new session's address."""
    got = await call(app, "POST", path, {**START, **(headers or {})}, {"file": {"displayName": "Notes"}}, **more)
    assert got.status == 200, got.body
    assert got.headers["x-goog-upload-status"] == "active"
    return got.headers["x-goog-upload-url"]


def target(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.path}?{parts.query}"


async def send(
    app: Any, address: str, command: str, data: bytes = b"", offset: int = 0, *, token: str | None = None, **more: Any
) -> Got:
    headers = {**HOST, "x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
    return await call(
        app, "POST", target(address), {**headers, "content-length": str(len(data))}, data, token=token, **more
    )


def state(got: Got) -> tuple[int, str | None]:
    return got.status, got.headers.get("x-goog-upload-status")


def starts(address: str = AT_GOOGLE, **more: str) -> Says:
    headers = {"Content-Length": "0", "X-Goog-Upload-URL": address, "X-Goog-Upload-Status": "active", **more}
    return Says([], headers=[(name.encode(), value.encode()) for name, value in headers.items()], length=0)


def final() -> Says:
    says = whole(DONE)
    return replace(says, headers=[*says.headers, (b"X-Goog-Upload-Status", b"final")])


# --- a whole upload --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/upload/v1/files", FILES, "/v1beta/upload/v1beta/files", "//upload/v1alpha/files/"])
def test_from_the_start_to_the_file(path: str) -> None:
    async def scene() -> None:
        google = simulated(projects(4), {})
        async with gateway(google, projects(4)) as app:
            address = await start(app, path)
            assert address.startswith("http://pollux.example:3145/upload/v1")
            assert "generativelanguage" not in address
            assert state(await send(app, address, "upload", b"a" * KIB256)) == (200, "active")
            asked = await send(app, address, "query")
            assert asked.headers["x-goog-upload-size-received"] == str(KIB256)
            done = await send(app, address, "upload, finalize", b"end", KIB256)
            assert state(done) == (200, "final")
            file = done.json["file"]
            assert file["sizeBytes"] == str(KIB256 + 3)
            assert done.headers["content-length"] == str(len(done.body))
            owner = await owner_of(app.ownership, file["name"])
            assert owner is not None
            assert (owner.project, owner.client) == (google.simulator.calls[0].project, "tester")
            again = await send(app, address, "upload, finalize", b"end", KIB256)
            assert (state(again), again.json) == ((200, "final"), done.json), (
                "a token of a finished upload: Google says so"
            )

    play(scene)


def test_a_preferred_key_begins_it() -> None:
    async def scene() -> None:
        google = simulated(projects(4), {})
        async with gateway(google, projects(4)) as app:
            for _ in range(2):
                await start(app, headers={"x-pollux-key": "k3"})
            google.simulator.faults.append(Fault(kind="invalid-key", key="k3", count=2))
            await start(app, headers={"x-pollux-key": "k3"})
            await start(app)
            used = [made.key for made in google.simulator.calls]
            assert used[:3] == ["k3", "k3", "k3"]
            assert "k3" not in used[3:], "it is set aside"
            assert len(used) == 5

    play(scene)


def test_uris_in_the_answer_point_to_the_gateway_and_the_binding_lasts_as_long_as_the_file() -> None:
    async def scene() -> None:
        ends = {"file": DONE["file"] | {"expirationTime": "2026-09-23T00:00:00Z"}}
        async with gateway(FakeUpstream([starts(), whole(ends)]), projects(1)) as app:
            done = await send(app, await start(app), "upload, finalize", b"x")
            assert done.json["file"]["uri"] == "http://pollux.example:3145/v1beta/files/a-1"
            owner = await owner_of(app.ownership, "files/a-1")
            assert owner is not None
            assert owner.expires > BEGAN

    play(scene)


def test_exactly_what_was_sent_arrives_and_no_key_with_it() -> None:
    async def scene() -> None:
        google = FakeUpstream([starts(), final()])
        pieces = [b"a" * 70_000, b"b", b"c" * 200_000]
        async with gateway(google, projects(1)) as app:
            address = await start(app)
            headers = {
                **HOST,
                "x-goog-upload-command": "upload, finalize",
                "x-goog-upload-offset": "0",
                "cookie": "c=1",
            }
            headers |= {"content-length": str(sum(map(len, pieces))), "authorization": f"Bearer {TOKEN}"}
            assert (await call(app, "POST", target(address), headers, pieces=pieces, token=None)).status == 200
        first, chunk = google.sent
        assert first.key == "k1"
        assert first.target == FILES
        assert chunk.target == "/upload/v1beta/files?upload_id=G1&upload_protocol=resumable"
        assert chunk.body == b"".join(pieces)
        names = {name for name, _ in chunk.headers}
        assert {"x-goog-upload-command", "x-goog-upload-offset"} <= names
        assert names.isdisjoint({"x-goog-api-key", "authorization", "cookie"})

    play(scene)


def test_a_store_has_uploads_of_its_own() -> None:
    async def scene() -> None:
        there = "https://generativelanguage.googleapis.com/upload/v1beta/fileSearchStores/s1:uploadToFileSearchStore?upload_id=G"
        operation = {"name": "fileSearchStores/s1/upload/operations/o1"}
        google = FakeUpstream([starts(there), whole(operation)])
        async with gateway(google, projects(1)) as app:
            address = await start(app, "/upload/v1beta/fileSearchStores/s1:uploadToFileSearchStore")
            assert urlsplit(address).path == "/upload/v1beta/fileSearchStores/s1:uploadToFileSearchStore"
            assert (await send(app, address, "upload, finalize", b"x")).json == operation
            assert google.sent[1].target == there.removeprefix("https://generativelanguage.googleapis.com")
            owner = await owner_of(app.ownership, "fileSearchStores/s1")
            assert owner is not None

    play(scene)


def test_the_older_protocol_with_its_location() -> None:
    async def scene() -> None:
        there = "https://generativelanguage.googleapis.com/upload/v1beta/files?uploadType=resumable&upload_id=G"
        begins = Says([], headers=[(b"Location", there.encode()), (b"Content-Length", b"0")], length=0)
        goes_on = Says([], 308, [(b"Range", b"bytes=0-3"), (b"Content-Length", b"0")], length=0)
        google = FakeUpstream([begins, goes_on, whole(DONE)])
        async with gateway(google, projects(1)) as app:
            got = await call(app, "POST", FILES + "?uploadType=resumable", HOST, {})
            address = target(got.headers["location"])
            more = await call(
                app, "PUT", address, HOST | {"content-range": "bytes 0-3/8", "content-length": "4"}, b"abcd", token=None
            )
            assert (more.status, more.headers["range"]) == (308, "bytes=0-3")
            last = await call(
                app, "PUT", address, HOST | {"content-range": "bytes 4-7/8", "content-length": "4"}, b"efgh", token=None
            )
            assert last.status == 200
        assert [(s.method, s.header("content-range"), s.body) for s in google.sent[1:]] == [
            ("PUT", "bytes 0-3/8", b"abcd"), ("PUT", "bytes 4-7/8", b"efgh")
        ]  # fmt: skip

    play(scene)


@pytest.mark.parametrize("protocol", ["raw", "multipart"])
def test_all_in_one_request(protocol: str) -> None:
    kind, data = "text/plain", b"hello " * 20_000
    if protocol == "multipart":
        kind = "multipart/related; boundary=xx"
        head = b'--xx\r\ncontent-type: application/json\r\n\r\n{"file":{"displayName":"N"}}\r\n'
        head += b"--xx\r\ncontent-type: text/plain\r\n\r\n"
        data = head + data + b"\r\n--xx--\r\n"

    async def scene() -> None:
        google = simulated(projects(2), {})
        async with gateway(google, projects(2), max_body=1000) as app:
            headers = {
                **HOST,
                "x-goog-upload-protocol": protocol,
                "content-type": kind,
                "content-length": str(len(data)),
            }
            pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
            got = await call(app, "POST", FILES, headers, pieces=pieces)
            assert got.json["file"]["sizeBytes"] == "120000"
            assert (await call(app, "POST", FILES, headers, pieces=pieces, token="another")).status == 401
            assert len(google.simulator.calls) == 1
            assert google.simulator.calls[0].key in ("k1", "k2")

    play(scene)


# --- who is let in ---------------------------------------------------------------------------------------------------


async def _refused(app: App, google: FakeUpstream, address: str, reason: str, **more: Any) -> Got:
    sent = len(google.sent)
    got = await send(app, address, "upload, finalize", b"data", **more)
    assert (got.reason, len(google.sent)) == (reason, sent), "and nothing is sent"
    assert got.status in (401, 403)
    assert "x-goog-upload-status" not in got.headers
    return got


def with_token(address: str, token: str) -> str:
    return f"{address.partition('upload_id=')[0]}upload_id={token}&upload_protocol=resumable"


def token_of(address: str) -> str:
    return address.partition("upload_id=")[2].partition("&")[0]


def test_forged_addresses_are_refused() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda _: starts())
        async with gateway(google, projects(2)) as app:
            address = await start(app)
            token = token_of(address)
            mine = claimed(token)
            forged = [
                "G1",
                "x.y",
                "",
                token[:-1] + ("A" if token[-1] != "A" else "Q"),
                seal(mine, Secret("AQ.a-value-of-somebody")),
                seal(mine._replace(key="k9"), Secret(value_of(mine.key))),
                seal(mine._replace(key="k1" if mine.key == "k2" else "k2"), Secret(value_of(mine.key))),
                seal(mine._replace(target="/v1beta/models"), Secret(TOKEN)),
            ]
            for attempt in forged:
                for given in (None, TOKEN):  # a client's own token opens no upload
                    await _refused(app, google, with_token(address, attempt), "BAD_UPLOAD_ID", token=given)
            elsewhere = f"/v1beta/models/m:generateContent?upload_id={token}"
            assert (await call(app, "POST", elsewhere, HOST, b"{}", token=None)).reason == "NO_TOKEN"
            assert len(google.sent) == 1

    play(scene)


def test_an_address_ends_after_a_day() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda s: starts() if s.header("x-goog-upload-command") == "start" else final())
        async with gateway(google, projects(1)) as app:
            address = await start(app)
            await asyncio.sleep(LIFETIME - 1)
            assert (await send(app, address, "upload", b"x")).status == 200
            await asyncio.sleep(2)
            got = await _refused(app, google, address, "BAD_UPLOAD_ID")
            assert "anew" in got.message

    play(scene)


def test_it_is_for_the_client_who_began() -> None:
    async def scene() -> None:
        google = FakeUpstream(lambda s: starts() if s.header("x-goog-upload-command") == "start" else final())
        async with gateway(google, projects(1)) as app:
            both = Tokens([f"tester={TOKEN}", "other=another-token-of-a-client"], ADMIN, query_token=True)
            app.admission.tokens = both
            address = await start(app)
            assert (await send(app, address, "query", token=TOKEN)).status == 200
            got = await _refused(app, google, address, "UPLOAD_OF_ANOTHER", token="another-token-of-a-client")
            assert got.status == 403
            app.admission.tokens = Tokens(["other=another-token-of-a-client"], ADMIN, query_token=True)
            got = await _refused(app, google, address, "BAD_UPLOAD_ID")
            assert "client" in got.message

    play(scene)


def test_while_tokens_cannot_be_read_no_upload_is_refused_for_good() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda _: starts()), projects(1)) as app:
            address = await start(app)
            app.admission.tokens = Tokens([], ADMIN, query_token=True).joined(None)
            got = await send(app, address, "upload", b"x")
            assert (got.status, got.reason) == (503, "TOKENS_UNREADABLE")

    play(scene)


def test_the_key_that_began_is_gone() -> None:
    async def scene() -> None:
        google, keys = FakeUpstream(lambda _: starts()), projects(2)
        async with gateway(google, keys) as app:
            address = await start(app)
            keys.all = tuple(key for key in keys.all if key.id != claimed(token_of(address)).key)
            got = await _refused(app, google, address, "BAD_UPLOAD_ID")
            assert "key" in got.message

    play(scene)


def test_another_gateway_of_the_same_pool_goes_on_and_one_of_another_pool_does_not() -> None:
    async def scene() -> None:
        google, store = simulated(projects(2), {}), MemoryStore(now)
        async with gateway(google, projects(2), store=store) as one:
            address = await start(one)
            assert state(await send(one, address, "upload", b"a" * KIB256)) == (200, "active")
        async with gateway(google, projects(2), store=store) as two:
            done = await send(two, address, "upload, finalize", b"end", KIB256)
            assert state(done) == (200, "final")
            assert (await owner_of(two.ownership, done.json["file"]["name"])) is not None
        other = projects(2)
        other._values = {name: value + "-of-another-pool" for name, value in other._values.items()}
        fake = FakeUpstream([])
        async with gateway(fake, other) as three:
            await _refused(three, fake, address, "BAD_UPLOAD_ID")

    play(scene)


def test_a_key_that_was_set_aside_does_not_end_what_it_began() -> None:
    async def scene() -> None:
        keys = Keys([Key("k1", "p1"), Key("k2", "p1")])
        google = simulated(keys, {})
        async with gateway(google, keys) as app:
            address = await start(app)
            began = google.simulator.calls[0].key
            google.simulator.faults.append(Fault(kind="invalid-key", key=began, verb="generateContent"))
            assert (await call(app, headers={"x-pollux-key": began or ""})).status == 200, "by the other key"
            assert began in app.projects.health.value.keys
            assert state(await send(app, address, "upload, finalize", b"x")) == (200, "final")

    play(scene)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_wrong_offset_is_googles_to_refuse_and_the_session_lives() -> None:
    async def scene() -> None:
        async with gateway(simulated(projects(1), {}), projects(1)) as app:
            address = await start(app)
            await send(app, address, "upload", b"a" * KIB256)
            wrong = await send(app, address, "upload, finalize", b"x", KIB256 + 7)
            assert state(wrong) == (400, "active")
            assert b"bytes have been received" in wrong.body
            assert state(await send(app, address, "upload, finalize", b"x", KIB256)) == (200, "final")

    play(scene)


def test_cancelled() -> None:
    async def scene() -> None:
        async with gateway(simulated(projects(1), {}), projects(1)) as app:
            address = await start(app)
            assert state(await send(app, address, "cancel")) == (200, "cancelled")
            assert state(await send(app, address, "upload", b"a" * KIB256)) == (400, "cancelled")

    play(scene)


def test_an_overloaded_google_passes_without_a_status_so_that_sdks_try_again() -> None:
    async def scene() -> None:
        google = simulated(projects(1), {})
        async with gateway(google, projects(1)) as app:
            address = await start(app)
            google.simulator.faults.append(Fault(kind="overloaded", count=1))
            assert state(await send(app, address, "upload", b"a" * KIB256)) == (503, None)
            assert state(await send(app, address, "upload", b"a" * KIB256)) == (200, "active")
            assert len(google.simulator.calls) == 3, "what had a body is never sent again from here"

    play(scene)


@pytest.mark.parametrize(("kind", "status"), [("reset", 502), ("hang", 504)])
def test_no_answer_to_a_chunk(kind: str, status: int) -> None:
    async def scene() -> None:
        trouble = UpstreamError("reset" if kind == "reset" else "timeout", "broke")
        google = FakeUpstream([starts(), trouble, final()])
        async with gateway(google, projects(1)) as app:
            address = await start(app)
            got = await send(app, address, "upload, finalize", b"x")
            assert state(got) == (status, None)
            assert state(await send(app, address, "upload, finalize", b"x")) == (200, "final")

    play(scene)


def test_a_start_is_tried_elsewhere() -> None:
    async def scene() -> None:
        google = simulated(projects(3), {})
        google.simulator.faults += [Fault(kind="overloaded", count=1), Fault(kind="invalid-key", count=1)]
        async with gateway(google, projects(3)) as app:
            await start(app)
        assert len({call.key for call in google.simulator.calls}) == 3

    play(scene)


@pytest.mark.parametrize("size", [4, HELD_MOST + 1])
def test_what_may_have_arrived_is_sent_once(size: int) -> None:
    async def scene() -> None:
        google = simulated(projects(3), {})
        google.simulator.faults.append(Fault(kind="overloaded", count=1))
        async with gateway(google, projects(3)) as app:
            headers = {**HOST, "x-goog-upload-protocol": "raw", "content-type": "text/plain"}
            assert (await call(app, "POST", FILES, headers, b"x" * size)).status == 503
            assert len(google.simulator.calls) == 1

    play(scene)


def test_a_small_one_costs_no_client_a_bad_key_and_a_large_one_can_be_sent_again() -> None:
    async def scene() -> None:
        google = simulated(projects(4), {})
        async with gateway(google, projects(4)) as app:
            headers = {**HOST, "x-goog-upload-protocol": "raw", "content-type": "text/plain"}
            google.simulator.faults.append(Fault(kind="invalid-key", count=1))
            assert (await call(app, "POST", FILES, headers, b"data")).json["file"]["sizeBytes"] == "4"
            assert len(google.simulator.calls) == 2
            google.simulator.faults.append(Fault(kind="invalid-key", count=1))
            large = b"x" * (HELD_MOST + 1)
            refused = await call(app, "POST", FILES, headers, large)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert (await call(app, "POST", FILES, headers, large)).status == 200
            assert len({call.key for call in google.simulator.calls}) == 4

    play(scene)


class Stops:
    """A body of which the first pieces come, and then nothing, or the client's end."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)

    async def __call__(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)


async def _raw(app: App, address: str, receive: Stops) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    path, _, query = target(address).partition("?")
    headers = [(b"content-length", b"100"), (b"x-goog-upload-command", b"upload"), (b"host", b"pollux.example")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": headers}
    await app.routes(scope, receive, keep)
    return sent


PIECE = {"type": "http.request", "body": b"some", "more_body": True}


def test_a_client_that_leaves_is_noticed_and_recorded() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([starts()]), projects(1)) as app:
            address = await start(app)
            assert await _raw(app, address, Stops(PIECE, {"type": "http.disconnect"})) == []
            assert app.journal.endings == {"client-gone": 1}
            assert app.journal.under_way == 0

    play(scene)


def test_a_body_that_stalls_ends() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([starts()]), projects(1)) as app:
            address = await start(app)
            began = now()
            sent = await _raw(app, address, Stops(PIECE))
            assert sent[0]["status"] == 408
            assert now() - began == pytest.approx(STALLED_AFTER, abs=0.1)

    play(scene)


def test_with_an_invalid_host_no_upload_starts() -> None:
    async def scene() -> None:
        google = FakeUpstream([starts()])
        async with gateway(google, projects(1)) as app:
            got = await call(app, "POST", FILES, {**START, "host": "a b"}, {})
            assert (got.status, got.reason, google.sent) == (400, "BAD_REQUEST", [])

    play(scene)


# --- addresses and records -------------------------------------------------------------------------------------------


def test_below_a_public_url() -> None:
    async def scene() -> None:
        google = simulated(projects(1), {})
        async with gateway(google, projects(1), public_url="https://pollux.example/gemini") as app:
            for front in ("", "/gemini"):  # the proxy in front may take the prefix off, or leave it
                address = await start(app, front + FILES)
                assert address.startswith("https://pollux.example/gemini/upload/v1beta/files?upload_id=")
                inner = address.replace("/gemini/", front + "/")
                assert state(await send(app, inner, "upload, finalize", b"x")) == (200, "final")

    play(scene)


@pytest.mark.parametrize("address", ["nonsense", "https://[", "", "https://google.test/" + "x" * 9000])
def test_with_an_invalid_upload_address_no_upload_starts(address: str) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([starts(address)]), projects(1)) as app:
            got = await call(app, "POST", FILES, START, {})
            assert (got.status, got.reason) == (503, "UPSTREAM_ERROR")
            assert "x-goog-upload-url" not in got.headers

    play(scene)


def test_a_key_in_googles_address_goes_no_further() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([starts(AT_GOOGLE + "&key=" + value_of("k1"))]), projects(1)) as app:
            address = await start(app)
            assert "key=" not in claimed(token_of(address)).target
            assert value_of("k1") not in address

    play(scene)


def test_records_and_logs_show_uploads_and_never_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scene() -> None:
        async with gateway(simulated(projects(1), {}), projects(1)) as app:
            address = await start(app)
            got = await send(app, address, "upload, finalize", b"12345")
            bad = await send(app, with_token(address, "x" + token_of(address)), "upload")
            assert bad.status == 401
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
            said = record.as_json()
            assert (said["call"], said["client"], said["project"], said["key"]) == (
                "upload-chunk",
                "tester",
                "p1",
                "k1",
            )
            assert (
                said["attempts"][0] | {"detail": "5 bytes passed", "cause": "ok", "status": "200"}
                == said["attempts"][0]
            )
            kept = json.dumps([r.as_json() for r in app.journal._recent.values()]) + caplog.text + repr(app.journal)
            assert token_of(address)[:40] not in kept

    play(scene)


def test_a_browser_may_read_the_address() -> None:
    async def scene() -> None:
        google = simulated(projects(1), {})
        async with gateway(google, projects(1), cors_origins=("https://page.example",)) as app:
            got = await call(app, "POST", FILES, {**START, "origin": "https://page.example"}, {})
            exposed = got.headers["access-control-expose-headers"].split(", ")
            assert {"x-goog-upload-url", "x-goog-upload-status", "x-pollux-key", "retry-after"} <= set(exposed)

    play(scene)


def test_explain_tells_how_much_passed() -> None:
    async def scene() -> None:
        async with gateway(simulated(projects(1), {}), projects(1)) as app:
            got = await send(app, await start(app), "upload, finalize", b"12345")
            admin = {"authorization": f"Bearer {ADMIN}"}
            shown = await call(app, "GET", f"/admin/requests/{got.headers['x-pollux-request-id']}", admin)
            text = as_text(request_view(shown.json))
            assert "upload-chunk" in text
            assert "a call without a model on p1 (key k1): ok: 5 bytes passed" in text

    play(scene)


def test_an_address_in_a_log_line_is_redacted() -> None:
    text = "POST /upload/v1beta/files?upload_id=abc.DEF-1_2&upload_protocol=resumable"
    assert redact_known(text) == "POST /upload/v1beta/files?upload_id=[redacted]&upload_protocol=resumable"
    assert "abc" not in redact_known("u=%2Ffiles%3Fupload_id%3Dabc.DEF%26x")


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_part_of_a_file_is_asked_for_and_passed_as_it_is() -> None:
    async def scene() -> None:
        headers = [(b"Content-Type", b"video/mp4"), (b"Content-Range", b"bytes 2-5/9"), (b"Content-Length", b"4")]
        google = FakeUpstream([Says([b"cd", b"ef"], 206, headers, length=4)])
        async with gateway(google, projects(1)) as app:
            got = await call(app, "GET", "/v1beta/files/a-1:download?alt=media", {**HOST, "range": "bytes=2-5"}, b"")
        assert (got.status, got.body, got.headers["content-range"]) == (206, b"cdef", "bytes 2-5/9")
        assert google.sent[-1].header("range") == "bytes=2-5"
        assert google.sent[-1].target.endswith("/files/a-1:download?alt=media")

    play(scene)


def test_a_download_leaves_piece_by_piece_while_it_comes() -> None:
    async def scene() -> None:
        pieces: list[bytes | float | UpstreamError] = [b"a" * 100_000, 5.0, b"b" * 100_000, 5.0, b"c"]
        headers = [(b"Content-Type", b"video/mp4"), (b"Content-Length", b"200001")]
        google = FakeUpstream([Says(pieces, 200, headers, length=200_001)])
        async with gateway(google, projects(1)) as app:
            got = await call(app, "GET", "/v1beta/files/a-1:download?alt=media", HOST, b"")
        assert got.body == b"a" * 100_000 + b"b" * 100_000 + b"c"
        assert got.times[-1] - got.times[0] == pytest.approx(10.0)

    play(scene)
