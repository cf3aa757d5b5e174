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
LONGEST_ESCAPE = 6
"""Bytes of one escaped character, but for those beyond 16 bits, which have two escapes."""
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


class Forms:
    """How one exact secret may be written: plainly, or with any of its characters escaped as JSON, URLs or HTML do."""

    __slots__ = ("_characters", "_escapes", "_longest", "_opening", "_pattern", "_plain", "_starts")

    def __init__(self, secret: str) -> None:
        """A secret that is too short is never found."""
        self._plain = secret.encode("utf-8", "replace") if len(secret) >= SHORTEST else b""
        self._characters = [_spellings(character) for character in secret] if self._plain else []
        self._escapes = {form[:2] if form[:1] == b"\\" else form[:1] for each in self._characters for form in each[1:]}
        patterns = [b"(?:%b)" % b"|".join(map(_any_case_of_hex, each)) for each in self._characters] or [b"(?!)"] * 2
        self._pattern = re.compile(b"".join(patterns))
        self._opening = re.compile(patterns[0] + patterns[1])
        self._starts = frozenset(form[0] for form in self._characters[0]) if self._characters else frozenset()
        self._longest = sum(max(map(len, each)) for each in self._characters)

    def __repr__(self) -> str:
        return "Forms(…)"

    def may_be_in(self, data: bytes) -> bool:
        """False if `data` surely has none of the forms."""
        return self._plain in data or any(escape in data for escape in self._escapes)

    def cover(self, data: bytes, *, escaped: bool = True, same_length: bool = False) -> bytes:
        """`escaped`: also its escaped forms. `same_length`: what replaces the secret is as long as it, for an answer
        whose length was announced.
        """
        if not self._plain:
            return data
        if not escaped:
            return data.replace(self._plain, _mark(len(self._plain) if same_length else None))
        if not self.may_be_in(data):
            return data
        return self._pattern.sub(lambda found: _mark(len(found[0]) if same_length else None), data)

    def begins(self, data: bytes) -> int:
        """Where the end of `data` may be the beginning of a form; else its length."""
        if not self._plain:
            return len(data)
        for found in self._opening.finditer(data, max(0, len(data) - self._longest + 1)):
            if self._reaches_end(data, found.start()):
                return found.start()
        for at in range(max(0, len(data) - LONGEST_ESCAPE * 2 + 1), len(data)):  # an opening that is not complete
            if data[at] in self._starts and self._reaches_end(data, at):
                return at
        return len(data)

    def _reaches_end(self, data: bytes, at: int) -> bool:
        for spellings in self._characters:
            rest = data[at : at + LONGEST_ESCAPE * 2].lower()
            spelling = next((form for form in spellings if rest.startswith(form.lower())), None)
            if spelling is None:
                return at + len(rest) == len(data) and any(form.lower().startswith(rest) for form in spellings)
            at += len(spelling)
            if at == len(data):
                return True
        return False


def _mark(size: int | None) -> bytes:
    mark = MARK.encode()
    return mark if size is None else mark.ljust(size, b".")[:size]


def _spellings(character: str) -> list[bytes]:
    """One character, plainly and then escaped."""
    plain = character.encode("utf-8", "replace")
    units = character.encode("utf-16-be", "surrogatepass")
    spellings = [
        b"".join(b"\\u%02x%02x" % (units[at], units[at + 1]) for at in range(0, len(units), 2)),
        b"".join(b"%%%02x" % byte for byte in plain),
    ]
    if (entity := html.escape(character)) != character:
        spellings.append(entity.encode())
    if character in '"\\/':
        spellings.append(b"\\" + plain)
    return [plain, *spellings]


def _any_case_of_hex(spelling: bytes) -> bytes:
    """A pattern for it. The digits of escapes may have either case. It begins with a literal, which is fast."""
    if len(spelling) < 3 or spelling[:1] not in b"\\%":
        return re.escape(spelling)
    return b"".join(
        b"[%c%c]" % (byte, byte - 32) if byte in b"abcdef" else re.escape(bytes((byte,))) for byte in spelling
    )


def _forms(secret: str) -> set[str]:
    """How a secret may be written. Google's JSON writes a few harmless characters as \\u003d and the like."""
    plain = json.dumps(secret, ensure_ascii=False)[1:-1]
    careful = "".join(f"\\u{ord(c):04x}" if c in "=<>&'" else c for c in plain)
    forms = {secret, plain, json.dumps(secret)[1:-1], careful, plain.replace("/", "\\/"), html.escape(secret)}
    for address in (quote(secret), quote(secret, safe="")):
        forms |= {address, _ESCAPE.sub(lambda found: found[0].lower(), address)}
    return {form for form in forms if len(form) >= SHORTEST and form not in MARK}


class Screen:
    """Removes a secret from bytes that pass, wherever they are cut. If the end of a piece may be the beginning of the
    secret, it is held back until the next piece comes.

    `escaped`: look for its escaped forms too. `same_length`: as in `Forms.cover`.
    """

    __slots__ = ("_escaped", "_forms", "_held", "_same_length")

    def __init__(self, forms: Forms, *, escaped: bool = True, same_length: bool = False) -> None:
        self._forms = forms
        self._escaped = escaped
        self._same_length = same_length
        self._held = b""

    def __repr__(self) -> str:
        return "Screen(…)"

    def through(self, data: bytes) -> bytes:
        text = self._held + data if self._held else data
        text = self._forms.cover(text, escaped=self._escaped, same_length=self._same_length)
        at = self._forms.begins(text)
        self._held = text[at:]
        return text[:at] if self._held else text

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
