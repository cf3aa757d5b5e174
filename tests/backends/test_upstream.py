"""Both connections against a small server of raw bytes: what they send, and what becomes of broken answers."""

import asyncio
import contextlib
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import pytest

from pollux.backends.upstream import Streamed, Upstream, UpstreamError
from tests.backends.servers import OK, Server, Silent, Way, listen, run

T = TypeVar("T")
HEADERS = [("x-goog-api-key", "AQ.test-value"), ("accept-encoding", "identity")]


async def read(
    upstream: Upstream,
    target: str = "/v1beta/models",
    method: str = "GET",
    body: bytes = b"",
    headers: Sequence[tuple[str, str]] = HEADERS,
) -> bytes:
    answer = await upstream.send(method, target, headers, body)
    try:
        return await answer.read()
    finally:
        answer.close()


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_the_request_is_sent_as_it_is_said_and_nothing_more(way: Way) -> None:
    server = Server(OK)
    target = "/v1beta/models/a%2Fb:generateContent?alt=sse&b=%7E&a=1+2"
    headers = [*HEADERS, ("content-type", "application/json"), ("user-agent", "client/1")]
    assert way.against(server, lambda u: read(u, target, "POST", b'{"x":1}', headers)) == b"{}"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == f"POST {target} HTTP/1.1"
    assert body == b'{"x":1}'
    names = sorted(line.partition(":")[0].lower() for line in lines)
    assert names == ["accept-encoding", "content-length", "content-type", "host", "user-agent", "x-goog-api-key"]


def test_nothing_is_added_to_a_request_without_a_body(way: Way) -> None:
    server = Server(OK)
    way.against(server, lambda u: read(u, headers=HEADERS[:1]))
    names = [line.partition(b":")[0].lower() for line in server.requests[0].strip().split(b"\r\n")[1:]]
    assert sorted(names) == [b"host", b"x-goog-api-key"]


def test_a_base_url_may_have_a_path(way: Way) -> None:
    server = Server(OK)
    way.against(server, read, prefix="/gemini/")
    assert server.requests[0].startswith(b"GET /gemini/v1beta/models HTTP/1.1")


@pytest.mark.parametrize("target", ["//elsewhere.example/v1", "///x", "/http://elsewhere.example/", "/a/..;/b"])
def test_a_path_stays_a_path(way: Way, target: str) -> None:
    server = Server(OK)
    way.against(server, lambda u: read(u, target))
    assert server.requests[0].startswith(f"GET {target} HTTP/1.1".encode())


@pytest.mark.parametrize("target", ["@elsewhere.example/v1", ".elsewhere.example/", ":1@elsewhere.example/", "0/x"])
def test_a_target_that_would_change_the_host_is_never_sent(way: Way, target: str) -> None:
    server = Server(OK)
    with pytest.raises(UpstreamError):
        way.against(server, lambda u: read(u, target))
    assert server.connections == 0


def test_redirects_are_not_followed(way: Way) -> None:
    server = Server(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")

    async def scene(upstream: Upstream) -> int:
        answer = await upstream.send("GET", "/v1beta/files/x:download", HEADERS, b"")
        await answer.read()
        return answer.status

    assert way.against(server, scene) == 302
    assert len(server.requests) == 1


def test_cookies_are_not_kept(way: Way) -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    async def scene(upstream: Upstream) -> None:
        await read(upstream)
        await read(upstream)

    way.against(server, scene, host="localhost")  # of a mere address no client keeps any
    assert b"ookie" not in server.requests[1]


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "length"), [(b"Content-Length: 2\r\n", 2), (b"", None)])
def test_an_answer_has_its_status_and_headers_and_its_length_if_sent(
    way: Way, header: bytes, length: int | None
) -> None:
    server = Server(b"HTTP/1.1 429 Too Many Requests\r\nX-A: B\r\n" + header + b"\r\n{}", None)

    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        assert (answer.status, answer.length) == (429, length)
        assert (b"X-A", b"B") in list(answer.headers)
        assert await answer.read() == b"{}"

    way.against(server, scene)


def test_bytes_come_as_they_were_sent_compressed_ones_too(way: Way) -> None:
    odd = b"\x1f\x8b not gzip at all"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(odd)
    assert way.against(Server(head + odd), read) == odd


