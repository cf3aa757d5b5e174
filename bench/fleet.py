"""Several gateways on one store under a load, with a simulated Gemini of their own: what they did, as it saw it.

What that is compared with is in contention.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gemini import KEPT
from bench.load import BODY, request
from bench.processes import PATH, TOKEN, free_port, process

ADMIN = "bench-admin-token"
SLOW = {"rpm": 15, "tpm": 250_000, "rpd": 100_000}
FAST = {"rpm": 1000, "tpm": 4_000_000, "rpd": 1_000_000}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    instances: int
    projects: int
    limits: Mapping[str, int]
    rate: float
    """Requests a second."""
    kind: str = "firestore"

    def store(self, folder: Path) -> str:
        if self.kind == "sqlite":
            return f"sqlite:///{folder / f'{self.name}.db'}"
        return f"firestore://bench-{self.name}-{secrets.token_hex(4)}"

    @property
    def per_second(self) -> float:
        """What the limits allow."""
        return self.projects * self.limits["rpm"] / 60


def slow(instances: int, kind: str) -> Case:
    return Case(f"slow-{instances}", instances, 8, SLOW, 1.5 * 8 * SLOW["rpm"] / 60, kind)


def fast(kind: str) -> Case:
    return Case(f"fast-{kind}", 2, 4, FAST, 50.0, kind)


@dataclass(slots=True)
class Seen:
    """One case, from the moment at which it counts."""

    answers: list[tuple[int, float, float]] = field(default_factory=list)
    """(status, seconds, seconds waited for a slot) of each request that came in that time."""
    calls: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """project -> (time, status) of each call that the simulator saw, also before."""
    began: float = 0.0
    ended: float = 0.0
    store: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    """What each gateway says of its store, at the beginning and at the end."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The log lines of the requests that came in that time."""
    cpu: float = 0.0
    """Seconds, of all gateways."""

    def counted(self) -> list[tuple[float, int]]:
        return [call for calls in self.calls.values() for call in calls if self.began <= call[0] < self.ended]

    def asked(self, name: str) -> int:
        return sum(after.get(name, 0) - before.get(name, 0) for before, after in self.store)

    def per_call(self, name: str) -> float:
        return self.asked(name) / max(1, len(self.counted()))

    def waits(self) -> list[float]:
        """Milliseconds that each request that was served waited for the store, in order."""
        return sorted(line["store_ms"] for line in self.requests if line["status"] == 200 and "store_ms" in line)

    def peak(self) -> int:
        """The most calls of one project in any 60 s, refused ones included; since the very beginning."""
        return max((peak([at for at, _ in calls]) for calls in self.calls.values()), default=0)


def peak(times: Sequence[float], window: float = 60.0) -> int:
    """The most of them in any `window` seconds: a moment exactly that much later is no longer in it."""
    ordered, first, most = sorted(times), 0, 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most


# --- one case ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gateways(case: Case, upstream: str, folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """url -> process id of each. Their logs lie in the folder."""
    entries = [
        {"id": f"key-{i}", "api_key": f"simulated-key-{i}", "limits": {"*": case.limits}}
        for i in range(1, case.projects + 1)
    ]
    file = folder / f"keys-{case.name}.json"
    file.write_text(json.dumps({"providers": {"gemini": {"keys": entries}}}))
    settings = {
        **environment,
        "POLLUX_UPSTREAM": upstream,
        "POLLUX_KEYS_FILE": str(file),
        "POLLUX_STORE": case.store(folder),
        "POLLUX_DATA": str(folder),
        "POLLUX_TOKEN": TOKEN,
        "POLLUX_ADMIN_TOKEN": ADMIN,
        "POLLUX_LOG": "json",
    }
    with contextlib.ExitStack() as stack:
        found = {}
        for _ in range(case.instances):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            command = ["-m", "pollux", "serve", "--port", str(port)]
            log = folder / f"{case.name}-{port}.log"
            found[url] = stack.enter_context(process(command, settings, url, core=None, log=log)).pid
        yield found


@contextlib.contextmanager
def simulator(case: Case) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "bench.gemini", str(port), str(case.projects), json.dumps(dict(case.limits))]
    with process(command, {}, url, core=None):
        yield url


