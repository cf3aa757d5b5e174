"""What choosing, reserving and settling cost the pool with 8, 100 and 1,000 projects: CPU, in one process, over the
memory store. `many_keys` has the whole gateway's cost.

python -m bench.reserving --keys 8,100,1000 [--strategies earliest,…] [--limits untiered,slow,fast]
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from bench.many_keys import VARIANTS
from bench.scheduling import FixedKeys
from bench.virtual import table
from pollux.backends.keys.contract import Key
from pollux.backends.store.memory import MemoryStore
from pollux.gemini.catalog import Catalog
from pollux.pool.feedback import Feedback
from pollux.pool.pool import Pool
from pollux.pool.projects import Projects
from pollux.pool.reservation import Ask, Full, Tried
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import Want
from pollux.server.wiring import builtin_catalog
from pollux.settings import Settings

MODEL = "gemini-3.8-flash"
ESTIMATED, USED = 57, 60
ROUNDS = 5
SECONDS = 0.15
"""Of one pool in one round."""
WARM_SECONDS = 1.5


class Measured:
    """One pool that serves requests one after the other."""

    def __init__(self, count: int, strategy: str, limits: Mapping[str, int] | None) -> None:
        named = {"*": dict(limits)} if limits else {}
        self._keys = tuple(Key(f"k{i}", f"p{i}", limits=named) for i in range(count))
        self._store = MemoryStore(time.time)
        catalog = Catalog.parse(builtin_catalog())
        self._pool = Pool(Settings(strategy=strategy), Projects(self._store, FixedKeys(self._keys), catalog))
        self._feedback = Feedback(self._pool)

    async def warm_up(self) -> None:
        """Every project is used once, or as many as the time allows."""
        await self._store.open()
        end = time.monotonic() + WARM_SECONDS
        for key in self._keys:
            await self._request(prefer=key.id)
            if time.monotonic() > end:
                return

    async def round(self) -> float:
        """Seconds of CPU a request."""
        served, end, began = 0, time.monotonic() + SECONDS, time.process_time()
        while time.monotonic() < end:
            await self._request()
            served += 1
        return (time.process_time() - began) / served

    async def _request(self, prefer: str | None = None) -> None:
        found = await self._pool.reserve(
            MODEL, Ask(Want(1, ESTIMATED), self._pool.now() + 60, prefer_key=prefer), Tried()
        )
        assert not isinstance(found, Full), "the limits are higher than what is asked for"
        found.sent = True
        await self._feedback.served(found)
        if (pending := found.settle(USED)) is not None:
            await pending
        found.let_go()


async def compare(counts: Sequence[int], strategy: str, variant: str) -> tuple[str, ...]:
    """A row: µs a request with each count, and the ratio of the last to the first."""
    pools = [Measured(count, strategy, VARIANTS[variant]) for count in counts]
    for pool in pools:
        await pool.warm_up()
    found = [[await pool.round() for pool in pools] for _ in range(ROUNDS)]
    medians = [statistics.median(column) * 1e6 for column in zip(*found, strict=True)]
    ratio = statistics.median(line[-1] / line[0] for line in found)
    return (strategy, variant, *(f"{value:,.0f}" for value in medians), f"{ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", default="8,100,1000")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--limits", default=",".join(VARIANTS))
    chosen = parser.parse_args()
    counts = [int(count) for count in chosen.keys.split(",")]
    rows = []
    for strategy in chosen.strategies.split(","):
        for variant in chosen.limits.split(","):
            rows.append(asyncio.run(compare(counts, strategy, variant)))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    head = ("strategy", "limits", *(f"{count:,} keys, µs" for count in counts), f"{counts[-1]:,} / {counts[0]:,}")
    print(table(head, rows))


if __name__ == "__main__":
    main()
