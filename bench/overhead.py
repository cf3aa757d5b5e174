"""What the gateway costs: against a bare relay over the same upstream, in turn, as ratios of medians; the upstream
speaks HTTP and then TLS, and the gateway reaches it by its own connections and through httpx2.

python -m bench.overhead [--seconds 4] [--rounds 5] [--peer NAME=URL …]
python -m bench.overhead --keys 8,100,1000     (many_keys.py says what else)
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.load import Result, load, request, upstream
from bench.tls import of_client, of_server
from tools.certificate import make_certificate

TOKEN = "bench-client-token"  # noqa: S105 - of a gateway that lives for this run only
PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM_PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
LIMITS = {"rpm": 10_000_000, "tpm": 10_000_000_000, "rpd": 1_000_000_000}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


def unpin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


@contextlib.contextmanager
def process(
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    core: int | None = 0,
    log: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server of ours on one core (None: any), up when this is entered and gone when it is left."""
    said = log.open("w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
    child = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=said,
        preexec_fn=None if core is None else lambda: pin(core),
    )
    try:
        if not _is_up(url, child):
            said.seek(0)
            raise SystemExit(f"a server of the benchmark did not start: {said.read()[-2000:].decode()}")
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        said.close()


def _is_up(url: str, child: "subprocess.Popen[bytes]") -> bool:
    host, _, port = url.split("://")[1].partition(":")
    for _ in range(2000):
        if child.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 0.2):
            return True
        time.sleep(0.005)
    return False


