"""Errors of our own: in the shapes that the official SDKs raise as theirs, and all of them in the docs."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from google import genai
from google.genai import errors, types

from pollux.gemini.errors import ERRORS, error_body, stream_error
from tools import tables

ROOT = Path(__file__).parents[2]
EVENT = {"candidates": [{"content": {"parts": [{"text": "Hello"}], "role": "model"}}]}
NATIVE_EVENT = b"data: " + json.dumps(EVENT).encode() + b"\r\n\r\n"
OPENAI_EVENT = (
    b'data: {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
)


def gemini(status: int, body: bytes | list[bytes], kind: str = "application/json") -> genai.Client:
    """The SDK, with an answer in place of a network."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(
            status, headers={"content-type": kind}, content=body if isinstance(body, bytes) else iter(body)
        )

    options = types.HttpOptions(httpx_client=httpx.Client(transport=httpx.MockTransport(answer)))
    return genai.Client(api_key="not-a-key", http_options=options)


def gpt(status: int, body: bytes, kind: str = "application/json") -> openai.OpenAI:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": kind}, content=body)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="not-a-key", base_url="http://gateway.test/v1", max_retries=0, http_client=client)


def made(api: str, reason: str = "QUOTA_BUSY", retry_after: float | None = 11.2) -> bytes:
    return error_body(api, reason, "no slot", retry_after=retry_after, request_id="r-1")


def test_the_native_shape() -> None:
    assert json.loads(made("native")) == {
        "error": {
            "code": 429,
            "message": "no slot",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "QUOTA_BUSY",
                    "domain": "pollux",
                    "metadata": {"request_id": "r-1"},
                },
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"},
            ],
        }
    }


def test_the_openai_shape_holds_googles_fields_too() -> None:
    error = json.loads(made("openai"))["error"]
    assert {name: error[name] for name in ("message", "type", "param", "code", "status")} == {
        "message": "no slot",
        "type": "rate_limit_error",
        "param": None,
        "code": "QUOTA_BUSY",
        "status": "RESOURCE_EXHAUSTED",
    }
    assert error["details"][1]["retryDelay"] == "12s"


@pytest.mark.parametrize(("after", "told"), [(0.0, "1s"), (0.2, "1s"), (60, "60s"), (None, None), (float("inf"), None)])
def test_the_delay_is_in_whole_seconds_and_never_too_short(after: float | None, told: str | None) -> None:
    details = json.loads(made("native", retry_after=after))["error"]["details"]
    assert [d.get("retryDelay") for d in details[1:]] == ([told] if told else [])


@pytest.mark.parametrize("reason", ERRORS)
def test_google_genai_raises_its_own_errors(reason: str) -> None:
    kind = ERRORS[reason]
    expected = errors.ClientError if kind.http < 500 else errors.ServerError
    client = gemini(kind.http, made("native", reason))
    with pytest.raises(expected) as raised:
        client.models.generate_content(model="m", contents="hi")
    assert (raised.value.code, raised.value.status, raised.value.message) == (kind.http, kind.status, "no slot")
    with pytest.raises(expected):
        list(client.models.generate_content_stream(model="m", contents="hi"))


OPENAI_ERRORS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    408: openai.APIStatusError,
    409: openai.ConflictError,
    413: openai.APIStatusError,
    415: openai.APIStatusError,
    429: openai.RateLimitError,
    431: openai.APIStatusError,
}


@pytest.mark.parametrize("reason", ERRORS)
def test_openai_raises_its_own_errors(reason: str) -> None:
    kind = ERRORS[reason]
    with pytest.raises(OPENAI_ERRORS.get(kind.http, openai.InternalServerError)) as raised:
        gpt(kind.http, made("openai", reason)).chat.completions.create(model="m", messages=[])
    assert (raised.value.status_code, raised.value.code) == (kind.http, reason)
    assert raised.value.type
    assert "no slot" in raised.value.message