def test_chunks_come_one_by_one_and_then_nothing(way: Way) -> None:
    class Pausing(Server):
        """The second chunk is sent when the first has arrived."""

        def __init__(self) -> None:
            super().__init__()
            self.arrived = asyncio.Event()

        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await self.arrived.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            await writer.drain()
            writer.close()

    pausing = Pausing()

    async def scene(upstream: Upstream) -> list[bytes]:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        chunks = [await answer.chunk()]
        pausing.arrived.set()
        return [*chunks, await answer.chunk(), await answer.chunk(), await answer.chunk()]

    assert way.against(pausing, scene) == [b"one", b"two", b"", b""]


def test_a_connection_read_to_its_end_is_used_again(way: Way) -> None:
    server = Server(OK)

    async def scene(upstream: Upstream) -> None:
        for _ in range(3):
            await read(upstream)

    way.against(server, scene)
    assert (len(server.requests), server.connections) == (3, 1)


def test_closing_an_answer_early_closes_its_connection_at_once(way: Way) -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin", 5.0)

    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        assert await answer.chunk() == b"begin"
        answer.close()
        await asyncio.wait_for(server.left.wait(), 4.0)

    way.against(server, scene)


# --- trouble ---------------------------------------------------------------------------------------------------------


def kind_of(error: pytest.ExceptionInfo[UpstreamError]) -> str:
    assert "AQ.test-value" not in repr(error.value) + str(error.value)
    return error.value.kind


def test_a_refused_connection_is_unreachable_and_names_the_address(way: Way) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def scene() -> None:
        upstream = way.upstream(f"http://127.0.0.1:{port}", timeout=1.0, connect_timeout=1.0)
        try:
            await read(upstream)
        finally:
            await upstream.close()

    with pytest.raises(UpstreamError, match=f"127.0.0.1:{port}") as caught:
        asyncio.run(scene())
    assert kind_of(caught) == "unreachable"


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "nothing.invalid"])
def test_a_name_that_leads_nowhere_is_unreachable(way: Way, host: str) -> None:
    async def scene() -> None:
        upstream = way.upstream(f"http://{host}", connect_timeout=5.0)
        try:
            await read(upstream)
        finally:
            await upstream.close()

    with pytest.raises(UpstreamError, match=f"no connection to {host}") as caught:
        asyncio.run(scene())
    assert kind_of(caught) == "unreachable"


def test_a_connection_that_takes_too_long_is_unreachable(way: Way) -> None:
    async def scene() -> None:
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)  # nobody accepts: once its queue is full, connecting hangs
            for filling in (first, second):
                filling.setblocking(False)
                filling.connect_ex(full.getsockname())
            upstream = way.upstream(f"http://127.0.0.1:{full.getsockname()[1]}", timeout=5.0, connect_timeout=0.05)
            try:
                await read(upstream)
            finally:
                await upstream.close()

    with pytest.raises(UpstreamError, match="no connection") as caught:
        asyncio.run(scene())
    assert kind_of(caught) == "unreachable"


