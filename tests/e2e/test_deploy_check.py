"""`pollux deploy check` against real gateways: as they are, behind a proxy that buffers, and what of it travels on."""

import http.client
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gemini_simulator import Fault
from tests.e2e.conftest import Pair
from tests.e2e.processes import ADMIN, TOKEN, environment, gateway, pollux, simulated

IDENTITY = "an.identity.token-of-nobody"
SECRETS = (TOKEN, ADMIN, IDENTITY)
PAGE = Path(__file__).parents[2] / "docs/check.md"


def check(pair: Pair, url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = environment(token=f"laptop={TOKEN}", admin_token=ADMIN) | {"IDENTITY_TOKEN": IDENTITY}
    ended = pollux(pair.gateway.folder, environ, "deploy", "check", url, *arguments)
    assert not [secret for secret in SECRETS if secret in ended.stdout + ended.stderr]
    assert ended.stderr == ""
    return ended


def verdicts(ended: "subprocess.CompletedProcess[str]") -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["verdict"], row["detail"]) for row in json.loads(ended.stdout)["checks"]}


def slow_stream(pair: Pair) -> None:
    pair.simulator.faults.append(Fault(kind="drip", seconds=0.2))


@contextmanager
def buffering(url: str, *, length: bool) -> Iterator[str]:
    """A proxy that passes an answer on when it has all of it. `length`: and then says how long it is."""

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            self.pass_on(self.rfile.read(int(self.headers["content-length"])))

        def pass_on(self, body: bytes | None) -> None:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            if length:
                self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_gateway_that_is_well(pair: Pair) -> None:
    slow_stream(pair)
    ended = check(pair, pair.gateway.url, "--json")
    found = verdicts(ended)
    assert ended.returncode == 0
    assert {verdict for verdict, _ in found.values()} == {"ok"}, found
    assert found["one by one"][1].startswith("4 events came at 4 moments")
    assert found["status"][1].endswith("4 keys of 4 projects, store ok")


def test_what_is_meant_for_the_platform_does_not_travel_on(pair: Pair) -> None:
    check(pair, pair.gateway.url)
    headers = {"x_serverless_authorization": f"Bearer {IDENTITY}", "content_type": "application/json"}
    assert pair.gateway.generate(**headers).status == 200
    assert len(pair.simulator.calls) == 4, "three of the check, one of ours"
    for call in pair.simulator.calls:
        text = f"{call.headers} {call.query} {call.body!r}"
        assert call.size < 250
        assert "serverless" not in text.lower()
        assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("length", [False, True], ids=["with an open end", "with its length"])
def test_a_proxy_that_buffers_is_told_apart(pair: Pair, length: bool) -> None:
    slow_stream(pair)
    with buffering(pair.gateway.url, length=length) as url:
        ended = check(pair, url, "--json")
    found = verdicts(ended)
    assert ended.returncode == 1
    assert [name for name, (verdict, _) in found.items() if verdict == "FAIL"] == ["one by one"]
    assert ("came with its length" if length else "4 events came all at once") in found["one by one"][1]


def test_under_the_functions_framework(functions_pairs: list[Pair]) -> None:
    pair = functions_pairs[0]
    slow_stream(pair)
    try:
        ended = check(pair, pair.gateway.url, "--json")
    finally:
        pair.simulator.faults.clear()
    assert {verdict for verdict, _ in verdicts(ended).values()} == {"ok"}, ended.stdout


def shape(table: str) -> list[str]:
    """What of a table does not depend on the machine and the moment."""
    plain = re.sub(r", waited \d+ ms", "", re.sub(r"http://\S+,", "URL,", table))
    plain = re.sub(r"[\d.]+( m?s)?", "N", plain)
    return [re.sub(r"\s+", " ", line).strip() for line in plain.splitlines()]


def test_the_page_shows_what_is_printed(pair: Pair) -> None:
    slow_stream(pair)
    shown = PAGE.read_text().partition("$ pollux deploy check http")[2].partition("\n")[2].partition("\n```")[0]
    assert shape(check(pair, pair.gateway.url).stdout) == shape(shown)
    pair.simulator.calls.clear()
    with buffering(pair.gateway.url, length=False) as url:
        lines = check(pair, url).stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("one by one"))
    buffered = PAGE.read_text().partition("```\none by one")[2].partition("\n```")[0]
    assert shape("\n".join(lines[at : at + 3])) == shape("one by one" + buffered)


def test_a_gateway_without_a_key_that_works(tmp_path: Path) -> None:
    with simulated() as (simulator, url), gateway(tmp_path, url) as started:
        simulator.faults.append(Fault(kind="invalid-key"))
        ended = check(Pair(started, simulator), started.url, "--json")
    found = verdicts(ended)
    assert ended.returncode == 1
    assert [found[name][0] for name in ("health", "no token", "path in z")] == ["ok"] * 3
    assert [found[name][0] for name in ("generate", "stream", "openai", "status")] == ["FAIL"] * 4
    assert found["generate"][1].startswith("503 NO_USABLE_KEY")
    assert found["status"][1].startswith("none of 4 keys is usable")
