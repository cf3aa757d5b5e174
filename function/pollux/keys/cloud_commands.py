"""What `pollux keys … --secrets PROJECT` does with the keys in Secret Manager. No value is ever printed."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pollux.keys import Key, KeySourceError, Secret
from pollux.keys.commands import ReadHealth, details_of, health_of, text_of, variables_here
from pollux.keys.entries import Entry, Problem, id_fault
from pollux.keys.files import parse
from pollux.keys.importing import plan
from pollux.keys.local import free_id
from pollux.keys.probe import REFUSED, Finding, probe
from pollux.keys.records import ID, KEY, changed, foreign, key_id_of, secret_name
from pollux.keys.secret_manager import SecretManagerKeyring
from pollux.keys.secrets_api import SecretError, SecretInfo, SecretsApi, known_as
from pollux.keys.standing import Lifted, forgive, leave_aside, lift
from pollux.keys.terminal import (
    Progress,
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

AT_ONCE = 4


class Cloud:
    """One project's Secret Manager, by the settings."""

    def __init__(self, project: str, settings: Settings, read_health: ReadHealth | None) -> None:
        self.settings = settings
        self.project = project
        self.api = SecretsApi(project)
        self.keyring = SecretManagerKeyring(project, api=self.api)
        self.read_health = read_health
        self.unread: dict[str, KeySourceError] = {}

    def place(self, key_id: str) -> str:
        return f"secret {secret_name(key_id)} of {self.project}"

    async def keys(self) -> tuple[Key, ...]:
        return await self.keyring.keys()

    async def entries(self, keys: Iterable[Key], what: str = "reading keys") -> dict[str, Entry]:
        """The keys with their values; why others cannot be read is in `unread`."""
        wanted = tuple(keys)
        with Progress(len(wanted), what) as progress:

            async def one(key: Key) -> Entry | None:
                try:
                    value = await self.keyring.value(key.id)
                except SecretError as error:
                    self.unread[key.id] = error
                    return None
                finally:
                    progress.step()
                return self._entry(key, value)

            found = await asyncio.gather(*map(one, wanted))
        return {entry.id: entry for entry in found if entry}

    def entry_without_value(self, key: Key) -> Entry:
        return self._entry(key, Secret(""))

    def _entry(self, key: Key, value: Secret) -> Entry:
        details = (key.project, key.tier, key.limits, key.enabled)
        return Entry(key.id, value, self.place(key.id), 0, *details)

    async def ids(self) -> set[str]:
        """All that are taken, also by secrets that describe no key."""
        return {key_id_of(info.name) for info in await self.api.secrets(KEY)}

    async def add(self, key_id: str, secret: Secret, details: Mapping[str, object]) -> None:
        """The secret and its first version, or neither."""
        name = secret_name(key_id)
        labels, annotations = changed(None, details)
        if key_id not in name:
            annotations[ID] = key_id
        await self.api.create(name, labels, annotations)
        try:
            await self.api.add_version(name, secret)
        except BaseException:
            with suppress(SecretError):
                await self.api.delete(name)
            raise

    async def info(self, key_id: str) -> SecretInfo:
        with known_as(f"key {key_id!r}", self.project):
            return await self.api.secret(secret_name(key_id))

    async def describe(self, key_id: str, details: Mapping[str, object]) -> None:
        info = await self.info(key_id)
        await self.api.describe(info, *changed(info, details))


async def add(namespace: argparse.Namespace, cloud: Cloud) -> int:
    taken = await cloud.ids()
    key_id = namespace.id or free_id("key-1", taken)
    if key_id in taken:
        if await cloud.api.versions(secret_name(key_id)):
            raise KeySourceError(f"the id {key_id!r} is taken, by {cloud.place(key_id)}")
        raise KeySourceError(f"{cloud.place(key_id)} has no value yet; put it there with: pollux keys rotate {key_id}")
    secret = ask_value((await _others(cloud)).values())
    doubted(key_id, secret)
    await cloud.add(key_id, secret, details_of(namespace))
    print(f"added {key_id} ({secret.masked}) to {cloud.place(key_id)}")
    found = await _probed(namespace, cloud, key_id, secret)
    lifted = await _forgiven(cloud, key_id, found)
    refused = {key_id: found.cause} if found is not None and found.state == "invalid" else {}
    aside = await leave_aside(cloud.settings, cloud.project, refused)
    code = told_of_new(key_id, found, aside=aside, where=f" --secrets {cloud.project}")
    told_of_demo(lifted, cloud.settings.gateway_url)
    return code


