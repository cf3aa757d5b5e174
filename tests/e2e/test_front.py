"""Before a request is one: heads that grow or are too large, and connections that ask for something else."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.processes import TOKEN, call, prompt
from tests.e2e.test_leaving import CHAT, generating

SMALL = "GET /v1beta/models HTTP/1.1\r\nhost: x\r\n"


def raw(pair: Pair) -> socket.socket:
    address = urlsplit(pair.gateway.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def all_of(made: socket.socket) -> bytes:
    came = b""
    try:
        while data := made.recv(65536):
            came += data
    except ConnectionResetError:  # it sent more than was read
        pass
    return came


@pytest.mark.parametrize(
    "grows",
    [(f"x-{n}: {'a' * 1000}\r\n" for n in range(100_000)), ("a" * 1000 for _ in range(100_000))],
    ids=["many", "one"],
)
def test_a_head_that_never_ends_is_refused_and_its_connection_closed(pair: Pair, grows: Iterator[str]) -> None:
    sent = 0
    with raw(pair) as made:
        made.sendall(SMALL.encode() + b"x-long: ")
        with contextlib.suppress(OSError):  # reset or broken, as it happens
            for piece in grows:
                made.sendall(piece.encode())
                sent += len(piece)
    assert sent < 20_000_000, "what the sockets hold, and no more"
    assert pair.gateway.generate().status == 200


def test_the_refusal_of_a_head_says_what_is_wrong(pair: Pair) -> None:
    with raw(pair) as made:
        made.sendall(SMALL.encode())
        made.sendall(b"a: b\r\n")
        for _ in range(14):
            made.sendall(b"x: " + b"a" * 5000 + b"\r\n")
        came = all_of(made)
    assert came.startswith(b"HTTP/1.1 431 ")
    assert b"HEAD_TOO_LARGE" in came


@pytest.mark.parametrize(("target", "body"), [(generating(), prompt()), ("/v1/chat/completions", CHAT)])
def test_a_complete_head_that_is_too_large_is_a_431_before_any_token_is_looked_at(
    pair: Pair, target: str, body: bytes
) -> None:
    headers = [(f"x-{n}", "a" * 1000) for n in range(70)]
    answer = call(pair.gateway.url, "POST", target, body, headers)
    assert (answer.status, answer.reason, answer.headers["connection"]) == (431, "HEAD_TOO_LARGE", "close")
    assert (answer.json()["error"]["code"] == "HEAD_TOO_LARGE") == ("chat" in target)
    assert call(pair.gateway.url, "GET", "/admin/status", None, headers).status == 431
    assert call(pair.gateway.url, "POST", generating(), prompt(), [*headers[:60], ("x-api-key", TOKEN)]).status == 200


def test_a_large_body_right_behind_its_head_is_no_large_head(pair: Pair) -> None:
    body = prompt("word " * 60_000)
    with raw(pair) as made:
        head = f"POST {generating()} HTTP/1.1\r\nhost: x\r\nx-api-key: {TOKEN}\r\ncontent-length: {len(body)}\r\n"
        made.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
        assert all_of(made).startswith(b"HTTP/1.1 200 ")


def test_a_websocket_is_told_that_the_live_api_is_not_served(pair: Pair) -> None:
    path = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "WebSocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    before = len(pair.simulator.calls)
    for token in ({"x-goog-api-key": TOKEN}, {}):
        answer = call(pair.gateway.url, "GET", path, headers=upgrade | token)
        assert (answer.status, answer.reason) == (501, "NO_LIVE_API")
        assert answer.json()["error"]["status"] == "UNIMPLEMENTED"
    assert len(pair.simulator.calls) == before


def test_another_upgrade_is_passed_over(pair: Pair) -> None:
    connection = http.client.HTTPConnection(urlsplit(pair.gateway.url).netloc, timeout=10)
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "x-api-key": TOKEN}
    connection.request("GET", "/v1beta/models", headers=headers)
    assert connection.getresponse().status == 200
    connection.close()
