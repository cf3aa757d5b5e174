"""keys.json: its shape, and the line of everything wrong in it. Pure. Writing it is `keyfile`'s."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from pollux.backends.keys.contract import Secret
from pollux.backends.keys.entries import (
    Entry,
    KeyFileError,
    Notice,
    Problem,
    clean,
    id_fault,
    limits_fault,
    project_fault,
    tier_fault,
    value_fault,
)
from pollux.gemini.catalog import tier_name

SHAPE = '{"providers": {"gemini": {"keys": [{"id": …, "api_key": …}]}}}'
FIELDS = ("id", "api_key", "project", "tier", "limits", "enabled")

_PATH = ("providers", "gemini", "keys")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass
class _Found:
    """What one document gives, gathered entry by entry."""

    file: str
    variables: Mapping[str, str] = field(repr=False)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)


def load(text: str, file: str) -> dict[str, Any]:
    """The whole document as it stands. Raises KeyFileError with the line where it stops making sense."""
    line, reason = 0, "nested too deep, or a number too long, to be a key file"
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            return document
        line, reason = 1, f"expected {SHAPE}"
    except json.JSONDecodeError as error:
        line, reason = error.lineno, f"not valid JSON: {error.msg} (column {error.colno})"
    except (ValueError, RecursionError):
        pass
    raise KeyFileError(Problem(file, line, reason))  # outside of the handlers: a JSONDecodeError carries the text


def parse_document(
    text: str, file: str, variables: Mapping[str, str]
) -> tuple[tuple[Entry, ...], tuple[Problem, ...], tuple[Notice, ...]]:
    """Entries, problems and notices. Another provider's keys are left alone; none of ours is an empty answer."""
    document: Any = load(text, file)
    position = _SPACE.match(text).end()  # type: ignore[union-attr]
    for place, name in enumerate(_PATH):
        expected = list if name == "keys" else dict
        inside = _members(text, position)
        if name not in document:
            if place == 0:
                raise KeyFileError(Problem(file, 1, f"expected {SHAPE}"))
            return (), (), ()
        document, position = document[name], inside[name]
        if not isinstance(document, expected):
            raise KeyFileError(Problem(file, _line(text, position), f"expected {SHAPE}"))
    found = _Found(file, variables)
    for written, start in zip(document, _items(text, position), strict=True):
        _entry(written, text, start, found)
    return tuple(found.entries), tuple(found.problems), tuple(found.notices)


def _entry(written: Any, text: str, start: int, found: _Found) -> None:
    if not isinstance(written, dict):
        found.problems.append(Problem(found.file, _line(text, start), 'a key is {"id": …, "api_key": …}'))
        return
    places = _members(text, start)

    def line(name: str) -> int:
        return _line(text, places.get(name, start))

    fault = _first_fault(written, found)
    if fault is not None:
        found.problems.append(Problem(found.file, line(fault[0]), fault[1]))
        return
    for name in written:
        if name not in FIELDS and re.fullmatch(r"[a-z_]{1,20}", name):
            found.notices.append(
                Notice(found.file, line(name), f"unknown field {name!r}; known are {', '.join(FIELDS)}")
            )
    value, variable = _value(written["api_key"], found.variables)
    found.ids.add(written["id"])
    found.entries.append(
        Entry(
            written["id"],
            Secret(value),
            found.file,
            line("id"),
            project=written.get("project"),
            tier=tier_name(written["tier"]) if written.get("tier") else None,
            limits=written.get("limits") or {},
            enabled=written.get("enabled", True),
            variable=variable,
            reference=variable is not None,
        )
    )


def _first_fault(written: dict[str, Any], found: _Found) -> tuple[str, str] | None:
    if fault := id_fault(written.get("id")):
        return "id", fault
    if written["id"] in found.ids:
        return "id", f"the id {written['id']!r} is taken in this file"
    if fault := _value_fault(written.get("api_key"), found.variables):
        return "api_key", fault
    optional: tuple[tuple[str, Callable[[Any], str | None]], ...] = (
        ("project", project_fault),
        ("tier", tier_fault),
        ("limits", limits_fault),
        ("enabled", lambda value: None if isinstance(value, bool) else "enabled is true or false"),
    )
    for name, check in optional:
        if written.get(name) is not None and (fault := check(written[name])):
            return name, fault
    if "enabled" in written and written["enabled"] is None:
        return "enabled", "enabled is true or false"
    return None


def _value_fault(api_key: Any, variables: Mapping[str, str]) -> str | None:
    if not isinstance(api_key, str):
        return 'api_key is a text: the value, or "env:NAME"'
    value, variable = _value(api_key, variables)
    if variable is None:
        return value_fault(value)
    # A value written behind env: by mistake may pass for a name, so only what can hardly be one is shown.
    shown = variable if re.fullmatch(r"[A-Z][A-Z0-9_]{0,40}", variable) else "that api_key names"
    if not value:
        return f"the variable {shown} is not set"
    fault = value_fault(value)
    return f"the variable {shown}: {fault}" if fault else None


def _value(api_key: str, variables: Mapping[str, str]) -> tuple[str, str | None]:
    """The value, and the variable it came from."""
    text = clean(api_key)
    if not text.startswith("env:"):
        return text, None
    name = text.removeprefix("env:").strip()
    return clean(variables.get(name, "")), name


# json.loads says where a syntax error is, but not where a value stood. The text is valid by now, so walking is simple.


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _members(text: str, position: int) -> dict[str, int]:
    """Where the values of the object at this position begin; of a name that comes twice the last, as in json.loads."""
    found: dict[str, int] = {}
    position = _skip(text, position + 1)
    while text[position] == '"':
        name, position = scanstring(text, position + 1)
        position = found[name] = _skip(text, _skip(text, position) + 1)
        position = _skip(text, _DECODER.raw_decode(text, position)[1])
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found


def _items(text: str, position: int) -> Iterator[int]:
    """Where the elements of the array at this position begin."""
    position = _skip(text, position + 1)
    while text[position] != "]":
        yield position
        position = _skip(text, _DECODER.raw_decode(text, position)[1])
        if text[position] == ",":
            position = _skip(text, position + 1)
