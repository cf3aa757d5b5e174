"""A process that writes a blob and reads it: `filler.py URL NAME MEGABYTES`. Prints by how many MB its memory grew at
most; with `stay` behind, it says `half` in the middle of writing, and waits. STORAGE_EMULATOR_HOST is heeded."""

import asyncio
import resource
import sys
from contextlib import aclosing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "function"))

from pollux.backends.blobs.opening import open_blobs

CHUNK = bytes(range(256)) * 256  # as a server hands on what it received


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main(url: str, name: str, megabytes: int, *, stay: bool) -> None:
    blobs = open_blobs(url)
    await blobs.open()
    before = peak()
    pieces = megabytes * (1 << 20) // len(CHUNK)
    async with blobs.write(name, 4e9) as writer:
        for i in range(pieces):
            await writer.write(CHUNK)
            if stay and i == pieces // 2:
                print("half", flush=True)
                await asyncio.Event().wait()
    size = 0
    async with aclosing(blobs.read(name)) as chunks:
        async for chunk in chunks:
            size += len(chunk)
    assert size == writer.size == pieces * len(CHUNK), (size, writer.size)
    await blobs.close()
    print(f"{peak() - before:.1f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), stay="stay" in sys.argv[4:]))
