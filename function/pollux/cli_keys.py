"""`pollux keys …`: how the commands are spelt. What they do is in `keys.commands` and `keys.cloud_commands`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import click

from pollux.keys import KeySourceError, probe
from pollux.keys.commands import COMMANDS, Place, ReadHealth
from pollux.keys.entries import LIMITS, id_fault, limits_fault, project_fault, tier_fault
from pollux.keys.standing import shares_store
from pollux.settings import Settings


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def keys(load: Callable[[], Settings], arguments: tuple[str, ...]) -> int:
    """For now; the commands of click follow."""
    parser = argparse.ArgumentParser(prog="pollux")
    add_parser(parser.add_subparsers(required=True))
    namespace = parser.parse_args(["keys", *arguments])
    from pollux.serving import health_reader

    settings = load()
    return run(namespace, settings, read_health=health_reader(settings))


_NO_VALUE = (
    "a key's value is not given on the command line, where the shell's history and every process can read it; "
    "it is asked for, or read from standard input: pollux keys add ID < FILE"
)


def run(namespace: argparse.Namespace, settings: Settings, *, read_health: ReadHealth | None = None) -> int:
    """0: done. 1: a key is not healthy. 2: it cannot be done; why is on stderr. `read_health` gives the store's
    health document; without it, if that store is not of the gateways that use these keys, or if it raises OSError or
    LookupError, health is shown as not known."""
    try:
        project = chosen_project(namespace, settings)
        read_health = read_health if shares_store(settings, project) else None
        if project:
            from pollux.keys import cloud_commands

            return cloud_commands.run(namespace, project, settings, read_health)
        return COMMANDS[namespace.keys_command](namespace, Place(settings, read_health))
    except KeySourceError as error:
        print(f"pollux keys: {error}", file=sys.stderr)
        return 2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `keys` to the subparsers of the whole command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "keys",
        help="add, list, change and check the Gemini API keys of this machine",
        description="The Gemini API keys of this machine. Changes go to POLLUX_KEYS_FILE if that is a keys.json, else "
        "to keys.json in the data folder; a running gateway takes them within two seconds. With --secrets PROJECT or "
        "POLLUX_SECRETS, those in the Secret Manager of a Google Cloud project, which gateways take within a minute. "
        "Values are never shown.",
    )
    commands = parser.add_subparsers(dest="keys_command", metavar="COMMAND", required=True, parser_class=_Parser)

    add = commands.add_parser(
        "add",
        help="add a key; its value is read hidden",
        description="Add a key. Its value is asked for without echo, or is the first line of standard input. Then "
        "Google is asked about it with a free call; exit code 1 if it refuses the key, which is added all the same.",
    )
    add.add_argument("id", nargs="?", type=_id, metavar="ID", help="name of the key (default: key-1, key-2, …)")
    _details(add)
    _check(add, "do not ask Google about it")

    listing = commands.add_parser("list", help="show id, project, tier, masked value, source and health")
    listing.add_argument("--json", action="store_true", help="as JSON, for scripts")

    edit = commands.add_parser(
        "edit",
        help="change a key's project, tier, limits or value",
        description="Change what is named; the rest stays. `none` removes a project, a tier, or one model's limits.",
    )
    edit.add_argument("id", metavar="ID")
    _details(edit, "; none removes it")
    edit.add_argument(
        "--value", action="store_true", help="ask for a new value, hidden, or read it from standard input"
    )

    rotate = commands.add_parser(
        "rotate",
        help="give a key a new value, after it answered",
        description="Give a key a new value, read hidden or from standard input. It is checked first, with a free "
        "call; if it does not answer, the old value stays and the exit code is 1. In Secret Manager it becomes a new "
        "version, and the old ones are disabled after it answered.",
    )
    rotate.add_argument("id", metavar="ID")
    _check(rotate, "do not ask Google about the new value")

    remove = commands.add_parser("remove", help="remove a key")
    remove.add_argument("id", metavar="ID")
    remove.add_argument("--yes", action="store_true", help="do not ask")

    for name, text in (("enable", "use a key again"), ("disable", "leave a key unused, but keep it")):
        commands.add_parser(name, help=text).add_argument("id", metavar="ID")

    imported = commands.add_parser(
        "import",
        help="take over the keys of a key.txt, .env or keys.json",
        description="Take over the keys of a file: one a line, variables as in a .env, or a keys.json. Tells what was "
        "added, what was there already, and what is not a key.",
    )
    imported.add_argument("file", metavar="FILE")
    imported.add_argument("--dry-run", action="store_true", help="only tell what would be done")

    check = commands.add_parser(
        "check",
        help="ask Google about each key, with a free call",
        description="Ask Google about each key with countTokens, which is free and needs no quota. Exit code 1 if any "
        "key is not healthy. What a running gateway, or the store, holds against healthy ones ends.",
    )
    check.add_argument("ids", nargs="*", metavar="ID", help="only these keys (default: all that are enabled)")
    check.add_argument("--model", default=probe.MODEL, help="the model to ask about (default: %(default)s)")
    for command in commands.choices.values():
        add_secrets(command)
    return parser


def add_secrets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--secrets",
        type=_text(project_fault),
        metavar="PROJECT",
        help="the Google Cloud project whose Secret Manager holds them (default: POLLUX_SECRETS)",
    )


def chosen_project(namespace: argparse.Namespace, settings: Settings) -> str:
    """Whose Secret Manager is meant; "" is this machine."""
    return namespace.secrets or settings.secrets


class _Parser(argparse.ArgumentParser):
    """Repeats nothing that it does not know: it may be a key."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if any(str(arg).startswith("--value=") for arg in args or ()):
            self.error(_NO_VALUE)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"too many arguments, or unknown ones (not repeated here); {_NO_VALUE}")
        return parsed, unknown


def _check(parser: argparse.ArgumentParser, not_: str) -> None:
    parser.add_argument("--no-check", dest="check", action="store_false", help=not_)
    parser.add_argument("--model", default=probe.MODEL, help="the model to ask about (default: %(default)s)")


def _details(parser: argparse.ArgumentParser, none: str = "") -> None:
    parser.add_argument(
        "--project", type=_text(project_fault), metavar="P", help=f"the Google Cloud project that owns its quota{none}"
    )
    parser.add_argument("--tier", type=_text(tier_fault), metavar="T", help=f"free, tier1, tier2 or tier3{none}")
    parser.add_argument(
        "--limit",
        type=_limit,
        action="append",
        default=[],
        metavar="MODEL:rpm=5,tpm=250000",
        help=f"your own limit for a model, or * for all: {', '.join(LIMITS)}; 0 is not available{none}; repeatable",
    )


def _id(text: str) -> str:
    if fault := id_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text


def _text(fault_of: Any) -> Any:
    def parse(text: str) -> str:
        fault = None if text == "none" else fault_of(text)
        if fault:
            raise argparse.ArgumentTypeError(fault)
        return text

    return parse


def _limit(text: str) -> tuple[str, dict[str, int] | None]:
    """MODEL:rpm=5,tpm=250000, or rpm=5 for every model, or MODEL:none."""
    model, colon, written = text.rpartition(":")
    model = model if colon else "*"
    if written == "none" and colon:
        return model, None
    numbers: dict[str, int] = {}
    for part in written.split(","):
        name, _, number = part.partition("=")
        if not number.strip().isdecimal():
            raise argparse.ArgumentTypeError("expected MODEL:rpm=5,tpm=250000")
        numbers[name.strip()] = int(number)
    if fault := limits_fault({model: numbers}):
        raise argparse.ArgumentTypeError(fault)
    return model, numbers
