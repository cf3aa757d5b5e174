"""Streams that go wrong, before and after their first content; and secrets that errors echo."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import ADMIN, FLASH, TOKEN, gateway, key_value, prompt, simulated

STREAM = f"/v1beta/models/{FLASH}:streamGenerateContent"
CHAT = "/v1/chat/completions"
CHATTING = json.dumps({"model": FLASH, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
SECRETS = [TOKEN, ADMIN, *(key_value(n) for n in range(1, 5))]


@pytest.mark.parametrize("kind", ["mid-reset", "mid-error"])
def test_a_stream_of_events_ends_as_google_ends_it(pair: Pair, kind: str) -> None:
    pair.simulator.faults.append(Fault(kind=kind, after=2))
    answer = pair.gateway.call("POST", STREAM + "?alt=sse", prompt())
    assert answer.status == 200
    events, _, error = answer.body.rpartition(b"\r\n\r\n")
    assert events.count(b"data: ") == 2
    assert json.loads(error)["error"]["code"] == 503
    if kind == "mid-reset":
        assert error.strip().count(b"\n") == 0
    assert len(pair.simulator.calls) == 1


@pytest.mark.parametrize("kind", ["mid-reset", "mid-error"])
def test_an_array_stays_an_array(pair: Pair, kind: str) -> None:
    pair.simulator.faults.append(Fault(kind=kind, after=2))
    elements = pair.gateway.call("POST", STREAM, prompt()).json()
    assert [("candidates" in element, "error" in element) for element in elements] == [(True, False)] * 2 + [
        (False, True)
    ]


@pytest.mark.parametrize("kind", ["mid-reset", "mid-error"])
def test_on_the_openai_path_the_error_is_an_event(pair: Pair, kind: str) -> None:
    pair.simulator.faults.append(Fault(kind=kind, after=2))
    answer = pair.gateway.call("POST", CHAT, CHATTING)
    last = answer.body.strip().rpartition(b"\n\n")[2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize(("target", "body"), [(STREAM + "?alt=sse", prompt()), (STREAM, prompt()), (CHAT, CHATTING)])
def test_an_error_in_the_place_of_the_first_event_is_tried_elsewhere(pair: Pair, target: str, body: bytes) -> None:
    pair.simulator.faults.append(Fault(kind="first-event-error", count=1))
    answer = pair.gateway.call("POST", target, body)
    assert (answer.status, answer.headers["x-pollux-attempts"]) == (200, "2")
    assert b"error" not in answer.body
    assert len({call.project for call in pair.simulator.calls}) == 2


def test_errors_in_the_place_of_every_first_event(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="first-event-error"))
    answer = pair.gateway.call("POST", STREAM + "?alt=sse", prompt())
    assert (answer.status, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
    assert len(pair.simulator.calls) == 4


def endings(pair: Pair) -> dict[str, int]:
    found: dict[str, int] = pair.gateway.status()["pool"]["endings"]
    return found


@pytest.mark.parametrize(("target", "body"), [(STREAM + "?alt=sse", prompt()), (STREAM, prompt()), (CHAT, CHATTING)])
def test_a_truncated_stream_is_counted(pair: Pair, target: str, body: bytes) -> None:
    before = endings(pair).get("truncated", 0)
    assert pair.gateway.call("POST", target, body).status == 200
    assert endings(pair).get("truncated", 0) == before
    pair.simulator.faults.append(Fault(kind="truncate"))
    answer = pair.gateway.call("POST", target, body)
    assert answer.status == 200
    assert endings(pair)["truncated"] == before + 1
    assert pair.gateway.record(answer)["ended"] == "truncated"
    assert "truncated" in pair.gateway.said()


def test_a_stream_that_is_cut_anywhere_is_passed_as_it_is(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="split-chunks"))
    before = endings(pair)
    for target, body in ((STREAM + "?alt=sse", prompt("é" * 200)), (STREAM, prompt("é" * 200)), (CHAT, CHATTING)):
        answer = pair.gateway.call("POST", target, body)
        assert answer.status == 200
        assert pair.gateway.record(answer)["tokens"] in (None, 1, 50)
    assert endings(pair) == before


@pytest.fixture
def loud(tmp_path: Path) -> Iterator[Pair]:
    """All that a gateway could write, it writes: to a database, and to a log of the finest kind."""
    store = f"sqlite:///{tmp_path / 'pollux.db'}"
    with simulated() as (simulator, url), gateway(tmp_path, url, store=store, log_level="debug") as started:
        yield Pair(started, simulator)


ECHOES = ["suspended", "invalid-key", "leaked-key", "service-disabled", "model-access", "resource-permission", "rpm"]


def test_no_secret_is_written_anywhere(loud: Pair) -> None:
    answers = []
    for kind in ECHOES:
        loud.simulator.faults[:] = [Fault(kind=kind, count=1)]
        answers += [loud.gateway.generate(), loud.gateway.generate(verb="streamGenerateContent", text=kind)]
    for error in ("suspended", "overloaded"):
        loud.simulator.faults[:] = [Fault(kind="mid-error", error=error), Fault(kind="suspended", verb="countTokens")]
        answers += [loud.gateway.generate(verb="streamGenerateContent"), loud.gateway.generate(verb="countTokens")]
    loud.simulator.faults[:] = [Fault(kind="suspended")]
    answers += [loud.gateway.generate(), loud.gateway.call("GET", "/v1beta/models")]
    answers.append(loud.gateway.call("POST", STREAM + f"?key={TOKEN}&access_token={key_value(1)}", b"{"))
    answers.append(loud.gateway.call("GET", "/v1beta/models", x_goog_api_key=key_value(2)))
    assert answers[-1].status == 401
    said = "".join(str(answer.headers) for answer in answers).encode() + b"".join(answer.body for answer in answers)
    said += json.dumps(loud.gateway.status()).encode()
    assert loud.gateway.signal() == 0
    files = [path for path in loud.gateway.folder.rglob("*") if path.is_file() and path.name != "keys.json"]
    assert {"stderr", "pollux.db"} <= {path.name for path in files}
    said += b"".join(path.read_bytes() for path in files)
    assert [secret for secret in SECRETS if secret.encode() in said] == []
