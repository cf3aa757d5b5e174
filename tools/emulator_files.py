"""Where the Firestore emulator and a Java for it are on this machine: the command that starts it."""

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

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
INSTALL = """install one of:
  - the Google Cloud CLI's: gcloud components install cloud-firestore-emulator
    (as a package: apt-get install google-cloud-cli-firestore-emulator)
  - the Firebase CLI's: npm install --global firebase-tools && firebase setup:emulators:firestore
and a Java of 21 or newer; or start it elsewhere and set FIRESTORE_EMULATOR_HOST=HOST:PORT"""


class EmulatorError(Exception):
    """No emulator could be found, started or reached: what is wrong, what to do."""


def command() -> list[str]:
    """Starts the emulator, but for host and port. EmulatorError that says what to install."""
    jar = next(_jars(), None)
    if jar is None:
        raise EmulatorError(f"no Firestore emulator found; {INSTALL}")
    need = java_needed(jar)
    found = [(version, java) for java in _javas() if (version := java_version(java)) is not None]
    usable = [(version, java) for version, java in found if version >= need]
    if not usable:
        seen = ", ".join(f"{java} ({version})" for version, java in found) or "none"
        raise EmulatorError(
            f"the Firestore emulator {jar} needs a Java of {need} or newer; found {seen}. Install one, or set JAVA_HOME"
        )
    return [str(usable[0][1]), "-Duser.language=en", "-XX:+UseSerialGC", *_started_by(jar)]


def _started_by(jar: Path) -> list[str]:
    """Firebase's jar names its main class, the Cloud CLI's does not."""
    return ["-cp", str(jar), MAIN] if jar.name == IN_SDK.name else ["-jar", str(jar)]


def _jars() -> Iterator[Path]:
    yield from (jar for root in _sdk_roots() if (jar := root / IN_SDK).is_file())
    given = os.environ.get("FIRESTORE_EMULATOR_BINARY_PATH")  # Firebase's own variable
    if given and Path(given).is_file():
        yield Path(given)
    cache = Path(os.environ.get("FIREBASE_EMULATORS_PATH") or Path.home() / ".cache/firebase/emulators")
    yield from _downloaded(cache)
    firebase = shutil.which("firebase")
    if firebase:
        subprocess.run(  # noqa: S603
            [firebase, "setup:emulators:firestore"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        yield from _downloaded(cache)


def _downloaded(cache: Path) -> list[Path]:
    return sorted(cache.glob("cloud-firestore-emulator-v*.jar"), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _sdk_roots() -> Iterator[Path]:
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        yield Path(root)
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
    yield from (Path(path).expanduser() for path in SDKS)


def _javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin/java"
    if java := shutil.which("java"):
        yield Path(java)
    for folder, pattern in JVMS:
        yield from sorted(Path(folder).expanduser().glob(pattern))


def java_version(java: Path) -> int | None:
    """The major version, or None if this is no Java that runs."""
    try:
        said = subprocess.run(  # noqa: S603
            [java, "-version"], capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    return int(match[1]) if match else None


def java_needed(jar: Path) -> int:
    """From the class file itself: bytes 6 and 7 of it are Java's version and 44."""
    try:
        with zipfile.ZipFile(jar) as archive, archive.open(MAIN.replace(".", "/") + ".class") as main:
            return int.from_bytes(main.read(8)[6:8], "big") - 44
    except (KeyError, OSError, zipfile.BadZipFile):
        return NEWEST_NEED