async def _call(url: str, payload: bytes) -> tuple[int, bytes, bytes]:
    """(status, head, body) of one call on a connection of its own; 0 if there was no answer."""
    host, _, port = url.split("://", 1)[1].partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return 0, b"", b""
    try:
        writer.write(payload)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split(None, 2)[1]), head.lower(), body
    except (IndexError, OSError):
        return 0, b"", b""
    finally:
        writer.close()


async def _get(url: str, path: str) -> Any:
    lines = [f"GET {path} HTTP/1.1", "host: bench", "connection: close", f"authorization: Bearer {ADMIN}"]
    status, _, body = await _call(url, "\r\n".join([*lines, "", ""]).encode())
    if status != 200:
        raise SystemExit(f"the benchmark got {status} for {path}: {body[:200].decode(errors='replace')}")
    return json.loads(body)


def _waited(head: bytes) -> float:
    _, found, rest = head.partition(b"x-pollux-wait-ms:")
    return int(rest.split(b"\r\n", 1)[0]) / 1000 if found else 0.0


def _cpu(pids: Sequence[int]) -> float:
    ticks = os.sysconf("SC_CLK_TCK")
    parts = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum((int(p[11]) + int(p[12])) / ticks for p in parts)


def measure(
    cases: Sequence[Case], seconds: float, folder: Path, environment: Mapping[str, str], warm: float
) -> list[Seen]:
    """All of them side by side. `warm` seconds of the same load come first and do not count."""
    with contextlib.ExitStack() as stack:
        up = []
        for case in cases:
            upstream = stack.enter_context(simulator(case))
            up.append((case, upstream, stack.enter_context(gateways(case, upstream, folder, environment))))

        async def together() -> list[Seen]:
            return await asyncio.gather(*(_drive(case, seconds, warm, url, instances) for case, url, instances in up))

        found = asyncio.run(together())
    for case, seen in zip(cases, found, strict=True):
        seen.requests = [r for r in _requests(folder, case) if seen.began <= r["at"] < seen.ended]
    return found


def _requests(folder: Path, case: Case) -> Iterator[dict[str, Any]]:
    for log in folder.glob(f"{case.name}-*.log"):
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):
                yield json.loads(line)["request"]


async def _drive(case: Case, seconds: float, warm: float, upstream: str, instances: Mapping[str, int]) -> Seen:
    seen, rng = Seen(), random.Random(case.instances)
    headers = [("x-goog-api-key", TOKEN), ("x-pollux-fallback", "off"), ("connection", "close")]
    urls, pids, numbers = list(instances), list(instances.values()), itertools.count()

    async def one(counts: bool) -> None:
        url = rng.choice(urls)
        began = time.perf_counter()
        body = BODY.replace(b"Measure", b"%d: measure" % next(numbers), 1)  # each a conversation of its own
        status, head, said = await _call(url, request(url, PATH, headers, body))
        if counts and status not in (200, 429):
            print(f"{case.name}: {status}: {said[:300]!r}", file=sys.stderr, flush=True)
        if counts:
            seen.answers.append((status, time.perf_counter() - began, _waited(head)))

    async def stores() -> list[dict[str, Any]]:
        return [(await _get(url, "/admin/status"))["store"] for url in urls]

    began, due, cpu = time.monotonic(), 0.0, 0.0
    before: list[dict[str, Any]] = []
    async with asyncio.TaskGroup() as group:
        while due < warm + seconds:
            await asyncio.sleep(began + due - time.monotonic())
            if not before and due >= warm:
                before, cpu, seen.began = await stores(), _cpu(pids), time.time()
            group.create_task(one(bool(before)))
            due += rng.expovariate(case.rate)  # not from now: a late loop must not thin the load out
        after = await stores()
        seen.ended, seen.cpu = time.time(), _cpu(pids) - cpu
    seen.store = list(zip(before, after, strict=True))
    log = await _get(upstream, "/simulator/log")
    if len(log) >= KEPT:
        raise SystemExit(f"the simulator remembers {KEPT} calls: choose fewer minutes")
    for call in log:
        if call["project"]:
            seen.calls.setdefault(call["project"], []).append((call["at"], call["status"]))
    return seen
