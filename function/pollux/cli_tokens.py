"""`pollux tokens …`: how the commands are spelt. What they do is in `keys.token_commands`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import click

from pollux.cli_keys import add_secrets, chosen_project
from pollux.keys import KeySourceError
from pollux.keys.token_commands import local, name_fault
from pollux.keys.token_commands import run as run_in_cloud
from pollux.settings import Settings


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def tokens(load: Callable[[], Settings], arguments: tuple[str, ...]) -> int:
    """For now; the commands of click follow."""
    parser = argparse.ArgumentParser(prog="pollux")
    add_parser(parser.add_subparsers(required=True))
    namespace = parser.parse_args(["tokens", *arguments])
    return run(namespace, load())


def run(namespace: argparse.Namespace, settings: Settings) -> int:
    """0: done. 2: it cannot be done; why is on stderr."""
    try:
        project = chosen_project(namespace, settings)
        return run_in_cloud(namespace, project) if project else local(namespace, settings)
    except KeySourceError as error:
        print(f"pollux tokens: {error}", file=sys.stderr)
        return 2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `tokens` to the subparsers of the whole command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tokens",
        help="make, list and revoke the tokens that clients call with",
        description="The client and admin tokens in the Secret Manager of a Google Cloud project: secrets "
        "pollux-token-NAME and pollux-admin-token, of which every enabled version is valid. Running gateways see a "
        "change within a minute.",
    )
    commands = parser.add_subparsers(dest="tokens_command", metavar="COMMAND", required=True)

    add = commands.add_parser(
        "add",
        help="make a token and show it once",
        description="Make a token and print it once, as the lines that configure an SDK. For a name that has one "
        "already, another becomes valid beside it: move the client over, then revoke the old one.",
    )
    _whose(add)
    add.add_argument(
        "--url", default="https://GATEWAY", help="the gateway's address, for the lines to paste (default: %(default)s)"
    )

    add.add_argument("--raw", action="store_true", help="print the token alone, to pipe it where it belongs")

    listing = commands.add_parser("list", help="show names, versions and when they were made; never a token")
    listing.add_argument("--json", action="store_true", help="as JSON, for scripts")

    revoke = commands.add_parser(
        "revoke",
        help="end a token for ever",
        description="Destroy a version of a token, or all. With the last one the client goes.",
    )
    _whose(revoke)
    which = revoke.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, metavar="N", help="only this version")
    which.add_argument("--all", action="store_true", help="every version")
    revoke.add_argument("--yes", action="store_true", help="do not ask")
    for command in (add, listing, revoke):
        add_secrets(command)
    return parser


def _whose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", type=_name, metavar="NAME", help="the client's name")
    parser.add_argument("--admin", action="store_true", help="the token of /admin")


def _name(text: str) -> str:
    if fault := name_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text
