"""Tools that Google counts separately, through the whole gateway: which projects still serve, what clients hear."""

import asyncio
from typing import Any

import pytest

from gemini_simulator.faults import Fault
from pollux.cli.terminal import as_text
from pollux.cli.watch import explain_view, request_view, status_view
from pollux.server.app import App
from tests.gateway import (
    ADMIN,
    CHAT,
    FLASH,
    GENERATE,
    HELLO,
    NEXT,
    STREAM,
    FakeUpstream,
    Got,
    Says,
    Sent,
    answer,
    call,
    gateway,
    now,
    play,
    projects,
    refuses,
    simulated,
    whole,
)

SEARCH: dict[str, Any] = HELLO | {"tools": [{"googleSearch": {}}]}
OTHERWISE: dict[str, Any] = HELLO | {"tools": [{"google_search": {}}]}
URLS: dict[str, Any] = HELLO | {"tools": [{"url_context": {}}]}
ASK: dict[str, Any] = {"model": FLASH, "messages": [{"role": "user", "content": "Hello"}]}
CHAT_SEARCH: dict[str, Any] = ASK | {"tools": [{"type": "web_search"}]}
INTERACTION: dict[str, Any] = {"model": FLASH, "input": "Hello", "tools": [{"type": "google_search"}]}
AT_ONCE = {"x-pollux-max-wait": "0"}
FIRST = AT_ONCE | {"x-pollux-key": "k1"}


def no_search_at(*keys: str, name: str = "bare-quota") -> FakeUpstream:
    """Google, which refuses search to the projects of these keys and says nothing of why."""

    def says(sent: Sent) -> Says:
        return refuses(name) if b"search" in sent.body.lower() and sent.key in keys else whole(answer())

    return FakeUpstream(says)


async def admin(app: App, path: str) -> Any:
    return (await call(app, "GET", path, {"authorization": f"Bearer {ADMIN}"})).json


@pytest.mark.parametrize("name", ["bare-quota", "unknown-429"])
@pytest.mark.parametrize("body", [SEARCH, OTHERWISE])
def test_plain_requests_stay_where_search_is_refused_and_search_goes_elsewhere(name: str, body: Any) -> None:
    async def scene() -> None:
        upstream = no_search_at("k1", name=name)
        async with gateway(upstream, projects(2), sticky=False) as app:
            assert (await call(app, headers=FIRST)).headers["x-pollux-key"] == "k1"
            found = await call(app, headers=FIRST, body=body)
            assert (found.status, found.headers["x-pollux-key"], upstream.keys) == (200, "k2", ["k1", "k1", "k2"])
            for _ in range(3):
                assert (await call(app, headers=FIRST)).headers["x-pollux-key"] == "k1"
                assert (await call(app, headers=FIRST, body=URLS)).headers["x-pollux-key"] == "k1"
                assert (await call(app, headers=FIRST, body=SEARCH)).headers["x-pollux-key"] == "k2"
            assert upstream.keys.count("k1") == 8, "search is not tried there again and again"
            status = await admin(app, "/admin/status")
            assert [key["state"] for key in status["keys"]] == ["healthy", "healthy"]
            assert [quota["cooldown_until"] for quota in status["quotas"]] == [None, None]

    play(scene)


@pytest.mark.parametrize(
    ("path", "plain", "searching"),
    [(GENERATE, HELLO, SEARCH), (STREAM, HELLO, SEARCH), (CHAT, ASK, CHAT_SEARCH)],
)
def test_when_the_tool_rests_everywhere_the_client_hears_which(path: str, plain: Any, searching: Any) -> None:
    async def scene() -> None:
        async with gateway(no_search_at("k1", "k2"), projects(2)) as app:
            for _ in range(2):
                got = await call(app, path=path, headers=AT_ONCE, body=searching)
                assert (got.status, got.reason, got.headers["retry-after"]) == (429, "QUOTA_BUSY", "60")
                assert got.json["error"]["status"] == "RESOURCE_EXHAUSTED"
                assert "googleSearch" in got.message
                assert got.json["error"]["details"][1]["retryDelay"] == "60s"
            assert ("type" in got.json["error"]) == (path == CHAT), "in the shape of the API that was called"
            assert (await call(app, path=CHAT, headers=AT_ONCE, body=ASK)).status == 200

    play(scene)


