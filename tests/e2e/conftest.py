"""Fixtures: one gateway per module, without limits, whose simulator has no faults when a test begins."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gemini_simulator import Simulator
from tests.e2e.processes import (
    ADMIN,
    FOREIGN,
    LAST,
    TOKEN,
    Gateway,
    environment,
    functions,
    gateway,
    simulated,
    write_keys,
)

COUNTED = "gemini-2.5-flash"
"""Limited, but not so that a test would meet the limit; no other test asks for it."""


@dataclass(slots=True)
class Pair:
    """A gateway and the simulator behind it."""

    gateway: Gateway
    simulator: Simulator


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs read it in this process."""
    for name in tuple(os.environ):
        if name.upper().startswith(FOREIGN) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    limits = {LAST: {"rpm": 1}}
    with simulated() as (simulator, url), gateway(tmp_path_factory.mktemp("gateway"), url, limits=limits) as started:
        yield Pair(started, simulator)


@pytest.fixture(scope="package")
def functions_pairs(tmp_path_factory: pytest.TempPathFactory, firestore_emulator: str) -> Iterator[list[Pair]]:
    """Two processes under the Functions Framework, on one Firestore emulator and one simulator."""
    folder = tmp_path_factory.mktemp("functions")
    settings = {"store": f"firestore://pollux-{os.getpid()}", "token": TOKEN, "admin_token": ADMIN}
    settings["keys_file"] = str(write_keys(folder, [1, 2, 3, 4], {LAST: {"rpm": 1}, COUNTED: {"rpm": 50}}))
    with simulated() as (simulator, url):
        environ = environment(**settings, upstream=url) | {"FIRESTORE_EMULATOR_HOST": firestore_emulator}
        with functions(folder / "one", environ) as one, functions(folder / "two", environ) as two:
            yield [Pair(one, simulator), Pair(two, simulator)]


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """Four projects without limits, but one request a minute for LAST."""
    shared_pair.simulator.calls.clear()
    yield shared_pair
    shared_pair.simulator.faults.clear()
