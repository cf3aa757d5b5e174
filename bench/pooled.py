"""Pooled files: requests on one file over many projects against the same without a file, in real time; and what a large
file costs to take in, to keep and to copy. Five minutes.

python -m bench.pooled [--size 500]
"""

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.processes import TOKEN, free_port, process, show
from bench.uploads import CHUNK, FILES, MIB, Server, high_water, seconds

PROJECTS, RPM, REQUESTS = 8, 5, 50
PROCESSING = 2.0
"""Seconds until a file is active at the simulated Gemini."""
VALUE = "bench-key-value-"
MODEL, LARGE_MODEL = "gemini-3.1-flash-lite", "gemini-2.5-flash"
_PIECE = bytes(range(256)) * 4096
Rows = list[tuple[str, str, str]]


def simulator(port: int) -> None:
    """A simulated Gemini that counts as the gateway is told that it does."""
    import asyncio

    import uvicorn

    from gemini_simulator import Owning, Simulator

    keys = [(f"key-{number}", f"key-{number}", f"{VALUE}{number}") for number in range(1, PROJECTS + 1)]
    limits = {MODEL: {"rpm": RPM}, LARGE_MODEL: {"rpm": 1}}
    made = Simulator(keys, limits, keep=0, owning=Owning(processing=PROCESSING))
    config = uvicorn.Config(made, port=port, log_config=None, access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve())


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    """The simulator and a gateway in front of it."""
    google, own = free_port(), free_port()
    url, ours = f"http://127.0.0.1:{google}", f"http://127.0.0.1:{own}"
    limits = {MODEL: {"rpm": RPM}, LARGE_MODEL: {"rpm": 1}}
    keys = [
        {"id": f"key-{number}", "api_key": f"{VALUE}{number}", "limits": limits} for number in range(1, PROJECTS + 1)
    ]
    (folder / "keys.json").write_text(json.dumps({"providers": {"gemini": {"keys": keys}}}))
    environment = {
        "POLLUX_UPSTREAM": url,
        "POLLUX_KEYS_FILE": str(folder / "keys.json"),
        "POLLUX_STORE": f"sqlite:///{folder / 'store.db'}",
        "POLLUX_DATA": str(folder),
        "POLLUX_TOKEN": TOKEN,
        "POLLUX_FILES": "pooled",
        "POLLUX_BLOBS": f"file://{folder / 'blobs'}",
        "POLLUX_MAX_WAIT": "150",
    }
    with (
        process(["-m", "bench.pooled", "--simulator", str(google)], {}, url, core=None) as upstream,
        process(["-m", "pollux", "serve", "--port", str(own)], environment, ours, None) as gateway,
    ):
        yield Server(url, upstream.pid), Server(ours, gateway.pid)


def asked(url: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """The answer's document."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        sent = {"x-goog-api-key": TOKEN, "content-type": "application/json", "x-pollux-fallback": "off"} | headers
        connection.request(method, path, None if body is None else json.dumps(body).encode(), sent)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise SystemExit(f"{method} was answered {answer.status}: {data[:300]!r}")
    return json.loads(data)


def names(url: str) -> dict[str, str]:
    """And URIs of all files."""
    return {file["name"]: file["uri"] for file in asked(url, "GET", "/v1beta/files").get("files", ())}


def ask(url: str, model: str, uri: str | None) -> None:
    file = [] if uri is None else [{"fileData": {"fileUri": uri, "mimeType": "text/plain"}}]
    body = {"contents": [{"role": "user", "parts": [*file, {"text": "What is it?"}]}]}
    asked(url, "POST", f"/v1beta/models/{model}:generateContent", body)


def burst(url: str, uri: str | None) -> list[float]:
    """When each of the requests, all sent at once, was answered."""
    began = time.perf_counter()

    def one(_: int) -> float:
        ask(url, MODEL, uri)
        return time.perf_counter() - began

    with ThreadPoolExecutor(REQUESTS) as threads:
        return sorted(threads.map(one, range(REQUESTS)))


def described(ends: list[float]) -> str:
    soon = sum(end < 30 for end in ends)
    return f"{soon} within {ends[soon - 1]:.1f} s, all within {ends[-1]:.1f} s"


def bursts(url: str) -> Rows:
    rest = 62.0  # until the minutes are free again
    rows: Rows = []
    rows.append(
        (f"{REQUESTS} requests, {PROJECTS} projects at {RPM} a minute, no file", described(burst(url, None)), "")
    )
    time.sleep(rest)
    raw = {"x-goog-upload-protocol": "raw", "x-goog-upload-command": "upload, finalize", "content-type": "text/plain"}
    file = asked(url, "POST", FILES, "What stands in the file", **raw)["file"]
    time.sleep(PROCESSING)
    more = f"the copies take {PROCESSING:g} s and more"
    rows.append(("the same, each with the same new file", described(burst(url, file["uri"])), more))
    time.sleep(rest)
    rows.append(("the same, each with that file again", described(burst(url, file["uri"])), "as without a file"))
    return rows


def large(google: Server, ours: Server, size: int) -> Rows:
    """One file from a client into the blobs, from there to a project, and from there to another."""
    direct = seconds(google, f"{VALUE}1", lambda client: client.upload(size, CHUNK))
    before = names(ours.url)
    idle = high_water(ours.pid)
    through = seconds(ours, TOKEN, lambda client: client.upload(size, CHUNK))
    rows: Rows = [
        (f"upload of {size // MIB} MiB at the simulator itself, MB/s", f"{size / 1e6 / direct:,.0f}", ""),
        ("taken in, hashed and uploaded to one project, MB/s", f"{size / 1e6 / through:,.0f}", ""),
    ]
    (uri,) = (uri for name, uri in names(ours.url).items() if name not in before)
    time.sleep(PROCESSING)
    ask(ours.url, LARGE_MODEL, uri)
    began = time.perf_counter()
    ask(ours.url, LARGE_MODEL, uri)  # another project: the one that has it has no room
    took = time.perf_counter() - began
    rows.append(("copied to another project and waited for, s", f"{took:.1f}", f"{PROCESSING:g} of it until ACTIVE"))
    began = time.perf_counter()
    with ThreadPoolExecutor(PROJECTS - 2) as threads:
        list(threads.map(lambda _: ask(ours.url, LARGE_MODEL, uri), range(PROJECTS - 2)))
    took = time.perf_counter() - began
    rows.append((f"copied to {PROJECTS - 2} more at once, s", f"{took:.1f}", ""))
    rows.append(("MB above idle", f"{high_water(ours.pid) - idle:.1f}", "under 60"))
    return rows


def measure(size: int) -> Rows:
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as (google, ours):
        ask(ours.url, "gemini-3.8-flash", None)
        return [*large(google, ours, size), *bursts(ours.url)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=500, help="of the large file, MiB")
    parser.add_argument("--simulator", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.simulator:
        simulator(chosen.simulator)
        sys.exit()
    show(measure(chosen.size * MIB))


if __name__ == "__main__":
    main()
