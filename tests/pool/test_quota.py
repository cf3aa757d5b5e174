"""Reserving, settling and giving back. Days are in test_quota_day, cooldowns and limits in test_quota_cooldown."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.pool import quota, windows
from pollux.pool.quota import Slot, State, book, find, give_back, reserve, settle, tidy
from pollux.pool.refusals import Refusal, Why
from pollux.pool.windows import SLOT, WINDOW, Limits, Slots, Want, day_of
from tests.pool.enforcers import ENFORCERS, sliding
from tests.pool.quota_history import MIDNIGHT, NOON, History, Operation, limits, operations, wants


@settings(max_examples=200, deadline=None)
@given(operations, limits, st.sampled_from([NOON, NOON + 0.25, MIDNIGHT - 30, NOON + 59.99]))
def test_no_window_and_no_minute_of_any_kind_is_ever_above_its_limit(
    operations: list[Operation], limits: Limits, now: float
) -> None:
    history = History(limits, now=now).play(operations)
    for which, name in enumerate(("rpm", "tpm")):
        if name in limits:
            for enforcer in ENFORCERS:
                assert enforcer(history.sends(which), limits[name]) == []


@settings(max_examples=150, deadline=None)
@given(operations, limits, st.sampled_from([NOON, NOON + 0.25, NOON + 59.99]))
def test_by_the_wall_clock_no_minute_is_above_its_limit_and_its_edges_are_empty(
    operations: list[Operation], limits: Limits, now: float
) -> None:
    history = History(limits, "minute", now).play(operations)
    for which, name in enumerate(("rpm", "tpm")):
        if name in limits:
            assert ENFORCERS[2](history.sends(which), limits[name]) == []
    assert all(1.0 <= when % 60 <= 59.0 for when, _ in history.sends(0))


@settings(max_examples=150, deadline=None)
@given(operations, limits, wants, st.floats(0, 200), st.sampled_from([NOON, MIDNIGHT - 60, MIDNIGHT - 1.5, MIDNIGHT]))
def test_the_slot_is_the_earliest_and_a_refusal_tells_when(
    operations: list[Operation], limits: Limits, want: Want, patience: float, now: float
) -> None:
    limits = {**limits, "rpd": 30}
    history = History(limits, now=now).play(operations)
    state, now = history.state, history.now
    found = find(state, now, want, limits, now + patience)

    def free(number: int) -> bool:
        for i, name in enumerate(("rpm", "tpm")):
            slots = {s: w[i] for s, w in state.slots.items() if abs(s - number) < WINDOW}
            slots[number] = slots.get(number, 0) + want[i]
            sums = [
                sum(a for s, a in slots.items() if f <= s < f + WINDOW) for f in range(number - WINDOW + 1, number + 1)
            ]
            if want[i] and max(sums) > limits.get(name, math.inf):
                return False
        day, begins, ends = day_of(number * SLOT)
        if state.days.get(day, (0, 0))[0] + want.requests > 30:
            return False
        return begins + 1 <= number * SLOT and (number + 1) * SLOT + 0.5 <= ends - 1

    first = math.floor(now / SLOT)
    last = math.floor(max(now, now + patience) / SLOT)  # of the sum: it may round up to the next slot
    for number in range(first, last + 1):
        if free(number):
            assert isinstance(found, Slot)
            assert found.number == number
            assert found.day == day_of(found.start)[0]
            return
    assert isinstance(found, Refusal)
    if want.requests > limits["rpm"] or want.tokens > limits.get("tpm", math.inf):
        assert found == Refusal(math.inf, Why("too-large"))
    else:
        assert found.until > now + patience
        assert find(state, found.until, want, limits, found.until) == Slot(int(found.until * 2), day_of(found.until)[0])
        before = found.until - SLOT
        assert isinstance(find(state, before, want, limits, before), Refusal)


def test_now_is_a_slot_also_when_the_deadline_is_now_or_past() -> None:
    for now in (NOON, NOON + 0.4999, NOON + 0.5):
        found = find(State(), now, Want(), {"rpm": 1}, now - 1)
        assert found == Slot(math.floor(now * 2), "2027-01-15")
        assert found.start <= now < found.latest == found.start + 1.0
    full = State(Slots({int(NOON * 2): Want(1)}))
    assert find(full, NOON, Want(), {"rpm": 1}, NOON) == Refusal(NOON + 61.5, Why("rpm"))
    assert find(full, NOON + 61.5, Want(), {"rpm": 1}, NOON) == Slot(int(NOON * 2) + 123, "2027-01-15")
    assert find(full, NOON + 61.4999, Want(), {"rpm": 1}, NOON) == Refusal(NOON + 61.5, Why("rpm"))


@pytest.mark.parametrize(
    ("want", "limits", "why"),
    [
        (Want(), {"rpm": 0}, "unsupported"),
        (Want(1, 0), {"tpm": 0}, "unsupported"),
        (Want(), {"rpd": 0, "rpm": 5}, "unsupported"),
        (Want(1, 0, 1), {"ipm": 0}, "unsupported"),
        (Want(1, 300), {"tpm": 250}, "too-large"),
        (Want(1, 300), {"tpd": 250}, "too-large"),
        (Want(100), {"rpm": 60}, "too-large"),
        (Want(100), {"rpd": 60}, "too-large"),
        (Want(9, 0), {"rpm": 5, "tpd": 0}, "unsupported"),
    ],
)
def test_what_can_never_fit_is_told_at_once(want: Want, limits: Limits, why: str) -> None:
    assert find(State(), NOON, want, limits, math.inf) == Refusal(math.inf, Why(why))


def test_a_text_request_needs_no_images() -> None:
    assert isinstance(find(State(), NOON, Want(), {"ipm": 0}, NOON), Slot)


def test_a_batch_takes_one_request_per_text() -> None:
    limits = {"rpm": 150}
    state, first = reserve(State(), NOON, Want(100), limits, NOON)
    state, second = reserve(state, NOON, Want(100), limits, NOON + 100)
    assert isinstance(first, Slot)
    assert isinstance(second, Slot)
    assert second.start - first.start == 64.5  # above 60 a minute, grants make it longer
    assert isinstance(find(state, NOON, Want(50), limits, NOON), Slot)


def test_limits_that_shrink_below_what_is_booked_close_the_window() -> None:
    state = State(Slots({int(NOON * 2) + i: Want(3, 1000) for i in (0, 5, 100)}))
    found = find(state, NOON, Want(1, 1), {"rpm": 2, "tpm": 10}, NOON + 600)
    assert found == Slot(int(NOON * 2) + 100 + WINDOW, "2027-01-15")


def test_settling() -> None:
    state, slot = reserve(State(), NOON, Want(1, 100), {"tpm": 1000}, NOON)
    assert isinstance(slot, Slot)
    state = book(state, NOON, slot, Want(1, 50), {})
    assert settle(state, slot, Want(1, 100), 700).slots == {slot.number: Want(2, 750)}  # the truth may be more
    assert settle(state, slot, Want(1, 100), 0).days == {slot.day: (2, 50)}
    assert settle(state, slot, Want(1, 100), -7) == settle(state, slot, Want(1, 100), 0)  # takes nothing from others
    later = tidy(state, NOON + 70)
    assert later.slots == {}
    late = settle(later, slot, Want(1, 100), 30)
    assert (late.slots, late.days) == ({}, {slot.day: (2, 80)})


def test_giving_back_leaves_nothing_and_never_less() -> None:
    state, slot = reserve(State(), NOON, Want(2, 100, 1), {"rpm": 5}, NOON)
    assert isinstance(slot, Slot)
    once = give_back(state, slot, Want(2, 100, 1))
    assert (once.slots, once.days) == ({}, {slot.day: (0, 0)})
    assert give_back(once, slot, Want(2, 100, 1)) == once
    gone = tidy(state, NOON + 70)._replace(days={})
    assert give_back(gone, slot, Want(2, 100, 1)) == gone


def test_tidying_keeps_what_a_slower_clock_still_counts() -> None:
    first = int(NOON * 2)
    state = State(Slots({first: Want(1)}))
    faster = NOON + 64.0 + 2.0
    assert tidy(state, faster).slots  # two seconds slower, it is NOON + 64, and the slot is in the longest window
    assert not tidy(state, faster + 1.5).slots
    assert tidy(state, NOON) is state


def test_used_and_room_count_the_window_and_what_is_ahead() -> None:
    first = int(NOON * 2)
    state = State(Slots({first - WINDOW: Want(9, 9), first - WINDOW + 1: Want(1, 10), first + 50: Want(2, 20, 1)}))
    assert quota.used(state, NOON) == Want(3, 30, 1)
    assert quota.load(state, NOON, {"rpm": 6, "tpm": 40, "rpd": 3}, {}) == (False, 0.75)
    assert quota.load(state, NOON, {"rpm": 2, "tpm": 600}, {}) == (False, 1.5)  # booked ahead
    assert quota.load(state, NOON, {"rpd": 1, "ipm": 0}, {}) == (False, 0.0)


def test_where_no_limit_is_known_use_is_compared_with_the_smallest_and_with_what_was_served() -> None:
    first = int(NOON * 2)
    state = State(Slots({first: Want(3, 300)}))
    assert quota.load(state, NOON, {}, {"rpm": 4, "tpm": 1000}) == (False, 0.75)
    assert quota.load(state, NOON, {}, {"rpm": 3}) == (True, 3)  # beyond: by requests
    assert quota.load(state, NOON, {}, {"rpm": 9, "tpm": 300}) == (True, 3)
    assert quota.load(state, NOON, {"rpm": 6}, {"rpm": 3}) == (False, 0.5)  # a known limit is what counts
    served = quota.prove(
        State(Slots({first - 10: Want(5, 50), first + 1: Want(1, 1)})), quota.Slot(first, "2026-07-01")
    )
    assert served.proved == (5, 50)
    assert quota.prove(served, quota.Slot(first, "2026-07-01")) is served
    assert quota.load(served._replace(slots=Slots({first: Want(3, 30)})), NOON, {}, {"rpm": 3}) == (False, 0.6)


def test_a_day_without_a_known_limit_is_compared_with_the_smallest_tier_and_earlier_days() -> None:
    today = quota.find(State(), NOON, Want(), {}, NOON)
    assert isinstance(today, quota.Slot)
    used = State(days={today.day: (20, 0)})
    assert quota.load(used, NOON, {}, {"rpm": 5, "rpd": 20}).beyond
    assert not quota.load(used, NOON, {}, {"rpm": 5, "rpd": 21}).beyond
    assert not quota.load(used, NOON, {"rpd": 20}, {"rpm": 5, "rpd": 20}).beyond
    assert not quota.load(State(days={**used.days, "2000-01-01": (30, 0)}), NOON, {}, {"rpm": 5, "rpd": 20}).beyond


def test_beyond_what_others_were_refused_at_requests_keep_a_distance() -> None:
    first = int(NOON * 2)
    state, slot = State(Slots({first: Want(15, 100)})), quota.Slot(first, "2026-07-01")
    assert quota.spaced(state, slot, Want(), {}, {}) is slot
    assert quota.spaced(state, slot, Want(), {}, {"rpm": 16}) is slot
    assert quota.spaced(state, slot, Want(), {}, {"rpm": 15}).number == first + 2
    assert quota.spaced(state, slot, Want(), {"rpm": 15}, {"rpm": 15}) is slot, "a known limit needs no guess"
    assert quota.spaced(state, slot, Want(1, 50), {}, {"tpm": 149}).number == first + 2
    later = quota.Slot(first + 3, "2026-07-01")
    assert quota.spaced(state, later, Want(), {}, {"rpm": 15}) is later


def test_a_refusal_lowers_what_was_proved_to_what_is_used() -> None:
    first = int(NOON * 2)
    state = State(Slots({first: Want(7, 70)}), proved=(9, 50))
    assert quota.cool(state, NOON, "rpm", 10).proved == (7, 50)
    assert quota.cool(state, NOON, "rpd", 10).proved == (9, 50)


def test_searching_ends_after_few_steps_whatever_is_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full windows, spent days and midnights for 30 days, each moving the slot into the next."""
    steps = 0
    real = windows.fit_sliding

    def counted(slots: Slots, number: int, want: Want, limits: Limits, span: int) -> tuple[int, str]:
        nonlocal steps
        steps += 1
        assert steps <= 100
        return real(slots, number, want, limits, span)

    monkeypatch.setattr(quota, "fit_sliding", counted)
    midnights = [MIDNIGHT]
    while len(midnights) < 31:
        midnights.append(day_of(midnights[-1])[2])
    slots = Slots({int(m * 2) + 2: Want(5) for m in midnights})
    days = {day_of(m)[0]: (9 if i % 2 else 10, 0) for i, m in enumerate(midnights)}
    state = State(slots, days)
    assert find(state, MIDNIGHT - 1, Want(2), {"rpm": 5, "rpd": 10}, math.inf) == Slot(
        int(midnights[-1] * 2) + 48 * 3600 + 2, day_of(midnights[-1] + 90_000)[0]
    )
    assert steps > 31


