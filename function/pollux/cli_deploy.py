"""How `pollux deploy …` is spelt, and what it shows. What is tried is in `deploy`."""

import argparse
import asyncio
import contextlib
import getpass
import ipaddress
import json
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pollux.auth import TokenError, client_of
from pollux.deploy import Finding
from pollux.deploy.asking import Endpoint
from pollux.deploy.credentials import CredentialError, Credentials, Sources
from pollux.deploy.steps import CHEAP, NAMES, Check
from pollux.settings import Settings, base_url

WIDTH = 110
WITHIN = 30.0


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `deploy` to the subparsers of the whole command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser("deploy", help="check an endpoint, deployed or here")
    commands = parser.add_subparsers(dest="deploy_command", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        allow_abbrev=False,  # --token would be taken for --token-file, and a token for the name of a file
        help="try an endpoint as its clients would, and say what is not well",
        description="Ask a gateway for its health, an answer, a stream, and its status; three small requests are "
        "spent. Exit code 0: nothing failed. 1: something did. 2: it could not be tried.",
        epilog="Tokens come from POLLUX_TOKEN and POLLUX_ADMIN_TOKEN, from a file, for an address of this machine "
        "from tokens.json in the data folder; else they are asked for, hidden. A private service wants an ID token "
        "too: IDENTITY_TOKEN in the environment.",
    )
    check.add_argument("url", type=_url, metavar="URL", help="its address, such as https://pollux-….run.app")
    check.add_argument("--model", default=CHEAP, help="model or alias to ask (default: %(default)s)")
    check.add_argument("--token-file", metavar="FILE", help="a client token, or a tokens.json; - is standard input")
    check.add_argument("--admin-token-file", metavar="FILE", help="the admin token")
    check.add_argument(
        "--timeout", type=_seconds, default=WITHIN, metavar="SECONDS", help="for each request (default: %(default)g)"
    )
    check.add_argument(
        "--plain-http", action="store_true", help="allow http:// to another machine: tokens can be read on the way"
    )
    check.add_argument("--json", action="store_true", help="as JSON, for scripts")
    check.add_argument("--token", "--admin-token", action=_NoToken, nargs="?", help=argparse.SUPPRESS)
    return parser


class _NoToken(argparse.Action):
    """Known, so that what is written behind it is not repeated as something unknown."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error("a token is no argument, which every process could read: set POLLUX_TOKEN, or --token-file FILE")


def run(namespace: argparse.Namespace, settings: Settings) -> int:
    local = is_local(namespace.url)
    if namespace.url.startswith("http://") and not local and not namespace.plain_http:
        print(
            f"pollux deploy check: {namespace.url} is no https:// address: tokens could be read on the way; "
            "--plain-http allows it",
            file=sys.stderr,
        )
        return 2
    try:
        credentials = _credentials(namespace, settings, local=local)
    except (CredentialError, TokenError) as error:
        print(f"pollux deploy check: {error}", file=sys.stderr)
        return 2
    endpoint = Endpoint(namespace.url, within=namespace.timeout, identity=credentials.identity)
    findings = asyncio.run(_found(Check(endpoint, credentials, namespace.model), namespace))
    failed = sum(finding.verdict == "FAIL" for finding in findings)
    if namespace.json:
        shown = {"url": namespace.url, "model": namespace.model, "ok": not failed}
        print(json.dumps(shown | {"checks": [finding.as_json() for finding in findings]}, indent=2))
    else:
        print("\n" + _summary(findings, failed))
    return 1 if failed else 0


def is_local(url: str) -> bool:
    """Whether what is sent there stays on this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _url(text: str) -> str:
    try:
        if not text.isascii():
            raise ValueError
        return base_url(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "expected an address such as https://pollux-….run.app or http://127.0.0.1:3145, without a token or query"
        ) from None


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, above 0 and at most 3600")


def _credentials(namespace: argparse.Namespace, settings: Settings, *, local: bool) -> Credentials:
    asks = sys.stdin.isatty() and "-" not in (namespace.token_file, namespace.admin_token_file)
    sources = Sources(
        namespace.token_file,
        namespace.admin_token_file,
        client_of(settings.token[0]) if settings.token else "",
        settings.admin_token,
        Path(settings.data) / "tokens.json" if local else None,
        _asked if asks else None,
        sys.stdin,
    )
    return sources.find(os.environ)


def _asked(prompt: str) -> str:
    try:
        return getpass.getpass(prompt, sys.stderr)
    except EOFError:
        return ""


async def _found(check: Check, namespace: argparse.Namespace) -> list[Finding]:
    findings: list[Finding] = []
    if not namespace.json:
        head = _row("CHECK", "VERDICT", "TIME", "").rstrip()
        print(f"{namespace.url}, model {namespace.model}\n\n{head}", flush=True)
    async for finding in check.run():
        if not namespace.json:
            said = finding.verdict == "FAIL" and any(finding.detail == other.detail for other in findings)
            shown = replace(finding, detail="as above", hint="") if said else finding
            print("\n".join(lines(shown)), flush=True)
        findings.append(finding)
    return findings


def lines(finding: Finding) -> list[str]:
    """A row of the table, and below it what to do."""
    took = "" if finding.took is None else f"{finding.took * 1000:.0f} ms"
    indent = " " * len(_row("", "", "", "x")[:-1])
    rows = textwrap.wrap(finding.detail, WIDTH - len(indent), break_on_hyphens=False) or [""]
    if finding.hint:
        rows += textwrap.wrap(
            f"-> {finding.hint}", WIDTH - len(indent), subsequent_indent="   ", break_on_hyphens=False
        )
    return [_row(finding.name, finding.verdict, took, rows[0]).rstrip(), *(indent + row for row in rows[1:])]


def _row(name: str, verdict: str, took: str, text: str) -> str:
    return f"{name:<{max(map(len, NAMES))}}  {verdict:<7}  {took:>8}  {text}"


def _summary(findings: list[Finding], failed: int) -> str:
    warned = sum(finding.verdict == "warn" for finding in findings)
    skipped = sum(finding.verdict == "skipped" for finding in findings)
    rest = "".join(f", {count} {word}" for count, word in ((warned, "to look at"), (skipped, "skipped")) if count)
    return f"{f'{failed} failed' if failed else 'nothing failed'}{rest}"
