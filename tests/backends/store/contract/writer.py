"""A process of the races: `writer.py URL NAME COUNT`. Counts up in one document, one line of output for each commit.

The line says what was acknowledged; whoever reads it may take it as a promise that the commit is in the store.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4] / "function"))

from pollux.backends.store.contract import ConflictError, Document, Store
from pollux.backends.store.opening import open_store


def counted(document: Document, name: str) -> Document:
    by = document.get("by", {})
    return {"total": document.get("total", 0) + 1, "by": {**by, name: by.get(name, 0) + 1}}


async def count_up(store: Store, name: str) -> int:
    """Once, however often somebody else is faster. What this writer has counted until now."""
    while True:
        document, version = (await store.read(["counter"])).get("counter", ({}, None))
        await asyncio.sleep(0)  # between reading and writing others must get their turn, or nobody races
        new = counted(document, name)
        try:
            await store.commit("counter", new, version)
        except ConflictError:
            continue
        return int(new["by"][name])


async def main(url: str, name: str, count: int) -> None:
    store = open_store(url)
    await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(count):
        print(await count_up(store, name), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
