"""What a gateway does not let through: bodies too large, too much at once, guarded paths, foreign pages."""

import gzip
import http.client
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, TOKEN, Answered, call, eventually, gateway, prompt, simulated

TARGET = f"/v1beta/models/{FLASH}:generateContent"
PAGE = "https://page.example"
GUARDED = {
    "auth_tokens": "/v1alpha/auth_tokens",
    "permissions": "/v1beta/tunedModels/mine/permissions",
    "transferOwnership": "/v1beta/tunedModels/mine:transferOwnership",
    "webhooks": "/v1beta/webhooks",
    "files:register": "/v1beta/files:register",
}


@pytest.fixture(scope="module")
def narrow_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("narrow")
    with (
        simulated() as (simulator, url),
        gateway(
            folder, url, max_body="64KiB", body_memory="100KiB", max_concurrent="3", allow_paths="webhooks",
            cors_origins=PAGE, query_token="off",
        ) as started,
    ):  # fmt: skip
        yield Pair(started, simulator)


@pytest.fixture
def narrow(narrow_pair: Pair) -> Iterator[Pair]:
    narrow_pair.simulator.calls.clear()
    yield narrow_pair
    narrow_pair.simulator.faults.clear()
    eventually(5, lambda: narrow_pair.gateway.status()["pool"]["under_way"] == 0)


