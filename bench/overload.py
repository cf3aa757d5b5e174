"""Ten minutes of overload through the whole path, in real time: sockets, SQLite, and a simulator that enforces quotas.

python -m bench.overload [--minutes 10] [--enforce sliding] [--load 1.5] [--window sliding]
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path

from bench.load import BODY, request
from bench.processes import PATH, TOKEN, free_port, gateway, process, show

PROJECTS = 8
LIMITS = {"rpm": 15, "tpm": 250_000, "rpd": 100_000}
FIRST_WINDOW = 61.5


async def _ask(url: str, payload: bytes) -> int:
    """The status of one call on a connection of its own."""
    host, _, port = url.split("://", 1)[1].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(payload)
        return int((await reader.readline()).split()[1])
    except (IndexError, ConnectionError):
        return 0
    finally:
        writer.close()


async def _counts(url: str) -> tuple[int, int]:
    """(served, refused) as the simulator counts them."""
    reader, writer = await asyncio.open_connection(*url.split("://", 1)[1].split(":"))
    writer.write(b"GET /simulator/counts HTTP/1.1\r\nhost: simulator\r\nconnection: close\r\n\r\n")
    found = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return sum(q["admitted"] for q in found["quotas"]), sum(q["refused"] for q in found["quotas"])


async def measure(minutes: float, enforce: str, load: float, folder: Path, window: str) -> list[tuple[str, str, str]]:
    port = free_port()
    simulator = f"http://127.0.0.1:{port}"
    flags = ["--port", str(port), "--keys", str(PROJECTS), "--enforce", enforce]
    flags += [part for name, limit in LIMITS.items() for part in (f"--{name}", str(limit))]
    statuses: list[tuple[float, int]] = []
    rng = random.Random(1)
    with (
        process(["-m", "pollux", "simulate", *flags], {}, simulator),
        gateway(simulator, folder, keys=PROJECTS, limits=LIMITS, value="simulated-key-", window=window) as (url, _),
    ):
        payload = request(url, PATH, [("x-goog-api-key", TOKEN), ("x-pollux-fallback", "off")], BODY)

        async def one(counted: bool) -> None:
            status = await _ask(url, payload)
            if counted:
                statuses.append((time.monotonic(), status))

        began = time.monotonic()
        end = began + FIRST_WINDOW + minutes * 60
        before: tuple[int, int] | None = None
        async with asyncio.TaskGroup() as group:
            while (now := time.monotonic()) < end:
                if before is None and now - began >= FIRST_WINDOW:
                    before = await _counts(simulator)
                group.create_task(one(before is not None))
                await asyncio.sleep(rng.expovariate(load * PROJECTS * LIMITS["rpm"] / 60))
            after = await _counts(simulator)
    assert before is not None
    served, refused = after[0] - before[0], after[1] - before[1]
    good = sum(status == 200 for _, status in statuses)
    nominal = PROJECTS * LIMITS["rpm"] * minutes
    name = f"{enforce}, load {load:g}"
    rows = [(f"{name}: refused upstream", f"{refused / max(1, served + refused):.4f}", "at most 0.0020")]
    if load > 1:
        rows.append((f"{name}: served of the nominal capacity", f"{served / nominal:.3f}", "at least 0.95"))
    else:
        rows.append((f"{name}: answered with 200", f"{good / len(statuses):.3f}", "1.000"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--enforce", choices=("sliding", "minute", "bucket"), default="sliding")
    parser.add_argument("--load", type=float, default=1.5)
    parser.add_argument("--window", choices=("sliding", "minute"), default="sliding")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        show(asyncio.run(measure(chosen.minutes, chosen.enforce, chosen.load, Path(name), chosen.window)))


if __name__ == "__main__":
    main()
