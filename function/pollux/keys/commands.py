"""What the commands `pollux keys …` do. No value is ever printed; results go to stdout, everything else to stderr."""

import argparse
import asyncio
import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pollux.keys import KeySourceError, Secret
from pollux.keys.entries import Entry, KeyFileError, Problem, clean, value_fault
from pollux.keys.files import Variable, decode, parse, parse_env, recognise
from pollux.keys.importing import plan
from pollux.keys.keyfile import KeyFile
from pollux.keys.local import LocalKeyring, free_id
from pollux.keys.probe import probe
from pollux.settings import Settings

ReadHealth = Callable[[], Mapping[str, Any]]


class Place:
    """Where keys are read and written, by the settings."""

    def __init__(self, settings: Settings, read_health: ReadHealth | None) -> None:
        self.settings = settings
        self.read_health = read_health
        self.named = Path(settings.keys_file).expanduser() if settings.keys_file else None

    def keyring(self) -> LocalKeyring:
        return LocalKeyring(self.named, data=Path(self.settings.data), folder=Path.cwd(), environ=os.environ)

    def entries(self) -> Mapping[str, Entry]:
        """All keys in use by id; none while the file named in the settings is still to be made."""
        return {} if self.named and not self.named.exists() else self.keyring().entries()

    def file(self) -> KeyFile:
        """The file that is written. A list of lines or variables is left to its owner."""
        path = self.named or Path(self.settings.data) / "keys.json"
        if self.named and recognise(_text(path) if path.exists() else "", str(path)) != "json":
            raise KeySourceError(
                f"POLLUX_KEYS_FILE={path} is not a keys.json, the only kind that is written here: edit it yourself, or "
                f"unset POLLUX_KEYS_FILE and run: pollux keys import {path}"
            )
        return KeyFile(path)

    def own(self, key_id: str) -> KeyFile:
        """The file, if this key is in it."""
        file = self.file()
        if key_id in file.ids():
            return file
        if entry := self.entries().get(key_id):
            raise KeySourceError(
                f"{key_id!r} comes from {entry.place}: change it there, or take it over with: pollux keys import FILE"
            )
        raise KeySourceError("there is no such key; see: pollux keys list")


def add(namespace: argparse.Namespace, place: Place) -> int:
    file, entries = place.file(), place.entries()
    key_id = namespace.id or free_id("key-1", {*entries, *file.ids()})
    if key_id in entries:
        raise KeySourceError(f"the id {key_id!r} is taken, by {entries[key_id].place}")
    secret = _ask(entries.values())
    file.add(key_id, secret, **_details(namespace))
    print(f"added {key_id} ({secret.masked}) to {file.path}")
    return 0


def edit(namespace: argparse.Namespace, place: Place) -> int:
    details = _details(namespace)
    if not details and not namespace.value:
        raise KeySourceError("nothing to change; name --project, --tier, --limit or --value")
    file = place.own(namespace.id)
    others = (entry for key_id, entry in place.entries().items() if key_id != namespace.id)
    file.edit(namespace.id, secret=_ask(others) if namespace.value else None, **details)
    print(f"changed {namespace.id} in {file.path}")
    return 0


