"""`pollux keys …`: nine commands on the keys of a place. No value comes from the command line, and none is printed."""

import asyncio
import functools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pollux.health import free_quota
from pollux.keys import Key, KeySourceError, Secret
from pollux.keys.entries import LIMITS, Entry, Problem, id_fault, limits_fault, project_fault, tier_fault, value_doubt
from pollux.keys.files import parse, recognise
from pollux.keys.local import free_id
from pollux.keys.places import (
    Contents,
    FilePlace,
    KeyPlace,
    SecretManagerPlace,
    no_such_key,
    text_of,
    variables_here,
)
from pollux.keys.probe import MODEL, REFUSED, Finding, probe
from pollux.keys.standing import Lifted, forgive, leave_aside, lift, read_health, state_in_words, state_of
from pollux.keys.terminal import (
    Commands,
    ask_value,
    confirmed,
    json_option,
    note,
    progress,
    secrets_option,
    show_json,
    show_table,
    shows_progress,
)
from pollux.settings import Settings

NO_VALUE = (
    "a key's value is not given on the command line, where the shell's history and every process can read it; "
    "it is asked for, or read from standard input: pollux keys add ID < FILE"
)


# --- how the commands are spelt ---------------------------------------------------------------------------------------


class _Careful(click.Command):
    """Repeats no argument that it does not know: it may be a key."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except (click.BadParameter, click.exceptions.NoArgsIsHelpError):
            raise
        except click.UsageError as error:
            if isinstance(error, click.BadOptionUsage) and error.option_name != "--value":
                error.ctx = ctx
                raise  # an option without its argument
            problem = f"too many arguments, or unknown ones (not repeated here); {NO_VALUE}"
        raise click.UsageError(problem, ctx)


class _KeyCommands(_Careful, Commands):
    command_class = _Careful

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise click.UsageError(f"no such command (not repeated here); there are {', '.join(self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class _Text(click.ParamType[str]):
    """A text that has no fault. `none` passes where it removes something."""

    def __init__(self, name: str, fault_of: Callable[[Any], str | None], *, none: bool = False) -> None:
        self.name, self._fault_of, self._none = name, fault_of, none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not (self._none and value == "none") and (fault := self._fault_of(value)):
            self.fail(fault, param, ctx)
        return value


class _Limit(click.ParamType[tuple[str, dict[str, int] | None]]):
    """MODEL:rpm=5,tpm=250000, or rpm=5 for every model, or MODEL:none."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        model, colon, written = value.rpartition(":")
        model = model if colon else "*"
        if written == "none" and colon:
            return model, None
        numbers: dict[str, int] = {}
        for part in written.split(","):
            name, _, number = part.partition("=")
            if not number.strip().isdecimal():
                self.fail("expected MODEL:rpm=5,tpm=250000", param, ctx)
            numbers[name.strip()] = int(number)
        if fault := limits_fault({model: numbers}):
            self.fail(fault, param, ctx)
        return model, numbers


key_id_argument = click.argument("key_id", metavar="ID")
model_option = click.option("--model", default=MODEL, show_default=True, help="The model to ask about.")


def _details(command: Callable[..., int]) -> Callable[..., int]:
    """The options for what is known of a key, as one argument `details`. `none` becomes None, which removes."""

    @click.option(
        "--project",
        type=_Text("project", project_fault, none=True),
        metavar="P",
        help="The Google Cloud project that owns its quota; none removes it.",
    )
    @click.option(
        "--tier",
        type=_Text("tier", tier_fault, none=True),
        metavar="T",
        help="free, tier1, tier2 or tier3; none removes it.",
    )
    @click.option(
        "--limit",
        type=_Limit(),
        multiple=True,
        metavar="MODEL:rpm=5,tpm=250000",
        help=f"Your own limit for a model, or * for all: {', '.join(LIMITS)}; 0 is not available; MODEL:none removes "
        "those of a model. Repeatable.",
    )
    @functools.wraps(command)
    def run(project: str | None, tier: str | None, limit: tuple[Any, ...], **arguments: Any) -> int:
        named = {"project": project, "tier": tier}
        details: dict[str, Any] = {
            name: None if written == "none" else written for name, written in named.items() if written is not None
        }
        return command(details=details | ({"limits": dict(limit)} if limit else {}), **arguments)

    return run


