"""The import contracts of pyproject.toml: the column of docs/architecture.md, pure modules, no circle."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_import_contract_holds() -> None:
    """In a process of its own: import-linter switches off the loggers of the process that it runs in."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
