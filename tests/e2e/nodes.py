"""SDKs for Node, installed once from its lock file and run as processes of their own. No test is here."""

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.processes import FLASH, TOKEN, Gateway, environment
from tools.parts import MissingPartError, node

FOLDER = Path(__file__).with_name("node")
NEWEST = FOLDER / "node_modules" / ".package-lock.json"
"""npm writes it last."""
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")
"""npm's words for a registry that does not answer."""


def install() -> None:
    """Nothing where it is there already. MissingPartError without Node, or if no npm registry answers."""
    found, lock = node(), FOLDER / "package-lock.json"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # several processes run tests
        if NEWEST.exists() and NEWEST.stat().st_mtime >= lock.stat().st_mtime:
            return
        done = subprocess.run(
            [*found.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=FOLDER,
            env=os.environ | {"PATH": found.path(os.environ.get("PATH", os.defpath))},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0 and any(code in done.stderr for code in UNREACHABLE):
            reason = next(line for line in done.stderr.splitlines() if any(code in line for code in UNREACHABLE))
            raise MissingPartError(f"npm could not fetch the SDKs for Node ({reason}); it needs the npm registry once")
        assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"
        NEWEST.touch()


def run(gateway: Gateway, scenario: str, *arguments: str, model: str = FLASH, base: str = "") -> Any:
    """What the scenario printed. An SDK that raises is a failure with its words."""
    environ = environment() | {"BASE": base or gateway.url, "TOKEN": TOKEN, "MODEL": model}
    done = subprocess.run(
        [node().node, str(FOLDER / "client.mjs"), scenario, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{scenario} failed:\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)
