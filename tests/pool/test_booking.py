"""booking: grants of fast quotas, and what an instance spends by itself while the store does not answer."""

import asyncio
import math
from contextlib import suppress
from functools import partial

import pytest

from pollux.backends.store.contract import Document, StoreUnavailableError, Version
from pollux.pool import quota
from pollux.pool.grants import Grant
from pollux.pool.shared_document import FULL
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import LONGEST, SLOT, WINDOW
from tests.pools import BEGAN, FaultyStore, Full, House, Reservation, Tried, house, keys_of, memory, play, until


async def _steady(h: House, per_second: float, seconds: float, tokens: int = 0) -> list[Reservation]:
    """So many requests a second, evenly."""
    tasks = []
    for _ in range(int(per_second * seconds)):
        tasks.append(asyncio.ensure_future(h.send(tokens=tokens)))
        await asyncio.sleep(1 / per_second)
    return await asyncio.gather(*tasks)


async def _holding(h: House, at_least: int, tokens: int = 0) -> tuple[Grant, list[Reservation]]:
    """Steady requests until a grant with so many left is held."""
    sent = await _steady(h, 10, 10, tokens)
    while True:
        grant = h.projects.quota("p0", h.projects.bucket("a-model")).grant
        if grant is not None and grant.booked.requests - grant.used.requests >= at_least:
            return grant, sent
        sent += await _steady(h, 10, 0.1, tokens)


def _today(h: House) -> int:
    return sum(requests for requests, _ in h.quota().value.days.values())


def test_a_fast_quota_takes_few_commits_and_a_slow_one_as_many_as_requests() -> None:
    async def scene(rpm: int, per_second: float) -> float:
        h = await house(keys_of(2, rpm=rpm), lambda: 0.005)
        sent = await _steady(h, per_second, 50)
        return h.store.commits / len(sent)

    assert play(scene(1000, 20)) <= 0.05
    assert play(scene(60, 1)) == 1


def test_what_is_left_of_a_grant_goes_back_with_the_next_commit() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=600))
        _, sent = await _holding(h, 5)
        assert _today(h) > len(sent), "more is booked than was sent"
        await asyncio.sleep(5)
        sent += [await h.send()]
        await h.projects.close()
        assert sum(want.requests for want in h.quota().value.slots.values()) == len(sent)
        assert _today(h) == len(sent)

    play(scene())


def test_a_stop_gives_the_grants_back() -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=600))
        sent = await _steady(h, 20, 10)
        await h.projects.close()
        other = House(h.store, h.keys)
        await other.projects.load_all()
        used = [owned.document.value for owned in other.projects.quotas.values()]
        assert sum(want.requests for state in used for want in state.slots.values()) == len(sent)

    play(scene())


def test_requests_that_come_while_a_grant_is_committed_are_served_from_it() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000), lambda: 0.2)
        await _steady(h, 10, 20)
        await asyncio.sleep(5)
        commits = h.store.commits
        await asyncio.gather(*(h.send() for _ in range(15)))
        assert h.store.commits - commits <= 2
        await h.projects.close()
        assert sum(want.requests for want in h.quota().value.slots.values()) == 215

    play(scene())


def test_a_want_that_a_grant_cannot_cover_takes_its_own_place() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000, tpm=100_000))
        await _holding(h, 5, tokens=100)
        big = await h.send(tokens=50_000)
        assert big.grant is None
        small = await h.send(tokens=100)
        assert small.grant is not None

    play(scene())


def test_settling_and_giving_back_inside_a_grant_ask_nothing_of_the_store() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000, tpm=100_000))
        await _holding(h, 5, tokens=100)
        found = await h.reserve(tokens=100)
        assert isinstance(found, Reservation)
        assert found.grant is not None
        commits, used = h.store.commits, found.grant.used
        assert found.settle(150) is None
        assert found.grant.used == used._replace(tokens=used.tokens + 50)
        found.let_go()
        found.let_go()
        assert found.grant.used == used._replace(requests=used.requests - 1, tokens=used.tokens - 100)
        await asyncio.sleep(0.1)
        assert h.store.commits == commits

    play(scene())


def test_tokens_that_a_grant_does_not_hold_are_booked_for_all_to_see() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000, tpm=100_000))
        grant, sent = await _holding(h, 3, tokens=10)
        last = await h.send(tokens=10)
        assert last.grant is grant
        booked = grant.booked.tokens
        pending = last.settle(90_000)
        assert pending is not None
        await pending
        other = House(h.store, h.keys)
        await other.projects.load_all()
        held = sum(want.tokens for want in other.quota().value.slots.values())
        assert held >= 90_000 + 10 * len(sent)
        assert grant.booked.tokens >= booked + 80_000
        await asyncio.sleep(5)
        found = await other.reserve(wait=0, tokens=15_000)
        assert isinstance(found, Full)
        await h.send()
        await h.projects.close()
        await h.quota().refresh(0)
        assert sum(want.tokens for want in h.quota().value.slots.values()) == 10 * len(sent) + 90_000

    play(scene())


