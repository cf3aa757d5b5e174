"""Faults at Google's end: the client sees as little of them as possible."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, eventually, gateway, simulated

OTHER = "gemini-3.6-flash"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Pair]:
    """A gateway for one test alone, for faults that leave traces."""
    with simulated() as (simulator, url), gateway(tmp_path, url, timeout="1") as started:
        yield Pair(started, simulator)


def usable(pair: Pair) -> int:
    return sum(key["state"] in ("healthy", "unchecked") for key in pair.gateway.status()["keys"])


def test_bad_json_is_forwarded_once(pair: Pair) -> None:
    body = b'{"contents": [{"parts": [{"text": "hello"}]}'
    answer = pair.gateway.call("POST", f"/v1beta/models/{FLASH}:generateContent", body)
    assert (answer.status, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert [call.body for call in pair.simulator.calls] == [body]
    assert usable(pair) == 4


@pytest.mark.parametrize("kind", ["invalid-key", "suspended", "unauthenticated"])
def test_three_bad_keys_of_four_cost_nobody_anything(fresh: Pair, kind: str) -> None:
    fresh.simulator.faults += [Fault(kind=kind, key=f"key-{n}") for n in (1, 2, 3)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda n: fresh.gateway.generate(text=f"question {n}"), range(24)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["x-pollux-model"] for answer in answers} == {FLASH}
    assert usable(fresh) == 1
    fresh.simulator.calls.clear()
    assert fresh.gateway.generate().status == 200
    assert [call.key for call in fresh.simulator.calls] == ["key-4"]


def test_a_model_that_is_overloaded_for_ever(fresh: Pair) -> None:
    fresh.simulator.faults.append(Fault(kind="overloaded"))
    answer = fresh.gateway.generate()
    assert answer.status == 503
    assert "high demand" in answer.json()["error"]["message"]
    assert len(fresh.simulator.calls) == int(answer.headers["x-pollux-attempts"]) == 4
    assert len({call.project for call in fresh.simulator.calls if call.model == FLASH}) == 3
    assert usable(fresh) == 4
    fresh.simulator.faults.clear()
    answer = fresh.gateway.generate()
    assert (answer.status, answer.headers["x-pollux-attempts"]) == (200, "1")


def test_an_overloaded_model_falls_back(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="overloaded", model=FLASH))
    answer = pair.gateway.generate()
    assert (answer.status, answer.headers["x-pollux-model"]) == (200, OTHER)
    assert answer.headers["x-pollux-attempts"] == "4"


def test_a_cooling_pool_is_not_hammered(fresh: Pair) -> None:
    fresh.simulator.faults.append(Fault(kind="rpm", limit=50, retry_s=30.0))
    assert fresh.gateway.generate(x_pollux_fallback="off", x_pollux_max_wait="0").status == 429
    assert len(fresh.simulator.calls) == 4
    fresh.simulator.calls.clear()
    began = time.monotonic()
    with ThreadPoolExecutor(10) as clients:
        answers = list(
            clients.map(
                lambda _: fresh.gateway.generate(x_pollux_fallback="off", x_pollux_max_wait="0"),
                range(50),
            )
        )
    assert {(answer.status, answer.reason) for answer in answers} == {(429, "QUOTA_BUSY")}
    assert {int(answer.headers["retry-after"]) for answer in answers} <= {29, 30, 31, 32}
    assert not fresh.simulator.calls
    assert time.monotonic() - began < 10


def test_a_day_that_is_spent(tmp_path: Path) -> None:
    limits = {"rpd": 2}
    with simulated(2, limits) as (simulator, url), gateway(tmp_path, url, keys=[1, 2], limits={"*": limits}) as started:
        answers = [started.generate(x_pollux_fallback="off", text=f"question {n}") for n in range(6)]
        assert [answer.status for answer in answers] == [200] * 4 + [503] * 2
        assert answers[-1].reason == "QUOTA_EXHAUSTED_TODAY"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 25 * 3600
        assert not simulator.statuses["429"]
        assert started.generate().headers["x-pollux-model"] == OTHER


def test_an_upstream_that_cannot_be_reached(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with gateway(tmp_path, url, timeout="1") as started:
        began = time.monotonic()
        answer = started.generate()
        assert (answer.status, answer.reason) == (502, "UPSTREAM_UNREACHABLE")
        assert answer.json()["error"]["status"] == "UNAVAILABLE"
        body = b'{"model": "gemini-3.8-flash", "messages": []}'
        answer = started.call("POST", "/v1/chat/completions", body)
        assert (answer.status, answer.json()["error"]["type"]) == (502, "server_error")
        assert started.call("GET", "/v1beta/models").status == 502
        assert time.monotonic() - began < 15
        assert {key["state"] for key in started.status()["keys"]} == {"unchecked"}


MALFORMED = {
    "status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
    "more than 65536": b"HTTP/1.1 200 OK\r\nX: " + b"x" * (128 << 10) + b"\r\nContent-Length: 0\r\n\r\n",
    "the answer": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "transfer-encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}


def test_an_answer_that_is_not_valid_http_is_a_502_and_the_post_is_sent_once(tmp_path: Path) -> None:
    asked: list[bytes] = []
    said = iter(MALFORMED.values())

    class Upstream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line, length = self.rfile.readline(), 0
            while (header := self.rfile.readline()) != b"\r\n":
                name, _, value = header.partition(b": ")
                length = int(value) if name.lower() == b"content-length" else length
            self.rfile.read(length)
            asked.append(line)
            with contextlib.suppress(OSError):
                self.wfile.write(next(said))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever).start()
        try:
            with gateway(tmp_path, f"http://127.0.0.1:{upstream.server_address[1]}") as started:
                answers = [started.generate() for _ in MALFORMED]
        finally:
            upstream.shutdown()
    for answer, why in zip(answers, MALFORMED, strict=True):
        assert (answer.status, answer.reason, answer.headers["x-pollux-attempts"]) == (502, "UPSTREAM_UNREACHABLE", "1")
        assert why in answer.json()["error"]["message"]
    assert len(asked) == len(MALFORMED)
    assert all(line.startswith(b"POST ") for line in asked)


def test_an_upstream_that_hangs(tmp_path: Path) -> None:
    with simulated() as (simulator, url), gateway(tmp_path, url, timeout="0.5", max_attempts="3") as started:
        simulator.faults.append(Fault(kind="hang", seconds=20))
        began = time.monotonic()
        answer = started.generate(verb="streamGenerateContent")
        assert (answer.status, answer.reason) == (504, "UPSTREAM_TIMEOUT")
        assert answer.json()["error"]["status"] == "DEADLINE_EXCEEDED"
        assert answer.headers["x-pollux-attempts"] == "3"
        assert time.monotonic() - began < 3 * 0.5 + 4
        assert {key["state"] for key in started.status()["keys"]} == {"unchecked"}


def test_one_project_that_hangs_costs_a_timeout_only(fresh: Pair) -> None:
    fresh.simulator.faults.append(Fault(kind="hang", seconds=20, count=1))
    answer = fresh.gateway.generate()
    assert (answer.status, answer.headers["x-pollux-attempts"]) == (200, "2")


@pytest.mark.parametrize("kind", ["reset", "internal", "bad-gateway", "deadline", "overloaded"])
@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
def test_trouble_before_the_first_content_is_tried_elsewhere(pair: Pair, verb: str, kind: str) -> None:
    pair.simulator.faults.append(Fault(kind=kind, count=1))
    answer = pair.gateway.generate(verb=verb)
    assert (answer.status, answer.headers["x-pollux-attempts"]) == (200, "2")
    assert len({call.project for call in pair.simulator.calls}) == 2


def test_a_plain_answer_that_breaks_is_asked_for_again(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="mid-reset", count=1))
    answer = pair.gateway.generate()
    assert (answer.status, answer.headers["x-pollux-attempts"]) == (200, "2")
    assert answer.json()["usageMetadata"]


def test_free_calls_find_another_key_too(fresh: Pair) -> None:
    fresh.simulator.faults += [Fault(kind="invalid-key", key=f"key-{n}") for n in (1, 2, 3)]
    assert fresh.gateway.generate(verb="countTokens").status == 200
    assert fresh.gateway.call("GET", "/v1beta/models").status == 200
    assert fresh.gateway.call("GET", f"/v1beta/models/{FLASH}").status == 200


def test_a_key_that_is_well_again_serves_again(fresh: Pair) -> None:
    fresh.simulator.faults.append(Fault(kind="invalid-key"))
    answer = fresh.gateway.generate()
    assert (answer.status, answer.reason) == (503, "NO_USABLE_KEY")
    assert usable(fresh) == 0
    assert fresh.gateway.generate().status == 503
    assert len([call for call in fresh.simulator.calls if call.path.endswith(":generateContent")]) == 4
    fresh.simulator.faults.clear()
    assert eventually(12, lambda: fresh.gateway.generate().status == 200)


def test_errors_keep_googles_words(pair: Pair) -> None:
    for kind, status in (("location", 400), ("resource-permission", 403), ("bad-request", 400), ("not-found", 404)):
        pair.simulator.faults[:] = [Fault(kind=kind, model=LAST)]
        pair.simulator.calls.clear()
        answer = pair.gateway.generate(LAST, verb="countTokens")
        assert answer.status == status, kind
        assert "domain" not in answer.body.decode()
        assert len(pair.simulator.calls) == 1
    suspicion = eventually(2, lambda: pair.gateway.status()["pool"]["suspicion"])
    assert "location" in suspicion
