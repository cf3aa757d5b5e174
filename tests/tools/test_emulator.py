"""The Firestore emulator: which one is used, the error if there is none, and that none is left running."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pollux.backends.store.firestore import FirestoreStore
from tools import emulator, emulator_files, parts
from tools.emulator import VARIABLE, Emulator, EmulatorError, answers, available, main, started, stopped
from tools.emulator_files import IN_SDK, MAIN, NoEmulatorError, command, config, fetch, java_needed, java_version
from tools.parts import Node

ROOT = Path(__file__).parents[2]
SAY_WHERE = ("JAVA_HOME", "CLOUDSDK_ROOT_DIR", "FIRESTORE_EMULATOR_BINARY_PATH", "FIREBASE_EMULATORS_PATH")
ENDS = [signal.SIGINT] + [signal.SIGTERM, signal.SIGKILL] * (sys.platform == "linux")
"""Elsewhere nothing can be promised of a process that is killed."""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with neither emulator nor Java nor Node; its home."""
    for name in (*SAY_WHERE, VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(emulator_files, "SDKS", ())
    monkeypatch.setattr(emulator_files, "JVMS", ())
    monkeypatch.setattr(emulator_files, "java_of_pypi", lambda: None)
    monkeypatch.setattr(parts, "node_of_pypi", lambda: None)
    monkeypatch.setattr(emulator_files, "node", parts.node.__wrapped__)
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def java(path: Path, version: str) -> Path:
    return program(path / "bin/java", f"echo 'openjdk version \"{version}\" 2030-01-01' >&2")


def jar(path: Path, needs: int = 11) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MAIN.replace(".", "/") + ".class", b"\xca\xfe\xba\xbe\0\0" + (needs + 44).to_bytes(2, "big"))
    return path


def test_without_any_it_says_what_to_install_in_both_ways(bare: Path) -> None:
    with pytest.raises(EmulatorError) as error:
        Emulator().start()
    assert "gcloud components install cloud-firestore-emulator" in str(error.value)
    assert "python -m tools.emulator --fetch" in str(error.value)
    assert VARIABLE in str(error.value)
    assert "\n" not in str(error.value), "the summary of the tests has one line for it"


def test_the_cloud_cli_comes_before_firebase(bare: Path) -> None:
    java(bare, "21.0.1")
    old, new = (jar(bare / f".cache/firebase/emulators/cloud-firestore-emulator-v1.{n}.jar") for n in ("9.1", "21.0"))
    assert command()[-2:] == ["-jar", str(new)]
    assert old.exists()
    program(bare / "sdk/bin/gcloud", "")
    (bare / "bin/gcloud").symlink_to(bare / "sdk/bin/gcloud")
    ours = jar(bare / "sdk" / IN_SDK)
    assert command()[-3:] == ["-cp", str(ours), MAIN]


FETCHES = '[ "$1" = setup:emulators:firestore ] && /bin/mkdir -p {0} && /bin/cp {1} {0}/cloud-firestore-emulator-v1.jar'


def test_firebase_is_asked_to_download_its_own(bare: Path) -> None:
    java(bare, "21.0.1")
    cache = bare / ".cache/firebase/emulators"
    program(bare / "bin/firebase", FETCHES.format(cache, jar(bare / "source.jar")))
    with pytest.raises(NoEmulatorError):
        command()  # looks, and downloads nothing
    assert fetch() == cache / "cloud-firestore-emulator-v1.jar"
    assert command()[-2:] == ["-jar", str(fetch())]


