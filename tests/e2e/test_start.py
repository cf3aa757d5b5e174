"""Start and stop: what cannot start says why in one line, and running requests are finished first."""

import json
import os
import re
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from gemini_simulator import Fault
from tests.e2e.processes import (
    ADMIN,
    FLASH,
    TOKEN,
    Answered,
    call,
    environment,
    eventually,
    gateway,
    key_value,
    pollux,
    prompt,
    serving,
    simulated,
    write_keys,
)


def refused(folder: Path, *arguments: str, **settings: str) -> str:
    """The one line of a gateway that does not start."""
    chosen = {"data": str(folder / "data"), "token": TOKEN, "admin_token": ADMIN, "upstream": "http://127.0.0.1:9"}
    if "keys_file" not in settings:
        chosen["keys_file"] = str(write_keys(folder, [1]))
    command = arguments or ("serve", "--port", "0")
    ended = pollux(folder, environment(**(chosen | settings)), *command)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert not [secret for secret in (TOKEN, ADMIN, key_value(1)) if secret in ended.stderr]
    return ended.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(tmp_path, "serve", "--port", port)


def test_a_start_that_fails_makes_no_token(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ended = pollux(tmp_path, environment(data=str(data), never_below="no-such-model"), "serve", "--port", "0", "--demo")
    assert ended.returncode == 2
    assert "no-such-model" in ended.stderr
    assert not (data / "tokens.json").exists(), "it is shown when it is made, and only then"


def test_a_database_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"this is no database, but long enough for the header of one " * 50)
    kept = path.read_bytes()
    assert "broken.db" in refused(tmp_path, store=f"sqlite:///{path}")
    assert path.read_bytes() == kept


def test_a_folder_in_the_place_of_a_database(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(tmp_path, store=f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_wiat", "5", "POLLUX_MAX_WAIT"),
        ("max_wait", "soon", "POLLUX_MAX_WAIT"),
        ("store", "redis://here", "POLLUX_STORE"),
        ("strategy", "fastest", "earliest"),
        ("upstream", "here", "POLLUX_UPSTREAM"),
        ("token", "abc", "POLLUX_TOKEN"),
        ("keys_file", "/nowhere/keys.json", "/nowhere/keys.json"),
        ("catalog", "/nowhere/catalog.toml", "/nowhere/catalog.toml"),
    ],
)
def test_a_setting_without_sense(tmp_path: Path, name: str, value: str, said: str) -> None:
    assert said in refused(tmp_path, **{name: value})


def test_keys_and_catalogs_without_sense(tmp_path: Path) -> None:
    keys = tmp_path / "mine.json"
    keys.write_text('{"providers": {"gemini": {"keys": [')
    assert "mine.json" in refused(tmp_path, keys_file=str(keys))
    catalog = tmp_path / "mine.toml"
    catalog.write_text('[models."gemini-9"]\nkind = "fast"\n')
    assert "gemini-9" in refused(tmp_path, catalog=str(catalog))
    catalog.write_text("[models\n")
    refused(tmp_path, catalog=str(catalog))


def test_the_first_run_makes_tokens_and_shows_one_once(tmp_path: Path) -> None:
    keys_file = str(write_keys(tmp_path, [1]))
    with simulated(1) as (_, url):
        environ = environment(data=str(tmp_path / "data"), upstream=url, keys_file=keys_file)
        with serving(tmp_path, environ) as started:
            shown = re.search(r"GEMINI_API_KEY=(\S+)", started.said())
            assert shown is not None
            assert f"GOOGLE_GEMINI_BASE_URL={started.url}" in started.said()
            path = tmp_path / "data" / "tokens.json"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            tokens = json.loads(path.read_text())
            assert tokens["client"] == shown[1]
            assert tokens["admin"] not in started.said()
            started.token, started.admin = tokens["client"], tokens["admin"]
            assert started.generate().status == 200
            assert started.status()["keys"][0]["id"] == "key-1"
        with serving(tmp_path, environ) as started:
            assert tokens["client"] not in started.said()
            started.token = tokens["client"]
            assert started.generate().status == 200


