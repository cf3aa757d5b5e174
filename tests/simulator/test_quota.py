"""The simulator's quotas: never above the limit in their own way of counting, never stricter than it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_simulator.quota import KINDS, Enforcer, Use

P, M = "project", "gemini-3.8-flash"


def admitted(enforcer: Enforcer, times: list[float], tokens: int = 1) -> list[float]:
    return [t for t in times if enforcer.admit(P, M, requests=1, tokens=tokens, now=t) is None]


def sums_in_60s(log: list[tuple[float, int]]) -> Iterator[int]:
    return (sum(n for t, n in log if start <= t and t - start < 60) for start, _ in log)


gaps = st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=60)


@given(gaps, st.integers(1, 5))
def test_sliding_never_admits_more_than_the_limit_in_any_60_s(steps: list[float], limit: int) -> None:
    enforcer = Enforcer("sliding", {"rpm": limit})
    passed = admitted(enforcer, list(accumulate(steps, initial=1e9)))
    assert max(sums_in_60s([(t, 1) for t in passed])) <= limit
    assert enforcer.peak_in_60s(P, M).requests == max(sums_in_60s([(t, 1) for t in passed]))


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 120)), min_size=1, max_size=40))
def test_sliding_tokens_stay_within_and_are_not_refused_without_need(calls: list[tuple[float, int]]) -> None:
    enforcer, now, log = Enforcer("sliding", {"tpm": 100}), 1e9, list[tuple[float, int]]()
    for step, tokens in calls:
        now += step
        taken = sum(n for t, n in log if now - t < 60)
        refusal = enforcer.admit(P, M, requests=1, tokens=tokens, now=now)
        assert (refusal is None) == (taken + tokens <= 100)
        if refusal is None:
            log.append((now, tokens))
        else:
            assert (refusal.name, refusal.limit) == ("tpm", 100)
            assert refusal.retry_s > 0


@given(gaps, st.integers(1, 5))
def test_a_minute_admits_exactly_its_limit_by_the_wall_clock(steps: list[float], limit: int) -> None:
    times = list(accumulate(steps, initial=1e9))
    passed = admitted(Enforcer("minute", {"rpm": limit}), times)
    for minute in {t // 60 for t in times}:
        asked = sum(t // 60 == minute for t in times)
        assert sum(t // 60 == minute for t in passed) == min(asked, limit)


@given(gaps, st.integers(1, 5))
def test_a_bucket_admits_its_capacity_and_what_was_refilled(steps: list[float], limit: int) -> None:
    passed = admitted(Enforcer("bucket", {"rpm": limit}), list(accumulate(steps, initial=1e9)))
    for i, start in enumerate(passed):
        for j, end in enumerate(passed[i:], 1):
            assert j <= limit + (end - start) * limit / 60 + 1e-3


@pytest.mark.parametrize("kind", KINDS)
@given(gaps)
def test_after_the_named_delay_it_fits(kind: str, steps: list[float]) -> None:
    enforcer = Enforcer(kind, {"rpm": 3, "tpm": 50})
    now = 1e9
    for step in steps:
        now += step
        if refusal := enforcer.admit(P, M, requests=1, tokens=20, now=now):
            assert 0 < refusal.retry_s <= 60
            now += refusal.retry_s + 1e-3
            assert enforcer.admit(P, M, requests=1, tokens=20, now=now) is None


def test_the_kinds_differ_where_they_should() -> None:
    times = [59.0, 59.5, 60.5, 61.0, 75.0]  # a minute turns at 60; a bucket of 2 refills one in 30 s
    assert admitted(Enforcer("sliding", {"rpm": 2}), times) == [59.0, 59.5]
    assert admitted(Enforcer("minute", {"rpm": 2}), times) == [59.0, 59.5, 60.5, 61.0]
    assert admitted(Enforcer("bucket", {"rpm": 2}), [*times, 89.5]) == [59.0, 59.5, 89.5]


def test_the_peak_shows_what_a_wall_clock_minute_lets_through() -> None:
    enforcer = Enforcer("minute", {"rpm": 2})
    admitted(enforcer, [59.0, 59.5, 60.5, 61.0], tokens=7)
    assert enforcer.peak_in_60s(P, M) == Use(4, 28, 0)
    assert enforcer.peak_in_60s("other", M) == Use(0, 0, 0)


def test_refused_calls_do_not_count_unless_told_so() -> None:
    times = [0.0, 1.0, 30.0, 60.5]
    assert admitted(Enforcer("sliding", {"rpm": 1}), times) == [0.0, 60.5]
    strict = Enforcer("sliding", {"rpm": 1}, count_refused=True)
    assert admitted(strict, times) == [0.0]
    assert strict.peak_in_60s(P, M).requests == 1


def test_a_want_above_the_limit_is_refused_for_ever_with_a_short_delay() -> None:
    for kind in KINDS:
        enforcer = Enforcer(kind, {"tpm": 100})
        for now in (0.0, 60.0, 6000.0):
            refusal = enforcer.admit(P, M, requests=1, tokens=101, now=now)
            assert refusal is not None
            assert 0 < refusal.retry_s <= 60
        assert enforcer.admit(P, M, requests=1, tokens=100, now=6000.0) is None


def test_limit_0_refuses_everything_and_hides_other_limits() -> None:
    refusal = Enforcer("sliding", {"rpm": 0, "tpm": 0, "rpd": 5}).admit(P, M, requests=1, tokens=0, now=15.0)
    assert refusal is not None
    assert {*refusal.broken} == {("rpm", 0), ("tpm", 0)}
    assert refusal.retry_s < 60
    assert Enforcer("sliding", {"ipm": 0}).admit(P, M, requests=1, tokens=1, now=0.0) is None
    assert Enforcer("sliding", {"ipm": 0}).admit(P, M, requests=1, tokens=1, images=1, now=0.0) is not None


@pytest.mark.parametrize(
    ("zone", "last", "first"),
    [
        ("pacific", datetime(2026, 11, 2, 7, 59, 59, tzinfo=UTC), datetime(2026, 11, 2, 8, tzinfo=UTC)),
        ("pacific", datetime(2026, 7, 1, 6, 59, 59, tzinfo=UTC), datetime(2026, 7, 1, 7, tzinfo=UTC)),
        ("utc", datetime(2026, 7, 1, 23, 59, 59, tzinfo=UTC), datetime(2026, 7, 2, tzinfo=UTC)),
    ],
)
def test_a_day_ends_at_its_own_midnight(zone: str, last: datetime, first: datetime) -> None:
    enforcer = Enforcer("sliding", {"rpd": 1}, day=zone)
    assert enforcer.admit(P, M, requests=1, tokens=1, now=last.timestamp() - 3600) is None
    refusal = enforcer.admit(P, M, requests=1, tokens=1, now=last.timestamp())
    assert refusal is not None
    assert (refusal.name, refusal.retry_s) == ("rpd", 1.0)
    assert enforcer.admit(P, M, requests=1, tokens=1, now=first.timestamp()) is None


@pytest.mark.parametrize(("date", "hours"), [((2026, 3, 8), 23), ((2026, 11, 1), 25)])
def test_the_two_odd_days_have_23_and_25_hours(date: tuple[int, int, int], hours: int) -> None:
    enforcer = Enforcer("sliding", {"rpd": 1})
    midnight = datetime(*date, 8 if hours == 23 else 7, tzinfo=UTC).timestamp()
    assert enforcer.admit(P, M, requests=1, tokens=1, now=midnight) is None
    refusal = enforcer.admit(P, M, requests=1, tokens=1, now=midnight)
    assert refusal is not None
    assert refusal.retry_s == hours * 3600


def test_the_longest_of_several_exceeded_limits_is_named() -> None:
    enforcer = Enforcer("sliding", {"rpm": 1, "rpd": 1})
    enforcer.admit(P, M, requests=1, tokens=1, now=1e9)
    refusal = enforcer.admit(P, M, requests=1, tokens=1, now=1e9)
    assert refusal is not None
    assert (refusal.name, len(refusal.broken)) == ("rpd", 2)


def test_projects_and_models_have_quotas_of_their_own_and_limits_by_name() -> None:
    enforcer = Enforcer("sliding", {"a": {"rpm": 1}, "*": {"rpm": 2}})
    results = [
        enforcer.admit(project, model, requests=1, tokens=1, now=0.0) is None
        for project in "pq"
        for model in "ab"
        for _ in range(3)
    ]
    assert results == [True, False, False, True, True, False] * 2
    assert enforcer.admitted["p", "b"] == 2
    assert enforcer.refused["q", "a"] == 2
    assert enforcer.reasons == {"rpm": 6}
    assert enforcer.served["p", "b"] == (2, 2, 0)
    by_function = Enforcer("sliding", lambda project, model: {"rpm": 1} if project == "p" else {})
    assert [by_function.admit(p, M, requests=1, tokens=1, now=0.0) is None for p in "ppqq"] == [True, False, True, True]


def test_what_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no kind"):
        Enforcer("hourly", {})
    with pytest.raises(ValueError, match="no such limit: rph"):
        Enforcer("sliding", {"rph": 5})
    with pytest.raises(ValueError, match="no day"):
        Enforcer("sliding", {}, day="lunar")
