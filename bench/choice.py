"""The choice that docs/state.md explains: a read-write transaction for every request, or conditional commits in groups.

Both admit requests by the same arithmetic into documents of the same shape, on one Firestore emulator, in turn: from
1, 2 and 4 processes, under three loads.

python -m bench.choice [--seconds 8] [--store URL]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.scheduling import FixedKeys
from bench.virtual import table
from pollux import packing, quota
from pollux.catalog import Catalog, builtin_text
from pollux.quota import Refusal, Slot, State
from pollux.roster import Roster
from pollux.store import open_store
from pollux.windows import Want
from tools.emulator import VARIABLE, available

MODEL = "gemini-2.5-flash"
LIMITS = {"rpm": 10_000_000, "tpm": 10_000_000_000, "rpd": 1_000_000_000}
"""So large that all is admitted: the documents are changed as ever, and nobody waits but for the store."""
MODES = ("transactions", "commits")
PROCESSES = (1, 2, 4)
TASKS = 8
PATIENCE = 30.0
GUARD = 5.0
"""Around the Pacific midnight a slot lies a little later."""
COLLECTION = "choice"
Admit = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    documents: int
    rate: float = 0.0
    """Requests a second over all processes; 0: as fast as the tasks can."""


LOADS = (
    Load("3 requests/s, 8 documents", 8, 3.0),
    Load("50 requests/s, 4 documents", 4, 50.0),
    Load("8 tasks a process", 8),
)


@dataclass(slots=True)
class Told:
    """What one process has seen, or all of them."""

    admitted: int = 0
    in_time: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    why: str = ""


def admit(state: State, now: float) -> tuple[State, Slot | Refusal]:
    return quota.reserve(state, now, Want(1, 57), LIMITS, now + GUARD)


# --- in a process of its own -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _by_commits(url: str, documents: int) -> AsyncIterator[Admit]:
    """The gateway's own ledgers: one commit under way for each document, and all that waits goes with the next."""
    store = open_store(url)
    await store.open()
    roster = Roster(store, FixedKeys(()), Catalog.parse(builtin_text()))
    ledgers = [roster.quota(f"p{number}", MODEL).ledger for number in range(documents)]

    async def one(number: int) -> None:
        found = await ledgers[number].apply(admit)
        assert isinstance(found, Slot)

    try:
        yield one
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _by_transactions(url: str, documents: int) -> AsyncIterator[Admit]:
    """As the client's manual has it: read, decide and write in a transaction that is tried again when it is aborted."""
    from google.cloud import firestore

    client = firestore.AsyncClient(project=url.removeprefix("firestore://"))
    references = [client.collection(COLLECTION).document(f"p{number}") for number in range(documents)]

    @firestore.async_transactional
    async def change(transaction, reference) -> None:  # type: ignore[no-untyped-def]
        found = await reference.get(transaction=transaction)
        now = time.time()
        state = packing.unpack(found.to_dict()) if found.exists else State()
        state, slot = admit(quota.tidy(state, now), now)
        assert isinstance(slot, Slot)
        transaction.set(reference, packing.pack(state))

    async def one(number: int) -> None:
        await change(client.transaction(), references[number])

    try:
        yield one
    finally:
        client.close()  # type: ignore[no-untyped-call]


async def _counted(mode: str, url: str, documents: int) -> int:
    """What the documents say was admitted."""
    if mode == "commits":
        store = open_store(url)
        await store.open()
        found = [packing.unpack(document) for document, _ in (await store.scan("quota:")).values()]
        await store.close()
    else:
        from google.cloud import firestore

        client = firestore.AsyncClient(project=url.removeprefix("firestore://"))
        found = [packing.unpack(entry.to_dict() or {}) async for entry in client.collection(COLLECTION).stream()]
        client.close()  # type: ignore[no-untyped-call]
    return sum(requests for state in found for requests, _ in state.days.values())


