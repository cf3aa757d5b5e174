"""passing: bytes on their way to the client, their headers, and errors of our own in either shape."""

import asyncio
import json
import math
from typing import Any

import pytest

from pollux.backends.upstream import UpstreamError
from pollux.gemini.errors import ERRORS, GatewayError
from pollux.gemini.stream import StreamReader
from pollux.redaction import Forms
from pollux.relay.client import Message
from pollux.relay.journal import Record
from pollux.relay.passing import WHOLE_MOST, BrokenAnswerError, Reply, collect, pass_on, pass_stream, prompt_tokens
from pollux.relay.send import CoveredAnswer
from tests.gateway import FakeAnswer, Says, answer, event, part

KEY = "Zx9Quartz-Opaque_Value-77881"  # opaque: nothing but its value tells that it is a key
RESET = UpstreamError("reset", "the connection broke")
JSON = [(b"content-type", b"application/json")]


class Wire:
    """What the server was told to send, and when the settlement came in between."""

    def __init__(self, **record: Any) -> None:
        self.messages: list[Message | str] = []
        self.record = Record(id="0123456789abcdef", **record)
        self.reply = Reply(self._send, self.record, [(b"vary", b"origin")])
        self.settled: list[int | None] = []

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    async def settle(self, tokens: int | None) -> None:
        self.settled.append(tokens)
        self.messages.append("settled")

    @property
    def start(self) -> Message:
        assert not isinstance(self.messages[0], str)
        return self.messages[0]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.start["headers"]}

    @property
    def bodies(self) -> list[bytes | str]:
        """In order, with the moment of the settlement."""
        return [m if isinstance(m, str) else m["body"] for m in self.messages[1:]]

    @property
    def ended(self) -> bool:
        last = self.messages[-1]
        return not isinstance(last, str) and not last.get("more_body")


def fake(*pieces: bytes | UpstreamError, length: int | None = None, headers: Any = JSON) -> CoveredAnswer:
    return CoveredAnswer(FakeAnswer(Says(pieces, headers=headers, length=length), head=False), KEY, Forms(KEY))


# --- replies ---------------------------------------------------------------------------------------------------------


def test_an_answer_bears_what_happened_to_it() -> None:
    wire = Wire(key="k1", used="model-b", sent=3, waited=1.5)
    asyncio.run(wire.reply.whole(200, [*JSON, (b"content-length", b"999")], b"{}"))
    assert wire.headers == {
        "content-type": "application/json",
        "content-length": "2",
        "x-pollux-request-id": "0123456789abcdef",
        "x-pollux-attempts": "3",
        "x-pollux-wait-ms": "1500",
        "x-pollux-key": "k1",
        "x-pollux-model": "model-b",
        "vary": "origin",
    }
    assert (wire.record.status, wire.reply.begun) == (200, True)
    assert wire.record.first_byte is not None


def test_what_was_never_sent_names_no_key() -> None:
    wire = Wire()
    asyncio.run(wire.reply.whole(401, JSON, b"{}"))
    assert not {"x-pollux-key", "x-pollux-model"} & set(wire.headers)


def test_names_that_no_header_can_carry_do_no_harm() -> None:
    wire = Wire(key="clé-☃", used="m")
    asyncio.run(wire.reply.whole(200, JSON, b"{}"))
    assert dict(wire.start["headers"])[b"x-pollux-key"] == "clé-?".encode("latin-1")


@pytest.mark.parametrize("reason", ERRORS)
def test_every_error_of_ours_has_the_shape_of_each_api(reason: str) -> None:
    for api in ("native", "openai"):
        wire = Wire(api=api)
        asyncio.run(wire.reply.error(GatewayError(reason, "what happened", retry_after=2.2)))
        body = wire.bodies[0]
        assert isinstance(body, bytes)
        error = json.loads(body)["error"]
        assert wire.start["status"] == ERRORS[reason].http
        assert error["message"] == "what happened"
        assert error["code"] == (reason if api == "openai" else ERRORS[reason].http)
        assert wire.headers["retry-after"] == "3"
        assert wire.record.reason == reason


def test_without_a_time_to_retry_there_is_no_such_header() -> None:
    wire = Wire()
    asyncio.run(wire.reply.error(GatewayError("NO_USABLE_KEY", "none", retry_after=math.inf)))
    assert "retry-after" not in wire.headers


