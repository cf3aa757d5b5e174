"""The relay asks a placement where a request may go, and knows no resource itself."""

import ast
from pathlib import Path

import pytest

from pollux.pool.reservation import Ask, Tried
from pollux.pool.windows import Want
from pollux.relay.placement import ANYWHERE
from tests.gateway import play

ROOT = Path(__file__).parents[2]
RELAY = sorted((ROOT / "function/pollux/relay").glob("*.py"))
OWNED = ("cachedContents", "fileSearchStores", "files/", "blob")


@pytest.mark.parametrize("module", RELAY, ids=lambda path: path.stem)
def test_the_relay_names_no_kind_of_resource(module: Path) -> None:
    tree = ast.parse(module.read_text())
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
