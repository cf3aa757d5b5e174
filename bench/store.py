"""What a commit costs: `python bench/store.py [--commits N]`. Inline in the event loop, as the gateway does it.

Prints commits/s and microseconds a commit, JSON included, for the memory and the SQLite store; with `--firestore` also
for Firestore's emulator, one commit after the other and 50 documents at a time, and what a commit costs this process.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "function"))

from pollux.backends.store.contract import Store
from pollux.backends.store.opening import open_store
from tools.emulator import VARIABLE, available

DOCUMENTS = 50


def document(size: int) -> dict[str, object]:
    """Of the shape of a quota's state: most of it is one packed string."""
    rest = {
        "days": {"2026-03-01": [812, 1_234_567]},
        "learned": {"rpm": [15, 1_772_390_000.5]},
        "cooldown": [1_772_390_042.9, "rpm", 2],
        "writers": {"a1b2c3d4": [4711, 1_772_390_000.123]},
        "schema": 1,
    }
    return {**rest, "slots": "7" * (size - 200)}


async def measure(store: Store, commits: int, size: int) -> list[float]:
    """Seconds of each commit, round over the documents. A pause now and then lets others run, as requests do."""
    await store.open()
    names = [f"quota/project-{number}/gemini" for number in range(DOCUMENTS)]
    body, taken = document(size), []
    versions = {name: await store.commit(name, body, None) for name in names}
    for turn in range(commits):
        name = names[turn % DOCUMENTS]
        body["schema"] = turn
        start = time.perf_counter()
        versions[name] = await store.commit(name, body, versions[name])
        taken.append(time.perf_counter() - start)
        if turn % 10 == 9:
            await asyncio.sleep(0)
    await store.close()
    return taken


async def measure_at_once(store: Store, commits: int, size: int) -> list[float]:
    """The same with one commit under way for each document."""
    await store.open()
    taken: list[float] = []

    async def one(name: str) -> None:
        body, version = document(size), None
        for turn in range(commits // DOCUMENTS):
            body["schema"] = turn
            start = time.perf_counter()
            version = await store.commit(name, body, version)
            taken.append(time.perf_counter() - start)

    await asyncio.gather(*(one(f"at-once/project-{number}/gemini") for number in range(DOCUMENTS)))
    await store.close()
    return taken


def firestore(commits: int, size: int) -> None:
    with available() as host:
        os.environ[VARIABLE] = host
        for how, run in ("one by one", measure), ("at once", measure_at_once):
            for turn in "to warm up", "":
                store = open_store(f"firestore://demo-bench-{os.getpid()}{'-' + turn[:2] if turn else ''}")
                start, cpu = time.perf_counter(), time.process_time()
                taken = sorted(asyncio.run(run(store, commits, size)))
                cpu, start = time.process_time() - cpu, time.perf_counter() - start
            show(f"firestore, {how}", taken, start)
            print(f"{'':<24}{cpu / len(taken) * 1e6:.0f} microseconds of this process's CPU a commit")


def show(name: str, taken: list[float], seconds: float) -> None:
    figures = [taken[int(len(taken) * part)] * 1e6 for part in (0.5, 0.99, 0.999)]
    shown = "".join(f"{figure:>8.1f}" for figure in (sum(taken) / len(taken) * 1e6, *figures))
    print(f"{name:<24}{len(taken) / seconds:>10.0f}{shown}{taken[-1] * 1e6:>9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=2048, help="bytes of a document")
    parser.add_argument("--folder", help="where the database is made; default: the temporary folder")
    parser.add_argument("--firestore", action="store_true", help="the emulator too, with a tenth of the commits")
    arguments = parser.parse_args()
    print(f"{arguments.commits} commits of {arguments.size} bytes, {DOCUMENTS} documents; microseconds")
    print(f"{'store':<24}{'commits/s':>10}{'mean':>8}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>9}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, url in ("memory", "memory://"), ("sqlite", f"sqlite:///{Path(folder).absolute() / 'bench.db'}"):
            taken = sorted(asyncio.run(measure(open_store(url), arguments.commits, arguments.size)))
            show(name, taken, sum(taken))
    if arguments.firestore:
        firestore(arguments.commits // 10, arguments.size)


if __name__ == "__main__":
    main()
