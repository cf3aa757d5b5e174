"""What counts as a key, and how one that does not is reported. Pure; no reason ever quotes what it refuses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.gemini.catalog import tier_name

LIMITS = ("rpm", "tpm", "rpd", "tpd", "ipm")
SHORTEST = 4  # values are opaque, so this only catches slips of the hand; Google has the last word
LONGEST = 1024
TOKEN_PREFIX = "pollux-"  # noqa: S105  what client tokens that Pollux made start with (auth.py)

ID_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9 _-]{0,61}[A-Za-z0-9_-])?"
ID = re.compile(ID_PATTERN)
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_VALUE = re.compile(r"AIza.{10,}|AQ.{20,}|(?=[^ ]*[a-z])(?=[^ ]*[A-Z])(?=[^ ]*\d)[^ ]{30,}")
"""What may be the value of a key: as an id it would be shown."""
_LOOKS = re.compile(r"AIza[\w-]{35}|AQ\.[\w.-]{16,}", re.ASCII)
_TRIMMED = " \t\r\n\f\v\ufeff\u200b\u00a0\"'`“”‘’"
_PLACEHOLDER = re.compile(
    r"(your|insert|paste|replace|enter)[-_ a-z]*(key|token|here|me)[-_ a-z0-9]*"
    r"|change[-_]?me|placeholder|todo|none|null|undefined|secret"
    r"|((google|gemini)[-_])?(api[-_]?)?key(here)?"
    r"|<.*>|\[.*\]|\$?\{.*\}?|\$[a-z_]\w*|.*\.\.\.",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a key source that cannot be used. `line` 0: the source as a whole."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Notice(Problem):
    """Worth knowing, but nothing is lost by it."""


class KeyFileError(KeySourceError):
    """A file that cannot be read as keys at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Entry:
    """A usable key as one source has it; what is None was not written there."""

    id: str
    secret: Secret
    file: str
    line: int = 0
    project: str | None = None
    tier: str | None = None
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    enabled: bool = True
    variable: str | None = None  # the variable that holds the value
    reference: bool = False  # written as env:NAME
    positional: bool = False  # the id came from its place, and may give way

    @property
    def place(self) -> str:
        if self.line:
            return f"{self.file}:{self.line}"
        return f"{self.file} ({self.variable})" if self.variable else self.file

    def key(self, key_id: str, generation: int = 0) -> Key:
        return Key(key_id, self.project or key_id, self.tier, self.limits, self.enabled, generation)


def clean(text: str) -> str:
    """Without what comes along when a key is copied: spaces, quotes, a byte order mark."""
    return text.strip(_TRIMMED)


def value_fault(value: str) -> str | None:
    """Why this (cleaned) text is not a key; None if it may be one."""
    if not value:
        return "the value is empty"
    if len(value) > LONGEST:
        return f"too long for a key (over {LONGEST} characters)"
    if value.startswith(TOKEN_PREFIX):
        return "this is a client token of Pollux, not a Gemini key"
    if _PLACEHOLDER.fullmatch(value) or (len(value) > 1 and len(set(value.lower())) == 1):
        return "this is a placeholder, not a key"
    if any(character.isspace() for character in value):
        return "a key has no spaces"
    if "," in value or ";" in value:
        return "a key has no comma or semicolon"
    if not value.isascii() or not value.isprintable():
        return "a key has only printable ASCII characters"
    if len(value) < SHORTEST:
        return f"too short for a key (under {SHORTEST} characters)"
    return None


def value_doubt(value: str) -> str | None:
    """Why this may be no Gemini key. Google alone knows, so it is only said."""
    return None if _LOOKS.fullmatch(value) else "it does not look like a Gemini key, which begins with AIza or AQ."


def id_fault(value: Any) -> str | None:
    if isinstance(value, str) and ID.fullmatch(value) and not _VALUE.fullmatch(value):
        return None
    return "an id is 1 to 63 of letters, digits, spaces, _ and -, begins with a letter or digit, and is no key's value"


def project_fault(value: Any) -> str | None:
    if isinstance(value, str) and PROJECT.fullmatch(value) and not _LOOKS.fullmatch(value):
        return None
    return "a project is a name of letters, digits, . _ : and -, at most 63 of them, and is no key's value"


def tier_fault(value: Any) -> str | None:
    return None if isinstance(value, str) and tier_name(value) else "a tier is free, tier1, tier2 or tier3"


def limits_fault(value: Any) -> str | None:
    if not isinstance(value, dict):
        return 'limits are {"MODEL" or "*": {"rpm": NUMBER, …}}'
    for model, numbers in value.items():
        if not model.strip() or not isinstance(numbers, dict):
            return 'limits are {"MODEL" or "*": {"rpm": NUMBER, …}}'
        if not set(numbers) <= set(LIMITS):
            return f"the names of limits are {', '.join(LIMITS)}"
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                return f"the limit {name} is a whole number, 0 (not available) or more"
    return None
