"""retry: which project and model is tried next, what the client gets in the end, and what a request leaves behind."""

import asyncio
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.store.contract import Document, Version
from pollux.backends.store.memory import MemoryStore
from pollux.backends.upstream import UpstreamError
from pollux.pool import health
from pollux.pool.quota_document import unpack
from pollux.server.app import App
from tests.gateway import (
    CHAT,
    COUNT,
    FLASH,
    GENERATE,
    HELLO,
    NEXT,
    STREAM,
    FakeUpstream,
    Got,
    Keys,
    Says,
    Sent,
    Simulated,
    answer,
    call,
    event,
    gateway,
    now,
    part,
    play,
    projects,
    refuses,
    simulated,
    streams,
    value_of,
    whole,
)

RESET = UpstreamError("reset", "the connection broke")
UNREACHABLE = UpstreamError("unreachable", "no connection to gemini.example:443")
MALFORMED = UpstreamError("malformed", "the answer has the status 600, which is not expected here")
ONE_MODEL = {"x-pollux-fallback": "off"}
LATE = {"x-pollux-max-wait": "0"}


async def ask(upstream: FakeUpstream, keys: Keys, count: int = 1, **request: Any) -> Got:
    """The last of that many requests, one after the other."""
    async with gateway(upstream, keys) as app:
        for _ in range(count - 1):
            await call(app, **request)
        return await call(app, **request)


# --- attempts --------------------------------------------------------------------------------------------------------


TROUBLES = [*(refuses(kind) for kind in ("overloaded", "internal", "bad-gateway", "deadline")), RESET]
IN_TROUBLE = pytest.mark.parametrize("trouble", TROUBLES, ids=["503", "500", "502", "504", "reset"])


@pytest.mark.parametrize("headers", [{}, ONE_MODEL])
@pytest.mark.parametrize("count", [1, 2, 9])
@IN_TROUBLE
def test_trouble_is_tried_at_most_four_times(trouble: Any, count: int, headers: dict[str, str]) -> None:
    upstream = FakeUpstream(lambda sent: trouble)
    got = play(lambda: ask(upstream, projects(count), headers=headers))
    assert len(upstream.sent) == 4
    assert got.headers["x-pollux-attempts"] == "4"
    assert got.status in (500, 502, 503, 504)


def test_how_often_trouble_is_tried_is_a_setting() -> None:
    async def scene(most: int, headers: dict[str, str]) -> list[str]:
        upstream = FakeUpstream(lambda sent: refuses("overloaded"))
        async with gateway(upstream, projects(9), max_attempts=most) as app:
            await call(app, headers=headers)
        return upstream.models

    assert play(lambda: scene(1, {})) == [FLASH]
    assert play(lambda: scene(2, {})) == [FLASH, NEXT]
    assert play(lambda: scene(2, ONE_MODEL)) == [FLASH] * 2
    assert play(lambda: scene(6, {})) == [FLASH] * 5 + [NEXT]


@pytest.mark.parametrize("trouble", ["rpd", "model-access", "unsupported"])
def test_a_project_that_refuses_is_asked_once_per_model(trouble: str) -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: refuses(trouble, model=sent.model))
        async with gateway(upstream, projects(9), max_attempts=1) as app:
            got = await call(app)
            chain = app.projects.catalog.chain(FLASH)
        asked = [(sent.model, sent.key) for sent in upstream.sent]
        assert sorted(asked) == sorted(itertools.product(chain, (f"k{number}" for number in range(1, 10))))
        assert upstream.models == [model for model in chain for _ in range(9)], "all projects before the next model"
        assert got.headers["x-pollux-attempts"] == str(len(asked))

    play(scene)


@pytest.mark.parametrize("refusal", ["rpd", "unknown-429", "invalid-key", "model-access", "prepay"])
def test_refusals_do_not_use_up_the_attempts_while_a_project_is_free(refusal: str) -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()) if sent.key in ("k3", "k7") else refuses(refusal))
    got = play(lambda: ask(upstream, projects(8), headers=LATE))
    assert (got.status, got.headers["x-pollux-model"]) == (200, FLASH)
    assert got.headers["x-pollux-key"] in ("k3", "k7")


def test_refusals_and_trouble_together() -> None:
    said = {"k1": refuses("rpd"), "k2": refuses("overloaded"), "k3": refuses("invalid-key"), "k4": refuses("rpd")}
    upstream = FakeUpstream(lambda sent: said.get(sent.key, whole(answer())))
    got = play(lambda: ask(upstream, projects(5)))
    assert got.status == 200
    assert upstream.keys == ["k1", "k2", "k3", "k4", "k5"]


@pytest.mark.parametrize(("headers", "ends"), [({}, 65.0), (LATE, 10.0), ({"x-pollux-max-wait": "30"}, 30.0)])
def test_a_request_that_hundreds_of_projects_refuse_ends_by_its_deadline_and_leaves_a_short_record(
    headers: dict[str, str], ends: float
) -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(refuses("rpd", model=sent.model).pieces[0], 429, after=0.4))
        async with gateway(upstream, projects(200)) as app:
            began = now()
            got = await call(app, headers=headers)
            assert ends <= now() - began < ends + 0.5
            assert (got.status, got.headers["x-pollux-attempts"]) == (429, str(len(upstream.sent)))
            assert len(upstream.sent) > 20
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
            shown = record.as_json()
            assert len(shown["attempts"]) == 20
            assert shown["attempts_left_out"] == {"rpd": len(upstream.sent) - 20}
            assert app.journal.totals()["causes"] == {"rpd": len(upstream.sent)}

    play(scene)


@IN_TROUBLE
def test_with_one_project_trouble_is_tried_again_there_before_anything_else(trouble: Any) -> None:
    upstream = FakeUpstream([trouble, trouble, whole(answer())])
    got = play(lambda: ask(upstream, projects(1), headers=LATE))
    assert (got.status, got.headers["x-pollux-model"], got.headers["x-pollux-attempts"]) == (200, FLASH, "3")
    first, second = (b.at - a.at for a, b in itertools.pairwise(upstream.sent))
    assert 0.125 <= first <= 0.375
    assert 0.25 <= second <= 0.75