@pytest.mark.parametrize("arguments", [(), ("--demo",)])
def test_the_demo_is_loud(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # An upstream that was named is not put aside silently: only --demo does that.
    upstream = {"upstream": "http://127.0.0.1:9"} if arguments else {}
    environ = environment(data=str(tmp_path / "data"), token=TOKEN, **upstream)
    with serving(tmp_path, environ, *arguments) as started:
        assert "SIMULATED" in started.said()
        answer = started.generate()
        assert answer.status == 200
        assert "simulated" in answer.headers["x-pollux-key"]
        assert started.signal() == 0
    assert not (tmp_path / "data" / "pollux.db").exists()


@pytest.mark.parametrize("arguments", [(), ("--demo",)])
def test_the_demo_counts_in_the_store_that_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "own.db"
    environ = environment(data=str(tmp_path / "data"), token=TOKEN, store=f"sqlite:///{path}")
    with serving(tmp_path, environ, *arguments) as started:
        assert started.generate().status == 200
        assert f"ready: store sqlite:///{path}, 4 keys" in started.said()
    assert path.exists()


@pytest.mark.parametrize("arguments", [(), ("--demo",)])
@pytest.mark.parametrize("store", ["firestore://NO PROJECT", "sqlite:////proc/nowhere/x.db"])
def test_the_demo_does_not_start_with_a_store_that_is_none(
    tmp_path: Path, store: str, arguments: tuple[str, ...]
) -> None:
    environ = environment(data=str(tmp_path / "data"), token=TOKEN, admin_token=ADMIN, store=store)
    ended = pollux(tmp_path, environ, "serve", "--port", "0", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("pollux serve: store ")
    assert ended.stderr.count("\n") == 1, ended.stderr


def test_an_upstream_without_a_key_is_an_empty_pool_and_no_demo(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    environ = environment(data=data, token=TOKEN, admin_token=ADMIN, upstream="http://127.0.0.1:9")
    with serving(tmp_path, environ) as started:
        assert "SIMULATED" not in started.said()
        assert "WARNING: THERE IS NO KEY" in started.said()
        assert any("pollux keys add" in problem for problem in started.status()["pool"]["problems"])
        answer = started.generate()
        assert (answer.status, answer.reason) == (503, "NO_USABLE_KEY")


def without_simulator(tmp_path: Path) -> dict[str, str]:
    """As in the image and the zip, which do not carry it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['gemini_simulator'] = None\n")
    environ = environment(data=str(tmp_path / "data"), token=TOKEN, admin_token=ADMIN)
    return environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{environ['PYTHONPATH']}", "HOME": str(tmp_path)}


def test_without_keys_and_without_the_simulator_it_starts_and_warns(tmp_path: Path) -> None:
    with serving(tmp_path, without_simulator(tmp_path)) as started:
        assert "SIMULATED" not in started.said()
        assert "WARNING: THERE IS NO KEY" in started.said()
        assert "--demo" not in started.said()
        answer = started.generate()
        assert (answer.status, answer.reason) == (503, "NO_USABLE_KEY")


def test_the_demo_without_the_simulator_says_in_one_line_that_it_is_not_installed(tmp_path: Path) -> None:
    ended = pollux(tmp_path, without_simulator(tmp_path), "serve", "--port", "0", "--demo")
    assert ended.returncode == 2
    assert ended.stderr.startswith("pollux serve: --demo needs the simulator, which is not installed here")
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize(
    ("number", "verb"), [(signal.SIGINT, "streamGenerateContent"), (signal.SIGTERM, "generateContent")]
)
def test_an_end_finishes_what_runs(tmp_path: Path, number: signal.Signals, verb: str) -> None:
    answers: list[Answered] = []
    store = f"sqlite:///{tmp_path / 'pollux.db'}"
    with simulated() as (simulator, url), gateway(tmp_path, url, store=store) as started:
        simulator.faults.append(Fault(kind="drip" if verb.startswith("s") else "slow", seconds=0.5))
        slow = threading.Thread(target=lambda: answers.append(started.generate(verb=verb)))
        slow.start()
        eventually(5, lambda: simulator.calls)
        began = time.monotonic()
        code = started.signal(number)
        slow.join(10)
        assert code == 0
        assert time.monotonic() - began < 4
    assert [answer.status for answer in answers] == [200]
    assert b"usageMetadata" in answers[0].body
    assert "Traceback" not in started.said()


def test_while_it_ends_nobody_new_is_served(tmp_path: Path) -> None:
    with simulated() as (simulator, url), gateway(tmp_path, url) as started:
        simulator.faults.append(Fault(kind="slow", seconds=1.5))
        slow = threading.Thread(target=started.generate)
        slow.start()
        eventually(5, lambda: simulator.calls)
        started.process.terminate()
        time.sleep(0.4)
        with pytest.raises(OSError, match="refused"):
            call(started.url, "POST", f"/v1beta/models/{FLASH}:generateContent", prompt())
        slow.join(10)
        assert started.process.wait(10) == 0
