"""The Makefile: its first steps where Python lacks venv or an installation was cut, and the paths that it names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "python{}.{}-venv".format(*sys.version_info[:2])
MADE = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  "-m pip --version") [ ! -e {no_pip} ] ;;
  "-m ensurepip") [ ! -e {no_ensurepip} ] && rm -f {no_pip} ;;
  *install*) [ ! -e {fails} ] ;;
esac
"""
"""The venv's python: notes what it is asked. A file makes an installation fail, pip miss, or ensurepip fail."""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / "venv"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def python(folder: Path, *, ensurepip: bool = True, venv: str = "") -> Path:
    """Stands for python3: `venv` is what the shell does instead of making one."""
    made = folder / "made"
    files = {name: folder / name for name in ("log", "fails", "no_pip", "no_ensurepip")}
    made.write_text(MADE.format(**files))
    made.chmod(0o755)
    path = folder / "python3"
    venv = venv or f'mkdir -p "$3/bin" && cp {made} "$3/bin/python"'
    path.write_text(f"""#!/bin/sh
case "$*" in
  *"import ensurepip"*) exit {0 if ensurepip else 1} ;;
  "-m venv "*) {venv} ;;
  *) exec {sys.executable} "$@" ;;
esac
""")
    path.chmod(0o755)
    return path


def make(*words: str) -> "subprocess.CompletedProcess[str]":
    """As the first make: tests may run under another one, which hands on its options."""
    environ = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60)


def make_venv(venv: Path, python: Path, target: str = ".run") -> "subprocess.CompletedProcess[str]":
    return make(f"VENV={venv}", f"PYTHON={python}", str(venv / target))


def test_without_the_venv_package_it_names_it_and_makes_nothing(venv: Path, tmp_path: Path) -> None:
    done = make_venv(venv, python(tmp_path, ensurepip=False))
    assert done.returncode == 2
    assert PACKAGE in done.stdout
    assert "apt install" in done.stdout
    assert not venv.exists()


def test_a_venv_that_failed_leaves_nothing_half_made(venv: Path, tmp_path: Path) -> None:
    done = make_venv(venv, python(tmp_path, venv='mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/python"; exit 1'))
    assert done.returncode == 2
    assert "-m venv" in done.stdout
    assert not venv.exists()


def test_a_venv_whose_making_was_broken_off_is_made_anew(venv: Path, log: Path, tmp_path: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/bin/false")  # as if it could not run
    (venv / "left-over").touch()
    done = make_venv(venv, python(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{venv} has no Python that runs: making it anew" in done.stdout
    assert not (venv / "left-over").exists()
    assert "install --editable ." in log.read_text()
    assert make_venv(venv, python(tmp_path)).stdout.endswith("is up to date.\n")


def environment_without_pip(venv: Path, folder: Path) -> Path:
    """As uv makes it. Returns the python3 to call make with."""
    made = python(folder, venv="exit 1")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(folder / "made")
    (venv / "installed-by-the-user").touch()
    (folder / "no_pip").touch()
    return made


def test_an_environment_without_pip_is_kept_and_gets_it(venv: Path, log: Path, tmp_path: Path) -> None:
    done = make_venv(venv, environment_without_pip(venv, tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{venv} has no pip" in done.stdout
    assert (venv / "installed-by-the-user").exists()
    assert "install --editable ." in log.read_text()


def test_an_environment_that_cannot_get_pip_is_kept(venv: Path, tmp_path: Path) -> None:
    (tmp_path / "no_ensurepip").touch()
    done = make_venv(venv, environment_without_pip(venv, tmp_path))
    assert done.returncode == 2
    assert f"pip could not be added to {venv}. Add it yourself, or delete {venv} (make clean)" in done.stdout
    assert (venv / "installed-by-the-user").exists()


def test_an_installation_that_failed_is_begun_again(venv: Path, log: Path, tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    done = make_venv(venv, python(tmp_path), ".dev")
    assert done.returncode == 2
    assert "Run the same make command again to continue" in done.stdout
    (tmp_path / "fails").unlink()
    done = make_venv(venv, python(tmp_path), ".dev")
    assert done.returncode == 0, done.stderr
    assert [line.split("install ")[1] for line in log.read_text().splitlines() if "install" in line] == [
        "--editable .",
        "--editable .",
        "--upgrade pip",
        "--editable .[cloud] --group dev",
    ]


@pytest.mark.parametrize("target", ["run", "emulator", "test", "test-long"])
def test_a_first_make_says_that_it_installs_before_it_does(venv: Path, target: str) -> None:
    lines = make("--dry-run", target, f"VENV={venv}").stdout.splitlines()
    quiet = [number for number, line in enumerate(lines) if " install --" in line or "-m venv" in line]
    said = [number for number, line in enumerate(lines) if line.startswith('echo "Installing')]
    assert len(said) == (1 if target == "run" else 2)
    assert said[0] < quiet[0]


def test_the_histories_run_in_full_where_they_should() -> None:
    assert "--long" in make("--dry-run", "test-long").stdout
    assert "--long" not in make("--dry-run", "test").stdout
    assert "make test-long" in (ROOT / ".ci/run").read_text()


def test_every_folder_of_tests_that_the_makefile_names_exists() -> None:
    named = re.findall(r"\btests/[\w./*]*", (ROOT / "Makefile").read_text())
    assert named
    assert [path for path in named if not list(ROOT.glob(path))] == []
