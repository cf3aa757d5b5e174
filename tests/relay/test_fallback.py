"""Fallback to another model through the whole gateway: the client is told, and how far down it may go."""

import json
from typing import Any

import pytest

from pollux.cli.terminal import as_text
from pollux.cli.watch import request_view
from pollux.log import TextFormatter
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
    event,
    gateway,
    part,
    play,
    projects,
    refuses,
    streams,
    whole,
)

LAST = "gemini-3.5-flash-lite"
ASK: dict[str, Any] = {"model": FLASH, "messages": [{"role": "user", "content": "Hello"}]}
AT_ONCE = {"x-pollux-max-wait": "0"}


def asked_model(sent: Sent) -> str:
    return sent.model or str(json.loads(sent.body)["model"]).removeprefix("models/")


def spent(*models: str) -> FakeUpstream:
    """Google, where the day of these models is spent in every project."""

    def says(sent: Sent) -> Says:
        if (model := asked_model(sent)) in models:
            return refuses("rpd", model=model)
        if "streamGenerate" in sent.target or b'"stream": true' in sent.body:
            return streams(event(part("Hi")), event(answer()))
        return whole(answer())

    return FakeUpstream(says)


def got(upstream: FakeUpstream, path: str = GENERATE, body: Any = HELLO, **headers: str) -> Got:
    async def scene() -> Got:
        async with gateway(upstream, projects(1)) as app:
            given = AT_ONCE | {name.replace("_", "-"): value for name, value in headers.items()}
            return await call(app, path=path, headers=given, body=body)

    return play(scene)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, HELLO),
        (STREAM, HELLO),
        (CHAT, ASK),
        (CHAT, ASK | {"stream": True}),
        (CHAT, ASK | {"model": f"models/{FLASH}"}),
    ],
)
def test_an_answer_of_another_model_says_so(path: str, body: Any) -> None:
    answered = got(spent(FLASH), path, body)
    assert (answered.status, answered.headers["x-pollux-model"]) == (200, NEXT)
    assert answered.headers["x-pollux-fallback"] == f"from {FLASH}"


@pytest.mark.parametrize(
    ("upstream", "path", "headers", "used"),
    [
        (spent(), GENERATE, {}, FLASH),
        (spent(), GENERATE.replace(FLASH, "production"), {}, FLASH),
        (spent(), GENERATE, {"x_pollux_mode": "flash_lite_only"}, LAST),
        (spent(), GENERATE.replace(FLASH, "gemini-0.1-unheard-of"), {}, "gemini-0.1-unheard-of"),
    ],
)
def test_an_alias_or_a_mode_is_no_fallback(
    upstream: FakeUpstream, path: str, headers: dict[str, str], used: str
) -> None:
    answered = got(upstream, path, **headers)
    assert (answered.status, answered.headers["x-pollux-model"]) == (200, used)
    assert "x-pollux-fallback" not in answered.headers


def test_it_names_the_model_as_the_client_asked_for_it() -> None:
    answered = got(spent(FLASH), GENERATE.replace(FLASH, "production"))
    assert (answered.headers["x-pollux-model"], answered.headers["x-pollux-fallback"]) == (NEXT, "from production")


def test_a_refusal_is_no_fallback() -> None:
    refused = got(spent(FLASH, NEXT, LAST, "gemini-3.1-flash-lite"))
    assert refused.status == 503
    assert "x-pollux-fallback" not in refused.headers


def test_browsers_may_read_the_header() -> None:
    async def scene() -> Got:
        async with gateway(spent(), projects(1), cors_origins=("https://page.example",)) as app:
            return await call(app, headers={"origin": "https://page.example"})

    assert "x-pollux-fallback" in play(scene).headers["access-control-expose-headers"].split(", ")


def test_the_log_line_and_the_request_tell_of_it() -> None:
    async def scene() -> Any:
        async with gateway(spent(FLASH), projects(1)) as app:
            found = await call(app, headers=AT_ONCE)
            path = f"/admin/requests/{found.headers['x-pollux-request-id']}"
            return (await call(app, "GET", path, {"authorization": f"Bearer {ADMIN}"})).json

    request = play(scene)
    assert (request["fallback_from"], request["model_used"]) == (FLASH, NEXT)
    assert as_text(request_view(request)).splitlines()[0].endswith(f" {FLASH} -> 200, answered by {NEXT} instead")
    line = TextFormatter(colours=False).request(request, "INFO", 0.0)
    assert f"{FLASH} -> {NEXT}" in line
    assert "  fallback  " in line


# --- the floor -------------------------------------------------------------------------------------------------------


def test_below_the_floor_no_model_is_asked_even_if_all_above_are_full() -> None:
    async def scene() -> None:
        upstream = spent(FLASH, NEXT)
        async with gateway(upstream, projects(2), never_below=(NEXT,)) as app:
            refused = await call(app, headers=AT_ONCE)
            assert (refused.status, refused.reason) == (503, "QUOTA_EXHAUSTED_TODAY")
            assert set(upstream.models) == {FLASH, NEXT}
            assert (await call(app, path=GENERATE.replace(FLASH, LAST), headers=AT_ONCE)).status == 200

    play(scene)


def test_down_to_the_floor_it_falls_back() -> None:
    async def scene() -> None:
        async with gateway(spent(FLASH, NEXT), projects(1), never_below=(LAST,)) as app:
            found = await call(app, headers=AT_ONCE)
            assert (found.status, found.headers["x-pollux-fallback"]) == (200, f"from {FLASH}")
            assert found.headers["x-pollux-model"] == LAST

    play(scene)
