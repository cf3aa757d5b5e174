"""What the cloud does with function/: the zip alone, its requirements in an empty environment, and the framework."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gemini_simulator import Fault, Simulator
from pollux.backends.store.sqlite import SqliteStore
from tests.e2e.processes import (
    ADMIN,
    FUNCTION,
    TOKEN,
    Gateway,
    call,
    environment,
    functions,
    key_value,
    pollux,
    prompt,
    simulated,
)
from tests.e2e.test_leaving import CHAT, asking, generating

UV = Path(sys.executable).with_name("uv")
LEFT_OUT = ("__pycache__", ".egg-info")
"""Of a development machine. All else in function/ is the function."""
RUNTIMES = ("3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_28"


def function_files() -> list[Path]:
    return sorted(
        path
        for path in FUNCTION.rglob("*")
        if path.is_file() and not any(part.endswith(LEFT_OUT) for part in path.relative_to(FUNCTION).parts)
    )


def zipped(path: Path) -> Path:
    """The same bytes for the same files: no time of this machine is in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in function_files():
            archive.writestr(zipfile.ZipInfo(file.relative_to(FUNCTION).as_posix()), file.read_bytes())
    return path


def bare() -> dict[str, str]:
    """An environment that leads to no other copy of the project, nor to another's packages."""
    kept = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONNOUSERSITE": "1", "PYTHONPATH": ""}


def run(*command: "str | Path", cwd: Path) -> "subprocess.CompletedProcess[str]":
    ended = subprocess.run(command, cwd=cwd, env=bare(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


@dataclass(frozen=True, slots=True)
class Unpacked:
    source: Path
    python: Path
    home: Path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """The zip in a folder of its own, and an environment with exactly what its requirements.txt names."""
    folder = tmp_path_factory.mktemp("zip")
    source, empty = folder / "source", folder / "environment"
    with zipfile.ZipFile(zipped(folder / "function.zip")) as archive:
        archive.extractall(source)
    run(UV, "venv", "--python", sys.executable, empty, cwd=source)
    python = empty / "bin/python"
    run(UV, "pip", "install", "--python", python, "--no-deps", "--requirements", "requirements.txt", cwd=source)
    return Unpacked(source, python, folder / "home")


def settings(unpacked: Unpacked, upstream: str) -> Mapping[str, str]:
    """As in the cloud, but for the store and the keys: those have no server here."""
    chosen = {"store": f"sqlite:///{unpacked.home / 'pollux.db'}", "upstream": upstream, "token": TOKEN}
    named = {f"POLLUX_{name.upper()}": value for name, value in chosen.items()}
    own = {"FUNCTION_USE_ASGI": "1", "FUNCTION_SIGNATURE_TYPE": "http", "K_SERVICE": "pollux"}
    return bare() | named | own | {"POLLUX_ADMIN_TOKEN": ADMIN, "GEMINI_API_KEY": key_value(1)}


@pytest.fixture
def deployed(unpacked: Unpacked) -> Iterator[tuple[Gateway, Simulator]]:
    command = [str(unpacked.python.with_name("functions-framework")), "--target", "gateway", "--source", "main.py"]
    shutil.rmtree(unpacked.home, ignore_errors=True)
    with (
        simulated(1) as (simulator, url),
        functions(unpacked.home, settings(unpacked, url), command, cwd=unpacked.source) as gateway,
    ):
        yield gateway, simulator


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_zip_holds_the_function_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped(tmp_path / "function.zip")) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"main.py", "requirements.txt", "pollux"}
    assert {Path(name).suffix for name in names} == {".py", ".toml", ".txt", ".typed"}


@pytest.mark.skipif(not (FUNCTION.parent / ".git").exists(), reason="no git repository")
def test_nothing_is_in_the_zip_that_git_ignores(tmp_path: Path) -> None:
    """Such as a .env or a keys.json of the one who deploys."""
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard", ".")
    known = subprocess.run(listing, cwd=FUNCTION, capture_output=True, text=True, check=True).stdout.split()
    with zipfile.ZipFile(zipped(tmp_path / "function.zip")) as archive:
        assert sorted(archive.namelist()) == sorted(known)


def test_the_same_files_are_the_same_zip(tmp_path: Path) -> None:
    one, two = zipped(tmp_path / "one.zip").read_bytes(), zipped(tmp_path / "two.zip").read_bytes()
    assert one == two


# --- what it needs ---------------------------------------------------------------------------------------------------


