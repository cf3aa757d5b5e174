"""The command line of the simulator: `pollux simulate`, or `python -m gemini_simulator`."""

import argparse
import contextlib
import re
import sys

from gemini_simulator.api import Simulator
from gemini_simulator.errors import TIERS
from gemini_simulator.faults import KINDS, Fault, FaultError, from_text
from gemini_simulator.quota import KINDS as ENFORCEMENT
from gemini_simulator.service import Owning
from gemini_simulator.serving import DEFAULTS, demo_keys, listen, make_server, url_of

LIMITS = ("rpm", "tpm", "rpd", "tpd", "ipm")


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


# argparse says "invalid NAME value", with these names.
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
    """Serve until Ctrl-C. Gives the exit code: 2 if the port is taken."""
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
        listener = listen(options.host, options.port)
    except (OSError, OverflowError) as problem:
        print(f"pollux simulate: cannot listen on {options.host}:{options.port}: {problem}", file=sys.stderr)
        return 2
    with listener, contextlib.suppress(KeyboardInterrupt):
        print(
            f"A simulated Gemini API on {url_of(listener)}", "It takes these keys, which are not real ones:", sep="\n"
        )
        print(*(f"  {value}  ({key}, {project})" for key, project, value in keys), sep="\n", flush=True)
        make_server(simulator).run(sockets=[listener])
    return 0