# --- plain answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (json.dumps(answer(77)).encode(), 77),
        (b'{"usage": {"prompt_tokens": 5, "total_tokens": 9}}', 5),
        (b"x" * 100_000 + json.dumps(answer(78)).encode(), 78),
        (b'{"promptTokenCount": 1}, {"promptTokenCount" : 2}', 2),
        (rb'{"text": "\"promptTokenCount\": 9"}', None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_the_input_tokens_are_read_from_the_end(body: bytes, tokens: int | None) -> None:
    assert prompt_tokens(body) == tokens


def test_plain_answers_tell_their_tokens() -> None:
    usage = {
        "promptTokenCount": 7,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}],
        "totalTokenCount": 9,
    }
    answer = {"candidates": [{"content": {"parts": [{"text": '"usageMetadata": {"promptTokenCount": 1}'}]}}]}
    for pretty in (None, 2):
        body = json.dumps(answer | {"usageMetadata": usage, "modelVersion": "m"}, indent=pretty).encode()
        assert prompt_tokens(body) == 7
    told = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 0}}
    assert prompt_tokens(json.dumps({"usage": told, "x": {"usage": None}}).encode()) == 5
    for nothing in (b"", b"{}", b'{"usageMetadata": ', b'{"usageMetadata": 5}', b"\xff"):
        assert prompt_tokens(nothing) is None


@pytest.mark.parametrize(
    ("pieces", "length", "expected"),
    [
        ([b"ab", b"cd"], 4, (b"abcd", True)),
        ([b"ab", b"cd"], None, (b"abcd", True)),
        ([b"a" * WHOLE_MOST, b"b", b"c"], None, (b"a" * WHOLE_MOST + b"b", False)),
        ([b"never read"], WHOLE_MOST + 1, (b"", False)),
    ],
)
def test_an_answer_up_to_a_megabyte_is_collected(
    pieces: list[bytes], length: int | None, expected: tuple[bytes, bool]
) -> None:
    assert asyncio.run(collect(fake(*pieces, length=length))) == expected


def test_the_last_bytes_of_a_known_length_wait_for_the_settlement() -> None:
    wire = Wire()
    body = json.dumps(answer(5)).encode()
    asyncio.run(pass_on(wire.reply, fake(b"first", body, length=5 + len(body)), wire.settle))
    assert wire.bodies == [b"first", "settled", body]
    assert (wire.settled, wire.ended) == ([5], True)


def test_without_a_length_only_the_empty_end_waits() -> None:
    wire = Wire()
    asyncio.run(pass_on(wire.reply, fake(b"second", b"third"), wire.settle, b"first"))
    assert wire.bodies == [b"first", b"second", b"third", "settled", b""]


def test_a_plain_answer_that_breaks_after_its_start_is_cut() -> None:
    wire = Wire()
    with pytest.raises(BrokenAnswerError, match="the connection broke"):
        asyncio.run(pass_on(wire.reply, fake(b"first", RESET, length=99), wire.settle))
    assert not wire.ended
    assert not wire.settled


# --- streams ---------------------------------------------------------------------------------------------------------


def stream(form: str, first: bytes, *pieces: bytes | UpstreamError) -> tuple[Wire, str]:
    wire = Wire()

    async def scene() -> str:
        reader, answer = StreamReader(form), fake(first, *pieces, headers=[*JSON, (b"content-length", b"9")])
        covered = await answer.chunk()
        reader.feed(covered)
        return await pass_stream(wire.reply, answer, reader, covered, wire.settle)

    return wire, asyncio.run(scene())


def test_a_stream_ends_after_its_settlement() -> None:
    wire, ended = stream("sse", event(part("One")), event(answer(40)))
    assert wire.bodies == [event(part("One")), event(answer(40)), "settled", b""]
    assert (ended, wire.settled) == ("", [40])
    assert "content-length" not in wire.headers


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("sse", event(part("One"))),
        ("array", b"[" + json.dumps(part("One")).encode()),
        ("openai-sse", b'data: {"choices": [{"delta": {"content": "One"}}]}\n\n'),
    ],
)
def test_a_stream_that_breaks_ends_as_google_ends_one(form: str, first: bytes) -> None:
    wire, ended = stream(form, first, RESET)
    assert ended == "broken"
    assert wire.bodies[0] == first
    last = wire.bodies[1]
    assert isinstance(last, bytes)
    error = json.loads(last.strip().removeprefix(b"data: ").strip(b",] \n"))["error"]
    assert error["status" if form != "openai-sse" else "type"] in ("UNAVAILABLE", "server_error")
    assert last.lstrip().startswith(b"data:") == (form == "openai-sse")
    if form == "array":
        assert json.loads(first + last)[1] == {"error": error}
    assert wire.bodies[2:] == ["settled", b""]