async def drive(one: Admit, load: Load, seconds: float, rate: float, seed: int) -> Told:
    """`rate` of this process. What is under way at the end is waited for and counted, but not as in time."""
    told, rng, began = Told(), random.Random(seed), time.perf_counter()

    async def measured() -> None:
        start = time.perf_counter()
        try:
            await asyncio.wait_for(one(rng.randrange(load.documents)), PATIENCE)
        except Exception as error:
            told.failed += 1
            told.why = told.why or f"{type(error).__name__}: {error}"[:200]
            return
        end = time.perf_counter()
        told.admitted += 1
        told.in_time += end - began <= seconds
        told.seconds.append(end - start)

    async def busy() -> None:
        while time.perf_counter() - began < seconds:
            await measured()

    async with asyncio.TaskGroup() as group:
        if not rate:
            for _ in range(TASKS):
                group.create_task(busy())
            return_at = began
        else:
            return_at = began + seconds
        while time.perf_counter() < return_at:
            group.create_task(measured())
            await asyncio.sleep(rng.expovariate(rate))
    return told


async def _work(mode: str, url: str, load: Load, seconds: float, rate: float, seed: int) -> None:
    opened = _by_commits if mode == "commits" else _by_transactions
    async with opened(url, load.documents) as one:
        with contextlib.suppress(Exception):  # connected, and each document made
            await asyncio.gather(*(one(number) for number in range(load.documents)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps(asdict(await drive(one, load, seconds, rate, seed))), flush=True)


# --- the bench ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(
    count: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.choice", "--worker", str(number), *arguments],
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
    arguments = ["--mode", mode, "--store", url, "--seconds", str(seconds), "--load", str(LOADS.index(load))]
    arguments += ["--rate", str(load.rate / count)]
    with _workers(count, arguments, environment) as children:
        for child in children:
            _line(child)
        before = _count(mode, url, load, environment)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [Told(**json.loads(_line(child))) for child in children]
    told = Told(
        sum(t.admitted for t in found),
        sum(t.in_time for t in found),
        sum(t.failed for t in found),
        sorted(s for t in found for s in t.seconds),
        next((t.why for t in found if t.why), ""),
    )
    return told, _count(mode, url, load, environment) - before - told.admitted


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a process of the benchmark ended early; its error is above")
    return line


def _count(mode: str, url: str, load: Load, environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "bench.choice", "--count", "--mode", mode, "--store", url]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return int(found.stdout)


HEAD = ("load", "processes", "each request by", "admitted/s", "median ms", "99 % ms", "longest ms", "failed")


def measure(seconds: float, environment: Mapping[str, str], url: str = "") -> tuple[list[tuple[str, ...]], list[str]]:
    """The table, and what went wrong: a document that does not hold what was admitted."""
    rows, wrong = [], []
    for load in LOADS:
        for count in PROCESSES:
            for mode in MODES:
                store = url or f"firestore://choice-{secrets.token_hex(4)}"
                told, off = run(mode, store, load, count, seconds, environment)
                if off > told.failed or off < 0:  # what failed may have been applied all the same
                    wrong.append(f"{mode}, {count} processes: the documents hold {off:+} admissions")
                rows.append(row(load, count, mode, told, seconds))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows, wrong


def row(load: Load, count: int, mode: str, told: Told, seconds: float) -> tuple[str, ...]:
    times = told.seconds or [float("nan")]
    shown = (statistics.median(times), times[min(len(times) - 1, len(times) * 99 // 100)], times[-1])
    milliseconds = (f"{1000 * value:,.1f}" for value in shown)
    way = "a transaction" if mode == "transactions" else "conditional commits in groups"
    return (load.name, str(count), way, f"{told.in_time / seconds:,.0f}", *milliseconds, str(told.failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--store", default="", help="a store to use instead of Firestore, to try the bench itself")
    for name in ("--mode", "--worker", "--load", "--rate"):
        parser.add_argument(name, default="0", help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.count:
        print(asyncio.run(_counted(chosen.mode, chosen.store, 0)))
    elif chosen.mode in MODES:
        load, seed = LOADS[int(chosen.load)], int(chosen.worker)
        asyncio.run(_work(chosen.mode, chosen.store, load, chosen.seconds, float(chosen.rate), seed))
    else:
        with available() as host:
            rows, wrong = measure(chosen.seconds, {VARIABLE: host}, chosen.store)
        print(table(HEAD, rows))
        sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