CUT = [
    pytest.param(NATIVE_EVENT, 1, id="between two events"),
    pytest.param(NATIVE_EVENT[:-2], 1, id="before the blank line"),
    pytest.param(NATIVE_EVENT + NATIVE_EVENT[:30], 1, id="inside an event"),
    pytest.param(NATIVE_EVENT[:-3], 1, id="inside a line end"),
]


@pytest.mark.parametrize(("sent", "events"), CUT)
@pytest.mark.parametrize("in_one_chunk", [True, False])
def test_google_genai_sees_a_stream_break(sent: bytes, events: int, in_one_chunk: bool) -> None:
    end = stream_error("sse", 503, "UNAVAILABLE", "it broke")
    client = gemini(200, [sent + end] if in_one_chunk else [sent, end], "text/event-stream")
    seen = []
    with pytest.raises(errors.ServerError) as raised:  # noqa: PT012
        for event in client.models.generate_content_stream(model="m", contents="hi"):
            seen.append(event.text)
    assert (raised.value.code, raised.value.status, raised.value.message) == (503, "UNAVAILABLE", "it broke")
    assert seen in (["Hello"] * events, [])


def test_openai_sees_a_stream_break() -> None:
    body = OPENAI_EVENT + stream_error("openai-sse", 503, "UNAVAILABLE", "it broke")
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="it broke"):
        seen.extend(event.choices[0].delta.content for event in _stream(gpt(200, body, "text/event-stream")))
    events = _stream(gpt(200, body, "text/event-stream"))
    assert next(events).choices[0].delta.content == "Hi"


def _stream(client: openai.OpenAI) -> Iterator[Any]:
    yield from client.chat.completions.create(model="m", messages=[], stream=True)


def test_native_errors_are_one_line_without_a_prefix() -> None:
    text = stream_error("sse", 503, "UNAVAILABLE", "two\nlines")
    assert text.startswith(b'\n{"error": {')
    assert text.endswith(b"}\n")
    assert text.count(b"\n") == 2


@pytest.mark.parametrize("sent", [b'[{"a": 1}', b'[{"a": 1}\n', b'[{"a": 1}\n,\r\n{"a": 2}\n'])
def test_a_broken_array_stays_json(sent: bytes) -> None:
    *elements, last = json.loads(sent + stream_error("array", 503, "UNAVAILABLE", "it broke"))
    assert last["error"]["message"] == "it broke"
    assert elements[0] == {"a": 1}


@pytest.mark.parametrize("form", ["sse", "array", "openai-sse"])
def test_an_error_before_anything_was_sent(form: str) -> None:
    text = stream_error(form, 503, "UNAVAILABLE", "it broke", begun=False)
    found = json.loads(text.removeprefix(b"data: "))
    assert (found[0] if form == "array" else found)["error"]["status"] == "UNAVAILABLE"


def _reasons(pattern: str) -> set[str]:
    sources = [
        path.read_text()
        for path in (ROOT / "function/pollux").rglob("*.py")
        if path.parts[-2:] != ("gemini", "errors.py")
    ]
    return {reason for text in sources for reason in re.findall(pattern, text)}


def test_every_error_that_is_made_is_in_the_list() -> None:
    made_somewhere = _reasons(r'GatewayError\(\s*"([A-Z_]+)"')
    assert made_somewhere
    assert made_somewhere <= set(ERRORS)


def test_every_error_in_the_list_is_made() -> None:
    assert set(ERRORS) <= _reasons(r'"([A-Z_]{5,})"')


def test_every_error_in_the_list_is_in_the_docs() -> None:
    assert tables.errors() in (ROOT / "docs/errors.md").read_text(), "run python -m tools.tables"


@pytest.mark.parametrize("make", [made, lambda api: stream_error(api, 500, "INTERNAL", "é\udc80")])
def test_any_text_can_be_said(make: Callable[[str], bytes]) -> None:
    assert make("native").decode()