def test_a_grant_is_given_back_even_if_no_other_one_is_asked_for() -> None:
    """The pace is too low for one by now, or the limit is."""

    async def scene(limits: dict[str, int]) -> None:
        h = await house(keys_of(1, rpm=1000))
        _, sent = await _holding(h, 5)
        await asyncio.sleep(20)
        h.keys.now = keys_of(1, **limits).now
        await h.reserve(wait=0)
        await h.projects.close()
        kept = sum(want.requests for want in h.quota().value.slots.values())
        assert len(sent) <= kept <= len(sent) + 1

    play(scene({"rpm": 1000}))
    play(scene({"rpm": 5}))


def test_a_limit_that_falls_while_a_grant_is_held_causes_no_busy_loop() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000))
        await _holding(h, 5)
        h.keys.now = keys_of(1, rpm=5).now
        assert isinstance(await h.reserve(wait=10), Full)

    play(scene())


def test_after_a_refusal_nothing_more_is_spent_of_a_grant() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000))
        sent = await _steady(h, 10, 10)
        assert sent[-1].grant is not None
        await h.quota().apply(lambda state, now: (quota.cool(state, now, "rpm", 20.0), None))
        began = h.clock
        await h.send()
        assert h.clock - began >= 20

    play(scene())


@pytest.mark.parametrize("strategy", [name for name, strategy in STRATEGIES.items() if not strategy.prefers_own])
def test_other_strategies_keep_their_order_and_use_grants_too(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(3, rpm=1000), strategy=strategy)
        sent = await _steady(h, 30, 20)
        shares = [sum(r.quota.project == f"p{n}" for r in sent) for n in range(3)]
        assert max(shares) - min(shares) <= len(sent) / 10
        assert h.store.commits <= len(sent) / 10

    play(scene())


# --- the store does not answer ---------------------------------------------------------------------------------------


def _down(h: House) -> None:
    h.store.out_until = math.inf


def _back(h: House) -> None:
    h.store.out_until = 0.0


def test_while_the_store_is_gone_an_instance_spends_its_share_and_then_says_no() -> None:
    async def scene() -> None:
        h = await house(keys_of(2, rpm=20), max_instances=4)
        await h.send()
        _down(h)
        for _ in range(2 * 5 - 1):
            await h.send()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await h.reserve(wait=0)

    play(scene())


def test_what_was_spent_meanwhile_is_booked_when_the_store_is_back() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=20), max_instances=2)
        await h.send()
        _down(h)
        for _ in range(6):
            await h.send()
        await asyncio.sleep(20)
        _back(h)
        await h.send()
        await asyncio.sleep(1)
        other = House(h.store, h.keys)
        await other.projects.load_all()
        assert sum(want.requests for want in other.quota().value.slots.values()) == 8
        assert not h.projects.store_health.trouble

    play(scene())


def test_the_share_is_taken_once_however_often_the_store_comes_and_goes() -> None:
    """Each commit fails while reads work: that is one trouble, not one for each request."""

    async def scene() -> None:
        h = await house(keys_of(1, rpm=20), max_instances=4)
        await h.send()
        h.store.faults = ["down"] * 1000
        served = 0
        for _ in range(20):
            try:
                served += isinstance(await h.reserve(wait=0), Reservation)
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
        assert served == 4, "five would be the share, and one is used"

    play(scene())


@pytest.mark.parametrize(("instances", "rpm"), [(21, 20), (10, 5)])
def test_a_share_of_nothing_is_a_refusal(instances: int, rpm: int) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=rpm), max_instances=instances)
        await h.send()
        _down(h)
        with pytest.raises(StoreUnavailableError):
            await h.reserve()

    play(scene())


def test_a_request_whose_commits_all_fail_gets_an_error() -> None:
    """The document's commits fail, while those of others succeed."""

    class Partly(FaultyStore):
        async def commit(self, name: str, document: Document, version: Version | None) -> Version:
            if name.startswith("quota:"):
                await asyncio.sleep(0.05)
                raise StoreUnavailableError("too much for one document")
            return await super().commit(name, document, version)

    async def scene() -> None:
        h = House(Partly(await memory()), keys_of(1, rpm=5), max_instances=10)
        with pytest.raises(StoreUnavailableError):
            await h.reserve()
        assert h.clock < 3

    play(scene())


