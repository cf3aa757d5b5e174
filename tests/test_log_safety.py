"""No secret and nothing that breaks a line gets past here."""

import json
import pickle
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux import log_safety
from pollux.log_safety import LONGEST, clean, clean_lines, guard, redact
from pollux.redaction import MARK

KEY = "AIza" + "x" * 35
AUTH_KEY = "AQ.test-" + "y" * 30
TOKEN = "pollux-" + "t" * 32


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_safety, "_guarded", log_safety._Guarded())


@pytest.mark.parametrize("secret", [KEY, AUTH_KEY, TOKEN, "AQ.test-1", "ya29." + "z" * 20])
@pytest.mark.parametrize(
    "around",
    ["{}", "key {} was", "'{}'", "x={}&y", "\\n{}", "https://g.test/x?key={}", "consumer 'api_key:{}' has", "\t{},"],
)
def test_key_shaped_values_are_taken_out(secret: str, around: str) -> None:
    text = redact(around.format(secret))
    assert secret not in text
    assert secret[8:] not in text
    assert MARK in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
        ("authorization: bearer 'x' Bearer abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),
        ("x-goog-api-key: plainsecret", "plainsecret"),
        ("{'x-api-key': 'plainsecret'}", "plainsecret"),
        ("(b'x-goog-api-key', b'plainsecret')", "plainsecret"),
        ('{"api_key": "plainsecret"}', "plainsecret"),
        ('"{\\"apiKey\\": \\"plainsecret\\"}"', "plainsecret"),
        ("GET /v1beta/models?a=1&key=plainsecret HTTP/1.1", "plainsecret"),
        ("?access_token=plainsecret", "plainsecret"),
        ("url=https%3A%2F%2Fg%3Fkey%3Dplainsecret", "plainsecret"),
        ("auth_tokens/0123456789abcdef", "0123456789abcdef"),
    ],
)
def test_named_values_are_taken_out(text: str, left: str) -> None:
    assert left in text
    assert left not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "200 generateContent gemini-2.5-flash key-1 (team-a)",
        '{"key": "key-1", "tokens": 57, "tokens_estimated": 5}',
        "API key not valid. Please pass a valid API key.",
        "this gateway needs a client token, and none that it knows was sent",
        "monkey=business, no Bearer of news",
        '{"api_key": null, "other": 123456}',
        "see the FAQ. It helps",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text
    assert clean(text) == text


@pytest.mark.parametrize(
    "secret", ["plain-secret", 'quo"te\\d secret', "gehéim-wört", "with/slash+plus=", "secret" * 50]
)
def test_guarded_values_are_taken_out_in_every_form(secret: str) -> None:
    guard(secret)
    for text in (secret, f"x{secret}y", json.dumps({"a": secret}), json.dumps(secret, ensure_ascii=False)):
        assert MARK in redact(text)
        assert secret not in redact(text)
    assert "secret" not in redact(json.dumps({"a": secret})).replace("secret-", "")
    json.loads(redact(json.dumps({"a": secret})))


def test_a_secret_within_another_leaves_nothing_of_it() -> None:
    guard("secret")
    guard("secret-and-more")
    assert redact("secret-and-more secret") == f"{MARK} {MARK}"


def test_what_is_too_short_for_a_secret_is_a_word() -> None:
    guard("")
    guard("flash")
    assert redact("gemini-2.5-flash") == "gemini-2.5-flash"


def test_guarded_values_cannot_be_seen() -> None:
    guard("plain-secret")
    guarded = log_safety._guarded
    assert "plain-secret" not in f"{guarded!r} {guarded} {vars(log_safety)}"
    with pytest.raises(TypeError):
        pickle.dumps(guarded)


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_clean_text_is_one_printable_line(before: str, after: str) -> None:
    text = clean(before + KEY + after)
    assert text.isprintable()
    assert KEY not in text
    text.encode()


def test_a_long_text_is_cut_after_it_was_redacted() -> None:
    for size in (LONGEST - 10, LONGEST, 8 * LONGEST - 10):
        text = clean("x" * (size - 1) + " " + KEY + "x" * LONGEST)
        assert "AIza" not in text
        assert len(text) < LONGEST + 50


def test_of_a_long_traceback_the_end_is_kept() -> None:
    lines = clean_lines("\n".join(f"line {i} {KEY}\x1b" for i in range(10_000)))
    assert lines[0] == "…"
    assert lines[-1] == f"line 9999 {MARK}\\x1b"
    assert len(lines) < 1000


def test_redaction_is_linear() -> None:
    for text in (
        "key=" * 50_000,
        "Bearer " * 30_000,
        "AIza" * 50_000,
        "api_key" * 30_000,
        "AQ." * 70_000,
        "a" * 200_000,
    ):
        started = perf_counter()
        redact(text)
        assert perf_counter() - started < 10, text[:10]  # minutes, if any grew with the square
