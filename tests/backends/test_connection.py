"""connection: what HTTP/1.1 allows a server to say, and what is not allowed in a request."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, TypeVar, cast

import pytest
import uvloop

from pollux.backends.connection import HEADERS_MOST, HIGH_WATER, Address, Connection, head_of
from pollux.backends.upstream import Upstream, UpstreamError
from tests.backends.servers import OK, Server, Way, listen, server_tls

T = TypeVar("T")
Scene = Callable[[Upstream], Awaitable[T]]


def get(method: str = "GET") -> Scene[tuple[int, bytes]]:
    async def scene(google: Upstream) -> tuple[int, bytes]:
        answer = await google.send(method, "/v1beta/models", [], b"")
        return answer.status, await answer.read()

    return scene


def post() -> Scene[tuple[int, bytes]]:
    async def scene(google: Upstream) -> tuple[int, bytes]:
        answer = await google.send("POST", "/v1beta/models/m:generateContent", [], b'{"contents":[]}')
        return answer.status, await answer.read()

    return scene


def twice(method: str = "GET") -> Scene[None]:
    async def scene(google: Upstream) -> None:
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
def test_an_answer_ends_where_its_framing_says_and_its_connection_is_kept(way: Way, said: bytes, body: bytes) -> None:
    server = Server(said)
    assert way.against(server, get()) == (200, body)
    server = Server(said)
    way.against(server, twice())
    assert (len(server.requests), server.connections) == (2, 1)


def test_an_answer_without_framing_ends_with_the_connection(way: Way) -> None:
    assert way.against(Server(b"HTTP/1.1 200 OK\r\n\r\nab", None), get()) == (200, b"ab")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_answers_have_no_body_whatever_their_headers_say(way: Way, status: str) -> None:
    server = Server(f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode())
    assert way.against(server, get())[1] == b""


def test_the_answer_to_head_has_no_body(way: Way) -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert way.against(server, get("HEAD")) == (200, b"")
    server = Server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsurplus")
    assert way.against(server, get("HEAD")) == (200, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb",
    ],
)
def test_a_connection_that_ends_or_says_too_much_is_not_used_again(way: Way, said: bytes) -> None:
    server = Server(said)
    way.against(server, twice())
    assert (len(server.requests), server.connections) == (2, 2)


LARGE = b"x" * (2 * HEADERS_MOST)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"garbage\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n", "status 600"),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "status 999"),
        (b"HTTP/1.1 1000 Odd\r\nContent-Length: 0\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "the answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + LARGE + b"\r\nContent-Length: 0\r\n\r\n", f"more than {HEADERS_MOST}"),
        (b"HTTP/1.1 200 OK\r\nX: " + LARGE, f"more than {HEADERS_MOST}"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEADERS_MOST + b"\r\n", f"more than {HEADERS_MOST}"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "the answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "the answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "the answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\na", "the answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nETag: a\r\n b\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nETag: a\x01b\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nETag: a\x1fb\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nETag: a\x7fb\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nET\x01ag: a\r\nContent-Length: 1\r\n\r\na", "not valid HTTP"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * (HEADERS_MOST // 20), f"more than {HEADERS_MOST}"),
    ],
    ids=[
        "garbage", "600", "999", "1000", "101", "a large header", "a header without an end", "many headers",
        "both lengths", "both lengths the other way round", "two lengths", "gzip, chunked", "gzip",
        "the same length twice", "a list of lengths", "bare line feeds", "a folded header", "a control character",
        "the last control character", "a delete character", "a control character in a name", "1xx without an end",
    ],
)  # fmt: skip
def test_an_answer_that_is_not_valid_http_is_malformed(way: Way, said: bytes, why: str) -> None:
    server = Server(said)
    with pytest.raises(UpstreamError, match=why) as broken:
        way.against(server, post())
    assert broken.value.kind == "malformed"
    assert len(server.requests) == 1, "it may have been taken"


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n",
        b'{"candidates":[]}',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: \x01\r\n\r\n",
    ],
    ids=["SSH", "a body without a head", "a chunk without a size", "a control character in a trailer"],
)
def test_what_is_not_valid_http_is_malformed_also_if_the_connection_is_closed(way: Way, said: bytes) -> None:
    server = Server(said, None)
    with pytest.raises(UpstreamError, match="not valid HTTP") as broken:
        way.against(server, post())
    assert broken.value.kind == "malformed"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"], ids=["nothing", "1xx"])
def test_a_connection_that_closes_before_the_answer_is_a_reset(way: Way, said: bytes) -> None:
    with pytest.raises(UpstreamError) as broken:
        way.against(Server(said, None), post())
    assert broken.value.kind == "reset"


def test_a_whole_body_whose_trailers_do_not_end_in_time_is_malformed_so_that_nothing_is_sent_again(way: Way) -> None:
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: a\r\n"
    with pytest.raises(UpstreamError, match="trailers") as late:
        way.against(Dripping(first, b"Y: " + b"y" * 60), post(), timeout=0.3)
    assert late.value.kind == "malformed"


def test_trailers_are_left_out_and_have_an_end(way: Way) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"

    async def scene(google: Upstream) -> None:
        answer = await google.send("GET", "/", [], b"")
        assert await answer.read() == b"a"
        assert [name for name, _ in answer.headers] == [b"X", b"Transfer-Encoding"]

    way.against(Server(head + b"Y: b\r\n\r\n"), scene)
    with pytest.raises(UpstreamError) as broken:
        way.against(Server(head + b"Y: " + 4 * LARGE), get())
    assert broken.value.kind == "malformed"


def test_a_head_that_comes_byte_by_byte_has_an_end(way: Way) -> None:
    server = Dripping(b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 80)
    with pytest.raises(UpstreamError) as late:
        way.against(server, get(), timeout=0.3)
    assert late.value.kind == "timeout"


class Dripping(Server):
    """Sends `first`, then `rest` byte by byte."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.first)
            for byte in self.rest:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.left.set()
            writer.close()


