"""`pollux deploy check`: its options, where its tokens come from, and how its findings are shown."""

import asyncio
import getpass
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pollux.backends.keys.tokens import TokenError, first_token
from pollux.cli.gateway import Address, AskError, is_local, parsed_tokens, tokens_file, tokens_in
from pollux.cli.terminal import json_option, show_json
from pollux.redaction import redact_values
from pollux.settings import Settings

if TYPE_CHECKING:
    from pollux.cli.deploy_check import Check, Finding, Token

WIDTH = 110
PROMPTS = {
    "client": "Client token (not shown): ",
    "admin": "Admin token (not shown; Enter leaves out the status): ",
}


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 < value <= 3600:  # click.FloatRange accepts "nan"
        raise click.BadParameter("expected seconds, above 0 and at most 3600")
    return value


@click.group(help="Check a gateway, deployed or on this machine.")
def deploy() -> None:
    pass


@deploy.command(
    short_help="Try a gateway as its clients would, and show what does not work.",
    epilog="Tokens come from POLLUX_TOKEN and POLLUX_ADMIN_TOKEN, from a file, or for an address of this machine from "
    "tokens.json in the data folder. Otherwise you are asked for them. A private service wants an ID token too: "
    "IDENTITY_TOKEN in the environment.",
)
@click.argument("url", type=Address())
@click.option("--model", default="draft", show_default=True, help="Model or alias to ask.")
@click.option("--token-file", default="", metavar="FILE", help="A client token, or a tokens.json; - is standard input.")
@click.option("--admin-token-file", default="", metavar="FILE", help="The admin token.")
@click.option(
    "--timeout", type=float, default=30, show_default=True, callback=_seconds, help="Seconds for each request."
)
@click.option("--plain-http", is_flag=True, help="Allow http:// to another machine: tokens can be read on the way.")
@json_option
@click.pass_obj
def check(
    load: Callable[[], Settings],
    url: str,
    model: str,
    token_file: str,
    admin_token_file: str,
    timeout: float,
    plain_http: bool,
    as_json: bool,
) -> int:
    """Ask the gateway at URL for its health, an answer, a stream, and its status.

    It spends three small requests. Exit code 0: nothing failed. 1: something failed. 2: it could not be tried.
    """
    from pollux.cli.deploy_check import Check

    if url.startswith("http://") and not plain_http and not is_local(url):
        raise AskError(f"{url} is no https:// address: tokens could be read on the way; --plain-http allows it")
    tokens = _tokens(load(), token_file, admin_token_file, local=is_local(url))
    if not as_json:
        print(f"{url}, model {redact_values(model)}\n\n{_row('CHECK', 'VERDICT', 'TIME').rstrip()}", flush=True)
    findings = asyncio.run(_findings(Check(url, tokens, model=model, within=timeout), shown=not as_json))
    verdicts = [finding.verdict for finding in findings]
    failed = verdicts.count("FAIL")
    if as_json:
        checks = [finding.as_json() for finding in findings]
        show_json({"url": url, "model": redact_values(model), "ok": not failed, "checks": checks})
    else:
        counts = ((failed, "failed"), (verdicts.count("warn"), "to look at"), (verdicts.count("skipped"), "skipped"))
        told = [f"{count} {word}" for count, word in counts if count]
        print("\n" + ", ".join(told if failed else ["nothing failed", *told]))
    return 1 if failed else 0


def _tokens(settings: Settings, token_file: str, admin_token_file: str, *, local: bool) -> Mapping[str, "Token"]:
    """Each from the first that has it: a file, the settings, tokens.json of this machine, the terminal."""
    from pollux.cli.deploy_check import Token

    kept = tokens_file(settings)
    in_file, in_admin_file = _read(token_file), _read(admin_token_file)
    try:
        client = first_token(settings.token)
    except TokenError as error:
        raise AskError(str(error)) from None
    sources: list[tuple[str, Mapping[str, str]]] = [
        (admin_token_file, {"admin": in_admin_file.get("admin") or in_admin_file.get("client", "")}),
        (token_file, in_file),
        ("POLLUX_TOKEN", {"client": client}),
        ("POLLUX_ADMIN_TOKEN", {"admin": settings.admin_token}),
        (str(kept), tokens_in(kept) if local else {}),
    ]
    tokens = {"identity": Token(settings.environ.get("IDENTITY_TOKEN", "").strip(), "IDENTITY_TOKEN")}
    asks = sys.stdin.isatty() and "-" not in (token_file, admin_token_file)
    for kind, prompt in PROMPTS.items():
        known = (Token(values[kind], source) for source, values in sources if values.get(kind))
        tokens[kind] = next(known, None) or Token(_asked(prompt) if asks else "", "the terminal")
        if kind == "client" and not tokens[kind].value:
            here = f"{kept} has none; " if local else ""
            raise AskError(f"no client token: {here}set POLLUX_TOKEN, or say --token-file FILE (- is standard input)")
    for token in tokens.values():
        if not (token.value.isascii() and token.value.isprintable()) or " " in token.value:
            raise AskError(f"{token.source}: has characters that a header cannot carry")
    return tokens


def _read(file: str) -> Mapping[str, str]:
    """The token in the first line of a file, or the tokens of a tokens.json."""
    if not file:
        return {}
    try:
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text()
    except OSError as error:
        raise AskError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise AskError(f"{file}: not UTF-8 text") from None
    found = parsed_tokens(text) if text.lstrip().startswith("{") else {"client": text.partition("\n")[0].strip()}
    if not any(found.values()):
        raise AskError(f'{file}: expected {{"client": …, "admin": …}}, or a token in its first line, which is empty')
    return found


def _asked(prompt: str) -> str:
    try:
        return getpass.getpass(prompt, sys.stderr).strip()
    except EOFError:
        return ""


async def _findings(check: "Check", *, shown: bool) -> "list[Finding]":
    findings: list[Finding] = []
    async for finding in check.run():
        if shown:
            told = finding.verdict == "FAIL" and any(finding.detail == other.detail for other in findings)
            took = "" if finding.took is None else f"{finding.took * 1000:.0f} ms"
            row = _row(finding.name, finding.verdict, took)
            _print_wrapped("as above" if told else finding.detail, row, " " * len(row))
            _print_wrapped("" if told else finding.hint, " " * len(row) + "-> ", " " * len(row) + "   ")
        findings.append(finding)
    return findings


def _row(name: str, verdict: str, took: str) -> str:
    return f"{name:<10}  {verdict:<7}  {took:>8}  "


def _print_wrapped(text: str, first: str, below: str) -> None:
    for line in textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=below, break_on_hyphens=False):
        print(line, flush=True)
