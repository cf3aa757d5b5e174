"""Google's SDK for Node, installed once from its lock file and run as processes of their own. No test is here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import FLASH, TOKEN, Gateway, environment

FOLDER = Path(__file__).with_name("node")
NEWEST = FOLDER / "node_modules" / ".package-lock.json"
"""npm writes it last."""


def install() -> None:
    """Nothing where it is there already. Without Node: skipped on one's own machine, a failure in CI."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing = "Node.js 20 or newer with npm is needed for the tests with @google/genai"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    lock = FOLDER / "package-lock.json"
    if not NEWEST.exists() or NEWEST.stat().st_mtime < lock.stat().st_mtime:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"
        NEWEST.touch()


def run(gateway: Gateway, scenario: str, *arguments: str, model: str = FLASH, base: str = "") -> Any:
    """What the scenario printed. An SDK that raises is a failure with its words."""
    environ = environment() | {"BASE": base or gateway.url, "TOKEN": TOKEN, "MODEL": model}
    done = subprocess.run(
        ["node", str(FOLDER / "client.mjs"), scenario, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{scenario} failed:\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)
