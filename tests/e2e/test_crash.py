"""kill -9 under load, and two gateways on one database: no count is lost, not one call too many reaches Google."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gemini_simulator import Fault, Simulator
from tests.e2e.processes import FLASH, Gateway, eventually, gateway, simulated

LIMITS = {"rpm": 40, "tpm": 250_000, "rpd": 500}
OFF = {"x_pollux_fallback": "off", "x_pollux_max_wait": "0"}


@contextlib.contextmanager
def load(*gateways: Gateway, clients: int = 8) -> Iterator[list[int]]:
    """Clients that ask without a break until the end of the block. Gives the statuses of their answers."""
    statuses: list[int] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            try:
                answer = gateways[number % len(gateways)].generate(text=f"client {number}", **OFF)
                statuses.append(answer.status)
            except (OSError, http.client.HTTPException):
                stop.wait(0.05)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield statuses
        finally:
            stop.set()
            for each in running:
                each.result(20)


def seen(simulator: Simulator, least: int) -> bool:
    return len(simulator.calls) >= least


def nothing_refused(simulator: Simulator) -> None:
    assert not simulator.enforcer.reasons
    assert not simulator.statuses["429"]
    for project in {call.project for call in simulator.calls}:
        peak = simulator.enforcer.peak_in_60s(project or "", FLASH)
        assert peak.requests <= LIMITS["rpm"]


def test_kill_9_loses_no_count(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'pollux.db'}"
    with simulated(3, LIMITS, "sliding", latency=0.02) as (simulator, url):
        for least in (20, 60):
            with gateway(tmp_path, url, keys=[1, 2, 3], limits={"*": LIMITS}, store=store) as started:
                with load(started) as statuses:
                    eventually(15, partial(seen, simulator, least))
                    started.kill()
                assert statuses.count(200) > 10
        with gateway(tmp_path, url, keys=[1, 2, 3], limits={"*": LIMITS}, store=store) as started:
            with load(started) as statuses:
                eventually(15, lambda: statuses.count(429) > 20)
            assert {status for status in statuses if status >= 500} == set()
            assert started.quota(FLASH)["left"]["rpm"] == 0
        nothing_refused(simulator)
        served = len(simulator.calls)
        # What was under way when it was killed may have been counted and never sent; nothing else is lost.
        assert 3 * LIMITS["rpm"] - 2 * 8 <= served <= 3 * LIMITS["rpm"]


def test_two_gateways_on_one_database(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'pollux.db'}"
    with (
        simulated(2, LIMITS, "sliding") as (simulator, url),
        gateway(tmp_path / "one", url, keys=[1, 2], limits={"*": LIMITS}, store=store) as one,
        gateway(tmp_path / "two", url, keys=[1, 2], limits={"*": LIMITS}, store=store) as two,
    ):
        with load(one, two) as statuses:
            eventually(15, lambda: statuses.count(429) > 20)
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == len(simulator.calls) == 2 * LIMITS["rpm"]
        nothing_refused(simulator)
        used = [sum(q["used"]["rpm"] for q in each.status()["quotas"]) for each in (one, two)]
        assert used == [2 * LIMITS["rpm"]] * 2


def test_a_restart_remembers_what_a_model_cannot(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'pollux.db'}"
    with simulated(2) as (simulator, url):
        simulator.faults.append(Fault(kind="unsupported"))
        with gateway(tmp_path, url, keys=[1, 2], store=store) as started:
            assert started.generate(**OFF).reason == "MODEL_NOT_AVAILABLE"
            assert started.signal() == 0
        simulator.calls.clear()
        with gateway(tmp_path, url, keys=[1, 2], store=store) as started:
            assert started.generate(**OFF).reason == "MODEL_NOT_AVAILABLE"
        assert not simulator.calls