@pytest.mark.parametrize("path", [GENERATE, STREAM, CHAT])
def test_a_stream_or_chat_too(path: str) -> None:
    body = {"model": FLASH, "messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"contents": []}
    upstream = FakeUpstream([refuses("overloaded"), streams(event(answer())) if path == STREAM else whole(answer())])
    got = play(lambda: ask(upstream, projects(1), path=path, body=body, headers=ONE_MODEL))
    assert (got.status, upstream.keys) == (200, ["k1", "k1"])


def test_trouble_goes_to_another_key_of_the_one_project_if_it_has_one() -> None:
    upstream = FakeUpstream([refuses("overloaded"), whole(answer())])
    got = play(lambda: ask(upstream, Keys([Key("k1", "p1"), Key("k2", "p1")])))
    assert (got.status, sorted(upstream.keys)) == (200, ["k1", "k2"])


def test_trouble_is_tried_on_the_same_project_rather_than_wait_for_another() -> None:
    async def scene() -> None:
        keys = Keys([Key("k1", "p1", limits={"*": {"rpm": 9}}), Key("k2", "p2", limits={"*": {"rpm": 1}})])
        upstream = FakeUpstream([whole(answer()), refuses("overloaded"), whole(answer())])
        async with gateway(upstream, keys, sticky=False) as app:
            await call(app, headers={"x-pollux-key": "k2"})
            began = now()
            got = await call(app)
            assert now() - began < 1
        assert (got.status, upstream.keys) == (200, ["k2", "k1", "k1"])

    play(scene)


IMAGES = {"contents": [{"parts": [{"text": "a cat"}]}], "generationConfig": {"responseModalities": ["IMAGE"]}}


@pytest.mark.parametrize(
    ("trouble", "times"),
    [(refuses("overloaded"), 2), (UNREACHABLE, 2), (refuses("rpd"), 2), (refuses("internal"), 1), (RESET, 1)],
    ids=["503", "unreachable", "429", "500", "reset"],
)
def test_images_are_asked_for_again_only_if_they_were_surely_not_made(trouble: Any, times: int) -> None:
    upstream = FakeUpstream([trouble, whole(answer())])
    got = play(lambda: ask(upstream, projects(2), body=IMAGES, headers=ONE_MODEL))
    assert len(upstream.sent) == times
    assert (got.status == 200) == (times == 2)


def test_a_song_is_not_asked_for_again_when_it_may_have_been_made() -> None:
    upstream = FakeUpstream([refuses("internal"), whole(answer())])
    got = play(lambda: ask(upstream, projects(2), path="/v1beta/models/lyria-3-pro-preview:generateContent"))
    assert (got.status, len(upstream.sent)) == (500, 1)


def test_a_limit_of_the_minute_that_a_refusal_taught_is_waited_for() -> None:
    upstream = FakeUpstream(lambda sent: refuses("rpm") if len(upstream.sent) == 1 else whole(answer()))
    got = play(lambda: ask(upstream, projects(1)))
    assert got.status == 200
    assert got.headers["x-pollux-attempts"] == "2"
    assert int(got.headers["x-pollux-wait-ms"]) > 1000


def test_it_is_waited_for_once_and_not_when_the_client_does_not_wait() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: refuses("rpm"))
        async with gateway(upstream, projects(2), max_attempts=99, max_wait=600) as app:
            got = await call(app, headers={"x-pollux-fallback": "off"})
            assert got.status == 429
            assert sorted(upstream.keys) == ["k1", "k1", "k2", "k2"], "each once more"
            got = await call(app, headers={"x-pollux-fallback": "off", "x-pollux-max-wait": "0"})
            assert got.status == 429
            assert len(upstream.sent) == 4

    play(scene)


def test_a_refused_quota_sends_the_request_to_another_project_not_to_another_key_of_the_same() -> None:
    keys = Keys([Key("k1", "p1"), Key("k2", "p1"), Key("k3", "p2")])
    upstream = FakeUpstream(lambda sent: refuses("rpm") if sent.key != "k3" else whole(answer()))
    got = play(lambda: ask(upstream, keys))
    assert upstream.keys == ["k1", "k3"]
    assert got.status == 200
    assert got.headers["x-pollux-key"] == "k3"
    assert got.headers["x-pollux-attempts"] == "2"


def test_a_model_in_trouble_is_tried_in_another_project_not_with_another_key_of_the_same() -> None:
    keys = Keys([Key("k1", "p1"), Key("k2", "p1"), Key("k3", "p2")])
    upstream = FakeUpstream([refuses("overloaded"), whole(answer())])
    play(lambda: ask(upstream, keys))
    assert upstream.keys == ["k1", "k3"]


def test_a_model_in_trouble_is_tried_again_elsewhere_twice_with_growing_pauses_then_the_next_model() -> None:
    upstream = FakeUpstream(lambda sent: refuses("overloaded") if sent.model == FLASH else whole(answer()))
    got = play(lambda: ask(upstream, projects(6)))
    assert upstream.models == [FLASH, FLASH, FLASH, NEXT]
    assert len({sent.key for sent in upstream.sent[:3]}) == 3
    first, second = (b.at - a.at for a, b in itertools.pairwise(upstream.sent[:3]))
    assert 0.125 <= first <= 0.375
    assert 0.25 <= second <= 0.75
    assert got.headers["x-pollux-model"] == NEXT


def test_pauses_between_attempts_are_not_all_the_same() -> None:
    def pauses() -> float:
        upstream = FakeUpstream([refuses("overloaded"), whole(answer())])
        play(lambda: ask(upstream, projects(2)))
        return upstream.sent[1].at - upstream.sent[0].at

    assert len({pauses() for _ in range(5)}) > 1


@pytest.mark.parametrize("trouble", [RESET, UpstreamError("timeout", "no answer within the time allowed")])
def test_a_connection_that_breaks_before_the_answer_is_tried_again_elsewhere(trouble: UpstreamError) -> None:
    upstream = FakeUpstream([trouble, whole(answer())])
    got = play(lambda: ask(upstream, projects(2)))
    assert got.status == 200
    assert upstream.keys == ["k1", "k2"]


def test_an_answer_that_breaks_before_its_first_byte_left_is_tried_again() -> None:
    broken = Says([b'{"candidates": [', RESET], length=900)
    got = play(lambda: ask(FakeUpstream([broken, whole(answer())]), projects(2)))
    assert (got.status, got.json) == (200, answer())


def test_an_upstream_that_never_answers_is_the_clients_504() -> None:
    upstream = FakeUpstream(lambda sent: UpstreamError("timeout", "no answer within the time allowed"))
    got = play(lambda: ask(upstream, projects(2)))
    assert (got.status, got.reason) == (504, "UPSTREAM_TIMEOUT")
    assert "POLLUX_TIMEOUT" in got.message


def test_an_upstream_that_is_unreachable_is_the_clients_502() -> None:
    got = play(lambda: ask(FakeUpstream(lambda sent: UNREACHABLE), projects(2)))
    assert (got.status, got.reason) == (502, "UPSTREAM_UNREACHABLE")
    assert "gemini.example:443" in got.message


