"""For all tests: the Firestore emulator, a certificate, the ways to reach Gemini, and skips where a part is missing."""

import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.emulator import available
from tools.parts import MissingPartError

if TYPE_CHECKING:
    from tests.backends.servers import Way

# A background job of a shell ignores Ctrl-C, and so would the programs that the tests start and end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
"""The same in all processes of one run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="play all random histories of the pool, not a tenth of them")


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[str]:
    """host:port. For what stops, pauses or kills it: `tools.emulator.started()`, an emulator of the test's own."""
    with available() as host:
        yield host


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tools.certificate import make_certificate

    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(
    params=["own", "own, TLS", "httpx", "httpx, TLS", "httpx, proxy", "httpx, TLS, proxy"],
)
def way(request: pytest.FixtureRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> "Way":
    """Each way in which Gemini is reached: what is true of one transport has to be true of the other."""
    from tests.backends.servers import Way

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return Way(request.param, certificate)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A test or fixture that raises MissingPartError is skipped. Reason and place are the same for all of them, so
    pytest's summary has one line. In CI the first test that needs the missing part fails.
    """
    if call.excinfo is None or not isinstance(call.excinfo.value, MissingPartError):
        return
    reason = str(call.excinfo.value)
    fails = bool(os.environ.get("CI")) and _first_to_say(reason)
    call.excinfo = pytest.CallInfo.from_call(lambda: _end(reason, fails=fails), call.when).excinfo


def _end(reason: str, *, fails: bool) -> None:
    if fails:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _first_to_say(reason: str) -> bool:
    digest = hashlib.sha256(f"{RUN} {reason}".encode()).hexdigest()
    try:
        Path(tempfile.gettempdir(), f"pollux-tests-{digest}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
