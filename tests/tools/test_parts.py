"""What happens to tests when this machine lacks a part, and which Node.js is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import parts
from tools.parts import MissingPartError, node, node_of_pypi

ROOT = Path(__file__).parents[2]
HOOKS = "from tests.conftest import pytest_addoption, pytest_runtest_makereport\n"
SUITE = """
import pytest
from tools.parts import MissingPartError


@pytest.fixture(scope="session")
def part():
    raise MissingPartError("no anvil; buy one")


@pytest.mark.parametrize("number", range(5))
def test_by_a_fixture(part, number):
    pass


def test_by_itself():
    raise MissingPartError("no anvil; buy one")


def test_without():
    pass
"""


def run_suite(folder: Path, *options: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(HOOKS)
    for name in ("test_one.py", "test_two.py"):
        (folder / name).write_text(SUITE)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CI"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-q", "-p", "no:hypothesispytest", "--rootdir", str(folder), *options],
        cwd=folder,
        env=others | {"PYTHONPATH": f"{ROOT / 'function'}:{ROOT}", "COLUMNS": "200"} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("options", [(), ("--numprocesses", "2")], ids=["alone", "two processes"])
def test_tests_that_lack_a_part_are_skipped_with_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run_suite(tmp_path, *options)
    assert done.returncode == 0, done.stdout
    [line] = [line for line in done.stdout.splitlines() if "no anvil" in line]
    assert line.startswith("SKIPPED [12] ")
    assert line.endswith(": no anvil; buy one")
    assert "2 passed, 12 skipped" in done.stdout


def test_in_ci_a_part_that_is_missing_fails_one_test(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--numprocesses", "2", CI="true")
    assert done.returncode == 1, done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]) == 1
    assert "2 passed, 11 skipped" in done.stdout


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_the_machines_node_is_taken_if_it_is_new_enough_and_has_npm(machine: Path) -> None:
    find = node.__wrapped__
    of_pypi = node_of_pypi()
    assert find() == of_pypi
    own = program(machine / "node", "echo v22.1.0")
    assert find() == of_pypi, "without npm"
    npm = program(machine / "npm", "")
    assert find() == parts.Node(str(own), (str(npm),))
    program(machine / "node", "echo v18.20.0")
    assert find() == of_pypi, "too old"


@pytest.mark.usefixtures("machine")
def test_without_any_node_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "node_of_pypi", lambda: None)
    with pytest.raises(MissingPartError, match=r"Node\.js 22 or newer with npm was not found; install it"):
        node.__wrapped__()


def test_the_node_of_pypi_and_its_npm_run() -> None:
    found = node_of_pypi()
    assert found is not None
    environ = {"PATH": found.path("/usr/bin:/bin")}
    said = subprocess.run(
        [*found.npm, "--version"], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(said.stdout.partition(".")[0]) >= 10
    assert (parts.version_of(found.node, "--version", r"v(\d+)") or 0) >= parts.OLDEST_NODE