def test_a_body_that_comes_byte_by_byte_is_not_cut_short(way: Way) -> None:
    server = Dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", b"x" * 12)
    assert way.against(server, get(), timeout=0.4) == (200, b"x" * 12)


@pytest.mark.parametrize("rest", [b"0\r\nX: " + b"y" * 60, b"5;" + b"y" * 60], ids=["trailers", "a chunk's head"])
def test_bytes_that_are_no_body_do_not_prolong_the_wait_for_it(way: Way, rest: bytes) -> None:
    server = Dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", rest)

    async def scene(google: Upstream) -> None:
        answer = await google.send("GET", "/", [], b"")
        assert await answer.chunk() == b"a"
        with pytest.raises(UpstreamError) as late:
            await answer.chunk()
        assert late.value.kind == "timeout"
        answer.close()
        await asyncio.wait_for(server.left.wait(), 2)

    way.against(server, scene, timeout=0.4)


def test_a_connection_that_closes_as_it_is_used_again_is_a_reset_and_nothing_is_sent_twice(way: Way) -> None:
    class Once(Server):
        """Answers the first request of a connection, and closes it when it has read the second."""

        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            self.requests.append(await self._request(reader))
            writer.write(OK)
            self.requests.append(await self._request(reader))
            writer.close()

    server = Once()

    async def scene(google: Upstream) -> None:
        assert await post()(google) == (200, b"{}")
        with pytest.raises(UpstreamError) as broken:
            await post()(google)
        assert broken.value.kind == "reset"

    way.against(server, scene)
    assert (len(server.requests), server.connections) == (2, 1)


def test_what_was_closed_before_anything_was_sent_is_unreachable_not_a_reset() -> None:
    async def scene() -> None:
        closed = Connection(1.0, 0.0)
        with pytest.raises(UpstreamError) as caught:
            closed.request(b"POST / HTTP/1.1\r\n\r\n", b"", head_only=False)
        assert caught.value.kind == "unreachable"

    asyncio.run(scene())


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(way: Way) -> None:
    server = Server(OK, None)

    async def scene(google: Upstream) -> None:
        for _ in range(2):
            await post()(google)
            await asyncio.wait_for(server.left.wait(), 4)
            server.left.clear()
            await asyncio.sleep(0.05)

    way.against(server, scene)
    assert (len(server.requests), server.connections) == (2, 2)


def test_a_connection_is_used_again_for_half_a_minute_idle_and_five_minutes_in_all(way: Way) -> None:
    server, now = Server(OK), 1000.0

    async def scene(google: Upstream) -> None:
        nonlocal now
        for _ in range(15):
            await post()(google)
            now += 20.0
        assert server.connections == 1
        now += 1.0
        await post()(google)
        assert server.connections == 2

    way.against(server, scene, clock=lambda: now)


