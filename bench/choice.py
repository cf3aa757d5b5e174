"""The choice that docs/state.md explains: a read-write transaction for every request, or conditional commits in groups.

Both admit requests by the same arithmetic into documents of the same shape, on one Firestore emulator, in turn: from
1, 2 and 4 processes, under three loads.

python -m bench.choice [--seconds 8] [--store URL]
"""

import argparse
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.admission import MODES, Told
from bench.virtual import table
from tools.emulator import VARIABLE, available

PROCESSES = (1, 2, 4)
TASKS = 8
HEAD = (
    "load",
    "processes",
    "each request by",
    "admitted/s",
    "commits/s",
    "commits a request",
    "median ms",
    "99 % ms",
    "longest ms",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    documents: int
    rate: float = 0.0
    """Requests a second over all processes; 0: as many as the tasks can."""


LOADS = (
    Load("3 requests/s, 8 documents", 8, 3.0),
    Load("50 requests/s, 4 documents", 4, 50.0),
    Load(f"{TASKS} tasks a process, 8 documents", 8),
)


@contextlib.contextmanager
def _workers(
    count: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.admission", *arguments, "--seed", str(number)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
            child.communicate()  # closes its pipes


def run(
    mode: str, url: str, load: Load, count: int, seconds: float, environment: Mapping[str, str]
) -> tuple[Told, int]:
    """What all processes saw, and how many admissions the documents miss or have too many."""
    options = {"seconds": seconds, "documents": load.documents, "rate": load.rate / count, "tasks": TASKS}
    arguments = [mode, url, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    with _workers(count, arguments, environment) as children:
        for child in children:
            _line(child)
        before = _count(mode, url, environment)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [Told(**json.loads(_line(child))) for child in children]
    told = Told(
        sum(t.admitted for t in found),
        sum(t.in_time for t in found),
        sum(t.failed for t in found),
        sum(t.tried for t in found),
        sorted(s for t in found for s in t.seconds),
        next((t.why for t in found if t.why), ""),
    )
    return told, _count(mode, url, environment) - before - told.admitted


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a process of the benchmark ended early; its error is above")
    return line


def _count(mode: str, url: str, environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "bench.admission", mode, url, "--count"]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return int(found.stdout)


def measure(seconds: float, environment: Mapping[str, str], url: str = "") -> tuple[list[tuple[str, ...]], list[str]]:
    """The table, and what went wrong: documents that do not hold what was admitted, conditional commits that fail."""
    rows, wrong = [], []
    for load in LOADS:
        for count in PROCESSES:
            rates = {}
            for mode in MODES:
                store = url or f"firestore://choice-{secrets.token_hex(4)}"
                told, off = run(mode, store, load, count, seconds, environment)
                rates[mode] = told.in_time
                if not 0 <= off <= told.failed:  # what failed may have been applied all the same
                    wrong.append(f"{load.name}, {count} processes, {mode}: the documents hold {off:+} admissions")
                if told.failed and mode == "commits":
                    wrong.append(f"{load.name}, {count} processes, {mode}: {told.failed} failed, {told.why}")
                rows.append(row(load, count, mode, told, seconds))
                print(".", end="", file=sys.stderr, flush=True)
            if rates["commits"] < rates["transactions"] and not load.rate:
                wrong.append(f"{load.name}, {count} processes: transactions admit more than conditional commits")
    print(file=sys.stderr)
    return rows, wrong


def row(load: Load, count: int, mode: str, told: Told, seconds: float) -> tuple[str, ...]:
    times = told.seconds or [float("nan")]
    shown = (statistics.median(times), times[min(len(times) - 1, len(times) * 99 // 100)], times[-1])
    way = "a transaction" if mode == "transactions" else "conditional commits in groups"
    rates = (_rate(told.in_time / seconds), _rate(told.tried / seconds), f"{told.tried / max(1, told.admitted):.2f}")
    return (load.name, str(count), way, *rates, *(f"{1000 * value:,.1f}" for value in shown), str(told.failed))


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--store", default="", help="a store to use instead of Firestore, to try the bench itself")
    chosen = parser.parse_args()
    with available() as host:
        rows, wrong = measure(chosen.seconds, {VARIABLE: host}, chosen.store)
    print(table(HEAD, rows))
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
