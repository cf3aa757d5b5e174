"""What counts as a key, and how a source reports one that does not. No reason ever quotes the text it refuses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.gemini.catalog import tier_name

LIMITS = ("rpm", "tpm", "rpd", "tpd", "ipm")
SHORTEST = 4  # this only catches typing errors: Google decides what a key is
LONGEST = 1024
TOKEN_PREFIX = "pollux-"  # noqa: S105  of the client tokens that Pollux makes (tokens.py)

ID_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9 _-]{0,61}[A-Za-z0-9_-])?"
ID = re.compile(ID_PATTERN)
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_VALUE = re.compile(r"AIza.{10,}|AQ.{20,}|(?=[^ ]*[a-z])(?=[^ ]*[A-Z])(?=[^ ]*\d)[^ ]{30,}")
"""May be the value of a key, which must not become an id: ids are shown."""
_LOOKS = re.compile(r"AIza[\w-]{35}|AQ\.[\w.-]{16,}", re.ASCII)
_TRIMMED = " \t\r\n\f\v\ufeff\u200b\u00a0\"'`“”‘’"
PLACEHOLDER = re.compile(
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


class KeyFileError(KeySourceError):
    """A file that cannot be read as keys at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Entry:
    """A usable key as one source has it. None means that the source does not say."""

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
    positional: bool = False  # the id was made from the entry's position; another entry may claim it

    @property
    def where(self) -> str:
        if self.line:
            return f"{self.file}:{self.line}"
        return f"{self.file} ({self.variable})" if self.variable else self.file

    @property
    def details(self) -> dict[str, Any]:
        """What else the source says about the key, for writing it elsewhere."""
        named = {"project": self.project, "tier": self.tier, "limits": dict(self.limits)}
        return {name: value for name, value in named.items() if value} | ({} if self.enabled else {"enabled": False})

    def key(self, key_id: str, generation: int = 0) -> Key:
        return Key(key_id, self.project or key_id, self.tier, self.limits, self.enabled, generation)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a source holds. `notices` are worth knowing, but cost no key."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()


def decode(raw: bytes, file: str) -> str:
    """UTF-8, or UTF-16 with a byte order mark, which some Windows tools write."""
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    raise KeyFileError(Problem(file, 0, reason))  # outside of the handler: its exception holds the bytes


def text_of(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise KeyFileError(Problem(str(path), 0, f"cannot be read: {error.strerror}")) from None


def clean(text: str) -> str:
    """Without what is often copied along with a key: spaces, quotes, a byte order mark."""
    return text.strip(_TRIMMED)


def value_fault(value: str) -> str | None:
    """Why this (cleaned) text is not a key; None if it may be one."""
    if not value:
        return "the value is empty"
    if len(value) > LONGEST:
        return f"too long for a key (over {LONGEST} characters)"
    if value.startswith(TOKEN_PREFIX):
        return "this is a client token of Pollux, not a Gemini key"
    if PLACEHOLDER.fullmatch(value) or (len(value) > 1 and len(set(value.lower())) == 1):
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
    """Why this may not be a Gemini key. Only a warning: Google may change how keys look."""
    return None if _LOOKS.fullmatch(value) else "it does not look like a Gemini key, which begins with AIza or AQ."


def id_fault(value: Any) -> str | None:
    if isinstance(value, str) and ID.fullmatch(value) and not _VALUE.fullmatch(value):
        return None
    return "an id is 1 to 63 letters, digits, spaces, _ and -, begins with a letter or digit, and is not a key's value"


def project_fault(value: Any) -> str | None:
    if isinstance(value, str) and PROJECT.fullmatch(value) and not _LOOKS.fullmatch(value):
        return None
    return "a project is at most 63 letters, digits, . _ : and -, and is not a key's value"


def tier_fault(value: Any) -> str | None:
    return None if isinstance(value, str) and tier_name(value) else "a tier is free, tier1, tier2 or tier3"


def limits_fault(value: Any) -> str | None:
    models = value.items() if isinstance(value, dict) else [("", None)]
    for model, numbers in models:
        if not model.strip() or not isinstance(numbers, dict):
            return 'limits are {"MODEL" or "*": {"rpm": NUMBER, …}}'
        if not set(numbers) <= set(LIMITS):
            return f"the names of limits are {', '.join(LIMITS)}"
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                return f"the limit {name} is a whole number, 0 (not available) or more"
    return None
