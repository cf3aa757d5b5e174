"""admission: who is let in, with what, for how long; and what is told when something fails inside."""

import asyncio
import gzip
import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from pollux.backends.keys.contract import Key, KeySourceError
from pollux.backends.keys.tokens import Tokens
from pollux.backends.store.contract import StoreUnavailableError, Version
from pollux.backends.store.memory import MemoryStore
from tests.gateway import (
    ADMIN,
    CHAT,
    COUNT,
    FLASH,
    GENERATE,
    HELLO,
    STREAM,
    TOKEN,
    FakeUpstream,
    Got,
    Keys,
    answer,
    call,
    event,
    gateway,
    now,
    part,
    play,
    projects,
    streams,
    whole,
)

ONE_MODEL = {"x-pollux-fallback": "off"}
GUARDED = {
    "auth_tokens": "/v1alpha/auth_tokens",
    "permissions": "/v1beta/tunedModels/m/permissions",
    "transferOwnership": "/v1beta/tunedModels/m:transferOwnership",
    "webhooks": "/v1beta/webhooks",
    "files:register": "/v1beta/files:register",
}


def one(upstream: FakeUpstream | None = None, settings: Mapping[str, Any] | None = None, **request: Any) -> Got:
    async def scene() -> Got:
        used = upstream or FakeUpstream(lambda sent: whole(answer()))
        async with gateway(used, projects(2), **(settings or {})) as app:
            return await call(app, **request)

    return play(scene)


# --- which key is preferred -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [GENERATE, CHAT, COUNT, "/v1beta/files"])
def test_a_key_that_is_not_in_the_pool_is_a_400_that_names_those_that_are(path: str) -> None:
    upstream = FakeUpstream([])
    got = one(upstream, path=path, headers={"x-pollux-key": "AIza-not-an-id"})
    error = got.json["error"]
    assert (got.status, error["code"]) == (400, "UNKNOWN_KEY" if path == CHAT else 400)
    assert error["message"].endswith("there are: k1, k2")
    assert "AIza" not in got.body.decode()
    assert not upstream.sent


@pytest.mark.parametrize("path", [GENERATE, CHAT])
def test_a_key_that_is_disabled_is_a_400_that_says_so_and_no_other_key_serves(path: str) -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream, Keys([Key("k1", "p1"), Key("k2", "p2", enabled=False)])) as app:
            got = await call(app, path=path, headers={"x-pollux-key": "k2"})
            assert got.status == 400
            assert "x-pollux-key names k2, which is disabled" in got.json["error"]["message"]
            got = await call(app, path=path, headers={"x-pollux-key": "k3"})
            assert got.json["error"]["message"].endswith("there are: k1")
        assert not upstream.sent

    play(scene)


def test_of_many_keys_the_first_ones_are_named() -> None:
    async def scene() -> Got:
        async with gateway(FakeUpstream([]), projects(30)) as app:
            return await call(app, headers={"x-pollux-key": "k31"})

    got = play(scene)
    assert got.message.endswith(" and 10 more")
    assert len(got.message) < 200


def test_the_token_comes_before_the_names_of_keys() -> None:
    assert one(token=None, headers={"x-pollux-key": "x"}).status == 401


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"x-goog-api-key": TOKEN}},
        {"headers": {"authorization": f"Bearer {TOKEN}"}},
        {"headers": {"x-api-key": TOKEN}},
        {"path": f"{GENERATE}?key={TOKEN}"},
    ],
)
def test_a_token_is_taken_wherever_sdks_put_it_and_never_travels(request_: dict[str, Any]) -> None:
    upstream = FakeUpstream([whole(answer())])
    assert one(upstream, token=None, **request_).status == 200
    sent = upstream.sent[0]
    assert TOKEN not in sent.target + str(sent.headers)
    assert sent.credential


@pytest.mark.parametrize(("path", "openai"), [(GENERATE, False), (CHAT, True), ("/v1/chat/completions", True)])
def test_without_a_token_the_answer_is_401_in_the_shape_of_the_api(path: str, openai: bool) -> None:
    upstream = FakeUpstream([])
    got = one(upstream, path=path, token="not-the-token")
    assert got.status == 401
    assert not upstream.sent
    error = got.json["error"]
    assert error["code"] == ("NO_TOKEN" if openai else 401)
    assert error.get("type") == ("authentication_error" if openai else None)
    assert "x-goog-api-key" in error["message"], "it says how, not what"
    assert TOKEN not in got.body.decode()


