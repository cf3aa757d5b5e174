"""`pollux serve` when it must end: what still runs is ended with an error before the server would cut it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemini_simulator import Fault
from pollux.server.admission import AT_HOME, IN_CLOUD, Patience
from tests.e2e.processes import (
    ADMIN,
    FUNCTION,
    TOKEN,
    Gateway,
    address_of,
    environment,
    eventually,
    prompt,
    simulated,
    write_keys,
)
from tests.e2e.test_leaving import CHAT, asking, generating

SOON = (
    "import pollux.server.admission as r, pollux.cli.main\n"
    "r.AT_HOME = r.AT_HOME._replace(cut=1.0)\n"
    "pollux.cli.main.main(['serve', '--port', '0'])"
)
"""Half a minute is too long for a test."""


@contextmanager
def serving_shortly(folder: Path, upstream: str) -> Iterator[Gateway]:
    keys = str(write_keys(folder, [1, 2]))
    environ = environment(keys_file=keys, store="memory://", token=TOKEN, admin_token=ADMIN, upstream=upstream)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SOON], cwd=FUNCTION, env=environ, stdout=stderr, stderr=stderr
        )
    found = Gateway(process, folder, "")
    try:
        found.url = address_of(found)
        yield found
    finally:
        found.kill()


@pytest.mark.parametrize(
    ("target", "body", "last"),
    [
        (generating(verb="streamGenerateContent"), prompt(), b'\n{"error"'),
        ("/v1/chat/completions", CHAT, b'data: {"error"'),
        (generating(), prompt(), b'"reason": "STOPPING"'),
    ],
    ids=["native", "openai", "plain"],
)
def test_what_does_not_end_is_cut_in_words(tmp_path: Path, target: str, body: bytes, last: bytes) -> None:
    with simulated(2) as (simulator, url), serving_shortly(tmp_path, url) as gateway:
        simulator.faults.append(Fault(kind="slow" if target == generating() else "drip", seconds=60))
        with asking(gateway.url, target, body) as made:
            eventually(5, lambda: simulator.calls)
            time.sleep(0.3)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            came = b""
            while data := made.recv(65536):
                came += data
        assert 0.9 < time.monotonic() - began < 10
        assert last in came
        assert gateway.process.wait(5) == 0
        assert "Traceback" not in gateway.said()


@pytest.mark.parametrize(("patience", "killed_after"), [(AT_HOME, 31), (IN_CLOUD, 10)])
def test_the_cut_comes_before_the_servers_own_and_that_before_the_platforms(
    patience: Patience, killed_after: float
) -> None:
    assert patience.wait < patience.cut < patience.finish < killed_after
