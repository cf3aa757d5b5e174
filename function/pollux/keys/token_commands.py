"""What `pollux tokens …` does. A token is shown once, when it is made, and never again."""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pollux.auth import _new_token, greeting
from pollux.keys import KeySourceError, Secret
from pollux.keys.records import ADMIN_TOKEN, OURS, TOKEN, TOKEN_NAME, foreign, token_name
from pollux.keys.secrets_api import SecretError, SecretsApi, Version, known_as
from pollux.keys.terminal import confirmed, table
from pollux.settings import Settings


class Tokens:
    """The tokens in one project's Secret Manager."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.api = SecretsApi(project)

    def secret_of(self, namespace: argparse.Namespace) -> str:
        if namespace.admin:
            return ADMIN_TOKEN
        if not namespace.name:
            raise KeySourceError("whose token? Name the client, or say --admin")
        return TOKEN + str(namespace.name)


async def add(namespace: argparse.Namespace, tokens: Tokens) -> int:
    name = tokens.secret_of(namespace)
    made = await _created(tokens, name)
    token = _new_token()
    try:
        number = await tokens.api.add_version(name, Secret(token))
    except BaseException:
        if made:
            with suppress(SecretError):
                await tokens.api.delete(name)
        raise
    print(f"made version {number} of secret {name} of {tokens.project}; it is shown only now:", file=sys.stderr)
    lines = f"export POLLUX_ADMIN_TOKEN={token}" if namespace.admin else greeting(token, namespace.url)
    print(token if namespace.raw else lines, flush=True)
    print("gateways take it within a minute", file=sys.stderr)
    beside = [] if made else [v.number for v in await tokens.api.versions(name) if v.number != number]
    if beside:
        print(f"valid beside it: version {_numbers(beside)}, until: {_revoke(namespace, tokens)}", file=sys.stderr)
    return 0


async def _created(tokens: Tokens, name: str) -> bool:
    """False: it is there already, and gets another version."""
    try:
        await tokens.api.create(name, OURS, {})
    except SecretError as error:
        if error.kind != "exists":
            raise
        return False
    return True


async def list_(namespace: argparse.Namespace, tokens: Tokens) -> int:
    infos = [info for info in await tokens.api.secrets(TOKEN, ADMIN_TOKEN) if token_name(info) is not None]
    turn = asyncio.Semaphore(8)

    async def versions(name: str) -> list[Version]:
        async with turn:
            return await tokens.api.versions(name)

    found = await asyncio.gather(*(versions(info.name) for info in infos))
    rows: list[dict[str, Any]] = [
        {"name": token_name(info) or "admin", "admin": not token_name(info), "version": v.number, "created": v.made}
        for info, those in zip(infos, found, strict=True)
        for v in sorted(those)
    ]
    without = [info.name for info, those in zip(infos, found, strict=True) if not those]
    if namespace.json:
        print(json.dumps({"tokens": rows}, indent=2))
        return 0
    table(
        ("NAME", "FOR", "VERSION", "CREATED"),
        [(r["name"], "/admin" if r["admin"] else "clients", str(r["version"]), _day(r["created"])) for r in rows],
    )
    for name in without:
        print(f"note: secret {name} has no valid version", file=sys.stderr)
    if not rows:
        print(f"no tokens; make one with: pollux tokens add NAME --secrets {tokens.project}", file=sys.stderr)
    return 0


async def revoke(namespace: argparse.Namespace, tokens: Tokens) -> int:
    """Destroys: a token that leaked must not come back. What `add` made goes with its last version."""
    name = tokens.secret_of(namespace)
    with known_as("admin token" if namespace.admin else f"token {namespace.name!r}", tokens.project):
        info = await tokens.api.secret(name)
    valid = [version.number for version in await tokens.api.versions(name)]
    chosen = _chosen(namespace, name, valid)
    last = set(chosen) == set(valid)
    warning = f" It is the only one: {_who(namespace)} cannot call any more." if last else ""
    deleted = last and OURS.items() <= dict(info.labels).items()
    question = f"Revoke version {_numbers(chosen)} of secret {name} of {tokens.project}, for ever?{warning}"
    if not chosen and not deleted:
        raise KeySourceError(f"secret {name} has no valid version")
    if not confirmed(question + (foreign(info) if last else ""), yes=namespace.yes, undone="revoked"):
        return 0
    for number in chosen:
        await tokens.api.destroy(name, number)
    if deleted:  # while the question stood, somebody may have made a token
        made = [version.number for version in await tokens.api.versions(name) if version.number not in chosen]
        if made:
            print(f"secret {name} stays: version {_numbers(made)} became valid meanwhile", file=sys.stderr)
        else:
            await tokens.api.delete(name)
        if made and not chosen:
            return 0
    done = f"revoked version {_numbers(chosen)} of secret {name}" if chosen else f"removed secret {name}"
    print(f"{done}; gateways refuse it within a minute")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Tokens], Awaitable[int]]] = {
    "add": add,
    "list": list_,
    "revoke": revoke,
}


def run(namespace: argparse.Namespace, project: str) -> int:
    async def command() -> int:
        tokens = Tokens(project)
        try:
            return await COMMANDS[namespace.tokens_command](namespace, tokens)
        finally:
            await tokens.api.close()

    return asyncio.run(command())


def local(namespace: argparse.Namespace, settings: Settings) -> int:
    """This machine's tokens are settings and a file; here they are only told of."""
    path = Path(settings.data) / "tokens.json"
    if namespace.tokens_command != "list":
        raise KeySourceError(
            f"without --secrets PROJECT (or POLLUX_SECRETS) tokens are those of POLLUX_TOKEN, POLLUX_ADMIN_TOKEN and "
            f"{path}: set them there; deleting the file makes new ones at the next start"
        )
    places = [
        ("client", "POLLUX_TOKEN" if settings.token else _file(path)),
        ("admin", "POLLUX_ADMIN_TOKEN" if settings.admin_token else _file(path)),
    ]
    names = [named[1] if (named := re.match(r"([A-Za-z][\w.-]{0,31})=(?=.*[^=])", t)) else "" for t in settings.token]
    if namespace.json:
        print(json.dumps({"tokens": [{"name": name, "source": source} for name, source in places]}, indent=2))
        return 0
    shown = f" ({len(names)}: {', '.join(name or f'client-{n}' for n, name in enumerate(names, 1))})" if names else ""
    table(("FOR", "SOURCE"), [("clients", places[0][1] + shown), ("/admin", places[1][1])])
    return 0


def name_fault(name: str) -> str | None:
    if TOKEN_NAME.fullmatch(name):
        return None
    return "a client's name is a letter and at most 31 of letters, digits, _ and -"


def _chosen(namespace: argparse.Namespace, name: str, valid: list[int]) -> list[int]:
    if namespace.version is not None:
        if namespace.version not in valid:
            raise KeySourceError(f"version {namespace.version} of secret {name} is not valid anyway; see: tokens list")
        return [namespace.version]
    if namespace.all or len(valid) < 2:
        return sorted(valid)
    raise KeySourceError(f"secret {name} has the valid versions {_numbers(valid)}: say --version N, or --all")


def _numbers(versions: list[int]) -> str:
    return ", ".join(map(str, sorted(versions)))


def _who(namespace: argparse.Namespace) -> str:
    return "the admin" if namespace.admin else str(namespace.name)


def _revoke(namespace: argparse.Namespace, tokens: Tokens) -> str:
    who = "--admin" if namespace.admin else namespace.name
    return f"pollux tokens revoke {who} --version N --secrets {tokens.project}"


def _day(made: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(made))


def _file(path: Path) -> str:
    return str(path) if path.exists() else f"{path}, made at the next start"