def test_the_token_is_asked_for_before_anything_else() -> None:
    assert one(token=None, path="/v1beta/webhooks").status == 401
    assert one(token=None, headers={"content-length": str(2**40)}).status == 401


class Source:
    """Tokens that cannot be read, or not all of them."""

    def __init__(self, known: Tokens | None) -> None:
        self.known = known

    async def tokens(self) -> Tokens:
        if self.known is None:
            raise KeySourceError("secret pollux-token-a: denied")
        return self.known


def test_while_tokens_cannot_be_read_nobody_is_told_that_his_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())])) as app:
            source = Source(None)
            app.admission.tokens = app.tokens = source
            got = await call(app)
            assert (got.status, got.reason, got.headers["retry-after"]) == (503, "TOKENS_UNREADABLE", "5")
            assert "denied" not in got.body.decode(), "the operator's business, in the log"
            admin = {"authorization": f"Bearer {ADMIN}"}
            assert (await call(app, "GET", "/admin/status", admin)).status == 503
            own = Tokens([f"tester={TOKEN}"], None, query_token=False)
            source.known = own.joined(None)
            assert (await call(app, token="another-token")).reason == "TOKENS_UNREADABLE"
            assert (await call(app, "GET", "/admin/status", admin)).status == 503
            assert (await call(app)).status == 200

    play(scene)
    assert "denied" in caplog.text


def test_a_change_of_tokens_counts_with_the_next_request() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda _: whole(answer()))) as app:
            source = Source(Tokens([TOKEN], None, query_token=False))
            app.admission.tokens = source
            assert (await call(app)).status == 200
            source.known = Tokens(["a-new-token"], None, query_token=False)
            assert [(await call(app, token=token)).status for token in (TOKEN, "a-new-token")] == [401, 200]

    play(scene)


# --- heads and upgrades ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "openai"), [(GENERATE, False), (CHAT, True)])
def test_a_head_that_is_too_large_is_refused_before_its_token_is_looked_at(path: str, openai: bool) -> None:
    upstream = FakeUpstream([])
    got = one(upstream, path=path, headers={f"x-{n}": "a" * 1000 for n in range(66)}, token=None)
    assert (got.status, got.headers["connection"], upstream.sent) == (431, "close", [])
    assert got.json["error"]["code"] == ("HEAD_TOO_LARGE" if openai else 431)
    assert one(upstream, path=f"{path}?x={'a' * 70_000}").status == 431


def test_a_large_head_within_the_limit_passes() -> None:
    assert one(headers={f"x-{n}": "a" * 1000 for n in range(60)}).status == 200


def test_a_websocket_is_told_so_and_not_forwarded() -> None:
    upstream = FakeUpstream([])
    got = one(upstream, method="GET", path="/ws/x", headers={"upgrade": "websocket", "connection": "upgrade"})
    assert (got.status, got.reason, upstream.sent) == (501, "NO_LIVE_API", [])


# --- cut short -------------------------------------------------------------------------------------------------------


def test_cut_ends_each_request_in_its_own_way() -> None:
    async def scene() -> None:
        says = {
            GENERATE: whole(answer(), after=1000.0),
            STREAM: streams(event(part("a")), 1000.0),
            STREAM.replace("sse", "proto"): streams(b"opaque", 1000.0),
        }
        upstream = FakeUpstream(lambda sent: says[sent.target])
        async with gateway(upstream, projects(4)) as app:

            async def stalls(scope: Any, _: Any, send: Any) -> None:
                async def receive() -> Any:
                    await asyncio.Event().wait()

                await app.routes(scope, receive, send)

            running = [asyncio.create_task(call(app, path=path)) for path in says]
            running.append(asyncio.create_task(call(stalls)))
            await asyncio.sleep(1)
            app.admission.cut()
            app.admission.cut()
            plain, stream, opaque, stalled = await asyncio.gather(*running)
            assert [(got.status, got.reason) for got in (plain, stalled)] == [(503, "STOPPING")] * 2
            assert plain.headers["retry-after"] == "1"
            assert b'{"error"' in stream.chunks[-1]
            assert stream.complete
            assert opaque.broken, "it has no way to say so"
            assert app.journal.endings == {"cut": 2}
            assert all(each.closed for each in upstream.answers)
            assert app.journal.under_way == 0

    play(scene)