@pytest.mark.parametrize("path", [GENERATE, STREAM, COUNT, CHAT])
def test_an_answer_that_is_not_valid_http_is_the_clients_502_and_nothing_is_sent_twice(path: str) -> None:
    upstream = FakeUpstream(lambda sent: MALFORMED)
    body = {"model": FLASH, "messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else HELLO
    got = play(lambda: ask(upstream, projects(3), path=path, body=body))
    assert got.status == 502
    assert "status 600" in got.message
    assert len(upstream.sent) == 1


def test_an_answer_that_turns_malformed_before_its_first_content_is_not_asked_for_again() -> None:
    upstream = FakeUpstream(lambda sent: streams(b": hello\n\n", MALFORMED))
    got = play(lambda: ask(upstream, projects(3), path=STREAM))
    assert (got.status, got.reason, len(upstream.sent)) == (502, "UPSTREAM_UNREACHABLE", 1)


def test_a_malformed_answer_of_a_fallback_model_ends_the_request_too() -> None:
    upstream = FakeUpstream(lambda sent: refuses("unsupported") if sent.model == FLASH else MALFORMED)
    got = play(lambda: ask(upstream, projects(1)))
    assert (got.status, got.reason) == (502, "UPSTREAM_UNREACHABLE")
    assert upstream.models == [FLASH, NEXT]


def test_what_never_reached_google_gives_its_slot_back() -> None:
    upstream = FakeUpstream([UNREACHABLE, whole(answer())])
    got = play(lambda: ask(upstream, projects(1, rpm=1), headers=ONE_MODEL | LATE))
    assert (got.status, len(upstream.sent)) == (200, 2)


def test_what_may_have_reached_google_keeps_its_slot() -> None:
    upstream = FakeUpstream([RESET])
    got = play(lambda: ask(upstream, projects(1, rpm=1), 2, headers=ONE_MODEL | LATE))
    assert (got.status, got.reason, len(upstream.sent)) == (429, "QUOTA_BUSY", 1)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_three_bad_keys_of_four_cost_no_client_anything() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()) if sent.key == "k4" else refuses("invalid-key"))
        keys = projects(4)
        async with gateway(upstream, keys) as app:
            assert [(await call(app)).status for _ in range(5)] == [200] * 5
        assert sorted(upstream.keys[:4]) == ["k1", "k2", "k3", "k4"]
        assert upstream.keys[4:] == ["k4"] * 4
        assert sorted(keys.reread_ids) == ["k1", "k2", "k3"]

    play(scene)


def test_a_key_set_aside_is_asked_about_with_a_free_call_and_serves_again() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([refuses("invalid-key"), *[whole(answer() | {"totalTokens": 1}) for _ in range(9)]])
        async with gateway(upstream, projects(2), sticky=False) as app:
            for _ in range(3):
                await call(app)
            assert upstream.keys == ["k1", "k2", "k2", "k2"]
            await asyncio.sleep(31)
            for _ in range(3):
                await call(app)
                await asyncio.sleep(1)
            asked = [(sent.key, sent.verb) for sent in upstream.sent[4:]]
            assert asked[1] == ("k1", "countTokens") or asked[0] == ("k1", "countTokens")
            assert ("k1", "generateContent") in asked
            assert not app.projects.health.value.keys, "it works again: nothing is held against it"

    play(scene)


def test_a_key_that_was_changed_meanwhile_is_read_again_and_used() -> None:
    keys = projects(1)
    keys.fresh["k1"] = value_of("k1-changed")
    upstream = FakeUpstream(lambda sent: whole(answer()) if sent.key == "k1-changed" else refuses("leaked-key"))
    got = play(lambda: ask(upstream, keys))
    assert got.status == 200
    assert upstream.keys == ["k1", "k1-changed"]


class Restless(Keys):
    """Its source says something else each time, and nothing that can be read."""

    async def reread(self, key_id: str) -> bool:
        self.reread_ids.append(key_id)
        return True


class Unreadable(Restless):
    async def value(self, key_id: str) -> Secret:
        raise KeySourceError("secret pollux-key-k1: permission denied")


def test_a_refused_key_is_read_again_only_once() -> None:
    keys = Restless([Key("k1", "p1")])
    upstream = FakeUpstream(lambda sent: refuses("invalid-key"))
    got = play(lambda: ask(upstream, keys))
    assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
    assert (keys.reread_ids, [sent.verb for sent in upstream.sent]) == (
        ["k1"],
        ["generateContent"] * 2 + ["countTokens"],
    )


def test_a_key_that_cannot_be_read_is_set_aside_for_a_minute_and_nothing_is_sent() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([])
        async with gateway(upstream, Unreadable([Key("k1", "p1")])) as app:
            got = await call(app)
            aside = app.projects.health.value.keys["k1"]
        assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
        assert aside.until - now() == 60
        assert not upstream.sent

    play(scene)


class Silent(Unreadable):
    async def value(self, key_id: str) -> Secret:
        if key_id == "k2":
            return await super(Restless, self).value(key_id)
        error = KeySourceError("secret pollux-key-k1: no answer")
        error.transient = True
        raise error


def test_a_key_whose_source_does_not_answer_just_now_is_passed_over_and_not_set_aside_for_all() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([whole(answer())])
        async with gateway(upstream, Silent([Key("k1", "p1"), Key("k2", "p2")])) as app:
            got = await call(app, headers={"x-pollux-key": "k1"})
            assert not app.projects.health.value.keys
        assert (got.status, got.headers["x-pollux-key"]) == (200, "k2")
        assert upstream.keys == ["k2"]

    play(scene)


class Slow(Keys):
    async def value(self, key_id: str) -> Secret:
        if key_id not in self.reread_ids:
            self.reread_ids.append(key_id)
            await asyncio.sleep(3)
        return await super().value(key_id)


def test_a_slot_that_passed_while_the_secret_was_fetched_is_given_back_and_another_taken() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([whole(answer())])
        async with gateway(upstream, Slow([Key("k1", "p1", limits={"*": {"rpm": 5}})])) as app:
            began = now()
            got = await call(app)
            state = app.projects.quota("p1", FLASH).document.value
            assert [(slot * 0.5 >= began + 2.5, want.requests) for slot, want in state.slots.items()] == [(True, 1)]
        assert got.status == 200

    play(scene)


def test_without_a_usable_key_the_error_says_which_and_what_to_do() -> None:
    got = play(lambda: ask(FakeUpstream(lambda sent: refuses("leaked-key")), projects(2), 2))
    assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
    assert "p1: Google blocked the key as leaked" in got.message
    assert "pollux keys check" in got.message
    assert 20 < int(got.headers["retry-after"]) <= 30


def test_without_any_key_the_error_says_how_to_add_one() -> None:
    got = play(lambda: ask(FakeUpstream([]), Keys([])))
    assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
    assert "pollux keys add" in got.message


def test_a_preferred_key_is_for_the_first_attempt_only() -> None:
    upstream = FakeUpstream([refuses("rpm"), whole(answer())])
    play(lambda: ask(upstream, projects(4), headers={"x-pollux-key": "k3"}))
    assert upstream.keys[0] == "k3"
    assert upstream.keys[1] != "k3"


def test_the_answer_headers_name_key_and_model_never_a_value() -> None:
    got = play(lambda: ask(FakeUpstream([whole(answer())]), projects(1)))
    assert (got.headers["x-pollux-key"], got.headers["x-pollux-model"]) == ("k1", FLASH)
    assert value_of("k1") not in str(got.headers) + got.body.decode()


