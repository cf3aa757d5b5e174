"""The zip that is deployed: what the function needs, and nothing else."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.infra.terraform import ROOT, Plan, Workspace

STRAY = ("keys.json", ".env", "pollux/key.txt", "pollux/__pycache__/x.pyc", "pollux.egg-info/PKG-INFO", "notes.py~")


@pytest.fixture(scope="module")
def archive(minimal: Workspace, function_plan: Plan) -> zipfile.ZipFile:
    """As the plan made it, from a folder in which other things lie about."""
    source = minimal.folder.parents[3] / "function"
    for name in STRAY:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("AIza-not-to-be-packed")
    path = minimal.folder / function_plan.one("google_storage_bucket_object")["source"]
    path.unlink()
    minimal.plan("-var=project=my-project")
    for name in STRAY:
        (source / name).unlink()
    return zipfile.ZipFile(path)


def test_it_holds_what_the_repository_has_of_the_function_and_nothing_else(archive: zipfile.ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT / "function",
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(listed.stdout.split())
    assert len(known) > 90
    assert set(archive.namelist()) == known


def test_its_files_are_those_of_the_repository(archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        assert archive.read(name) == (ROOT / "function" / name).read_bytes(), name


def test_it_imports_by_itself(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Everything that the entry point needs of Pollux is in it, data files included."""
    import sys

    archive.extractall(tmp_path / "source")
    script = (
        "import sys; sys.path.insert(0, '.'); import main, pollux, pollux.app, pollux.simulator, pollux.catalog as c;"
        "c.Catalog.parse(c.builtin_text()); print(pollux.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path / "source", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "source/pollux/__init__.py")
