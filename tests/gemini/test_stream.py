"""Streams of every form, cut anywhere: what is content, what is an error, what is the end, and the tokens."""

import json
from itertools import pairwise
from time import perf_counter, thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.stream import LONG, StreamReader

# As they were captured: an OpenAI stream, a native one that had already said STOP, a shed one.
OPENAI_BROKE = b"""data: {"choices":[{"delta":{"content":"Partial answer"}}]}

[{
  "error": {
    "code": 503,
    "message": "This model is currently experiencing high demand. Spikes in demand are usually temporary. Please try again later.",
    "status": "UNAVAILABLE"
  }
}]"""  # noqa: E501
BROKE_AFTER_STOP = b"""data: {"candidates": [{"content": {"parts": [{"text": "Okay"}],"role": "model"}}],"usageMetadata": {"promptTokenCount": 2304,"totalTokenCount": 2304,"promptTokensDetails": [{"modality": "TEXT","tokenCount": 2304}]},"modelVersion": "gemini-2.0-flash"}

data: {"candidates": [{"content": {"parts": [{"text": ""}],"role": "model"},"finishReason": "STOP"}],"usageMetadata": {"promptTokenCount": 2301,"candidatesTokenCount": 1,"totalTokenCount": 2302,"promptTokensDetails": [{"modality": "TEXT","tokenCount": 2301}],"candidatesTokensDetails": [{"modality": "TEXT","tokenCount": 1}]},"modelVersion": "gemini-2.0-flash"}

{
  "error": {
    "code": 503,
    "message": "The model is overloaded. Please try again later.",
    "status": "UNAVAILABLE"
  }
}
"""  # noqa: E501
SHED = b"""data: {"candidates": [{"content": {"parts": [{"text": "..."}],"role": "model"},"index": 0}],"modelVersion": "gemini-3.7-flash"}

{
  "error": {
    "code": 503,
    "message": "This model is currently experiencing high demand. Spikes in demand are usually temporary. Please try again later.",
    "status": "UNAVAILABLE"
  }
}"""  # noqa: E501

USAGE = {
    "promptTokenCount": 4,
    "candidatesTokenCount": 2,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 4}],
}
ERROR = {"error": {"code": 503, "message": 'overloaded, "error": {', "status": "UNAVAILABLE"}}
TRAP = {
    "error": {"code": 1},
    "usageMetadata": None,
    "s": '"finishReason": "STOP", "usageMetadata": {"promptTokenCount": 1}',
}


def native(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, **more}], "usageMetadata": USAGE}


def chat(**delta: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


def sse(*events: Any, end: bytes = b"\r\n\r\n") -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + end for event in events)


def array(*elements: Any, indent: int | None = None) -> bytes:
    return b"[" + b"\n,\r\n".join(json.dumps(element, indent=indent).encode() for element in elements) + b"\n]"


def read(form: str, stream: bytes, cuts: tuple[int, ...] = ()) -> StreamReader:
    reader = StreamReader(form)
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in pairwise(places):
        reader.feed(stream[start:end])
    reader.close()
    return reader


def seen(reader: StreamReader) -> tuple[Any, ...]:
    return reader.content_seen, reader.finished, reader.error, reader.usage(), reader.prompt_tokens


@pytest.mark.parametrize("form", ["sse", "array", "openai-sse"])
def test_a_whole_stream(form: str) -> None:
    events: list[dict[str, Any]] = [native(), native("é😀"), native("", finishReason="STOP")]
    if form == "openai-sse":
        told = {"prompt_tokens": 4, "total_tokens": 6, "completion_tokens_details": {"reasoning_tokens": 0}}
        events = [chat(role="assistant"), chat(content="Hi") | {"usage": None}, {"choices": [], "usage": told}]
        stream = sse(*events, end=b"\n\n") + b"data: [DONE]\n\n"
    else:
        stream = sse(*events) if form == "sse" else array(*events, indent=2)
    reader = read(form, stream)
    assert (reader.content_seen, reader.finished, reader.error, reader.prompt_tokens) == (True, True, None, 4)
    assert reader.usage() == (told if form == "openai-sse" else USAGE)


@pytest.mark.parametrize(
    ("form", "stream", "finished", "tokens", "message"),
    [
        ("openai-sse", OPENAI_BROKE, False, None, "This model is currently"),
        ("sse", BROKE_AFTER_STOP, True, 2301, "The model is overloaded"),
        ("sse", SHED, False, None, "This model is currently"),
    ],
)
def test_streams_that_were_captured(form: str, stream: bytes, finished: bool, tokens: int | None, message: str) -> None:
    for text in (stream, stream.replace(b"\n", b"\r\n")):
        reader = read(form, text)
        assert (reader.content_seen, reader.finished, reader.prompt_tokens) == (True, finished, tokens)
        assert reader.error is not None
        error = json.loads(reader.error)
        assert (error[0] if isinstance(error, list) else error)["error"]["message"].startswith(message)
        assert reader.error in text