@pytest.mark.parametrize(
    "sent", [[], [b"HTTP/1.1 200 OK\r\nContent-Le"], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nb"]]
)
def test_silence_is_a_timeout(way: Way, sent: list[bytes]) -> None:
    with pytest.raises(UpstreamError) as caught:
        way.against(Server(*sent, 5.0), read, timeout=0.05)
    assert kind_of(caught) == "timeout"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_an_answer_that_breaks_off_is_a_reset(way: Way, sent: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        way.against(Server(sent, None), lambda u: read(u, method="POST", body=b"{}"))
    assert kind_of(caught) == "reset"


def test_a_body_that_breaks_off_is_told_chunk_by_chunk_too(way: Way) -> None:
    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        assert await answer.chunk() == b"begin"
        with pytest.raises(UpstreamError) as caught:
            await answer.chunk()
        assert kind_of(caught) == "reset"
        answer.close()

    way.against(Server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin", None), scene)


def test_closing_what_was_never_used_and_closing_twice_is_harmless(way: Way) -> None:
    async def scene() -> None:
        upstream = way.upstream("http://127.0.0.1:9", timeout=1.0, connect_timeout=1.0)
        await upstream.close()
        await upstream.close()

    asyncio.run(scene())


def test_an_answer_that_is_read_whole_has_an_end(way: Way) -> None:
    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        assert answer.status == 400
        with pytest.raises(UpstreamError, match="larger than"):
            await answer.read()

    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head = b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n"
    way.against(Server(head, *[piece] * 1000), scene)


# --- a client that leaves --------------------------------------------------------------------------------------------


async def left(upstream: Upstream, server: Server, body: bytes | Streamed = b"{}") -> None:
    """Begin, leave once the server has the request's head, and see that the server notices within a second."""
    task = asyncio.create_task(upstream.send("POST", "/v1beta/x", HEADERS, body))
    await asyncio.wait_for(server.reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.left.wait(), 1)


class Endless:
    """A body whose next piece never comes."""

    length = 1 << 20

    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            yield b"x" * 1000
            await asyncio.sleep(60)
        finally:
            self.closed = True


def test_leaving_while_the_head_is_waited_for_closes_the_call(way: Way) -> None:
    server = Silent()
    way.against(server, lambda u: left(u, server))


def test_leaving_while_a_body_is_sent_closes_the_call_and_the_body(way: Way) -> None:
    server, body = Silent(), Endless()
    way.against(server, lambda u: left(u, server, body))
    assert body.closed


def test_leaving_while_the_server_takes_no_body_closes_the_call(way: Way) -> None:
    server = Silent(reads=False)
    way.against(server, lambda u: left(u, server, b"x" * (1 << 25)))


def test_leaving_a_stream_closes_the_call(way: Way) -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", 60.0)

    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("GET", "/", HEADERS, b"")
        assert await answer.chunk() == b"a"
        task = asyncio.create_task(answer.chunk())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer.close()
        await asyncio.wait_for(server.left.wait(), 1)

    way.against(server, scene)


class Mute:
    """Takes a connection and says nothing more than `first`: no TLS, no answer to CONNECT."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.reached, self.left = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.first:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self.first)
            await reader.read(1)
            self.reached.set()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.left.set()
            writer.close()


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 Connection established\r\n\r\n"], ids=["at once", "in TLS"])
def test_leaving_while_connecting_closes_the_connection_and_nothing_is_kept(way: Way, first: bytes) -> None:
    if first and not way.proxied:
        pytest.skip("there is no CONNECT without a proxy")

    async def scene() -> None:
        mute = Mute(first)
        async with contextlib.AsyncExitStack() as stack:
            place = f"127.0.0.1:{await listen(stack, mute.serve)}"
            proxy = f"http://{place}" if way.proxied else ""
            upstream = way.upstream("https://gemini.example" if way.proxied else f"https://{place}", proxy=proxy)
            task = asyncio.create_task(upstream.send("GET", "/", HEADERS, b""))
            await asyncio.wait_for(mute.reached.wait(), 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(mute.left.wait(), 1)
            await upstream.close()

    run(scene())


# --- what can be printed ---------------------------------------------------------------------------------------------


def test_nothing_that_can_be_printed_holds_a_key(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the server echoes it, and with every library at its most talkative."""
    caplog.set_level(logging.DEBUG)
    key = b"AQ.test-value"
    echo = b"HTTP/1.1 400 Bad\r\nETag: " + key + b"\r\nContent-Length: 13\r\n\r\n" + key
    odd = b"HTTP/1.1 200 OK\r\n" + key + b" \r\n\r\n"
    said: list[str] = []

    async def scene(upstream: Upstream) -> None:
        answer = await upstream.send("POST", "/v1beta/x", HEADERS, b"{}")
        said.append(repr(answer) + str(vars(upstream)))
        await answer.read()
        for target, headers in (("/a b", HEADERS), ("/", [("x-goog-api-key", "AQ.test-value\x01")])):
            with contextlib.suppress(UpstreamError):
                await upstream.send("GET", target, headers, b"")
        for wrong in ("\u20ac", "\n"):  # for the first, Python's own error holds the whole head
            headers = [("x-goog-api-key", key.decode() + wrong)]
            with pytest.raises(UpstreamError) as caught:
                await upstream.send("GET", "/", headers, b"")
            assert caught.value.__context__ is None
            assert caught.value.kind == "unreachable"
            said.append(repr(caught.value) + "".join(traceback.format_exception(caught.value)))

    async def broken(upstream: Upstream) -> None:
        with pytest.raises(UpstreamError) as caught:
            await upstream.send("GET", "/", HEADERS, b"")
        said.append("".join(traceback.format_exception(caught.value)))

    way.against(Server(echo), scene)
    way.against(Server(odd), broken)
    assert len(said) == 4
    assert "AQ.test-value" not in "".join(said) + caplog.text


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_an_answer_to_a_large_body_comes_although_the_server_takes_no_more_of_it(way: Way) -> None:
    class Early(Server):
        @staticmethod
        async def _request(reader: asyncio.StreamReader) -> bytes:
            return await reader.readuntil(b"\r\n\r\n")

    server = Early(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", 3.0)
    assert way.against(server, lambda u: read(u, "/", "POST", b"x" * (1 << 25))) == b"big"