def test_it_is_asked_again_when_its_rest_is_over_and_served_again() -> None:
    async def scene() -> None:
        simulator = simulated(projects(1), {})
        simulator.simulator.faults.append(Fault(kind="bare-quota", tool="googleSearch", count=2))
        async with gateway(simulator, projects(1)) as app:
            rests = []
            for _ in range(2):
                got = await call(app, headers=AT_ONCE, body=SEARCH)
                assert got.status == 429
                assert (await call(app, headers=AT_ONCE)).status == 200
                rests.append(int(got.headers["retry-after"]))
                await asyncio.sleep(rests[-1])
            assert rests == [60, 120]
            assert (await call(app, headers=AT_ONCE, body=SEARCH)).status == 200
            assert not app.projects.health.value.tools

    play(scene)


@pytest.mark.parametrize("count", [2, 12])
def test_a_request_waits_for_the_end_of_a_tools_rest_if_it_has_the_time(count: int) -> None:
    async def scene() -> None:
        keys = projects(count)
        simulator = simulated(keys, {})
        simulator.simulator.faults.append(Fault(kind="bare-quota", tool="googleSearch", count=count))
        async with gateway(simulator, keys) as app:
            began = now()
            found = await call(app, body=SEARCH)
            assert (found.status, found.headers["x-pollux-model"]) == (200, FLASH)
            assert 60 <= now() - began <= 65
            assert len(simulator.simulator.calls) == count + 1
            assert int(found.headers["x-pollux-wait-ms"]) >= 59_000

    play(scene)


def test_an_interaction_with_search_is_treated_alike() -> None:
    async def scene() -> None:
        async with gateway(no_search_at("k1", "k2"), projects(2)) as app:
            got = await call(app, path="/v1beta/interactions", headers=AT_ONCE, body=INTERACTION)
            assert (got.status, "googleSearch" in got.message) == (429, True)
            assert (await call(app, headers=AT_ONCE)).status == 200

    play(scene)


def test_status_and_explain_tell_of_it() -> None:
    async def scene() -> tuple[Any, Any, Any, Got]:
        async with gateway(no_search_at("k1"), projects(2)) as app:
            got = await call(app, headers=FIRST, body=SEARCH)
            request = await admin(app, f"/admin/requests/{got.headers['x-pollux-request-id']}")
            return await admin(app, "/admin/status"), await admin(app, f"/admin/explain?model={FLASH}"), request, got

    status, explained, request, got = play(scene)
    (tool,) = status["projects"][0]["tools_aside"].items()
    assert (tool[0], tool[1]["cause"], status["projects"][1]["tools_aside"]) == ("googleSearch", "tool-quota", {})
    lines = [" ".join(line.split()) for line in as_text(status_view(status)).splitlines()]
    assert "PROJECT TOOL UNTIL WHY" in lines
    assert "p1 googleSearch in 60 s the tool's own quota is used up" in lines
    rows = [" ".join(line.split()) for line in as_text(explain_view(explained)).splitlines()]
    assert next(row for row in rows if "googleSearch rests" in row).startswith(
        f"{FLASH} p1 k1 now free now; googleSearch"
    )
    assert {(c["model"], c["project"]) for c in explained["candidates"] if c["tools_aside"]} >= {
        (FLASH, "p1"),
        (NEXT, "p1"),
    }
    assert [attempt["cause"] for attempt in request["attempts"]] == ["tool-quota", "ok"]
    assert "1. gemini-3.8-flash on p1 (key k1): tool-quota: You exceeded your current quota" in as_text(
        request_view(request)
    )
    assert got.status == 200


def test_a_tool_that_rests_does_not_drive_plain_requests_to_another_model() -> None:
    async def scene() -> None:
        upstream = no_search_at("k1")
        async with gateway(upstream, projects(1)) as app:
            await call(app, headers=AT_ONCE, body=SEARCH)
            got = await call(app, headers=AT_ONCE)
            assert (got.status, got.headers["x-pollux-model"]) == (200, FLASH)

    play(scene)
