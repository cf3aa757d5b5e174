"""placement: what the relay asks about where a request may go. The relay itself knows no resource."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "function/pollux"
RELAY = (
    "address", "attempts", "exchange", "inbound", "journal", "outbound", "placement", "relay", "send", "uncounted",
)  # fmt: skip
RESOURCES = (
    "affinity", "listing", "listing_page", "owners", "pooled", "questions", "resources", "upload_token", "uploads",
)  # fmt: skip
OWNED = ("cachedContents", "fileSearchStores", "files/", "blob")


def tree(module: str) -> ast.Module:
    path = PACKAGE / f"{module}.py"
    return ast.parse(path.read_text() if path.exists() else "")


def imported(module: str) -> set[str]:
    """The modules of this package that it imports, also for type checking only or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("pollux.")}


@pytest.mark.parametrize("module", RELAY)
def test_the_relay_imports_nothing_of_resources(module: str) -> None:
    assert imported(module).isdisjoint(RESOURCES)


@pytest.mark.parametrize("module", RELAY)
def test_the_relay_names_no_kind_of_resource(module: str) -> None:
    constants = {node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)}
    said = [text for text in constants if isinstance(text, str) for word in OWNED if word in text]
    assert not said