def test_a_state_with_days_far_ahead_keeps_every_day_that_is_not_over() -> None:
    limits = {"rpd": 1}
    state, now = State(), NOON
    found = []
    for _ in range(5):
        state, slot = reserve(state, now, Want(), limits, math.inf)
        assert isinstance(slot, Slot)
        found.append(slot.day)
    assert found == [f"2027-01-{15 + i}" for i in range(5)]
    assert reserve(state, now, Want(), limits, now)[1] == Refusal(MIDNIGHT + 5 * 86400 + 1, Why("rpd"))
    assert set(tidy(state, NOON + 86400).days) == set(found[1:])


def test_a_big_want_gets_its_turn_among_small_ones_by_booking_ahead() -> None:
    limits = {"rpm": 1000, "tpm": 250_000}
    state, now, rng = State(), NOON, random.Random(7)
    sends: list[tuple[float, int]] = []
    served = asked = 0
    for second in range(1200):
        now = NOON + second
        state = tidy(state, now)
        arriving = [(10_000, 60.0)] * (rng.random() < 0.6)  # alone 1.4 times the limit
        if second % 90 == 0:
            arriving.append((200_000, 125.0))
        for tokens, patience in arriving:
            state, found = reserve(state, now, Want(1, tokens), limits, now + patience)
            if isinstance(found, Slot):
                sends.append((max(now, found.start), tokens))
            if tokens == 200_000:
                asked += 1
                served += isinstance(found, Slot)
    assert served == asked
    assert sliding(sends, 250_000) == []


@pytest.mark.parametrize("rpm", [5, 15, 60])
def test_steady_overload_uses_what_there_is_without_a_single_refusal(rpm: int) -> None:
    limits, rng = {"rpm": rpm}, random.Random(rpm)
    state, now, end = State(), NOON + 0.123, NOON + 600
    sends = []
    while now < end:
        state, found = reserve(tidy(state, now), now, Want(), limits, now + 60)
        if isinstance(found, Slot):
            sends.append((rng.uniform(max(now, found.start), found.latest), 1))
        now += rng.expovariate(1.5 * rpm / 60)
    served = [send for send in sends if send[0] < end]
    assert len(served) >= 0.95 * rpm * 10
    for enforcer in ENFORCERS:
        assert enforcer(sends, rpm) == []


def test_slots_are_given_in_the_order_of_asking() -> None:
    state, starts = State(), []
    for _ in range(20):
        state, found = reserve(state, NOON, Want(), {"rpm": 5}, NOON + 300)
        assert isinstance(found, Slot)
        starts.append(found.start)
    assert starts == [NOON + 61.5 * i for i, _ in itertools.product(range(4), range(5))]