async def edit(namespace: argparse.Namespace, cloud: Cloud) -> int:
    if namespace.value:
        raise KeySourceError(f"a value in Secret Manager is changed with: pollux keys rotate {namespace.id}")
    details = details_of(namespace)
    if not details:
        raise KeySourceError("nothing to change; name --project, --tier or --limit")
    await cloud.describe(namespace.id, details)
    print(f"changed {namespace.id} in {cloud.place(namespace.id)}")
    keys = await cloud.keys()
    project = next((key.project for key in keys if key.id == namespace.id), None)
    told_of_tiers(key for key in keys if key.project == project)
    return 0


async def enable(namespace: argparse.Namespace, cloud: Cloud) -> int:
    await cloud.describe(namespace.id, {"enabled": True})
    await _forgiven(cloud, namespace.id)
    print(f"enabled {namespace.id}")
    return 0


async def disable(namespace: argparse.Namespace, cloud: Cloud) -> int:
    await cloud.describe(namespace.id, {"enabled": False})
    print(f"disabled {namespace.id}")
    return 0


async def rotate(namespace: argparse.Namespace, cloud: Cloud) -> int:
    """A new version; the old ones are disabled after it answered. One that does not is disabled itself."""
    key_id, name = namespace.id, secret_name(namespace.id)
    with known_as(f"key {key_id!r}", cloud.project):
        old = await cloud.api.versions(name)
    others = await _others(cloud)
    own = others.pop(key_id, None)
    secret = ask_value(others.values(), "New value of the key (not shown): ")
    doubted(key_id, secret)
    if own is not None and own.secret == secret:
        found = await _probed(namespace, cloud, key_id, secret)
        if found is not None and found.state in REFUSED:
            print(f"kept {key_id}, which is the same value; it is {found.state}: {found.reason}")
            return 1
        await _forgiven(cloud, key_id, found)
        print(f"kept {key_id} ({secret.masked}) in {cloud.place(key_id)}: it is the same value")
        return 0
    number = await cloud.api.add_version(name, secret)
    try:
        found = await _probed(namespace, cloud, key_id, await cloud.api.access(name, number))
    except BaseException:
        await cloud.api.disable(name, number)
        raise
    if found is not None and found.state in REFUSED:
        await cloud.api.disable(name, number)
        print(f"kept the old value of {key_id}: the new one, version {number}, is {found.state}: {found.reason}")
        return 1
    try:
        await cloud.describe(key_id, {"version": number})
    except KeySourceError as error:
        print(f"pollux keys: gateways were not told, and take it when the old is refused: {error}", file=sys.stderr)
    for version in old:
        await cloud.api.disable(name, version.number)
    await _forgiven(cloud, key_id, found)
    disabled = f"; disabled {', '.join(str(version.number) for version in sorted(old))}" if old else ""
    print(f"rotated {key_id} ({secret.masked}) in {cloud.place(key_id)}: version {number}{disabled}")
    return 0


async def remove(namespace: argparse.Namespace, cloud: Cloud) -> int:
    info = await cloud.info(namespace.id)
    question = f"Remove {cloud.place(namespace.id)}, with all its versions?{foreign(info)}"
    if confirmed(question, yes=namespace.yes, undone="removed"):
        await cloud.api.delete(info.name)
        await _forgiven(cloud, namespace.id)  # another key may have this id one day
        print(f"removed {namespace.id} from {cloud.project}")
    return 0


async def import_(namespace: argparse.Namespace, cloud: Cloud) -> int:
    path = Path(namespace.file)
    found = parse(text_of(path), str(path), variables_here())
    there = await _others(cloud)
    taken = {key_id: Secret(f"unread {key_id}") for key_id in await cloud.ids()}
    known = taken | {key_id: entry.secret for key_id, entry in there.items()}
    result = plan(found.entries, {entry.secret: entry.id for entry in there.values()}, known)
    done = await _add_all(cloud, result.added, dry_run=namespace.dry_run)
    for entry, key_id in result.skipped:
        print(f"skipped {entry.place}: there already, as {key_id}")
    tell(found.problems, "not a key: ")
    dry = " (dry run)" if namespace.dry_run else ""
    print(
        f"{len(done)} added{dry}, {len(result.skipped)} there already, {len(found.problems)} not a key; "
        f"Secret Manager of {cloud.project}"
    )
    return 0


