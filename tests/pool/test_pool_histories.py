"""Several instances over one store: what is really sent never exceeds a limit, whatever goes wrong; and nearly all of
the limit is used. `python -m bench.histories` plays more of these, and tells one step by step.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bench.virtual import HangError, run_pure
from pollux.backends.store.clock import StoreClock
from pollux.pool.quota import Slot
from pollux.pool.windows import Want
from tests.pool.histories import Record, Send, play
from tests.pool.history_checks import most_in_a_minute, wrong
from tests.pool.history_plans import draw
from tests.pool.history_runs import MUTATIONS, Tally, block, many, mutated
from tests.pools import FaultyStore, Full, House, keys_of, memory, up_to

HISTORIES = 20_000
"""With --long, in CI too; else a tenth."""
MINUTE = 60.0


def test_the_histories_exceed_no_limit_and_leave_no_request_without_an_answer(pytestconfig: pytest.Config) -> None:
    count = HISTORIES if pytestconfig.getoption("--long") else HISTORIES // 10
    tally = many(0, count)
    assert not tally.failures, tally.complaint()
    assert tally.histories == count
    assert tally.full > count / 2, "limits that are not reached prove nothing"
    assert min(tally.kinds.values()) > count / 50
    assert min(tally.troubles.values()) > count / 100
    assert tally.answers["reserved"] > 5 * count
    assert min(tally.answers.values()) > count / 50


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_histories_notice_a_broken_rule(mutation: str) -> None:
    tally = block(0, 1500, mutation, until_exceeded=True)  # a few dozen are enough
    assert tally.exceeded, f"nobody noticed: {MUTATIONS[mutation]}"


def test_a_seed_always_draws_and_plays_the_same() -> None:
    first, second = (play(draw(7)) for _ in range(2))
    assert first.sends
    assert first == second


def _send(at: float, requests: int = 1, tokens: int = 0, **more: str) -> Send:
    return Send(at, "p0", "b", Want(requests, tokens), more.get("day", "2026-09-21"), more.get("probe", ""), tokens)


def _judged(*sends: Send, **limits: int) -> list[str]:
    plan = draw(0)
    plan.limits, plan.kind, plan.zone, plan.troubles = limits, "plain", "", frozenset({"faults"})
    days: Counter[str] = Counter()
    for send in sends:
        days[send.day] += send.want.requests
    stored = {("p0", "b"): {day: (count, 10**9) for day, count in days.items()}}
    return wrong(plan, Record(sends=list(sends), stored=stored))


def test_the_checks_see_one_request_too_many_in_any_minute() -> None:
    assert not _judged(_send(0.0), _send(59.99), _send(60.0), rpm=2)
    assert "rpm 2 of 1" in _judged(_send(0.01), _send(60.0), rpm=1)[0]
    assert "tpm 11 of 10" in _judged(_send(5.0, tokens=4), _send(60.0, tokens=7), rpm=5, tpm=10)[0]


def test_the_checks_see_a_day_that_is_overdrawn_and_a_call_that_is_not_in_the_store() -> None:
    assert "rpd 3 of 2" in _judged(_send(0.0), _send(1.0), _send(2.0), rpm=5, rpd=2)[0]
    assert not _judged(_send(0.0), _send(1.0), _send(2.0, probe="utc"), rpm=5, rpd=2)
    plan = draw(0)
    plan.limits, plan.zone, plan.troubles = {"rpm": 5}, "", frozenset()
    assert "the store has nothing" in wrong(plan, Record(sends=[_send(0.0)]))[0]


def test_a_request_that_is_never_answered_is_noticed() -> None:
    async def hangs() -> None:
        await asyncio.get_running_loop().create_future()

    async def turns() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    for scene in (hangs, turns):
        with pytest.raises(HangError):
            run_pure(scene())
    late = replace(Record(), slowest=1000.0)
    assert "answered 1000.0 s after" in wrong(draw(0), late)[0]


def test_a_complaint_names_the_command_that_plays_it_again() -> None:
    tally = Tally(histories=3, failures={17: ["rpm 2 of 1"]})
    assert tally.complaint().splitlines() == [
        "1 of 3 histories went wrong:",
        "rpm 2 of 1: python -m bench.histories --seed 17 --trace",
    ]


def test_a_mutation_ends_with_its_block() -> None:
    slot = Slot(0, "2026-09-21")
    with mutated("late"):
        assert slot.latest == math.inf
    assert slot.latest < 2


# How well a limit is used.


@dataclass
class Use:
    sends: list[tuple[float, str, int]] = field(default_factory=list)
    """When, from which project, how many tokens."""

    def within(self, rpm: int, tpm: int) -> bool:
        for project in {project for _, project, _ in self.sends}:
            sends = sorted((when, tokens) for when, owner, tokens in self.sends if owner == project)
            if most_in_a_minute([(when, 1) for when, _ in sends])[0] > rpm or most_in_a_minute(sends)[0] > tpm:
                return False
        return True

    def share(self, minutes: int, of: int) -> float:
        """Of what may be sent in so many minutes after the first."""
        return len([when for when, _, _ in self.sends if MINUTE < when <= (minutes + 1) * MINUTE]) / (minutes * of)


async def _overload(
    rng: random.Random,
    *,
    instances: int,
    projects: int = 1,
    rpm: int,
    tpm: int = 10**9,
    delay: float,
    minutes: int,
    load: float = 1.5,
    leavers: float = 0.0,
    big: bool = False,
    wait: float = 60.0,
    settle: bool = False,
) -> Use:
    """Clients at random times at random instances, at so many times the capacity."""
    loop, use, inner = asyncio.get_running_loop(), Use(), await memory()
    houses = [
        House(
            FaultyStore(inner, up_to(delay, rng), rng.uniform(-1, 1), clock=StoreClock()),
            keys_of(projects, rpm=rpm, tpm=tpm),
        )
        for _ in range(instances)
    ]

    async def client(house: House, tokens: int) -> None:
        found = await house.reserve(wait, tokens)
        if isinstance(found, Full):
            return
        found.sent = True
        use.sends.append((loop.time(), found.quota.project, tokens))
        if settle:
            await asyncio.sleep(rng.uniform(0, 3))
            pending = found.settle(round(tokens * rng.uniform(0.3, 1)))
            if pending is not None:
                await pending

    clients: list[asyncio.Task[None]] = []
    while loop.time() < (minutes + 2) * MINUTE:
        await asyncio.sleep(rng.expovariate(load * projects * rpm / MINUTE))
        tokens = rng.randint(0, tpm if big and rng.random() < 0.1 else 2 * tpm // rpm)
        clients.append(loop.create_task(client(rng.choice(houses), tokens)))
        if leavers and rng.random() < leavers:
            loop.call_later(rng.expovariate(0.3), clients[-1].cancel)
    for result in await asyncio.gather(*clients, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return use


def _run(scene: Coroutine[Any, Any, Use]) -> Use:
    return run_pure(scene, most=1_000_000)


@pytest.mark.parametrize(("instances", "delay"), [(1, 0.0), (2, 0.05), (4, 0.05), (4, 0.3), (4, 0.999)])
def test_in_steady_overload_nearly_all_is_used(instances: int, delay: float) -> None:
    shares = []
    for seed in range(3):
        use = _run(_overload(random.Random(seed), instances=instances, projects=2, rpm=15, delay=delay, minutes=6))
        assert use.within(15, 10**9)
        shares.append(use.share(6, of=2 * 15))
    assert sum(shares) / len(shares) >= 0.95


@pytest.mark.parametrize(("instances", "delay"), [(1, 0.0), (2, 0.05), (4, 0.05), (4, 0.3)])
def test_in_steady_overload_most_is_used_with_grants_too(instances: int, delay: float) -> None:
    use = _run(_overload(random.Random(instances), instances=instances, projects=2, rpm=150, delay=delay, minutes=3))
    assert use.within(150, 10**9)
    assert use.share(3, of=2 * 150) >= 0.9


def test_slots_of_clients_that_leave_are_used_by_others() -> None:
    use = _run(_overload(random.Random(5), instances=2, rpm=15, delay=0.05, minutes=6, load=2, leavers=0.5, wait=30))
    assert use.within(15, 10**9)
    assert use.share(6, of=15) >= 0.9


def test_settlements_of_several_instances_free_tokens_and_lose_none() -> None:
    """More is served than by the estimates alone."""
    settled, plain = (
        _run(
            _overload(
                random.Random(6), instances=3, rpm=40, tpm=40_000, delay=0.2, minutes=5, load=2, big=True, settle=settle
            )
        )
        for settle in (True, False)
    )
    assert len(settled.sends) > 1.2 * len(plain.sends)
    assert settled.within(40, 10**9)
