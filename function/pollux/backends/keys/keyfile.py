"""The keys.json that Pollux writes: add, edit, remove. Reading keys for use is `local`'s."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.backends.keys.document import SHAPE, load
from pollux.backends.keys.entries import (
    Entry,
    KeyFileError,
    Problem,
    id_fault,
    limits_fault,
    project_fault,
    tier_fault,
    value_fault,
)
from pollux.backends.keys.files import decode
from pollux.backends.keys.private import locked, write
from pollux.gemini.catalog import tier_name

_FAULTS = {"project": project_fault, "tier": tier_fault, "limits": limits_fault}


class KeyFile:
    """One keys.json. Fields and providers that it does not know stay as they are. One that does not exist is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ids(self) -> tuple[str, ...]:
        """The ids in the file, also of entries that cannot be used as keys."""
        return tuple(str(key["id"]) for key in _keys(self._read(), self._name) if "id" in key)

    def add(self, key_id: str, secret: Secret, **details: Any) -> None:
        """Add a key at the end. `details`: project, tier, limits, enabled."""
        if fault := id_fault(key_id) or value_fault(secret.reveal()):
            raise KeySourceError(fault)
        with self._change() as keys:
            _add(keys, key_id, secret.reveal(), details)

    def adopt(self, entries: Mapping[str, Entry]) -> None:
        """Add entries of other sources under these ids, all or none. What was written as env:NAME stays so."""
        with self._change() as keys:
            for key_id, entry in entries.items():
                details: dict[str, Any] = {
                    "project": entry.project,
                    "tier": entry.tier,
                    "limits": dict(entry.limits) or None,
                    "enabled": None if entry.enabled else False,
                }
                value = f"env:{entry.variable}" if entry.reference else entry.secret.reveal()
                _add(keys, key_id, value, details)

    def edit(self, key_id: str, *, secret: Secret | None = None, **details: Any) -> None:
        """Change what is named; None removes a field, and so does None for one model's limits."""
        with self._change() as keys:
            entry = _entry(keys, key_id)
            if secret is not None:
                if fault := value_fault(secret.reveal()):
                    raise KeySourceError(fault)
                _refuse_twin(keys, secret.reveal(), except_id=key_id)
                entry["api_key"] = secret.reveal()
            limits = details.pop("limits", None)
            if limits:
                old = entry.get("limits")
                merged = (old if isinstance(old, dict) else {}) | limits
                details["limits"] = {model: numbers for model, numbers in merged.items() if numbers} or None
            _set(entry, details)

    def remove(self, key_id: str) -> None:
        with self._change() as keys:
            keys.remove(_entry(keys, key_id))

    @property
    def _name(self) -> str:
        return str(self.path)

    def _read(self) -> dict[str, Any]:
        try:
            text = decode(self.path.read_bytes(), self._name)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise KeyFileError(Problem(self._name, 0, error.strerror or "cannot be read")) from None
        return load(text, self._name) if text.strip() else {}

    @contextmanager
    def _change(self) -> Iterator[list[dict[str, Any]]]:
        """The list of keys, to be changed in place; written when the block ends without an exception."""
        try:
            with locked(self.path):
                document = self._read()
                keys = _keys(document, self._name)
                yield keys
                write(self.path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise KeyFileError(Problem(self._name, 0, f"cannot be written: {error.strerror}")) from None


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
        elif name in _FAULTS and (fault := _FAULTS[name](value)):
            raise KeySourceError(fault)
        else:
            entry[name] = tier_name(value) if name == "tier" else value


def _refuse_twin(keys: list[dict[str, Any]], value: str, *, except_id: str | None = None) -> None:
    for entry in keys:
        if entry.get("api_key") == value and entry.get("id") != except_id:
            raise KeySourceError(f"this key is there already, as {entry.get('id')!r}")
