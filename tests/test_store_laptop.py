"""`make emulator`: the whole cloud shape on one machine, as a process of its own, and its end."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pollux.store.firestore import FirestoreStore
from tests.e2e.processes import Gateway, environment, key_value
from tools.emulator import VARIABLE, answers

ROOT = Path(__file__).parents[1]


@contextmanager
def shape(folder: Path, **environ: str) -> Iterator[Gateway]:
    settings = environment(data=str(folder / "data"), token="test-client-token-of-nobody")
    settings |= {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}"} | environ
    settings.pop(VARIABLE, None)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cloud_shape", "--port", "0"], cwd=folder, env=settings, stderr=stderr
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
    assert not answers(emulator[1])


def test_without_an_emulator_it_says_so_in_its_own_words(tmp_path: Path) -> None:
    environ = environment(data=str(tmp_path)) | {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}", VARIABLE: "127.0.0.1:1"}
    command = [sys.executable, "-m", "tools.cloud_shape", "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("emulator: FIRESTORE_EMULATOR_HOST names 127.0.0.1:1, but no")