def _in_place(command: Callable[..., int]) -> Callable[..., int]:
    """The option --secrets, and the place that is meant as the arguments `place` and `settings`."""

    @secrets_option
    @click.pass_obj
    def run(load: Callable[[], Settings], /, secrets: str | None, **arguments: Any) -> int:
        settings = load()
        project = secrets or settings.secrets
        place = SecretManagerPlace(project, progress) if project else FilePlace(settings)
        try:
            return command(place=place, settings=settings, **arguments)
        finally:
            place.close()

    return functools.update_wrapper(run, command)


@click.group(cls=_KeyCommands)
def keys() -> None:
    """Add, list, change and check Gemini API keys.

    They are those of this machine: changes go to POLLUX_KEYS_FILE if that is a keys.json, else to keys.json in the data
    folder; a running gateway takes them within two seconds. With --secrets PROJECT or POLLUX_SECRETS they are those in
    the Secret Manager of a Google Cloud project, where gateways see changes within a minute. Values are never shown.
    """


# --- add, edit, rotate ------------------------------------------------------------------------------------------------


@keys.command()
@click.argument("key_id", metavar="[ID]", required=False, type=_Text("id", id_fault))
@_details
@click.option("--no-check", is_flag=True, help="Do not ask Google about it.")
@model_option
@_in_place
def add(
    place: KeyPlace, settings: Settings, key_id: str | None, details: Mapping[str, Any], no_check: bool, model: str
) -> int:
    """Add a key; its value is read hidden.

    The value is asked for without echo, or is the first line of standard input. Then Google is asked about it with a
    free call. If Google refuses it, the key is added all the same, and the exit code is 1. Without ID it is called
    key-1, key-2, …
    """
    contents = place.read(writing=True)
    key_id = key_id or free_id("key-1", contents.ids)
    if key_id in contents.ids:
        if getattr(contents.unread.get(key_id), "kind", "") == "disabled":
            raise KeySourceError(
                f"{place.location(key_id)} has no value yet; put it there with: pollux keys rotate {key_id}"
            )
        taken = contents.entries[key_id].place if key_id in contents.entries else place.location(key_id)
        raise KeySourceError(f"the id {key_id!r} is taken, by {taken}")
    secret = ask_value(_to_compare(contents))
    _warn_if_doubted(key_id, secret)
    place.add(key_id, secret, details)
    print(f"added {key_id} ({secret.masked}) to {place.location(key_id)}")
    found = None if no_check else _asked(settings, model, key_id, secret)
    lifted = _forgiven(place, settings, key_id, found)
    code = _tell_of_new(place, settings, key_id, found)
    if lifted.simulated:
        note(f"the gateway at {settings.gateway_url} runs as a demo: it goes on simulating until it is started again")
    _warn_of_tiers(place, key_id)
    return code


@keys.command()
@key_id_argument
@_details
@click.option("--value", is_flag=True, help="Ask for a new value, hidden, or read it from standard input.")
@_in_place
def edit(place: KeyPlace, settings: Settings, key_id: str, details: Mapping[str, Any], value: bool) -> int:
    """Change a key's project, tier, limits or value.

    What is not named stays as it is. `none` removes a project, a tier, or the limits of a model.
    """
    if value and place.project:
        raise KeySourceError(f"a value in Secret Manager is changed with: pollux keys rotate {key_id}")
    if not details and not value:
        raise KeySourceError("nothing to change; name --project, --tier, --limit or --value")
    old, secret = None, None
    if value:
        old = place.value(key_id)
        secret = ask_value(_to_compare(place.read(writing=True), but=key_id))
    place.edit(key_id, details, secret)
    if secret:
        _forgiven(place, settings, key_id)
    print(f"changed {key_id} in {place.location(key_id)}")
    _warn_of_tiers(place, key_id)
    return _tell_of_copies(place, old, "the old")


@keys.command()
@key_id_argument
@click.option("--no-check", is_flag=True, help="Do not ask Google about the new value.")
@model_option
@_in_place
def rotate(place: KeyPlace, settings: Settings, key_id: str, no_check: bool, model: str) -> int:
    """Give a key a new value, after it answered.

    The value is read hidden or from standard input, and checked with a free call. If it does not answer, the old value
    stays and the exit code is 1. In Secret Manager the value becomes a new version, and the old versions are disabled
    after it answered.
    """
    with place.rotation(key_id) as rotation:
        old = place.value(key_id)
        contents = place.read(writing=True)
        secret = ask_value(_to_compare(contents, but=key_id), "New value of the key (not shown): ")
        _warn_if_doubted(key_id, secret)
        same = key_id in contents.entries and contents.entries[key_id].secret == secret
        offered = secret if same else rotation.offer(secret)
        found = None if no_check else _asked(settings, model, key_id, offered)
        if found is not None and found.state in REFUSED:
            kept = f"{key_id}, which is the same value; it" if same else f"the old value of {key_id}: {rotation.name}"
            print(f"kept {kept} is {found.state}: {found.reason}")
            return 1
        done = ": it is the same value" if same else rotation.keep()
    if rotation.warning:
        note(f"pollux keys: {rotation.warning}")
    _forgiven(place, settings, key_id, found)
    print(f"{'kept' if same else 'rotated'} {key_id} ({secret.masked}) in {place.location(key_id)}{done}")
    return 0 if same else _tell_of_copies(place, old, "the old")


