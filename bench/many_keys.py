"""What a request costs the gateway with 8, 100 and 1,000 keys, each in a project of its own, and how long it takes to
start with them. Each request opens another conversation: one that is known finds its project without a choice.

python -m bench.overhead --keys 8,100,1000 [--variants untiered,slow,fast] [--models 1] [--connections 1]
python -m bench.overhead --keys 1000 [--variants untiered] --profile FILE
"""

import asyncio
import itertools
import pstats
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import cost
from bench.contention import Row, pivot
from bench.load import BODY, CONTENT, load, request, upstream
from bench.processes import LIMITS, PATH, TOKEN, gateway, pin

PAGE = cost.ROOT / "docs/performance.md"

VARIANTS: Mapping[str, Mapping[str, int] | None] = {
    "untiered": None,
    # Without a limit of requests a minute: no grants, every request commits. Eight keys of 60 would last for a second.
    "slow": {"tpm": LIMITS["tpm"], "rpd": LIMITS["rpd"]},
    "fast": LIMITS,
}
"""What is known of the keys: nothing but their values; limits without grants; limits with grants."""
PATHS = [PATH, *(PATH.replace("gemini-2.5-flash", name) for name in ("gemini-3.8-flash", "gemini-3.1-flash-lite"))]
ROUNDS = 15
REQUESTS = 200
"""Of one gateway in one round, at most."""
SECONDS = 0.7
"""The same, should they take longer."""
WARM_SECONDS = 20.0
"""At most, for a first request with every key, and again for as many after that: a project's first two requests cost
more than those that follow."""
STARTS = 3
ASKED_RATIO, ASKED_START = "at most 1.50", "under 1.50"
PROFILED, PROFILED_SECONDS = 2000, 40.0


def payloads(url: str, models: int = 1, keys: int = 0) -> Callable[[], bytes]:
    """Requests that differ in their first text, for so many models in turn. `keys`: each model is asked of each key."""
    content = CONTENT.encode()
    counter = itertools.count()
    assert BODY.count(content) == 1

    def payload() -> bytes:
        number = next(counter)
        headers = [("x-goog-api-key", TOKEN)]
        if keys:
            headers.append(("x-pollux-key", f"key-{number // models % keys + 1}"))
        return request(
            url, PATHS[number % models], headers, BODY.replace(content, b"%d,%d " % (keys, number) + content)
        )

    return payload


def cpu(child: "subprocess.Popen[bytes]") -> float:
    """Seconds of CPU that a process took so far, in all threads, system calls included."""
    return time.clock_gettime((~child.pid << 3) | 2)  # what clock_getcpuclockid(3) gives on Linux: to the nanosecond


async def measure(counts: Sequence[int], variants: Sequence[str], connections: int = 1, models: int = 1) -> list[Row]:
    rows: list[Row] = []
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        async with upstream() as target:
            for variant in variants:
                rows += await _compare(counts, variant, connections, models, target, Path(name))
            for variant in variants:
                rows += await _starts(counts, variant, target, Path(name))
    return rows


async def _compare(
    counts: Sequence[int], variant: str, connections: int, models: int, target: str, folder: Path
) -> list[Row]:
    """Gateways with so many keys, in turn: whatever else this machine does meets all of them."""
    costs: dict[int, list[float]] = {count: [] for count in counts}
    failed = 0
    with ExitStack() as stack:
        started = {
            count: stack.enter_context(gateway(target, folder, keys=count, limits=VARIANTS[variant]))
            for count in counts
        }
        sources = {count: payloads(url, models) for count, (url, _) in started.items()}
        for count, (url, _) in started.items():
            warm = payloads(url, models, keys=count)
            await load(url, warm, connections=1, seconds=WARM_SECONDS, each=max(100, count * models))
            await load(url, sources[count], connections=1, seconds=WARM_SECONDS, each=max(100, count * models))
        for _ in range(ROUNDS):
            for count, (url, child) in started.items():
                before = cpu(child)
                found = await load(
                    url, sources[count], connections=connections, seconds=SECONDS, each=REQUESTS // connections
                )
                costs[count].append((cpu(child) - before) / len(found.whole) * 1e6)
                failed += found.failed
    median = {count: statistics.median(found) for count, found in costs.items()}
    rows = [(f"{variant}, {count:,} keys: CPU µs a request", f"{median[count]:,.0f}", "") for count in counts]
    rows += [
        (
            f"{variant}, {count:,} keys: of {counts[0]}",
            f"{statistics.median(a / b for a, b in zip(costs[count], costs[counts[0]], strict=True)):.2f}",
            ASKED_RATIO,
        )
        for count in counts[1:]
    ]
    return [*rows, (f"{variant}, answers that were not 200", str(failed), "0")]


async def _starts(counts: Sequence[int], variant: str, target: str, folder: Path) -> list[Row]:
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(STARTS):
        for count in counts:
            found[count].append(await asyncio.to_thread(first_answer, target, folder, count, variant))
    rows: list[Row] = []
    for count, starts in found.items():
        seconds, busy = (statistics.median(values) for values in zip(*starts, strict=True))
        rows.append((f"{variant}, {count:,} keys: start to first answer, s", f"{seconds:.2f}", ASKED_START))
        rows.append((f"{variant}, {count:,} keys: of that CPU, s", f"{busy:.2f}", ""))
    return rows


def first_answer(target: str, folder: Path, count: int, variant: str) -> tuple[float, float]:
    """Seconds from the start of the process to the end of its first answer; the CPU that this took."""
    began = time.perf_counter()
    with gateway(target, folder, keys=count, limits=VARIANTS[variant]) as (url, child):
        asked = urllib.request.Request(url + PATH, BODY, {"x-goog-api-key": TOKEN})  # noqa: S310 - our own URL
        urllib.request.urlopen(asked, timeout=30).read()  # noqa: S310
        return time.perf_counter() - began, cpu(child)


def write(rows: Sequence[Row]) -> None:
    """A line for each figure, a column for what is known of the keys; after a value what is asked of it."""
    PAGE.write_text(cost.fill(PAGE.read_text(), {"keys": pivot(rows, ", ")}))


async def profile(count: int, variant: str, file: Path) -> None:
    """Where the time goes with so many keys: the whole profile into a file, its largest parts on the terminal."""
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        async with upstream() as target:
            flags = ("-m", "cProfile", "-o", str(file))
            limits = VARIANTS[variant]
            with gateway(target, Path(name), keys=count, limits=limits, python=flags) as (url, _):
                found = await load(url, payloads(url), connections=1, seconds=PROFILED_SECONDS, each=PROFILED)
    print(f"{len(found.whole):,} requests with {count:,} keys ({variant}); the start is part of the profile")
    stats = pstats.Stats(str(file)).strip_dirs()
    stats.sort_stats("tottime").print_stats(25)
    stats.sort_stats("cumulative").print_stats("pollux|pool|relay|projects|ranking|quota", 40)
