import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.gemini.tools import GROUNDING, MAPS, SEARCH, TOOLS, URLS
from pollux.gemini.verdict.causes import until_midnight
from pollux.gemini.verdict.quota_error import BESIDE
from pollux.gemini.verdict.rules import Verdict, judge, verdict_of
from pollux.pool import quota
from pollux.pool.candidates import LOOK_AT
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import day_of
from tests.pools import BEGAN, MODEL, FaultyStore, Full, House, Keys, Reservation, house, keys_of, memory, play


def _429(quota_id: str = "", metric: str = "", value: str = "15", delay: str = "", model: str = "") -> Verdict:
    violation: dict[str, Any] = {"quotaId": quota_id, "quotaMetric": metric, "quotaValue": value}
    if model:
        violation["quotaDimensions"] = {"model": model, "location": "global"}
    details: list[dict[str, Any]] = []
    if quota_id:
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]})
    if delay:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": 429, "message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED", "details": details}
    return judge(429, json.dumps({"error": error}), now=BEGAN)


def _minute(value: str = "15", delay: str = "", model: str = "") -> Verdict:
    return _429(
        "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "generate_content_requests", value, delay, model
    )


def _403(message: str, reason: str = "") -> Verdict:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    return judge(403, json.dumps({"error": {"code": 403, "message": message, "details": details}}), now=BEGAN)


async def _refusals(h: House, **more: Any) -> dict[str, str]:
    found = await h.reserve(wait=0, **more)
    assert isinstance(found, Full), found
    return {name: str(refusal.why) for name, refusal in found.refusals.items()}


async def _refused(verdict: Verdict, projects: int = 1, **limits: int) -> House:
    h = await house(keys_of(projects, **limits))
    await h.feedback.failed(await h.send(prefer_key="k0"), verdict)
    return h


