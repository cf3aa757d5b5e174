"""Uploads and downloads through the gateway: their speed against the same without it, and what memory they take; the
upstream speaks HTTP and then TLS.

python -m bench.uploads [--size 500] [--rounds 5]
"""

import argparse
import contextlib
import http.client
import json
import math
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.processes import TOKEN, free_port, gateway, process, processor, show
from bench.tls import of_client
from tools.certificate import make_certificate

MIB = 2**20
CHUNK = 8 * MIB
"""As the SDKs cut a file."""
KEY = "bench-key-value-1"
AT_ONCE = 8
FILES = "/upload/v1beta/files"
_PIECE = bytes(range(256)) * 4096


def simulator(port: int, size: int, pem: str | None) -> None:
    """The upstream: a simulated Gemini with one project and one file that can be downloaded, whose name it prints."""
    import asyncio

    import uvicorn

    from gemini_simulator import Simulator

    made = Simulator([("key-1", "key-1", KEY)], {}, keep=0)
    made.service.files.generate("key-1", "video/mp4", _PIECE * (size // MIB), "bench")
    config = uvicorn.Config(made, port=port, ssl_certfile=pem, log_config=None, access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve())


class Server(NamedTuple):
    url: str
    pid: int
    tls: ssl.SSLContext | None = None


@contextlib.contextmanager
def running_simulator(size: int, pem: Path | None = None) -> Iterator[Server]:
    url = f"http{'s' if pem else ''}://127.0.0.1:{(port := free_port())}"
    command = ["-m", "bench.uploads", "--simulator", str(port), "--size", str(size // MIB)]
    with process([*command, *(["--pem", str(pem)] if pem else [])], {}, url, core=None) as child:
        yield Server(url, child.pid, of_client(pem) if pem else None)


class Client:
    """One connection. Sends what an SDK sends, at no cost but that of the socket."""

    def __init__(self, server: Server, token: str) -> None:
        where = urlsplit(server.url).netloc
        self._connection = (
            http.client.HTTPSConnection(where, timeout=120, context=server.tls)
            if server.tls
            else http.client.HTTPConnection(where, timeout=120)
        )
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

    def made(self) -> str:
        """The name of the file that can be downloaded."""
        listed = self._ask("GET", "/v1beta/files", None, {"x-goog-api-key": self._token})[1]
        return next(str(file["name"]) for file in json.loads(listed)["files"] if file["source"] == "GENERATED")

    def download(self, name: str, size: int) -> None:
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


def seconds(server: Server, token: str, work: Callable[[Client], None], many: int = 1) -> float:
    clients = [Client(server, token) for _ in range(many)]
    with ThreadPoolExecutor(many) as threads:
        began = time.perf_counter()
        for done in [threads.submit(work, client) for client in clients]:
            done.result()
        took = time.perf_counter() - began
    for client in clients:
        client.close()
    return took


def high_water(pid: int) -> float:
    """The most memory that a process ever held, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def compare(direct: Server, ours: Server, size: int, rounds: int) -> list[tuple[str, str, str]]:
    """In turn; of each the best round counts, the one that whatever else runs here disturbed least."""
    asking = Client(direct, KEY)
    made = asking.made()
    asking.close()
    works: dict[str, tuple[Callable[[Client], None], int]] = {
        "upload in chunks of 8 MiB": (lambda client: client.upload(size, CHUNK), 1),
        "upload in one piece": (lambda client: client.upload(size, size), 1),
        f"{AT_ONCE} uploads at once": (lambda client: client.upload(size // AT_ONCE // MIB * MIB, CHUNK), AT_ONCE),
        "download": (lambda client: client.download(made, size), 1),
    }
    rows: list[tuple[str, str, str]] = []
    for name, (work, many) in works.items():
        alone, through = math.inf, math.inf
        used = [0.0, 0.0]
        for _ in range(rounds):
            alone = min(alone, seconds(direct, KEY, work, many))
            before = processor(direct.pid), processor(ours.pid)
            through = min(through, seconds(ours, TOKEN, work, many))
            used = [used[0] + processor(direct.pid) - before[0], used[1] + processor(ours.pid) - before[1]]
        gigabytes = size * rounds / 1e9
        rows.append((f"{name}, MB/s", f"{size / 1e6 / through:,.0f}", ""))
        rows.append((f"{name}, of the direct speed", f"{alone / through:.2f}", "at least 0.8"))
        spent = f"{used[1] / gigabytes:.2f}"
        rows.append((f"{name}, s/GB of a processor", spent, f"the simulator {used[0] / gigabytes:.2f}"))
    return rows


def measure(size: int, rounds: int) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pem = make_certificate(folder)
        rows = _measured(size, rounds, folder, None)
        return rows + [
            (f"over TLS, {what}", value, asked) for what, value, asked in _measured(size, rounds, folder, pem)
        ]


def _measured(size: int, rounds: int, folder: Path, pem: Path | None) -> list[tuple[str, str, str]]:
    """`pem`: the simulator speaks TLS, with the client where no gateway is between, else with the gateway."""
    trusts = {"SSL_CERT_FILE": str(pem)} if pem else {}
    with (
        running_simulator(size, pem) as direct,
        gateway(direct.url, folder, keys=1, core=None, settings=trusts) as (url, child),
    ):
        ours = Server(url, child.pid)
        seconds(ours, TOKEN, lambda client: client.upload(MIB, MIB))
        idle = high_water(ours.pid)
        rows = compare(direct, ours, size, rounds)
        more = f"{high_water(ours.pid) - idle:.1f}"
        rows.append((f"MB above idle, files of {size // MIB} MiB", more, "under 60"))
        seconds(ours, TOKEN, lambda client: client.upload(size, size), AT_ONCE)
        more = f"{high_water(ours.pid) - idle:.1f}"
        rows.append((f"MB above idle, {AT_ONCE} of {size // MIB} MiB at once", more, "under 60"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=500, help="of a file, MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--simulator", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--pem", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.simulator:
        simulator(chosen.simulator, chosen.size * MIB, chosen.pem)
        sys.exit()
    show(measure(chosen.size * MIB, chosen.rounds))


if __name__ == "__main__":
    main()
