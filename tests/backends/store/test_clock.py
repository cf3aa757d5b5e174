"""The store's clock: its stated error holds, whatever the delays and however wrong the local clock."""

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.backends.store.clock import DRIFT, RESOLUTION, StoreClock

BEGAN = 1_795_000_000.0
FLOATS = 2e-6
"""What is lost where seconds since 1970 are floats."""
EXCHANGES = st.lists(
    st.tuples(st.floats(0, 600), st.floats(0, 1), st.floats(0, 1)),  # a pause, the way there, the way back
    min_size=1,
    max_size=30,
)


@given(EXCHANGES, st.floats(-1e6, 1e6), st.floats(-DRIFT / 2, DRIFT / 2))
def test_the_error_is_never_above_the_bound(
    exchanges: list[tuple[float, float, float]], wrong: float, drift: float
) -> None:
    clock, true, error = StoreClock(), BEGAN, math.inf

    def local(moment: float) -> float:
        return moment + wrong + drift * (moment - BEGAN)

    for pause, there, back in exchanges:
        sent = true + pause
        true = sent + there + back
        clock.learn(local(sent), local(true), sent + there)
        assert abs(clock.now(local(true)) - true) <= clock.error + FLOATS
        narrow, known = (there + back) * (1 + DRIFT) / 2 + RESOLUTION, error + DRIFT * (pause + there + back) * 1.001
        assert clock.error <= max(narrow, known if error < math.inf else 0.0) + FLOATS
        error = clock.error


@given(EXCHANGES)
def test_it_never_steps_back_by_more_than_its_error(exchanges: list[tuple[float, float, float]]) -> None:
    clock, true, error, offset = StoreClock(), BEGAN, math.inf, 0.0
    for pause, there, back in exchanges:
        sent = true + pause
        true = sent + there + back
        clock.learn(sent, true, sent + there)
        if error < math.inf:
            widened = error + DRIFT * (pause + there + back)
            assert offset - clock.offset <= widened + FLOATS
        error, offset = clock.error, clock.offset


def test_before_the_first_exchange_it_is_the_local_clock() -> None:
    clock = StoreClock()
    assert clock.now(1234.5) == 1234.5
    assert clock.error == math.inf


def test_several_exchanges_tell_more_than_each_of_them() -> None:
    clock = StoreClock()
    clock.learn(0.0, 1.0, 100.0)  # all of it on the way back: the store is ahead by 99 to 100 s
    clock.learn(1.0, 2.0, 101.9)  # or on the way there: by 99.9 to 100.9 s
    assert clock.offset == pytest.approx(99.95, abs=0.001)
    assert clock.error == pytest.approx(0.05, abs=0.003)


def test_an_exchange_of_a_frozen_process_spoils_nothing() -> None:
    clock = StoreClock()
    clock.learn(10.0, 10.01, 15.005)
    clock.learn(11.0, 911.0, 16.002)  # frozen for a quarter of an hour before the answer was read
    assert clock.now(911.0) == pytest.approx(916.0, abs=0.02)
    assert clock.error < 0.5  # what 15 minutes of drift allow
    clock.learn(912.0, 912.01, 917.005)
    assert clock.error < 0.01


def test_a_first_exchange_that_took_long_leaves_a_local_clock_that_may_be_right() -> None:
    clock = StoreClock()
    clock.learn(1000.0, 1900.0, 1000.1)
    assert clock.now(1900.0) == pytest.approx(1900.0, abs=0.01)
    assert clock.error > 800


@pytest.mark.parametrize("step", [-3600.0, -2.0, -0.1, 0.1, 2.0, 3600.0])
def test_a_clock_that_was_set_is_believed_from_the_next_exchange_on(step: float) -> None:
    clock, local = StoreClock(), 1000.0
    for true in accumulate([5.0] * 10, initial=1000.0):
        clock.learn(true, true + 0.01, true + 0.005)
    local = true + step
    clock.learn(local, local + 0.01, true + 0.005)
    assert abs(clock.now(local) - true) <= clock.error + FLOATS
    assert clock.error < 0.01


def test_a_clock_that_is_set_back_during_an_exchange_is_forgotten() -> None:
    clock = StoreClock()
    clock.learn(1000.0, 1000.01, 1000.005)
    clock.learn(1001.0, 401.01, 1001.005)
    assert clock.error == math.inf
    assert clock.now(401.01) == pytest.approx(1001.01, abs=0.01)
    clock.learn(402.0, 402.01, 1002.005)
    assert clock.error < 0.01
