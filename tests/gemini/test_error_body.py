"""Errors in streams, delays in their spellings, and what is kept of an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.verdict.error_body import ErrorBody, error_in_stream, read, retry_delay

ERROR = {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}
COMPACT, PRETTY = json.dumps(ERROR).encode(), json.dumps(ERROR, indent=2).encode()


@pytest.mark.parametrize(
    "piece",
    [
        COMPACT,
        PRETTY,
        b"\n" + PRETTY + b"\r\n",
        b"[" + PRETTY + b"]",
        b"data: " + COMPACT,
        b"data:" + COMPACT + b"\n\n",
        b"data: [" + COMPACT + b"]\r\n\r\n",
        b"event: error\r\ndata: " + COMPACT + b"\r\n\r\n",
        b'data: {"candidates": []}\n\n' + PRETTY,
        b",\n" + PRETTY + b"\n]",  # an element of a streamed array
        b"[" + PRETTY,
        b'[{"candidates": []}\n,\n' + COMPACT + b"]",
        b"data: " + PRETTY.replace(b"\n", b"\ndata: ") + b"\n\n",  # one event over several lines
        b'data: {"event_type": "error", "error": {"code": "unavailable", "message": "busy"}}',
    ],
)
def test_an_error_in_a_stream_is_found_in_every_form(piece: bytes) -> None:
    found = error_in_stream(piece)
    assert found is not None
    error = read(200, found)
    assert (error.code, error.message) == (503, "busy")


def candidate(text: str) -> bytes:
    return json.dumps({"candidates": [{"content": {"parts": [{"text": text}]}}]}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"data: [DONE]\n\n",
        candidate('an "error" occurred'),
        b"data: " + candidate(COMPACT.decode()) + b"\n\n",
        b"data: " + candidate('line\u2028{"error": {"code": 503}}\u2028') + b"\n\n",
        candidate('\n\n{"error": {"code": 503}}\n\n'),
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"args": {"error": {"code": 500}}}}]}}]}',
        b'{"name": "operations/x", "done": true, "error": {"code": 13, "message": "failed"}}',
        b'{"choices": [], "error": null}',
        b'{"error": null}',
        b'{"error": {}}',
        b'{"error": 500}',
        b'"error"',
        b'{"error": {"code": 503, "message": "not yet whole',
        b'{"error": ' * 50_000,
        b'{"error": "' + b"x" * 2**20 + b'"}',
    ],
)
def test_an_answer_whose_text_mentions_errors_is_no_error(piece: bytes) -> None:
    assert error_in_stream(piece) is None


@given(st.binary(max_size=80).map(lambda raw: raw + b'"error"' + raw))
def test_any_piece_of_a_stream_is_borne(piece: bytes) -> None:
    found = error_in_stream(piece)
    assert found is None or read(200, found).code is not None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("42s", 42),
        ("1.713267022s", 1.713267022),
        ("0s", 0),
        ("8.386476ms", 0.008386476),
        ("7m55.9s", 475.9),
        ("1h52m56.4s", 6776.4),
        ("9h54m", 35640),
        ("22h18m29.29s", 80309.29),
        ("1d", 86400),
        ({"seconds": "42", "nanos": 500_000_000}, 42.5),
        ({"seconds": 3}, 3),
        (7, 7),
        ("12", 12),
        ("99999999999s", 7 * 86400),
        ("-5s", None),
        (-1, None),
        ("nan", None),
        (float("inf"), None),
        ({"seconds": "x"}, None),
        ("soon", None),
        ("", None),
        (None, None),
        (True, None),
        ([], None),
    ],
)
def test_durations(value: object, seconds: float | None) -> None:
    assert retry_delay(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please retry in 8.386476ms.", 0.008386476),
        ("model: x. Please retry in 1h52m56.4s.", 6776.4),
        ("Please retry in 9h54m", 35640),
        ("Your quota will reset after 10h26m5s.", 37565),
        ("Please try again in 30 seconds.", 30),
        ("Please try again later", None),
        ("retry in a minute", None),
    ],
)
def test_delays_in_messages(message: str, seconds: float | None) -> None:
    error = read(429, json.dumps({"error": {"code": 429, "message": message}}))
    assert error.delay == (None if seconds is None else pytest.approx(seconds))


def test_the_delay_of_the_details_wins_over_that_of_the_message() -> None:
    body = {"error": {"message": "retry in 900.2ms", "details": [{"retryDelay": "3s"}, {"retryDelay": "9s"}]}}
    assert read(429, json.dumps(body)).delay == 3


def test_spelling_of_keys_does_not_matter() -> None:
    violation = {"quota_id": "XPerDay", "quota_metric": "m", "quota_value": 7, "quota_dimensions": {"model": "x"}}
    body = {" error": {"Code": "429", "details": [{" @type": "?", "violations": [violation]}]}}
    error = read(400, json.dumps(body))
    assert error.code == 429
    assert [(v.name, v.value, v.model) for v in error.violations] == [("XPerDay m", 7, "x")]


@pytest.mark.parametrize("body", ["", b"", "\ufeff", b"\xff\xfe\x00", "null", "[]", "{}", "[[[", '"text"', "0"])
def test_a_body_that_says_nothing_leaves_the_status(body: str | bytes) -> None:
    error = read(418, body)
    assert error.code == 418
    assert (error.reasons, error.violations, error.delay) == ((), (), None)


def test_the_repr_of_python_is_read_too() -> None:
    body = {"error": {"code": 429, "message": "It's over", "details": [{"reason": "RATE_LIMIT_EXCEEDED"}]}}
    error = read(None, f"429 RESOURCE_EXHAUSTED. {body}")
    assert (error.code, error.message, error.reasons) == (429, "It's over", ("RATE_LIMIT_EXCEEDED",))


def test_a_page_becomes_its_text() -> None:
    page = "<!DOCTYPE html><html><style>p{color:red}</style><title>Error 403</title><p>That’s an <b>error</b>."
    assert read(403, page) == ErrorBody(403, "Error 403 That’s an error .", html=True)
