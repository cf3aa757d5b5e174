"""Grants: how much one instance takes at once, until when it may spend it, and what it returns."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.pool import quota
from pollux.pool.booking import Pace
from pollux.pool.grants import DAY_SHARE, LIFE, SHARE, Grant, take
from pollux.pool.quota import Cooldown, Slot, State
from pollux.pool.windows import LONGEST, SLOT, WINDOW, Limits, Slots, Want, day_of

NOON = 1_800_043_200.0
FAST = {"rpm": 1000, "tpm": 1_000_000}
PLENTY = Want(10**6, 10**9)


def taken(state: State, wanted: Want, limits: Limits = FAST, now: float = NOON, window: str = "sliding") -> Grant:
    _, grant = take(state, now, wanted, limits, window)
    assert grant is not None
    return grant


def test_a_grant_is_what_is_wanted_and_stands_in_the_store_at_once() -> None:
    state, grant = take(State(), NOON, Want(20, 3000), FAST, "sliding")
    assert grant is not None
    assert grant.booked == Want(20, 3000)
    assert state.slots == {int(NOON / SLOT): Want(20, 3000)}
    assert state.days == {day_of(NOON)[0]: (20, 3000)}


def test_at_most_an_eighth_of_what_is_left_and_a_fiftieth_of_the_day() -> None:
    used = State(Slots({int(NOON / SLOT) - 10: Want(200, 200_000)}))
    assert taken(used, PLENTY).booked == Want(800 // SHARE, 800_000 // SHARE)
    spent = State(days={day_of(NOON)[0]: (9000, 50_000)})
    assert taken(spent, PLENTY, FAST | {"rpd": 10_000}).booked.requests == 1000 // DAY_SHARE
    assert taken(spent, PLENTY, FAST | {"tpd": 100_000}).booked.tokens == 50_000 // DAY_SHARE


@pytest.mark.parametrize(
    ("state", "wanted", "limits", "why"),
    [
        (State(), Want(1), FAST, "one request is no grant"),
        (State(Slots({int(NOON / SLOT): Want(990)})), PLENTY, FAST, "an eighth of ten is one"),
        (State(Slots({int(NOON / SLOT): Want(1000)})), PLENTY, FAST, "nothing is left"),
        (State(cooldown=Cooldown(NOON + 5, "rpm", 1)), PLENTY, FAST, "it rests"),
        (State(cooldown=Cooldown(NOON - 5, "rpd", 1)), PLENTY, FAST, "one request tries whether it works again"),
        (State(days={day_of(NOON)[0]: (9990, 0)}), PLENTY, FAST | {"rpd": 10_000}, "the day is nearly spent"),
    ],
)
def test_no_grant(state: State, wanted: Want, limits: Limits, why: str) -> None:
    assert take(state, NOON, wanted, limits, "sliding") == (state, None), why


def test_no_grant_of_what_others_have_booked_ahead() -> None:
    """There is room now, but not in every window that this slot is part of."""
    first = int(NOON / SLOT)
    ahead = State(Slots({first + 60: Want(900), first - 100: Want(100)}))
    _, grant = take(ahead, NOON, PLENTY, FAST, "sliding")
    assert grant is None


@given(offset=st.floats(0, 0.499), wanted=st.integers(2, 200))
def test_whatever_is_spent_of_it_lies_inside_the_longer_window(offset: float, wanted: int) -> None:
    now = NOON + offset
    grant = taken(State(), Want(wanted), now=now)
    last = grant.slot.latest
    assert last == NOON + SLOT + 0.5 + LIFE
    # The first slot that no window shares with it begins a minute and half a second after the last use.
    assert NOON + LONGEST * SLOT - last >= 60.5
    assert grant.fits(Want(1), last - 0.5)
    assert not grant.fits(Want(1), last - 0.4)


def test_after_a_grant_the_window_is_long_even_if_the_limit_is_small_by_then() -> None:
    state, grant = take(State(), NOON, Want(100), FAST, "sliding")
    assert grant is not None
    found = quota.find(state, NOON + 10, Want(1), {"rpm": 50}, math.inf)
    assert isinstance(found, Slot)
    assert found.number == grant.slot.number + LONGEST
    old = state._replace(granted=0)
    assert quota.find(old, NOON + 10, Want(1), {"rpm": 50}, math.inf) == Slot(
        grant.slot.number + WINDOW, day_of(NOON)[0]
    )


def test_a_grant_ends_before_the_pacific_midnight() -> None:
    midnight = day_of(NOON)[2]
    grant = taken(State(), Want(100), now=midnight - 3)
    assert grant.slot.latest == midnight - 1
    assert not grant.fits(Want(1), midnight - 1)


def test_by_the_wall_clock_a_grant_ends_with_its_minute() -> None:
    minute = NOON // 60 * 60
    grant = taken(State(), Want(100), now=minute + 57.5, window="minute")
    assert grant.slot.latest == minute + 59
    assert taken(State(), Want(100), now=minute + 20, window="minute").slot.latest == minute + 24


def test_spending_ends_with_the_requests_and_with_the_tokens() -> None:
    grant = taken(State(), Want(3, 100))
    assert not grant.fits(Want(1, 101), NOON)
    assert not grant.fits(Want(1, 0, 1), NOON), "images are counted one by one"
    grant.add(Want(1, 80))
    assert not grant.fits(Want(1, 21), NOON)
    grant.add(Want(0, -60))  # it was fewer than estimated
    assert grant.fits(Want(2, 80), NOON)
    grant.add(Want(2, 80))
    assert not grant.fits(Want(1, 0), NOON)
    assert grant.is_over(NOON)
    assert grant.close() == Want(0, 0)
    assert not grant.fits(Want(0, 0), NOON)


def test_without_a_limit_of_tokens_they_are_only_counted() -> None:
    grant = taken(State(), Want(10, 500), {"rpm": 1000})
    assert grant.booked == Want(10, 0)
    grant.add(Want(1, 70_000))
    assert grant.close() == Want(-9, 70_000)


@given(
    spends=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=30),
    before=st.integers(0, 500),
    cut=st.integers(0, 30),
)
def test_when_it_is_closed_the_store_holds_what_was_used(spends: list[tuple[int, int]], before: int, cut: int) -> None:
    """Settled before or after the end: the sum is that of what was really sent."""
    number = int(NOON / SLOT)
    state = State(Slots({number - 3: Want(before, before)}), {day_of(NOON)[0]: (before, before)})
    state, grant = take(state, NOON, Want(30, 100_000), FAST, "sliding")
    assert grant is not None
    sent = []
    for estimated, real in spends:
        if grant.fits(Want(1, estimated), NOON):
            grant.add(Want(1, estimated))
            sent.append((estimated, real))
    for estimated, real in sent[:cut]:
        grant.add(Want(0, real - estimated))
    state = quota.amend(state, grant.slot, grant.close())
    for estimated, real in sent[cut:]:
        state = quota.settle(state, grant.slot, Want(1, estimated), real)
    tokens = sum(real for _, real in sent)
    assert state.slots.get(number, Want(0)) == Want(len(sent), tokens)
    assert state.days[day_of(NOON)[0]] == (before + len(sent), before + tokens)


def test_the_pace_follows_what_is_asked_for_and_forgets() -> None:
    pace = Pace()
    for second in range(600):
        pace = pace.after(NOON + second / 10, Want(1, 200))
    assert 27 <= pace.for_a_grant().requests <= 31
    assert 5400 <= pace.for_a_grant().tokens <= 6200
    assert pace.for_a_grant(0.25).requests == pytest.approx(pace.for_a_grant().requests / 4, abs=1)
    assert pace.after(NOON + 120, Want(1)).for_a_grant().requests == 0
    assert Pace().after(NOON, Want(1)).for_a_grant().requests == 0
