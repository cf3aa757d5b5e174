"""The admin API: what an operator sees, and who may see it."""

import asyncio
import json
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.backends.store.memory import MemoryStore
from pollux.server.app import App
from tests.gateway import (
    ADMIN,
    BEGAN,
    COUNT,
    FLASH,
    NEXT,
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
    refuses,
    streams,
    value_of,
    whole,
)
from tests.pools import FaultyStore

BEARER = {"authorization": f"Bearer {ADMIN}"}
ONE_MODEL = {"x-pollux-fallback": "off"}


async def see(app: App, path: str = "/admin/status", **more: Any) -> Got:
    return await call(app, "GET", path, **({"headers": BEARER} | more))


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Basic {ADMIN}"}, {"x-goog-api-key": ADMIN}],
)
@pytest.mark.parametrize(
    "path", ["/admin", "/admin/status", "/admin/explain?model=m", "/admin/requests/x", "/admin/zzz"]
)
def test_only_the_admin_token_as_bearer_opens_anything(path: str, headers: dict[str, str]) -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream) as app:
            got = await see(app, path, headers=headers, token=None)
        assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")
        assert ADMIN not in got.body.decode()
        assert not upstream.sent

    play(scene)


def test_it_is_never_passed_on_nor_kept_by_caches() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream) as app:
            got = await see(app, "/admin/unknown")
            assert (got.status, got.headers["cache-control"]) == (404, "no-store")
            assert "/admin/status" in got.message
            assert (await call(app, "POST", "/admin/status", BEARER)).status == 405
            assert (await call(app, "GET", "/admin/status/", BEARER)).status == 200
            head = await call(app, "HEAD", "/admin/status", BEARER)
            assert (head.status, head.body) == (200, b"")
        assert not upstream.sent

    play(scene)


def test_status_shows_keys_quotas_and_totals_and_no_value() -> None:
    async def scene() -> Any:
        keys = Keys(
            [
                Key("k1", "p1", limits={"*": {"rpm": 5, "tpm": 1000, "rpd": 20}}),
                Key("k2", "p2", tier="free"),
                Key("k3", "p3", enabled=False),
            ]
        )
        said = {"k1": whole(answer(7)), "k2": refuses("invalid-key")}
        async with gateway(FakeUpstream(lambda sent: said[sent.key]), keys) as app:
            for _ in range(2):
                await call(app, headers=ONE_MODEL | {"x-pollux-key": "k2"})
            got = await see(app)
        assert got.status == 200
        for secret in (value_of(""), TOKEN, ADMIN):
            assert secret not in got.body.decode()
        return got.json

    status = play(scene)
    assert {(key["id"], key["project"], key["tier"], key["state"]) for key in status["keys"]} == {
        ("k1", "p1", None, "healthy"),
        ("k2", "p2", "free", "aside"),
        ("k3", "p3", None, "disabled"),
    }
    aside = next(key for key in status["keys"] if key["id"] == "k2")
    assert (aside["cause"], aside["why"]) == ("invalid-key", "Google says that the key is not valid")
    assert aside["until"] == pytest.approx(BEGAN + 30)
    quota = next(entry for entry in status["quotas"] if entry["project"] == "p1")
    assert quota["used"] == {"rpm": 2, "tpm": 14, "ipm": 0, "rpd": 2, "tpd": 14}
    assert quota["left"] == {"rpm": 3, "tpm": 986, "rpd": 18}
    assert (quota["model"], quota["served"], quota["cooldown_until"]) == (FLASH, 2, None)
    assert quota["next_slot"] == pytest.approx(BEGAN, abs=1)
    assert status["pool"]["requests"] == 2
    assert status["pool"]["statuses"] == {"200": 2}
    assert status["pool"]["causes"] == {"ok": 2, "invalid-key": 1}
    assert status["store"]["commits"] >= 3


def test_status_says_why_and_until_when_a_quota_cools() -> None:
    async def scene() -> Any:
        async with gateway(FakeUpstream(lambda sent: refuses("rpm", limit=5)), projects(1)) as app:
            await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "0"})
            return (await see(app)).json

    quota = play(scene)["quotas"][0]
    assert quota["cooldown_until"] == pytest.approx(BEGAN + 43, abs=0.1)
    assert quota["cooldown_why"] == "resting after a refusal: the requests per minute are used up"
    assert quota["learned"] == {"rpm": 5}
    assert (quota["limits"]["rpm"], quota["refused_upstream"]) == (5, 1)


