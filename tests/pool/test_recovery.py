"""What is set aside comes back: by a free call beside other requests, and when nothing else can serve, by them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import UpstreamError
from pollux.gemini.verdict.rules import judge
from pollux.pool.health import Health, found_well, key_rests, set_aside
from pollux.pool.quota import cool
from pollux.pool.recovery import AT_ONCE, SLOWEST, SOONEST, TRY_EVERY
from pollux.server.app import App
from tests.gateway import (
    BEGAN,
    COUNT,
    FakeUpstream,
    Got,
    Keys,
    Says,
    Sent,
    answer,
    call,
    gateway,
    now,
    play,
    projects,
    refuses,
    whole,
)
from tests.gemini.test_verdict_corpus import CORPUS, text_of

ALONE = {"x-pollux-fallback": "off", "x-pollux-max-wait": "0"}
TWO_MINUTES = 120.0
OUTAGE = 600.0


class Google:
    """Refuses keys while a test says so; a free call is `countTokens`."""

    def __init__(self, refuse: Callable[[Sent], Says | UpstreamError | None]) -> None:
        self.refuse = refuse
        self.upstream = FakeUpstream(self._answer)

    def _answer(self, sent: Sent) -> Says | UpstreamError:
        refused = self.refuse(sent)
        if refused is not None:
            return refused
        return whole({"totalTokens": 1} if sent.verb == "countTokens" else answer())

    def asked(self, verb: str, key: str = "") -> list[float]:
        """When, in seconds since the beginning."""
        return [sent.at - BEGAN for sent in self.upstream.sent if sent.verb == verb and key in ("", sent.key)]


async def at(moment: float) -> None:
    await asyncio.sleep(moment - (now() - BEGAN))


async def ask(app: App, **headers: str) -> Got:
    return await call(app, headers=ALONE | {name.replace("_", "-"): value for name, value in headers.items()})


# --- beside other requests --------------------------------------------------------------------------------------------


def test_a_refused_key_is_asked_about_with_a_free_call_that_doubles_and_gets_no_request_meanwhile() -> None:
    google = Google(lambda sent: refuses("invalid-key") if sent.key == "k1" else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2), sticky=False) as app:
            while now() < BEGAN + 1000:
                assert (await ask(app)).status == 200
                await asyncio.sleep(2)
            probes = google.asked("countTokens", "k1")
            gaps = [b - a for a, b in zip([0.0, *probes], probes, strict=False)]
            assert gaps == pytest.approx([30, 60, 120, 240, 480], abs=3)
            assert len(google.asked("generateContent", "k1")) == 1
            assert google.asked("countTokens", "k2") == []

    play(scene)


def test_a_key_that_is_well_again_serves_after_one_free_call() -> None:
    google = Google(lambda sent: refuses("leaked-key") if sent.key == "k1" and now() < BEGAN + 10 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2), sticky=False) as app:
            await ask(app, x_pollux_key="k1")
            await at(31)
            await ask(app)  # starts the probe, and is served elsewhere
            await asyncio.sleep(0.1)
            for _ in range(3):
                await ask(app, x_pollux_key="k1")
            assert len(google.asked("countTokens")) == 1
            assert len(google.asked("generateContent", "k1")) == 4
            assert app.projects.health.value.keys == {}, "it served: nothing is held against it"

    play(scene)


def test_no_answer_says_nothing_of_the_key() -> None:
    """Neither well nor refused: it is asked again soon, and its rest does not grow."""

    def answers(sent: Sent) -> Says | UpstreamError | None:
        if sent.key != "k1" or now() > BEGAN + 60:
            return None
        return refuses("invalid-key") if sent.verb == "generateContent" else refuses("overloaded")

    google = Google(answers)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2), sticky=False) as app:
            await ask(app, x_pollux_key="k1")
            while now() < BEGAN + 80:
                await asyncio.sleep(1)
                await ask(app)
            probes = google.asked("countTokens")
            assert probes[0] == pytest.approx(30, abs=1)
            assert all(SOONEST <= b - a <= SOONEST + 1.1 for a, b in pairwise(probes))
            assert probes[-1] < 67
            assert google.asked("generateContent", "k1")[-1] > 60

    play(scene)


def test_a_free_call_that_is_taken_where_others_are_not_makes_no_key_rest_less() -> None:
    google = Google(
        lambda sent: refuses("service-disabled") if sent.key == "k1" and sent.verb != "countTokens" else None
    )

    async def scene() -> None:
        async with gateway(google.upstream, projects(2), sticky=False) as app:
            while now() < BEGAN + 1000:
                await ask(app)
                await asyncio.sleep(1)
            assert len(google.asked("generateContent", "k1")) <= 6

    play(scene)


def test_many_keys_that_are_due_are_asked_a_few_at_a_time() -> None:
    google = Google(lambda sent: None if sent.key == "k1" else refuses("invalid-key"))
    most = slow = 0

    async def scene() -> None:
        nonlocal most, slow
        inner = google.upstream.send

        async def send(*args: Any) -> Any:
            nonlocal most, slow
            if ":countTokens" not in args[1]:
                return await inner(*args)
            slow += 1
            most = max(most, slow)
            await asyncio.sleep(0.5)
            try:
                return await inner(*args)
            finally:
                slow -= 1

        google.upstream.send = send  # type: ignore[method-assign, assignment]
        async with gateway(google.upstream, projects(40), sticky=False) as app:
            value = Health()
            for number in range(2, 41):
                value = set_aside(value, BEGAN - 31, "keys", f"k{number}", "invalid-key", 30.0, 3600.0)
            await app.projects.health.apply(lambda _value, _now: (value, None))
            await asyncio.gather(*(ask(app) for _ in range(30)))
            await asyncio.sleep(1)
            assert most == AT_ONCE
            assert len(google.asked("countTokens")) == AT_ONCE

    play(scene)


# --- when nothing else can serve --------------------------------------------------------------------------------------


def test_when_all_keys_are_aside_requests_ask_before_the_rest_ends_but_not_each_of_them() -> None:
    google = Google(lambda sent: refuses("invalid-key") if now() < BEGAN + 200 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(1)) as app:
            while now() < BEGAN + 199:
                got = await call(app, headers=ALONE)
                assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
                await asyncio.sleep(0.5)
            probes = google.asked("countTokens")
            gaps = [b - a for a, b in pairwise(probes)]
            assert SOONEST <= min(gaps) <= max(gaps) <= SLOWEST + 1
            assert 5 <= len(probes) <= 30
            assert len(google.asked("generateContent")) == 1

    play(scene)


def test_a_request_waits_for_the_free_call_and_is_served_and_so_are_those_beside_it() -> None:
    google = Google(lambda sent: refuses("invalid-key") if now() < BEGAN + 10 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(3)) as app:
            assert (await ask(app)).status == 503
            await at(12)
            found = await asyncio.gather(*(call(app) for _ in range(20)))
            assert {got.status for got in found} == {200}
            assert len(google.asked("countTokens")) == 3
            assert (await call(app, path=COUNT)).status == 200

    play(scene)


def test_calls_that_take_no_quota_wait_for_it_too() -> None:
    google = Google(lambda sent: refuses("invalid-key") if now() < BEGAN + 10 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2)) as app:
            assert (await call(app, path=COUNT)).status == 503
            await at(12)
            assert (await call(app, path=COUNT)).status == 200

    play(scene)


def test_a_client_is_told_to_come_back_within_a_minute_when_no_key_is_usable() -> None:
    google = Google(lambda sent: refuses("prepay"))

    async def scene() -> None:
        async with gateway(google.upstream, projects(1)) as app:
            got = await ask(app)
            assert got.reason == "NO_USABLE_KEY"
            assert int(got.headers["retry-after"]) <= 60

    play(scene)


def test_one_request_at_a_time_tries_what_rests() -> None:
    google = Google(lambda sent: refuses("prepay"))

    async def scene() -> None:
        async with gateway(google.upstream, projects(1)) as app:
            while now() < BEGAN + 300:
                await asyncio.gather(*(ask(app) for _ in range(5)))
                await asyncio.sleep(1)
            sent = google.asked("generateContent")[5:]  # those of the beginning were under way together
            assert len(sent) == pytest.approx(300 / TRY_EVERY, abs=1)

    play(scene)


def test_a_project_that_can_never_serve_keeps_no_other_from_being_tried() -> None:
    google = Google(lambda sent: refuses("prepay") if now() < BEGAN + 200 else None)

    async def scene() -> None:
        keys = Keys([Key("k1", "p1", limits={"*": {"rpm": 0}}), Key("k2", "p2")])
        async with gateway(google.upstream, keys) as app:
            while (await ask(app)).status != 200:
                assert now() < BEGAN + 200 + TWO_MINUTES
                await asyncio.sleep(5)

    play(scene)


def test_nothing_is_tried_early_while_another_project_serves_before_long() -> None:
    google = Google(lambda sent: refuses("prepay") if sent.key == "k1" else None)

    async def scene() -> None:
        keys = Keys([Key("k1", "p1"), Key("k2", "p2", limits={"*": {"rpm": 1}})])
        async with gateway(google.upstream, keys) as app:
            await ask(app, x_pollux_key="k1")
            while now() < BEGAN + 600:
                await ask(app)
                await asyncio.sleep(3)
            assert len(google.asked("generateContent", "k1")) == 1

    play(scene)


def test_a_key_that_another_instance_found_well_is_seen_at_once_if_no_other_key_serves() -> None:
    google = Google(lambda sent: refuses("invalid-key") if sent.verb == "countTokens" or now() < BEGAN + 1 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(1), store=MemoryStore(now)) as app:
            assert (await ask(app)).status == 503
            await at(2.5)
            store = app.store
            document, version = (await store.read(["health"]))["health"]
            await store.commit("health", dict(document) | {"keys": {}}, version)
            assert (await ask(app)).status == 200

    play(scene)


def test_a_request_waits_for_the_first_free_call_and_not_for_the_end_of_a_key_that_is_surely_wrong() -> None:
    google = Google(lambda sent: refuses("invalid-key"))

    async def scene() -> None:
        async with gateway(google.upstream, projects(2)) as app:
            took = []
            for _ in range(3):
                began = now()
                assert (await call(app)).reason == "NO_USABLE_KEY"
                took.append(now() - began)
            assert took == pytest.approx([SOONEST, 0, 0], abs=0.1)
            assert len(google.asked("generateContent")) == 2

    play(scene)


def test_a_fault_of_a_few_seconds_costs_no_request_anything() -> None:
    google = Google(lambda sent: refuses("invalid-key") if now() < BEGAN + 2 else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2)) as app:
            one_model = {"x-pollux-fallback": "off"}
            got = await asyncio.gather(*(call(app, headers=one_model) for _ in range(5)), call(app, path=COUNT))
            assert [one.status for one in got] == [200] * 6
            assert now() - BEGAN == pytest.approx(SOONEST, abs=1.1)

    play(scene)


def test_a_free_call_that_is_taken_in_vain_costs_a_request_one_more_attempt() -> None:
    google = Google(lambda sent: refuses("service-disabled") if sent.verb != "countTokens" else None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(1)) as app:
            assert (await call(app, headers={"x-pollux-fallback": "off"})).reason == "NO_USABLE_KEY"
            assert len(google.asked("generateContent")) == 2
            assert now() - BEGAN == pytest.approx(SOONEST, abs=1.1)

    play(scene)


def test_a_tool_that_rests_in_all_projects_is_tried_early_too() -> None:
    google = Google(
        lambda sent: refuses("unknown-429") if b"google_search" in sent.body and now() < BEGAN + 300 else None
    )
    search = {"contents": [{"parts": [{"text": "Hello"}]}], "tools": [{"google_search": {}}]}

    async def scene() -> None:
        async with gateway(google.upstream, projects(12)) as app:
            while now() < BEGAN + 300:
                await call(app, headers=ALONE, body=search)
                assert (await ask(app)).status == 200
                await asyncio.sleep(5)
            assert len(app.projects.health.value.tools) == 12
            while (await call(app, headers=ALONE, body=search)).status != 200:
                assert now() < BEGAN + 300 + TWO_MINUTES
                await asyncio.sleep(5)

    play(scene)


def test_a_request_that_waits_for_many_free_calls_does_not_look_at_all_keys_after_each() -> None:
    google = Google(lambda sent: refuses("invalid-key"))

    async def scene() -> None:
        async with gateway(google.upstream, projects(200)) as app:
            assert (await ask(app)).status == 503
            await asyncio.sleep(SOONEST)
            looked = 0
            usable = app.projects.usable_key

            def counted(*given, **more):  # type: ignore[no-untyped-def]
                nonlocal looked
                looked += 1
                return usable(*given, **more)

            app.projects.usable_key = counted  # type: ignore[method-assign]
            got = await asyncio.gather(*(call(app, headers={"x-pollux-fallback": "off"}) for _ in range(10)))
            assert {each.status for each in got} == {503}
            assert len(google.asked("countTokens")) >= 200
            assert looked <= 10 * 200 * 5

    play(scene)


def test_a_request_that_waits_for_a_free_call_when_the_process_stops_fails() -> None:
    def answers(sent: Sent) -> Says:
        refused = refuses("invalid-key")
        return replace(refused, after=30.0) if sent.verb == "countTokens" else refused

    async def scene() -> None:
        async with gateway(FakeUpstream(answers), projects(20)) as app:
            waiting = [asyncio.ensure_future(call(app)) for _ in range(5)]
            await asyncio.sleep(5)
            assert not any(each.done() for each in waiting)
            app.pool.end(within=3.0)
            got = await asyncio.gather(*waiting)
            assert {each.reason for each in got} == {"STOPPING"}
            assert now() - BEGAN == pytest.approx(8, abs=0.1)

    play(scene)


def test_what_rests_is_tried_however_many_projects_rest_for_however_many_models() -> None:
    models = [f"a-model-{n}" for n in "abcdefgh"]
    google = Google(lambda sent: None)

    async def scene() -> None:
        async with gateway(google.upstream, projects(600)) as app:
            await app.projects.ready()
            for model in models:
                for n in range(1, 601):
                    document = app.projects.quota(f"p{n}", app.projects.bucket(model)).document
                    document.add_to_next_commit(lambda state, when: cool(state, when, "unknown-429", 600.0))
            left = set(models)
            while left and now() < BEGAN + TWO_MINUTES:
                for model in sorted(left):
                    got = await call(app, path=f"/v1beta/models/{model}:generateContent", headers=ALONE)
                    left -= {model} if got.status == 200 else set()
                await asyncio.sleep(5)
            assert not left

    play(scene)


def test_a_model_that_none_of_hundreds_of_projects_may_use_is_asked_for_once() -> None:
    upstream = FakeUpstream(lambda sent: refuses("retired-model"))

    async def scene() -> None:
        async with gateway(upstream, projects(600)) as app:
            assert (await ask(app)).status == 429
            assert len(upstream.sent) == 600
            assert (await ask(app)).status == 429
            assert len(upstream.sent) == 600

    play(scene)


def test_a_large_pool_comes_back_too() -> None:
    google = Google(
        lambda sent: refuses("prepay" if sent.verb != "countTokens" else "rpd") if now() < BEGAN + 200 else None
    )

    async def scene() -> None:
        async with gateway(google.upstream, projects(40)) as app:
            while now() < BEGAN + 200:
                await ask(app)
                await asyncio.sleep(5)
            while (await ask(app)).status != 200:
                assert now() < BEGAN + 200 + TWO_MINUTES
                await asyncio.sleep(5)

    play(scene)


# --- every error of Google's ------------------------------------------------------------------------------------------

PASSED_ON = [entry for entry in CORPUS if entry["http_status"] is not None and entry["shape"] != "websocket-close"]


@pytest.mark.parametrize("entry", PASSED_ON, ids=lambda entry: f"{entry['id']}-{entry['label']}")
def test_no_error_takes_the_pool_away_for_longer_than_two_minutes_after_google_is_well(
    entry: dict[str, Any],
) -> None:
    body = text_of(entry["body"])

    def answers(sent: Sent) -> Says | None:
        return whole(body, entry["http_status"]) if now() < BEGAN + OUTAGE else None

    google = Google(answers)

    async def scene() -> None:
        async with gateway(google.upstream, projects(2)) as app:
            while now() < BEGAN + OUTAGE:
                await ask(app)
                await asyncio.sleep(5)
            while (got := await ask(app)).status != 200:
                assert now() < BEGAN + OUTAGE + TWO_MINUTES, got.body
                await asyncio.sleep(5)
            verdict = judge(entry["http_status"], body, now=BEGAN)
            if (verdict.cooldown_s or 0.0) >= 60 and "/" not in (verdict.bucket or ""):  # who refuses is left in peace
                assert len(google.asked("generateContent")) <= 2 * (OUTAGE / TRY_EVERY + 6)

    play(scene)


# --- health, pure -----------------------------------------------------------------------------------------------------


def test_a_key_rests_until_a_probe_found_it_well_and_twice_as_long_if_it_is_refused_after_that() -> None:
    value = set_aside(Health(), 100.0, "keys", "a", "invalid-key", 30.0, 3600.0)
    assert key_rests(value.keys["a"], 129.0)
    assert key_rests(value.keys["a"], 1e9)
    well = found_well(value, 140.0, "a")
    assert not key_rests(well.keys["a"], 140.0)
    again = set_aside(well, 141.0, "keys", "a", "invalid-key", 30.0, 3600.0)
    assert again.keys["a"].until == 201.0
    assert found_well(value, 140.0, "b").keys == value.keys
    assert well.checked == {"a"}


def test_other_rests_of_a_key_end_by_themselves() -> None:
    value = set_aside(Health(), 100.0, "keys", "a", "key-source", 60.0)
    assert key_rests(value.keys["a"], 159.0)
    assert not key_rests(value.keys["a"], 160.0)
    assert not key_rests(None, 0.0)
