"""`pollux keys …`: commands over a `KeyPlace`. A value is never taken from the command line, and never shown."""

import asyncio
import functools
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import (
    LIMITS,
    Entry,
    id_fault,
    limits_fault,
    project_fault,
    text_of,
    tier_fault,
    value_doubt,
)
from pollux.backends.keys.files import parse, recognise
from pollux.backends.keys.local import free_id
from pollux.backends.keys.places import (
    Contents,
    FilePlace,
    KeyPlace,
    SecretManagerPlace,
    no_such_key,
    variables_here,
)
from pollux.backends.keys.probe import MODEL, REFUSED, TIMEOUT_S, Finding, probe
from pollux.cli.gateway import http_options
from pollux.cli.key_health import Lifted, in_words, leave_aside, lift, read_health, state_of
from pollux.cli.terminal import (
    Commands,
    ask_value,
    confirmed,
    json_option,
    note,
    progress,
    secrets_option,
    show_json,
    show_table,
    tell,
)
from pollux.pool.health import free_quota
from pollux.settings import Settings

NO_VALUE = (
    "a key's value is not given on the command line, where the shell's history and every process can read it; "
    "it is asked for, or read from standard input: pollux keys add ID < FILE"
)


# --- arguments and options --------------------------------------------------------------------------------------------


class _Careful(click.Command):
    """Does not repeat an unknown argument: it may be a key."""

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


def _without_fault(fault_of: Callable[[Any], str | None], *, none: bool = False) -> Callable[..., Any]:
    """A click callback that refuses a text with a fault. `none`: the word none is allowed, and removes."""

    def check(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
        if text is not None and not (none and text == "none") and (fault := fault_of(text)):
            raise click.BadParameter(fault)
        return text

    return check


def _limits(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, dict[str, int] | None]:
    """Reads MODEL:rpm=5,tpm=250000, or rpm=5 for every model, or MODEL:none."""
    limits: dict[str, dict[str, int] | None] = {}
    for text in texts:
        model, colon, written = text.rpartition(":")
        parts = [part.partition("=") for part in written.split(",")]
        if written == "none" and colon:
            limits[model] = None
            continue
        if not all(number.strip().isdecimal() for _, _, number in parts):
            raise click.BadParameter("expected MODEL:rpm=5,tpm=250000")
        named = {(model if colon else "*"): {name.strip(): int(number) for name, _, number in parts}}
        if fault := limits_fault(named):
            raise click.BadParameter(fault)
        limits |= named
    return limits


key_id_argument = click.argument("key_id", metavar="ID")
model_option = click.option("--model", default=MODEL, show_default=True, help="The model to ask about.")


def _details(command: Callable[..., int]) -> Callable[..., int]:
    """Adds --project, --tier and --limit, which the command gets as one argument `details`. `none` becomes None."""

    @click.option(
        "--project",
        metavar="P",
        callback=_without_fault(project_fault, none=True),
        help="The Google Cloud project that owns the quota; none removes it.",
    )
    @click.option(
        "--tier",
        metavar="T",
        callback=_without_fault(tier_fault, none=True),
        help="free, tier1, tier2 or tier3; none removes it.",
    )
    @click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="MODEL:rpm=5,tpm=250000",
        callback=_limits,
        help=f"Your own limits for a model, or * for all models: {', '.join(LIMITS)}. 0: not available. MODEL:none "
        "removes them. Repeatable.",
    )
    @functools.wraps(command)
    def run(project: str | None, tier: str | None, limits: Mapping[str, Any], **arguments: Any) -> int:
        named = {"project": project, "tier": tier, "limits": limits or None}
        details = {name: None if text == "none" else text for name, text in named.items() if text is not None}
        return command(details=details, **arguments)

    return run


