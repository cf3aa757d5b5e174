"""Gateways as processes of their own, in front of simulators in this one; and plain calls to them. No test is here."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemini_simulator import Simulator, running

FUNCTION = Path(__file__).parents[2] / "function"
TOKEN = "test-client-token-of-nobody"
ADMIN = "test-admin-token-of-nobody"
FOREIGN = ("GEMINI_", "GOOGLE_", "OPENAI_", "POLLUX_", "K_SERVICE", "XDG_", "VIRTUAL_ENV")
FLASH = "gemini-3.8-flash"
LAST = "gemini-3.1-flash-lite"
"""The last of its chain: nothing takes its place."""


def key_value(number: int) -> str:
    """Both forms that Google's keys have; neither looks like one that works."""
    return f"AIzaTest{number}-{'x' * 29}" if number % 2 else f"AQ.test-{number}-{'x' * 24}"


def environment(**settings: str) -> dict[str, str]:
    """This process's own, without anything that a user may have set for a gateway or an SDK."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)}
    named = {f"POLLUX_{name.upper()}": value for name, value in settings.items()}
    return kept | named | {"PYTHONPATH": str(FUNCTION), "PYTHONWARNINGS": "default"}


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of an error that Pollux made; "" for an error of Google's."""
        details = self.json()["error"].get("details", [])
        return next((d["reason"] for d in details if d.get("domain") == "pollux"), "")


def call(
    url: str,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    timeout: float = 30,
) -> Answered:
    """One request exactly as written: no header is added but host and length, and the target is not touched."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items() if isinstance(headers, Mapping) else headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        return Answered(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)
    finally:
        connection.close()


def prompt(text: str = "hello") -> bytes:
    return json.dumps({"contents": [{"parts": [{"text": text}]}]}).encode()


@dataclass(slots=True)
class Gateway:
    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    token: str = TOKEN
    admin: str = ADMIN
    grouped: bool = False

    def call(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answered:
        """With the client token. `x_pollux_key="a"` is the header x-pollux-key."""
        named = {"x-goog-api-key": self.token} | {name.replace("_", "-"): value for name, value in headers.items()}
        return call(self.url, method, target, body, named)

    def generate(
        self, model: str = FLASH, text: str = "hello", verb: str = "generateContent", **headers: str
    ) -> Answered:
        query = "?alt=sse" if verb.startswith("stream") else ""
        headers = {"content_type": "application/json"} | headers
        return self.call("POST", f"/v1beta/models/{model}:{verb}{query}", prompt(text), **headers)

    def status(self) -> Any:
        answer = call(self.url, "GET", "/admin/status", headers={"authorization": f"Bearer {self.admin}"})
        assert answer.status == 200, answer.body
        return answer.json()

    def record(self, answer: Answered) -> Any:
        """What the gateway remembers of a request."""
        path = f"/admin/requests/{answer.headers['x-pollux-request-id']}"
        return call(self.url, "GET", path, headers={"authorization": f"Bearer {self.admin}"}).json()

    def quota(self, model: str, project: str = "team-1") -> Any:
        return next(q for q in self.status()["quotas"] if (q["project"], q["model"]) == (project, model))

    def said(self) -> str:
        """Its standard error."""
        return (self.folder / "stderr").read_text()

    def signal(self, number: signal.Signals = signal.SIGTERM, timeout: float = 15) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.grouped:  # the server's own children too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def write_keys(folder: Path, numbers: Sequence[int], limits: Mapping[str, Mapping[str, int]] | None = None) -> Path:
    """keys.json: key-1 of team-1, and so on."""
    keys = [
        {"id": f"key-{n}", "project": f"team-{n}", "api_key": key_value(n)} | ({"limits": limits} if limits else {})
        for n in numbers
    ]
    path = folder / "keys.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"providers": {"gemini": {"keys": keys}}}))
    new.replace(path)
    return path


@contextlib.contextmanager
def gateway(
    folder: Path,
    upstream: str,
    *,
    keys: Sequence[int] = (1, 2, 3, 4),
    limits: Mapping[str, Mapping[str, int]] | None = None,
    **settings: str,
) -> Iterator[Gateway]:
    """Serves until the end of the block; then it is killed, unless the test ended it already."""
    folder.mkdir(parents=True, exist_ok=True)
    if "keys_file" not in settings:
        settings["keys_file"] = str(write_keys(folder, keys, limits))
    chosen = {
        "data": str(folder / "data"), "store": "memory://", "token": TOKEN, "admin_token": ADMIN, "upstream": upstream
    }  # fmt: skip
    with serving(folder, environment(**(chosen | settings))) as started:
        yield started


@contextlib.contextmanager
def serving(folder: Path, environ: Mapping[str, str], *arguments: str) -> Iterator[Gateway]:
    command = [sys.executable, "-m", "pollux", "serve", "--port", "0", *arguments]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=dict(environ), stdout=stderr, stderr=stderr)
    found = Gateway(process, folder, "")
    try:
        found.url = address_of(found)
        yield found
    finally:
        found.kill()


HERE = (
    sys.executable,
    "-m",
    "functions_framework",
    "--target",
    "gateway",
    "--source",
    str(FUNCTION / "main.py"),
    "--asgi",
)


@contextlib.contextmanager
def functions(
    folder: Path, environ: Mapping[str, str], command: Sequence[str] = HERE, *, cwd: Path | None = None
) -> Iterator[Gateway]:
    """A gateway under the Functions Framework, as it is deployed: gunicorn, and uvicorn in its one worker."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"HOST": "127.0.0.1", "PORT": "0", "GUNICORN_LOG_LEVEL": "info", "HOME": str(folder)}
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd or folder, env=dict(environ) | own, stdout=stderr, stderr=stderr, start_new_session=True
        )
    found = Gateway(process, folder, "", grouped=True)
    try:
        found.url = address_of(found, r"Listening at: (\S+)")
        yield found
    finally:
        found.kill()


def address_of(started: Gateway, pattern: str = r"listens on (\S+),") -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if listens := re.search(pattern, started.said()):
            return listens[1]
        if started.process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"the gateway did not start:\n{started.said()}")


@contextlib.contextmanager
def simulated(
    projects: int = 4, limits: Mapping[str, Any] | None = None, kind: str = "sliding", **more: Any
) -> Iterator[tuple[Simulator, str]]:
    """A simulator with a thread of its own, and its address. Without limits it enforces none."""
    keys = [(f"key-{n}", f"team-{n}", key_value(n)) for n in range(1, projects + 1)]
    simulator = Simulator(keys, limits or {}, kind, **more)
    with running(simulator) as url:
        yield simulator, url


def eventually(seconds: float, true: Callable[[], Any]) -> Any:
    """The first true value within that time; fails without one."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)
    return found


def pollux(folder: Path, environ: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command of the command line, run to its end."""
    command = [sys.executable, "-m", "pollux", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )
