"""Uploads and downloads through the gateway: their speed against the same without it, and what memory they take.

python -m bench.uploads [--size 500] [--rounds 5]
"""

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.overhead import TOKEN, free_port, gateway, pin, process, show

MIB = 2**20
CHUNK = 8 * MIB
"""As the SDKs cut a file."""
KEY = "bench-key-value-1"
AT_ONCE = 8
FILES = "/upload/v1beta/files"
_PIECE = bytes(range(256)) * 4096


def simulator(port: int, size: int) -> None:
    """The upstream: a simulated Gemini with one project and one file that can be downloaded, whose name it prints."""
    import asyncio

    import uvicorn

    from pollux.simulator import Simulator

    made = Simulator([("key-1", "key-1", KEY)], {}, keep=0)
    made.service.files.generate("key-1", "video/mp4", _PIECE * (size // MIB), "bench")
    config = uvicorn.Config(made, port=port, log_config=None, access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve())


@contextlib.contextmanager
def running_simulator(size: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with process(["-m", "bench.uploads", "--simulator", str(port), "--size", str(size // MIB)], {}, url, core=1):
        yield url


class Client:
    """One connection. Sends what an SDK sends, at no cost but that of the socket."""

    def __init__(self, url: str, token: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        self._connection.blocksize = MIB
        self._token = token

    def close(self) -> None:
        self._connection.close()

    def upload(self, size: int, chunk: int) -> None:
        start = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
        start |= {"x-goog-api-key": self._token, "content-type": "application/json"}
        address = self._ask("POST", FILES, b"{}", start)[0]["x-goog-upload-url"]
        path = "/" + address.split("/", 3)[3]
        for offset in range(0, size, chunk):
            command = "upload, finalize" if offset + chunk >= size else "upload"
            length = min(chunk, size - offset)
            headers = {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
            pieces = (_PIECE for _ in range(length // MIB))
            self._ask("POST", path, pieces, headers | {"content-length": str(length)})

    def download(self, size: int) -> None:
        listed = self._ask("GET", "/v1beta/files?pageSize=100", None, {"x-goog-api-key": self._token})[1]
        name = next(file["name"] for file in json.loads(listed)["files"] if file["source"] == "GENERATED")
        self._connection.request("GET", f"/v1beta/{name}:download?alt=media", headers={"x-goog-api-key": self._token})
        answer = self._connection.getresponse()
        came = 0
        while piece := answer.read(MIB):
            came += len(piece)
        if (answer.status, came) != (200, size):
            raise SystemExit(f"a download was answered {answer.status}, with {came} bytes of {size}")

    def _ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
    ) -> tuple[dict[str, str], bytes]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} was answered {answer.status}: {data[:300]!r}")
        return {name.lower(): value for name, value in answer.getheaders()}, data


def seconds(url: str, token: str, work: Callable[[Client], None], many: int = 1) -> float:
    clients = [Client(url, token) for _ in range(many)]
    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    for client in clients:
        client.close()
    return took


def high_water(pid: int) -> float:
    """The most memory that a process ever held, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def measure(size: int, rounds: int) -> list[tuple[str, str, str]]:
    pin(0)
    works: dict[str, tuple[Callable[[Client], None], int]] = {
        "upload in chunks of 8 MiB": (lambda client: client.upload(size, CHUNK), 1),
        "upload in one piece": (lambda client: client.upload(size, size), 1),
        f"{AT_ONCE} uploads at once": (lambda client: client.upload(size // AT_ONCE // MIB * MIB, CHUNK), AT_ONCE),
        "download": (lambda client: client.download(size), 1),
    }
    rows: list[tuple[str, str, str]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_simulator(size) as direct,
        gateway(direct, Path(folder), keys=1) as (ours, child),
    ):
        seconds(ours, TOKEN, lambda client: client.upload(MIB, MIB))
        idle = high_water(child.pid)
        for name, (work, many) in works.items():
            ratios, speeds = [], []
            for _ in range(rounds):
                alone = seconds(direct, KEY, work, many)
                through = seconds(ours, TOKEN, work, many)
                ratios.append(alone / through)
                speeds.append(size / MIB / through)
            rows.append((f"{name}, MB/s", f"{statistics.median(speeds):,.0f}", ""))
            rows.append((f"{name}, of the simulator's speed", f"{statistics.median(ratios):.2f}", "at least 0.8"))
        rows.append((f"MB above idle after {size // MIB} MiB each", f"{high_water(child.pid) - idle:.1f}", "under 60"))
        seconds(ours, TOKEN, lambda client: client.upload(size, size), AT_ONCE)
        asked = "under 60"
        rows.append(
            (f"MB above idle, {AT_ONCE} of {size // MIB} MiB at once", f"{high_water(child.pid) - idle:.1f}", asked)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=500, help="of a file, MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--simulator", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.simulator:
        simulator(chosen.simulator, chosen.size * MIB)
        sys.exit()
    show(measure(chosen.size * MIB, chosen.rounds))


if __name__ == "__main__":
    main()
