"""Programs that use an SDK or a framework, each run once as a process with all of its scenarios. No test is here."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import nodes
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, TOKEN, environment
from tools.parts import MissingPartError, node

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
UV = Path(sys.executable).with_name("uv")
ENVIRONMENTS = ROOT / "build/frameworks"
"""Made once; `make clean` removes them."""
UNREACHABLE = "Failed to fetch"
"""uv's words for an index that does not answer."""
_unreachable: list[str] = []
"""Why no framework can be had, once that is known: each try takes ten seconds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that arrived upstream."""

    status: int | None
    project: str | None
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program printed, and what arrived upstream meanwhile."""

    outcomes: dict[str, Any]
    sent: list[Sent]
    failed: str

    def returned(self, scenario: str) -> Any:
        assert not self.failed, self.failed
        outcome = self.outcomes[scenario]
        assert "returned" in outcome, outcome["raised"]
        return outcome["returned"]


def run(pair: Pair, program: str, title: str, python: Path = Path(sys.executable)) -> Ran:
    """All scenarios of the program, and the example under that title of docs/clients.md."""
    pair.simulator.calls.clear()
    code = example(title, pair.gateway.url)
    if program.endswith(".mjs"):
        done = _execute(pair, [node().node, program])
        ran = _execute(pair, [node().node, "--input-type=module", "--eval", f"const token = '{TOKEN}';\n{code}"])
        shown = {"raised": ran.stderr} if ran.returncode else {"returned": ran.stdout}
        more = {"example": shown}
    else:
        done = _execute(pair, [str(python), str(PROGRAMS / program)], EXAMPLE=code)
        more = {}
    failed = f"{program} failed:\n{done.stdout}{done.stderr}" if done.returncode else ""
    outcomes = {} if failed else json.loads(done.stdout) | more
    return Ran(
        outcomes, [Sent(call.status, call.project, call.path, call.body) for call in pair.simulator.calls], failed
    )


def example(title: str, url: str) -> str:
    """The program of the page, with this gateway's address and a model without limits."""
    page = (ROOT / "docs/clients.md").read_text()
    blocks = re.findall(
        r"```(?:python|js)\n(.*?)```", page.partition(f"\n### {title}\n")[2].partition("\n### ")[0], re.S
    )
    assert len(blocks) == 1, f"docs/clients.md has {len(blocks)} examples under {title}"
    changed: str = blocks[0].replace("http://127.0.0.1:3145", url).replace(LAST, FLASH)
    assert changed.count(url) == 1
    return changed


def _execute(pair: Pair, command: Sequence[str], **more: str) -> "subprocess.CompletedProcess[str]":
    own = {"BASE": pair.gateway.url, "TOKEN": TOKEN, "MODEL": FLASH, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    try:
        return subprocess.run(
            command,
            cwd=nodes.FOLDER,
            env=environment() | own | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:  # once, not in each of its tests
        return subprocess.CompletedProcess(command, 1, "", str(error))


def installed(group: str) -> Path:
    """The Python of an environment with that dependency group, made once: the frameworks want older versions of
    Google's and OpenAI's SDKs than the tests, and than one another. MissingPartError if no package index answers."""
    if _unreachable:
        raise MissingPartError(_unreachable[0])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    folder = ENVIRONMENTS / f"{group}-{sys.version_info.major}.{sys.version_info.minor}"
    python, stamp = folder / "bin/python", folder / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), *wanted],
    ):
        done = subprocess.run([UV, *command], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode and UNREACHABLE in done.stderr:
            reason = done.stderr.strip().rpartition("cause: ")[2]
            _unreachable.append(f"uv could not fetch the frameworks that are tested ({reason}); it needs PyPI once")
            raise MissingPartError(_unreachable[0])
        assert done.returncode == 0, done.stderr
    stamp.write_text(json.dumps(wanted))
    return python
