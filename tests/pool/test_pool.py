"""One pool: who is chosen, how long is waited, what is given back. Several over one store: test_pool_histories."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pollux.backends.keys.contract import Key
from pollux.gemini.verdict.rules import Verdict
from pollux.pool import health, quota
from pollux.pool.quota import State
from pollux.pool.shared_document import Change
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import day_of
from tests.pools import (
    BEGAN,
    MODEL,
    FaultyStore,
    Full,
    House,
    Keys,
    Reservation,
    StoppingError,
    Tried,
    house,
    keys_of,
    memory,
    play,
    until,
)


def _cooled(seconds: float, reason: str = "rpm") -> Change[State, None]:
    return lambda state, now: (quota.cool(state, now, reason, seconds), None)


def test_one_instance_never_exceeds_the_limit_and_keeps_everybody_in_turn() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=10))
        sends: list[tuple[float, int]] = []

        async def client(number: int) -> None:
            await asyncio.sleep(number / 1000)
            await h.send(wait=600)
            sends.append((h.clock, number))

        await asyncio.gather(*(client(number) for number in range(40)))
        moments = [moment for moment, _ in sends]
        assert all(later - earlier > 60 for earlier, later in zip(moments, moments[10:], strict=False))
        assert moments[-1] == pytest.approx(3 * 61.5, abs=0.6)
        assert [number // 10 for _, number in sends] == [number // 10 for number in range(40)]
        assert h.pool.waiting == 0

    play(scene())


def test_what_comes_at_once_is_booked_by_few_commits() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000), delay=lambda: 0.01)
        await asyncio.gather(*(h.send() for _ in range(500)))
        assert h.store.commits <= 2
        assert h.store.most_under_way == 1

    play(scene())


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_without_waiting_there_is_a_slot_now_or_none() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=1))
        assert await h.send(wait=0)
        assert await h.send(wait=0)
        found = await h.reserve(wait=0)
        assert isinstance(found, Full)
        assert h.clock == 0
        assert {name: str(refusal.why) for name, refusal in found.refusals.items()} == {"p0": "rpm", "p1": "rpm"}
        assert until(found) == pytest.approx(BEGAN + 61.5)

    play(scene())


def test_the_deadline_tells_whether_to_wait_or_to_refuse_and_a_refusal_comes_at_once() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        assert isinstance(await h.reserve(wait=61), Full)
        assert h.clock == 0
        await h.send(wait=61.5)
        assert h.clock == pytest.approx(61.5)

    play(scene())


def test_a_big_want_may_wait_longer_but_not_if_the_client_set_a_limit() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, tpm=1000))
        await h.send(tokens=900)
        assert isinstance(await h.reserve(wait=10, tokens=250), Full)
        assert isinstance(await h.reserve(wait=10, tokens=251, patient=False), Full)
        assert h.clock == 0
        await h.send(wait=10, tokens=251)
        assert h.clock == pytest.approx(61.5)

    play(scene())


def test_a_want_above_the_limit_goes_where_the_limit_is_larger_or_nowhere() -> None:
    async def scene() -> None:
        keys = Keys(Key("a", "small", limits={"*": {"tpm": 100}}), Key("b", "large", limits={"*": {"tpm": 1000}}))
        h = await house(keys)
        assert (await h.send(tokens=500)).quota.project == "large"
        found = await h.reserve(tokens=5000)
        assert isinstance(found, Full)
        assert {str(refusal.why) for refusal in found.refusals.values()} == {"too-large"}

    play(scene())


# --- who is chosen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_spreads_and_uses_all_there_is_before_it_waits(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=4), strategy=strategy)
        projects = [(await h.send()).quota.project for _ in range(12)]
        assert h.clock == 0
        assert Counter(projects) == {"p0": 4, "p1": 4, "p2": 4}
        assert set(projects[:3]) == {"p0", "p1", "p2"}

    play(scene())


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("earliest", ["large", "large", "large"]),
        ("most_available", ["large", "large", "large"]),
        ("round_robin", ["small", "large", "small"]),
        ("least_recently_used", ["small", "large", "small"]),
    ],
)
def test_strategies_differ_where_projects_do(strategy: str, expected: list[str]) -> None:
    async def scene() -> None:
        keys = Keys(Key("a", "small", limits={"*": {"rpm": 4}}), Key("b", "large", limits={"*": {"rpm": 100}}))
        h = await house(keys, strategy=strategy)
        found = [(await h.send()).quota.project for _ in range(2)]
        assert set(found) == {"small", "large"}
        assert [(await h.send()).quota.project for _ in range(3)] == expected

    play(scene())


def test_all_that_strategies_choose_among_is_the_earliest_slot() -> None:
    async def scene() -> None:
        for strategy in STRATEGIES:
            h = await house(keys_of(2, rpm=1), strategy=strategy)
            await h.send(tokens=1)
            await asyncio.sleep(10)
            await h.send()
            first, second = await asyncio.gather(h.send(wait=100), h.send(wait=100))
            assert first.slot.start + 10 == pytest.approx(second.slot.start)

    play(scene())


def test_keys_of_one_project_share_its_quota_and_take_turns() -> None:
    async def scene() -> None:
        limits = {"*": {"rpm": 4}}
        h = await house(Keys(*(Key(name, "p", limits=limits) for name in ("a", "b"))))
        assert Counter([(await h.send()).key.id for _ in range(4)]) == {"a": 2, "b": 2}
        assert isinstance(await h.reserve(wait=0), Full)

    play(scene())


def test_a_conversation_stays_where_it_was_served_while_there_is_room() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=3))
        h.pool.stick(7, "p1")
        assert [(await h.send(sticky=7)).quota.project for _ in range(3)] == ["p1"] * 3
        other = await h.send(sticky=7)
        assert other.quota.project != "p1"
        assert h.clock == 0  # it does not wait for its project while another has room
        assert h.pool.served_by(7) == "p1"
        assert h.pool.served_by(8) is h.pool.served_by(None) is None

    play(scene())


def test_stickiness_can_be_off_and_does_not_grow_for_ever() -> None:
    async def scene() -> None:
        h = await house(keys_of(2), sticky=False)
        h.pool.stick(7, "p1")
        assert h.pool.served_by(7) is None
        h = await house(keys_of(2))
        for number in range(10_001):
            h.pool.stick(number, "p1")
        assert h.pool.served_by(0) is None
        assert h.pool.served_by(1) == h.pool.served_by(10_000) == "p1"

    play(scene())


def test_the_preferred_key_comes_first_if_its_project_has_room() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=2))
        h.pool.stick(7, "p1")
        found = [(await h.send(prefer_key="k2", sticky=7)).key.id for _ in range(4)]
        assert found == ["k2", "k2", "k1", "k1"]
        assert (await h.send(prefer_key="k2", sticky=7)).key.id == "k0"
        assert h.clock == 0

    play(scene())


def test_the_preferred_key_is_chosen_within_its_project() -> None:
    async def scene() -> None:
        h = await house(Keys(*(Key(name, "p", limits={"*": {"rpm": 9}}) for name in "abc")))
        assert [(await h.send(prefer_key="c")).key.id for _ in range(3)] == ["c"] * 3

    play(scene())


def test_only_one_project_is_asked_if_only_that_can_serve() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=1))
        assert (await h.send(only="p1")).quota.project == "p1"
        found = await h.reserve(only="p1", wait=0)
        assert isinstance(found, Full)
        assert set(found.refusals) == {"p1"}
        h.projects.health.add_to_next_commit(lambda value, now: _aside(value, now, "projects", "p0"))
        found = await h.reserve(only="p1", wait=0)
        assert isinstance(found, Full)
        assert set(found.refusals) == {"p1"}

    play(scene())


def _aside(value: Any, now: float, kind: Any, name: str) -> Any:
    return health.set_aside(value, now, kind, name, "spend", 60)


def test_where_a_request_has_been_it_does_not_go_again() -> None:
    async def scene() -> None:
        h = await house(Keys(Key("a", "p0"), Key("b", "p0"), Key("c", "p1")))
        tried = Tried()
        tried.projects.add("p1")
        tried.keys.add("a")
        found = await h.reserve(tried=tried)
        assert isinstance(found, Reservation)
        assert found.key.id == "b"
        tried.keys.add("b")
        assert await h.reserve(tried=tried) == Full({})

    play(scene())


@pytest.mark.parametrize("learned", [{}, {"rpm": 1}])
def test_requests_that_wait_for_a_project_look_again_when_it_is_refused(learned: dict[str, int]) -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=2))
        sent = [await h.send() for _ in range(3)]
        other = await h.reserve()
        assert isinstance(other, Reservation)
        waiting = asyncio.create_task(h.send(wait=100))
        await asyncio.sleep(5)
        busy = next(owned for owned in h.projects.quotas.values() if owned.sleepers)
        there = next(r for r in [*sent, other] if r.quota is busy)
        free = next(r for r in [*sent, other] if r.quota is not busy)
        free.sent = False
        free.let_go()  # room elsewhere, of which whoever waits already knows nothing
        await asyncio.sleep(5)
        assert not waiting.done()
        refusal = Verdict("rpm", "quota", "next-project", 60.0 if not learned else 0.0, learned=learned)
        await h.feedback.failed(there, refusal)
        found = await waiting
        assert (found.quota, h.clock) == (free.quota, 10)

    play(scene())


def test_a_call_without_quota_takes_the_healthy_key_that_rested_longest() -> None:
    async def scene() -> None:
        h = await house(keys_of(3))
        first = [key.id for key in [await h.pool.pick(None, Tried()) for _ in range(3)] if key]
        assert sorted(first) == ["k0", "k1", "k2"]
        assert [key.id for key in [await h.pool.pick(None, Tried()) for _ in range(3)] if key] == first
        assert await h.pool.pick(None, Tried(keys={"k0", "k1", "k2"})) is None

    play(scene())


def test_looking_reserves_nothing() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        assert await h.pool.look(MODEL, h.ask()) is None
        assert await h.pool.look(MODEL, h.ask()) is None
        await h.send()
        full = await h.pool.look(MODEL, h.ask(wait=0))
        assert full is not None
        assert str(full.refusals["p0"].why) == "rpm"

    play(scene())


@pytest.mark.parametrize("strategy", [name for name, strategy in STRATEGIES.items() if strategy.in_turn])
def test_the_project_that_was_used_longest_ago_comes_next(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=50), strategy=strategy)
        assert [(await h.send()).key.id for _ in range(4)] == ["k0", "k1", "k2", "k0"]
        assert (await h.send(prefer_key="k2")).key.id == "k2"
        assert [(await h.send()).key.id for _ in range(4)] == ["k1", "k0", "k2", "k1"]
        await h.send()
        h.projects.health.add_to_next_commit(lambda value, now: _aside(value, now, "projects", "p1"))
        assert [(await h.send()).key.id for _ in range(3)] == ["k2", "k0", "k2"]

    play(scene())


@pytest.mark.parametrize(("kind", "name"), [("keys", "k0"), ("projects", "p0"), ("models", f"p0/{MODEL}")])
def test_what_is_set_aside_during_the_commit_is_given_back_and_another_taken(kind: str, name: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=9))
        await h.reserve(wait=0)
        await h.reserve(wait=0)
        before = quota.used(h.quota().value, h.pool.now()).requests
        h.store.delay = lambda: 0.05
        coming = asyncio.create_task(h.send(prefer_key="k0"))
        await asyncio.sleep(0.05)
        h.projects.health.add_to_next_commit(lambda value, now: _aside(value, now, kind, name))
        assert (await coming).key.id == "k1"
        await h.quota().flush()
        assert quota.used(h.quota().value, h.pool.now()).requests == before

    play(scene())


def test_what_is_set_aside_while_a_request_waits_is_not_asked() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiter = asyncio.create_task(h.reserve(wait=70))
        await asyncio.sleep(50)
        h.projects.health.add_to_next_commit(lambda value, now: _aside(value, now, "projects", "p0"))
        found = await waiter
        assert isinstance(found, Full)
        assert str(found.refusals["p0"].why) == "aside:spend"

    play(scene())


async def _set_aside(h: House, kind: health.Kind, name: str, seconds: float) -> None:
    await h.projects.ready()
    await h.projects.health.note(lambda value, now: health.set_aside(value, now, kind, name, "invalid-key", seconds))


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize(("kind", "name"), [("keys", "k{}"), ("projects", "p{}"), ("models", "p{}/" + MODEL)])
def test_the_first_rest_that_ends_by_the_deadline_is_waited_for(kind: health.Kind, name: str, count: int) -> None:
    async def scene() -> None:
        h = await house(keys_of(count, rpm=5))
        for number, seconds in enumerate((50, 20, *[3600] * (count - 2))):
            await _set_aside(h, kind, name.format(number), seconds)
        found = await h.reserve(wait=19.9)
        assert isinstance(found, Full)
        assert h.clock == 0, "who would wait in vain hears of it at once"
        found = await h.reserve(wait=65)
        assert isinstance(found, Reservation)
        assert found.quota.project == "p1"
        assert h.clock == pytest.approx(20, abs=0.1)

    play(scene())


def test_a_slot_elsewhere_comes_before_the_end_of_a_rest() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=1))
        await h.send()
        resting = "p1" if h.quota("p0").value.slots else "p0"
        await _set_aside(h, "projects", resting, 64)
        found = await h.reserve(wait=65)
        assert isinstance(found, Reservation)
        assert found.quota.project != resting

    play(scene())


def test_a_rest_beyond_the_deadline_that_begins_meanwhile_ends_the_wait() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        await _set_aside(h, "keys", "k0", 40)
        waiter = asyncio.create_task(h.reserve(wait=65))
        await asyncio.sleep(10)
        await _set_aside(h, "projects", "p0", 60)
        assert isinstance(await waiter, Full)
        assert h.clock <= 11
        assert not h.pool.waiting

    play(scene())


def test_a_rest_that_is_ended_by_hand_and_a_key_that_is_added_end_the_wait() -> None:
    async def scene(change: Callable[[House], None]) -> float:
        h = await house(keys_of(1, rpm=5))
        await _set_aside(h, "keys", "k0", 60)
        waiter = asyncio.create_task(h.reserve(wait=65))
        await asyncio.sleep(10)
        assert h.pool.waiting == 1
        change(h)
        assert isinstance(await waiter, Reservation)
        return h.clock

    def lifts(h: House) -> None:
        h.projects.health.add_to_next_commit(lambda value, _: health.clear(value, "keys", "k0"))

    def adds(h: House) -> None:
        h.keys.now = keys_of(2, rpm=5).now

    assert play(scene(lifts)) <= 11
    assert play(scene(adds)) <= 11


def test_many_requests_that_wait_for_a_rest_choose_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=15))
        for number in range(3):
            await _set_aside(h, "projects", f"p{number}", 50)
        looks = 0
        candidates = h.projects.candidates

        def counted(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            return candidates(*args)

        monkeypatch.setattr(h.projects, "candidates", counted)
        waiters = [asyncio.create_task(h.reserve(wait=65)) for _ in range(30)]
        await asyncio.sleep(49.9)
        assert looks <= 2 * 30
        assert all(isinstance(found, Reservation) for found in await asyncio.gather(*waiters))

    play(scene())


def test_at_the_end_a_request_that_would_wait_too_long_for_a_rest_fails_at_once() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await _set_aside(h, "keys", "k0", 50)
        waiting = asyncio.ensure_future(h.reserve(wait=65))
        await asyncio.sleep(5)
        h.pool.end(within=5)
        with pytest.raises(StoppingError):
            await waiting
        assert h.clock == pytest.approx(5)
        assert not h.pool.waiting

    play(scene())


# --- giving back ------------------------------------------------------------------------------------------------------


def test_a_waiting_client_that_leaves_gives_its_slot_back() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiter = asyncio.create_task(h.reserve(wait=100))
        await asyncio.sleep(20)
        assert h.pool.waiting == 1
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert h.pool.waiting == 0
        await h.send(wait=100)
        assert h.clock == pytest.approx(61.5)

    play(scene())


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
def test_a_client_that_leaves_during_the_commit_leaves_no_slot_taken(moment: float) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=2), delay=lambda: 0.05)
        leaver, other = asyncio.create_task(h.reserve()), asyncio.create_task(h.send())
        await asyncio.sleep(moment)
        leaver.cancel()
        await other
        await asyncio.gather(leaver, return_exceptions=True)
        await h.quota().flush()
        taken = quota.used(h.quota().value, h.pool.now()).requests
        assert taken == (1 if leaver.cancelled() else 2)

    play(scene())


def test_what_was_sent_is_never_given_back_and_what_was_not_only_once() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        sent = await h.send()
        sent.let_go()
        unsent = await h.reserve()
        assert isinstance(unsent, Reservation)
        await h.send()
        unsent.let_go()
        unsent.let_go()
        await h.quota().flush()
        assert quota.used(h.quota().value, h.pool.now()).requests == 2

    play(scene())


# --- waking -----------------------------------------------------------------------------------------------------------


def test_on_waking_an_old_state_is_read_once_and_another_slot_taken_if_it_cools() -> None:
    async def scene() -> None:
        inner = await memory()
        h, elsewhere = [House(FaultyStore(inner), keys_of(1, rpm=3)) for _ in range(2)]
        for _ in range(3):
            await h.send()
        waiters = [asyncio.create_task(h.send(wait=110)) for _ in range(3)]
        await asyncio.sleep(50)
        reads = h.store.reads
        await elsewhere.reserve(wait=0)  # reads the document
        await elsewhere.quota().apply(_cooled(30))
        found = await asyncio.gather(*waiters)
        assert h.clock == pytest.approx(80, abs=0.5)
        assert all(reservation.slot.start >= BEGAN + 80 for reservation in found)
        assert h.store.reads <= reads + 2  # one on waking for all, and one after the conflict

    play(scene())


def test_on_waking_there_is_another_project_or_the_first_deadline_ends_it() -> None:
    async def scene() -> None:
        inner = await memory()
        h, elsewhere = [House(FaultyStore(inner), keys_of(1, rpm=1)) for _ in range(2)]
        await h.send()
        waiter = asyncio.create_task(h.reserve(wait=70))
        await asyncio.sleep(50)
        await elsewhere.reserve(wait=0)
        await elsewhere.quota().apply(_cooled(30))
        found = await waiter
        assert isinstance(found, Full)
        assert str(found.refusals["p0"].why) == "cooling:rpm"
        assert h.clock == pytest.approx(61.5, abs=0.1)

    play(scene())


def test_a_state_that_is_fresh_is_not_read_again() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiter = asyncio.create_task(h.send(wait=100))
        await asyncio.sleep(58)
        await h.quota().apply(lambda state, now: (state._replace(spent_at=1.0), None))
        reads = h.store.reads
        await waiter
        assert h.store.reads == reads

    play(scene())


# --- a slow store -----------------------------------------------------------------------------------------------------


def test_a_late_commit_is_given_back_and_another_slot_taken() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        await h.send()
        delays = iter([0.6, 0.6])
        h.store.delay = lambda: next(delays, 0.0)
        found = await h.send(wait=0)
        assert h.pool.now() <= found.slot.latest
        await h.quota().flush()
        assert quota.used(h.quota().value, h.pool.now()).requests == 2

    play(scene())


@pytest.mark.parametrize("round_trip", [1.2, 2.0, 4.0])
def test_a_store_that_is_always_slow_still_serves(round_trip: float) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=50), delay=lambda: round_trip / 2)
        found = await asyncio.gather(*(h.send(wait=0) for _ in range(5)))
        assert all(h.pool.now() <= reservation.slot.latest for reservation in found)
        assert h.clock < 8 * round_trip
        await h.quota().flush()
        assert quota.used(h.quota().value, h.pool.now()).requests == 5

    play(scene())


def test_what_is_taken_ahead_is_chosen_ahead_too() -> None:
    """There is a slot now, but none by the time that a commit takes: a refusal, and not a search without end."""

    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        await h.send()
        await asyncio.sleep(day_of(BEGAN)[2] - 4.5 - h.pool.now())
        await h.projects.ready()
        delays = iter([1.0, 1.0])
        h.store.delay = lambda: next(delays, 0.0)
        found = await h.reserve(wait=0)
        assert isinstance(found, Full)
        assert str(found.refusals["p0"].why) == "midnight"

    play(scene())


# --- probes -----------------------------------------------------------------------------------------------------------


async def _resting(reason: str = "unknown-429", seconds: float = 60) -> House:
    h = await house(keys_of(1, rpm=100))
    await h.reserve(wait=0)
    await h.quota().apply(_cooled(seconds, reason))
    return h


def test_after_a_rest_one_goes_first_and_the_others_follow_when_it_was_served() -> None:
    async def scene() -> None:
        h = await _resting()
        waiters = [asyncio.create_task(h.send(wait=100)) for _ in range(5)]
        await asyncio.sleep(65)
        done = [waiter for waiter in waiters if waiter.done()]
        assert len(done) == 1
        assert done[0].result().slot.probe == "half-open"
        await h.feedback.served(done[0].result())
        await asyncio.gather(*waiters)
        assert h.clock < 67
        assert h.quota().value.cooldown is None

    play(scene())


def test_if_the_probe_fails_the_others_wait_on_or_hear_of_it() -> None:
    async def scene() -> None:
        h = await _resting()
        waiters = [asyncio.create_task(h.reserve(wait=100)) for _ in range(5)]
        await asyncio.sleep(65)
        await h.quota().apply(lambda state, now: (quota.cool(state, now, "unknown-429", 60, 600), None))
        results = await asyncio.gather(*waiters)
        full = [found for found in results if isinstance(found, Full)]
        assert len(full) == 4
        assert str(full[0].refusals["p0"].why) == "cooling:unknown-429"
        assert until(full[0]) == pytest.approx(BEGAN + 65 + 120, abs=1)
        assert h.clock < 67

    play(scene())


def test_another_instance_hears_within_seconds_that_the_probe_was_served() -> None:
    async def scene() -> None:
        inner = await memory()
        first, second = [House(FaultyStore(inner), keys_of(1, rpm=100)) for _ in range(2)]
        await first.reserve(wait=0)
        await first.quota().apply(_cooled(10, "unknown-429"))
        probe, waiter = asyncio.create_task(first.send()), asyncio.create_task(second.send())
        await asyncio.sleep(15)
        done = [task for task in (probe, waiter) if task.done()]
        assert len(done) == 1
        await (first if probe.done() else second).feedback.served(done[0].result())
        await asyncio.gather(probe, waiter)
        assert first.clock < 17.5

    play(scene())


def test_a_probe_that_leaves_makes_way_for_the_next() -> None:
    async def scene() -> None:
        h = await _resting()
        probe = asyncio.create_task(h.reserve(wait=100))
        await asyncio.sleep(1)
        waiter = asyncio.create_task(h.send(wait=100))
        await asyncio.sleep(10)
        probe.cancel()
        assert (await waiter).slot.probe == "half-open"
        assert h.clock == pytest.approx(60, abs=2)

    play(scene())


def test_without_patience_no_request_waits_for_a_probe() -> None:
    async def scene() -> None:
        h = await _resting()
        await asyncio.sleep(61)
        assert (await h.send(wait=0)).slot.probe == "half-open"
        found = await h.reserve(wait=0)
        assert isinstance(found, Full)
        assert str(found.refusals["p0"].why) == "probing:unknown-429"
        assert h.clock == 61

    play(scene())


def test_a_probe_whose_result_is_not_reported_ends_by_itself() -> None:
    async def scene() -> None:
        h = await _resting()
        await asyncio.sleep(61)
        await h.send(wait=0)
        found = await h.send(wait=70)
        assert found.slot.probe == "half-open"
        assert h.clock == pytest.approx(121, abs=1.5)

    play(scene())


# --- no limit known ---------------------------------------------------------------------------------------------------


def test_without_limits_no_request_waits_and_at_most_one_commit_a_second_is_made() -> None:
    async def scene() -> None:
        h = await house(keys_of(1), delay=lambda: 0.02)
        for _ in range(1000):
            await h.send(wait=0)
            await asyncio.sleep(0.01)
        assert h.clock < 10.2
        assert 9 <= h.store.commits <= 11
        assert quota.used(h.quota().value, h.pool.now()).requests == 1000
        await h.projects.close()
        assert quota.used(h.quota().value, h.pool.now()).requests == 1000
        other = House(FaultyStore(h.store.inner), keys_of(1))
        await other.reserve(wait=0)
        assert quota.used(other.quota().value, h.pool.now()).requests == 1001

    play(scene())


def test_without_limits_a_quota_rests_all_the_same() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.send()
        await h.quota().apply(_cooled(20))
        assert isinstance(await h.reserve(wait=0), Full)
        await h.send()
        assert h.clock == pytest.approx(20, abs=0.6)

    play(scene())


def test_a_limit_that_another_instance_learned_counts_at_once() -> None:
    async def scene() -> None:
        inner = await memory()
        first, second = [House(FaultyStore(inner), keys_of(1, rpm=15)) for _ in range(2)]
        await first.send()
        await second.send()
        await second.quota().apply(lambda state, now: (quota.learn(state, now, {"rpm": 5}, None), None))
        found = await asyncio.gather(*(first.reserve(wait=0) for _ in range(15)))
        assert sum(isinstance(one, Reservation) for one in found) == 3

    play(scene())


# --- settling ---------------------------------------------------------------------------------------------------------


def test_a_difference_that_matters_is_committed_and_a_small_one_rides() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, tpm=10_000))
        small, large = await h.send(tokens=1000), await h.send(tokens=1000)
        commits = h.store.commits
        assert small.settle(None) is None
        assert small.settle(1000) is None
        assert small.settle(1100) is None
        assert h.store.commits == commits
        pending = large.settle(1101)
        assert pending is not None
        await pending
        assert h.store.commits == commits + 1
        assert quota.used(h.quota().value, h.pool.now()).tokens == 2201
        pending = large.settle(500)  # a stream tells more than once; the last one counts
        assert pending is not None
        await pending
        assert quota.used(h.quota().value, h.pool.now()).tokens == 1600

    play(scene())


def test_without_a_token_limit_no_settlement_is_waited_for() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=5))
        found = await h.send(tokens=10)
        assert found.settle(1_000_000) is None
        assert quota.used(h.quota().value, h.pool.now()).tokens == 1_000_000

    play(scene())


def test_a_settlement_frees_what_was_estimated_too_high() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, tpm=1000))
        found = await h.send(tokens=900)
        assert isinstance(await h.reserve(wait=0, tokens=500, patient=False), Full)
        pending = found.settle(100)
        assert pending is not None
        await pending
        await h.send(wait=0, tokens=500, patient=False)

    play(scene())


# --- the pool-wide pause ----------------------------------------------------------------------------------------------


def test_a_pause_is_waited_for_within_the_deadline_and_a_refusal_beyond_it() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=5))
        h.pool.booking.pause_until = h.pool.now() + 30
        found = await h.reserve(wait=20)
        assert isinstance(found, Full)
        assert {str(refusal.why) for refusal in found.refusals.values()} == {"paused"}
        assert until(found) == BEGAN + 30
        assert isinstance(await h.reserve(wait=0), Full)
        assert h.clock == 0
        await h.send(wait=40)
        assert h.clock == pytest.approx(30, abs=0.5)

    play(scene())


def test_a_pause_that_begins_while_a_request_waits_holds_it_back() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiter = asyncio.create_task(h.send(wait=120))
        await asyncio.sleep(50)
        h.pool.booking.pause_until = h.pool.now() + 30
        await waiter
        assert h.clock == pytest.approx(80, abs=0.6)

    play(scene())


def test_at_the_end_a_request_that_would_wait_longer_fails_and_gives_its_slot_back() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiting = asyncio.ensure_future(h.reserve(wait=600))
        await asyncio.sleep(5)
        h.pool.end(within=5)
        with pytest.raises(StoppingError):
            await waiting
        assert h.clock == pytest.approx(5)
        await asyncio.sleep(1)
        assert h.quota().value.days == {day_of(BEGAN)[0]: (1, 0)}

    play(scene())


def test_at_the_end_a_request_with_a_slot_soon_is_still_served() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiting = asyncio.ensure_future(h.reserve(wait=600))
        await asyncio.sleep(60)
        h.pool.end(within=5)
        assert isinstance(await waiting, Reservation)

    play(scene())


def test_a_settlement_that_the_store_does_not_take_is_made_with_the_next_commit() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=15, tpm=100_000))
        sent = await h.send(tokens=1000)
        h.store.out_until = asyncio.get_running_loop().time() + 3
        pending = sent.settle(90_000)
        assert pending is not None
        await pending
        await asyncio.sleep(5)
        assert isinstance(await h.reserve(tokens=60_000, wait=0, patient=False), Full)
        await h.send(tokens=5000)
        held = await stored_tokens(h)
        assert held == 95_000

    play(scene())


async def stored_tokens(h: House) -> int:
    other = House(h.store, h.keys)
    await other.projects.load_all()
    return sum(want.tokens for want in other.quota().value.slots.values())


def test_many_at_once_use_the_room_of_all_projects_before_any_of_them_waits() -> None:
    async def scene() -> None:
        house_ = await house(keys_of(8, rpm=5), lambda: 0.01)
        began = house_.clock

        async def one() -> float:
            await house_.send(wait=200)
            return house_.clock - began

        ends = sorted(await asyncio.gather(*(one() for _ in range(50))))
        assert sum(end < 1 for end in ends) == 40
        assert ends[-1] < 62, "and the rest goes with the next minute"

    play(scene())
