"""Which model, key and moment a request gets, and what its client may say about it."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, gateway, simulated

PRO = "gemini-3.1-pro-preview"
AFTER_PRO = "gemini-3-flash-preview"


@pytest.fixture
def without_pro(tmp_path: Path) -> Iterator[Pair]:
    """Five free projects, one more than the tries that a request has at trouble."""
    with simulated(5) as (simulator, url), gateway(tmp_path, url, keys=range(1, 6)) as started:
        simulator.faults.append(Fault(kind="unsupported", model=PRO))
        yield Pair(started, simulator)


def test_a_model_that_no_project_has_falls_back(without_pro: Pair) -> None:
    first, second, third = (without_pro.gateway.generate(PRO) for _ in range(3))
    assert [answer.status for answer in (first, second, third)] == [200, 200, 200], first.body
    assert {answer.headers["x-pollux-model"] for answer in (first, second, third)} == {AFTER_PRO}
    asked = [call.project for call in without_pro.simulator.calls if call.model == PRO]
    assert len(asked) == len(set(asked)) == 5
    assert third.headers["x-pollux-attempts"] == "1"


def test_fallback_off_says_so_and_remembers(without_pro: Pair) -> None:
    first, second, third = (without_pro.gateway.generate(PRO, x_pollux_fallback="off") for _ in range(3))
    assert {call.model for call in without_pro.simulator.calls} == {PRO}
    assert len(without_pro.simulator.calls) == 5
    assert first.headers["x-pollux-attempts"] == "5"
    for answer in (first, second, third):
        assert (answer.status, answer.reason) == (429, "MODEL_NOT_AVAILABLE")
    assert b"limit: 0" in third.body
    assert int(third.headers["retry-after"]) > 3600


def test_on_the_openai_path_the_fallback_is_a_value(without_pro: Pair) -> None:
    body = b'{"messages":[{"content":"hi"}], "model" : "gemini-3.1-pro-preview","n":1.0}'
    answer = without_pro.gateway.call("POST", "/v1beta/openai/chat/completions", body)
    assert answer.status == 200, answer.body
    assert without_pro.simulator.calls[-1].body == body.replace(PRO.encode(), AFTER_PRO.encode())


def test_a_refusal_of_a_fallback_model_is_not_the_clients(without_pro: Pair) -> None:
    without_pro.simulator.faults.append(Fault(kind="not-found", model=AFTER_PRO))
    answer = without_pro.gateway.generate(PRO)
    assert (answer.status, answer.headers["x-pollux-model"]) == (200, "gemini-2.5-flash")
    assert [call.status for call in without_pro.simulator.calls] == [429] * 5 + [404, 200]
    answer = without_pro.gateway.generate(PRO)
    assert answer.headers["x-pollux-model"] == "gemini-2.5-flash"


def test_headers_of_an_answer(pair: Pair) -> None:
    answer = pair.gateway.generate()
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-pollux-request-id"])
    assert answer.headers["x-pollux-model"] == FLASH
    assert answer.headers["x-pollux-attempts"] == "1"
    assert int(answer.headers["x-pollux-wait-ms"]) < 1000
    assert answer.headers["x-pollux-key"] == pair.simulator.calls[-1].key


def test_a_preferred_key_serves(pair: Pair) -> None:
    for text in ("one", "two", "three"):
        assert pair.gateway.generate(text=text, x_pollux_key="key-3").headers["x-pollux-key"] == "key-3"
    refused = pair.gateway.generate(x_pollux_key="no-such-key")
    assert (refused.status, refused.reason) == (400, "UNKNOWN_KEY")
    assert b"key-3" in refused.body, "it names the ids that there are"


def test_a_preferred_key_is_preferred_once(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="overloaded", key="key-3"))
    answer = pair.gateway.generate(x_pollux_key="key-3")
    assert answer.status == 200, answer.body
    assert answer.headers["x-pollux-key"] != "key-3"
    assert pair.simulator.calls[0].key == "key-3"


def test_a_conversation_that_goes_on_stays_with_its_project(pair: Pair) -> None:
    keys: set[str] = set()
    contents: list[dict[str, object]] = []
    for n in range(4):
        contents.append({"role": "user", "parts": [{"text": f"question {n} of this conversation"}]})
        body = json.dumps({"contents": contents}).encode()
        answer = pair.gateway.call("POST", f"/v1beta/models/{FLASH}:generateContent", body)
        keys.add(answer.headers["x-pollux-key"])
        contents.append({"role": "model", "parts": [{"text": "an answer"}]})
    assert len(keys) == 1


@pytest.mark.parametrize("text", ["the same question", "question {}"])
def test_new_questions_are_spread(tmp_path: Path, text: str) -> None:
    with simulated(4) as (_, url), gateway(tmp_path, url, keys=range(1, 5)) as started:
        keys = [started.generate(text=text.format(n)).headers["x-pollux-key"] for n in range(8)]
    assert set(Counter(keys).values()) == {2}


def test_mode(pair: Pair) -> None:
    assert pair.gateway.generate("gemini-4-argon", x_pollux_mode="flash_only").headers["x-pollux-model"] == FLASH
    used = pair.gateway.generate("gemini-4-argon", x_pollux_mode="flash_lite_only").headers["x-pollux-model"]
    assert "flash-lite" in used
    answer = pair.gateway.generate(x_pollux_mode="fast")
    assert (answer.status, answer.reason) == (400, "BAD_REQUEST")


def test_max_wait_0_does_not_wait(pair: Pair) -> None:
    began = time.monotonic()
    answers = [pair.gateway.generate(LAST, x_pollux_max_wait="0") for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 4 + [429] * 2
    assert answers[-1].reason == "QUOTA_BUSY"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 63
    assert len(pair.simulator.calls) == 4
    assert time.monotonic() - began < 5
    assert pair.gateway.generate(x_pollux_max_wait="soon").status == 400


def test_x_server_timeout_shortens_the_wait(pair: Pair) -> None:
    began = time.monotonic()
    answers = [pair.gateway.generate(LAST, x_server_timeout="11") for _ in range(5)]
    assert answers[-1].status == 429
    assert time.monotonic() - began < 5
    assert pair.simulator.statuses["429"] == 0


def test_what_fits_a_moment_later_waits_for_it(tmp_path: Path) -> None:
    with simulated(1) as (simulator, url), gateway(tmp_path, url, keys=[1]) as started:
        simulator.faults.append(Fault(kind="rpm", retry_s=1.5, limit=50, count=1))
        refused = started.generate(x_pollux_fallback="off", x_pollux_max_wait="0")
        assert refused.status == 429, refused.body
        answer = started.generate(x_pollux_fallback="off")
        assert answer.status == 200, answer.body
        assert answer.headers["x-pollux-attempts"] == "1"
        assert 900 < int(answer.headers["x-pollux-wait-ms"]) < 4000
        assert [attempt["cause"] for attempt in started.record(refused)["attempts"]] == ["rpm", "full"]
        assert started.quota(FLASH)["learned"] == {"rpm": 50}
