"""The zip that is deployed: what the function needs, and nothing else."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.infra.terraform import ROOT, Plan, Workspace

STRAY = ("keys.json", ".env", "pollux/key.txt", "pollux/__pycache__/x.pyc", "pollux.egg-info/PKG-INFO", "notes.py~")


@pytest.fixture(scope="module")
def function(minimal: Workspace) -> Path:
    """The folder that is packed."""
    return minimal.folder.parents[3] / "function"


@pytest.fixture(scope="module")
def littered(minimal: Workspace, function: Path, function_plan: Plan) -> Plan:
    """Planned again, with other things lying about in the folder."""
    for name in STRAY:
        (function / name).parent.mkdir(exist_ok=True)
        (function / name).write_text("AIza-not-to-be-packed")
    (minimal.folder / function_plan.one("google_storage_bucket_object")["source"]).unlink()
    plan = minimal.plan("-var=project=my-project")
    for name in STRAY:
        (function / name).unlink()
    return plan


@pytest.fixture(scope="module")
def archive(minimal: Workspace, littered: Plan, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    packed = minimal.folder / littered.one("google_storage_bucket_object")["source"]
    return zipfile.ZipFile(shutil.copy(packed, tmp_path_factory.mktemp("packed")))


@pytest.mark.usefixtures("archive")  # packed before the source changes
def test_a_changed_source_changes_the_plan_and_other_files_do_not(
    minimal: Workspace, function: Path, function_plan: Plan, littered: Plan
) -> None:
    def name(plan: Plan) -> str:
        return str(plan.one("google_storage_bucket_object")["name"])

    assert name(littered) == name(function_plan)
    source = function / "pollux/pool/quota.py"
    before = source.read_text()
    source.write_text(before + "# changed\n")
    try:
        assert name(minimal.plan("-var=project=my-project")) != name(function_plan)
    finally:
        source.write_text(before)


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
        "import sys; sys.path.insert(0, '.'); import main, pollux.server.wiring as w;"
        "w.load_catalog(w.Settings()); print(w.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path / "source", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "source/pollux/server/wiring.py")
