"""What the gateway costs: against a bare relay over the same upstream, in turn, as ratios of medians; the upstream
speaks HTTP and then TLS, and the gateway reaches it by its own connections and through httpx2.

python -m bench.overhead [--seconds 4] [--rounds 5] [--peer NAME=URL …]
python -m bench.overhead --keys 8,100,1000     (many_keys.py says what else)
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import many_keys
from bench.load import Result, load, request, upstream
from bench.processes import PATH, TOKEN, free_port, gateway, pin, process, processor, resident, show
from bench.tls import of_client, of_server
from tools.certificate import make_certificate

STREAM_PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


@contextlib.contextmanager
def bare_relay(upstream_url: str, settings: Mapping[str, str]) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off", "--port", str(port)]
    with process(
        ["-m", "uvicorn", "bench.bare_relay:app", *flags], {"BENCH_UPSTREAM": upstream_url, **settings}, url
    ) as child:
        yield url, child


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
