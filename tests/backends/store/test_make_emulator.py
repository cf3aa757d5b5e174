"""`make emulator`: the whole cloud shape on one machine, as a process of its own, and its end."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pollux.backends.store.firestore import FirestoreStore
from tests.e2e.processes import ADMIN, LAST, Gateway, environment, eventually, key_value
from tools.emulator import VARIABLE, answers
from tools.emulator_files import command as emulator_command

ROOT = Path(__file__).parents[3]


@contextmanager
def shape(folder: Path, *arguments: str, **environ: str) -> Iterator[Gateway]:
    emulator_command()  # there is one, or the test is skipped
    settings = environment(data=str(folder / "data"), token="test-client-token-of-nobody")
    settings |= {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}"} | environ
    settings.pop(VARIABLE, None)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cloud_shape", "--port", "0", *arguments],
            cwd=folder,
            env=settings,
            stderr=stderr,
        )
    found = Gateway(process, folder, "")
    try:
        until = time.monotonic() + 60
        while not (listens := re.search(r"listens on (\S+),", found.said())):
            assert process.poll() is None, found.said()
            assert time.monotonic() < until, found.said()
            time.sleep(0.05)
        found.url = listens[1]
        yield found
    finally:
        found.kill()


async def documents(host: str) -> list[str]:
    store = FirestoreStore("demo-pollux", emulator=host)
    await store.open()
    names = list(await store.scan(""))
    await store.close()
    return names


@pytest.mark.parametrize("keys", [{}, {"GEMINI_API_KEY": key_value(1)}], ids=["without keys", "with the user's key"])
def test_it_serves_with_its_state_in_the_emulator_and_ends_with_ctrl_c(tmp_path: Path, keys: dict[str, str]) -> None:
    with shape(tmp_path, **keys) as gateway:
        said = gateway.said()
        assert "SIMULATED GEMINI" in said
        assert ("NO KEY IS CONFIGURED" in said) == (not keys)
        assert f"with {1 if keys else 4} keys" in said
        emulator = re.search(r"Firestore emulator at (\S+):", said)
        assert emulator is not None
        answer = gateway.generate()
        assert answer.status == 200, answer.body
        if not keys:  # of a key without a tier no limit is known, and what is only counted is written at leisure
            assert asyncio.run(documents(emulator[1])) != []
        assert gateway.signal(signal.SIGINT, 30) == 0
        assert "Traceback" not in gateway.said()
        assert f"curl {gateway.url}/v1beta/" in said
        assert f"pollux status --url {gateway.url}\n" in said
        assert "--instances 2" in said, "that there is one, and how there are more"
    assert not answers(emulator[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_instances_share_keys_tokens_and_counters_and_end_together(tmp_path: Path, number: signal.Signals) -> None:
    with shape(tmp_path, "--instances", "2", POLLUX_ADMIN_TOKEN=ADMIN) as first:
        addresses = eventually(20, lambda: len(found := re.findall(r"listens on (\S+),", first.said())) == 2 and found)
        one, two = (Gateway(first.process, tmp_path, url) for url in addresses)
        for gateway in (one, two):
            assert gateway.generate(LAST).status == 200
        for gateway in (one, two):
            eventually(10, partial(knows_of, gateway, 2))  # either knows what the other has sent
            assert gateway.status()["store"]["instances"] == 2
            port = gateway.url.rpartition(":")[2]
            eventually(5, partial(said_by, first, rf"^{port} \| .* 200  generateContent"))
        assert first.signal(number, 30) == (-number if number == signal.SIGKILL else 0)
        assert "Traceback" not in first.said()
    for url in addresses:
        eventually(10, partial(silent, url))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_when_an_instance_ends_unexpectedly_the_others_end_too(tmp_path: Path) -> None:
    with shape(tmp_path, "--instances", "2") as first:
        addresses = eventually(20, lambda: len(found := re.findall(r"listens on (\S+),", first.said())) == 2 and found)
        found = Path(f"/proc/{first.process.pid}/task").glob("*/children")
        children = [pid for task in found for pid in task.read_text().split()]
        (one, _) = [pid for pid in children if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(one), signal.SIGKILL)
        assert first.process.wait(30) == 2
        assert "emulator: a gateway ended unexpectedly; its output is above" in first.said()
        assert "ResourceWarning" not in first.said()
        assert all(silent(url) for url in addresses)


def knows_of(gateway: Gateway, requests: int) -> bool:
    return bool(sum(quota["used"]["rpm"] for quota in gateway.status()["quotas"]) == requests)


def said_by(gateway: Gateway, pattern: str) -> bool:
    return re.search(pattern, gateway.said(), re.MULTILINE) is not None


def silent(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    except OSError:
        return True
    return False


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = environment(data=str(tmp_path)) | {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}"}
        command = [sys.executable, "-m", "tools.cloud_shape", "--port", str(port)]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"emulator: cannot listen on 127.0.0.1:{port}: ")


def test_without_an_emulator_it_says_so_in_its_own_words(tmp_path: Path) -> None:
    environ = environment(data=str(tmp_path)) | {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}", VARIABLE: "127.0.0.1:1"}
    command = [sys.executable, "-m", "tools.cloud_shape", "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("emulator: FIRESTORE_EMULATOR_HOST names 127.0.0.1:1, but no")