def remove(namespace: argparse.Namespace, place: Place) -> int:
    file = place.own(namespace.id)
    if not namespace.yes:
        if not sys.stdin.isatty():
            raise KeySourceError("not removed: nobody to ask; say --yes")
        print(f"Remove {namespace.id} from {file.path}? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("kept")
            return 0
    file.remove(namespace.id)
    print(f"removed {namespace.id} from {file.path}")
    return 0


def enable(namespace: argparse.Namespace, place: Place) -> int:
    place.own(namespace.id).enable(namespace.id)
    print(f"enabled {namespace.id}")
    return 0


def disable(namespace: argparse.Namespace, place: Place) -> int:
    place.own(namespace.id).disable(namespace.id)
    print(f"disabled {namespace.id}")
    return 0


def import_(namespace: argparse.Namespace, place: Place) -> int:
    path, file = Path(namespace.file), place.file()
    variables = _variables()
    found = parse(_text(path), str(path), variables)
    owned = parse(_text(file.path), str(file.path), variables).entries if file.path.exists() else ()
    known = {key_id: entry.secret for key_id, entry in place.entries().items()}
    result = plan(found.entries, {entry.secret: entry.id for entry in owned}, known)
    if result.added and not namespace.dry_run:
        file.adopt(result.added)
    done = "would add" if namespace.dry_run else "added"
    for key_id, entry in result.added.items():
        renamed = "" if key_id == entry.id else f", where it is {entry.id}"
        print(f"{done} {key_id} ({entry.secret.masked}) of {entry.place}{renamed}")
    for entry, key_id in result.skipped:
        print(f"skipped {entry.place}: there already, as {key_id}")
    _tell(found.problems, "not a key: ")
    print(
        f"{len(result.added)} added{' (dry run)' if namespace.dry_run else ''}, {len(result.skipped)} there already, "
        f"{len(found.problems)} not a key; file {file.path}"
    )
    return 0


def list_(namespace: argparse.Namespace, place: Place) -> int:
    keyring = place.keyring()
    health = _health(place.read_health)
    rows = [_row(key_id, entry, health) for key_id, entry in keyring.entries().items()]
    if namespace.json:
        problems = [{"file": p.file, "line": p.line, "reason": p.reason} for p in keyring.problems]
        notices = [{"file": n.file, "line": n.line, "reason": n.reason} for n in keyring.notices]
        print(json.dumps({"keys": rows, "problems": problems, "notices": notices}, indent=2))
        return 0
    _table(
        ("ID", "PROJECT", "TIER", "VALUE", "SOURCE", "HEALTH"),
        [(r["id"], r["project"], r["tier"] or "-", r["masked"], r["source"], _in_words(r)) for r in rows],
    )
    if not rows:
        print("no keys; add one with: pollux keys add", file=sys.stderr)
    _tell(keyring.problems, "not used: ")
    _tell(keyring.notices, "note: ")
    return 0


def check(namespace: argparse.Namespace, place: Place) -> int:
    entries = place.keyring().entries()
    if any(key_id not in entries for key_id in namespace.ids):
        raise KeySourceError("there is no such key; see: pollux keys list")
    asked = {i: e.secret for i, e in entries.items() if (i in namespace.ids if namespace.ids else e.enabled)}
    if not asked:
        raise KeySourceError("no keys to check; add one with: pollux keys add")
    findings = asyncio.run(probe(asked, upstream=place.settings.upstream, model=namespace.model))
    _table(
        ("ID", "VALUE", "STATE", "REASON"),
        [(key_id, asked[key_id].masked, found.state, found.reason) for key_id, found in findings.items()],
    )
    return int(any(found.state != "healthy" for found in findings.values()))


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Place], int]] = {
    "add": add,
    "list": list_,
    "edit": edit,
    "remove": remove,
    "enable": enable,
    "disable": disable,
    "import": import_,
    "check": check,
}


def _ask(others: Iterable[Entry]) -> Secret:
    """The value, from a hidden prompt or the first line of standard input; not one that is in use already."""
    try:
        text = getpass.getpass("Value of the key (not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    except (EOFError, UnicodeDecodeError):
        text = ""
    if fault := value_fault(clean(text)):
        raise KeySourceError(f"not a key: {fault}")
    secret = Secret(clean(text))
    for entry in others:
        if entry.secret == secret:
            raise KeySourceError(f"this key is there already, as {entry.id!r} of {entry.place}")
    return secret


def _details(namespace: argparse.Namespace) -> dict[str, Any]:
    """What was named on the command line; `none` becomes None, which removes."""
    details: dict[str, Any] = {
        name: None if written == "none" else written
        for name in ("project", "tier")
        if (written := getattr(namespace, name)) is not None
    }
    if namespace.limit:
        details["limits"] = dict(namespace.limit)
    return details


def _text(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise KeyFileError(Problem(str(path), 0, reason))


def _variables() -> dict[str, Variable]:
    env_file = Path.cwd() / ".env"
    below = parse_env(_text(env_file), ".env") if env_file.is_file() else {}
    return below | {name: Variable(name, value) for name, value in os.environ.items() if value}


def _health(read_health: ReadHealth | None) -> Mapping[str, Any] | None:
    try:
        return read_health() if read_health else None
    except (OSError, LookupError) as error:
        print(f"pollux keys: health is not known: {error}", file=sys.stderr)
        return None


def _row(key_id: str, entry: Entry, health: Mapping[str, Any] | None) -> dict[str, Any]:
    key = entry.key(key_id)
    state: dict[str, Any] = {"state": "unknown" if health is None else "healthy"}
    for kind, name in (("keys", key.id), ("projects", key.project)):
        aside = (health or {}).get(kind, {}).get(name)
        if aside and aside["until"] > time.time():
            state = {"state": "aside", "reason": aside["reason"], "since": aside["since"], "until": aside["until"]}
            break
    shown = {"id": key.id, "project": key.project, "tier": key.tier, "masked": entry.secret.masked}
    return shown | {"source": entry.place, "enabled": key.enabled, "health": state}


def _in_words(row: Mapping[str, Any]) -> str:
    health = row["health"]
    words = str(health["state"])
    if words == "aside":
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(health["until"]))
        words = f"aside until {until}: {health['reason']}"
    return words if row["enabled"] else f"disabled ({words})" if words == "unknown" else f"disabled, {words}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    for line in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _tell(problems: Iterable[Problem], what: str) -> None:
    for problem in problems:
        print(f"{what}{problem}", file=sys.stderr)