def test_what_waits_only_for_its_settlement_is_not_cut() -> None:
    class Slow(MemoryStore):
        async def commit(self, name: str, document: dict[str, Any], version: Version | None) -> Version:
            await asyncio.sleep(0.09)
            return await super().commit(name, document, version)

    async def scene() -> None:
        upstream = FakeUpstream([streams(event(answer(900)))])
        async with gateway(upstream, projects(1, tpm=1000), store=Slow(now)) as app:
            running = asyncio.create_task(call(app, path=STREAM))
            while not any(reply.ending for reply in app.admission._running.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            app.admission.cut()
            got = await running
            assert got.complete
            assert b"error" not in got.body
            assert not app.journal.endings

    play(scene)


def test_whoever_is_cancelled_for_another_reason_is_not_answered() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda _: whole(answer(), after=1000.0))) as app:
            running = asyncio.create_task(call(app))
            await asyncio.sleep(1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    play(scene)


# --- what is closed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", GUARDED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_guarded_paths_are_closed_and_the_answer_names_the_way_to_open_them(guard: str, method: str) -> None:
    upstream = FakeUpstream([])
    got = one(upstream, method=method, path=GUARDED[guard])
    assert (got.status, got.reason, upstream.sent) == (403, "FORBIDDEN_PATH", [])
    assert guard in got.message
    assert "POLLUX_ALLOW_PATHS" in got.message


@pytest.mark.parametrize("guard", GUARDED)
def test_guarded_paths_open_one_by_one(guard: str) -> None:
    upstream = FakeUpstream(lambda sent: whole({}))
    settings = {"allow_paths": (guard,)}
    assert one(upstream, settings, path=GUARDED[guard]).status == 200
    others = [one(upstream, settings, path=path).status for name, path in GUARDED.items() if name != guard]
    assert set(others) == {403}


@pytest.mark.parametrize("path", ["/v1beta/../secret", "/v1beta/%2e%2e/x", "/v1beta/models/a%00b:generateContent"])
def test_a_path_that_leads_out_of_the_api_is_refused(path: str) -> None:
    upstream = FakeUpstream([])
    got = one(upstream, path=path)
    assert (got.status, got.reason, upstream.sent) == (400, "BAD_REQUEST", [])


# --- sizes and numbers -----------------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_413_before_it_is_read() -> None:
    got = one(settings={"max_body": 1000}, headers={"content-length": "1001"}, pieces=(b"never read",))
    assert (got.status, got.reason) == (413, "BODY_TOO_LARGE")
    assert "POLLUX_MAX_BODY" in got.message


def test_a_body_that_grows_over_the_limit_is_413() -> None:
    assert one(settings={"max_body": 1000}, pieces=[b"x" * 400] * 3).status == 413


def test_a_compressed_body_that_inflates_over_the_limit_is_413() -> None:
    body = gzip.compress(b" " * 10_000)
    assert one(settings={"max_body": 1000}, body=body, headers={"content-encoding": "gzip"}).status == 413


def test_a_compressed_body_is_read_here_and_travels_as_it_came() -> None:
    upstream = FakeUpstream([whole(answer())])
    body = gzip.compress(json.dumps({"model": FLASH, "messages": [{"role": "user", "content": "Hi"}]}).encode())
    got = one(upstream, path=CHAT, body=body, headers={"content-encoding": "gzip", "content-type": "application/json"})
    assert (got.status, got.headers["x-pollux-model"]) == (200, FLASH)
    assert upstream.sent[0].body == body
    assert upstream.sent[0].header("content-encoding") == "gzip"


def test_a_body_of_millions_of_tiny_values_is_not_parsed_here() -> None:
    bomb = b'{"contents":[' + b"[]," * 600_000 + b"[]]}"
    upstream = FakeUpstream(lambda sent: whole(answer()))
    assert one(upstream, body=gzip.compress(bomb), headers={"content-encoding": "gzip"}).status == 200
    assert len(upstream.sent) == 1
    assert one(upstream, path=CHAT, body=bomb).status == 413
    assert len(upstream.sent) == 1


def test_what_a_body_inflates_to_counts_against_the_memory_for_bodies() -> None:
    text = json.dumps({"contents": [{"parts": [{"text": "a" * 50_000}]}]}).encode()
    got = one(settings={"body_memory": 40_000}, body=gzip.compress(text), headers={"content-encoding": "gzip"})
    assert (got.status, got.reason) == (503, "OVERLOADED_GATEWAY")


def test_a_compression_that_is_not_known_is_415_only_where_the_body_must_be_read() -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()))
    headers = {"content-encoding": "br"}
    assert one(upstream, path=CHAT, body=b"\x0b\x02", headers=headers).status == 415
    assert one(upstream, path=GENERATE, body=b"\x0b\x02", headers=headers).status == 200
    assert [sent.body for sent in upstream.sent] == [b"\x0b\x02"]


