"""What is taken out, what stays, and that JSON stays JSON."""

import html
import itertools
import json
import pickle
import re
from time import perf_counter
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pollux import redaction
from pollux.redaction import (
    LONGEST,
    MARK,
    Forms,
    Screen,
    clean,
    clean_lines,
    never_log,
    redact,
    redact_known,
    redact_values,
)

KEY = "AIza" + "x" * 35
AUTH_KEY = "AQ.test-" + "x" * 40

OPAQUE = "Zx9Quartz-Opaque_Value-77881"  # nothing but its value tells that it is a key

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


@example("project 1234567key=api_key:", [])
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


@pytest.mark.parametrize("secret", [OPAQUE, "Zx9/Quartz+Opaque==", "a&b<c>d'e", 'with "quotes" \\ and é'])
def test_exact_secrets_are_found_however_they_are_escaped(secret: str) -> None:
    forms = (
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret),
        quote(secret, safe=""),
        re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
        html.escape(secret),
        secret.replace("=", "\\u003d"),
    )
    for form in forms:
        assert redact(form, [secret]).strip('"') == MARK
        assert redact(form.encode(), [secret]).strip(b'"') == MARK.encode()


# --- what passes in pieces -------------------------------------------------------------------------------------------


def screened(*pieces: bytes, same_length: bool = False) -> list[bytes]:
    screen = Screen(Forms(OPAQUE), same_length=same_length)
    return [*(screen.through(piece) for piece in pieces), screen.rest()]


def test_pieces_without_the_secret_pass_at_once_and_whole() -> None:
    pieces = [b"One", b" Zx9", b"Zx9", b"Quart", b"z", b"", b"Zx"]
    assert b"".join(screened(*pieces)) == b"".join(pieces)
    assert screened(b"One", b"Two x9", b"Three") == [b"One", b"Two x9", b"Three", b""]


def test_a_beginning_is_held_back_until_it_is_known_what_it_is() -> None:
    assert screened(b"a Zx9Q", b"uack") == [b"a ", b"Zx9Quack", b""]
    assert screened(b"a Zx9Q") == [b"a ", b"Zx9Q"]
    assert screened(b"a Z", b" b") == [b"a ", b"Z b", b""]


ESCAPED = {"json": "\\u{:04x}", "JSON": "\\u{:04X}", "url": "%{:02x}", "URL": "%{:02X}", "plain": "{:c}"}