def test_the_requirements_are_complete_and_agree(unpacked: Unpacked) -> None:
    """They were installed without what they themselves ask for, which would hide what is missing."""
    assert "compatible" in run(UV, "pip", "check", "--python", unpacked.python, cwd=unpacked.source).stderr
    listed = json.loads(
        run(UV, "pip", "list", "--python", unpacked.python, "--format", "json", cwd=unpacked.source).stdout
    )
    installed = {f"{package['name']}=={package['version']}" for package in listed}
    lines = map(Requirement, (FUNCTION / "requirements.txt").read_text().splitlines())
    written = {f"{line.name}{line.specifier}" for line in lines if line.marker is None or line.marker.evaluate()}
    assert installed == written


def test_the_environment_knows_no_other_copy_of_the_project(unpacked: Unpacked, tmp_path: Path) -> None:
    code = "import importlib.util, sys; print(importlib.util.find_spec('pollux'), *sys.path, sep='\\n')"
    found, *path = run(unpacked.python, "-c", code, cwd=tmp_path).stdout.splitlines()
    assert found == "None"
    assert not [place for place in path if (tmp_path / place).resolve().is_relative_to(FUNCTION.parent)]


def test_every_module_can_be_imported_there(unpacked: Unpacked) -> None:
    """Also those that only the cloud, or only the command line, needs."""
    files = [path.relative_to(FUNCTION) for path in function_files() if path.suffix == ".py"]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert "pollux.backends.store.firestore" in names
    code = f"import importlib\nfor name in {names!r}: print(importlib.import_module(name).__file__)"
    places = run(unpacked.python, "-c", code, cwd=unpacked.source).stdout.splitlines()
    assert len(places) == len(names)
    assert all(Path(place).resolve().is_relative_to(unpacked.source.resolve()) for place in places)


@pytest.mark.parametrize("version", RUNTIMES)
def test_nothing_has_to_be_compiled_on_the_runtimes_of_the_cloud(unpacked: Unpacked, version: str) -> None:
    where = ("--python-version", version, "--python-platform", PLATFORM, "--target", unpacked.home / "none")
    what = ("--no-deps", "--only-binary", ":all:", "--requirements", "requirements.txt")
    ended = run(UV, "pip", "install", "--dry-run", *where, *what, cwd=unpacked.source)
    assert "Would install" in ended.stderr


# --- how it runs -----------------------------------------------------------------------------------------------------


def test_it_answers_as_both_apis(deployed: tuple[Gateway, Simulator]) -> None:
    gateway, simulator = deployed
    assert call(gateway.url, "GET", "/health").status == 200
    assert gateway.generate().json()["candidates"]
    chat = gateway.call("POST", "/v1/chat/completions", CHAT, content_type="application/json")
    assert chat.body.endswith(b"data: [DONE]\n\n")
    assert [made.key for made in simulator.calls] == ["key-1", "key-1"]
    assert gateway.status()["store"]["state"] == "ok"
    assert "Traceback" not in gateway.said()


def test_a_stream_comes_as_it_is_made(deployed: tuple[Gateway, Simulator]) -> None:
    gateway, simulator = deployed
    simulator.faults.append(Fault(kind="drip", seconds=1))
    ended: list[bool] = []
    with asking(gateway.url, generating(verb="streamGenerateContent"), prompt(), "connection: close") as made:
        while data := made.recv(65536):
            ended += [simulator.calls[-1].finished_at is not None] * data.count(b"data: ")
    assert len(ended) == 4
    assert not any(ended[:2]), "they came before the last was made"


def test_the_check_of_an_endpoint_finds_it_well(deployed: tuple[Gateway, Simulator], tmp_path: Path) -> None:
    gateway, simulator = deployed
    simulator.faults.append(Fault(kind="drip", seconds=0.2))
    environ = environment(token=TOKEN, admin_token=ADMIN)
    ended = pollux(tmp_path, environ, "deploy", "check", gateway.url, "--json")
    assert {row["verdict"] for row in json.loads(ended.stdout)["checks"]} == {"ok"}, ended.stdout


def test_it_ends_on_sigterm_with_its_counts_kept(deployed: tuple[Gateway, Simulator]) -> None:
    gateway, _ = deployed
    assert gateway.generate().status == 200
    began = time.monotonic()
    gateway.signal(signal.SIGTERM)
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):  # nor is a worker of it left
        os.killpg(gateway.process.pid, 0)

    async def counted() -> int:
        store = SqliteStore(gateway.folder / "pollux.db")
        await store.open()
        try:
            return len(await store.scan("quota:"))
        finally:
            await store.close()

    assert asyncio.run(counted()) == 1
