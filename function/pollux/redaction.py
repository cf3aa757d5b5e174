"""Takes keys, tokens and project numbers out of text before it leaves the process or is logged. It parses no JSON."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import AnyStr
from urllib.parse import quote

MARK = "[redacted]"
SHORTEST = 6
"""A shorter secret is not replaced: that would break up ordinary words."""
LONGEST = 4000
"""The longest text in a log line."""
BEGINNING = 4
SEARCHED_MOST = 64
"""Up to so many beginnings of known secrets, it is faster to search a line for each than to take the line apart."""

# What may be a secret's value inside a JSON string: never a quote, a backslash or MARK, so that JSON stays valid and a
# second pass finds nothing new.
_VALUE = r"""[^\s"'\\<>&,;()\[\]{}]{4,}"""
_BORDER = r"(?:(?<![\w-])|(?<=u0026)|(?<=%26)|(?<=%3f))"

_ESCAPE = re.compile("%[0-9A-F]{2}")

# (a lower-case word without which the pattern cannot match, the pattern, its replacement)
_RULES = tuple(
    (word, re.compile(pattern, re.ASCII), replacement)
    for word, pattern, replacement in (
        # Must be first: the mark that it puts in place of digits is a border for the rules below.
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

# Error lines of commands have to name projects, settings and secrets such as pollux-key-ID.
_VALUE_RULES = (
    *(rule for rule in _RULES if rule[0] not in ("project", "api", "pollux-")),
    ("pollux-", re.compile(r"pollux-(?!key-|token-|admin-token)[0-9A-Za-z_-]{32,}", re.ASCII), MARK),
)


def redact(text: AnyStr, secrets: Sequence[str] = ()) -> AnyStr:
    """Replace key-shaped values, and the exact `secrets` (6 characters or more, however escaped), by [redacted].

    Fast on large text that holds none: each pattern runs only if its word occurs.
    """
    if isinstance(text, bytes):  # Latin-1 keeps every byte as it is, so one set of patterns serves both
        return _redact(without(text, secrets).decode("latin-1")).encode("latin-1")
    return _redact(without(text, secrets))


def _redact(text: str, rules: Sequence[tuple[str, re.Pattern[str], str]] = _RULES) -> str:
    lower = text.lower()
    for word, pattern, replacement in rules:
        if word in lower:
            text = pattern.sub(replacement, text)
    return text


def without(text: AnyStr, secrets: Sequence[str]) -> AnyStr:
    """The text without the exact secrets, also as JSON, a URL or HTML writes them. Does not look for shapes."""
    return _replaced(text, {form for secret in secrets for form in _forms(secret)}) if secrets else text


def _replaced(text: AnyStr, forms: Iterable[str]) -> AnyStr:
    for form in sorted(forms, key=len, reverse=True):  # the longest first: one secret may begin with another
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
    """Removes one form of a secret from bytes that pass, wherever they are cut. If the end of a piece may be the
    beginning of the secret, it is held back until the next piece comes.

    `same_length`: what replaces the secret is as long as it, for an answer whose length was announced.
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
        """Call it at the end: returns what was held back and did not become the secret."""
        held, self._held = self._held, b""
        return held


# --- log lines -------------------------------------------------------------------------------------------------------


class _KnownSecrets:
    """The secrets that this process uses. They cannot be asked for, printed or pickled.

    A line is not searched for each of a thousand keys, only for their beginnings, which are mostly the same (`AIza`).
    """

    __slots__ = ("__forms",)

    def __init__(self) -> None:
        self.__forms: dict[str, set[str]] = {}
        """Beginning -> the forms of secrets that begin with it."""

    def __repr__(self) -> str:
        return f"<{sum(map(len, self.__forms.values()))} secrets>"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled")

    def add(self, secret: str) -> None:
        for form in _forms(secret):
            self.__forms.setdefault(form[:BEGINNING], set()).add(form)

    def redact(self, text: str) -> str:
        if len(self.__forms) > SEARCHED_MOST:
            found = {text[at : at + BEGINNING] for at in range(len(text))} & self.__forms.keys()
        else:
            found = {beginning for beginning in self.__forms if beginning in text}
        return _replaced(text, set().union(*(self.__forms[beginning] for beginning in found))) if found else text


_known = _KnownSecrets()


def never_log(secret: str) -> None:
    """From now on no log line has this value, whatever its shape."""
    _known.add(secret)


def redact_known(text: str) -> str:
    """Without the values given to `never_log` and without key-shaped values. JSON stays JSON."""
    return _redact(_known.redact(text))


def redact_values(text: str) -> str:
    """Without the values of keys and tokens. Project numbers and names of settings and secrets stay."""
    return _redact(_known.redact(text), _VALUE_RULES)


def clean(text: str, longest: int = LONGEST) -> str:
    """One line, redacted, then cut: half a key would not be recognized as one."""
    text = redact_known(text[: 8 * longest].strip())
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text)} characters)"
    return text if text.isprintable() else "".join(map(_escaped, text))


def clean_lines(text: str, longest: int = 2 * LONGEST) -> list[str]:
    """The last lines of a traceback, redacted."""
    if len(text) > longest:
        text = "…\n" + text[-longest:].partition("\n")[2]
    return ["".join(map(_escaped, line)) for line in redact_known(text).splitlines()]


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