@given(st.lists(st.sampled_from(sorted(ESCAPED)), min_size=len(OPAQUE), max_size=len(OPAQUE)), st.data())
def test_a_secret_is_covered_whichever_of_its_characters_are_escaped(how: list[str], data: st.DataObject) -> None:
    written = "".join(
        ESCAPED[each].format(ord(character)) for each, character in zip(how, OPAQUE, strict=True)
    ).encode()
    text = b'{"a": "' + written + b'\\n", "b": "' + written + b'"}'
    assert Forms(OPAQUE).cover(text) == b'{"a": "[redacted]\\n", "b": "[redacted]"}'
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)) | {0, len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    assert b"".join(screened(*pieces)) == b'{"a": "[redacted]\\n", "b": "[redacted]"}'
    assert len(b"".join(screened(*pieces, same_length=True))) == len(text)


def test_what_only_resembles_a_secret_passes() -> None:
    for text in (OPAQUE.lower(), OPAQUE[:-1], "100% &amp; \\u005a\\u0078 %5a"):
        assert Forms(OPAQUE).cover(text.encode()) == text.encode()
        assert b"".join(screened(text.encode())) == text.encode()
    assert Forms("abc").cover(b"abc \\u0061bc") == b"abc \\u0061bc"


@given(data=st.data(), at=st.integers(0, 400), size=st.integers(40, 200))
def test_a_secret_does_not_pass_in_long_pieces(data: st.DataObject, at: int, size: int) -> None:
    filling = data.draw(st.lists(st.sampled_from([b"Zx9Q", b"Zx9Quartz-", b"Z", b"other"]), min_size=100, max_size=100))
    clean = b"".join(filling)
    text = clean[:at] + OPAQUE.encode() + clean[at:]
    for whole in (text, clean):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        passed = b"".join(screened(*pieces, same_length=True))
        assert len(passed) == len(whole)
        assert OPAQUE.encode()[3:] not in passed
        assert (passed == whole) is (whole is clean)


@given(cuts=st.lists(st.integers(0, 120), max_size=8), same_length=st.booleans())
def test_a_secret_does_not_pass_wherever_it_is_cut(cuts: list[int], same_length: bool) -> None:
    text = f"first {OPAQUE} then Zx9Quartz-Opaque_{OPAQUE}{OPAQUE} end".encode()
    places = [0, *sorted(cuts), len(text)]
    passed = b"".join(screened(*(text[a:b] for a, b in itertools.pairwise(places)), same_length=same_length))
    assert OPAQUE.encode()[1:] not in passed
    assert passed.startswith(b"first ")
    assert passed.endswith(b" end")
    if same_length:
        assert len(passed) == len(text)


def test_cut_into_single_bytes_the_result_is_the_same() -> None:
    passed = b"".join(screened(*(bytes([byte]) for byte in f"first {OPAQUE} end".encode())))
    assert passed == f"first {MARK} end".encode()


# --- log lines -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._KnownSecrets())


@pytest.mark.parametrize(
    "text",
    [
        "there is no key 'x' in project 123456789012",
        "POLLUX_API_KEY: cannot be read",
        "secret pollux-key-a-very-long-id-of-a-team-in-berlin of p",
        "secret pollux-token-a-very-long-name-of-a-client of p",
        "no gateway answers at https://pollux-gateway-abcdefghij-uc.a.run.app",
    ],
)
def test_errors_of_commands_keep_names(text: str) -> None:
    assert redact_values(text) == text


@pytest.mark.parametrize("secret", [KEY, AUTH_KEY, "pollux-" + "t" * 32])
def test_errors_of_commands_show_no_values(secret: str) -> None:
    assert redact_values(f"pollux judge: {secret}: No such file") == "pollux judge: [redacted]: No such file"


@pytest.mark.parametrize("secret", [KEY, AUTH_KEY, "pollux-" + "t" * 32, "AQ.test-1", "ya29." + "z" * 20])
@pytest.mark.parametrize(
    "around",
    ["{}", "key {} was", "'{}'", "x={}&y", "\\n{}", "https://g.test/x?key={}", "consumer 'api_key:{}' has", "\t{},"],
)
def test_key_shaped_values_are_taken_out(secret: str, around: str) -> None:
    text = redact_known(around.format(secret))
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
    assert left not in redact_known(text)


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
    assert redact_known(text) == text
    assert clean(text) == text


@pytest.mark.parametrize(
    "secret", ["plain-secret", 'quo"te\\d secret', "gehéim-wört", "with/slash+plus=", "secret" * 50]
)
def test_known_values_are_taken_out_in_every_form(secret: str) -> None:
    never_log(secret)
    for text in (secret, f"x{secret}y", json.dumps({"a": secret}), json.dumps(secret, ensure_ascii=False)):
        assert MARK in redact_known(text)
        assert secret not in redact_known(text)
    assert "secret" not in redact_known(json.dumps({"a": secret})).replace("secret-", "")
    json.loads(redact_known(json.dumps({"a": secret})))


def test_a_secret_within_another_leaves_nothing_of_it() -> None:
    never_log("secret")
    never_log("secret-and-more")
    assert redact_known("secret-and-more secret") == f"{MARK} {MARK}"


def test_what_is_too_short_for_a_secret_is_a_word() -> None:
    never_log("")
    never_log("flash")
    assert redact_known("gemini-2.5-flash") == "gemini-2.5-flash"


def test_known_values_cannot_be_seen() -> None:
    never_log("plain-secret")
    known = redaction._known
    assert "plain-secret" not in f"{known!r} {known} {vars(redaction)}"
    with pytest.raises(TypeError):
        pickle.dumps(known)


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


def test_redacting_takes_linear_time() -> None:
    for text in (
        "key=" * 50_000,
        "Bearer " * 30_000,
        "AIza" * 50_000,
        "api_key" * 30_000,
        "AQ." * 70_000,
        "a" * 200_000,
    ):
        started = perf_counter()
        redact_known(text)
        assert perf_counter() - started < 10, text[:10]  # minutes, if any grew with the square
