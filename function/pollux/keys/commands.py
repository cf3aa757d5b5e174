"""What `pollux keys …` does with this machine's keys. No value is printed; results go to stdout, the rest to stderr."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pollux.keys import KeySourceError, Secret
from pollux.keys.entries import Entry, KeyFileError, Problem
from pollux.keys.files import Variable, decode, parse, parse_env, recognise
from pollux.keys.importing import plan
from pollux.keys.keyfile import KeyFile
from pollux.keys.local import LocalKeyring, free_id, home_folder
from pollux.keys.probe import REFUSED, Finding, probe
from pollux.keys.standing import Lifted, forgive, leave_aside, lift
from pollux.keys.terminal import (
    ask_value,
    confirmed,
    doubted,
    keys_table,
    listed,
    no_such_key,
    row,
    table,
    tell,
    told_of_check,
    told_of_demo,
    told_of_new,
    told_of_tiers,
)
from pollux.settings import Settings

ReadHealth = Callable[[], Mapping[str, Any]]


class Place:
    """Where keys are read and written, by the settings."""

    def __init__(self, settings: Settings, read_health: ReadHealth | None) -> None:
        self.settings = settings
        self.read_health = read_health
        self.named = Path(settings.keys_file).expanduser() if settings.keys_file else None

    def keyring(self) -> LocalKeyring:
        data = Path(self.settings.data)
        return LocalKeyring(self.named, data=data, folder=Path.cwd(), environ=os.environ, home=home_folder())

    def entries(self) -> Mapping[str, Entry]:
        """All keys in use by id; none while the file named in the settings is still to be made."""
        return {} if self.named and not self.named.exists() else self.keyring().entries()

    def file(self) -> KeyFile:
        """The file that is written. A list of lines or variables is left to its owner."""
        path = self.named or Path(self.settings.data) / "keys.json"
        if self.named and recognise(text_of(path) if path.exists() else "", str(path)) != "json":
            raise KeySourceError(
                f"POLLUX_KEYS_FILE={path} is not a keys.json, the only kind that is written here: edit it yourself, or "
                f"unset POLLUX_KEYS_FILE and run: pollux keys import {path}"
            )
        return KeyFile(path)

    def value_in(self, file: KeyFile, key_id: str) -> Secret | None:
        """The value that a key has in this file; None if it cannot be used."""
        entries = parse(text_of(file.path), str(file.path), variables_here()).entries
        return next((entry.secret for entry in entries if entry.id == key_id), None)

    def own(self, key_id: str) -> KeyFile:
        """The file, if this key is in it."""
        file = self.file()
        if key_id in file.ids():
            return file
        entries = self.entries()
        if entry := entries.get(key_id):
            raise KeySourceError(
                f"{key_id!r} comes from {entry.place}: change it there, or take it over with: pollux keys import FILE"
            )
        raise no_such_key(key_id, {*file.ids(), *entries})


def add(namespace: argparse.Namespace, place: Place) -> int:
    file, entries = place.file(), place.entries()
    key_id = namespace.id or free_id("key-1", {*entries, *file.ids()})
    if key_id in entries:
        raise KeySourceError(f"the id {key_id!r} is taken, by {entries[key_id].place}")
    secret = ask_value(entries.values())
    doubted(key_id, secret)
    file.add(key_id, secret, **details_of(namespace))
    print(f"added {key_id} ({secret.masked}) to {file.path}")
    found = _probed(namespace, place, secret)
    lifted = _forgiven(place, key_id, found)
    refused = {key_id: found.cause} if found is not None and found.state == "invalid" else {}
    code = told_of_new(key_id, found, aside=asyncio.run(leave_aside(place.settings, "", refused)))
    told_of_demo(lifted, place.settings.gateway_url)
    _told_of_tiers(place, key_id)
    return code


def edit(namespace: argparse.Namespace, place: Place) -> int:
    details = details_of(namespace)
    if not details and not namespace.value:
        raise KeySourceError("nothing to change; name --project, --tier, --limit or --value")
    file = place.own(namespace.id)
    old = place.value_in(file, namespace.id)
    others = (entry for key_id, entry in place.entries().items() if key_id != namespace.id)
    file.edit(namespace.id, secret=ask_value(others) if namespace.value else None, **details)
    if namespace.value:
        _forgiven(place, namespace.id)
    print(f"changed {namespace.id} in {file.path}")
    _told_of_tiers(place, namespace.id)
    return _told_of_copies(place, old) if namespace.value else 0


def rotate(namespace: argparse.Namespace, place: Place) -> int:
    """Unlike `edit --value`, a new value that does not answer changes nothing."""
    file = place.own(namespace.id)
    old = place.value_in(file, namespace.id)
    entries = place.entries()
    others = (entry for key_id, entry in entries.items() if key_id != namespace.id)
    secret = ask_value(others, "New value of the key (not shown): ")
    doubted(namespace.id, secret)
    found = _probed(namespace, place, secret)
    if found is not None and found.state in REFUSED:
        print(f"kept the old value of {namespace.id}: the new one is {found.state}: {found.reason}")
        return 1
    same = namespace.id in entries and entries[namespace.id].secret == secret
    if not same:
        file.edit(namespace.id, secret=secret)
    _forgiven(place, namespace.id, found)
    done = "kept" if same else "rotated"
    print(f"{done} {namespace.id} ({secret.masked}) in {file.path}{': it is the same value' if same else ''}")
    return 0 if same else _told_of_copies(place, old)


def _probed(namespace: argparse.Namespace, place: Place, secret: Secret) -> Finding | None:
    """What Google says of a value; None if it is not asked."""
    if not namespace.check:
        return None
    return asyncio.run(probe({"": secret}, upstream=place.settings.upstream, model=namespace.model))[""]


def _told_of_tiers(place: Place, key_id: str) -> None:
    """Of the project of a key that was changed."""
    keys = [entry.key(other) for other, entry in place.entries().items()]
    project = next((key.project for key in keys if key.id == key_id), None)
    told_of_tiers(key for key in keys if key.project == project)


def _forgiven(place: Place, key_id: str, found: Finding | None = None) -> Lifted:
    """What was held against the key before ends, in gateways that run and those that start later."""
    well = found is not None and found.state in ("healthy", "no quota")
    return asyncio.run(forgive(place.settings, "", key_id, well=well))


def remove(namespace: argparse.Namespace, place: Place) -> int:
    file = place.own(namespace.id)
    if not confirmed(f"Remove {namespace.id} from {file.path}?", yes=namespace.yes, undone="removed"):
        return 0
    old = place.value_in(file, namespace.id)
    file.remove(namespace.id)
    _forgiven(place, namespace.id)  # another key may have this id one day
    print(f"removed {namespace.id} from {file.path}")
    return _told_of_copies(place, old, "its")


def _told_of_copies(place: Place, secret: Secret | None, whose: str = "the old") -> int:
    """Where a value that was given up still stands. 1 if it goes on serving from there: it may be one that leaked."""
    if secret is None:
        return 0
    try:
        keyring = place.keyring()
    except KeySourceError as error:
        print(f"pollux keys: not known whether {whose} value is in another source too: {error}", file=sys.stderr)
        return 1
    copies = keyring.entries_with(secret)
    if not copies:
        return 0
    serving = [key_id for key_id, entry in keyring.entries().items() if entry.secret == secret and entry.enabled]
    serves = f"where it GOES ON SERVING, as {serving[0]!r}: " if serving else "where it does not serve now: "
    places = " and ".join(copy.place for copy in copies)
    where = "that line" if len(copies) == 1 and copies[0].line else "it there"
    print(f"pollux keys: {whose} value is still in {places}, {serves}delete {where}", file=sys.stderr)
    return int(bool(serving))


def enable(namespace: argparse.Namespace, place: Place) -> int:
    place.own(namespace.id).enable(namespace.id)
    _forgiven(place, namespace.id)
    print(f"enabled {namespace.id}")
    return 0


def disable(namespace: argparse.Namespace, place: Place) -> int:
    place.own(namespace.id).disable(namespace.id)
    print(f"disabled {namespace.id}")
    return 0


def import_(namespace: argparse.Namespace, place: Place) -> int:
    path, file = Path(namespace.file), place.file()
    variables = variables_here()
    found = parse(text_of(path), str(path), variables)
    owned = parse(text_of(file.path), str(file.path), variables).entries if file.path.exists() else ()
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
    tell(found.problems, "not a key: ")
    print(
        f"{len(result.added)} added{' (dry run)' if namespace.dry_run else ''}, {len(result.skipped)} there already, "
        f"{len(found.problems)} not a key; file {file.path}"
    )
    if (
        found.entries
        and not namespace.dry_run
        and path.resolve() != file.path.resolve()
        and place.keyring().reads(path)
    ):
        what = f"the keys in {path}" if recognise(text_of(path), str(path)) == "env" else str(path)
        print(
            f"pollux keys: {path} is still read: what you remove or rotate from now on would go on serving from there. "
            f"DELETE {what}",
            file=sys.stderr,
        )
    return 0


def list_(namespace: argparse.Namespace, place: Place) -> int:
    keyring = place.keyring()
    health = health_of(place.read_health)
    rows = [row(replace(entry, id=key_id), health) for key_id, entry in keyring.entries().items()]
    if namespace.json:
        told = {"problems": listed(keyring.problems), "notices": listed(keyring.notices)}
        print(json.dumps({"keys": rows, **told}, indent=2))
        return 0
    keys_table(rows)
    if not rows:
        print("no keys; add one with: pollux keys add", file=sys.stderr)
    tell(keyring.problems, "not used: ")
    tell(keyring.notices, "note: ")
    told_of_tiers(entry.key(key_id) for key_id, entry in keyring.entries().items())
    return 0


def check(namespace: argparse.Namespace, place: Place) -> int:
    entries = place.keyring().entries()
    for key_id in namespace.ids:
        if key_id not in entries:
            raise no_such_key(key_id, entries)
    asked = {i: e.secret for i, e in entries.items() if (i in namespace.ids if namespace.ids else e.enabled)}
    if not asked:
        raise KeySourceError("no keys to check; add one with: pollux keys add")
    findings = asyncio.run(probe(asked, upstream=place.settings.upstream, model=namespace.model))
    table(
        ("ID", "VALUE", "STATE", "REASON"),
        [(key_id, asked[key_id].masked, found.state, found.reason) for key_id, found in findings.items()],
    )
    keys = [entries[key_id].key(key_id) for key_id in asked]
    healthy = {key.id: key.project for key in keys if findings[key.id].state == "healthy"}
    lifted = asyncio.run(lift(place.settings, "", healthy, well=True))
    refused = {key.id: findings[key.id].cause for key in keys if findings[key.id].state == "invalid"}
    asyncio.run(leave_aside(place.settings, "", refused))
    told_of_check(keys, findings, lifted, health_of(place.read_health))
    return int(any(found.state != "healthy" for found in findings.values()))


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Place], int]] = {
    "add": add,
    "list": list_,
    "edit": edit,
    "rotate": rotate,
    "remove": remove,
    "enable": enable,
    "disable": disable,
    "import": import_,
    "check": check,
}


def details_of(namespace: argparse.Namespace) -> dict[str, Any]:
    """What was named on the command line; `none` becomes None, which removes."""
    details: dict[str, Any] = {
        name: None if written == "none" else written
        for name in ("project", "tier")
        if (written := getattr(namespace, name)) is not None
    }
    if namespace.limit:
        details["limits"] = dict(namespace.limit)
    return details


def text_of(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise KeyFileError(Problem(str(path), 0, reason))


def variables_here() -> dict[str, Variable]:
    env_file = Path.cwd() / ".env"
    below = parse_env(text_of(env_file), ".env") if env_file.is_file() else {}
    return below | {name: Variable(name, value) for name, value in os.environ.items() if value}


def health_of(read_health: ReadHealth | None) -> Mapping[str, Any] | None:
    try:
        return read_health() if read_health else None
    except (OSError, LookupError) as error:
        print(f"pollux keys: health is not known: {error}", file=sys.stderr)
        return None
