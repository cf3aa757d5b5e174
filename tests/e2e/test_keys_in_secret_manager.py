"""Gateways whose keys and tokens are in Secret Manager: served, denied, rotated under load, and without it."""

import contextlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemini_simulator import Fault
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager
from tests.backends.keys.fake_secret_manager import serving as secret_manager
from tests.e2e.processes import ADMIN, TOKEN, Gateway, environment, eventually, key_value, pollux, serving, simulated


def environ_of(google: SecretManager, folder: Path, upstream: str = "http://127.0.0.1:1") -> dict[str, str]:
    settings = {"data": str(folder / "data"), "store": "memory://", "secrets": PROJECT, "upstream": upstream}
    settings |= {"strategy": "round_robin", "sticky": "off"}  # so that every key has its turn
    return environment(**settings) | {"SECRET_MANAGER_EMULATOR_HOST": google.host}


@contextlib.contextmanager
def gateway(google: SecretManager, folder: Path, upstream: str) -> Iterator[Gateway]:
    folder.mkdir(exist_ok=True)
    with serving(folder, environ_of(google, folder, upstream)) as started:
        yield started


@contextlib.contextmanager
def filled(keys: int = 3) -> Iterator[SecretManager]:
    """Keys 1, 2, …, each of a project of its own, and a token for each purpose."""
    with secret_manager() as google:
        for number in range(1, keys + 1):
            google.put(f"pollux-key-key-{number}", key_value(number), project=f"team-{number}")
        google.put("pollux-token-web", TOKEN)
        google.put("pollux-admin-token", ADMIN)
        yield google


def test_keys_and_tokens_of_secret_manager_serve(tmp_path: Path) -> None:
    with filled() as google, simulated() as (simulator, url), gateway(google, tmp_path, url) as started:
        served = {started.generate(text=str(n)).headers["x-pollux-key"] for n in range(6)}
        assert served == {"key-1", "key-2", "key-3"}
        assert {call.key for call in simulator.calls} == served
        assert started.status()["pool"]["problems"] == []
        other = Gateway(started.process, tmp_path, started.url, token="test-token-that-nobody-made")
        assert other.generate().status == 401
        assert not any(key_value(n) in started.said() or TOKEN in started.said() for n in (1, 2, 3))
        asked = Counter(google.asked)
        assert asked["access_secret_version", "pollux-key-key-1"] == 1  # however many requests there were


def test_permission_denied_on_one_secret_costs_only_its_key(tmp_path: Path) -> None:
    with filled() as google, simulated() as (_, url), gateway(google, tmp_path, url) as started:
        google.fail("access_secret_version", "DENIED", "pollux-key-key-2")
        answers = [started.generate(text=str(n)) for n in range(9)]
        served = {(answer.status, answer.headers["x-pollux-key"]) for answer in answers}
        assert served == {(200, "key-1"), (200, "key-3")}
        status = started.status()
        assert {key["id"]: key["state"] for key in status["keys"]}["key-2"] == "aside"
        (problem,) = status["pool"]["problems"]
        assert "grant roles/secretmanager.secretAccessor on secret pollux-key-key-2" in problem


def test_a_key_whose_secret_is_rotated_under_load_costs_no_client_anything(tmp_path: Path) -> None:
    with filled(2) as google, simulated(5) as (simulator, url), gateway(google, tmp_path, url) as started:
        answers: Counter[int] = Counter()
        end = threading.Event()

        def ask(name: int) -> None:
            while not end.is_set():
                answers[started.generate(text=f"{name}").status] += 1

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        try:
            assert eventually(5, lambda: {call.key for call in simulator.calls} == {"key-1", "key-2"})
            google.add("pollux-key-key-1", key_value(5))
            simulator.faults.append(Fault(kind="invalid-key", key="key-1"))  # Google forgets the old value at once
            assert eventually(5, lambda: sum(call.key == "key-5" for call in list(simulator.calls)) > 20)
        finally:
            end.set()
            for thread in threads:
                thread.join()
        assert answers.keys() == {200}
        assert {key["id"]: key["state"] for key in started.status()["keys"]} == {"key-1": "healthy", "key-2": "healthy"}


def test_the_command_rotates_a_key_that_google_refused(tmp_path: Path) -> None:
    with filled(1) as google, simulated(2) as (simulator, url), gateway(google, tmp_path, url) as started:
        simulator.faults.append(Fault(kind="invalid-key", key="key-1"))
        assert started.generate().status == 503
        environ = environ_of(google, tmp_path, url)
        command = [sys.executable, "-m", "pollux", "keys", "rotate", "key-1"]
        options: dict[str, Any] = {"cwd": tmp_path, "env": environ, "capture_output": True}
        rotated = subprocess.run(command, input=key_value(2).encode(), timeout=30, check=False, **options)
        assert (rotated.returncode, rotated.stderr) == (0, b"")
        assert google.states("pollux-key-key-1") == ["DISABLED", "ENABLED"]
        with gateway(google, tmp_path / "b", url) as another:
            assert another.generate().status == 200


def test_secret_manager_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    with filled() as google, simulated() as (_, url), gateway(google, tmp_path, url) as started:
        assert {started.generate(text=str(n)).status for n in range(6)} == {200}
        google.fail("*", "UNAVAILABLE")
        assert {started.generate(text=str(n)).status for n in range(6)} == {200}


def test_a_start_that_may_not_list_says_which_role_is_missing(tmp_path: Path) -> None:
    with filled() as google:
        google.fail("list_secrets", "DENIED")
        ended = pollux(tmp_path, environ_of(google, tmp_path), "serve", "--port", "0")
        assert ended.returncode == 2
        assert "grant roles/secretmanager.viewer on project pool" in ended.stderr
        assert "Traceback" not in ended.stderr