async def _add_all(cloud: Cloud, added: Mapping[str, Entry], *, dry_run: bool) -> list[str]:
    """Those that were added. The first that fails ends it: what is done stays, and importing again does the rest."""
    done: list[str] = []
    turn, failed = asyncio.Semaphore(AT_ONCE), False
    with Progress(len(added), "adding keys") as progress:
        lines: list[str] = []

        async def one(key_id: str, entry: Entry) -> None:
            nonlocal failed
            async with turn:
                if failed:
                    return
                details = {"project": entry.project, "tier": entry.tier, "limits": entry.limits}
                try:
                    if not dry_run:
                        await cloud.add(key_id, entry.secret, details | {"enabled": entry.enabled})
                except BaseException:
                    failed = True
                    raise
            done.append(key_id)
            renamed = "" if key_id == entry.id else f", there {entry.id}"
            line = f"{'would add' if dry_run else 'added'} {key_id} ({entry.secret.masked}) of {entry.place}{renamed}"
            if progress.shown:
                lines.append(line)
            else:
                print(line, flush=True)
            progress.step()

        results = await asyncio.gather(*(one(*item) for item in added.items()), return_exceptions=True)
    if lines:
        print("\n".join(lines))
    for error in results:
        if isinstance(error, KeySourceError):
            raise KeySourceError(f"{error} ({len(done)} of {len(added)} were added; import again for the rest)")
        if error is not None:
            raise error
    return done


async def list_(namespace: argparse.Namespace, cloud: Cloud) -> int:
    health = await asyncio.to_thread(health_of, cloud.read_health)
    keys = await cloud.keys()
    entries = await cloud.entries(keys)
    rows = [row(entries.get(key.id) or cloud.entry_without_value(key), health) for key in keys]
    problems: tuple[Problem, ...] = cloud.keyring.problems
    if namespace.json:
        print(json.dumps({"keys": rows, "problems": listed(problems), "notices": []}, indent=2))
        return 0
    keys_table(rows)
    if not rows:
        print(f"no keys; add one with: pollux keys add --secrets {cloud.project}", file=sys.stderr)
    tell(problems, "not used: ")
    told_of_tiers(keys)
    return 0


async def check(namespace: argparse.Namespace, cloud: Cloud) -> int:
    keys = {key.id: key for key in await cloud.keys()}
    for key_id in namespace.ids:
        if key_id not in keys:
            raise no_such_key(key_id, keys, where=f" --secrets {cloud.project}")
    wanted = [key for key in keys.values() if (key.id in namespace.ids if namespace.ids else key.enabled)]
    if not wanted:
        raise KeySourceError(f"no keys to check; add one with: pollux keys add --secrets {cloud.project}")
    entries = await cloud.entries(wanted)
    asked = {key_id: entry.secret for key_id, entry in entries.items()}
    findings = await probe(asked, upstream=cloud.settings.upstream, model=namespace.model)
    findings |= {key_id: Finding("unreadable", str(error)) for key_id, error in cloud.unread.items()}
    rows = [(key.id, findings[key.id]) for key in wanted]
    table(
        ("ID", "VALUE", "STATE", "REASON"),
        [(i, asked[i].masked if i in asked else "…", found.state, found.reason) for i, found in rows],
    )
    healthy = {key.id: key.project for key in wanted if findings[key.id].state == "healthy"}
    lifted = await lift(cloud.settings, cloud.project, healthy, well=True)
    refused = {key.id: findings[key.id].cause for key in wanted if findings[key.id].state == "invalid"}
    await leave_aside(cloud.settings, cloud.project, refused)
    health = await asyncio.to_thread(health_of, cloud.read_health)
    told_of_check(wanted, findings, lifted, health, where=f" --secrets {cloud.project}")
    return int(any(found.state != "healthy" for _, found in rows))


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Cloud], Awaitable[int]]] = {
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


def run(namespace: argparse.Namespace, project: str, settings: Settings, read_health: ReadHealth | None) -> int:
    if id_fault(getattr(namespace, "id", None) or "none"):  # not asked for, nor repeated: it may be a value
        raise KeySourceError(f"no such key in project {project}; see: pollux keys list --secrets {project}")

    async def command() -> int:
        cloud = Cloud(project, settings, read_health)
        try:
            return await COMMANDS[namespace.keys_command](namespace, cloud)
        finally:
            await cloud.keyring.close()

    return asyncio.run(command())


async def _others(cloud: Cloud) -> dict[str, Entry]:
    """All keys that are there, to compare with; tells which cannot be compared. Those without a value need not be."""
    entries = await cloud.entries(await cloud.keys())
    for error in cloud.unread.values():
        if getattr(error, "kind", "") != "disabled":
            print(f"pollux keys: not compared with one that is there: {error}", file=sys.stderr)
    return entries


async def _forgiven(cloud: Cloud, key_id: str, found: Finding | None = None) -> Lifted:
    """What was held against the key before ends, in gateways that run and those that start later."""
    well = found is not None and found.state in ("healthy", "no quota")
    return await forgive(cloud.settings, cloud.project, key_id, well=well)


async def _probed(namespace: argparse.Namespace, cloud: Cloud, key_id: str, value: Secret) -> Finding | None:
    if not namespace.check:
        return None
    return (await probe({key_id: value}, upstream=cloud.settings.upstream, model=namespace.model))[key_id]
