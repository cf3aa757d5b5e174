"""Several gateways as processes that share what the settings name, and end with the process that started them."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from pollux.backends.keys.tokens import TokenError, greeting
from pollux.server.wiring import token_source, with_local_tokens
from pollux.settings import PREFIX, Settings

STOP_WITHIN = 35.0
"""A gateway finishes what runs, within 30 s."""
OWN = ("store", "upstream", "keys_file", "secrets", "max_instances")
"""The settings that are not as the environment has them."""
_SERVE = """
import os, signal, sys, threading


def watch():
    os.read(0, 1)  # ends when the other end of the pipe is gone, however that came
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
from pollux.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, with an orderly end also when who started it was killed."""


class InstanceError(Exception):
    """A gateway could not start, or ended unexpectedly."""


def run(settings: Settings, host: str, ports: Sequence[int]) -> int:
    """Until Ctrl-C or SIGTERM (a KeyboardInterrupt), or until one of them ends."""
    _tokens(settings, f"http://{host}:{ports[0]}")
    environ = os.environ | {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in OWN}
    running: dict[int, subprocess.Popen[str]] = {}
    ended = threading.Semaphore(0)
    try:
        for port in ports:
            running[port] = _started(host, port, environ)
            threading.Thread(target=_pass_on, args=(port, running[port], ended), daemon=True).start()
        ended.acquire()
        raise InstanceError("a gateway ended unexpectedly; its output is above")
    except KeyboardInterrupt:
        return 0
    finally:
        _end(list(running.values()))


def _tokens(settings: Settings, url: str) -> None:
    """Made once, before there are several who would; shown only now."""
    try:
        _, local = asyncio.run(with_local_tokens(settings, token_source(settings)))
    except TokenError as error:
        raise InstanceError(str(error)) from None
    if local is not None and local.made:
        print(f"\nA client token was made for this machine:\n\n{greeting(local.client, url)}\n", file=sys.stderr)


def _started(host: str, port: int, environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """In a group of its own: a Ctrl-C comes from us, and a second one of the user's does not cut it short."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _SERVE, "serve", "--host", host, "--port", str(port)],
        env=dict(environ),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _pass_on(port: int, process: "subprocess.Popen[str]", ended: threading.Semaphore) -> None:
    """What it says, with the port before each line: who answered is what one wants to see."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            sys.stderr.write(f"{port} | {line}")
            sys.stderr.flush()
    ended.release()


def _end(running: Sequence["subprocess.Popen[str]"]) -> None:
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(STOP_WITHIN)
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
