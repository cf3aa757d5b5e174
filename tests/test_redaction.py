"""What is taken out, what stays, and that JSON stays JSON."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.redaction import MARK, redact

KEY = "AIza" + "x" * 35
AUTH_KEY = "AQ.test-" + "x" * 40

SHAPED = re.compile(r"AIza[0-9A-Za-z_-]{20,}|AQ\.[0-9A-Za-z_-]{20,}|ya29\.[0-9A-Za-z_-]{4,}|api_key:\w{4,}", re.ASCII)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (KEY, MARK),
        (AUTH_KEY, MARK),
        ("AQ.test-key", MARK),
        (f"\\n{AUTH_KEY}", f"\\n{MARK}"),  # a JSON escape in front
        (f"api_key:{KEY}", f"api_key:{MARK}"),
        ("Consumer 'api_key:anything' has", f"Consumer 'api_key:{MARK}' has"),
        ("Consumer \\u0027api_key:anything\\u0027 has", f"Consumer \\u0027api_key:{MARK}\\u0027 has"),
        ("Invalid API key: something", f"Invalid API key: {MARK}"),
        ("https://x/v1?a=b&key=something&c=d", f"https://x/v1?a=b&key={MARK}&c=d"),
        ("v1?a=b\\u0026key=something\\u0026c=d", f"v1?a=b\\u0026key={MARK}\\u0026c=d"),
        ("?access_token=ya29.something", f"?access_token={MARK}"),
        ("Authorization: Bearer abc123.def", f"Authorization: Bearer {MARK}"),
        ("x-goog-api-key: something", f"x-goog-api-key: {MARK}"),
        ('{"api_key": "something"}', f'{{"api_key": "{MARK}"}}'),
        ("auth_tokens/0123456789abcdef", f"auth_tokens/{MARK}"),
        ("ya29.a0AfB_something", MARK),
        ('"consumer": "projects/123456789012"', f'"consumer": "projects/{MARK}"'),
        ("in project 123456789012 before", f"in project {MARK} before"),
        ("project_number:123456789012", f"project_number:{MARK}"),
        # what is none of these stays
        ("reason API_KEY_INVALID, monkey=banana, sort_key=name", None),
        ("Expected OAuth 2 access token, bearer token or cookie", None),
        ("FAQ.md, AIza, AQ, key=, api_key:", None),
        ('{"key": "a value", "token": 12345678}', None),
        ("models/gemini-2.5-pro, limit: 250000", None),
    ],
)
def test_what_is_taken_out_and_what_stays(text: str, redacted: str | None) -> None:
    assert redact(text) == (text if redacted is None else redacted)
    assert redact(text.encode()) == (text if redacted is None else redacted).encode()


def test_exact_secrets_go_too() -> None:
    assert redact("my-own-token is my-own-token", ["my-own-token"]) == f"{MARK} is {MARK}"
    assert redact("é my-tökén".encode(), ["my-tökén"]) == f"é {MARK}".encode()
    assert redact(json.dumps('a"quoted"b'), ['a"quoted"b']) == f'"{MARK}"'
    assert redact("longer-token", ["longer", "longer-token"]) == MARK
    assert redact("short redacted", ["short", "redacted", ""]) == "short redacted"  # too short; part of the mark


PIECES = st.sampled_from([KEY, AUTH_KEY, "api_key:", "key=", "Bearer ", "&", "ya29.", "project ", "1234567", "\\", '"'])


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=10).map("".join), st.lists(st.text(max_size=12), max_size=2))
def test_redacting_twice_changes_nothing_and_json_stays_json(text: str, secrets: list[str]) -> None:
    once = redact(text, secrets)
    assert not SHAPED.search(once)
    assert redact(once, secrets) == once
    for document in (json.dumps({"message": text, text: [1, text]}), json.dumps(text, ensure_ascii=False)):
        assert json.loads(redact(document)) is not None


@given(st.binary(max_size=200))
def test_bytes_without_secrets_pass_as_they_are(raw: bytes) -> None:
    if not re.search(rb"(?i)key|bearer|project|token|aiza|aq\.|ya29", raw):
        assert redact(raw) == raw
