"""Bodies that are streamed, not held in memory, against a small server of raw bytes."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from pollux.backends.connection import HIGH_WATER
from pollux.backends.upstream import Answer, Upstream, UpstreamError
from pollux.gemini.errors import GatewayError
from pollux.relay.client import ClientGoneError, PassingBody
from tests.backends.servers import OK, Server, Way
from tests.backends.test_upstream import HEADERS

PIECE = b"x" * 65536


class Body:
    """Pieces as told; a number is a pause, an exception is raised."""

    def __init__(self, *pieces: bytes | float | Exception, length: int | None = None) -> None:
        self.pieces = pieces
        self.length = sum(len(p) for p in pieces if isinstance(p, bytes)) if length is None else length
        self.asked = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                self.asked += 1
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, bytes):
                    yield piece
                else:
                    await asyncio.sleep(piece)
        finally:
            self.closed = True


class Unmeasured(Body):
    length = None  # type: ignore[assignment]

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.asked, self.closed = pieces, 0, False


async def post(upstream: Upstream, body: Body) -> tuple[int, bytes]:
    answer: Answer = await upstream.send("POST", "/upload/v1beta/files", HEADERS, body)
    try:
        return answer.status, await answer.read()
    finally:
        answer.close()


def posting(body: Body) -> Callable[[Upstream], Awaitable[tuple[int, bytes]]]:
    return lambda upstream: post(upstream, body)


def test_it_arrives_as_it_came_with_its_length(way: Way) -> None:
    server = Server(OK)
    body = Body(b"a" * 10, 0.01, PIECE, b"end")
    assert way.against(server, posting(body)) == (200, b"{}")
    head, _, rest = server.requests[0].partition(b"\r\n\r\n")
    assert rest == b"a" * 10 + PIECE + b"end"
    assert b"Content-Length: 65549" in head
    assert b"ransfer-" not in head


def test_without_a_length_it_goes_in_chunks(way: Way) -> None:
    received: list[bytes] = []

    class Chunked(Server):
        async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
            head = await reader.readuntil(b"\r\n\r\n")
            while size := int(await reader.readline(), 16):
                received.append(await reader.readexactly(size))
                await reader.readline()
            await reader.readline()
            return head

    server = Chunked(OK)
    assert way.against(server, posting(Unmeasured(b"abc", PIECE))) == (200, b"{}")
    assert received == [b"abc", PIECE]
    assert b"Transfer-Encoding: chunked" in server.requests[0]
    assert b"Content-Length" not in server.requests[0]


def test_the_connection_is_used_again_after_a_whole_body(way: Way) -> None:
    server = Server(OK)

    async def scene(upstream: Upstream) -> None:
        for _ in range(3):
            await post(upstream, Body(PIECE, b"x"))

    way.against(server, scene)
    assert (len(server.requests), server.connections) == (3, 1)


class Early(Server):
    """Answers as soon as it has the head, reads no body, and keeps the connection for a while."""

    async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
        return await reader.readuntil(b"\r\n\r\n")


EARLY = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"


def test_an_answer_may_come_before_the_end_of_the_body_and_the_rest_is_not_asked_for(way: Way) -> None:
    server = Early(EARLY, 0.5)
    body = Body(PIECE, 60.0, PIECE)
    assert way.against(server, posting(body)) == (413, b"big")
    assert body.asked <= 2
    assert body.closed


def test_interim_answers_do_not_end_an_upload(way: Way) -> None:
    class Interim(Server):
        @staticmethod
        async def _request(reader: asyncio.StreamReader) -> bytes:
            return await reader.readuntil(b"\r\n\r\n")

        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append(await self._request(reader))
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
            self.requests.append(await reader.readexactly(2 * len(PIECE)))
            writer.write(OK)
            await writer.drain()
            writer.close()

    assert way.against(Interim(), posting(Body(PIECE, 0.2, PIECE))) == (200, b"{}")


def test_an_early_answer_behind_an_interim_one_ends_the_upload(way: Way) -> None:
    body = Body(PIECE, 60.0, PIECE)
    assert way.against(Early(b"HTTP/1.1 102 Processing\r\n\r\n" + EARLY, 0.5), posting(body)) == (413, b"big")
    assert body.closed


def test_a_connection_on_which_a_body_was_cut_short_is_not_used_again(way: Way) -> None:
    server = Early(EARLY, 0.2)

    async def scene(upstream: Upstream) -> None:
        for _ in range(2):
            assert (await post(upstream, Body(PIECE, 60.0, PIECE)))[0] == 413

    way.against(server, scene)
    assert server.connections == 2


class Stuck(Server):
    """Reads nothing of a body."""

    async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1.5)
        return b""


def test_no_more_is_asked_for_than_the_upstream_takes(way: Way) -> None:
    body = Body(*[PIECE] * 2000)
    tracemalloc.start()
    try:
        with pytest.raises(UpstreamError) as late:
            way.against(Stuck(), posting(body), timeout=0.5)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert late.value.kind == "timeout"
    assert body.asked < 500, "what the kernel holds for a connection, and no more"
    assert body.closed
    assert most < 8 * 2**20


def test_the_time_allowed_for_an_answer_begins_with_the_end_of_the_body(way: Way) -> None:
    server = Server(OK)
    assert way.against(server, posting(Body(b"a", 0.6, b"b", 0.6, b"c")), timeout=0.5) == (200, b"{}")


def test_what_never_answers_is_a_timeout(way: Way) -> None:
    with pytest.raises(UpstreamError) as late:
        way.against(Server(1.5), posting(Body(PIECE)), timeout=0.3)
    assert late.value.kind == "timeout"


@pytest.mark.parametrize("trouble", [ClientGoneError(), GatewayError("BODY_STALLED", "no more")])
def test_a_body_that_fails_closes_the_connection_and_says_why(way: Way, trouble: Exception) -> None:
    server = Server(OK)

    async def scene(upstream: Upstream) -> None:
        with pytest.raises(type(trouble)):
            await post(upstream, Body(PIECE, 0.05, trouble, length=1_000_000))
        await asyncio.wait_for(server.left.wait(), 2)

    way.against(server, scene)
    assert server.requests == []


@pytest.mark.parametrize("length", [3, 5])
def test_a_body_of_another_length_than_announced_is_not_taken_for_whole(way: Way, length: int) -> None:
    class Open(Server):
        async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
            await reader.read(65536)
            await reader.read(65536)
            return b""

    with pytest.raises(UpstreamError):
        way.against(Open(), posting(Body(b"abcd", length=length)))


def test_a_connection_that_breaks_meanwhile_is_a_reset(way: Way) -> None:
    class Breaks(Server):
        async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
            await reader.readuntil(b"\r\n\r\n")
            return b""

    with pytest.raises(UpstreamError) as broken:
        way.against(Breaks(), posting(Body(PIECE, 5.0, PIECE)))
    assert broken.value.kind == "reset"


def test_who_leaves_meanwhile_closes_the_connection(way: Way) -> None:
    server = Server(OK)
    body = Body(PIECE, 60.0)
    body.length += 1

    async def scene(upstream: Upstream) -> None:
        task = asyncio.create_task(post(upstream, body))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 2)

    way.against(server, scene)
    assert body.closed


def test_a_large_one_needs_little_memory(way: Way) -> None:
    size = 0

    class Counting(Server):
        async def _request(self, reader: asyncio.StreamReader) -> bytes:  # type: ignore[override]
            nonlocal size
            head = await reader.readuntil(b"\r\n\r\n")
            while size < 200 * HIGH_WATER:
                size += len(await reader.read(HIGH_WATER))
            return head

    tracemalloc.start()
    try:
        assert way.against(Counting(OK), posting(Body(*[b"y" * HIGH_WATER] * 200)))[0] == 200
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 200 * HIGH_WATER
    assert most < 8 * 2**20


# --- from the client -------------------------------------------------------------------------------------------------


def passing(messages: list[dict[str, object]], *headers: tuple[bytes, bytes]) -> tuple[PassingBody, list[str]]:
    ended: list[str] = []

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    return PassingBody(headers, receive, lambda: ended.append("ended")), ended


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"7")], 7),
        ([(b"transfer-encoding", b"chunked")], None),
        ([(b"content-length", b"x")], 0),
    ],
)
def test_how_long_it_is(headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    assert passing([], *headers)[0].length == length


def test_pieces_come_as_they_are_and_the_end_is_told_once() -> None:
    body, ended = passing([
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"c"},
    ])  # fmt: skip

    async def scene() -> list[bytes]:
        return [piece async for piece in body]

    assert asyncio.run(scene()) == [b"ab", b"c"]
    assert (body.passed, ended) == (3, ["ended"])


def test_a_client_that_leaves_is_no_end() -> None:
    body, ended = passing([{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}])

    async def scene() -> None:
        async for _ in body:
            pass

    with pytest.raises(ClientGoneError):
        asyncio.run(scene())
    assert ended == []
