"""Which headers travel and, above all, which do not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import TO_CLIENT, TO_UPSTREAM, client_deadline, client_headers, upstream_headers

NEVER_UP = (
    "authorization",
    "x-goog-api-key",
    "x-api-key",
    "cookie",
    "referer",
    "origin",
    "openai-organization",
    "openai-project",
    "openai-beta",
    "x-goog-user-project",
    "x-serverless-authorization",
    "x-stainless-lang",
    "x-stainless-retry-count",
    "x-forwarded-for",
    "x-forwarded-host",
    "forwarded",
    "via",
    "x-real-ip",
    "x-cloud-trace-context",
    "traceparent",
    "x-pollux-key",
    "x-pollux-max-wait",
    "x-pollux-fallback",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "proxy-authorization",
    "x-http-method-override",
    "accept-language",
    "if-none-match",
    "x-goog-request-params",
    "x-goog-iam-authorization-token",
    "x-goog-authenticated-user-email",
    "x-serverless-authorization",  # the caller's, to the platform
)
NEVER_DOWN = (
    "set-cookie",
    "alt-svc",
    "connection",
    "keep-alive",
    "transfer-encoding",
    "www-authenticate",
    "proxy-authenticate",
    "location",
    "server",
    "date",
    "vary",
    "x-pollux-request-id",
    "access-control-allow-origin",
    "strict-transport-security",
    "upgrade",
    "trailer",
)


@pytest.mark.parametrize("name", NEVER_UP)
def test_what_never_travels_up(name: str) -> None:
    assert upstream_headers([(name.encode(), b"v")], content=True) == [("accept-encoding", "identity")]


@pytest.mark.parametrize("name", NEVER_DOWN)
def test_what_never_comes_down(name: str) -> None:
    assert client_headers([(name.encode(), b"v"), (name.title().encode(), b"v")]) == []


def test_the_clients_headers_travel_as_they_are() -> None:
    sent = [
        (b"host", b"gateway"),
        (b"user-agent", b"google-genai-sdk/3"),
        (b"x-goog-api-client", b"gl-python/3"),
        (b"x-goog-api-key", b"not-a-key"),
        (b"accept-encoding", b"gzip, br"),
        (b"x-goog-upload-command", b"upload, finalize"),
        (b"content-type", b"application/json"),
        (b"content-encoding", b"gzip"),
        (b"x-server-timeout", b"60"),
    ]
    assert upstream_headers(sent, content=True) == [
        ("user-agent", "google-genai-sdk/3"),
        ("x-goog-api-client", "gl-python/3"),
        ("x-goog-upload-command", "upload, finalize"),
        ("x-server-timeout", "60"),
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("accept-encoding", "identity"),
    ]
    without = dict(upstream_headers(sent, content=False))
    assert "content-type" not in without
    assert "content-encoding" not in without


def test_answers_keep_what_clients_need() -> None:
    sent = [
        (b"Content-Type", b"application/json"),
        (b"X-Gemini-Service-Tier", b"standard"),
        (b"X-Goog-Upload-Status", b"active"),
        (b"Set-Cookie", b"NID=1"),
        (b"Retry-After", b"3"),
    ]
    assert client_headers(sent) == [
        (b"content-type", b"application/json"),
        (b"x-gemini-service-tier", b"standard"),
        (b"x-goog-upload-status", b"active"),
        (b"retry-after", b"3"),
    ]


def test_an_upload_address_carries_no_key_away() -> None:
    address = b"https://g.test/upload/v1beta/files?upload_id=a%2Fb&key=AIza" + b"x" * 35 + b"&upload_protocol=resumable"
    ((_, value),) = client_headers([(b"X-Goog-Upload-URL", address)])
    assert value == b"https://g.test/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable"


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))))
def test_nothing_but_the_lists_travels(raw: list[tuple[bytes, bytes]]) -> None:
    allowed = {name.decode() for name in TO_UPSTREAM} | {"content-type", "content-encoding", "accept-encoding"}
    assert {name for name, _ in upstream_headers(raw, content=True)} <= allowed
    assert {name for name, _ in client_headers(raw)} <= TO_CLIENT


def test_how_long_a_client_waits() -> None:
    assert client_deadline([]) == (None, None)
    assert client_deadline([(b"x-pollux-max-wait", b"2.5"), (b"x-server-timeout", b"60")]) == (2.5, 60.0)
    assert client_deadline([(b"x-pollux-max-wait", b"0")]) == (0.0, None)
    assert client_deadline([(b"x-server-timeout", b"soon")]) == (None, None)


@pytest.mark.parametrize("value", [b"", b"soon", b"-1", b"nan", b"inf", b"1e999", b"1s", b"\xff"])
def test_a_wait_that_makes_no_sense_is_refused(value: bytes) -> None:
    with pytest.raises(GatewayError, match="x-pollux-max-wait") as refused:
        client_deadline([(b"x-pollux-max-wait", value)])
    assert (refused.value.status, refused.value.code) == (400, "BAD_REQUEST")


def test_the_docs_name_every_header_that_travels() -> None:
    text = (Path(__file__).parents[2] / "docs/wire.md").read_text()
    missing = [name for name in (*TO_UPSTREAM, *TO_CLIENT) if f"`{name.decode()}`" not in text]
    assert not missing