def test_what_waits_for_the_store_is_bounded_and_then_nothing_more_is_sent() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100_000), max_instances=1)
        await h.send()
        h.store.faults = ["down"] * 10**6  # while reads work, so that the quota is known for ever
        served = 0
        for _ in range(2 * FULL):
            try:
                served += isinstance(await h.reserve(wait=0), Reservation)
            except StoreUnavailableError:
                break
            await asyncio.sleep(0.01)
        assert FULL - 5 <= served <= FULL + 5
        assert h.quota().uncommitted <= FULL + 5
        tries = h.store.commits
        assert tries <= 2 * h.clock + 10

    play(scene())


def test_closed_spends_nothing_without_the_store() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100), store_down="closed")
        await h.send()
        _down(h)
        with pytest.raises(StoreUnavailableError):
            await h.reserve()
        _back(h)
        await h.send()

    play(scene())


def test_of_a_quota_not_seen_for_a_minute_nothing_is_spent() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100))
        await h.send()
        _down(h)
        await asyncio.sleep(50)
        await h.send()
        await asyncio.sleep(15)
        with pytest.raises(StoreUnavailableError):
            await h.reserve()

    play(scene())


def test_a_quota_never_seen_is_not_spent_from() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100))
        await h.send(model="another-model")
        _down(h)
        with pytest.raises(StoreUnavailableError):
            await h.reserve()

    play(scene())


def test_a_grant_that_is_held_is_spent_though_the_store_is_gone() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1000), store_down="closed")
        grant, _ = await _holding(h, 5)
        _down(h)
        for _ in range(grant.booked.requests - grant.used.requests):
            await h.send()
        with pytest.raises(StoreUnavailableError):
            await h.reserve()

    play(scene())


def test_all_instances_together_stay_within_the_limit_when_all_lose_the_store() -> None:
    async def scene() -> None:
        inner = await memory()
        houses = [House(FaultyStore(inner), keys_of(1, rpm=20), max_instances=4) for _ in range(4)]
        for h in houses:
            await h.send()
        for h in houses:
            await h.quota().refresh(0.0)
            _down(h)
        served = 4
        for h in houses * 8:
            with suppress(StoreUnavailableError):
                served += isinstance(await h.reserve(wait=0), Reservation)
        assert 16 <= served <= 20

    play(scene())


def test_a_slow_store_is_waited_for_only_when_the_share_is_used_up() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=20), max_instances=4)
        await h.send()
        h.store.delay = lambda: 0.6
        while not h.projects.store_health.trouble:
            await h.send()
        assert h.projects.store_health.trouble == "slow"
        safe, began = h.projects.quota("p0", h.projects.bucket("a-model")).safe, h.clock
        while (
            sum(want.requests for want in safe.spent.values()) < 4
        ):  # of twenty some are used already: four are left for one of four
            await h.send()
        assert h.clock == began
        await h.send()
        assert h.clock - began >= 1.2
        assert sum(want.requests for want in safe.spent.values()) == 4

    play(scene())


def test_without_known_limits_requests_go_on_without_the_store_and_are_counted_later() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.send()
        _down(h)
        for _ in range(30):
            await h.send()
            await asyncio.sleep(0.5)
        _back(h)
        await h.send()
        await asyncio.sleep(2)
        await h.projects.close()
        found = await h.store.inner.read([h.quota().name])
        (document, _) = found[h.quota().name]
        assert document["days"] == {"2026-09-21": [32, 0]}

    play(scene())


def test_a_refusal_by_google_is_remembered_while_the_store_is_gone() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=100))
        await h.send()
        _down(h)
        await h.send()
        await h.quota().note(lambda state, now: quota.cool(state, now, "rpm", 20.0))
        began = h.clock
        await h.send()
        assert h.clock - began >= 20

    play(scene())


def test_a_request_that_sleeps_until_its_slot_keeps_it_though_the_store_is_gone() -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        await h.send()
        waiting = asyncio.ensure_future(h.send(wait=70))
        await asyncio.sleep(30)
        _down(h)
        await waiting
        assert h.clock == pytest.approx(math.ceil((BEGAN + WINDOW * SLOT) / SLOT) * SLOT - BEGAN)

    play(scene())


def test_a_probe_of_a_quota_without_limits_waits_for_the_store_without_a_busy_loop() -> None:
    async def scene() -> None:
        h = await house(keys_of(1))
        await h.send()
        await h.quota().apply(lambda state, now: (quota.cool(state, now, "unknown-429", 5.0), None))
        await asyncio.sleep(10)
        _down(h)
        await h.quota().note(lambda state, now: quota.learn(state, now, {}, None))
        await asyncio.sleep(70)
        with pytest.raises(StoreUnavailableError):
            await h.reserve(wait=0)
        _back(h)
        assert (await h.send()).slot.probe == "half-open"

    play(scene())