@pytest.mark.parametrize("body", [b"{not json", b"[1]", b"", b'{"a":' * 30_000, b"\xff\xfe"])
def test_what_cannot_be_read_is_forwarded_once_and_judged_by_google(body: bytes) -> None:
    upstream = FakeUpstream(lambda sent: whole({"error": {"code": 400, "message": "Invalid JSON payload"}}, 400))
    got = one(upstream, body=body)
    assert (got.status, len(upstream.sent), upstream.sent[0].body) == (400, 1, body)


def test_more_requests_than_allowed_at_once_are_503() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer(), after=5))
        async with gateway(upstream, projects(4), max_concurrent=2) as app, asyncio.TaskGroup() as group:
            first = [group.create_task(call(app)) for _ in range(2)]
            await asyncio.sleep(1)
            third = await call(app)
            assert (third.status, third.reason, third.headers["retry-after"]) == (503, "OVERLOADED_GATEWAY", "1")
            assert "POLLUX_MAX_CONCURRENT" in third.message
            assert [(await task).status for task in first] == [200, 200]
            assert (await call(app)).status == 200

    play(scene)


def test_bodies_under_way_have_a_budget_which_is_given_back() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer(), after=5))
        async with gateway(upstream, projects(4), body_memory=1000) as app, asyncio.TaskGroup() as group:
            first = group.create_task(call(app, body=b"x" * 800))
            await asyncio.sleep(1)
            second = await call(app, body=b"x" * 800)
            assert (second.status, second.reason) == (503, "OVERLOADED_GATEWAY")
            assert "POLLUX_BODY_MEMORY" in second.message
            assert (await first).status == 200
            await call(app, body=b"x" * 800, leaves=1)
            assert (await call(app, body=b"x" * 800)).status == 200

    play(scene)


def test_a_client_that_leaves_before_its_body_is_complete_costs_nothing() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream) as app:

            async def leaving(scope: Any, _: Any, send: Any) -> None:
                messages = iter(
                    [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
                )

                async def receive() -> Any:
                    return next(messages)

                await app.routes(scope, receive, send)

            got = await call(leaving)
            assert (got.status, app.journal.under_way) == (0, 0)
            assert app.journal.statuses[499] == 1
        assert not upstream.sent

    play(scene)


# --- how long it may wait --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"x-pollux-max-wait": "70"}, 200),
        ({"x-pollux-max-wait": "30"}, 429),
        ({"x-pollux-max-wait": "0"}, 429),
        ({"x-server-timeout": "80"}, 200),
        ({"x-server-timeout": "65"}, 429),
        ({"x-server-timeout": "nonsense"}, 200),
        ({"x-server-timeout": "90", "x-pollux-max-wait": "5"}, 429),
    ],
)
def test_the_deadline_is_the_least_of_setting_header_and_server_timeout(headers: dict[str, str], status: int) -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(1, rpm=1), max_wait=65.0) as app:
            await call(app, headers=ONE_MODEL)
            began = now()
            got = await call(app, headers=ONE_MODEL | headers)
            assert got.status == status
            assert (now() - began > 60) == (status == 200)
            if status == 200:
                assert int(got.headers["x-pollux-wait-ms"]) > 60_000
            else:
                assert 60 <= int(got.headers["retry-after"]) <= 62

    play(scene)