def test_a_server_has_to_wait_for_a_slow_reader(way: Way) -> None:
    size = 40 * HIGH_WATER
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def scene(google: Upstream) -> tuple[int, int]:
        answer = await google.send("GET", "/v1beta/files/a:download", [], b"")
        await asyncio.sleep(0.2)
        first = len(await answer.chunk())
        return first, first + len(await answer.read())

    first, whole = way.against(server, scene)
    assert first < 8 * HIGH_WATER
    assert whole == size


def test_a_large_body_arrives_whole(way: Way) -> None:
    body = bytes(range(256)) * (HIGH_WATER // 64)
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def scene(google: Upstream) -> None:
        await (await google.send("POST", "/v1beta/x", [], body)).read()

    way.against(server, scene)
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


# --- addresses -------------------------------------------------------------------------------------------------------


class Resolving(uvloop.Loop):
    """Knows where `gemini.example` is."""

    found: ClassVar[list[tuple[socket.AddressFamily, str]]] = []

    async def getaddrinfo(self, host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host in ("gemini.example", b"gemini.example"):
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (at, port)) for family, at in self.found]
        return await super().getaddrinfo(host, port, *rest, **options)


class Unresolved(uvloop.Loop):
    """Its name server does not answer."""

    asked = False

    async def getaddrinfo(self, host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        self.asked = True
        await asyncio.sleep(60)


def test_leaving_while_the_address_is_looked_up_ends_the_call(way: Way) -> None:
    async def scene() -> None:
        upstream = way.upstream("https://gemini.example")
        task: asyncio.Task[Any] = asyncio.ensure_future(get()(upstream))
        await asyncio.sleep(0.05)
        assert cast("Unresolved", asyncio.get_running_loop()).asked
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)
        await upstream.close()

    with asyncio.Runner(loop_factory=Unresolved) as runner:
        runner.run(scene())


HERE = (socket.AF_INET, "127.0.0.1")


@contextlib.contextmanager
def silent() -> Iterator[tuple[tuple[socket.AddressFamily, str], int]]:
    """An address, of IPv6 if there is one here, that answers no attempt to connect; and its port."""
    with contextlib.ExitStack() as stack:
        for address in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.2")):
            with contextlib.suppress(OSError):
                full = stack.enter_context(socket.socket(address[0]))
                full.bind((address[1], 0))
                full.listen(0)
                break
        for _ in range(2):  # once its queue is full, connecting hangs
            filling = stack.enter_context(socket.socket(address[0]))
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        yield address, full.getsockname()[1]


def resolved(
    way: Way,
    found: list[tuple[socket.AddressFamily, str]],
    port: int,
    scene: Callable[[Upstream], Awaitable[T]],
    connect_timeout: float = 10.0,
) -> T:
    """Play a scene with these addresses of the upstream."""

    async def play() -> T:
        base = f"http{'s' if way.tls else ''}://gemini.example:{port}"
        upstream = way.upstream(base, connect_timeout=connect_timeout)
        try:
            return await scene(upstream)
        finally:
            await upstream.close()

    Resolving.found = found
    with asyncio.Runner(loop_factory=Resolving) as runner:
        return runner.run(play())


def test_an_address_that_is_silent_costs_a_quarter_of_a_second(way: Way) -> None:
    server = Server(OK)

    async def scene(google: Upstream) -> float:
        async with contextlib.AsyncExitStack() as stack:
            await listen(stack, server.serve, server_tls(way.certificate) if way.tls else None, port)
            began = time.monotonic()
            assert await get()(google) == (200, b"{}")
            return time.monotonic() - began

    with silent() as (black_hole, port):
        assert resolved(way, [black_hole, HERE], port, scene) < 2
    assert (len(server.requests), server.connections) == (1, 1)


def test_where_all_addresses_refuse_or_are_silent_nothing_can_be_reached(way: Way) -> None:
    async def scene(google: Upstream) -> None:
        with pytest.raises(UpstreamError, match=r"no connection to gemini\.example") as caught:
            await get()(google)
        assert caught.value.kind == "unreachable"

    with silent() as (black_hole, port):
        resolved(way, [HERE, (socket.AF_INET, "127.0.0.3")], port, scene)
        resolved(way, [HERE, black_hole, black_hole], port, scene, connect_timeout=0.6)