# --- each cause's effect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "cause", "seconds"),
    [
        (_minute(delay="42s"), "rpm", 43),
        (_minute(), "rpm", 60),
        (_429("GenerateContentInputTokensPerModelPerMinute-FreeTier", "input_token_count", delay="7s"), "tpm", 8),
        (_429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", delay="30s"), "rpd", 3600),
        (_429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", delay="1200s"), "rpd", 1200),
        (_429("GenerateContentInputTokensPerModelPerDay", "input_token_count"), "tpd", 3600),
        (_429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", "0", "13s"), "unsupported", 86400),
        (_429(), "unknown-429", 60),
    ],
)
def test_a_quota_rests_as_long_as_the_verdict_says(verdict: Verdict, cause: str, seconds: float) -> None:
    async def scene() -> None:
        h = await _refused(verdict, 2)
        assert until_midnight(BEGAN) > 3600
        cooling = h.quota().value.cooldown
        assert cooling == quota.Cooldown(BEGAN + seconds, cause, 1)
        assert (await h.send(wait=0)).quota.project == "p1"
        assert (await h.send(wait=0, model="another-model")).quota.project == "p0"  # only this model's quota rests
        assert h.projects.health.value.keys == {}
        assert h.projects.health.value.projects == {}
        assert h.projects.quota("p0", MODEL).refused == 1

    play(scene())


@pytest.mark.parametrize(
    ("verdict", "cause", "seconds"),
    [
        (replace(_429(), cause="spend", blames="project", ceiling_s=600.0), "spend", 60),
        (judge(402, json.dumps({"error": {"code": 402, "message": "prepaid"}}), now=BEGAN), "prepay", 3600),
    ],
)
def test_a_project_goes_aside_with_all_its_keys_and_models(verdict: Verdict, cause: str, seconds: float) -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p"), Key("b", "p"), Key("c", "q")))
        await h.feedback.failed(await h.send(prefer_key="a"), verdict)
        assert h.projects.health.value.projects["p"][:2] == (BEGAN + seconds, cause)
        assert [(await h.send(wait=0, model=model)).key.id for model in (MODEL, MODEL, "another")] == ["c"] * 3
        await asyncio.sleep(seconds)
        assert {(await h.send()).key.id for _ in range(3)} == {"a", "b", "c"}

    play(scene())


@pytest.mark.parametrize(
    ("verdict", "seconds"),
    [
        (_403("Your API key was reported as leaked."), 30),
        (_403("suspended", "CONSUMER_SUSPENDED"), 600),
        (_403("disabled", "SERVICE_DISABLED"), 30),
        (_403("blocked", "API_KEY_HTTP_REFERRER_BLOCKED"), 30),
    ],
)
def test_a_key_goes_aside_and_its_project_serves_with_another(verdict: Verdict, seconds: float) -> None:
    async def scene() -> None:
        assert verdict.blames == "key"
        h = await house(Keys(Key("a", "p"), Key("b", "p")))
        await h.feedback.failed(await h.send(prefer_key="a"), verdict)
        assert h.projects.health.value.keys["a"][:2] == (BEGAN + seconds, verdict.cause)
        assert [(await h.send(wait=0)).key.id for _ in range(3)] == ["b"] * 3
        await h.feedback.set_aside("keys", "b", verdict)
        assert await _refusals(h) == {"p": f"aside:{verdict.cause}"}
        await asyncio.sleep(seconds)
        assert {(await h.send()).key.id for _ in range(2)} == {"a", "b"}

    play(scene())


def test_access_to_one_model_is_that_models_affair() -> None:
    async def scene() -> None:
        h = await _refused(_403("The caller does not have permission"))
        assert await _refusals(h) == {"p0": f"aside:{'model-access'}"}
        assert (await h.send(wait=0, model="another-model")).key.id == "k0"
        assert h.quota().value.cooldown is None
        await asyncio.sleep(86400)
        await h.send()

    play(scene())


@pytest.mark.parametrize("status", [None, 400, 404, 500, 503, 504])
def test_a_failure_that_blames_no_quota_project_or_key_changes_nothing(status: int | None) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        found = await h.send()
        commits, state = h.store.commits, h.quota().value
        await h.feedback.failed(found, judge(status, b"", now=BEGAN))
        assert (h.store.commits, h.quota().value) == (commits, state)
        await h.send(wait=0)

    play(scene())


def test_a_limit_of_zero_is_remembered_by_all_instances() -> None:
    async def scene() -> None:
        inner = await memory()
        first, second = [House(FaultyStore(inner), keys_of(1)) for _ in range(2)]
        verdict = _429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", "0")
        await first.feedback.failed(await first.send(), verdict)
        assert first.quota().value.learned == {}  # it rests for a day; a limit of 0 would be believed for a week
        assert await _refusals(second) == {"p0": "cooling:unsupported"}

    play(scene())


# --- what is learned --------------------------------------------------------------------------------------------------


def test_a_limit_is_learned_for_the_tier_of_its_project() -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p", tier="free", limits={"*": {"rpm": 15}})))
        await h.feedback.failed(await h.send(), _minute("5", "10s"))
        assert h.projects.limits(h.projects.by_name["p"], MODEL) == {"rpm": 5}
        assert h.quota("p").value.tier == "free"
        found = await asyncio.gather(*(h.reserve(wait=20) for _ in range(10)))
        assert sum(isinstance(one, Reservation) for one in found) == 4  # one of the five was refused
        assert h.clock >= 11

    play(scene())


def test_the_bucket_that_google_names_is_counted_by_from_then_on() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=15))
        await h.feedback.failed(await h.send(prefer_key="k0"), _minute("5", "50s", model="the-bucket"))
        assert h.projects.bucket(MODEL) == "the-bucket"
        assert h.projects.quota("p0", MODEL).document.value.cooldown is None
        cooling = h.projects.quota("p0", "the-bucket").document.value.cooldown
        assert cooling is not None
        assert cooling.until == BEGAN + 51
        assert h.projects.quota("p0", "the-bucket").document.value.learned["rpm"][0] == 5
        assert [(await h.send(wait=0)).quota.bucket for _ in range(3)] == ["the-bucket"] * 3
        other = House(FaultyStore(h.store.inner), keys_of(2, rpm=15))
        found = await other.send(wait=0)
        assert (found.quota.project, found.quota.bucket) == ("p1", "the-bucket")

    play(scene())


def test_models_of_one_bucket_share_what_it_has() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=2))
        h.projects.health.add_to_next_commit(lambda value, _: replace(value, buckets={"one": "b", "two": "b"}))
        await h.send(model="one")
        await h.send(model="two")
        assert await _refusals(h, model="one") == {"p0": "rpm"}

    play(scene())


