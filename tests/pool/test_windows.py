import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pollux.pool import windows
from pollux.pool.windows import (
    MINUTE_LIMITS,
    WINDOW,
    Slots,
    Want,
    all_spent,
    current,
    day_of,
    fit_minute,
    fit_sliding,
    total,
)

NOW = 3_600_000_030  # a slot number, half a minute past a full one of the clock
LOS_ANGELES = ZoneInfo("America/Los_Angeles")


def full_somewhere(slots: dict[int, Want], number: int, want: Want, limits: dict[str, int]) -> bool:
    """By the definition: one of the windows that contain the slot has no room for the want."""
    for i, name in enumerate(MINUTE_LIMITS):
        if not want[i] or name not in limits:
            continue
        near = [slots[s][i] if s in slots else 0 for s in range(number - WINDOW + 1, number + WINDOW)]
        upto = [0, *itertools.accumulate(near)]
        if max(upto[a + WINDOW] - upto[a] for a in range(WINDOW)) + want[i] > limits[name]:
            return True
    return False


wants = st.builds(Want, st.integers(0, 4), st.integers(0, 50), st.integers(0, 2))
booked = st.dictionaries(st.integers(-140, 200).map(lambda d: NOW + d), wants, max_size=25)
some_limits = st.fixed_dictionaries(
    {}, optional={"rpm": st.integers(1, 12), "tpm": st.integers(1, 150), "ipm": st.integers(1, 4)}
)


def within(want: Want, limits: dict[str, int]) -> Want:
    """`find` asks for no want above a limit: it can never fit."""
    return Want(*[min(amount, limits.get(name, amount)) for name, amount in zip(MINUTE_LIMITS, want, strict=True)])


@settings(max_examples=150, deadline=None)
@given(booked, wants, some_limits)
@example({NOW: Want(1)}, Want(1), {"rpm": 1})
@example({NOW - WINDOW: Want(1)}, Want(1), {"rpm": 1})
@example({NOW - WINDOW + 1: Want(1)}, Want(1), {"rpm": 1})
@example({NOW + WINDOW - 1: Want(1), NOW + 2 * WINDOW: Want(1)}, Want(1), {"rpm": 1})
@example({NOW - 10: Want(1), NOW - 10 + WINDOW: Want(1)}, Want(1), {"rpm": 2})  # no window holds both
@example({NOW + 10: Want(9, 999, 0)}, Want(1, 1), {"rpm": 2, "tpm": 5})  # the limits shrank below what is booked
@example({NOW: Want(0, 0, 0), NOW + 1: Want(2, 0, 0)}, Want(1), {"rpm": 2})
def test_the_sliding_fit_is_the_earliest(slots: dict[int, Want], want: Want, limits: dict[str, int]) -> None:
    want = within(want, limits)
    found, why = fit_sliding(Slots(slots), NOW, want, limits)
    earliest = next(n for n in itertools.count(NOW) if not full_somewhere(slots, n, want, limits))
    assert found == earliest
    assert why in limits if found > NOW else why == ""


@settings(max_examples=150, deadline=None)
@given(booked, wants, some_limits, st.integers(0, 119))
def test_the_minute_fit_is_the_earliest(
    slots: dict[int, Want], want: Want, limits: dict[str, int], offset: int
) -> None:
    want = within(want, limits)

    def free(number: int) -> bool:
        minute = number // 120 * 120
        held = total([slots[s] for s in range(minute, minute + 120) if s in slots])
        roomy = all(not w or h + w <= limits.get(n, h + w) for h, w, n in zip(held, want, MINUTE_LIMITS, strict=True))
        return roomy and (number - minute) / 2 >= 1.0 and (number - minute) / 2 + 1.0 <= 59.0

    found, _ = fit_minute(Slots(slots), NOW + offset, want, limits)
    assert found == next(n for n in itertools.count(NOW + offset) if free(n))