# --- refusals that are the client's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["bad-request", "not-found", "location", "resource-permission"])
def test_a_refusal_of_the_request_itself_is_passed_on_unchanged_and_at_once(trouble: str) -> None:
    upstream = FakeUpstream(lambda sent: refuses(trouble))
    got = play(lambda: ask(upstream, projects(4)))
    assert len(upstream.sent) == 1
    expected = refuses(trouble)
    assert (got.status, got.chunks) == (expected.status, list(expected.pieces))
    assert got.headers["content-type"] == "application/json"


def test_bytes_that_are_no_json_are_passed_on_as_they_came() -> None:
    page = "<html>Grüße, \x00\u2028</html>".encode()
    got = play(lambda: ask(FakeUpstream([whole(page, 413)]), projects(1)))
    assert (got.status, got.body) == (413, page)


def test_a_body_that_echoes_the_key_is_redacted() -> None:
    echo = {"error": {"code": 400, "message": f"bad field for api_key:{value_of('k1')}", "status": "INVALID_ARGUMENT"}}
    got = play(lambda: ask(FakeUpstream([whole(echo, 400)]), projects(1)))
    assert got.json["error"]["message"] == "bad field for api_key:[redacted]"
    assert got.headers["content-length"] == str(len(got.body))


def test_a_refusal_of_a_fallback_model_never_reaches_the_client() -> None:
    upstream = FakeUpstream(lambda sent: refuses("overloaded" if sent.model == FLASH else "bad-request"))
    got = play(lambda: ask(upstream, projects(1)))
    assert NEXT in upstream.models
    assert (got.status, got.json["error"]["status"]) == (503, "UNAVAILABLE")
    assert got.body == refuses("overloaded").pieces[0]


def test_a_refusal_of_a_fallback_model_is_not_the_answer_either_when_quotas_refused_before() -> None:
    upstream = FakeUpstream(lambda sent: refuses("rpd" if sent.model == FLASH else "not-found"))
    got = play(lambda: ask(upstream, projects(9)))
    assert NEXT in upstream.models
    assert (got.status, got.reason) == (503, "QUOTA_EXHAUSTED_TODAY")


def test_after_a_refusal_of_one_fallback_model_the_next_is_asked() -> None:
    said = {FLASH: refuses("overloaded"), NEXT: refuses("not-found")}
    upstream = FakeUpstream(lambda sent: said.get(sent.model, whole(answer())))
    got = play(lambda: ask(upstream, projects(1)))
    assert upstream.models == [FLASH, FLASH, FLASH, NEXT, "gemini-3.5-flash-lite"]
    assert got.status == 200


def test_when_the_first_model_had_no_room_the_fallbacks_refusal_is_not_the_answer() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()) if sent.model == FLASH else refuses("not-found"))
        keys = Keys([Key("k1", "p1", limits={FLASH: {"rpm": 1}})])
        async with gateway(upstream, keys) as app:
            await call(app)
            got = await call(app, headers=LATE)
        assert NEXT in upstream.models
        assert (got.status, got.reason) == (429, "QUOTA_BUSY")
        assert FLASH in got.message

    play(scene)


def test_a_model_that_is_overloaded_for_ever_ends_in_its_own_503_and_blames_no_key() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: refuses("overloaded"))
        async with gateway(upstream, projects(4)) as app:
            got = await call(app)
            assert not app.projects.health.value.keys
            assert all(owned.document.value.cooldown is None for owned in app.projects.quotas.values())
        assert (got.status, got.body, len(upstream.sent)) == (503, refuses("overloaded").pieces[0], 4)

    play(scene)


def test_no_fallback_when_the_client_forbids_it() -> None:
    upstream = FakeUpstream(lambda sent: refuses("overloaded"))
    got = play(lambda: ask(upstream, projects(9), headers=ONE_MODEL))
    assert (got.status, set(upstream.models), len(upstream.sent)) == (503, {FLASH}, 4)


def test_an_error_that_is_our_own_is_logged_as_ours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "pollux.relay")
    got = play(lambda: ask(FakeUpstream([refuses("multiple-credentials")]), projects(2)))
    assert got.status == 400
    assert any("how the gateway sent it" in message for message in caplog.messages)


def test_a_request_whose_time_ran_out_says_that_others_may_succeed() -> None:
    upstream = FakeUpstream(lambda sent: whole(refuses("rpm").pieces[0], 429, after=2))
    got = play(lambda: ask(upstream, projects(9), headers=ONE_MODEL | LATE))
    assert (got.status, got.reason, got.headers["retry-after"]) == (429, "QUOTA_BUSY", "1")
    assert "6 attempts were refused" in got.message


# --- thought signatures ----------------------------------------------------------------------------------------------


def signature_scene(answers: Sequence[Says], keys: Keys, **settings: Any) -> tuple[FakeUpstream, Got]:
    """Two requests of one conversation; the first leaves its project without room for half a minute."""

    async def scene() -> tuple[FakeUpstream, Got]:
        upstream = FakeUpstream(answers)
        async with gateway(upstream, keys, **settings) as app:
            await call(app)
            await asyncio.sleep(30)
            return upstream, await call(app, headers=ONE_MODEL)

    return play(scene)


def test_a_refused_thought_signature_goes_once_more_to_the_project_that_made_it() -> None:
    said = [whole(answer()), refuses("thought-signature"), whole(answer())]
    upstream, got = signature_scene(said, projects(3, rpm=1))
    assert upstream.keys == ["k1", "k2", "k1"], "although k3 has room"
    assert upstream.sent[2].at - upstream.sent[0].at > 60, "it waits for its project"
    assert got.status == 200


def test_a_thought_signature_refused_where_it_was_made_is_the_clients() -> None:
    said = [whole(answer()), refuses("thought-signature"), refuses("thought-signature")]
    upstream, got = signature_scene(said, projects(2, rpm=1))
    assert upstream.keys == ["k1", "k2", "k1"]
    assert (got.status, got.body) == (400, refuses("thought-signature").pieces[0])


def test_a_thought_signature_of_an_unknown_conversation_is_the_clients() -> None:
    said = [whole(answer()), refuses("thought-signature")]
    upstream, got = signature_scene(said, projects(2, rpm=1), sticky=False)
    assert (got.status, upstream.keys) == (400, ["k1", "k2"])


def turns(*texts: str) -> dict[str, Any]:
    """The user and the model speak in turn; the instruction is the same in every conversation."""
    contents = [{"role": ("user", "model")[i % 2], "parts": [{"text": text}]} for i, text in enumerate(texts)]
    return {"contents": contents, "systemInstruction": {"parts": [{"text": "Be brief."}]}}


