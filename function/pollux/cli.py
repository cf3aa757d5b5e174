"""The command line: which commands there are. What they do is in `serving`, `cli_keys`, `cli_tokens`, …"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pollux import __version__
from pollux.settings import Settings, SettingsError, describe

EPILOG = "Every command reads POLLUX_* settings from the environment and from .env in this folder: `pollux settings`."


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, 1: something is not well, 2: it cannot be done as asked; then one line on stderr says why."""
    arguments = sys.argv[1:] if argv is None else argv
    namespace = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return _run(namespace)
    except SettingsError as error:
        print(f"pollux: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(wanted: str) -> argparse.ArgumentParser:
    """Only the command that is wanted gets its arguments: importing them all would slow down every start."""
    parser = argparse.ArgumentParser(
        prog="pollux", description="A gateway that spreads Gemini API calls over a pool of projects.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"pollux {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="run the gateway")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=3145, help="port to listen on; 0 takes a free one (default: 3145)")
    serve.add_argument("--demo", action="store_true", help="in front of a simulated Gemini, without any key")
    if wanted == "keys":
        from pollux import cli_keys

        cli_keys.add_parser(commands)
    else:
        commands.add_parser("keys", help="add, list, change and check the Gemini API keys of this machine")
    if wanted == "tokens":
        from pollux import cli_tokens

        cli_tokens.add_parser(commands)
    else:
        commands.add_parser("tokens", help="make, list and revoke the tokens that clients call with")
    if wanted == "deploy":
        from pollux import cli_deploy

        cli_deploy.add_parser(commands)
    else:
        commands.add_parser("deploy", help="check an endpoint, deployed or here")
    _add_watchers(commands)
    simulate = commands.add_parser("simulate", help="run a simulated Gemini API that enforces quotas")
    if wanted == "simulate":
        from pollux import simulator

        simulator.add_arguments(simulate)
    commands.add_parser("settings", help="list every setting with its default")
    return parser


def _add_watchers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = commands.add_parser("status", help="show keys, quotas and totals of a running gateway")
    status.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="as JSON, for scripts")
    explain = commands.add_parser(
        "explain",
        help="tell where a request would go and why it would wait, or what became of one",
        description="With a model: for every candidate the earliest slot and what holds it back. With the id of a "
        "recent request (the answer header x-pollux-request-id): what became of it.",
    )
    explain.add_argument("what", metavar="MODEL|REQUEST_ID")
    explain.add_argument("--tokens", type=int, default=0, metavar="N", help="input tokens of the request (default: 0)")
    explain.add_argument("--json", action="store_true", help="as JSON, for scripts")
    for command in (status, explain):
        command.add_argument(
            "--url", default="", help="the gateway's address (default: POLLUX_URL, else http://127.0.0.1:3145)"
        )
    judge = commands.add_parser(
        "judge",
        help="tell what an error body of the Gemini API means",
        description="Print the verdict on an answer of the Gemini API as JSON: cause, blames, action, …",
    )
    judge.add_argument("--status", type=int, metavar="CODE", help="the HTTP status that came with it")
    judge.add_argument("file", nargs="?", default="-", metavar="FILE", help="the body; - or nothing: standard input")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")


def _run(namespace: argparse.Namespace) -> int:
    match namespace.command:
        case "simulate":
            from pollux import simulator

            return simulator.run(namespace)
        case "judge":
            return _judge(namespace.status, namespace.file)
        case "settings":
            return _settings()
        case "keys":
            from pollux import cli_keys, serving

            settings = load_settings()
            return cli_keys.run(namespace, settings, read_health=serving.health_reader(settings))
        case "tokens":
            from pollux import cli_tokens

            return cli_tokens.run(namespace, load_settings())
        case "deploy":
            from pollux import cli_deploy

            return cli_deploy.run(namespace, load_settings())
        case "serve":
            from pollux import serving

            return serving.serve(load_settings(), namespace.host, namespace.port, demo=namespace.demo)
        case _:
            from pollux import cli_watch

            return cli_watch.run(namespace, load_settings())


def load_settings() -> Settings:
    """From the environment, and for what is not set there from .env in the working directory."""
    from pollux.keys.files import parse_env

    environ = dict(os.environ)
    file = Path(".env")
    if file.is_file():
        for name, variable in parse_env(file.read_text(errors="replace"), str(file)).items():
            if name.startswith("POLLUX_"):
                environ.setdefault(name, variable.value)
    return Settings.from_env(environ)


def _judge(status: int | None, file: str) -> int:
    import time

    from pollux.verdict.rules import judge_command

    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        print(f"pollux judge: {file}: {error.strerror}", file=sys.stderr)
        return 2
    print(judge_command(status, text, time.time()))
    return 0


def _settings() -> int:
    rows = describe()
    width = max(len(name) for name, _, _ in rows)
    for name, default, text in rows:
        print(f"{name.ljust(width)}  {text}" + (f" [{default}]" if default else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
