"""`make bench`: every benchmark in turn, each with what is asked of it. About thirty-five minutes; the last one needs
the Firestore emulator.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from bench import calls, contention, many_keys, overhead, overload, pooled, scheduling, untiered, uploads
from bench.processes import show

MINUTES = 3.0


def main() -> None:
    print("Overhead, against a bare relay over the same upstream, in turn (bench/overhead.py):")
    show(asyncio.run(overhead.measure(4.0, 5, {}, 100_000)))
    print("The same with many keys (bench/many_keys.py):")
    show(asyncio.run(many_keys.measure((8, 100, 1000), tuple(many_keys.VARIANTS))))
    print("What one request passes (bench/calls.py):")
    show(calls.totals(asyncio.run(calls.count())))
    print("Scheduling, the real pool in virtual time (bench/scheduling.py):")
    rows = scheduling.measure(10.0)
    show(scheduling.verdicts(rows, scheduling.big_wants(10.0)))
    print("Keys with unknown limits, the whole gateway in virtual time (bench/untiered.py):")
    show(untiered.verdicts(untiered.measure(untiered.scenes())))
    print(f"Overload in real time, {MINUTES:g} minutes (bench/overload.py; --minutes 10 for the long one):")
    with tempfile.TemporaryDirectory() as folder:
        show(asyncio.run(overload.measure(MINUTES, "sliding", 1.5, Path(folder), "sliding")))
    print("Uploads and downloads, against the simulator itself (bench/uploads.py):")
    show(uploads.measure(500 * uploads.MIB, 5))
    print("Pooled files over eight projects, five minutes (bench/pooled.py):")
    show(pooled.measure(500 * uploads.MIB))
    print("Many gateways on one Firestore (bench/contention.py; ten minutes for the long one):")
    sys.exit(bool(contention.bench(MINUTES, contention.FAST_SECONDS)))


if __name__ == "__main__":
    main()