@pytest.mark.parametrize("limits", [{}, {"rpm": 50}])
def test_a_conversation_that_goes_on_stays_with_its_project(limits: dict[str, int]) -> None:
    async def scene() -> FakeUpstream:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(4, **limits)) as app:
            for body in (turns("A"), turns("B"), turns("A", "x", "y"), turns("A", "x", "y", "z", "?")):
                await call(app, body=body)
        return upstream

    first, other, *later = play(scene).keys
    assert first != other
    assert later == [first, first]


@pytest.mark.parametrize("limits", [{}, {"rpm": 50}])
@pytest.mark.parametrize("body", [HELLO, turns("the same question")])
def test_what_is_asked_for_the_first_time_is_tied_to_no_project(limits: dict[str, int], body: Any) -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()))

    async def scene() -> None:
        async with gateway(upstream, projects(4, **limits)) as app:
            for _ in range(8):
                await call(app, body=body)

    play(scene)
    assert Counter(upstream.keys) == {"k1": 2, "k2": 2, "k3": 2, "k4": 2}


# --- waiting for rests -----------------------------------------------------------------------------------------------


async def rest(app: App, kind: health.Kind, name: str, seconds: float) -> None:
    def change(value: health.Health, moment: float) -> health.Health:
        return health.set_aside(value, moment, kind, name, "key-source", seconds)

    await app.projects.ready()
    await app.projects.health.note(change)


@pytest.mark.parametrize(("kind", "name"), [("keys", "k{}"), ("projects", "p{}"), ("models", "p{}/" + FLASH)])
def test_a_rest_that_ends_in_time_is_waited_for(kind: health.Kind, name: str) -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(2)) as app:
            await rest(app, kind, name.format(1), 30)
            await rest(app, kind, name.format(2), 3600)
            began = now()
            assert (await call(app, headers=ONE_MODEL | {"x-pollux-max-wait": "29"})).status in (429, 503)
            assert (now() - began, upstream.sent) == (0, []), "who would wait in vain hears of it at once"
            got = await call(app, headers=ONE_MODEL)
            assert (got.status, upstream.keys) == (200, ["k1"])
            assert 30 <= now() - began < 31
            assert 30_000 <= int(got.headers["x-pollux-wait-ms"]) < 31_000

    play(scene)


def test_a_project_that_is_free_is_not_waited_for() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(2)) as app:
            await rest(app, "keys", "k1", 30)
            began = now()
            got = await call(app)
            assert (got.status, upstream.keys, now() - began) == (200, ["k2"], 0)

    play(scene)


def test_a_key_that_refused_this_request_is_not_waited_for() -> None:
    upstream = FakeUpstream(lambda sent: refuses("unknown-429"))
    began: list[float] = []

    async def scene() -> Got:
        async with gateway(upstream, projects(1)) as app:
            began.append(now())
            got = await call(app, headers=ONE_MODEL)
            began.append(now())
            return got

    got = play(scene)
    assert (got.status, got.reason, len(upstream.sent)) == (429, "QUOTA_BUSY", 1)
    assert began[0] == began[1]
    assert "Google refused without saying why" in got.message
    assert 59 <= int(got.headers["retry-after"]) <= 61


def burst(count: int, keys: Keys, simulator: Simulated, **settings: Any) -> tuple[list[int], int, float]:
    """The statuses of so many requests at once, how many calls were refused upstream, and how long it took."""

    async def scene() -> tuple[list[int], int, float]:
        async with gateway(simulator, keys, **settings) as app:
            began = now()
            async with asyncio.TaskGroup() as group:
                bodies = [{"contents": [{"parts": [{"text": f"question {number}"}]}]} for number in range(count)]
                calls = [group.create_task(call(app, headers=ONE_MODEL, body=body)) for body in bodies]
            refused = sum(simulator.simulator.enforcer.refused.values())
            return [task.result().status for task in calls], refused, now() - began

    return play(scene)


def test_a_burst_of_one_and_a_half_minutes_is_served_whole_where_limits_are_known() -> None:
    keys = projects(8, rpm=15)
    statuses, refused, took = burst(180, keys, simulated(keys, {"rpm": 15}))
    assert statuses == [200] * 180
    assert refused == 0
    assert took < 65


@pytest.mark.parametrize(("enforcement", "count"), [("sliding", 1), ("bucket", 2), ("minute", 8), ("sliding", 16)])
def test_and_where_they_are_learned_meanwhile(enforcement: str, count: int) -> None:
    keys = projects(count)
    statuses, refused, took = burst(
        count * 15 * 3 // 2, keys, simulated(keys, {"rpm": 15}, kind=enforcement, latency=0.4)
    )
    assert set(statuses) == {200}
    assert refused <= count * 15, "each project is asked twice at most by those who find no room"
    assert took < 65


# --- waiting and falling back ----------------------------------------------------------------------------------------


def full_then(fallback_after: float | None, limits: dict[str, dict[str, int]]) -> tuple[FakeUpstream, float]:
    """The second of two requests for a model of one a minute, and how long it took."""

    async def scene() -> tuple[FakeUpstream, float]:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(
            upstream, Keys([Key("k1", "p1", limits=limits)]), fallback_after=fallback_after, max_wait=65.0
        ) as app:
            for model in limits:
                await call(app, path=f"/v1beta/models/{model}:generateContent", headers=ONE_MODEL)
            began = now()
            got = await call(app)
            assert got.status == 200
            return upstream, now() - began

    return play(scene)


def test_a_request_waits_for_its_model_rather_than_fall_back() -> None:
    upstream, took = full_then(None, {FLASH: {"rpm": 1}})
    assert upstream.models[-1] == FLASH
    assert 60 < took < 63


def test_with_fallback_after_the_next_model_comes_before_a_longer_wait() -> None:
    upstream, took = full_then(5.0, {FLASH: {"rpm": 1}})
    assert (upstream.models[-1], took) == (NEXT, 0)


def test_with_fallback_after_and_no_room_anywhere_it_waits_all_the_same() -> None:
    chain = (FLASH, NEXT, "gemini-3.5-flash-lite", "gemini-3.1-flash-lite")
    upstream, took = full_then(5.0, {model: {"rpm": 1} for model in chain})
    assert upstream.models[-1] == FLASH
    assert 60 < took < 63


def test_a_spent_day_is_not_asked_for_and_says_when_it_returns() -> None:
    upstream = FakeUpstream(lambda sent: whole(answer()))
    got = play(lambda: ask(upstream, projects(2, rpd=1), 3, headers=ONE_MODEL))
    assert len(upstream.sent) == 2
    assert (got.status, got.reason) == (503, "QUOTA_EXHAUSTED_TODAY")
    assert 0 < int(got.headers["retry-after"]) <= 86400


def test_a_model_that_no_project_may_use_is_not_asked_for_again() -> None:
    upstream = FakeUpstream(lambda sent: refuses("unsupported"))
    got = play(lambda: ask(upstream, projects(2), 3, headers=ONE_MODEL))
    assert len(upstream.sent) == 2
    assert (got.status, got.reason) == (429, "MODEL_NOT_AVAILABLE")
    assert "limit: 0" in got.message