@pytest.mark.parametrize("counter", sorted(BESIDE - {*TOOLS, GROUNDING}))
@pytest.mark.parametrize("model", ["", "/a-model", "/another-model"])
def test_a_counter_beside_that_of_generation_rests_nothing_and_teaches_nothing(counter: str, model: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=15))
        found = await h.send()
        state = h.quota().value
        await h.feedback.failed(found, replace(_minute("3", "50s"), bucket=counter + model))
        assert h.quota().value == state
        assert h.projects.bucket(MODEL) == MODEL
        assert h.pool.booking.pause_until == 0
        await h.send(wait=0)

    play(scene())


def test_a_tuned_models_bucket_is_no_other_counter() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        found = await h.send(model="tunedModels/mine")
        await h.feedback.failed(found, _minute("3", "50s", model="tunedModels/mine"))
        assert await _refusals(h, model="tunedModels/mine") == {"p0": "cooling:rpm"}
        await h.feedback.failed(await h.send(wait=0), _minute("3", "50s", model="tunedModels/base"))
        assert await _refusals(h) == {"p0": "cooling:rpm"}

    play(scene())


# --- the counters of tools --------------------------------------------------------------------------------------------


def _of_search(period: str = "PerDay", value: str = "1500", delay: str = "") -> Verdict:
    return _429(f"GroundingWithGoogleSearchRequests{period}PerProject", "search_grounding", value, delay, MODEL)


def _prose() -> Verdict:
    """As Google refuses search: in words that name no counter."""
    message = "You exceeded your current quota, please check your plan and billing details. For more information, …"
    return judge(429, json.dumps({"error": {"code": 429, "message": message}}), now=BEGAN)


ALL = frozenset(TOOLS)


@pytest.mark.parametrize(
    ("verdict", "asked", "resting"),
    [
        (_of_search(), {SEARCH}, {SEARCH}),
        (_of_search(), {SEARCH, URLS}, {SEARCH}),
        (_of_search(), set(), {SEARCH}),
        (_429("GroundingRequestsPerDay", "x/grounding"), ALL, {SEARCH, MAPS}),
        (_429("GroundingRequestsPerDay", "x/grounding"), {URLS}, {URLS}),
        (_429("GroundingRequestsPerDay", "x/grounding"), set(), set()),
        (_429(), {SEARCH}, {SEARCH}),
        (_429(), {MAPS, URLS}, {MAPS, URLS}),
        (_prose(), {URLS}, {URLS}),
    ],
)
def test_a_refusal_of_a_tool_rests_that_tool_of_that_project(
    verdict: Verdict, asked: set[str], resting: set[str]
) -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=15))
        found = await h.send(prefer_key="k0", tools=frozenset(asked))
        state = h.quota().value
        told = await h.feedback.failed(found, verdict)
        assert told.cause == "tool-quota"
        assert h.projects.health.value.tools.keys() == {f"p0/{tool}" for tool in resting}
        assert h.quota().value == state, "the model's own quota neither rests nor learns"
        assert not h.projects.health.value.projects
        assert h.pool.booking.pause_until == 0
        assert (await h.send(wait=0, prefer_key="k0")).quota.project == "p0", "without tools it is served there"
        for tool in TOOLS:
            elsewhere = await h.send(wait=0, prefer_key="k0", tools=frozenset({tool}))
            assert elsewhere.quota.project == ("p1" if tool in resting else "p0")

    play(scene())


