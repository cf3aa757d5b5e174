"""Two gateways, state in the Firestore emulator, keys in Secret Manager: a secret is denied, one rotated under load."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemini_simulator import Fault, Simulator
from tests.backends.keys.fake_secret_manager import PROJECT, SecretManager
from tests.e2e.outages import Load, complaints, load, nothing_lost_nothing_twice
from tests.e2e.processes import Gateway, environment, eventually, key_value, serving, simulated
from tests.e2e.test_keys_in_secret_manager import filled

ROLE = "grant roles/secretmanager.secretAccessor on secret pollux-key-key-2"


class Cloud:
    """Gateways as they are deployed, but for the machine."""

    def __init__(self, folder: Path, google: SecretManager, emulator: str, upstream: str) -> None:
        self.google = google
        self._folder = folder
        chosen = {"store": f"firestore://demo-{time.time_ns()}", "secrets": PROJECT, "upstream": upstream}
        chosen |= {"data": str(folder / "data"), "strategy": "round_robin", "sticky": "off", "log": "json"}
        hosts = {"SECRET_MANAGER_EMULATOR_HOST": google.host, "FIRESTORE_EMULATOR_HOST": emulator}
        self._environ = environment(**chosen) | hosts

    @contextlib.contextmanager
    def gateway(self, name: str) -> Iterator[Gateway]:
        folder = self._folder / name
        folder.mkdir()
        with serving(folder, self._environ) as started:
            yield started


@pytest.fixture
def simulator() -> Iterator[tuple[Simulator, str]]:
    with simulated(5, latency=0.01) as made:
        yield made


@pytest.fixture
def cloud(tmp_path: Path, firestore_emulator: str, simulator: tuple[Simulator, str]) -> Iterator[Cloud]:
    with filled(3) as google:
        yield Cloud(tmp_path, google, firestore_emulator, simulator[1])


def keys_of(made: Load, gateway: Gateway) -> set[str]:
    served = [asked.answer for asked in made.asked if asked.gateway is gateway]
    return {answer.headers["x-pollux-key"] for answer in served if answer and answer.status == 200}


def states(gateway: Gateway) -> dict[str, str]:
    return {key["id"]: key["state"] for key in gateway.status()["keys"]}


def test_permission_denied_on_one_secret_costs_its_key_and_only_where_its_value_is_not_known(
    cloud: Cloud, simulator: tuple[Simulator, str]
) -> None:
    """One instance read all values before; the other starts when one may not be read any more."""
    with cloud.gateway("one") as one:
        assert {one.generate(text=f"{n}").headers["x-pollux-key"] for n in range(6)} == {"key-1", "key-2", "key-3"}
        simulator[0].calls.clear()
        cloud.google.fail("access_secret_version", "DENIED", "pollux-key-key-2")
        with cloud.gateway("two") as two:
            with load(one, two, pause=0.1) as made:
                eventually(10, lambda: len(made.asked) > 60)
            assert set(made.statuses) == {200}
            nothing_lost_nothing_twice(made, simulator[0])
            assert keys_of(made, two) == {"key-1", "key-3"}
            assert keys_of(made, one) == {"key-1", "key-2", "key-3"}
            (problem,) = two.status()["pool"]["problems"]
            assert ROLE in problem
            assert one.status()["pool"]["problems"] == []
            assert states(two)["key-2"] == "aside"
            assert complaints(one) == []
            (aside,) = complaints(two)
            assert aside.startswith("the key key-2 is set aside for 60 s: ")
            told = [line for line in two.said().splitlines() if ROLE in line]
            assert 1 <= len(told) <= 3, "in the line of the request that met it, not in each"


def test_a_secret_is_rotated_under_load_and_google_forgets_the_old_value_at_once(
    cloud: Cloud, simulator: tuple[Simulator, str]
) -> None:
    with cloud.gateway("one") as one, cloud.gateway("two") as two:
        with load(one, two, pause=0.05) as made:
            eventually(10, lambda: {call.key for call in list(simulator[0].calls)} == {"key-1", "key-2", "key-3"})
            cloud.google.add("pollux-key-key-1", key_value(5))
            simulator[0].faults.append(Fault(kind="invalid-key", key="key-1"))
            eventually(10, lambda: sum(call.key == "key-5" for call in list(simulator[0].calls)) > 20)
        assert set(made.statuses) == {200}
        nothing_lost_nothing_twice(made, simulator[0])
        for gateway in (one, two):
            assert keys_of(made, gateway) == {"key-1", "key-2", "key-3"}, "its id stays"
            assert states(gateway) == {"key-1": "healthy", "key-2": "healthy", "key-3": "healthy"}
        refused = sum(call.status == 400 for call in list(simulator[0].calls))
        assert refused <= 6, "what was under way with the old value, no more"
        read = cloud.google.asked.count(("access_secret_version", "pollux-key-key-1"))
        assert read <= 2 * 2, "at first use, and after the refusal"
        assert complaints(one) == complaints(two) == []
