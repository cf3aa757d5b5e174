"""What benchmarks share: gateways and other servers as processes of their own, pinned to cores; rows on a terminal."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TOKEN = "bench-client-token"  # noqa: S105 - of a gateway that lives for this run only
PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
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


def resident(child: "subprocess.Popen[bytes]") -> float:
    """MB"""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def processor(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(rows: Sequence[tuple[str, str, str]]) -> None:
    for what, value, asked in rows:
        print(f"  {what:<55} {value:>10}  {asked}")