@pytest.mark.parametrize(("verdict", "cause"), [(_429(), "unknown-429"), (_prose(), "spend"), (_minute(), "rpm")])
def test_without_tools_a_refusal_is_what_it_says(verdict: Verdict, cause: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        assert (await h.feedback.failed(await h.send(), verdict)).cause == cause
        assert not h.projects.health.value.tools

    play(scene())


def test_a_refusal_that_names_the_models_counter_rests_the_model_whatever_the_tools() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.feedback.failed(await h.send(tools=ALL), _minute(delay="42s"))
        assert not h.projects.health.value.tools
        assert await _refusals(h) == {"p0": "cooling:rpm"}

    play(scene())


def test_if_the_model_was_meant_after_all_the_next_plain_request_tells() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.feedback.failed(await h.send(tools=ALL), _prose())
        await h.feedback.failed(await h.send(wait=0), _prose())
        assert await _refusals(h) == {"p0": "aside:spend"}

    play(scene())


def test_a_tool_rests_twice_as_long_each_time_until_it_is_served() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        search = frozenset({SEARCH})
        rests = []
        for _ in range(6):
            await h.feedback.failed(await h.send(tools=search), _429())
            entry = h.projects.health.value.tools[f"p0/{SEARCH}"]
            rests.append(entry.until - h.pool.now())
            assert await _refusals(h, tools=search) == {"p0": f"aside:{SEARCH}:tool-quota"}
            await asyncio.sleep(entry.until - h.pool.now())
        assert rests == [60, 120, 240, 480, 600, 600]
        await h.feedback.served(await h.send())
        assert h.projects.health.value.tools, "what is served without the tool says nothing of it"
        await h.feedback.served(await h.send(tools=frozenset({URLS})))
        assert h.projects.health.value.tools
        await h.feedback.served(await h.send(tools=search))
        assert not h.projects.health.value.tools

    play(scene())


def test_what_was_sent_before_the_refusal_does_not_end_the_tools_rest() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        early = await h.send(tools=ALL)
        await asyncio.sleep(1)
        await h.feedback.failed(await h.send(tools=ALL), _of_search())
        await h.feedback.served(early)
        assert h.projects.health.value.tools

    play(scene())


def test_other_instances_leave_a_resting_tool_alone() -> None:
    async def scene() -> None:
        store = await memory()
        first, second = House(FaultyStore(store), keys_of(1)), House(FaultyStore(store), keys_of(1))
        await first.feedback.failed(await first.send(tools=ALL), _of_search())
        assert await _refusals(second, tools=ALL) == {"p0": f"aside:{SEARCH}:tool-quota"}
        assert await _refusals(second, tools=frozenset({SEARCH})) == {"p0": f"aside:{SEARCH}:tool-quota"}
        await second.send(wait=0, tools=frozenset({MAPS}))

    play(scene())


def test_a_slot_ahead_is_given_back_if_its_tool_rests_by_then() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=1))
        search = frozenset({SEARCH})
        found = [await h.send(prefer_key=key, tools=search) for key in ("k0", "k1")]
        waiting = asyncio.ensure_future(h.reserve(wait=200, tools=search, prefer_key="k0"))
        await asyncio.sleep(1)
        assert h.pool.waiting == 1
        for reservation in found:
            if reservation.quota.project == "p0":
                await h.feedback.failed(reservation, _of_search())
        moved = await waiting
        assert isinstance(moved, Reservation)
        assert moved.quota.project == "p1"

    play(scene())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_a_large_pool_only_a_few_are_looked_at_though_the_tool_rests_in_many(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(60), strategy=strategy)
        search = frozenset({SEARCH})
        for number in range(30):
            await h.feedback.failed(await h.send(prefer_key=f"k{number}", tools=search), _of_search())
        seen = set()
        for _ in range(60):
            first = h.pool.candidates.first(MODEL, h.pool.now(), tools=search)
            assert len(first) == LOOK_AT
            assert all(int(name[1:]) >= 30 for name in first)
            seen.add((await h.send(wait=0, tools=search)).quota.project)
        assert seen == {f"p{number}" for number in range(30, 60)}
        plain = {(await h.send(wait=0)).quota.project for _ in range(30)}
        assert {f"p{number}" for number in range(30)} & plain

    play(scene())


def test_a_probe_that_a_tool_ended_is_left_to_the_next_request() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.feedback.failed(await h.send(), _429())
        await asyncio.sleep(61)
        probe = await h.send(tools=ALL)
        assert probe.slot.probe
        await h.feedback.failed(probe, _of_search())
        assert (await h.send(wait=0)).slot.probe

    play(scene())


# --- the wall-clock minute --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "contradicts"),
    [
        (_minute("15"), True),
        (_minute("20"), True),
        (_minute("5"), False),
        (_429("GenerateContentInputTokensPerModelPerMinute", "input_token_count"), False),
        (_429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests"), False),
        (_429(), False),
    ],
)
def test_only_a_refusal_within_a_known_limit_puts_a_quota_back_to_the_sliding_window(
    verdict: Verdict, contradicts: bool
) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=15), window="minute")
        await h.feedback.failed(await h.send(), verdict)
        assert h.quota().value.sliding_until == (h.pool.now() + 86400 if contradicts else 0)

    play(scene())


