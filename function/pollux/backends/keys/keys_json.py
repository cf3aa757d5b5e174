"""keys.json: reading it, with the line of everything wrong in it, and changing it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.backends.keys.entries import (
    Entry,
    KeyFileError,
    Parsed,
    Problem,
    clean,
    id_fault,
    limits_fault,
    project_fault,
    text_of,
    tier_fault,
    value_fault,
)
from pollux.backends.keys.private import locked, write
from pollux.gemini.catalog import tier_name

SHAPE = '{"providers": {"gemini": {"keys": [{"id": …, "api_key": …}]}}}'
FIELDS = ("id", "api_key", "project", "tier", "limits", "enabled")

_PATH = ("providers", "gemini", "keys")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_FAULTS: Mapping[str, Callable[[Any], str | None]] = {
    "project": project_fault,
    "tier": tier_fault,
    "limits": limits_fault,
    "enabled": lambda value: None if isinstance(value, bool) else "enabled is true or false",
}


# --- reading ----------------------------------------------------------------------------------------------------------


def load(text: str, file: str) -> dict[str, Any]:
    """The whole document. Raises KeyFileError with the line of the first error."""
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
    raise KeyFileError(Problem(file, line, reason))  # outside of the handlers: a JSONDecodeError holds the text


def parse_document(text: str, file: str, variables: Mapping[str, str]) -> Parsed:
    """The keys of the document. Keys of other providers are ignored; a document without Gemini keys is empty."""
    document: Any = load(text, file)
    position = _skip(text, 0)
    for name in _PATH:
        inside = _members(text, position)
        if name not in document:
            if name == _PATH[0]:
                raise KeyFileError(Problem(file, 1, f"expected {SHAPE}"))
            return Parsed()
        document, position = document[name], inside[name]
        if not isinstance(document, list if name == "keys" else dict):
            raise KeyFileError(Problem(file, _line(text, position), f"expected {SHAPE}"))
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    notices: list[Problem] = []
    for written, start in zip(document, _items(text, position), strict=True):
        positions = _members(text, start) if isinstance(written, dict) else {}
        if found := _fault(written, entries, variables):
            name, fault = found
            problems.append(Problem(file, _line(text, positions.get(name, start)), fault))
            continue
        notices += [
            Problem(file, _line(text, positions[name]), f"unknown field {name!r}; known are {', '.join(FIELDS)}")
            for name in written
            if name not in FIELDS and re.fullmatch(r"[a-z_]{1,20}", name)
        ]
        value, variable = _value(written["api_key"], variables)
        entries[written["id"]] = Entry(
            written["id"],
            Secret(value),
            file,
            _line(text, positions["id"]),
            project=written.get("project"),
            tier=tier_name(written["tier"]) if written.get("tier") else None,
            limits=written.get("limits") or {},
            enabled=written.get("enabled", True),
            variable=variable,
            reference=variable is not None,
        )
    return Parsed(tuple(entries.values()), tuple(problems), tuple(notices))


def _fault(written: Any, ids: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[str, str] | None:
    """The first field that makes this entry unusable, and why."""
    if not isinstance(written, dict):
        return "", 'a key is {"id": …, "api_key": …}'
    if fault := id_fault(written.get("id")):
        return "id", fault
    if written["id"] in ids:
        return "id", f"the id {written['id']!r} is taken in this file"
    if fault := _value_fault(written.get("api_key"), variables):
        return "api_key", fault
    for name, fault_of in _FAULTS.items():
        given = name in written if name == "enabled" else written.get(name) is not None
        if given and (fault := fault_of(written[name])):
            return name, fault
    return None


def _value_fault(api_key: Any, variables: Mapping[str, str]) -> str | None:
    if not isinstance(api_key, str):
        return 'api_key is a text: the value, or "env:NAME"'
    value, variable = _value(api_key, variables)
    if variable is None:
        return value_fault(value)
    # The name may be a value, written after env: by mistake. It is shown only if it looks like a variable.
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


# json.loads tells where a syntax error is, but not where a value begins. The functions below find that in valid JSON.


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _members(text: str, position: int) -> dict[str, int]:
    """Returns where each value of the object at this position begins. The last of a repeated name wins."""
    found: dict[str, int] = {}
    position = _skip(text, position + 1)
    while text[position] == '"':
        name, position = scanstring(text, position + 1)
        position = found[name] = _skip(text, _skip(text, position) + 1)
        position = _after(text, position)
    return found


def _items(text: str, position: int) -> Iterator[int]:
    """Yields where each element of the array at this position begins."""
    position = _skip(text, position + 1)
    while text[position] != "]":
        yield position
        position = _after(text, position)


def _after(text: str, position: int) -> int:
    """Returns the position after this value and after the comma that may follow it."""
    position = _skip(text, _DECODER.raw_decode(text, position)[1])
    return _skip(text, position + 1) if text[position] == "," else position


# --- changing ---------------------------------------------------------------------------------------------------------


class KeyFile:
    """One keys.json. Unknown fields and other providers stay as they are. A file that does not exist is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ids(self) -> tuple[str, ...]:
        """The ids in the file, also of entries that cannot be used as keys."""
        return tuple(str(key["id"]) for key in _keys(self._read(), str(self.path)) if "id" in key)

    def add(self, key_id: str, secret: Secret, **details: Any) -> None:
        """Add a key at the end. `details`: project, tier, limits, enabled."""
        if fault := id_fault(key_id) or value_fault(secret.reveal()):
            raise KeySourceError(fault)
        with self._change() as keys:
            _add(keys, key_id, secret.reveal(), details)

    def adopt(self, entries: Mapping[str, Entry]) -> None:
        """Add entries of other sources under these ids, all or none. An env:NAME is copied as such."""
        with self._change() as keys:
            for key_id, entry in entries.items():
                value = f"env:{entry.variable}" if entry.reference else entry.secret.reveal()
                _add(keys, key_id, value, entry.details)

    def edit(self, key_id: str, *, secret: Secret | None = None, **details: Any) -> None:
        """Change the given fields. None removes a field; None for one model's limits removes those."""
        with self._change() as keys:
            entry = _entry(keys, key_id)
            if secret is not None:
                if fault := value_fault(secret.reveal()):
                    raise KeySourceError(fault)
                _refuse_twin(keys, secret.reveal(), except_id=key_id)
                entry["api_key"] = secret.reveal()
            if limits := details.pop("limits", None):
                old = entry.get("limits")
                merged = (old if isinstance(old, dict) else {}) | limits
                details["limits"] = {model: numbers for model, numbers in merged.items() if numbers} or None
            _set(entry, details)

    def remove(self, key_id: str) -> None:
        with self._change() as keys:
            keys.remove(_entry(keys, key_id))

    def _read(self) -> dict[str, Any]:
        text = text_of(self.path) if self.path.exists() else ""
        return load(text, str(self.path)) if text.strip() else {}

    @contextmanager
    def _change(self) -> Iterator[list[dict[str, Any]]]:
        """The list of keys, to be changed in place. It is written when the block ends without an exception."""
        try:
            with locked(self.path):
                document = self._read()
                yield _keys(document, str(self.path))
                write(self.path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise KeyFileError(Problem(str(self.path), 0, f"cannot be written: {error.strerror}")) from None


def _keys(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list within the document, made if it is not there yet."""
    gemini = document.setdefault("providers", {})
    gemini = gemini.setdefault("gemini", {}) if isinstance(gemini, dict) else None
    keys = gemini.setdefault("keys", []) if isinstance(gemini, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeyFileError(Problem(name, 0, f"expected {SHAPE}; mend it by hand first"))
    return keys


def _entry(keys: list[dict[str, Any]], key_id: str) -> dict[str, Any]:
    for entry in keys:
        if entry.get("id") == key_id:
            return entry
    raise KeySourceError(f"there is no key {key_id!r} in this file")


def _add(keys: list[dict[str, Any]], key_id: str, value: str, details: Mapping[str, Any]) -> None:
    if any(entry.get("id") == key_id for entry in keys):
        raise KeySourceError(f"there is a key {key_id!r} already; change it with: pollux keys edit {key_id}")
    _refuse_twin(keys, value)
    entry: dict[str, Any] = {"id": key_id, "api_key": value}
    _set(entry, details)
    keys.append(entry)


def _set(entry: dict[str, Any], details: Mapping[str, Any]) -> None:
    for name, value in details.items():
        if value is None:
            entry.pop(name, None)
        elif fault := _FAULTS[name](value):
            raise KeySourceError(fault)
        else:
            entry[name] = tier_name(value) if name == "tier" else value


def _refuse_twin(keys: list[dict[str, Any]], value: str, *, except_id: str | None = None) -> None:
    for entry in keys:
        if entry.get("api_key") == value and entry.get("id") != except_id:
            raise KeySourceError(f"this key is there already, as {entry.get('id')!r}")