@pytest.mark.parametrize("before", [(), (native(),)])
@pytest.mark.parametrize(
    ("form", "tail"),
    [
        ("sse", b"data: " + json.dumps(ERROR).encode() + b"\n\n"),
        ("sse", b"data:" + json.dumps(ERROR).encode()),
        ("sse", json.dumps(ERROR).encode() + b"\n"),
        ("sse", json.dumps([ERROR], indent=2).encode()),
        ("sse", json.dumps(ERROR, indent=2).encode() + b"\r\n"),
        ("openai-sse", b"data: " + json.dumps([ERROR]).encode() + b"\n\n"),
        ("openai-sse", json.dumps([ERROR], indent=2).encode()),
    ],
)
def test_errors_between_and_after_events(form: str, tail: bytes, before: tuple[Any, ...]) -> None:
    start = sse(*(chat(content="x") if form == "openai-sse" else event for event in before), end=b"\n\n")
    reader = read(form, start + tail)
    assert reader.error is not None
    assert json.loads(reader.error) in (ERROR, [ERROR])
    assert reader.content_seen is bool(before)


@pytest.mark.parametrize("indent", [None, 2])
def test_errors_in_an_array(indent: int | None) -> None:
    assert json.loads(read("array", array(ERROR, indent=indent)).error or b"") == ERROR
    after = read("array", array(native(), ERROR, indent=indent))
    assert after.content_seen
    assert json.loads(after.error or b"") == ERROR
    first = StreamReader("array")
    first.feed(array(ERROR, indent=indent))
    assert first.error is not None, "known before the stream ends"
    assert not first.content_seen


@pytest.mark.parametrize("form", ["sse", "array"])
def test_an_argument_of_that_name_is_no_error(form: str) -> None:
    call = {
        "functionCall": {"name": "f", "args": {"list": [{"a": 1}, {"error": {"code": 3}}], "error": "x", "trap": TRAP}}
    }
    event = {"candidates": [{"content": {"parts": [call]}}], "usageMetadata": USAGE}
    reader = read(form, sse(event) if form == "sse" else array(event, indent=1))
    assert (reader.content_seen, reader.error, reader.finished, reader.prompt_tokens) == (True, None, False, 4)


def test_an_error_that_breaks_off_is_one_still() -> None:
    reader = read("sse", sse(native()) + json.dumps(ERROR).encode()[:30])
    assert reader.error is not None
    assert reader.error.startswith(b'{"error"')
    assert read("array", array(ERROR)[:30]).error is not None
    assert read("array", array(native(), {"x": [1, ERROR]})[:-30]).error is None, "cut off within an argument, perhaps"


EMPTY: list[Any] = [
    {"usageMetadata": USAGE, "modelVersion": "m", "responseId": "r"},
    {"candidates": [{"content": {}, "index": 0}]},
    {"candidates": [{"content": {"role": "model", "parts": [{"text": ""}]}}]},
    {"candidates": []},
    {"promptFeedback": {"safetyRatings": []}},
    {},
]
FULL: list[Any] = [
    native(),
    {"candidates": [{"content": {"parts": [{"text": "", "thoughtSignature": "s"}]}}]},
    {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}]},
    {"candidates": [{"content": {}, "finishReason": "NO_IMAGE"}]},
    {"promptFeedback": {"blockReason": "SAFETY"}},
    {"somethingNew": 1},
]
OPENAI_EMPTY: list[Any] = [chat(role="assistant"), chat(role="assistant", content=""), {"choices": [], "usage": None}]
OPENAI_FULL: list[Any] = [
    chat(content="x"),
    chat(tool_calls=[{"index": 0}]),
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]


@pytest.mark.parametrize(
    ("form", "event", "content"),
    [(form, event, False) for form in ("sse", "array") for event in EMPTY]
    + [(form, event, True) for form in ("sse", "array") for event in FULL]
    + [("openai-sse", event, False) for event in OPENAI_EMPTY]
    + [("openai-sse", event, True) for event in OPENAI_FULL],
)
def test_what_is_content(form: str, event: Any, content: bool) -> None:
    stream = array(event) if form == "array" else sse(event)
    assert read(form, stream).content_seen is content
    reader = StreamReader(form)
    reader.feed(stream)
    assert reader.content_seen is content, "known as soon as the event is complete"
    assert read(form, (array({}, event) if form == "array" else sse({}, event))).content_seen is content


def test_what_else_a_stream_may_hold() -> None:
    assert not read("openai-sse", b"data: [DONE]\n\n").content_seen
    assert read("openai-sse", b"data: [DONE]").finished
    assert not read("openai-sse", sse(chat(content="\ndata: [DONE]\n"), chat(finish_reason=None))).finished
    assert read("sse", b"data: something else\n\n").content_seen, "not ours to judge"
    assert not read("sse", b": a comment\n\nevent: x\nid: 1\n\n").content_seen
    assert read("sse", b'data: {"candidates": [\ndata: {"finishReason": "STOP"}]}\n\n').content_seen
    assert read("sse", b'data: {"candidates": [{"finishReason": 1}]}').finished, "$alt=json;enum-encoding=int"
    assert read("sse", b'data: {"promptFeedback": {"blockReason": "OTHER"}}\n\n').finished
    assert seen(read("sse", b"")) == seen(read("array", b"[]")) == (False, False, None, None, None)


