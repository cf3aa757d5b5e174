"""Takes keys, tokens and project numbers out of text that is about to leave or to be logged. No JSON is parsed here."""

import html
import json
import re
from collections.abc import Sequence
from typing import AnyStr
from urllib.parse import quote

MARK = "[redacted]"
SHORTEST = 6
"""What is shorter is no secret: to replace it would tear words apart."""

# What may be a secret's value inside a JSON string: never a quote, a backslash or MARK, so that JSON stays valid and a
# second pass finds nothing new.
_VALUE = r"""[^\s"'\\<>&,;()\[\]{}]{4,}"""
_BORDER = r"(?:(?<![\w-])|(?<=u0026)|(?<=%26)|(?<=%3f))"

_ESCAPE = re.compile("%[0-9A-F]{2}")

# (a lower-case word without which the pattern cannot match, the pattern, its replacement)
_RULES = tuple(
    (word, re.compile(pattern, re.ASCII), replacement)
    for word, pattern, replacement in (
        # First: what it puts in the place of digits is a border for the rules below.
        ("project", r"(?i)(projects?(?:[_ ]number)?[/=:# ]{1,3})\d{6,}", rf"\1{MARK}"),
        ("aiza", r"AIza[0-9A-Za-z_-]{20,}", MARK),
        # A JSON escape (\n, \u0027) leaves a letter or digit in front: a long value needs no border.
        ("aq.", r"AQ\.[0-9A-Za-z_.-]{20,}|(?:(?<![0-9A-Za-z])|(?<=\\[nrt]))AQ\.[0-9A-Za-z_-]{4,}", MARK),
        ("ya29.", r"ya29\.[0-9A-Za-z_.-]{4,}", MARK),
        ("auth_tokens/", r"(auth_tokens/)[0-9A-Za-z_-]{8,}", rf"\1{MARK}"),
        ("pollux-", r"pollux-[0-9A-Za-z_-]{24,}", MARK),
        ("bearer", r"(?i)(\bbearer\s+)(?:(?=\S*[\d._-])[\w.~+/=-]{8,}|[\w.~+/=-]{20,})", rf"\1{MARK}"),
        ("api", rf"(?i)(api[_ -]?key\s*[:=]\s*){_VALUE}", rf"\1{MARK}"),
        ("api", rf"""(?i)(api[_-]?key\\?["']\s*[:,]\s*b?\\?["']){_VALUE}""", rf"\1{MARK}"),
        ("key=", rf"(?i)({_BORDER}key=){_VALUE}", rf"\1{MARK}"),
        ("key%3d", rf"(?i)({_BORDER}key%3d){_VALUE}", rf"\1{MARK}"),
        ("token=", rf"(?i)({_BORDER}(?:access_)?token=){_VALUE}", rf"\1{MARK}"),
        ("token%3d", rf"(?i)({_BORDER}(?:access_)?token%3d){_VALUE}", rf"\1{MARK}"),
        ("upload_id", rf"(?i)(upload_id(?:=|%3d)){_VALUE}", rf"\1{MARK}"),
    )
)


def redact(text: AnyStr, secrets: Sequence[str] = ()) -> AnyStr:
    """Replace key-shaped values, and the exact `secrets` (6 characters or more, however escaped), by [redacted].

    Fast on large text that holds none: each pattern runs only if its word occurs.
    """
    if isinstance(text, bytes):  # Latin-1 keeps every byte as it is, so one set of patterns serves both
        return _redact(without(text, secrets).decode("latin-1")).encode("latin-1")
    return _redact(without(text, secrets))


def without(text: AnyStr, secrets: Sequence[str]) -> AnyStr:
    """The text without the exact secrets, also as JSON, a URL or HTML writes them. Shapes are not looked for."""
    forms = {form for secret in secrets for form in _forms(secret)} if secrets else ()
    for form in sorted(forms, key=len, reverse=True):  # one secret may begin with another
        if isinstance(text, bytes):
            text = text.replace(form.encode("utf-8", "replace"), MARK.encode())
        else:
            text = text.replace(form, MARK)
    return text


class Forms(tuple[bytes, ...]):
    """How one exact secret may be written, the longest first. None if it is too short to be one."""

    __slots__ = ()

    def __new__(cls, secret: str) -> "Forms":
        forms = sorted(_forms(secret), key=len, reverse=True)
        return super().__new__(cls, (form.encode("utf-8", "replace") for form in forms))

    def __repr__(self) -> str:
        return "Forms(…)"

    def cover(self, data: bytes) -> bytes:
        for form in self:
            if form in data:
                data = data.replace(form, MARK.encode())
        return data


def _forms(secret: str) -> set[str]:
    """How a secret may be written. Google's JSON writes a few harmless characters as \\u003d and the like."""
    plain = json.dumps(secret, ensure_ascii=False)[1:-1]
    careful = "".join(f"\\u{ord(c):04x}" if c in "=<>&'" else c for c in plain)
    forms = {secret, plain, json.dumps(secret)[1:-1], careful, plain.replace("/", "\\/"), html.escape(secret)}
    for address in (quote(secret), quote(secret, safe="")):
        forms |= {address, _ESCAPE.sub(lambda found: found[0].lower(), address)}
    return {form for form in forms if len(form) >= SHORTEST and form not in MARK}


class Screen:
    """Removes one form of a secret from bytes that pass, wherever they are cut. The end of a piece is held back until
    the next piece comes if it may be the beginning of the secret.

    `same_length`: what is put in its place is as long as the secret, for an answer whose length was announced.
    """

    __slots__ = ("_held", "_mark", "_secret")

    def __init__(self, secret: bytes, *, same_length: bool = False) -> None:
        self._secret = secret
        self._mark = MARK.encode().ljust(len(secret), b".")[: len(secret)] if same_length else MARK.encode()
        self._held = b""

    def __repr__(self) -> str:
        return "Screen(…)"

    def through(self, data: bytes) -> bytes:
        secret = self._secret
        text = self._held + data if self._held else data
        if secret in text:
            text = text.replace(secret, self._mark)
        at = text.find(secret[:1], max(0, len(text) - len(secret) + 1))
        while at >= 0 and not secret.startswith(text[at:]):
            at = text.find(secret[:1], at + 1)
        self._held = b"" if at < 0 else text[at:]
        return text if at < 0 else text[:at]

    def rest(self) -> bytes:
        """At the end: what was held back and did not become the secret."""
        held, self._held = self._held, b""
        return held


def _redact(text: str) -> str:
    lower = text.lower()
    for word, pattern, replacement in _RULES:
        if word in lower:
            text = pattern.sub(replacement, text)
    return text