def test_after_a_contradiction_a_minute_slides() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=3), window="minute")
        await asyncio.sleep(50 - BEGAN % 60 if BEGAN % 60 < 50 else 110 - BEGAN % 60)
        last = [await h.send() for _ in range(3)][-1]
        began = h.clock
        await h.feedback.served(await h.send())
        assert h.clock - began == pytest.approx(11, abs=0.6)  # the next minute has room again
        await h.feedback.failed(last, _minute("3", "1s"))
        began = h.clock
        await h.send()
        assert h.clock - began == pytest.approx(50.5, abs=1)  # those of the minute before count by now

    play(scene())


# --- streaks and probes -----------------------------------------------------------------------------------------------


def test_rests_double_while_it_goes_on_and_begin_anew_after_a_success() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        rests = []
        for _ in range(6):
            await h.feedback.failed(await h.send(wait=1000), _429())
            cooling = h.quota().value.cooldown
            assert cooling is not None
            rests.append(cooling.until - h.pool.now())
        assert rests == pytest.approx([60, 120, 240, 480, 600, 600])
        await h.feedback.served(await h.send(wait=1000))
        assert h.quota().value.cooldown is None
        await h.feedback.failed(await h.send(), _429())
        cooling = h.quota().value.cooldown
        assert cooling is not None
        assert cooling.until - h.pool.now() == 60

    play(scene())


def test_what_was_under_way_together_is_one_refusal_and_its_success_proves_nothing() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        under_way = [await h.send() for _ in range(6)]
        await asyncio.sleep(1)
        for found in under_way[:5]:
            await h.feedback.failed(found, _429())
        await h.feedback.served(under_way[5])
        assert h.quota().value.cooldown == quota.Cooldown(BEGAN + 61, "unknown-429", 1)

    play(scene())


def test_success_costs_no_commit_while_nothing_rests() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=9))
        found = await h.send()
        commits = h.store.commits
        await h.feedback.served(found)
        assert h.store.commits == commits
        assert found.quota.served == 1

    play(scene())


def test_success_after_a_rest_makes_key_and_project_healthy() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        suspended, spend = _403("x", "CONSUMER_SUSPENDED"), replace(_429(), cause="spend", blames="project")
        early = await h.send()
        await asyncio.sleep(5)
        await h.feedback.failed(early, suspended)
        await h.feedback.failed(early, spend)
        await h.feedback.served(early)  # it was sent before: it proves nothing
        assert set(h.projects.health.value.keys) == {"k0"}
        assert set(h.projects.health.value.projects) == {"p0"}
        await asyncio.sleep(600)
        commits = h.store.commits
        await h.feedback.served(await h.send())
        assert (h.projects.health.value.keys, h.projects.health.value.projects) == ({}, {})
        assert h.store.commits <= commits + 2
        await h.feedback.failed(await h.send(), suspended)
        assert h.projects.health.value.keys["k0"].until - h.pool.now() == 600

    play(scene())


def test_a_suspended_key_rests_twice_as_long_each_time() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        suspended = _403("x", "CONSUMER_SUSPENDED")
        rests = []
        for _ in range(9):
            await h.feedback.failed(await h.send(), suspended)
            rests.append(h.projects.health.value.keys["k0"].until - h.pool.now())
            await asyncio.sleep(rests[-1])
        assert rests == pytest.approx([min(86400, 600 * 2**number) for number in range(9)])

    play(scene())


def test_a_spent_day_is_probed_each_hour_and_returns_at_midnight() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000))
        spent = _429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", delay="20s")
        midnight = day_of(BEGAN)[2]
        asked = []
        await h.feedback.failed(await h.send(), spent)
        while h.pool.now() < midnight + 60:
            found = await h.reserve(wait=0)
            if isinstance(found, Reservation):
                found.sent = True
                asked.append(found.slot)
                if found.slot.start < midnight:
                    verdict = judge(429, _spent_body(), now=h.pool.now())
                    await h.feedback.failed(found, verdict)
                else:
                    await h.feedback.served(found)
            await asyncio.sleep(10)
        before = [slot for slot in asked if slot.start < midnight]
        assert len(before) <= (midnight - BEGAN) / 3600 + 2  # one an hour, and one at 00:00 UTC
        assert all(slot.probe for slot in before)
        assert len(asked) - len(before) >= 4

    play(scene())