def test_an_alias_is_sent_under_its_models_name() -> None:
    upstream = FakeUpstream([whole(answer())])
    got = play(lambda: ask(upstream, projects(1), path="/v1beta/models/production:generateContent"))
    assert upstream.models == [FLASH]
    assert got.headers["x-pollux-model"] == FLASH


def test_a_fallback_of_an_openai_call_changes_nothing_but_the_model() -> None:
    body = b'{"messages":[{"role":"user","content":"Gr\\u00fc\xc3\x9fe"}] , "model" :"%s", "n":1}' % FLASH.encode()
    upstream = FakeUpstream(lambda sent: refuses("overloaded") if FLASH.encode() in sent.body else whole(answer()))
    got = play(lambda: ask(upstream, projects(1), path=CHAT, body=body))
    assert got.status == 200
    assert [sent.body for sent in upstream.sent] == [body] * 3 + [body.replace(FLASH.encode(), NEXT.encode())]
    assert {sent.target for sent in upstream.sent} == {CHAT}
    assert upstream.sent[0].header("authorization") == f"Bearer {value_of('k1')}"


# --- size ------------------------------------------------------------------------------------------------------------


def big(tokens: int) -> dict[str, Any]:
    """About that many tokens by estimate."""
    return {"contents": [{"role": "user", "parts": [{"text": "four" * tokens}]}]}


def counting(counted: int) -> FakeUpstream:
    return FakeUpstream(lambda sent: whole({"totalTokens": counted}) if sent.verb == "countTokens" else whole(answer()))


def test_google_counts_only_what_is_above_a_quarter_of_the_smallest_token_limit() -> None:
    async def scene() -> None:
        small = Key("k1", "p1", limits={"*": {"tpm": 10_000}})
        upstream = counting(3000)
        async with gateway(upstream, Keys([small, Key("k2", "p2", limits={"*": {"tpm": 90_000}})])) as app:
            await call(app, body=big(2000))
            assert [sent.verb for sent in upstream.sent] == ["generateContent"]
            await call(app, body=big(3500))
        assert [sent.verb for sent in upstream.sent] == ["generateContent", "countTokens", "generateContent"]
        asked = json.loads(upstream.sent[1].body)["generateContentRequest"]
        assert asked == big(3500) | {"model": f"models/{FLASH}"}
        assert upstream.sent[1].target == COUNT

    play(scene)


def test_what_google_counted_is_what_is_booked() -> None:
    async def scene() -> None:
        said = {"countTokens": whole({"totalTokens": 9000}), "generateContent": whole(answer(9000))}
        upstream = FakeUpstream(lambda sent: said[sent.verb])
        async with gateway(upstream, projects(1, tpm=10_000)) as app:
            await call(app, body=big(5000), headers=ONE_MODEL)
            got = await call(app, body=big(2000), headers=ONE_MODEL | LATE)
        assert (got.status, got.reason) == (429, "QUOTA_BUSY")
        assert "tokens per minute" in got.message

    play(scene)


def test_a_request_larger_than_every_limit_is_told_its_size_and_the_limit_at_once() -> None:
    async def scene() -> None:
        keys = Keys([Key(f"k{limit}", f"p{limit}", limits={"*": {"tpm": limit}}) for limit in (10_000, 20_000)])
        upstream = counting(23_456)
        async with gateway(upstream, keys) as app:
            began = now()
            got = await call(app, body=big(30_000), headers=ONE_MODEL)
            assert now() == began, "no wait that cannot end"
        assert [sent.verb for sent in upstream.sent] == ["countTokens"]
        assert (got.status, got.reason) == (400, "TOO_LARGE_FOR_QUOTA")
        assert "about 23456 input tokens" in got.message
        assert "more than 20000" in got.message

    play(scene)


def test_more_texts_at_once_than_requests_a_minute_are_told_so() -> None:
    texts = {"requests": [{"content": {"parts": [{"text": "Hi"}]}} for _ in range(7)]}
    path = "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    got = play(lambda: ask(FakeUpstream([]), projects(2, rpm=5), path=path, body=texts))
    assert (got.status, got.reason) == (400, "TOO_LARGE_FOR_QUOTA")
    assert "7 requests" in got.message
    assert "more than 5" in got.message


def test_a_request_larger_than_one_limit_goes_where_it_fits() -> None:
    keys = Keys([Key(f"k{limit}", f"p{limit}", limits={"*": {"tpm": limit}}) for limit in (10_000, 40_000)])
    upstream = counting(23_456)
    got = play(lambda: ask(upstream, keys, body=big(30_000)))
    assert (got.status, got.headers["x-pollux-key"]) == (200, "k40000")


@pytest.mark.parametrize(
    "count",
    [RESET, whole({"totalTokens": 99_999}, 500), whole(b"no number"), whole({"totalTokens": 99_999}, after=9)],
    ids=["reset", "500", "no number", "too slow"],
)
def test_when_google_cannot_count_the_estimate_stands(count: Says | UpstreamError) -> None:
    upstream = FakeUpstream([count, whole(answer())])
    got = play(lambda: ask(upstream, projects(1, tpm=10_000), body=big(4000)))
    assert got.status == 200
    assert [sent.verb for sent in upstream.sent] == ["countTokens", "generateContent"]
    assert upstream.sent[1].at - upstream.sent[0].at <= 5
    assert got.headers["x-pollux-attempts"] == "1"


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_streams_chunks_pass_as_they_come() -> None:
    pieces = [event(part("One"))[:30], event(part("One"))[30:], event(part("Two")), event(answer())]

    async def scene() -> None:
        upstream = FakeUpstream([streams(pieces[0], pieces[1], 5.0, pieces[2], 5.0, pieces[3])])
        async with gateway(upstream, projects(1)) as app:
            began = now()
            got = await call(app, path=STREAM)
        assert got.body == b"".join(pieces)
        assert got.chunks == [pieces[0] + pieces[1], *pieces[2:]]
        assert [at - began for at in got.times] == [0, 5, 10]
        assert got.complete

    play(scene)


FIRST_ERROR = event({"error": {"code": 503, "message": "This model is overloaded.", "status": "UNAVAILABLE"}})
EMPTY_START = event({"usageMetadata": {"promptTokenCount": 2}, "modelVersion": FLASH})


@pytest.mark.parametrize(
    "start",
    [
        streams(FIRST_ERROR),
        streams(EMPTY_START, FIRST_ERROR),
        streams(EMPTY_START, RESET),
        streams(),
        streams(EMPTY_START),
        refuses("overloaded"),
    ],
    ids=["error", "error after an empty event", "reset", "nothing", "no content", "status"],
)
def test_a_stream_that_fails_before_its_first_content_is_tried_again(start: Says) -> None:
    upstream = FakeUpstream([start, streams(event(answer()))])
    got = play(lambda: ask(upstream, projects(2), path=STREAM))
    assert upstream.keys == ["k1", "k2"]
    assert (got.status, got.body) == (200, event(answer()))


