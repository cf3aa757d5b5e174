"""What may stand in a log line: no secret, no control character, no end of line of its own, nothing endless."""

import json
from urllib.parse import quote

from pollux import redaction
from pollux.redaction import MARK

LONGEST = 4000
SHORTEST_SECRET = 6
BEGINNING = 4
SEARCHED_MOST = 64
"""So many beginnings are searched for one by one; that is faster than taking a line apart."""


class _Guarded:
    """The secrets that this process knows. There is no way to ask for them, and nothing to see in a dump of it.

    A line is not searched for each of a thousand keys, only for their beginnings, which are mostly the same (`AIza`).
    """

    __slots__ = ("__forms",)

    def __init__(self) -> None:
        self.__forms: dict[str, set[str]] = {}
        """Beginning -> what begins with it."""

    def __repr__(self) -> str:
        return f"<{sum(map(len, self.__forms.values()))} guarded>"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled")

    def add(self, secret: str) -> None:
        for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")):
            self.__forms.setdefault(form[:BEGINNING], set()).add(form)

    def redact(self, text: str) -> str:
        found = self.__beginnings(text)
        if not found:
            return text
        forms = set().union(*(self.__forms[beginning] for beginning in found))
        for form in sorted(forms, key=len, reverse=True):  # the longest first: one secret may begin with another
            text = text.replace(form, MARK)
        return text

    def __beginnings(self, text: str) -> "set[str] | list[str]":
        if len(self.__forms) > SEARCHED_MOST:
            return {text[at : at + BEGINNING] for at in range(len(text))} & self.__forms.keys()
        return [beginning for beginning in self.__forms if beginning in text]


_guarded = _Guarded()


def guard(secret: str) -> None:
    """From now on this value stands in no line, whatever its shape. What is too short to be a secret is not taken."""
    if len(secret) >= SHORTEST_SECRET:
        _guarded.add(secret)


def redact(text: str) -> str:
    """Without guarded values and without whatever has the shape of a key or token. JSON stays JSON."""
    return redaction.redact(_guarded.redact(text))


def clean(text: str, longest: int = LONGEST) -> str:
    """One line, redacted and cut. Cut only afterwards: half a key would not be known as one."""
    text = redact(text[: 8 * longest].strip())
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text)} characters)"
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def clean_lines(text: str, longest: int = 2 * LONGEST) -> list[str]:
    """The last lines of a traceback."""
    if len(text) > longest:
        text = "…\n" + text[-longest:].partition("\n")[2]
    return ["".join(map(_escaped, line)) for line in redact(text).splitlines()]