def _spent_body() -> str:
    violation = {
        "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
        "quotaMetric": "requests",
        "quotaValue": "9",
    }
    return json.dumps({"error": {"code": 429, "details": [{"violations": [violation]}]}})


# --- the pool-wide pause ----------------------------------------------------------------------------------------------


async def _refuse_all(h: House, projects: Sequence[str], verdict: Verdict, apart: float = 1) -> None:
    found = [await h.send(only=project, wait=0) for project in projects]
    for reservation in found:
        await h.feedback.failed(reservation, verdict)
        await asyncio.sleep(apart)


BARE = _429()


@pytest.mark.parametrize("verdict", [BARE, _minute("15", "1s"), _minute("16", "1s")])
def test_when_all_refuse_though_they_had_room_the_pool_pauses(verdict: Verdict) -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=15))
        await _refuse_all(h, ["p0", "p1"], verdict)
        assert h.pool.booking.pause_until == 0
        await _refuse_all(h, ["p2"], verdict, 0)
        assert h.pool.booking.pause_until == h.pool.now() + 10
        assert set((await _refusals(h)).values()) == {"paused"}

    play(scene())


@pytest.mark.parametrize(
    ("projects", "verdict", "apart"),
    [
        (1, BARE, 0),  # one project alone tells nothing of the address
        (3, BARE, 2.6),  # over more than five seconds
        (3, _minute("5", "1s"), 0),  # they had no room: the limit is smaller than was thought
        (3, _429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", "0"), 0),
        (3, _429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests"), 0),
        (3, judge(503, b"", now=BEGAN), 0),
    ],
)
def test_otherwise_it_does_not(projects: int, verdict: Verdict, apart: float) -> None:
    async def scene() -> None:
        h = await house(keys_of(projects, rpm=15))
        await _refuse_all(h, [f"p{number}" for number in range(projects)], verdict, apart)
        assert h.pool.booking.pause_until == 0

    play(scene())


def test_projects_without_a_usable_key_do_not_hide_that_all_others_refuse() -> None:
    async def scene() -> None:
        keys = keys_of(4, rpm=15)
        keys.now = (*keys.now[:3], replace(keys.now[3], enabled=False))
        h = await house(keys)
        await h.reserve()
        await h.feedback.set_aside("keys", "k2", _403("x", "CONSUMER_SUSPENDED"))
        await _refuse_all(h, ["p0"], BARE)
        assert h.pool.booking.pause_until == 0
        await _refuse_all(h, ["p1"], BARE)
        assert h.pool.booking.pause_until > h.pool.now()

    play(scene())


def test_a_success_in_between_shows_that_it_is_not_the_address() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=15))
        good = await h.send(only="p1")
        await _refuse_all(h, ["p0"], BARE)
        await h.feedback.served(good)
        await _refuse_all(h, ["p1"], BARE)
        assert h.pool.booking.pause_until == 0

    play(scene())


def test_pauses_grow_end_and_begin_anew_after_a_success() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=1000))
        pauses = []
        for _ in range(8):
            await _refuse_all(h, ["p0", "p1"], _minute("1000", "1s"), 0)
            pauses.append(h.pool.booking.pause_until - h.pool.now())
            late = await h.reserve(wait=pauses[-1])
            assert isinstance(late, Reservation)  # it ends
            late.let_go()
        assert pauses == pytest.approx([min(60, 10 * 2**number) for number in range(8)])
        await h.feedback.served(await h.send())
        await _refuse_all(h, ["p0", "p1"], _minute("1000", "1s"), 0)
        assert h.pool.booking.pause_until - h.pool.now() == pytest.approx(10)

    play(scene())


def test_what_was_under_way_when_the_pause_began_does_not_lengthen_it() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=1000))
        late = [await h.send(only=project) for project in ("p0", "p1")]
        await _refuse_all(h, ["p0", "p1"], _minute("1000", "1s"), 0)
        until = h.pool.booking.pause_until
        await asyncio.sleep(1)
        for found in late:
            await h.feedback.failed(found, _minute("1000", "1s"))
        assert h.pool.booking.pause_until == until

    play(scene())