def test_an_error_in_the_middle_of_a_stream_is_passed_on_without_the_key() -> None:
    secret = "AIza" + "x" * 35
    error = f'\n{{"error":{{"code":403,"message":"api key {secret} blocked","status":"PERMISSION_DENIED"}}}}\n'.encode()
    wire, ended = stream("sse", event(part("One")), error[:60], error[60:])
    passed = b"".join(body for body in wire.bodies if isinstance(body, bytes))
    assert ended == "error"
    assert secret.encode() not in passed
    assert b"PERMISSION_DENIED" in passed


def test_a_stream_without_a_finish_is_truncated() -> None:
    assert stream("sse", event(part("One")), event(part("Two")))[1] == "truncated"


# --- the key of the attempt ------------------------------------------------------------------------------------------


def passed(wire: Wire) -> bytes:
    return b"".join(body for body in wire.bodies if isinstance(body, bytes))


@pytest.mark.parametrize("form", ["sse", "array", "openai-sse"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_error_in_a_stream_does_not_show_the_key(form: str, size: int) -> None:
    error = json.dumps({"error": {"code": 403, "message": f"{KEY} is blocked", "status": "PERMISSION_DENIED"}})
    first = event(part("One")) if form != "array" else b"[" + json.dumps(part("One")).encode()
    tail = (b",\n" + error.encode() + b"]") if form == "array" else b"\n" + error.encode() + b"\n"
    wire, ended = stream(form, first, *(tail[at : at + size] for at in range(0, len(tail), size)))
    assert ended == "error"
    assert b"[redacted] is blocked" in passed(wire)
    assert KEY.encode()[4:] not in passed(wire)


def test_an_error_in_the_first_piece_of_a_stream_does_not_show_it_either() -> None:
    first = event(part("One")) + json.dumps({"error": {"code": 500, "message": KEY}}).encode() + b"\n"
    wire, ended = stream("sse", first)
    assert ended == "error"
    assert passed(wire) == first.replace(KEY.encode(), b"[redacted]")


def test_nor_does_the_content_of_a_stream_wherever_it_is_cut() -> None:
    whole = event(part(f"Your key is {KEY}."))
    for cut in range(1, len(whole)):
        wire, _ = stream("sse", event(part("One")), whole[:cut], whole[cut:], event(answer(4)))
        assert KEY.encode()[4:] not in passed(wire)
        assert passed(wire).endswith(event(answer(4)))


def test_a_stream_is_passed_on_as_it_comes() -> None:
    pieces = [event(part("One")), b'data: {"candidates": [', b"]}\r\n\r\n", event(answer(4))]
    wire, _ = stream("sse", *pieces)
    assert wire.bodies == [*pieces, "settled", b""]


def test_a_plain_answer_does_not_show_it_and_keeps_the_length_that_it_announced() -> None:
    wire, answer = Wire(), fake(f"a {KEY} b".encode())
    asyncio.run(pass_on(wire.reply, answer, wire.settle, asyncio.run(answer.read()), whole=True))
    assert wire.messages[0] == "settled"
    wire.messages.pop(0)
    assert passed(wire) == b"a [redacted] b"
    assert wire.headers["content-length"] == "14"
    wire, whole = Wire(), f"a {KEY} b".encode()
    asyncio.run(pass_on(wire.reply, fake(whole[:9], whole[9:], length=len(whole)), wire.settle))
    assert len(passed(wire)) == len(whole)
    assert KEY.encode()[4:] not in passed(wire)


def test_what_broke_an_answer_is_said_without_it() -> None:
    trouble = UpstreamError("reset", f"the connection broke ({KEY})")
    wire, _ = stream("sse", event(part("One")), trouble)
    assert b"[redacted]" in passed(wire)
    assert KEY.encode() not in passed(wire)
    with pytest.raises(BrokenAnswerError) as caught:
        asyncio.run(pass_on(Wire().reply, fake(b"first", trouble, length=99), Wire().settle))
    assert KEY not in str(caught.value)