def test_a_body_over_the_limit_is_refused_by_its_length(narrow: Pair) -> None:
    """Before it is sent: the answer comes though not one byte of the body does."""
    connection = http.client.HTTPConnection(urlsplit(narrow.gateway.url).netloc, timeout=5)
    connection.putrequest("POST", TARGET)
    connection.putheader("x-goog-api-key", TOKEN)
    connection.putheader("content-length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    found = Answered(answer.status, {}, answer.read())
    connection.close()
    assert (found.status, found.reason) == (413, "BODY_TOO_LARGE")
    assert not narrow.simulator.calls


def test_a_chunked_body_over_the_limit(narrow: Pair) -> None:
    connection = http.client.HTTPConnection(urlsplit(narrow.gateway.url).netloc, timeout=5)
    pieces = iter([b"x" * 1024] * 65)
    connection.request("POST", TARGET, pieces, {"x-goog-api-key": TOKEN}, encode_chunked=True)
    answer = connection.getresponse()
    found = Answered(answer.status, {}, answer.read())
    connection.close()
    assert (found.status, found.reason) == (413, "BODY_TOO_LARGE")
    assert not narrow.simulator.calls


def test_a_chunked_body_within_it(narrow: Pair) -> None:
    connection = http.client.HTTPConnection(urlsplit(narrow.gateway.url).netloc, timeout=5)
    pieces = iter([prompt()[:5], prompt()[5:]])
    connection.request("POST", TARGET, pieces, {"x-goog-api-key": TOKEN}, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, bool(answer.read())) == (200, True)
    connection.close()
    assert narrow.simulator.calls[-1].body == prompt()


def test_a_compressed_body_is_understood_and_travels_as_it_is(narrow: Pair) -> None:
    body = gzip.compress(b'{"model": "production", "messages": [{"role": "user", "content": "hi"}]}')
    answer = narrow.gateway.call("POST", "/v1/chat/completions", body, content_encoding="gzip")
    assert (answer.status, answer.headers["x-pollux-model"]) == (200, FLASH)
    packed = gzip.compress(prompt("a text of some length"))
    answer = narrow.gateway.call("POST", TARGET, packed, content_encoding="gzip", accept_encoding="gzip")
    assert answer.status == 200
    assert answer.json()["usageMetadata"]["promptTokenCount"] == 6
    assert "content-encoding" not in answer.headers
    assert narrow.simulator.calls[-1].body == packed
    assert narrow.simulator.calls[-1].header("content-encoding") == "gzip"


def test_a_body_that_swells(narrow: Pair) -> None:
    bomb = gzip.compress(gzip.compress(b"0" * 10**8))
    once = gzip.compress(b'{"contents": "' + b"0" * 10**7 + b'"}')
    assert len(once) < 64 * 1024
    for target in (TARGET, "/v1/chat/completions"):
        answer = narrow.gateway.call("POST", target, once, content_encoding="gzip")
        assert answer.status == 413, answer.body
        assert narrow.gateway.call("POST", target, bomb, content_encoding="gzip, gzip").status in (413, 415)
    assert not narrow.simulator.calls


def in_background(pair: Pair, count: int, body: bytes) -> list[threading.Thread]:
    """So many requests that are under way until their answer comes."""
    threads = [threading.Thread(target=pair.gateway.call, args=("POST", TARGET, body)) for _ in range(count)]
    for thread in threads:
        thread.start()
    eventually(5, lambda: len(pair.simulator.calls) == count)
    return threads


def test_too_many_at_once(narrow: Pair) -> None:
    narrow.simulator.faults.append(Fault(kind="slow", seconds=0.7, count=3))
    threads = in_background(narrow, 3, prompt())
    answer = narrow.gateway.generate()
    assert (answer.status, answer.reason) == (503, "OVERLOADED_GATEWAY")
    assert int(answer.headers["retry-after"]) >= 1
    assert narrow.gateway.call("GET", "/health").status == 200
    for thread in threads:
        thread.join()
    assert narrow.gateway.generate().status == 200


def test_bodies_have_a_budget(narrow: Pair) -> None:
    large = prompt("x" * 60_000)
    narrow.simulator.faults.append(Fault(kind="slow", seconds=0.7, count=1))
    threads = in_background(narrow, 1, large)
    answer = narrow.gateway.call("POST", TARGET, large)
    assert (answer.status, answer.reason) == (503, "OVERLOADED_GATEWAY")
    assert int(answer.headers["retry-after"]) >= 1
    assert "POLLUX_BODY_MEMORY" in answer.json()["error"]["message"]
    assert narrow.gateway.generate().status == 200
    for thread in threads:
        thread.join()
    assert narrow.gateway.call("POST", TARGET, large).status == 200


@pytest.mark.parametrize("name", GUARDED)
def test_guarded_paths(narrow: Pair, name: str) -> None:
    answer = narrow.gateway.call("POST", GUARDED[name], b"{}")
    if name == "webhooks":  # allowed there
        assert (answer.status, len(narrow.simulator.calls)) == (404, 1)
        return
    assert (answer.status, answer.reason) == (403, "FORBIDDEN_PATH")
    assert name in answer.json()["error"]["message"]
    assert not narrow.simulator.calls


def test_a_token_in_the_query_can_be_forbidden(narrow: Pair) -> None:
    assert call(narrow.gateway.url, "POST", f"{TARGET}?key={TOKEN}", prompt()).status == 401
    assert not narrow.simulator.calls


def test_pages_of_an_origin_that_is_named(narrow: Pair) -> None:
    wanted = "x-goog-api-key"
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": wanted}
    preflight = call(narrow.gateway.url, "OPTIONS", TARGET, headers=asked)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == wanted
    for answer in (
        narrow.gateway.generate(origin=PAGE),
        call(narrow.gateway.url, "POST", TARGET, b"", {"origin": PAGE}),
    ):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-pollux-key" in answer.headers["access-control-expose-headers"]
    stranger = narrow.gateway.generate(origin="https://elsewhere.example")
    assert "access-control-allow-origin" not in stranger.headers
    assert not [seen for seen in narrow.simulator.calls if seen.header("origin")]


def test_pages_of_any_origin_when_none_is_named(pair: Pair) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    preflight = call(pair.gateway.url, "OPTIONS", TARGET, headers=asked)
    assert (preflight.status, preflight.body) == (204, b"")
    assert "POST" in preflight.headers["allow"]
    for answer in (preflight, pair.gateway.generate(origin=PAGE)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert not [seen for seen in pair.simulator.calls if seen.method == "OPTIONS"]


@pytest.mark.parametrize("target", ["/health", "/v1beta/models", f"/v1beta/models/{FLASH}", "/v1beta/openai/models"])
def test_head_is_get_without_a_body(pair: Pair, target: str) -> None:
    got, head = pair.gateway.call("GET", target), pair.gateway.call("HEAD", target)
    assert (got.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_health_says_nothing_but_that_it_lives(pair: Pair) -> None:
    answer = call(pair.gateway.url, "GET", "/health")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/v1beta/%77ebhooks", "/v1beta//webhooks/", "/v1beta/v1beta/webhooks/one"])
def test_guarded_paths_however_they_are_written(pair: Pair, path: str) -> None:
    answer = pair.gateway.call("POST", path, b"{}")
    assert (answer.status, answer.reason) == (403, "FORBIDDEN_PATH")
    assert not pair.simulator.calls
