"""Takes keys, tokens and project numbers out of text that is about to leave or to be logged. No JSON is parsed here."""

import json
import re
from collections.abc import Sequence
from typing import AnyStr

MARK = "[redacted]"

# What may be a secret's value inside a JSON string: never a quote, a backslash or MARK, so that JSON stays valid and a
# second pass finds nothing new.
_VALUE = r"""[^\s"'\\<>&,;()\[\]{}]{4,}"""
_BORDER = r"(?:(?<![\w-])|(?<=u0026)|(?<=%26)|(?<=%3f))"

# (a lower-case word without which the pattern cannot match, the pattern, its replacement)
_RULES = tuple(
    (word, re.compile(pattern, re.ASCII), replacement)
    for word, pattern, replacement in (
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
        ("project", r"(?i)(projects?(?:[_ ]number)?[/=:# ]{1,3})\d{6,}", rf"\1{MARK}"),
    )
)


def redact(text: AnyStr, secrets: Sequence[str] = ()) -> AnyStr:
    """Replace key-shaped values, and the exact `secrets` (6 characters or more), by [redacted].

    Fast on large text that holds none: each pattern runs only if its word occurs.
    """
    if isinstance(text, bytes):  # Latin-1 keeps every byte as it is, so one set of patterns serves both
        exact = [secret.encode("utf-8", "replace").decode("latin-1") for secret in secrets]
        return _redact(text.decode("latin-1"), exact).encode("latin-1")
    return _redact(text, secrets)


def _redact(text: str, secrets: Sequence[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        for form in {secret, json.dumps(secret, ensure_ascii=False)[1:-1]}:
            if len(form) >= 6 and form not in MARK:
                text = text.replace(form, MARK)
    lower = text.lower()
    for word, pattern, replacement in _RULES:
        if word in lower:
            text = pattern.sub(replacement, text)
    return text