@contextlib.contextmanager
def gateway(
    upstream_url: str,
    folder: Path,
    *,
    keys: int = 4,
    limits: Mapping[str, int] | None = LIMITS,
    value: str = "bench-key-value-",
    window: str = "sliding",
    core: int | None = 0,
    python: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """`limits`: None makes a key.txt, which has values only. `python`: flags of the interpreter.

    `settings`: more of its environment.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    file = keys_file(folder, port, keys, limits, value)
    environment = {
        "POLLUX_UPSTREAM": upstream_url,
        "POLLUX_KEYS_FILE": str(file),
        "POLLUX_STORE": f"sqlite:///{folder / f'store-{port}.db'}",
        "POLLUX_DATA": str(folder),
        "POLLUX_TOKEN": TOKEN,
        "POLLUX_WINDOW": window,
        **(settings or {}),
    }
    with process([*python, "-m", "pollux", "serve", "--port", str(port)], environment, url, core) as child:
        yield url, child


def keys_file(folder: Path, port: int, keys: int, limits: Mapping[str, int] | None, value: str) -> Path:
    values = {f"key-{i}": f"{value}{i}" for i in range(1, keys + 1)}
    if limits is None:
        file = folder / f"keys-{port}.txt"
        file.write_text("".join(f"{value}\n" for value in values.values()))
        return file
    file = folder / f"keys-{port}.json"
    entries = [{"id": name, "api_key": value, "limits": {"*": limits}} for name, value in values.items()]
    file.write_text(json.dumps({"providers": {"gemini": {"keys": entries}}}))
    return file


@contextlib.contextmanager
def bare_relay(upstream_url: str, settings: Mapping[str, str]) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off", "--port", str(port)]
    with process(
        ["-m", "uvicorn", "bench.bare_relay:app", *flags], {"BENCH_UPSTREAM": upstream_url, **settings}, url
    ) as child:
        yield url, child


def resident(child: "subprocess.Popen[bytes]") -> float:
    """MB"""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def processor(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def time_to_first_answer(upstream_url: str, folder: Path) -> float:
    began = time.perf_counter()
    with gateway(upstream_url, folder) as (url, _):
        asked = urllib.request.Request(url + PATH, b"{}", {"x-goog-api-key": TOKEN})  # noqa: S310 - our own URL
        urllib.request.urlopen(asked, timeout=10).read()  # noqa: S310
        return time.perf_counter() - began


async def measure(
    seconds: float, rounds: int, peers: Mapping[str, str], memory_requests: int
) -> list[tuple[str, str, str]]:
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = make_certificate(folder)
        async with upstream() as target, upstream(of_server(file)) as encrypted:
            rows = await _compared(target, folder, file, seconds, rounds, peers)
            rows += await _compared(encrypted, folder, file, seconds, rounds, {})
            starts = [await asyncio.to_thread(time_to_first_answer, target, folder) for _ in range(5)]
            rows.append(("start to first answer, s", f"{statistics.median(starts):.2f}", "at most 0.8"))
            rows += await _memory(target, folder, memory_requests)
    return rows


async def _compared(
    target: str, folder: Path, file: Path, seconds: float, rounds: int, peers: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """One upstream: without anything between, through the bare relay, and through gateways, in turn."""
    headers = [("x-goog-api-key", TOKEN)]
    tls = of_client(file)
    trusts = {"SSL_CERT_FILE": str(file)}
    with (
        bare_relay(target, trusts) as (bare, bare_child),
        gateway(target, folder, settings=trusts) as (ours, our_child),
        gateway(target, folder, settings=trusts | {"POLLUX_HTTP": "httpx"}) as (httpx, httpx_child),
    ):
        urls = {"direct": target, "bare relay": bare, "pollux": ours, "pollux through httpx2": httpx, **peers}
        children = {"bare relay": bare_child, "pollux": our_child, "pollux through httpx2": httpx_child}
        used: dict[str, list[float]] = {n: [] for n in children}
        busy: dict[str, list[Result]] = {n: [] for n in urls}
        alone: dict[str, list[Result]] = {n: [] for n in urls}
        streams: dict[str, list[Result]] = {n: [] for n in urls}
        for _round in range(rounds + 1):
            for which, url in urls.items():
                payload = request(url, PATH, headers)
                before = processor(children[which].pid) if which in children else 0.0
                busy[which].append(await load(url, payload, connections=32, seconds=seconds, tls=tls))
                if which in children:
                    spent = processor(children[which].pid) - before
                    used[which].append(spent / len(busy[which][-1].whole))
                alone[which].append(await load(url, payload, connections=1, seconds=seconds / 4, tls=tls))
                stream = request(url, STREAM_PATH, headers)
                streams[which].append(await load(url, stream, connections=1, each=20, tls=tls))
    return _table(urls, busy, alone, streams, used, tls=target.startswith("https:"))


def _table(
    urls: Mapping[str, str],
    busy: Mapping[str, list[Result]],
    alone: Mapping[str, list[Result]],
    streams: Mapping[str, list[Result]],
    used: Mapping[str, list[float]],
    *,
    tls: bool,
) -> list[tuple[str, str, str]]:
    """The first round warms up and does not count."""
    rate = {n: statistics.median(r.per_second for r in busy[n][1:]) for n in urls}
    median = {n: statistics.median(s for r in alone[n][1:] for s in r.whole) * 1000 for n in urls}
    first = {n: statistics.median(s for r in streams[n][1:] for s in r.first) * 1000 for n in urls}
    rows = [(f"{n}: requests/s at 32 connections", f"{rate[n]:,.0f}", "") for n in urls]
    rows += [(f"{n}: median ms at 1 connection", f"{median[n]:.3f}", "") for n in urls]
    rows += [(f"{n}: first byte of a stream, ms", f"{first[n]:.3f}", "") for n in urls]
    rows += [(f"{n}: µs of a processor a request", f"{statistics.median(used[n][1:]) * 1e6:,.0f}", "") for n in used]
    failed = sum(r.failed for results in (busy, alone, streams) for n in results for r in results[n])
    for name, asked in (("pollux", "at least 0.7" if tls else "at least 0.6"), ("pollux through httpx2", "")):
        ratios = [a.per_second / b.per_second for a, b in zip(busy[name][1:], busy["bare relay"][1:], strict=True)]
        rows.append((f"{name} / bare relay, requests/s", f"{statistics.median(ratios):.2f}", asked))
    rows += [
        ("pollux - bare relay, median ms", f"{median['pollux'] - median['bare relay']:.3f}", "at most 0.4"),
        ("pollux - direct, first byte, ms", f"{first['pollux'] - first['direct']:.3f}", "at most 2"),
        ("answers that were not 200", str(failed), "0"),
    ]
    return [(f"over TLS, {what}" if tls else what, value, asked) for what, value, asked in rows]


async def _memory(target: str, folder: Path, requests: int) -> list[tuple[str, str, str]]:
    with gateway(target, folder) as (url, child):
        payload = request(url, PATH, [("x-goog-api-key", TOKEN)])
        await load(url, payload, connections=32, each=requests // 5 // 32)
        early = resident(child)
        await load(url, payload, connections=32, each=requests * 4 // 5 // 32)
        late = resident(child)
    return [
        (f"MB after {requests // 5:,} requests", f"{early:.1f}", ""),
        (f"MB after {requests:,} requests", f"{late:.1f}", "under 90"),
        ("growth in between, MB", f"{late - early:.1f}", "none"),
    ]


def show(rows: Sequence[tuple[str, str, str]]) -> None:
    for what, value, asked in rows:
        print(f"  {what:<55} {value:>10}  {asked}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement at 32 connections")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=URL", help="another gateway, for comparison"
    )
    many = parser.add_argument_group("what many keys cost, instead of all else")
    many.add_argument("--keys", metavar="N,N,…", help="compare gateways with so many keys")
    many.add_argument("--variants", default="untiered,slow,fast", help="what is known of the keys (default: all three)")
    many.add_argument("--connections", type=int, default=1)
    many.add_argument("--models", type=int, default=1, choices=(1, 2, 3), help="asked for in turn")
    many.add_argument("--profile", type=Path, metavar="FILE", help="profile one gateway with the most keys instead")
    many.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    chosen = parser.parse_args()
    if chosen.keys:
        from bench import many_keys  # it builds on this module

        counts, variants = [int(count) for count in chosen.keys.split(",")], chosen.variants.split(",")
        if chosen.profile:
            asyncio.run(many_keys.profile(max(counts), variants[0], chosen.profile.absolute()))
        else:
            rows = asyncio.run(many_keys.measure(counts, variants, chosen.connections, chosen.models))
            show(rows)
            if chosen.write:
                many_keys.write(rows)
        return
    peers = dict(peer.split("=", 1) for peer in chosen.peer)
    show(asyncio.run(measure(chosen.seconds, chosen.rounds, peers, chosen.memory_requests)))


if __name__ == "__main__":
    main()
