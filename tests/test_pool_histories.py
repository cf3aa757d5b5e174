"""Several instances over one store, in random histories: what is really sent never exceeds the limit in any minute."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.pool import Full
from pollux.store import StoreUnavailableError
from tests.pools import FaultyStore, House, keys_of, memory, play, up_to

MINUTE = 60.0
OFFSET = 0.25
"""Clocks of instances, as the store corrects them, are off by up to so much: two of them by twice as much."""


@dataclass
class History:
    sends: list[tuple[float, str, int]] = field(default_factory=list)
    """When, from which project, how many tokens."""
    refused: int = 0
    failed: int = 0

    def of(self, project: str) -> list[tuple[float, int]]:
        return sorted((when, tokens) for when, owner, tokens in self.sends if owner == project)


def most_in_a_minute(sends: Sequence[tuple[float, int]]) -> tuple[int, int]:
    """The most requests and the most tokens in any sixty seconds."""
    most = [0, 0]
    first = tokens = 0
    for last, (when, amount) in enumerate(sends):
        tokens += amount
        while when - sends[first][0] >= MINUTE:
            tokens -= sends[first][1]
            first += 1
        most = [max(most[0], last - first + 1), max(most[1], tokens)]
    return most[0], most[1]


async def _history(
    rng: random.Random,
    *,
    instances: int,
    projects: int = 1,
    rpm: int,
    tpm: int,
    delay: float,
    seconds: float,
    load: float,
    faults: float = 0.0,
    leavers: float = 0.0,
    crashes: bool = False,
    big: bool = False,
    offset: float = OFFSET,
    wait: float = 60.0,
    settle: bool = False,
) -> History:
    """Clients at random times at random instances, for so many seconds at so many times the capacity."""
    loop, history = asyncio.get_running_loop(), History()
    inner = await memory()
    houses = []
    for _ in range(instances):
        store = FaultyStore(inner, up_to(delay, rng), rng.uniform(-offset, offset))
        houses.append(House(store, keys_of(projects, rpm=rpm, tpm=tpm)))

    async def client(house: House, tokens: int) -> None:
        if faults and rng.random() < faults:
            house.store.faults.append(rng.choice(["down", "lost", "conflict", "late"]))
        try:
            found = await house.reserve(wait, tokens)
        except StoreUnavailableError:
            history.failed += 1
            return
        if isinstance(found, Full):
            history.refused += 1
            return
        found.sent = True
        history.sends.append((loop.time(), found.quota.project, tokens))
        if settle:
            await asyncio.sleep(rng.uniform(0, 3))
            pending = house.pool.settle(found, round(tokens * rng.uniform(0.3, 1)))
            if pending is not None:
                await asyncio.gather(pending, return_exceptions=True)

    per_second = load * projects * rpm / MINUTE
    clients: list[tuple[asyncio.Task[None], House]] = []
    while loop.time() < seconds:
        await asyncio.sleep(rng.expovariate(per_second))
        chosen = rng.choice(houses)
        tokens = rng.randint(0, tpm if big and rng.random() < 0.1 else 2 * tpm // rpm)
        clients.append((loop.create_task(client(chosen, tokens)), chosen))
        if leavers and rng.random() < leavers:
            loop.call_later(rng.expovariate(0.3), clients[-1][0].cancel)
        if crashes and rng.random() < 0.01:  # all that it held is gone, and a new one takes its place
            for task, owner in clients:
                if owner is chosen:
                    task.cancel()
            store = FaultyStore(inner, up_to(delay, rng), rng.uniform(-offset, offset))
            houses[houses.index(chosen)] = House(store, keys_of(projects, rpm=rpm, tpm=tpm))
    results = await asyncio.gather(*(task for task, _ in clients), return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return history


def _within(history: History, projects: int, rpm: int, tpm: int) -> None:
    for project in range(projects):
        requests, tokens = most_in_a_minute(history.of(f"p{project}"))
        assert requests <= rpm
        assert tokens <= tpm


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(2, 4),
    rpm=st.integers(1, 12),
    delay=st.floats(0, 1),
    load=st.floats(0.5, 3),
    faults=st.sampled_from([0.0, 0.1]),
    leavers=st.sampled_from([0.0, 0.2]),
    crashes=st.booleans(),
)
def test_no_interleaving_exceeds_a_limit(
    seed: int, instances: int, rpm: int, delay: float, load: float, faults: float, leavers: float, crashes: bool
) -> None:
    tpm = 1000 * rpm
    history = play(
        _history(
            random.Random(seed),
            instances=instances,
            rpm=rpm,
            tpm=tpm,
            delay=delay,
            seconds=150,
            load=load,
            faults=faults,
            leavers=leavers,
            crashes=crashes,
            big=True,
        )
    )
    _within(history, 1, rpm, tpm)


@pytest.mark.parametrize("block", range(10))
def test_three_hundred_histories_with_slow_commits_and_clocks_that_differ(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        rng = random.Random(seed)
        rpm = rng.randint(3, 10)
        tpm = 1000 * rpm
        history = play(
            _history(
                rng, instances=rng.randint(2, 4), projects=2, rpm=rpm, tpm=tpm, delay=1, seconds=130, load=1.5, big=True
            )
        )
        assert len(history.sends) >= 2 * rpm
        _within(history, 2, rpm, tpm)


@pytest.mark.parametrize(("instances", "delay"), [(1, 0.0), (2, 0.05), (4, 0.05), (4, 0.3), (4, 1.0)])
def test_in_steady_overload_nearly_all_is_used(instances: int, delay: float) -> None:
    minutes, projects, rpm = 6, 2, 15
    history = play(
        _history(
            random.Random(instances),
            instances=instances,
            projects=projects,
            rpm=rpm,
            tpm=10**9,
            delay=delay,
            seconds=(minutes + 2) * MINUTE,
            load=1.5,
        )
    )
    _within(history, projects, rpm, 10**9)
    measured = [when for when, _, _ in history.sends if MINUTE < when <= (minutes + 1) * MINUTE]
    assert len(measured) >= 0.95 * minutes * projects * rpm


def test_what_is_left_by_those_who_go_is_used_by_others() -> None:
    history = play(
        _history(
            random.Random(5), instances=2, rpm=15, tpm=10**9, delay=0.05, seconds=480, load=2, leavers=0.5, wait=30
        )
    )
    _within(history, 1, 15, 10**9)
    measured = [when for when, _, _ in history.sends if MINUTE < when <= 7 * MINUTE]
    assert len(measured) >= 0.9 * 6 * 15


def test_settlements_of_several_instances_free_tokens_and_lose_none() -> None:
    """The sum of what was really used stays below the limit, and more is served than by the estimates alone."""
    settled, plain = (
        play(
            _history(
                random.Random(6),
                instances=3,
                rpm=40,
                tpm=40_000,
                delay=0.2,
                seconds=400,
                load=2,
                big=True,
                settle=settle,
            )
        )
        for settle in (True, False)
    )
    assert len(settled.sends) > 1.2 * len(plain.sends)
    assert most_in_a_minute(settled.of("p0"))[0] <= 40
