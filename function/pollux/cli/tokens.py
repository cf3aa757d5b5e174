"""`pollux tokens …`: the tokens that clients call with. A token is only shown when it is made."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.backends.keys.places import SecretManager
from pollux.backends.keys.records import ADMIN_TOKEN, NAME_RULE, OURS, TOKEN, TOKEN_NAME, foreign, is_ours, token_name
from pollux.backends.keys.secrets_api import SecretError, SecretInfo, Version, known_as
from pollux.backends.keys.tokens import NAMED, greeting, new_token
from pollux.cli.gateway import tokens_file
from pollux.cli.terminal import Commands, confirmed, json_option, note, secrets_option, show_json, show_table
from pollux.settings import Settings

AT_ONCE = 8
LoadSettings = Callable[[], Settings]


@click.group(cls=Commands)
def tokens() -> None:
    """Make, list and revoke the tokens that clients call with.

    They are in the Secret Manager of a Google Cloud project, in the secrets pollux-token-NAME and pollux-admin-token.
    Every enabled version is valid. Running gateways see a change within a minute.
    """


def _checked_name(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name is not None and not TOKEN_NAME.fullmatch(name):
        raise click.BadParameter(NAME_RULE)
    return name


name_argument = click.argument("name", metavar="[NAME]", required=False, callback=_checked_name)
admin_option = click.option("--admin", is_flag=True, help="The token of /admin instead of a client's.")


@tokens.command()
@name_argument
@admin_option
@click.option(
    "--url", default="https://GATEWAY", show_default=True, help="The gateway's address, for the lines to paste."
)
@click.option("--raw", is_flag=True, help="Print only the token, for a pipe.")
@secrets_option
@click.pass_obj
def add(load: LoadSettings, name: str | None, admin: bool, url: str, raw: bool, secrets: str | None) -> int:
    """Make a token and show it once.

    It is printed as shell lines that configure an SDK. If the client has a token already, both are valid: move the
    client over, then revoke the old one.
    """
    with _secret_manager(load(), secrets) as google:
        secret = _secret_of(name, admin)
        token = new_token()
        try:
            number, made = google.run(google.create(secret, OURS, {}, Secret(token))), True
        except SecretError as error:
            if error.kind != "exists":
                raise
            number, made = google.run(google.api.add_version(secret, Secret(token))), False
        note(f"made version {number} of secret {secret} of {google.project}; it is shown only now:")
        lines = f"export POLLUX_ADMIN_TOKEN={token}" if admin else greeting(token, url)
        print(token if raw else lines, flush=True)
        note("gateways accept it within a minute")
        beside = [] if made else [n for n in _valid(google, secret) if n != number]
        if beside:
            revoke = f"pollux tokens revoke {'--admin' if admin else name} --version N --secrets {google.project}"
            note(f"valid beside it: version {_numbers(beside)}, until: {revoke}")
    return 0


@tokens.command("list")
@json_option
@secrets_option
@click.pass_obj
def list_(load: LoadSettings, as_json: bool, secrets: str | None) -> int:
    """Show the name, version and date of each token, never the token itself."""
    settings = load()
    if not (secrets or settings.secrets):
        return _list_of_this_machine(settings, as_json=as_json)
    with _secret_manager(settings, secrets) as google:
        found = google.run(_versions(google))
        rows: list[dict[str, Any]] = [
            {"name": token_name(info) or "admin", "admin": not token_name(info), "version": v.number, "created": v.made}
            for info, versions in found
            for v in sorted(versions)
        ]
        if as_json:
            show_json({"tokens": rows})
            return 0
        show_table(
            ("NAME", "FOR", "VERSION", "CREATED"),
            [(r["name"], "/admin" if r["admin"] else "clients", str(r["version"]), _day(r["created"])) for r in rows],
        )
        for info, versions in found:
            if not versions:
                note(f"note: secret {info.name} has no valid version")
        if not rows:
            note(f"no tokens; make one with: pollux tokens add NAME --secrets {google.project}")
    return 0


async def _versions(google: SecretManager) -> list[tuple[SecretInfo, list[Version]]]:
    infos = [info for info in await google.api.secrets(TOKEN, ADMIN_TOKEN) if token_name(info) is not None]
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(info: SecretInfo) -> tuple[SecretInfo, list[Version]]:
        async with turn:
            return info, await google.api.versions(info.name)

    return await asyncio.gather(*map(one, infos))


def _list_of_this_machine(settings: Settings, *, as_json: bool) -> int:
    """Where the tokens come from: settings, or a file."""
    path = tokens_file(settings)
    made = str(path) if path.exists() else f"{path}, made at the next start"
    client = "POLLUX_TOKEN" if settings.token else made
    admin = "POLLUX_ADMIN_TOKEN" if settings.admin_token else made
    if as_json:
        show_json({"tokens": [{"name": "client", "source": client}, {"name": "admin", "source": admin}]})
        return 0
    names = [
        named[1] if (named := NAMED.fullmatch(written)) else f"client-{place}"
        for place, written in enumerate(settings.token, 1)
    ]
    if names:
        client += f" ({len(names)}: {', '.join(names)})"
    show_table(("FOR", "SOURCE"), [("clients", client), ("/admin", admin)])
    return 0


@tokens.command()
@name_argument
@admin_option
@click.option("--version", type=int, metavar="N", help="Only this version.")
@click.option("--all", "every", is_flag=True, help="Every version.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@secrets_option
@click.pass_obj
def revoke(
    load: LoadSettings, name: str | None, admin: bool, version: int | None, every: bool, yes: bool, secrets: str | None
) -> int:
    """Revoke a token.

    Its version is destroyed, so that it cannot be enabled again. With the last version the client's secret is removed.
    """
    if version is not None and every:
        raise click.UsageError("use --version N or --all, not both")
    with _secret_manager(load(), secrets) as google:
        secret = _secret_of(name, admin)
        with known_as("admin token" if admin else f"token {name!r}", google.project):
            info = google.run(google.api.secret(secret))
        valid = _valid(google, secret)
        chosen = _chosen(secret, valid, version, every=every)
        last = set(chosen) == set(valid)
        deleted = last and is_ours(info)
        if not chosen and not deleted:
            raise KeySourceError(f"secret {secret} has no valid version")
        question = f"Revoke version {_numbers(chosen)} of secret {secret} of {google.project}, for ever?"
        if last:
            who = "the admin" if admin else name
            question += f" It is the only one: {who} cannot call any more.{foreign(info)}"
        if not confirmed(question, yes=yes, undone="revoked"):
            return 0
        for number in chosen:
            google.run(google.api.destroy(secret, number))
        if deleted:  # somebody may have made a token while the question was open
            made = [number for number in _valid(google, secret) if number not in chosen]
            if made:
                note(f"secret {secret} stays: version {_numbers(made)} became valid meanwhile")
            else:
                google.run(google.api.delete(secret))
            if made and not chosen:
                return 0
        done = f"revoked version {_numbers(chosen)} of secret {secret}" if chosen else f"removed secret {secret}"
        print(f"{done}; gateways refuse it within a minute")
    return 0


def _chosen(secret: str, valid: list[int], version: int | None, *, every: bool) -> list[int]:
    if version is not None:
        if version not in valid:
            raise KeySourceError(f"version {version} of secret {secret} is not valid; see: pollux tokens list")
        return [version]
    if every or len(valid) < 2:
        return sorted(valid)
    raise KeySourceError(f"secret {secret} has the valid versions {_numbers(valid)}: use --version N, or --all")


@contextmanager
def _secret_manager(settings: Settings, secrets: str | None) -> Iterator[SecretManager]:
    project = secrets or settings.secrets
    if not project:
        raise KeySourceError(
            f"without --secrets PROJECT (or POLLUX_SECRETS) tokens come from POLLUX_TOKEN, POLLUX_ADMIN_TOKEN and "
            f"{tokens_file(settings)}: set them there; if you delete the file, the next start makes new ones"
        )
    google = SecretManager(project)
    try:
        yield google
    finally:
        google.close()


def _secret_of(name: str | None, admin: bool) -> str:
    if admin:
        return ADMIN_TOKEN
    if not name:
        raise KeySourceError("whose token? Name the client, or use --admin")
    return TOKEN + name


def _valid(google: SecretManager, secret: str) -> list[int]:
    return [version.number for version in google.run(google.api.versions(secret))]


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions)))


def _day(made: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(made))