def test_status_shows_what_only_the_store_knows() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(1, rpm=5)) as first:
            await call(first)
            async with gateway(upstream, projects(1, rpm=5), store=Kept(first.store)) as second:
                shown = (await see(second)).json
        assert [(q["project"], q["used"]["rpm"]) for q in shown["quotas"]] == [("p1", 1)]
        assert shown["store"]["instances"] == 2
        assert shown["pool"]["problems"] == [
            "2 instances write, POLLUX_MAX_INSTANCES is 1: without the store they may send too much"
        ]
        assert shown["quotas"][0]["next_slot"] == shown["now"]

    play(scene)


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def test_what_has_no_slot_is_null_and_all_numbers_are_json() -> None:
    """An exhausted day, a limit of 0, a model that is not on the tier, disabled keys, a store that was never read."""

    async def scene() -> None:
        keys = Keys(
            [
                Key("k1", "p1", limits={"*": {"rpd": 1, "rpm": 5}}),
                Key("k2", "p2", limits={"*": {"rpm": 0}}),
                Key("k3", "p3", enabled=False),
                Key("k4", "p4"),
            ]
        )
        said = {"k1": whole(answer(7)), "k4": refuses("unsupported")}
        async with gateway(FakeUpstream(lambda sent: said[sent.key]), keys) as app:
            for path in ("/admin/status", f"/admin/explain?model={FLASH}"):
                json.loads((await see(app, path)).body, parse_constant=_no_constant)
            for key in ("k1", "k4", "k2", "k3"):
                await call(app, headers=ONE_MODEL | {"x-pollux-key": key, "x-pollux-max-wait": "0"})
            for path in ("/admin/status", f"/admin/explain?model={FLASH}&tokens=1000000000"):
                shown = json.loads((await see(app, path)).body, parse_constant=_no_constant)
            earliest = {entry["project"]: entry["earliest"] for entry in shown["candidates"] if entry["model"] == FLASH}
            assert earliest["p2"] is earliest["p3"] is None
            keys.all = (Key("k1", "p1", limits={"*": {"rpm": 0}}),)
            shown = json.loads((await see(app)).body, parse_constant=_no_constant)
            assert [entry["next_slot"] for entry in shown["quotas"] if entry["project"] == "p1"] == [None]

    play(scene)


