"""What may stand in a log line: no secret, no control character, no end of line of its own, nothing endless."""

import json
from urllib.parse import quote

from pollux import redaction
from pollux.redaction import MARK

LONGEST = 4000
SHORTEST_SECRET = 6


class _Guarded:
    """The secrets that this process knows. There is no way to ask for them, and nothing to see in a dump of it."""

    __slots__ = ("__forms",)

    def __init__(self) -> None:
        self.__forms: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{len(self.__forms)} guarded>"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled")

    def add(self, secret: str) -> None:
        forms = {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}
        # The longest first: one secret may begin with another.
        self.__forms = tuple(sorted({*self.__forms, *forms}, key=len, reverse=True))

    def redact(self, text: str) -> str:
        for form in self.__forms:
            if form in text:
                text = text.replace(form, MARK)
        return text


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
