"""What most of these tests share: one gateway a module, without limits, whose simulator each test finds at peace."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pollux.simulator import Simulator
from tests.e2e.processes import FOREIGN, LAST, Gateway, gateway, simulated


@dataclass(slots=True)
class Pair:
    """A gateway and the simulator behind it."""

    gateway: Gateway
    simulator: Simulator


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs read it in this process."""
    import os

    for name in tuple(os.environ):
        if name.upper().startswith(FOREIGN) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    limits = {LAST: {"rpm": 1}}
    with simulated() as (simulator, url), gateway(tmp_path_factory.mktemp("gateway"), url, limits=limits) as started:
        yield Pair(started, simulator)


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """Four projects without limits, but one request a minute for LAST."""
    shared_pair.simulator.calls.clear()
    yield shared_pair
    shared_pair.simulator.faults.clear()