STREAMS = [
    ("openai-sse", OPENAI_BROKE),
    ("openai-sse", sse(chat(role="a"), chat(content="é"), chat() | {"usage": {"prompt_tokens": 3}}, end=b"\n\n")),
    ("openai-sse", sse(chat(content="x") | {"usage": None}, end=b"\n\n") + b"data: [DONE]\n\n"),
    ("sse", BROKE_AFTER_STOP),
    ("sse", SHED.replace(b"\n", b"\r\n")),
    ("sse", sse(EMPTY[0], native("é😀\u2028"), native("x" * 300, finishReason="STOP"))),
    ("sse", sse(native()) + sse(native())[:-40]),
    ("sse", sse(native("A" * (LONG + 50)), native("", finishReason="STOP"))),
    ("sse", sse(ERROR)),
    ("sse", sse({"candidates": [{"content": {"parts": [{"functionCall": {"args": TRAP}}]}}], "usageMetadata": USAGE})),
    ("array", array(EMPTY[1], native("é😀"), native("", finishReason="STOP"), indent=2)),
    ("array", array(native(), ERROR, indent=1)),
    ("array", array(native(), {"candidates": [{"content": {"parts": [{"x": [TRAP, ERROR]}]}}]}, native())),
    ("array", array(native("A" * (LONG + 50)), native("", finishReason="STOP"))[:-30]),
]  # fmt: skip


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 40_000), max_size=12).map(tuple))
def test_it_does_not_matter_where_a_stream_is_cut(stream: tuple[str, bytes], cuts: tuple[int, ...]) -> None:
    form, whole = stream
    assert seen(read(form, whole, cuts)) == seen(read(form, whole))


@pytest.mark.parametrize("stream", [s for s in STREAMS if len(s[1]) < LONG])
def test_cut_into_single_bytes_the_result_is_the_same(stream: tuple[str, bytes]) -> None:
    form, whole = stream
    assert seen(read(form, whole, tuple(range(len(whole))))) == seen(read(form, whole))


@given(st.sampled_from(["sse", "array", "openai-sse"]), st.lists(st.binary(max_size=60), max_size=8))
def test_anything_at_all_can_be_read(form: str, chunks: list[bytes]) -> None:
    reader = StreamReader(form)
    for chunk in chunks:
        reader.feed(chunk)
    reader.close()
    assert reader.prompt_tokens is None


@pytest.mark.parametrize("form", ["sse", "array"])
def test_an_image_passes_before_it_is_complete_and_is_not_kept(form: str) -> None:
    event = {
        "candidates": [{"content": {"parts": [{"inlineData": {"data": "A" * 20_000_000}}]}, "finishReason": "STOP"}]
    }
    stream = sse(event | {"usageMetadata": USAGE}) if form == "sse" else array(event | {"usageMetadata": USAGE})
    reader, started = StreamReader(form), perf_counter()
    reader.feed(stream[:65536])
    assert reader.content_seen
    for place in range(65536, len(stream), 65536):
        reader.feed(stream[place : place + 65536])
        assert _held(reader) < 4096
    assert (reader.finished, reader.prompt_tokens) == (True, 4)
    assert perf_counter() - started < 10


def _held(reader: StreamReader) -> int:
    values = (getattr(reader, name) for name in StreamReader.__slots__)
    return sum(len(value) for value in values if isinstance(value, bytes))


@pytest.mark.parametrize("form", ["sse", "array", "openai-sse"])
def test_a_long_stream_takes_no_memory_and_little_time(form: str) -> None:
    event = chat(content="word " * 20) if form == "openai-sse" else native("word " * 60)
    chunk = b",\n" + json.dumps(event).encode() if form == "array" else sse(event)
    reader = StreamReader(form)
    reader.feed((b"[" + chunk[2:]) if form == "array" else chunk)

    def once() -> float:
        started = thread_time()
        for _ in range(2000):
            reader.feed(chunk)
        return (thread_time() - started) / 2000

    assert min(once() for _ in range(5)) < 30e-6  # of computing; 2 to 4 µs is usual
    assert _held(reader) < 1024


@pytest.mark.parametrize("before", [(), (native(),)])
@pytest.mark.parametrize("form", ["sse", "array"])
def test_a_long_error_byte_by_byte_takes_little_time(form: str, before: tuple[Any, ...]) -> None:
    error = {"error": {"code": 400, "message": "{x} " * 14_000, "status": "INVALID_ARGUMENT"}}
    stream = array(*before, error) if form == "array" else sse(*before) + json.dumps(error).encode()
    began = perf_counter()
    reader = read(form, stream, tuple(range(1, len(stream))))
    assert perf_counter() - began < 10  # parsed after each byte, it would be minutes
    assert reader.error is not None
    assert json.loads(reader.error) == error