# --- probes that end without a word on the quota ----------------------------------------------------------------------


async def _probing() -> tuple[House, Reservation]:
    h = await house(keys_of(1))
    await h.feedback.failed(await h.send(), _429())
    await asyncio.sleep(60)
    found = await h.send(wait=0)
    assert found.slot.probe == "half-open"
    assert await _refusals(h) == {"p0": "probing:unknown-429"}
    return h, found


@pytest.mark.parametrize("status", [400, 404, 413])
def test_a_probe_that_the_client_spoilt_ends_the_rest(status: int) -> None:
    async def scene() -> None:
        h, found = await _probing()
        verdict = judge(status, b"", now=h.pool.now())
        assert verdict.action == "to-client"
        await h.feedback.failed(found, verdict)
        found.release()
        assert h.quota().value.cooldown is None
        assert [(await h.send(wait=0)).slot.probe for _ in range(3)] == [""] * 3

    play(scene())


@pytest.mark.parametrize("status", [None, 500, 503, "malformed"])
def test_a_probe_that_came_to_nothing_is_followed_by_the_next_at_once(status: int | str | None) -> None:
    async def scene() -> None:
        h, found = await _probing()
        now = h.pool.now()
        await h.feedback.failed(
            found, verdict_of(status, "") if isinstance(status, str) else judge(status, b"", now=now)
        )
        assert h.quota().value.cooldown is not None
        assert (await h.send(wait=0)).slot.probe == "half-open"
        found.release()
        assert await _refusals(h) == {"p0": "probing:unknown-429"}  # that lease is the other's, of the same slot

    play(scene())


def test_a_bad_request_does_not_tell_when_days_end() -> None:
    async def scene() -> None:
        h, found = await _probing()
        found.slot = found.slot._replace(probe="utc")
        await h.feedback.failed(found, judge(400, b"", now=h.pool.now()))
        assert h.quota().value.zone == "pacific"
        assert h.quota().value.cooldown is not None
        assert (await h.send(wait=0)).slot.probe == "half-open"

    play(scene())


def test_release_frees_the_lease_of_its_own_probe_and_nothing_else() -> None:
    async def scene() -> None:
        h, found = await _probing()
        used = quota.used(h.quota().value, h.pool.now())
        found.release()
        assert quota.used(h.quota().value, h.pool.now()) == used  # it was sent: it stays counted
        second = await h.send(wait=0)
        assert second.slot.probe == "half-open"
        await h.feedback.failed(second, _429())
        await h.quota().flush()
        refused, commits = h.quota().value, h.store.commits
        second.release()  # a refusal settled it
        await h.quota().flush()
        assert (h.quota().value, h.store.commits) == (refused, commits)
        await asyncio.sleep(1000)
        third = await h.send(wait=0)
        await h.feedback.served(third)
        third.release()
        ordinary = await h.send(wait=0)
        ordinary.release()
        await h.quota().flush()
        assert h.quota().value.cooldown is None
        assert quota.used(h.quota().value, h.pool.now()).requests == 2

    play(scene())


def test_a_request_larger_than_the_limit_teaches_it_and_keeps_no_smaller_one_waiting() -> None:
    async def scene() -> None:
        h = await house(keys_of(2))
        for _ in range(2):
            found = await h.send(tokens=300_000)
            await h.feedback.failed(found, Verdict("tpm", "quota", "next-project", 60.0, learned={"tpm": 250_000}))
        assert {h.quota(name).value.learned["tpm"][0] for name in ("p0", "p1")} == {250_000}
        for _ in range(4):
            await h.send(tokens=100_000)
        assert h.clock == 0

    play(scene())


def test_refusals_for_tokens_are_no_reason_to_rest_the_whole_pool() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=50, tpm=1000))
        for _ in range(3):
            found = await h.send(tokens=1)  # it was larger than it seemed
            await h.feedback.failed(found, Verdict("tpm", "quota", "next-project", 5.0, learned={"tpm": 1000}))
        assert h.pool.booking.pause_until == 0

    play(scene())