def _in_place(command: Callable[..., int]) -> Callable[..., int]:
    """Adds --secrets. The command gets the arguments `place` and `settings`."""

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

    By default these are the keys of this machine. Changes go to POLLUX_KEYS_FILE if that is a keys.json, else to
    keys.json in the data folder; a running gateway sees them within two seconds. With --secrets PROJECT or
    POLLUX_SECRETS these are the keys in the Secret Manager of a Google Cloud project, where gateways see changes within
    a minute. Values are never shown.
    """


# --- add, edit, rotate ------------------------------------------------------------------------------------------------


@keys.command()
@click.argument("key_id", metavar="[ID]", required=False, callback=_without_fault(id_fault))
@_details
@click.option("--no-check", is_flag=True, help="Do not ask Google about it.")
@model_option
@_in_place
def add(
    place: KeyPlace, settings: Settings, key_id: str | None, details: Mapping[str, Any], no_check: bool, model: str
) -> int:
    """Add a key; its value is read hidden.

    You are asked for the value, without echo, or it is the first line of standard input. Then a free call asks Google
    about it. If Google refuses it, the key is added all the same, and the exit code is 1. Without ID it is called
    key-1, key-2, …
    """
    contents = place.read(writing=True)
    key_id = key_id or free_id("key-1", contents.ids)
    if key_id in contents.ids:
        if getattr(contents.unread.get(key_id), "kind", "") == "disabled":
            location = place.location(key_id)
            raise KeySourceError(f"{location} has no value yet; add one with: pollux keys rotate {key_id}")
        taken = contents.entries[key_id].where if key_id in contents.entries else place.location(key_id)
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
    _warn_of_tiers_beside(place, key_id)
    return code


@keys.command()
@key_id_argument
@_details
@click.option("--value", is_flag=True, help="Ask for a new value, hidden, or read it from standard input.")
@_in_place
def edit(place: KeyPlace, settings: Settings, key_id: str, details: Mapping[str, Any], value: bool) -> int:
    """Change a key's project, tier, limits or value.

    Other details stay as they are. `none` removes a project, a tier, or the limits of a model.
    """
    if value and place.project:
        raise KeySourceError("a value in Secret Manager is changed with: pollux keys rotate ID")
    if not details and not value:
        raise KeySourceError("nothing to change; name --project, --tier, --limit or --value")
    old, secret = None, None
    if value:
        place.require(key_id)
        old = place.replaced_value(key_id)
        secret = ask_value(_to_compare(place.read(writing=True), but=key_id))
    place.edit(key_id, details, secret)
    if secret:
        _forgiven(place, settings, key_id)
    print(f"changed {key_id} in {place.location(key_id)}")
    _warn_of_tiers_beside(place, key_id)
    return _tell_of_copies(place, old, "the old")


@keys.command()
@key_id_argument
@click.option("--no-check", is_flag=True, help="Do not ask Google about the new value.")
@model_option
@_in_place
def rotate(place: KeyPlace, settings: Settings, key_id: str, no_check: bool, model: str) -> int:
    """Give a key a new value, if Google accepts it.

    The value is read hidden or from standard input, and checked with a free call. If Google does not accept it, the old
    value stays and the exit code is 1. In Secret Manager the value becomes a new version, and the old versions are
    disabled after the check.
    """
    place.require(key_id)
    old = place.replaced_value(key_id)
    contents = place.read(writing=True)
    secret = ask_value(_to_compare(contents, but=key_id), "New value of the key (not shown): ")
    _warn_if_doubted(key_id, secret)
    same = key_id in contents.entries and contents.entries[key_id].secret == secret
    found: Finding | None = None

    def accepted(value: Secret, name: str) -> bool:
        nonlocal found
        found = None if no_check else _asked(settings, model, key_id, value)
        if found is None or found.state not in REFUSED:
            return True
        kept = f"{key_id}, which is the same value; it" if same else f"the old value of {key_id}: {name}"
        print(f"kept {kept} is {found.state}: {found.reason}")
        return False

    if same:
        replaced = (": it is the same value", "") if accepted(secret, "") else None
    else:
        replaced = place.replace(key_id, secret, accepted)
    if replaced is None:
        return 1
    done, warning = replaced
    if warning:
        note(f"pollux keys: {warning}")
    _forgiven(place, settings, key_id, found)
    print(f"{'kept' if same else 'rotated'} {key_id} ({secret.masked}) in {place.location(key_id)}{done}")
    return 0 if same else _tell_of_copies(place, old, "the old")


# --- enable, disable, remove ------------------------------------------------------------------------------------------


@keys.command()
@key_id_argument
@_in_place
def enable(place: KeyPlace, settings: Settings, key_id: str) -> int:
    """Enable a key again."""
    place.edit(key_id, {"enabled": True})
    _forgiven(place, settings, key_id)
    print(f"enabled {key_id}")
    return 0


@keys.command()
@key_id_argument
@_in_place
def disable(place: KeyPlace, settings: Settings, key_id: str) -> int:
    """Stop using a key, but keep it."""
    place.edit(key_id, {"enabled": False})
    print(f"disabled {key_id}")
    return 0


@keys.command()
@key_id_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_in_place
def remove(place: KeyPlace, settings: Settings, key_id: str, yes: bool) -> int:
    """Remove a key."""
    if not confirmed(place.question(key_id), yes=yes, undone="removed"):
        return 0
    old = place.replaced_value(key_id)
    place.remove(key_id)
    _forgiven(place, settings, key_id)  # another key may have this id one day
    print(f"removed {key_id} from {place.name}")
    return _tell_of_copies(place, old, "its")


# --- import -----------------------------------------------------------------------------------------------------------


def plan(
    entries: Iterable[Entry], owned: Mapping[Secret, str], known: Mapping[str, Secret], ids: Iterable[str] = ()
) -> tuple[dict[str, Entry], list[tuple[Entry, str]]]:
    """The entries to add, by their new ids; and those whose value is in the place already, with the id it has there.

    `owned`: the values in the place. `known`: all keys in use, from any source. `ids`: other ids that are taken. A key
    that another source already provides keeps its id there, and so its counters and cooldowns.
    """
    added: dict[str, Entry] = {}
    skipped: list[tuple[Entry, str]] = []
    there = dict(owned)
    ids_of = {secret: key_id for key_id, secret in known.items()}
    for entry in entries:
        if entry.secret in there:
            skipped.append((entry, there[entry.secret]))
            continue
        taken = {key_id for key_id in {*ids, *known} if known.get(key_id) != entry.secret}
        key_id = free_id(ids_of.get(entry.secret, entry.id), taken | set(there.values()))
        added[key_id] = entry
        there[entry.secret] = key_id
    return added, skipped


@keys.command("import")
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@_in_place
def import_(place: KeyPlace, settings: Settings, file: str, dry_run: bool) -> int:
    """Copy the keys of a key.txt, .env or keys.json.

    FILE has one key a line, variables as in a .env, or is a keys.json. The output lists what was added, what was there
    already, and what is not a key.
    """
    path = Path(file)
    found = parse(text_of(path), file, variables_here(settings.environ))
    contents = place.read(writing=True)
    known = {entry.id: entry.secret for entry in _to_compare(contents)}
    added, skipped = plan(found.entries, contents.owned, known, contents.ids)
    done: list[str] = []
    try:
        with progress(len(added), "adding keys") as step:
            for key_id in added if dry_run else place.adopt(added):
                done.append(key_id)
                step()
    finally:  # an import that failed has added these
        for key_id in done:
            entry = added[key_id]
            renamed = "" if key_id == entry.id else f", where it is {entry.id}"
            print(f"{'would add' if dry_run else 'added'} {key_id} ({entry.secret.masked}) of {entry.where}{renamed}")
    for entry, key_id in skipped:
        print(f"skipped {entry.where}: there already, as {key_id}")
    tell("not a key: ", found.problems)
    dry = " (dry run)" if dry_run else ""
    print(f"{len(added)} added{dry}, {len(skipped)} there already, {len(found.problems)} not a key; {place.title}")
    if found.entries and not dry_run and place.reads(path):
        what = f"the keys in {path}" if recognise(text_of(path), file) == "env" else file
        note(
            f"pollux keys: {path} is still read: a key that you remove or rotate later would go on serving from there. "
            f"DELETE {what}"
        )
    return 0


# --- list, check ------------------------------------------------------------------------------------------------------


@keys.command("list")
@json_option
@_in_place
def list_(place: KeyPlace, settings: Settings, as_json: bool) -> int:
    """Show id, project, tier, masked value, source and health."""
    health = read_health(settings, place.project)
    contents = place.read()
    shown = [(key, contents.entries[key.id], state_of(key, health)) for key in contents.keys]
    if as_json:
        rows = [
            {"id": key.id, "project": key.project, "tier": key.tier, "masked": entry.secret.masked}
            | {"source": entry.where, "enabled": key.enabled, "health": state}
            for key, entry, state in shown
        ]
        problems, notices = ([asdict(one) for one in found] for found in (contents.problems, contents.notices))
        show_json({"keys": rows, "problems": problems, "notices": notices})
        return 0
    show_table(
        ("ID", "PROJECT", "TIER", "VALUE", "SOURCE", "HEALTH"),
        [
            (key.id, key.project, key.tier or "-", entry.secret.masked, entry.where, in_words(state, key.enabled))
            for key, entry, state in shown
        ],
    )
    if not shown:
        note(f"no keys; add one with: pollux keys add{place.where}")
    tell("not used: ", contents.problems)
    tell("note: ", contents.notices)
    _warn_of_tiers(contents.keys)
    return 0


@keys.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@model_option
@json_option
@_in_place
def check(place: KeyPlace, settings: Settings, ids: tuple[str, ...], model: str, as_json: bool) -> int:
    """Ask Google about each key, with a free call.

    The call is countTokens, which needs no quota. Without ID all enabled keys are checked. Whatever a running gateway
    or the store holds against a healthy key is lifted. The exit code is 1 if any key is not healthy.
    """
    contents = place.read(lambda key: key.id in ids if ids else key.enabled)
    known = {key.id: key for key in contents.keys}
    for key_id in ids:
        if key_id not in known:
            raise no_such_key(key_id, known, place.where)
    if not contents.entries:
        raise KeySourceError(f"no keys to check; add one with: pollux keys add{place.where}")
    asked = {key_id: entry.secret for key_id, entry in contents.entries.items() if key_id not in contents.unread}
    with progress(len(asked), "checking keys") as step:
        found = _probed(settings, model, asked, step)
    found |= {key_id: Finding("unreadable", str(error)) for key_id, error in contents.unread.items()}
    rows = [(key_id, entry.secret.masked, found[key_id]) for key_id, entry in contents.entries.items()]
    if as_json:
        named = [{"id": key_id, "masked": masked, "state": f.state, "reason": f.reason} for key_id, masked, f in rows]
        show_json({"keys": named})
    else:
        show_table(("ID", "VALUE", "STATE", "REASON"), [(i, masked, f.state, f.reason) for i, masked, f in rows])
    healthy = {key_id: known[key_id].project for key_id, f in found.items() if f.state == "healthy"}
    lifted = asyncio.run(lift(settings, place.project, healthy, well=True))
    refused = {key_id: f.cause for key_id, f in found.items() if f.state == "invalid"}
    asyncio.run(leave_aside(settings, place.project, refused))
    if lifted.ended and not as_json:
        print(f"lifted: {', '.join(lifted.ended)}")
    free = {known[key_id].project for key_id, f in found.items() if f.tier == "free"} | set(lifted.free)
    free |= set((read_health(settings, place.project) or {}).get("free", {}))
    _tell_of_free_quota([known[key_id] for key_id in contents.entries], free, place.where)
    return int(len(healthy) < len(found))


# --- shared by the commands -------------------------------------------------------------------------------------------


def _to_compare(contents: Contents, but: str = "") -> list[Entry]:
    """The entries that a new value is compared with. Prints which ones cannot be read."""
    for error in contents.unread.values():
        if getattr(error, "kind", "") != "disabled":
            note(f"pollux keys: the new value is not compared with every key: {error}")
    unread = contents.unread
    return [entry for key_id, entry in contents.entries.items() if key_id not in unread and key_id != but]


def _asked(settings: Settings, model: str, key_id: str, secret: Secret) -> Finding:
    return _probed(settings, model, {key_id: secret})[key_id]


def _probed(
    settings: Settings, model: str, secrets: Mapping[str, Secret], done: Callable[[], None] = lambda: None
) -> dict[str, Finding]:
    import httpx2  # here, so that commands without a network start fast

    async def probed() -> dict[str, Finding]:
        async with httpx2.AsyncClient(**http_options(settings.upstream), timeout=TIMEOUT_S) as http:
            return await probe(secrets, http, upstream=settings.upstream, model=model, done=done)

    return asyncio.run(probed())


def _forgiven(place: KeyPlace, settings: Settings, key_id: str, found: Finding | None = None) -> Lifted:
    """The key has a new value, or is used again: what was held against it does not hold any more."""
    well = found is not None and found.state in ("healthy", "no quota")
    return asyncio.run(lift(settings, place.project, {key_id: None}, well=well))


def _warn_if_doubted(key_id: str, secret: Secret) -> None:
    if doubt := value_doubt(secret.reveal()):
        note(f"pollux keys: warning: {key_id}: {doubt}")


def _tell_of_new(place: KeyPlace, settings: Settings, key_id: str, found: Finding | None) -> int:
    """Prints what Google said about a new key. Returns the exit code."""
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
    """Prints where else a replaced value is. Returns 1 if it is still in use there: it may have leaked."""
    if secret is None:
        return 0
    try:
        copies, serving = place.copies(secret)
    except KeySourceError as error:
        note(f"pollux keys: {whose} value may still be in another source, which cannot be read: {error}")
        return 1
    if not copies:
        return 0
    serves = f"where it GOES ON SERVING, as {serving!r}: " if serving else "where it does not serve now: "
    places = " and ".join(copy.where for copy in copies)
    where = "that line" if len(copies) == 1 and copies[0].line else "it there"
    note(f"pollux keys: {whose} value is still in {places}, {serves}delete {where}")
    return int(serving is not None)


def _tell_of_free_quota(checked: Iterable[Key], free: set[str], where: str) -> None:
    """Prints which projects have only the free quota."""
    firsts: dict[str, Key] = {}
    for key in checked:
        firsts.setdefault(key.project, key)
    seen = [key for project, key in firsts.items() if project in free]
    if paid := {key.project: key.tier for key in seen if key.tier not in (None, "free")}:
        note(f"note: {free_quota(paid)}")
    if untold := [key for key in seen if key.tier is None]:
        note(
            f"note: on the free quota: {', '.join(key.project for key in untold)}; if that is right, run: pollux "
            f"keys edit {shlex.quote(untold[0].id)} --tier free{where}{', …' * (len(untold) > 1)}; if not, look at the "
            "plan in AI Studio"
        )


def _warn_of_tiers_beside(place: KeyPlace, key_id: str) -> None:
    """Like `_warn_of_tiers`, for the project of this key alone."""
    keys = place.read(lambda _: False).keys
    project = next((key.project for key in keys if key.id == key_id), None)
    _warn_of_tiers(key for key in keys if key.project == project)


def _warn_of_tiers(keys: Iterable[Key]) -> None:
    """Prints which keys have a tier that does not count, because the first key of the project has another."""
    firsts: dict[str, Key] = {}
    for key in keys:
        first = firsts.setdefault(key.project, key)
        if key.tier != first.tier:
            note(
                f"warning: {key.id} ({key.tier or 'no tier'}) and {first.id} ({first.tier or 'no tier'}) are of one "
                f"project, {key.project}: what {first.id} says counts, because it is the first"
            )