# --- enable, disable, remove ------------------------------------------------------------------------------------------


@keys.command()
@key_id_argument
@_in_place
def enable(place: KeyPlace, settings: Settings, key_id: str) -> int:
    """Use a key again."""
    place.edit(key_id, {"enabled": True})
    _forgiven(place, settings, key_id)
    print(f"enabled {key_id}")
    return 0


@keys.command()
@key_id_argument
@_in_place
def disable(place: KeyPlace, settings: Settings, key_id: str) -> int:
    """Leave a key unused, but keep it."""
    place.edit(key_id, {"enabled": False})
    print(f"disabled {key_id}")
    return 0


@keys.command()
@key_id_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@_in_place
def remove(place: KeyPlace, settings: Settings, key_id: str, yes: bool) -> int:
    """Remove a key."""
    if not confirmed(place.question(key_id), yes=yes, undone="removed"):
        return 0
    old = place.value(key_id)
    place.remove(key_id)
    _forgiven(place, settings, key_id)  # another key may have this id one day
    print(f"removed {key_id} from {place.name}")
    return _tell_of_copies(place, old, "its")


# --- import -----------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    added: dict[str, Entry] = field(default_factory=dict)
    skipped: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that are there already, and the id they have there."""


def plan(
    entries: Iterable[Entry], owned: Mapping[Secret, str], known: Mapping[str, Secret], ids: Iterable[str] = ()
) -> Plan:
    """`owned`: what the place holds. `known`: all keys in use, from any source. `ids`: others that are taken.

    A key that is in use from another source keeps the id it has there, and with it its counters and cooldowns.
    """
    result = Plan()
    there = dict(owned)
    ids_of = {secret: key_id for key_id, secret in known.items()}
    for entry in entries:
        if entry.secret in there:
            result.skipped.append((entry, there[entry.secret]))
            continue
        taken = {key_id for key_id in {*ids, *known} if known.get(key_id) != entry.secret}
        key_id = free_id(ids_of.get(entry.secret, entry.id), taken | set(there.values()))
        result.added[key_id] = entry
        there[entry.secret] = key_id
    return result


@keys.command("import")
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@_in_place
def import_(place: KeyPlace, settings: Settings, file: str, dry_run: bool) -> int:
    """Take over the keys of a key.txt, .env or keys.json.

    FILE has one key a line, variables as in a .env, or is a keys.json. Tells what was added, what was there already,
    and what is not a key.
    """
    path = Path(file)
    found = parse(text_of(path), file, variables_here())
    contents = place.read(writing=True)
    known = {entry.id: entry.secret for entry in _to_compare(contents)}
    planned = plan(found.entries, contents.owned, known, contents.ids)
    with _told_of_each(planned.added, "would add" if dry_run else "added") as done:
        if dry_run:
            for key_id in planned.added:
                done(key_id)
        else:
            place.adopt(planned.added, done)
    for entry, key_id in planned.skipped:
        print(f"skipped {entry.place}: there already, as {key_id}")
    _tell_of_problems(found.problems, "not a key: ")
    print(
        f"{len(planned.added)} added{' (dry run)' if dry_run else ''}, {len(planned.skipped)} there already, "
        f"{len(found.problems)} not a key; {place.title}"
    )
    if found.entries and not dry_run and place.reads(path):
        what = f"the keys in {path}" if recognise(text_of(path), file) == "env" else file
        note(
            f"pollux keys: {path} is still read: what you remove or rotate from now on would go on serving from there. "
            f"DELETE {what}"
        )
    return 0


@contextmanager
def _told_of_each(added: Mapping[str, Entry], done: str) -> Iterator[Callable[[str], None]]:
    """Prints a line for each key that is added. While a bar is shown, the lines wait for its end."""
    waiting: list[str] = []

    def tell(key_id: str) -> None:
        entry = added[key_id]
        renamed = "" if key_id == entry.id else f", where it is {entry.id}"
        line = f"{done} {key_id} ({entry.secret.masked}) of {entry.place}{renamed}"
        if shows_progress(len(added)):
            waiting.append(line)
        else:
            print(line, flush=True)
        step()

    try:
        with progress(len(added), "adding keys") as step:
            yield tell
    finally:
        for line in waiting:
            print(line)


# --- list, check ------------------------------------------------------------------------------------------------------


@keys.command("list")
@json_option
@_in_place
def list_(place: KeyPlace, settings: Settings, as_json: bool) -> int:
    """Show id, project, tier, masked value, source and health."""
    health = read_health(settings, place.project)
    contents = place.read()
    rows = [_row(key, contents.entries[key.id]) | {"health": state_of(key, health)} for key in contents.keys]
    if as_json:
        show_json({"keys": rows, "problems": _listed(contents.problems), "notices": _listed(contents.notices)})
        return 0
    show_table(
        ("ID", "PROJECT", "TIER", "VALUE", "SOURCE", "HEALTH"),
        [
            (
                r["id"],
                r["project"],
                r["tier"] or "-",
                r["masked"],
                r["source"],
                state_in_words(r["health"], r["enabled"]),
            )
            for r in rows
        ],
    )
    if not rows:
        note(f"no keys; add one with: pollux keys add{place.where}")
    _tell_of_problems(contents.problems, "not used: ")
    _tell_of_problems(contents.notices, "note: ")
    _warn_of_tiers_among(contents.keys)
    return 0


def _row(key: Key, entry: Entry) -> dict[str, Any]:
    shown = {"id": key.id, "project": key.project, "tier": key.tier, "masked": entry.secret.masked}
    return shown | {"source": entry.place, "enabled": key.enabled}


@keys.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@model_option
@json_option
@_in_place
def check(place: KeyPlace, settings: Settings, ids: tuple[str, ...], model: str, as_json: bool) -> int:
    """Ask Google about each key, with a free call.

    The call is countTokens, which needs no quota. Without ID all keys are asked about that are enabled. What a running
    gateway, or the store, holds against healthy keys ends. The exit code is 1 if any key is not healthy.
    """
    contents = place.read(lambda key: key.id in ids if ids else key.enabled)
    known = {key.id: key for key in contents.keys}
    for key_id in ids:
        if key_id not in known:
            raise no_such_key(key_id, known, place.where)
    entries = contents.entries
    if not entries:
        raise KeySourceError(f"no keys to check; add one with: pollux keys add{place.where}")
    asked = {key_id: entry.secret for key_id, entry in entries.items() if key_id not in contents.unread}
    with progress(len(asked), "checking keys") as step:
        found = asyncio.run(probe(asked, upstream=settings.upstream, model=model, done=step))
    found |= {key_id: Finding("unreadable", str(error)) for key_id, error in contents.unread.items()}
    findings = {key_id: found[key_id] for key_id in entries}
    healthy = {key_id: known[key_id].project for key_id, finding in findings.items() if finding.state == "healthy"}
    refused = {key_id: finding.cause for key_id, finding in findings.items() if finding.state == "invalid"}
    if as_json:
        show_json(
            {
                "keys": [
                    {"id": key_id, "masked": entries[key_id].secret.masked, "state": f.state, "reason": f.reason}
                    for key_id, f in findings.items()
                ]
            }
        )
    else:
        show_table(
            ("ID", "VALUE", "STATE", "REASON"),
            [(key_id, entries[key_id].secret.masked, f.state, f.reason) for key_id, f in findings.items()],
        )
    lifted = asyncio.run(lift(settings, place.project, healthy, well=True))
    asyncio.run(leave_aside(settings, place.project, refused))
    if lifted.ended and not as_json:
        print(f"lifted: {', '.join(lifted.ended)}")
    health = read_health(settings, place.project)
    named_free = {known[key_id].project for key_id, finding in findings.items() if finding.tier == "free"}
    free = named_free | set(lifted.free) | set((health or {}).get("free", {}))
    _tell_of_free_quota([known[key_id] for key_id in findings], free, place.where)
    return int(len(healthy) < len(findings))


# --- what the commands say --------------------------------------------------------------------------------------------


def _to_compare(contents: Contents, but: str = "") -> list[Entry]:
    """What a new value is compared with. Tells which keys cannot be compared; those without a value need not be."""
    for error in contents.unread.values():
        if getattr(error, "kind", "") != "disabled":
            note(f"pollux keys: not compared with one that is there: {error}")
    unread = contents.unread
    return [entry for key_id, entry in contents.entries.items() if key_id not in unread and key_id != but]


def _asked(settings: Settings, model: str, key_id: str, secret: Secret) -> Finding:
    return asyncio.run(probe({key_id: secret}, upstream=settings.upstream, model=model))[key_id]


def _forgiven(place: KeyPlace, settings: Settings, key_id: str, found: Finding | None = None) -> Lifted:
    """What was held against the key before ends, in gateways that run and those that start later."""
    well = found is not None and found.state in ("healthy", "no quota")
    return asyncio.run(forgive(settings, place.project, key_id, well=well))


def _warn_if_doubted(key_id: str, secret: Secret) -> None:
    if doubt := value_doubt(secret.reveal()):
        note(f"pollux keys: warning: {key_id}: {doubt}")


def _tell_of_new(place: KeyPlace, settings: Settings, key_id: str, found: Finding | None) -> int:
    """Says what Google said of a key that was added. Returns the exit code."""
    named = f"{shlex.quote(key_id)}{place.where}"
    if found is None:
        print(f"not checked; to ask Google about it: pollux keys check {named}")
    elif found.state == "healthy":
        print("checked: Google takes it")
    elif found.state == "no quota":
        print(f"checked: Google takes it, but its project has no quota now: {found.reason}")
    elif found.state == "invalid":
        told = asyncio.run(leave_aside(settings, place.project, {key_id: found.cause}))
        known = (
            "gateways leave it aside, and ask about it again, until Google takes it"
            if told
            else "gateways were not told: each leaves it aside once Google refused a request with it"
        )
        note(
            f"pollux keys: GOOGLE REFUSES {key_id}: {found.reason.rstrip('.')}. It is added, and {known}; "
            f"give it another value with: pollux keys rotate {named}"
        )
        return 1
    else:
        note(
            f"pollux keys: could not be checked ({found.state}: {found.reason}); "
            f"ask again with: pollux keys check {named}"
        )
    return 0


def _tell_of_copies(place: KeyPlace, secret: Secret | None, whose: str) -> int:
    """Where a value that was given up still is. 1 if it goes on serving from there: it may be one that leaked."""
    if secret is None:
        return 0
    try:
        copies, serving = place.copies(secret)
    except KeySourceError as error:
        note(f"pollux keys: not known whether {whose} value is in another source too: {error}")
        return 1
    if not copies:
        return 0
    serves = f"where it GOES ON SERVING, as {serving!r}: " if serving else "where it does not serve now: "
    places = " and ".join(copy.place for copy in copies)
    where = "that line" if len(copies) == 1 and copies[0].line else "it there"
    note(f"pollux keys: {whose} value is still in {places}, {serves}delete {where}")
    return int(serving is not None)


def _tell_of_free_quota(checked: Iterable[Key], free: set[str], where: str) -> None:
    """Which projects Google counts on the free quota."""
    firsts: dict[str, Key] = {}
    for key in checked:
        firsts.setdefault(key.project, key)
    seen = [key for project, key in firsts.items() if project in free]
    if paid := {key.project: key.tier for key in seen if key.tier not in (None, "free")}:
        note(f"note: {free_quota(paid)}")
    if untold := [key for key in seen if key.tier is None]:
        note(
            f"note: on the free quota: {', '.join(key.project for key in untold)}; if that is meant, say so: pollux "
            f"keys edit {shlex.quote(untold[0].id)} --tier free{where}{', …' * (len(untold) > 1)}; if not, look at the "
            "plan in AI Studio"
        )


def _warn_of_tiers(place: KeyPlace, key_id: str) -> None:
    """Of the project of a key that was changed."""
    keys = place.read(lambda _: False).keys
    project = next((key.project for key in keys if key.id == key_id), None)
    _warn_of_tiers_among(key for key in keys if key.project == project)


def _warn_of_tiers_among(keys: Iterable[Key]) -> None:
    """Which keys name a tier that does not count, because the first key of the project names another."""
    firsts: dict[str, Key] = {}
    for key in keys:
        first = firsts.setdefault(key.project, key)
        if key.tier != first.tier:
            note(
                f"warning: {key.id} ({key.tier or 'no tier'}) and {first.id} ({first.tier or 'no tier'}) are of one "
                f"project, {key.project}: what {first.id} says counts, because it is the first"
            )


def _tell_of_problems(problems: Iterable[Problem], what: str) -> None:
    for problem in problems:
        note(f"{what}{problem}")


def _listed(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [{"file": problem.file, "line": problem.line, "reason": problem.reason} for problem in problems]
