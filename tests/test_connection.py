"""connection: what HTTP/1.1 allows a server to say, and what is not allowed in a request."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from pollux.connection import HEADERS_MOST, HIGH_WATER, Address, UpstreamError, head_of
from pollux.upstream import HttpUpstream
from tests.test_upstream import Server, against

T = TypeVar("T")
Scene = Callable[[HttpUpstream], Awaitable[T]]


def get(method: str = "GET") -> Scene[tuple[int, bytes]]:
    async def scene(google: HttpUpstream) -> tuple[int, bytes]:
        answer = await google.send(method, "/v1beta/models", [], b"")
        return answer.status, await answer.read()

    return scene


def twice(method: str = "GET") -> Scene[None]:
    async def scene(google: HttpUpstream) -> None:
        for _ in range(2):
            await get(method)(google)

    return scene


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
def test_an_answer_ends_where_its_framing_says_and_the_connection_is_used_again(said: bytes, body: bytes) -> None:
    server = Server(said)
    assert against(server, get()) == (200, body)
    server = Server(said)
    against(server, twice())
    assert (len(server.requests), server.connections) == (2, 1)


def test_an_answer_without_framing_ends_with_the_connection() -> None:
    assert against(Server(b"HTTP/1.1 200 OK\r\n\r\nab", None), get()) == (200, b"ab")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_answers_have_no_body_whatever_their_headers_say(status: str) -> None:
    server = Server(f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode())
    assert against(server, get())[1] == b""


def test_the_answer_to_head_has_no_body() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert against(server, get("HEAD")) == (200, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb",
    ],
)
def test_a_connection_that_ends_or_says_too_much_is_not_used_again(said: bytes) -> None:
    server = Server(said)
    against(server, twice())
    assert (len(server.requests), server.connections) == (2, 2)


@pytest.mark.parametrize(
    "said", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEADERS_MOST + 1) + b"\r\n\r\n"]
)
def test_what_is_no_answer_is_a_reset(said: bytes) -> None:
    with pytest.raises(UpstreamError) as broken:
        against(Server(said), get())
    assert broken.value.kind == "reset"


def test_a_server_has_to_wait_for_a_slow_reader() -> None:
    size = 40 * HIGH_WATER
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def scene(google: HttpUpstream) -> tuple[int, int]:
        answer = await google.send("GET", "/v1beta/files/a:download", [], b"")
        await asyncio.sleep(0.2)
        first = len(await answer.chunk())
        return first, first + len(await answer.read())

    first, whole = against(server, scene)
    assert first < 8 * HIGH_WATER
    assert whole == size


def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * (HIGH_WATER // 64)
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def scene(google: HttpUpstream) -> None:
        await (await google.send("POST", "/v1beta/x", [], body)).read()

    against(server, scene)
    assert server.requests[0].endswith(body)


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("/a b", "x", "y"),
        ("/a\r\nX: y", "x", "y"),
        ("/a", "x", "y\r\nz: 1"),
        ("/a", "x\n", "y"),
        ("/a", "x", "y\0"),
    ],
)
def test_nothing_can_be_smuggled_into_a_request(target: str, name: str, value: str) -> None:
    with pytest.raises(UpstreamError):
        head_of("GET", Address.of("http://host"), target, [(name, value)], b"")