class Kept:
    """Another process's view of a store: it closes nothing."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def open(self) -> None: ...

    async def close(self) -> None: ...


def test_status_suspects_the_address_when_all_projects_refuse_at_once() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda sent: refuses("unknown-429")), projects(3)) as app:
            assert (await see(app)).json["pool"]["suspicion"] is None
            await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "0"})
            pool = (await see(app)).json["pool"]
            assert pool["paused_until"] == pytest.approx(BEGAN + 10, abs=1)
            assert "limit this address" in pool["suspicion"]

    play(scene)


def test_status_says_that_the_gateways_location_is_refused() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda sent: refuses("location")), projects(2)) as app:
            assert (await call(app)).status == 400
            assert "location" in (await see(app)).json["pool"]["suspicion"]

    play(scene)


def test_status_counts_truncated_streams() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([streams(event(part("One")))]), projects(1)) as app:
            await call(app, path=STREAM)
            assert (await see(app)).json["pool"]["endings"] == {"truncated": 1}

    play(scene)


# --- lifting by hand --------------------------------------------------------------------------------------------------


def test_a_lift_ends_what_is_held_against_a_key_its_project_and_models_at_once() -> None:
    async def scene() -> None:
        bad = True
        refused = [refuses("invalid-key"), refuses("prepay"), refuses("model-access"), refuses("unsupported")]
        upstream = FakeUpstream(lambda sent: refused[int(sent.key[1:]) - 1] if bad else whole(answer()))
        async with gateway(upstream, projects(4)) as app:
            for number in range(4):
                await call(app, headers=ONE_MODEL | {"x-pollux-key": f"k{number + 1}", "x-pollux-max-wait": "0"})
            bad = False
            path = "/admin/keys/lift?id=k1&id=k2&id=k3&id=k4&id=nobody&well=1&all=1"
            got = await call(app, "POST", path, BEARER)
            assert got.status == 200
            assert got.json["lifted"] == ["key k1", "project p2", f"model p3/{FLASH}", f"quota p4/{FLASH}"]
            assert (got.json["unknown"], got.json["simulated"]) == (["nobody"], False)
            for number in range(4):
                got = await call(app, headers=ONE_MODEL | {"x-pollux-key": f"k{number + 1}", "x-pollux-max-wait": "0"})
                assert (got.status, got.headers["x-pollux-key"]) == (200, f"k{number + 1}")
            assert {key["state"] for key in (await see(app)).json["keys"]} == {"healthy"}

    play(scene)


def test_a_lift_of_a_key_alone_leaves_its_project_and_makes_it_unchecked() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: refuses("prepay"))
        async with gateway(upstream, projects(1)) as app:
            await call(app, headers=ONE_MODEL)
            await call(app, "POST", "/admin/keys/lift?id=k1&well=1", BEARER)
            status = (await see(app)).json
            assert (status["keys"][0]["state"], status["projects"][0]["state"]) == ("healthy", "aside")
            await call(app, "POST", "/admin/keys/lift?id=k1", BEARER)
            assert (await see(app)).json["keys"][0]["state"] == "unchecked"

    play(scene)


def test_a_key_that_google_refused_elsewhere_is_left_aside_until_a_free_call_finds_it_well() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(2)) as app:
            got = await call(app, "POST", "/admin/keys/aside?id=k1&cause=invalid-key", BEARER)
            assert (got.status, got.json) == (200, {"aside": ["k1"]})
            state = (await see(app)).json["keys"][0]
            assert (state["state"], state["cause"]) == ("aside", "invalid-key")
            got = await call(app, headers=ONE_MODEL | {"x-pollux-key": "k1"})
            assert (got.status, got.headers["x-pollux-key"]) == (200, "k2")

    play(scene)


@pytest.mark.parametrize("query", ["", "?id=k1", "?cause=invalid-key", "?id=k1&cause=prepay"])
def test_what_is_left_aside_needs_a_key_and_a_cause_that_free_calls_end(query: str) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([])) as app:
            got = await call(app, "POST", f"/admin/keys/aside{query}", BEARER)
            assert got.status == 400
            assert "invalid-key" in got.json["error"]["message"]
            assert (await call(app, "POST", "/admin/keys/aside?id=k1&cause=invalid-key", {})).status == 401

    play(scene)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/admin/keys/lift", 400), ("GET", "/admin/keys/lift?id=k1", 404), ("PUT", "/admin/keys/lift?id=k1", 405)],
)
def test_a_lift_says_what_it_expects(method: str, path: str, status: int) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([])) as app:
            assert (await call(app, method, path, BEARER)).status == status
            assert (await call(app, "POST", "/admin/keys/lift?id=k1", {})).status == 401

    play(scene)


# --- unchecked, and the free quota ------------------------------------------------------------------------------------


def test_a_key_is_unchecked_until_google_served_or_checked_it_and_that_is_kept() -> None:
    async def scene() -> None:
        store = FaultyStore(MemoryStore(now))
        async with gateway(FakeUpstream(lambda sent: whole(answer())), projects(3), store=store) as app:
            assert [key["state"] for key in (await see(app)).json["keys"]] == ["unchecked"] * 3
            await call(app, headers={"x-pollux-key": "k2"})
            assert [key["state"] for key in (await see(app)).json["keys"]] == ["unchecked", "healthy", "unchecked"]
            commits = app.projects.health.counters.commits
            for _ in range(50):
                await call(app, headers={"x-pollux-key": "k2"})
            assert app.projects.health.counters.commits == commits == 0
            await asyncio.sleep(31)
            assert (await call(app, path=COUNT, headers={"x-pollux-key": "k3"})).status == 200
            assert app.projects.health.counters.commits == 1
            assert [key["state"] for key in (await see(app)).json["keys"]] == ["unchecked", "healthy", "healthy"]
        async with gateway(FakeUpstream([]), projects(3), store=store) as app:
            assert [key["state"] for key in (await see(app)).json["keys"]][1] == "healthy"

    play(scene)


@pytest.mark.parametrize(("tier", "told"), [("tier1", True), ("free", False), (None, False)])
def test_a_paid_project_that_google_counts_on_the_free_quota_is_told_of(tier: str | None, told: bool) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream(lambda sent: refuses("rpm")), Keys([Key("k1", "p1", tier)])) as app:
            await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "0"})
            status = (await see(app)).json
            assert status["projects"][0]["free_quota_seen"] == pytest.approx(BEGAN)
            problems = status["pool"]["problems"]
            assert (
                any("project p1 is still on the free quota, though its keys say tier1" in p for p in problems) == told
            )

    play(scene)


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_tells_for_every_candidate_when_and_why() -> None:
    async def scene() -> Any:
        keys = Keys(
            [
                Key("k1", "p1", limits={FLASH: {"rpm": 1, "tpm": 1000}}),
                Key("k2", "p2", limits={FLASH: {"rpm": 9, "tpm": 100}}),
                Key("k3", "p3", limits={FLASH: {"rpm": 0}}),
                Key("k4", "p4"),
            ]
        )
        said = {"k1": whole(answer()), "k4": refuses("leaked-key")}
        async with gateway(FakeUpstream(lambda sent: said[sent.key]), keys) as app:
            await call(app, headers=ONE_MODEL | {"x-pollux-key": "k1"})
            await call(app, headers=ONE_MODEL | {"x-pollux-key": "k4", "x-pollux-max-wait": "0"})
            return (await see(app, f"/admin/explain?model={FLASH}&tokens=500")).json

    found = play(scene)
    assert (found["model"], found["tokens"], found["chain"][:2]) == (FLASH, 500, [FLASH, NEXT])
    first = {c["project"]: c for c in found["candidates"] if c["model"] == FLASH}
    assert set(first) == {"p1", "p2", "p3", "p4"}
    assert 60 <= first["p1"]["wait_s"] <= 62
    assert first["p1"]["why"] == "the requests per minute are used up"
    assert (first["p2"]["wait_s"], first["p2"]["why"]) == (None, "the request is larger than the limit")
    assert (first["p3"]["wait_s"], first["p3"]["why"]) == (
        None,
        "the limit is 0: this model is not on the project's tier",
    )
    assert first["p4"]["why"] == "set aside: Google blocked the key as leaked"
    assert 0 < first["p4"]["wait_s"] <= 30
    second = {c["project"]: c for c in found["candidates"] if c["model"] == NEXT}
    assert (second["p1"]["wait_s"], second["p1"]["why"], second["p1"]["key"]) == (0, "free now", "k1")


@pytest.mark.parametrize("query", ["", "?model=", "?model=m&tokens=many", "?model=m&tokens=-1", "?tokens=5"])
def test_explain_says_what_it_expects(query: str) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([])) as app:
            got = await see(app, f"/admin/explain{query}")
            assert (got.status, "?model=NAME" in got.message) == (400, True)

    play(scene)


def test_explain_reserves_nothing() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([whole(answer())]), projects(1, rpm=1)) as app:
            for _ in range(3):
                await see(app, f"/admin/explain?model={FLASH}")
            assert (await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "0"})).status == 200

    play(scene)


def test_a_recent_request_is_told_by_its_id() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([refuses("overloaded"), whole(answer())]), projects(2)) as app:
            made = await call(app)
            got = await see(app, f"/admin/requests/{made.headers['x-pollux-request-id']}")
            assert got.status == 200
            assert [attempt["cause"] for attempt in got.json["attempts"]] == ["overloaded", "ok"]
            assert got.json["client"] == "tester"
            missing = await see(app, "/admin/requests/0123456789abcdef")
            assert (missing.status, missing.json["error"]["status"]) == (404, "NOT_FOUND")

    play(scene)


def test_answers_are_one_line_of_json() -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([])) as app:
            got = await see(app)
            assert got.body.endswith(b"\n")
            assert got.body.count(b"\n") == 1
            assert json.loads(got.body)["version"]

    play(scene)