@pytest.mark.parametrize(
    "trouble",
    [RESET, FIRST_ERROR, b'\n{"error":{"code":503,"message":"gone","status":"UNAVAILABLE"}}\n'],
    ids=["reset", "error event", "bare error"],
)
def test_after_the_first_content_nothing_is_sent_again(trouble: UpstreamError | bytes) -> None:
    upstream = FakeUpstream([streams(event(part("One")), trouble)])

    async def scene() -> None:
        async with gateway(upstream, projects(4)) as app:
            got = await call(app, path=STREAM)
            assert app.journal.endings.total() == 1
        assert len(upstream.sent) == 1
        assert got.status == 200
        assert got.body.startswith(event(part("One")))
        assert b'"error"' in got.body
        assert b'"UNAVAILABLE"' in got.body.replace(b'": "', b'":"').replace(b" ", b"")

    play(scene)


def test_a_first_event_error_on_every_attempt_is_an_error_in_shape() -> None:
    got = play(lambda: ask(FakeUpstream(lambda sent: streams(FIRST_ERROR)), projects(2), path=STREAM))
    assert (got.status, got.reason) == (503, "UPSTREAM_ERROR")
    assert "overloaded" in got.message


def test_a_stream_without_a_finish_reason_is_passed_on_and_counted() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([streams(event(part("One"))), streams(event(part("One")), event(answer()))])
        async with gateway(upstream, projects(1)) as app:
            got = await call(app, path=STREAM)
            assert got.body == event(part("One"))
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
            assert record.ended == "truncated"
            await call(app, path=STREAM)
            assert app.journal.totals()["endings"] == {"truncated": 1}

    play(scene)


def test_an_array_stream_passes_unframed() -> None:
    pieces = [b"[" + json.dumps(part("One")).encode(), b",\r\n" + json.dumps(answer()).encode(), b"]"]
    upstream = FakeUpstream([streams(*pieces)])
    path = STREAM.partition("?")[0]
    got = play(lambda: ask(upstream, projects(1), path=path))
    assert got.chunks == pieces
    assert upstream.sent[0].target == path


# --- settlement ------------------------------------------------------------------------------------------------------


class Hanging(MemoryStore):
    """Commits as usual, until it is told to hang."""

    hangs = False

    async def commit(self, name: str, document: Document, version: Version | None) -> Version:
        if self.hangs:
            await asyncio.sleep(30)
        return await super().commit(name, document, version)


def booked(app: App) -> list[int]:
    """Tokens of each quota, as the store itself holds them."""
    return [sum(want.tokens for want in owned.document.value.slots.values()) for owned in app.projects.quotas.values()]


@pytest.mark.parametrize(("path", "says"), [(GENERATE, whole), (STREAM, lambda body: streams(event(body)))])
def test_true_tokens_take_the_place_of_the_estimate(path: str, says: Callable[[Any], Says]) -> None:
    async def scene() -> None:
        async with gateway(FakeUpstream([says(answer(700))]), projects(1, tpm=10_000)) as app:
            got = await call(app, path=path, body=big(100))
            assert booked(app) == [700]
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
            assert record.tokens == 700
            assert 90 < record.estimated < 200

    play(scene)


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_the_settlement_comes_before_the_last_bytes(path: str) -> None:
    """No work outlives its request: a client that has all of its answer may see the instance frozen."""

    async def scene() -> None:
        store = MemoryStore(now)
        seen: list[int] = []

        async def send_through(scope: Any, receive: Any, send: Any) -> None:
            async def spying(message: Any) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    found = await store.scan("quota:")
                    seen.extend(sum(tokens) for tokens in [[w[1] for w in _wants(d)] for d, _ in found.values()])
                await send(message)

            await app.routes(scope, receive, spying)

        said = whole(answer(700)) if path == GENERATE else streams(event(answer(700)))
        async with gateway(FakeUpstream([said]), projects(1, tpm=10_000), store=store) as app:
            await call(send_through, path=path, body=big(100))
        assert seen == [700]

    play(scene)


def _wants(document: Document) -> list[Any]:
    return [tuple(want) for want in unpack(document).slots.values()]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_store_that_hangs_holds_an_answer_back_for_a_tenth_of_a_second_at_most(path: str) -> None:
    async def scene() -> None:
        store = Hanging(now)

        def says(sent: Sent) -> Says:
            store.hangs = True
            return whole(answer(700)) if path == GENERATE else streams(event(answer(700)))

        async with gateway(FakeUpstream(says), projects(1, tpm=10_000), store=store) as app:
            began = now()
            got = await call(app, path=path, body=big(100))
            assert got.complete
            assert 0.09 < now() - began <= 0.11
            store.hangs = False

    play(scene)


def test_a_difference_that_does_not_matter_waits_for_nobody() -> None:
    async def scene() -> None:
        store = Hanging(now)

        def says(sent: Sent) -> Says:
            store.hangs = True
            return whole(answer(120))

        async with gateway(FakeUpstream(says), projects(1, tpm=100_000), store=store) as app:
            began = now()
            await call(app, body=big(100))
            assert now() == began
            store.hangs = False

    play(scene)


# --- clients that leave ----------------------------------------------------------------------------------------------


def test_a_waiting_client_that_leaves_gives_its_slot_back() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole(answer()))
        async with gateway(upstream, projects(1, rpm=1), max_wait=90.0) as app:
            await call(app, headers=ONE_MODEL)
            began = now()
            got = await call(app, headers=ONE_MODEL, leaves=10)
            assert not got.status
            assert 10 <= now() - began < 11
            assert app.pool.waiting == 0
            await call(app, headers=ONE_MODEL)
            assert 60 < now() - began < 63, "its slot, the next one there is, is free again"
            assert app.journal.totals()["endings"] == {"client-gone": 1}
            assert app.journal.statuses[499] == 1
        assert len(upstream.sent) == 2

    play(scene)


class LateKeys(Keys):
    """A value is fetched once, which takes a while; or again and again, if there is none."""

    missing = False

    async def value(self, key_id: str) -> Secret:
        if self.missing or key_id not in self.reread_ids:
            await asyncio.sleep(5)
        if self.missing:
            raise KeySourceError("the value cannot be read")
        self.reread_ids.append(key_id)
        return await super().value(key_id)


def test_a_request_ends_though_each_key_takes_long_to_say_that_it_has_no_value() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda _: whole(answer()))
        keys = LateKeys(projects(2, rpm=5).all)
        keys.missing = True
        async with gateway(upstream, keys, max_wait=20.0) as app:
            got = await call(app, leaves=100)
            assert got.status in (429, 503)
            assert not upstream.sent

    play(scene)


