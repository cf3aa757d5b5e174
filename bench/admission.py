"""One process of bench/choice.py: it admits requests into documents, by transactions or by conditional commits.

python -m bench.admission MODE URL: opens, prints "ready", waits for a line, drives the load, prints what it saw.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field

from bench.scheduling import FixedKeys
from pollux.backends.store.opening import open_store
from pollux.gemini.catalog import Catalog
from pollux.pool import quota, quota_document
from pollux.pool.projects import Projects
from pollux.pool.quota import Slot, State
from pollux.pool.refusals import Refusal
from pollux.pool.windows import Want
from pollux.server.wiring import builtin_catalog

MODEL = "gemini-2.5-flash"
LIMITS = {"rpm": 10_000_000, "tpm": 10_000_000_000, "rpd": 1_000_000_000}
"""So large that everything is admitted: documents change as usual, and requests wait only for the store."""
GUARD = 5.0
"""Around the Pacific midnight a slot lies a little later."""
MODES = ("transactions", "commits")
PATIENCE = 30.0
COLLECTION = "choice"


@dataclass(slots=True)
class Told:
    """What one process has seen, or all of them."""

    admitted: int = 0
    in_time: int = 0
    failed: int = 0
    tried: int = 0
    """Commits, failed ones included."""
    seconds: list[float] = field(default_factory=list)
    why: str = ""


@dataclass(slots=True)
class Way:
    one: Callable[[int], Awaitable[None]]
    tried: Callable[[], int]


def admit(state: State, now: float) -> tuple[State, Slot | Refusal]:
    return quota.reserve(state, now, Want(1, 57), LIMITS, now + GUARD)


@contextlib.asynccontextmanager
async def by_commits(url: str, documents: int) -> AsyncIterator[Way]:
    """The gateway's own ledgers: one commit under way for each document, and all that waits goes with the next."""
    store = open_store(url)
    await store.open()
    projects = Projects(store, FixedKeys(()), Catalog.parse(builtin_catalog()))
    ledgers = [projects.quota(f"p{number}", MODEL).document for number in range(documents)]

    async def one(number: int) -> None:
        found = await ledgers[number].apply(admit)
        assert isinstance(found, Slot)

    try:
        yield Way(one, lambda: projects.store_health.counters.commits)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def by_transactions(url: str, documents: int) -> AsyncIterator[Way]:
    """As the client's manual has it: read, decide and write in a transaction that is tried again when it is aborted."""
    from google.cloud import firestore

    client = firestore.AsyncClient(project=url.removeprefix("firestore://"))
    references = [client.collection(COLLECTION).document(f"p{number}") for number in range(documents)]
    tried = 0

    @firestore.async_transactional
    async def change(transaction, reference) -> None:  # type: ignore[no-untyped-def]
        nonlocal tried
        found = await reference.get(transaction=transaction)
        now = time.time()
        state = quota_document.unpack(found.to_dict()) if found.exists else State()
        state, slot = admit(quota.tidy(state, now), now)
        assert isinstance(slot, Slot)
        tried += 1
        transaction.set(reference, quota_document.pack(state))

    async def one(number: int) -> None:
        await change(client.transaction(), references[number])

    try:
        yield Way(one, lambda: tried)
    finally:
        client.close()  # type: ignore[no-untyped-call]


async def counted(mode: str, url: str) -> int:
    """What the documents say was admitted."""
    if mode == "commits":
        store = open_store(url)
        await store.open()
        found = [quota_document.unpack(document) for document, _ in (await store.scan("quota:")).values()]
        await store.close()
    else:
        from google.cloud import firestore

        client = firestore.AsyncClient(project=url.removeprefix("firestore://"))
        found = [quota_document.unpack(entry.to_dict() or {}) async for entry in client.collection(COLLECTION).stream()]
        client.close()  # type: ignore[no-untyped-call]
    return sum(requests for state in found for requests, _ in state.days.values())


async def drive(way: Way, documents: int, seconds: float, rate: float, tasks: int, seed: int) -> Told:
    """`rate` requests a second, or as many as the tasks can. What is under way at the end is waited for and counted,
    but not as in time.
    """
    told, rng, began, before = Told(), random.Random(seed), time.perf_counter(), way.tried()

    async def measured() -> None:
        start = time.perf_counter()
        try:
            await asyncio.wait_for(way.one(rng.randrange(documents)), PATIENCE)
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
        for _ in range(0 if rate else tasks):
            group.create_task(busy())
        due = rng.expovariate(rate) if rate else seconds
        while due < seconds:
            await asyncio.sleep(began + due - time.perf_counter())
            group.create_task(measured())
            due += rng.expovariate(rate)  # not from now: a late loop must not thin the load out
    told.tried = way.tried() - before
    return told


async def work(chosen: argparse.Namespace) -> None:
    opened = by_commits if chosen.mode == "commits" else by_transactions
    async with opened(chosen.url, chosen.documents) as way:
        with contextlib.suppress(Exception):  # connected, and each document made
            await asyncio.gather(*(way.one(number) for number in range(chosen.documents)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        told = await drive(way, chosen.documents, chosen.seconds, chosen.rate, chosen.tasks, chosen.seed)
        print(json.dumps(asdict(told)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("url")
    parser.add_argument("--count", action="store_true", help="only say what the documents hold")
    for name in ("--documents", "--tasks", "--seed"):
        parser.add_argument(name, type=int, default=1)
    for name in ("--seconds", "--rate"):
        parser.add_argument(name, type=float, default=0.0)
    chosen = parser.parse_args()
    if chosen.count:
        print(asyncio.run(counted(chosen.mode, chosen.url)))
    else:
        asyncio.run(work(chosen))


if __name__ == "__main__":
    main()
