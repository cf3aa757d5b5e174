"""A large blob passes in little memory, and a process that is killed in the middle leaves none behind."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from pollux.backends.blobs.contract import Blobs
from tests.backends.blobs.backends import Place, in_blobs

FILLER = Path(__file__).parent / "filler.py"
MEGABYTES = 200
MOST_MB = 40


def filling(place: Place, megabytes: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(FILLER), place.url, "large", str(megabytes), *more]
    return subprocess.Popen(command, env={**os.environ, **place.environ}, stdout=subprocess.PIPE, text=True)


def test_a_large_blob_takes_little_memory(parallel: Place) -> None:
    with filling(parallel, MEGABYTES) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    grown = float(said)
    assert grown < MOST_MB


def test_a_writer_that_is_killed_leaves_nothing(parallel: Place) -> None:
    with filling(parallel, 50, "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()

    async def scene(blobs: Blobs) -> None:
        assert await blobs.size("large") is None
        await asyncio.sleep(0)

    in_blobs(parallel, scene)