def test_the_clients_header_cannot_lengthen_the_wait() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())]), projects(1, rpm=1), max_wait=10.0) as app:
            await call(app, headers=ONE_MODEL)
            got = await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "500"})
            assert (got.status, got.reason) == (429, "QUOTA_BUSY")

    play(scene)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-pollux-max-wait", "soon"),
        ("x-pollux-max-wait", "-1"),
        ("x-pollux-mode", "cheap"),
        ("x-pollux-fallback", "never"),
        ("x-pollux-fallback", "false"),
    ],
)
def test_a_header_of_ours_that_makes_no_sense_is_named(name: str, value: str) -> None:
    got = one(headers={name: value})
    assert (got.status, got.reason) == (400, "BAD_REQUEST")
    assert name in got.message


def test_a_mode_chooses_among_text_models_by_header_and_by_setting() -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()))
    by_header = one(upstream, headers={"x-pollux-mode": "flash_lite_only"})
    by_setting = one(upstream, {"mode": "flash_lite_only"})
    assert {got.headers["x-pollux-model"] for got in (by_header, by_setting)} == {"gemini-3.5-flash-lite"}


# --- faults of our own -----------------------------------------------------------------------------------------------


class Down(MemoryStore):
    """Opens, and then does not answer."""

    async def commit(self, name: str, document: dict[str, Any], version: Version | None) -> Version:
        raise StoreUnavailableError("the disk is full")


@pytest.mark.parametrize("path", [GENERATE, STREAM, CHAT])
def test_a_store_that_fails_is_a_503_and_nothing_is_sent(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream, projects(2, rpm=5), store=Down(now), store_down="closed") as app:
            got = await call(app, path=path, body=HELLO if path != CHAT else {"model": FLASH, "messages": []})
        assert (got.status, got.headers["retry-after"], upstream.sent) == (503, "2", [])
        assert got.json["error"]["details"][0]["reason"] == "STORE_DOWN"
        assert "disk" not in got.message, "the operator's business, in the log"

    play(scene)
    assert any("the disk is full" in message for message in caplog.messages)


def test_calls_that_take_no_quota_pass_while_the_store_is_down() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole({"totalTokens": 1})]), projects(1), store=Down(now)) as app:
            assert (await call(app, path=COUNT)).status == 200

    play(scene)


def test_a_fault_of_pollux_itself_is_a_500_with_the_requests_id_and_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(sent: Any) -> Any:
        raise ZeroDivisionError("a fault")

    got = one(FakeUpstream(broken))
    assert (got.status, got.reason) == (500, "INTERNAL")
    request_id = got.headers["x-pollux-request-id"]
    assert got.json["error"]["details"][0]["metadata"] == {"request_id": request_id}
    assert any(record.exc_info and request_id in record.getMessage() for record in caplog.records)


def test_every_request_is_one_log_line_without_token_key_or_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pollux")

    async def scene() -> str:
        async with gateway(FakeUpstream([whole(answer())]), projects(1)) as app:
            got = await call(app, body={"contents": [{"parts": [{"text": "a private word"}]}]})
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
            return json.dumps(record.as_json())

    line = play(scene)
    for secret in (TOKEN, "AQ.test", "private"):
        assert secret not in line
    for told in ("tester", "k1", "p1", FLASH, "generateContent"):
        assert told in line


# --- odd methods -----------------------------------------------------------------------------------------------------


def test_head_gets_headers_and_no_body() -> None:
    got = one(FakeUpstream([whole({"name": f"models/{FLASH}"})]), method="HEAD", path=f"/v1beta/models/{FLASH}")
    assert (got.status, got.body, got.complete) == (200, b"", True)
    assert int(got.headers["content-length"]) > 0
    assert one(method="HEAD", token=None).body == b""


def test_a_trailing_slash_or_a_doubled_version_in_the_base_url_works() -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()))
    for path in ("/v1beta/v1beta/models", "//v1beta/models", "/v1beta/openai/v1/models"):
        method = "GET"
        assert one(upstream, method=method, path=path).status == 200
    assert one(upstream, path=f"/{GENERATE}").status == 200
    assert upstream.sent[-1].target == GENERATE


def test_the_query_keeps_its_order_and_encoding() -> None:
    upstream = FakeUpstream([streams(event(answer()))])
    one(upstream, path=f"{STREAM}&b=%7E&key={TOKEN}&a=1+2&a=")
    assert upstream.sent[0].target == f"{STREAM}&b=%7E&a=1+2&a="
