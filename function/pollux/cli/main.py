"""The command line: all commands. The module of a command is imported when it is called."""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pollux import __version__
from pollux.redaction import redact_values, without
from pollux.settings import ENVIRON, Settings, SettingsError, describe

COMMANDS = {
    "keys": ("pollux.cli.keys:keys", "Add, list, change and check Gemini API keys."),
    "tokens": ("pollux.cli.tokens:tokens", "Make, list and revoke the tokens that clients call with."),
    "deploy": ("pollux.cli.deploy:deploy", "Check a gateway, deployed or on this machine."),
    "status": ("pollux.cli.watch:status", "Show keys, quotas and totals of a running gateway."),
    "explain": ("pollux.cli.watch:explain", "Show where a request would go, or what became of one."),
}
"""Name -> the click command, and its line in the help, which is shown without importing the command."""
ORDER = ("serve", "keys", "tokens", "deploy", "status", "explain", "judge", "simulate", "settings")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
REPEATED = 20
"""An error repeats no longer word of the command line: it may be the value of a key."""

LoadSettings = Callable[[], Settings]
"""`@click.pass_obj` gives this to commands: --help works without valid settings."""


def load_settings() -> Settings:
    """From the environment, then from .env in the working directory."""
    from pollux.backends.keys.files import parse_env

    environ = dict(ENVIRON)
    file = Path(".env")
    if file.is_file():
        for name, variable in parse_env(file.read_text(errors="replace"), str(file)).items():
            if name.startswith("POLLUX_"):
                environ.setdefault(name, variable.value)
    return Settings.from_env(environ)


def main(argv: Sequence[str] | None = None, load: LoadSettings = load_settings) -> int:
    """Returns the exit code. 0: done. 1: something failed. 2: it cannot be done; one line on stderr says why."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(words, load)
        sys.stdout.flush()
    except OSError as error:
        # A stream without a buffer forgets what it could not write, so that a second attempt succeeds.
        if error.errno not in DISK_ERRORS and not _stdout_fails():
            raise
        if error.errno != errno.EPIPE:
            _complain(f"pollux: cannot write: {error.strerror}")
        if _stdout_fails():  # Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(words: list[str], load: LoadSettings) -> int:
    try:
        return root.main(words, "pollux", standalone_mode=False, obj=load) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "pollux"
        said = _mistake(error, words, command) if isinstance(error, click.UsageError) else error.format_message()
        _complain(f"{command}: {said}")
        return 2
    except SettingsError as error:
        _complain(f"pollux: {error}")
        return 2
    except click.Abort:  # Ctrl-C
        return 130


def _complain(text: str) -> None:
    print(redact_values(text), file=sys.stderr)


def _mistake(error: click.UsageError, words: Sequence[str], command: str) -> str:
    """What is wrong with the command line, in one sentence, without long words of it."""
    said, near = error.format_message(), ""
    if isinstance(error, click.NoSuchOption | click.exceptions.NoSuchCommand):
        said = error.message
        if error.possibilities:
            near = f" (did you mean {' or '.join(map(repr, error.possibilities))}?)"
    typed = {part for word in words for part in (word, *word.split("=")) if len(part) > REPEATED}
    said = without(said.rstrip("."), [*typed, *(repr(part)[1:-1] for part in typed)])
    return f"{said}{near}; see: {command} --help"


def _stdout_fails() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


class LazyGroup(click.Group):
    """Imports a command of COMMANDS only when it is called. The help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ORDER)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # click does not say which command an option without its argument belongs to.
            if error.ctx is None and ctx.invoked_subcommand:
                command = self.get_command(ctx, ctx.invoked_subcommand)
                error.ctx = click.Context(command or self, ctx, ctx.invoked_subcommand)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        here = {name: command.get_short_help_str(formatter.width) for name, command in self.commands.items()}
        lines = here | {name: text for name, (_, text) in COMMANDS.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, lines[name]) for name in ORDER])


@click.group(
    cls=LazyGroup,
    help="A gateway that spreads Gemini API calls over a pool of projects.",
    epilog="Every command reads POLLUX_* settings from the environment and from .env in this folder; "
    "`pollux settings` lists them.",
)
@click.version_option(__version__, message="pollux %(version)s")
def root() -> None:
    pass


@root.command(help="Run the gateway.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=3145,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--demo", is_flag=True, help="Use a simulated Gemini; no key is needed.")
@click.pass_obj
def serve(load: LoadSettings, host: str, port: int, demo: bool) -> int:
    from pollux.server import serve

    return serve.serve(load(), host, port, demo=demo)


@root.command()
@click.option("--status", type=int, metavar="CODE", help="The HTTP status that came with it.")
@click.argument("file", default="-", metavar="[FILE]")
def judge(status: int | None, file: str) -> int:
    """Show what an error body of the Gemini API means.

    FILE holds the body; the default is standard input. The verdict is printed as JSON: cause, blames, action, …
    """
    import time

    from pollux.gemini.verdict.rules import judge_command

    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        _complain(f"pollux judge: {file}: {error.strerror}")
        return 2
    print(judge_command(status, text, time.time()))
    return 0


@root.command(
    add_help_option=False,
    short_help="Run a simulated Gemini API that enforces quotas.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> int:  # the simulator reads them itself
    try:
        import gemini_simulator
    except ImportError as error:
        print(
            f"pollux simulate: the simulator is not installed ({error}); it comes with a checkout of Pollux",
            file=sys.stderr,
        )
        return 2
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise click.UsageError(message)

    parser = Parser(prog="pollux simulate", description="Run a simulated Gemini API.")
    gemini_simulator.add_arguments(parser)
    options = parser.parse_args(arguments)
    if redact_values(options.host) != options.host:  # the simulator's own errors repeat it
        raise click.UsageError("argument --host: expected an address")
    return gemini_simulator.run(options)


@root.command(help="List every setting with its default.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for scripts.")
def settings(as_json: bool) -> int:
    rows = describe()
    if as_json:
        import json

        print(
            json.dumps(
                {"settings": [dict(zip(("name", "default", "text"), row, strict=True)) for row in rows]}, indent=2
            )
        )
        return 0
    width = max(len(name) for name, _, _ in rows)
    for name, default, text in rows:
        print(f"{name.ljust(width)}  {text}" + (f" [{default}]" if default else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