def test_without_firebase_npm_runs_it(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = bare / ".cache/firebase/emulators"
    script = 'case "$1 $2 $3 $4" in "exec --yes firebase-tools@"*" --") shift 4;; *) exit 4;; esac; case "$PATH" in '
    script += f"{bare}/node/bin:*) ;; *) exit 5;; esac; " + FETCHES.format(cache, jar(bare / "source.jar"))
    npm = program(bare / "npm", script)
    monkeypatch.setattr(emulator_files, "node", lambda: Node(str(bare / "node/bin/node"), (str(npm),)))
    assert fetch().parent == cache


def test_a_download_that_fails_says_why(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    java(bare, "21.0.1")
    program(
        bare / "bin/firebase",
        "echo downloading; echo; echo 'Error: Failed to make request to https://x'; echo npm notice; exit 1",
    )
    with pytest.raises(NoEmulatorError, match=r"could not fetch the Firestore emulator: Error: Failed to make request"):
        fetch()
    assert main(["--fetch"]) == 2
    out, err = capfd.readouterr()
    assert out.startswith("Fetching the Firestore emulator")
    assert err.count("\n") == 1


def test_a_download_that_hangs_is_given_up(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "bin/firebase", "exec /bin/sleep 600")
    monkeypatch.setattr(emulator_files, "FETCH_WITHIN", 0.1)
    with pytest.raises(NoEmulatorError, match=r"longer than 0\.1 s"):
        fetch()


def test_where_there_is_one_nothing_is_fetched(bare: Path, capfd: pytest.CaptureFixture[str]) -> None:
    java(bare, "21.0.1")
    jar(bare / ".cache/firebase/emulators/cloud-firestore-emulator-v1.jar")
    program(bare / "bin/firebase", "exit 1")
    assert main(["--fetch"]) == 0
    assert capfd.readouterr() == ("", "")


def test_the_first_java_that_is_new_enough_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar(bare / ".cache/firebase/emulators/cloud-firestore-emulator-v1.jar", needs=21)
    java(bare, "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(java(bare / "home", "1.8.0_402").parents[1]))
    with pytest.raises(EmulatorError, match=r"needs a Java of 21 or newer; found .*home/bin/java \(8\), .*\(17\)"):
        command()
    monkeypatch.setattr(emulator_files, "JVMS", ((str(bare), "jvm/*/bin/java"),))
    usable = java(bare / "jvm/temurin", "25")
    assert command()[0] == str(usable)
    of_pypi = java(bare / "pypi", "25")
    monkeypatch.setattr(emulator_files, "java_of_pypi", lambda: of_pypi)
    assert command()[0] == str(of_pypi), "the same on every machine"
    chosen = java(bare / "chosen", "24")
    monkeypatch.setenv("JAVA_HOME", str(chosen.parents[1]))
    assert command()[0] == str(chosen), "unless the user says otherwise"


def test_the_java_of_pypi_is_new_enough() -> None:
    found = parts.java_of_pypi()
    assert found is not None
    assert (java_version(found) or 0) >= emulator_files.NEWEST_NEED


def test_what_a_jar_and_a_java_say_of_themselves(tmp_path: Path) -> None:
    assert java_needed(jar(tmp_path / "a.jar", needs=17)) == 17
    assert java_needed(tmp_path / "absent.jar") == emulator_files.NEWEST_NEED
    assert java_version(java(tmp_path, "1.8.0_402")) == 8
    assert java_version(program(tmp_path / "no-java", "exit 1")) is None
    assert java_version(tmp_path / "absent") is None


def test_one_that_does_not_start_shows_what_it_printed(bare: Path) -> None:
    jar(bare / ".cache/firebase/emulators/cloud-firestore-emulator-v1.jar")
    program(bare / "bin/java", 'case "$*" in *-version*) echo \'version "21"\';; *) echo it is broken; exit 3;; esac')
    with pytest.raises(EmulatorError, match=r"ended with 3:\nit is broken"):
        Emulator().start()


def test_a_named_one_is_used_as_it_is(firestore_emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, firestore_emulator)
    with available() as host:
        assert host == firestore_emulator
    assert answers(firestore_emulator)


def test_a_named_one_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "127.0.0.1:1")
    with pytest.raises(EmulatorError, match=r"names 127\.0\.0\.1:1, but no emulator answers"), available():
        pass


async def _write(host: str) -> None:
    store = FirestoreStore("demo-emulator", emulator=host)
    await store.open()
    await store.commit("a", {}, None)
    await store.close()


async def _count(host: str) -> int:
    store = FirestoreStore("demo-emulator", emulator=host)
    await store.open()
    found = await store.scan("")
    await store.close()
    return len(found)


def test_host_port_and_rules_are_those_of_the_file_that_firebase_reads(tmp_path: Path) -> None:
    found = config()
    assert (found.host, found.rules) == ("127.0.0.1", ROOT / "firestore.rules")
    assert found.rules.exists()
    other = {"firestore": {"rules": "a.rules"}, "emulators": {"firestore": {"host": "127.0.0.2", "port": 7}}}
    (tmp_path / "emulator.json").write_text(json.dumps(other))
    assert config(tmp_path / "emulator.json") == emulator_files.Config("127.0.0.2", 7, tmp_path / "a.rules")


def test_a_shared_emulator_is_on_the_port_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """But two that start at the same time, or one that finds it taken, take another port."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(emulator, "config", lambda: emulator_files.Config("127.0.0.1", port, config().rules))
    with emulator._port_is_ours() as first, emulator._port_is_ours() as second:
        assert (first, second) == (True, False)
    with available() as host, emulator._port_is_ours() as third:
        assert host == f"127.0.0.1:{port}"
        assert not third
        refused = emulator._ask(host, "GET", "/v1/projects/demo-x/databases/(default)/documents/a/b", owner=False)
        assert refused == 403, "the rules are in force"


def test_a_pause_waits_for_the_last_thread(tmp_path: Path) -> None:
    def thread(number: int, state: str) -> None:
        (tmp_path / f"7/task/{number}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"7/task/{number}/stat").write_text(f"{number} (a) R (b) {state} 1 7 7 0 -1")

    thread(7, "T")
    thread(8, "R")
    assert not stopped(7, tmp_path)
    thread(8, "T")
    assert stopped(7, tmp_path)
    assert stopped(7, tmp_path / "absent")


def test_it_is_paused_wiped_killed_and_comes_back_on_the_same_port() -> None:
    with started() as one:
        host = one.host
        asyncio.run(_write(host))
        one.pause()
        assert one.pid is not None
        assert stopped(one.pid)
        one.resume()
        assert asyncio.run(_count(host)) == 1
        one.wipe("demo-emulator")
        assert asyncio.run(_count(host)) == 0
        asyncio.run(_write(host))
        with pytest.raises(EmulatorError, match="runs already"):
            one.start()
        one.kill()
        assert not answers(host)
        with pytest.raises(EmulatorError, match="does not run"):
            one.pause()
        one.restart()
        assert one.host == host
        assert asyncio.run(_count(host)) == 0
        pid = one.pid
        one.pause()  # a paused one ends as well
    assert pid is not None
    assert not alive(pid)
    one.stop()  # again is harmless


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


@pytest.mark.parametrize("number", ENDS)
def test_it_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    command()
    script = (
        "import threading, time\n"
        "from tools.emulator import started\n"
        "with started() as emulator:\n"
        "    print(emulator.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(number)
        parent.wait(20)
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pid)


@contextmanager
def command_of(*arguments: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    others = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.emulator", *arguments],
        cwd=ROOT,
        env=others | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_prints_the_variable_and_ends_with_ctrl_c() -> None:
    command()
    with command_of() as process:
        assert process.stdout is not None
        name, _, host = process.stdout.readline().strip().partition("=")
        assert name == f"export {VARIABLE}"
        assert answers(host)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not answers(host)


def test_the_command_starts_one_on_the_port_that_is_named_and_says_when_it_ends_by_itself() -> None:
    command()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with command_of("--port", str(port), **{VARIABLE: f"127.0.0.1:{port}"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"export {VARIABLE}=127.0.0.1:{port}\n"
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        if sys.platform == "linux":
            (java,) = [int(pid) for found in children for pid in found.read_text().split()]
            os.kill(java, signal.SIGKILL)
            assert process.wait(20) == 2
            assert process.stderr is not None
            assert process.stderr.read().startswith("emulator: the Firestore emulator ended unexpectedly with -9")


def test_a_port_that_is_taken_is_told_before_java_starts(bare: Path) -> None:
    jar(bare / ".cache/firebase/emulators/cloud-firestore-emulator-v1.jar")
    program(bare / "bin/java", "echo started; exit 3")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmulatorError, match=rf"cannot listen on 127\.0\.0\.1:{port}: "):
            Emulator(port).start()
    with pytest.raises(EmulatorError, match="70000"):
        Emulator(70000).start()


def test_the_command_explains_itself() -> None:
    with command_of("--help") as process:
        said, _ = process.communicate(timeout=20)
    assert "--port" in said
    assert VARIABLE in said
