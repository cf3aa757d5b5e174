"""Finds, starts and ends the Firestore emulator: `python -m tools.emulator` runs it until Ctrl-C.

In this order: FIRESTORE_EMULATOR_HOST, which is used as it is; the Google Cloud CLI's; the Firebase CLI's. Host, port
and rules are those of emulator.json. In memory, with everything gone when it ends. It never outlives the process that
started it.
"""

import argparse
import contextlib
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tools.emulator_files import Config, NoEmulatorError, command, config, fetch
from tools.emulator_files import EmulatorError as EmulatorError

READY_WITHIN = 60.0
STOP_WITHIN = 5.0
PAUSE_WITHIN = 10.0
VARIABLE = "FIRESTORE_EMULATOR_HOST"
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it died before we asked
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the emulator, which the kernel kills when its parent ends. A preexec_fn would do that in a fork of this
process, which gRPC's threads do not survive."""


_starter = ThreadPoolExecutor(1, "emulator")
"""Starts the emulator. Linux takes the starting thread for the parent, and this thread lives as long as the process."""


class Emulator:
    """An emulator that this process starts. On Linux it is killed when this process ends, even by a crash."""

    def __init__(self, port: int = 0) -> None:
        """Use a free port if none is given."""
        self.config: Config = config()
        self.port = port or _free_port(self.config.host)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def host(self) -> str:
        return f"{self.config.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Returns when it answers."""
        if self._process is not None:
            raise EmulatorError("the emulator runs already")
        _expect_free(self.config.host, self.port)
        place = [f"--host={self.config.host}", f"--port={self.port}", f"--rules={self.config.rules}"]
        arguments = [*command(), *place]
        if sys.platform == "linux":
            arguments = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *arguments]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = _starter.submit(
            subprocess.Popen,
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).result()
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + READY_WITHIN
        while not answers(self.host):
            if self._process.poll() is not None:
                raise EmulatorError(f"the Firestore emulator ended with {self._process.returncode}:\n{self.log()}")
            if time.monotonic() > end:
                raise EmulatorError(f"the Firestore emulator was not ready in {READY_WITHIN:g} s:\n{self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        """What it printed, as far as the last 4,000 bytes."""
        if self._log is None:
            return ""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace")

    def wait(self) -> None:
        """Wait until it ends, which raises an EmulatorError with what it printed."""
        if self._process is not None:
            ended = self._process.wait()
            raise EmulatorError(f"the Firestore emulator ended unexpectedly with {ended}:\n{self.log()}")

    def stop(self) -> None:
        """An orderly end; a hard one if it takes too long."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_WITHIN)
            self.kill()

    def kill(self) -> None:
        """As a machine that dies. All documents are gone."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def restart(self) -> None:
        """Start again on the same port, empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Connections stay, nothing answers, until `resume`. Documents are kept. Returns when all threads stand."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        end = time.monotonic() + PAUSE_WITHIN
        while not stopped(self._process.pid):
            if time.monotonic() > end:
                raise EmulatorError(f"the Firestore emulator did not stop within {PAUSE_WITHIN:g} s of SIGSTOP")
            time.sleep(0.002)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wipe(self, project: str, database: str = "(default)") -> None:
        wipe(self.host, project, database)

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise EmulatorError("the emulator does not run")
        with contextlib.suppress(ProcessLookupError):  # its own session, so its group has its number
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def started(port: int = 0) -> Iterator[Emulator]:
    """One of our own, for tests that stop it, even if FIRESTORE_EMULATOR_HOST names another."""
    emulator = Emulator(port)
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()


def stopped(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether all threads of a process have stopped: a signal reaches them one after the other, not at once.

    Linux only; other systems do not tell.
    """
    if not proc.exists():
        return True
    for stat in proc.glob(f"{pid}/task/*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            if stat.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True


@contextlib.contextmanager
def available() -> Iterator[str]:
    """The address of an emulator: the one that the environment names, or one of our own.

    Ours is on the port of emulator.json, or on a free one if that is taken.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        with _started_on_its_port() as emulator:
            yield emulator.host
    elif answers(named):
        yield named
    else:
        raise EmulatorError(
            f"{VARIABLE} names {named}, but no emulator answers there; it must be HOST:PORT: start one with "
            "`python -m tools.emulator --port PORT`, or unset the variable"
        )


@contextlib.contextmanager
def _started_on_its_port() -> Iterator[Emulator]:
    """The lock is held until it listens: two that found the port free would both wait for the same answer."""
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as starting:
            emulator = Emulator(config().port if starting.enter_context(_port_is_ours()) else 0)
            emulator.start()
            stack.callback(emulator.stop)
        yield emulator


@contextlib.contextmanager
def _port_is_ours() -> Iterator[bool]:
    """Whether the port of emulator.json is free, and no other process of this user is starting an emulator there."""
    found = config()
    with Path(tempfile.gettempdir(), f"pollux-emulator-{os.getuid()}-{found.port}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _expect_free(found.host, found.port)
        except (BlockingIOError, EmulatorError):
            yield False
        else:
            yield True


def wipe(host: str, project: str, database: str = "(default)") -> None:
    """Delete all documents of a database, as the emulator alone allows it."""
    path = f"/emulator/v1/projects/{project}/databases/{database}/documents"
    status = _ask(host, "DELETE", path)
    if status != http.HTTPStatus.OK:
        raise EmulatorError(f"the emulator at {host} answered {status} when it was to be wiped")


def answers(host: str) -> bool:
    """It answers a read: its first one takes most of a second, which is better spent before than in a test."""
    try:
        path = "/v1/projects/demo-none/databases/(default)/documents/none/none"
        return _ask(host, "GET", path) == http.HTTPStatus.NOT_FOUND
    except (OSError, http.client.HTTPException):
        return False


def _ask(host: str, method: str, path: str, *, owner: bool = True) -> int:
    with contextlib.closing(http.client.HTTPConnection(host, timeout=5)) as connection:
        connection.request(method, path, headers={"Authorization": "Bearer owner"} if owner else {})
        return connection.getresponse().status


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _expect_free(host: str, port: int) -> None:
    """Before Java starts, which takes seconds to find it out; and an emulator that is there already would answer."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise EmulatorError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.emulator",
        description="Run the Firestore emulator until Ctrl-C, and print the variable that leads to it.",
        epilog=f"Without --port, and with {VARIABLE} set, that one is used and none is started.",
    )
    port = config().port
    parser.add_argument("--port", type=int, metavar="N", help=f"where to start one (default: {port}, if it is free)")
    parser.add_argument("--fetch", action="store_true", help="start none: download it if this machine has none")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.fetch:
            return _fetch()
        if arguments.port is None and os.environ.get(VARIABLE):
            with available() as host:
                _tell(host)
                signal.pause()
                return 0
        with started(arguments.port) if arguments.port is not None else _started_on_its_port() as emulator:
            _tell(emulator.host)
            emulator.wait()
    except EmulatorError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _fetch() -> int:
    """Quiet if there is nothing to do."""
    if os.environ.get(VARIABLE):
        return 0
    try:
        command()
    except NoEmulatorError:
        print("Fetching the Firestore emulator with the Firebase CLI (once; it can take some minutes) …", flush=True)
        fetch()
        command()
    return 0


def _tell(host: str) -> None:
    print(f"export {VARIABLE}={host}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