def test_a_client_that_leaves_while_the_keys_value_is_fetched_gives_its_slot_back() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda _: whole(answer()))
        async with gateway(upstream, LateKeys([Key("k1", "p1", limits={"*": {"rpm": 1}})])) as app:
            began = now()
            await call(app, leaves=1)
            got = await call(app, leaves=20)
            assert (got.status, len(upstream.sent)) == (200, 1)
            assert got.times[-1] - began < 10, "the slot was free again"

    play(scene)


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_client_that_leaves_before_the_answer_ends_the_call_upstream(path: str) -> None:
    async def scene() -> None:
        upstream = FakeUpstream([whole(answer(), after=300)])
        async with gateway(upstream, projects(1)) as app:
            began = now()
            await call(app, path=path, leaves=20)
            assert 20 <= now() - began < 21
            assert app.journal.under_way == 0
        assert not upstream.answers, "the call was cancelled"

    play(scene)


def test_a_client_that_leaves_in_a_stream_closes_it_upstream() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([streams(event(part("One")), 300.0, event(answer()))])
        async with gateway(upstream, projects(1)) as app:
            began = now()
            got = await call(app, path=STREAM, leaves=20)
            assert 20 <= now() - began < 21
            assert upstream.answers[0].closed
            assert got.chunks == [event(part("One"))]
            assert app.journal.totals()["endings"] == {"client-gone": 1}

    play(scene)


# --- calls that take no quota ----------------------------------------------------------------------------------------

FILES = "/v1beta/unheard-of"


def test_uncounted_calls_take_the_keys_in_turn_and_no_quota() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole({"totalTokens": 1}))
        async with gateway(upstream, projects(3, rpm=1)) as app:
            assert [(await call(app, path=COUNT)).status for _ in range(6)] == [200] * 6
            assert not any(owned.document.value.slots for owned in app.projects.quotas.values())
        assert upstream.keys == ["k1", "k2", "k3"] * 2

    play(scene)


@pytest.mark.parametrize("trouble", [refuses("internal"), refuses("overloaded"), RESET], ids=["500", "503", "reset"])
@pytest.mark.parametrize(
    ("method", "path", "times"),
    [("GET", FILES, 4), ("HEAD", FILES, 4), ("POST", COUNT, 4), ("POST", FILES, 1), ("PATCH", FILES, 1)],
)
def test_only_calls_that_change_nothing_are_sent_again_after_a_5xx(
    method: str, path: str, times: int, trouble: Says | UpstreamError
) -> None:
    upstream = FakeUpstream(lambda sent: trouble)
    got = play(lambda: ask(upstream, projects(3), method=method, path=path))
    assert len(upstream.sent) == times
    assert len(set(upstream.keys)) == min(times, 3), "every project before one is asked again"
    assert got.status in (500, 502, 503)
    assert all(b.at > a.at for a, b in itertools.pairwise(upstream.sent)), "with a pause"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_refused_key_is_no_matter_for_any_uncounted_call(method: str) -> None:
    upstream = FakeUpstream([refuses("invalid-key"), refuses("suspended"), whole({})])
    got = play(lambda: ask(upstream, projects(3), method=method, path=FILES))
    assert (got.status, upstream.keys) == (200, ["k1", "k2", "k3"])


def test_an_uncounted_call_tries_every_key_before_it_says_that_none_is_usable() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: refuses("leaked-key"))
        async with gateway(upstream, projects(6)) as app:
            first = await call(app, "GET", FILES)
            second = await call(app, "GET", FILES)
        assert len([sent for sent in upstream.sent if sent.method == "GET"]) == 6
        for got in (first, second):
            assert (got.status, got.reason) == (503, "NO_USABLE_KEY")
            assert "pollux keys check" in got.message

    play(scene)


def test_an_uncounted_call_waits_for_a_key_whose_rest_ends_in_time() -> None:
    async def scene() -> None:
        upstream = FakeUpstream(lambda sent: whole({}))
        async with gateway(upstream, projects(1)) as app:
            await rest(app, "keys", "k1", 30)
            assert (await call(app, "GET", FILES, headers={"x-pollux-max-wait": "29"})).status == 503
            began = now()
            assert (await call(app, "GET", FILES)).status == 200
            assert 30 <= now() - began < 31

    play(scene)


def test_a_refusal_of_an_uncounted_call_is_passed_on() -> None:
    got = play(lambda: ask(FakeUpstream([refuses("not-found")]), projects(2), method="GET", path=FILES))
    assert (got.status, got.body) == (404, refuses("not-found").pieces[0])


def test_a_download_passes_in_pieces_and_breaks_as_one() -> None:
    async def scene() -> None:
        said = Says([b"a" * 10, 1.0, b"b" * 10, RESET], length=30)
        async with gateway(FakeUpstream([said]), projects(1)) as app:
            got = await call(app, "GET", "/v1beta/files/x:download")
            assert app.journal.totals()["endings"] == {"broken": 1}
        assert got.broken
        assert not got.complete
        assert got.body.startswith(b"a" * 10)

    play(scene)


@pytest.mark.parametrize("path", ["/v1beta/models?pageSize=1000", "/v1beta/openai/models"])
def test_the_list_of_models_shows_the_aliases(path: str) -> None:
    async def scene() -> None:
        keys = projects(1)
        async with gateway(simulated(keys, {}), keys) as app:
            got = await call(app, "GET", path)
            aliases = set(app.projects.catalog.aliases)
        entries = got.json.get("models") or got.json["data"]
        names = {(entry.get("name") or entry["id"]).removeprefix("models/") for entry in entries}
        assert aliases
        assert aliases <= names
        assert FLASH in names

    play(scene)


def test_a_model_got_by_its_alias_is_the_model() -> None:
    upstream = FakeUpstream([whole({"name": f"models/{FLASH}"})])
    got = play(lambda: ask(upstream, projects(1), method="GET", path="/v1beta/models/production"))
    assert got.status == 200
    assert upstream.sent[0].target == f"/v1beta/models/{FLASH}"


# --- what is kept of a request ---------------------------------------------------------------------------------------


def test_every_attempt_is_recorded_with_its_cause() -> None:
    async def scene() -> None:
        upstream = FakeUpstream([refuses("rpm"), refuses("invalid-key"), RESET, whole(answer())])
        async with gateway(upstream, projects(4)) as app:
            got = await call(app)
            record = app.journal.find(got.headers["x-pollux-request-id"])
            assert record is not None
        assert [attempt.cause for attempt in record.attempts] == ["rpm", "invalid-key", "network", "ok"]
        assert (record.client, record.asked, record.used, record.sent) == ("tester", FLASH, FLASH, 4)
        assert value_of("") not in str(record.as_json())

    play(scene)


def test_a_pool_under_the_simulators_quotas_is_never_refused() -> None:
    async def scene() -> None:
        keys = projects(3, rpm=5)
        upstream = simulated(keys, {"rpm": 5})
        async with gateway(upstream, keys, max_wait=120.0) as app:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(call(app, headers=ONE_MODEL)) for _ in range(30)]
            assert [task.result().status for task in calls] == [200] * 30
        assert sum(upstream.simulator.enforcer.refused.values()) == 0

    play(scene)
