"""placement: the relay asks it where a request may go, and knows no resource itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pollux.placement import ANYWHERE
from pollux.pool import Ask, Tried
from pollux.windows import Want
from tests.gateway import play

ROOT = Path(__file__).parent.parent
RELAY = (
    "address", "attempts", "exchange", "inbound", "journal", "outbound", "placement", "relay", "send", "uncounted",
)  # fmt: skip
OWNED = ("cachedContents", "fileSearchStores", "files/", "blob")


def test_the_import_contract_holds() -> None:
    """In a process of its own: import-linter switches off the loggers of the process that it runs in."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", RELAY)
def test_the_relay_names_no_kind_of_resource(module: str) -> None:
    tree = ast.parse((ROOT / f"function/pollux/{module}.py").read_text())
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not [text for text in constants if isinstance(text, str) for word in OWNED if word in text]


def test_the_null_case_lets_a_request_go_anywhere_as_it_is() -> None:
    ask, tried = Ask(Want(1), 1.0), Tried()

    async def scene() -> None:
        assert await ANYWHERE.narrow(ask, tried) is ask
        await ANYWHERE.prepare("p1", tried)

    play(scene)
    assert ANYWHERE.ready("p1")
    assert ANYWHERE.rewritten(b"body") == ANYWHERE.shown(b"body") == b"body"
    assert (ANYWHERE.only, ANYWHERE.counts_at(), ANYWHERE.exhausted()) == (None, None, None)
    assert tried == Tried()
