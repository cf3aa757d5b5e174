"""Starting a simulated Gemini: in this loop, in a thread, from the command line. The API is in `api`."""

import argparse
import asyncio
import contextlib
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gemini_simulator.api import Simulator
from gemini_simulator.errors import TIERS
from gemini_simulator.faults import KINDS, Fault, FaultError, from_text
from gemini_simulator.models import MODELS
from gemini_simulator.quota import KINDS as ENFORCEMENT
from gemini_simulator.quota import Enforcer, Refusal, Use
from gemini_simulator.service import Owning

if TYPE_CHECKING:
    import uvicorn

__all__ = [
    "MODELS",
    "Enforcer",
    "Fault",
    "FaultError",
    "Owning",
    "Refusal",
    "Simulator",
    "Use",
    "add_arguments",
    "demo_keys",
    "run",
    "running",
    "serve",
]

LIMITS = ("rpm", "tpm", "rpd", "tpd", "ipm")
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the gateway keeps one, as with Google."""
DEFAULTS = {"rpm": 15, "tpm": 250_000, "rpd": 500}


def demo_keys(count: int) -> list[tuple[str, str, str]]:
    """(id, project, value) of that many keys, each with a project of its own. Nobody takes them for real ones."""
    return [(f"simulated-{i}", f"simulated-project-{i}", f"simulated-key-{i}") for i in range(1, count + 1)]


def _server(simulator: Simulator, log_level: str | None = "critical") -> "uvicorn.Server":
    import uvicorn  # not needed where the simulator is called in-process

    return uvicorn.Server(
        uvicorn.Config(
            simulator,
            log_config=None,
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            backlog=2048,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    simulator: Simulator,
    host: str = "127.0.0.1",
    port: int = 0,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve in this loop until cancelled. `started` is told the URL. OSError: the port is taken.

    In the main thread uvicorn takes SIGINT and SIGTERM over, and all its loggers are silenced; else use `running`.
    """
    with _listen(host, port) as listener:
        server = _server(simulator)
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            if started is not None:
                started(_url(listener))
            await asyncio.shield(task)
        finally:
            server.should_exit = True
            await task


@contextlib.contextmanager
def running(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A simulator in a thread with a loop of its own; gives its URL. What runs at the end is broken off."""
    with _listen(host, port) as listener:
        server = _server(simulator, log_level=None)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                server.run(sockets=[listener])
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=work, name=f"simulator-{id(server):x}", daemon=True)
        # Calls that are broken off are no error here. uvicorn's loggers are one for all servers of the process, and a
        # gateway may run beside this: so the thread is silenced, not the logger.
        logger = logging.getLogger("uvicorn.error")
        silence: Callable[[logging.LogRecord], bool] = lambda record: record.threadName != thread.name  # noqa: E731
        logger.addFilter(silence)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.002)
            if failures:
                raise failures[0]
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join(10)
            logger.removeFilter(silence)


def _limit(text: str) -> int | None:
    if text in ("off", "none"):
        return None
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _fault(text: str) -> Fault:
    try:
        return from_text(text)
    except FaultError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _address(text: str) -> str:
    if not re.fullmatch(r"(https?://[^/\s]+/?)?", text):
        raise ValueError
    return text


# argparse says "invalid NAME value": the names are what the user shall read.
_limit.__name__, _seconds.__name__, _several.__name__ = "limit (a whole number or off)", "seconds", "count"
_address.__name__ = "scheme and host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=3146, help="port to listen on, 0 for any (%(default)s)")
    parser.add_argument("--keys", type=_several, default=4, help="how many keys, each with its project (%(default)s)")
    parser.add_argument("--enforce", choices=ENFORCEMENT, default="sliding", help="how minutes count (%(default)s)")
    parser.add_argument("--day", choices=("pacific", "utc"), default="pacific", help="when days end (%(default)s)")
    parser.add_argument("--tier", choices=TIERS, default="free", help="tier whose quota names 429s have (%(default)s)")
    for name in LIMITS:
        default = DEFAULTS.get(name)
        shown = "off" if default is None else default
        help_ = f"{name} per project and model; 0: not on this tier; off: none ({shown})"
        parser.add_argument(f"--{name}", type=_limit, default=default, metavar="N", help=help_)
    parser.add_argument("--count-refused", action="store_true", help="refused calls use up quota, too")
    parser.add_argument("--latency", type=_seconds, default=0.0, metavar="S", help="seconds before each answer")
    parser.add_argument("--chunks", type=_several, default=4, help="chunks of a stream (%(default)s)")
    parser.add_argument("--chunk-delay", type=_seconds, default=0.0, metavar="S", help="seconds between two chunks")
    parser.add_argument(
        "--processing", type=_seconds, default=0.0, metavar="S", help="seconds until an uploaded file is active"
    )
    parser.add_argument(
        "--working", type=_seconds, default=0.0, metavar="S", help="seconds until a batch or another operation is done"
    )
    parser.add_argument(
        "--base", type=_address, default="", metavar="URL", help="scheme and host that URIs in answers begin with"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is random (%(default)s)")
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="KIND[:PROBABILITY][,FIELD=VALUE]",
        help=f"may be repeated; kinds: {', '.join(KINDS)}",
    )


def run(options: argparse.Namespace) -> int:
    """`pollux simulate`: serve until Ctrl-C. 2: cannot listen there."""
    keys = demo_keys(options.keys)
    simulator = Simulator(
        keys,
        {name: limit for name in LIMITS if (limit := getattr(options, name)) is not None},
        options.enforce,
        latency=options.latency,
        chunk_delay=options.chunk_delay,
        chunks=options.chunks,
        seed=options.seed,
        tiers=options.tier,
        day=options.day,
        count_refused=options.count_refused,
        keep=1000,
        keep_bodies=False,
        owning=Owning(processing=options.processing, working=options.working, base=options.base),
    )
    simulator.faults += options.fault
    try:
        listener = _listen(options.host, options.port)
    except (OSError, OverflowError) as problem:
        print(f"pollux simulate: cannot listen on {options.host}:{options.port}: {problem}", file=sys.stderr)
        return 2
    with listener, contextlib.suppress(KeyboardInterrupt):
        print(f"A simulated Gemini API on {_url(listener)}", "It takes these keys, which are not real ones:", sep="\n")
        print(*(f"  {value}  ({key}, {project})" for key, project, value in keys), sep="\n", flush=True)
        _server(simulator).run(sockets=[listener])
    return 0