@pytest.mark.parametrize("rpm", [5, 1000])
def test_requests_with_a_slot_or_a_grant_are_sent_when_a_pause_of_the_pool_ends(rpm: int) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=rpm))
        await _steady(h, 5 if rpm > 5 else 0.01, 10 if rpm > 5 else 100)
        h.pool.booking.pause_until = h.pool.now() + 1.3
        commits = h.store.commits
        await asyncio.gather(*(h.send() for _ in range(3)))
        assert h.pool.now() >= h.pool.booking.pause_until
        assert h.store.commits - commits <= 3

    play(scene())


@pytest.mark.parametrize(("error", "margin"), [(0.0, 0.0), (0.2, 0.0), (0.35, 0.15), (3.0, 0.4)])
def test_what_is_not_known_of_the_time_is_left_out_at_both_ends_of_a_slot(error: float, margin: float) -> None:
    async def scene() -> None:
        h = await house(keys_of(1, rpm=1))
        h.store.error = lambda: error  # type: ignore[method-assign]
        first = await h.send()
        assert h.pool.now() == pytest.approx(BEGAN + margin)
        assert not h.pool.is_late(first)
        await asyncio.sleep(first.slot.latest - margin - h.pool.now() - 0.01)
        assert not h.pool.is_late(first)
        await asyncio.sleep(0.02)
        assert h.pool.is_late(first)
        second = await h.send(wait=70)
        assert h.pool.now() == pytest.approx(second.slot.start + margin)

    play(scene())


# --- reads -----------------------------------------------------------------------------------------------------------


def test_a_request_that_wakes_reads_again_only_where_others_write() -> None:
    async def scene(instances: int) -> int:
        inner = await memory()
        houses = [House(FaultyStore(inner), keys_of(1, rpm=2)) for _ in range(instances)]
        for h in houses:
            await h.send()
            await h.send() if instances == 1 else None
        reads = houses[0].store.reads
        await houses[0].send(wait=70)
        return houses[0].store.reads - reads

    alone, together = play(scene(1)), play(scene(2))
    assert alone <= 1, "the health of keys, after half a minute"
    assert together > alone


def test_a_probably_taken_slot_is_refused_only_after_a_document_was_read_again() -> None:
    """What was full when it was last seen is thought to be full still, but it may have room by now."""

    async def scene() -> None:
        inner = await memory()
        one, two = (House(FaultyStore(inner), keys_of(1, rpm=2)) for _ in range(2))
        await one.send()
        await two.send()
        gone = asyncio.ensure_future(two.reserve(wait=70))
        await asyncio.sleep(1)
        found = await one.reserve(wait=70)  # sees that one waits already
        assert isinstance(found, Reservation)
        assert found.slot.start > BEGAN + 61
        await asyncio.sleep(10)
        reads = one.store.reads
        refused = await one.reserve(wait=40)
        assert isinstance(refused, Full)
        assert one.store.reads - reads <= 2, "one document, and the health of keys"
        await gone

    async def room() -> None:
        inner = await memory()
        one, two = (House(FaultyStore(inner), keys_of(1, rpm=1)) for _ in range(2))
        taken = await two.reserve()
        assert isinstance(taken, Reservation)
        assert isinstance(await one.reserve(wait=50), Full)
        taken.let_go()
        await asyncio.sleep(40)
        assert (await one.send(wait=30)).slot.start < one.pool.now() + 1

    play(scene())
    play(room())


def test_among_equals_the_document_that_this_instance_wrote_last_is_preferred() -> None:
    async def scene() -> None:
        inner = await memory()
        one, two = (House(FaultyStore(inner), keys_of(2, rpm=100)) for _ in range(2))
        first = (await one.send()).quota.project
        second = (await two.send()).quota.project
        assert first != second
        await asyncio.sleep(1)
        await one.quota(second).refresh(0)
        await two.quota(first).refresh(0)
        assert (await one.send()).quota.project == first
        assert (await two.send()).quota.project == second
        assert one.projects.store_health.counters.conflicts + two.projects.store_health.counters.conflicts == 0

    play(scene())


def test_the_longest_window_is_only_for_fast_quotas() -> None:
    async def scene(rpm: int) -> float:
        h = await house(keys_of(1, rpm=rpm))
        await asyncio.gather(*(h.send() for _ in range(rpm)))
        found = await h.reserve(wait=0)
        assert isinstance(found, Full)
        return until(found) - math.floor(BEGAN / SLOT) * SLOT

    assert play(scene(60)) == WINDOW * SLOT
    assert play(scene(61)) == LONGEST * SLOT


def test_what_a_request_asked_of_the_store_is_told() -> None:
    async def scene() -> None:
        inner = await memory()
        one, two = (House(FaultyStore(inner, partial(float, 0.05)), keys_of(1, rpm=9)) for _ in range(2))
        await one.send()
        await two.send()
        tried = Tried()
        await one.reserve(tried=tried)
        assert (tried.store.commits, tried.store.conflicts) == (2, 1)
        assert tried.store.seconds == pytest.approx(0.3)  # a commit, a read, a commit

    play(scene())
