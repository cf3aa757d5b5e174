"""client: bodies within their limits, the memory for them, and clients that leave."""

import asyncio
from collections.abc import Sequence

import pytest

from bench.virtual import run
from pollux.gemini.errors import GatewayError
from pollux.relay.client import STALLED_AFTER, BodyMemory, ClientGoneError, Message, Receive, Watch, header, read_body

GONE: Message = {"type": "http.disconnect"}


def receiving(*messages: Message) -> Receive:
    rest = list(messages)

    async def receive() -> Message:
        return rest.pop(0)

    return receive


def body(*chunks: bytes, ends: bool = True) -> list[Message]:
    more = [True] * (len(chunks) - 1) + [not ends]
    return [{"type": "http.request", "body": c, "more_body": m} for c, m in zip(chunks, more, strict=True)]


def read(
    messages: Sequence[Message], *, length: str | None = None, limit: int = 100, memory: BodyMemory | None = None
) -> bytes:
    headers = [] if length is None else [(b"content-length", length.encode("latin-1"))]
    return asyncio.run(read_body(headers, receiving(*messages), limit, memory or BodyMemory(1000)))


@pytest.mark.parametrize("length", [None, "6", "5", "7", "0", "nonsense", "-1", "²"])
def test_a_body_is_joined_whatever_its_length_claims_to_be(length: str | None) -> None:
    memory = BodyMemory(1000)
    assert read(body(b"abc", b"", b"def"), length=length, memory=memory) == b"abcdef"
    assert memory.held == 6, "exactly what is held stays booked, until its request ends"


def test_an_announced_size_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(GatewayError, match="POLLUX_MAX_BODY") as caught:
        read([], length="101")
    assert caught.value.code == "BODY_TOO_LARGE"


def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    endless = body(*[b"x" * 60] * 9, ends=False)[:2]
    memory = BodyMemory(1000)
    with pytest.raises(GatewayError):
        read(endless, memory=memory)
    assert memory.held == 0


def test_the_limit_itself_is_allowed() -> None:
    assert len(read(body(b"x" * 100), length="100")) == 100


def test_a_client_that_leaves_in_the_middle_frees_what_was_held() -> None:
    memory = BodyMemory(1000)
    with pytest.raises(ClientGoneError):
        read([*body(b"x" * 50, ends=False), GONE], length="90", memory=memory)
    assert memory.held == 0


def test_a_body_that_stalls_is_given_up_after_a_minute_and_frees_what_was_held() -> None:
    memory = BodyMemory(1000)

    async def scene() -> float:
        first = body(b"x" * 50, ends=False)

        async def receive() -> Message:
            await asyncio.sleep(STALLED_AFTER - 1 if first else 10_000)
            return first.pop()

        with pytest.raises(GatewayError, match="50 bytes") as caught:
            await read_body([(b"content-length", b"90")], receive, 100, memory)
        assert caught.value.code == "BODY_STALLED"
        return asyncio.get_running_loop().time()

    assert run(scene()) == pytest.approx(2 * STALLED_AFTER - 1, abs=0.1)
    assert memory.held == 0


def test_bodies_share_one_budget() -> None:
    memory = BodyMemory(150)
    read(body(b"x" * 100), length="100", memory=memory)
    with pytest.raises(GatewayError, match="POLLUX_BODY_MEMORY") as caught:
        read(body(b"x" * 60), length="60", memory=memory)
    assert (caught.value.code, caught.value.retry_after) == ("OVERLOADED_GATEWAY", 2.0)
    assert memory.held == 100
    memory.release(100)
    assert read(body(b"x" * 60), memory=memory) == b"x" * 60


def test_what_grows_beyond_its_announced_size_is_booked_as_it_grows() -> None:
    memory = BodyMemory(70)
    with pytest.raises(GatewayError, match="POLLUX_BODY_MEMORY"):
        read(body(b"x" * 50, b"x" * 50), length="10", memory=memory)
    assert memory.held == 0


def test_a_header_is_found_by_its_name() -> None:
    headers = [(b"a", b"1"), (b"b", b"\xe4"), (b"a", b"2")]
    assert (header(headers, b"a"), header(headers, b"b"), header(headers, b"c")) == ("1", "ä", None)


# --- clients that leave ----------------------------------------------------------------------------------------------


async def leaves_after(seconds: float) -> Message:
    await asyncio.sleep(seconds)
    return GONE


def test_work_ends_when_the_client_leaves() -> None:
    async def scene() -> float:
        with pytest.raises(ClientGoneError), Watch(lambda: leaves_after(3)):
            await asyncio.sleep(100)
        await asyncio.sleep(0)  # the task itself goes on
        return asyncio.get_running_loop().time()

    assert 3 <= run(scene()) < 4


def test_any_other_end_of_the_work_stays_what_it_is() -> None:
    async def scene() -> None:
        with pytest.raises(ValueError, match="of the work"), Watch(lambda: leaves_after(3)):
            raise ValueError("of the work")
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(1, task.cancel)
        with pytest.raises(asyncio.CancelledError), Watch(lambda: leaves_after(3)):
            await asyncio.sleep(100)
        task.uncancel()

    run(scene())


def test_a_quick_request_is_never_asked_about() -> None:
    asked = []

    async def receive() -> Message:
        asked.append(True)
        return GONE

    async def scene() -> None:
        with Watch(receive):
            await asyncio.sleep(0.01)
        await asyncio.sleep(5)

    run(scene())
    assert not asked


def test_after_its_end_nothing_is_cancelled_any_more() -> None:
    async def scene() -> None:
        with Watch(lambda: leaves_after(3)):
            await asyncio.sleep(1)
        await asyncio.sleep(10)

    run(scene())


def test_a_rest_of_the_body_is_no_sign_of_leaving() -> None:
    async def scene() -> None:
        with pytest.raises(ClientGoneError), Watch(receiving(*body(b""), *body(b""), GONE)):
            await asyncio.sleep(10)

    run(scene())