def test_the_edges_of_a_minute_stay_empty() -> None:
    minute, empty = NOW // 120 * 120, Slots({})
    assert [fit_minute(empty, minute + i, Want(), {})[0] - minute for i in (0, 1, 2, 3)] == [2, 2, 2, 3]
    assert [fit_minute(empty, minute + i, Want(), {})[0] - minute for i in (116, 117, 119, 120)] == [116, 122, 122, 122]


def test_every_fit_ends_after_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At worst, requests and tokens push the slot from one closed stretch into the next in turns."""
    passes = 0
    real = windows._past_full_windows

    def counted(slots: list[int], amounts: tuple[int, ...], number: int, room: int, span: int) -> int:
        nonlocal passes
        passes += 1
        assert passes < 200
        return real(slots, amounts, number, room, span)

    monkeypatch.setattr(windows, "_past_full_windows", counted)
    slots = Slots({NOW + i * WINDOW: Want(5, 0) if i % 2 else Want(0, 100) for i in range(60)})
    found, why = fit_sliding(slots, NOW, Want(1, 1), {"rpm": 5, "tpm": 100})
    assert (found, why) == (NOW + 60 * WINDOW, "rpm")
    assert passes <= 2 * 61


def test_the_minute_fit_passes_full_minutes_one_by_one() -> None:
    start = NOW // 120 * 120
    slots = Slots({start + 120 * i + 5: Want(5) for i in range(50)})
    assert fit_minute(slots, NOW, Want(1), {"rpm": 5}) == (start + 120 * 50 + 2, "rpm")


def test_a_want_of_nothing_fits_into_a_full_window() -> None:
    full = Slots({NOW: Want(5, 100)})
    limits = {"rpm": 5, "tpm": 100}
    assert fit_sliding(full, NOW, Want(0, 0), limits) == (NOW, "")
    assert fit_sliding(Slots({NOW: Want(1, 100)}), NOW, Want(1, 0), limits) == (NOW, "")
    assert fit_minute(full, NOW, Want(0, 0), limits) == (NOW, "")


def test_total() -> None:
    assert total([]) == Want(0, 0, 0)
    assert total([Want(1, 2, 3), Want(10, 20, 30)]) == Want(11, 22, 33)


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-08", 23), ("2026-03-09", 24), ("2026-11-01", 25), ("2026-07-04", 24)]
)
def test_a_pacific_day_has_as_many_hours_as_the_clocks_say(day: str, hours: int) -> None:
    noon = datetime.fromisoformat(day + "T12:00").replace(tzinfo=LOS_ANGELES).timestamp()
    name, begins, ends = day_of(noon)
    assert (name, ends - begins) == (day, hours * 3600)
    assert day_of(begins)[0] == day_of(ends - 0.001)[0] == day
    assert day_of(begins - 0.001)[0] < day < day_of(ends)[0]


@given(st.floats(1.7e9, 2.1e9), st.sampled_from(["pacific", "utc"]))
def test_a_moment_lies_in_its_day(moment: float, zone: str) -> None:
    name, begins, ends = day_of(moment, zone)
    assert begins <= moment < ends
    date = datetime.fromtimestamp(moment, LOS_ANGELES if zone == "pacific" else UTC).date().isoformat()
    assert name == date + ("" if zone == "pacific" else "Z")  # never one name for two kinds of day


def test_of_many_days_those_that_are_over_go() -> None:
    noon = datetime(2026, 11, 1, 12, tzinfo=LOS_ANGELES).timestamp()
    two = {"2026-10-30": (1, 1), "2026-10-31": (2, 2)}
    assert current(two, noon) is two
    later = {"2026-11-01": (3, 3), "2026-11-01Z": (4, 4), "2026-11-02": (5, 5), "2026-11-02Z": (6, 6)}
    assert current(two | later, noon) == later


def test_a_day_is_spent_when_nothing_fits_any_more() -> None:
    assert not all_spent((9, 99), {"rpd": 10, "tpd": 100})
    assert all_spent((10, 0), {"rpd": 10})
    assert all_spent((0, 100), {"tpd": 100})
    assert not all_spent((10**9, 10**9), {})
