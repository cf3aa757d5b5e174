"""Cooldowns and the probes that end them, and limits that 429s taught."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.verdict.causes import HALF_OPEN
from pollux.pool.quota import (
    LEARNED_FOR,
    PROBE_LEASE,
    Cooldown,
    Slot,
    State,
    cool,
    distrust_minute,
    effective,
    find,
    give_back,
    learn,
    release,
    reserve,
    succeed,
)
from pollux.pool.refusals import Refusal, Why
from pollux.pool.windows import Slots, Want

NOW = 1_800_043_200.0
DAY = "2027-01-15"
ONE = Want()


def probe(state: State, now: float, patience: float = 0.0) -> tuple[State, Slot]:
    state, found = reserve(state, now, ONE, {}, now + patience)
    assert isinstance(found, Slot), found
    assert found.probe == "half-open"
    return state, found


def test_nothing_is_booked_before_a_cooldown_ends() -> None:
    state = cool(State(), NOW, "rpm", 30.2)
    assert find(state, NOW + 1, ONE, {}, NOW + 2) == Refusal(NOW + 30.5, Why("rpm", "cooling"))
    assert find(state, NOW + 1, ONE, {}, NOW + 60) == Slot(int(NOW * 2) + 61, DAY)


def test_a_window_that_is_full_beyond_the_deadline_does_not_hide_the_cooldown() -> None:
    state = cool(State(Slots({int(NOW * 2) + 60: Want(5)})), NOW, "rpm", 30)
    assert find(state, NOW, ONE, {"rpm": 5}, NOW + 10) == Refusal(NOW + 91.5, Why("rpm", "cooling"))


def test_a_cooldown_of_a_minute_limit_has_no_probe() -> None:
    state = cool(State(), NOW, "rpm", 30)
    for _ in range(3):
        state, found = reserve(state, NOW + 30, ONE, {}, NOW + 30)
        assert found == Slot(int(NOW * 2) + 60, DAY)


@pytest.mark.parametrize("reason", sorted(HALF_OPEN))
def test_one_probe_goes_first_and_the_others_follow_when_it_was_served(reason: str) -> None:
    state, slot = probe(cool(State(), NOW, reason, 100), NOW + 100)
    for later in (0.0, 30.0, PROBE_LEASE - 0.5):
        refused = find(state, NOW + 100 + later, ONE, {}, NOW + 9999)
        assert isinstance(refused, Refusal)
        assert str(refused.why) == f"probing:{reason}"
        assert NOW + 100 + later < refused.until <= min(NOW + 101 + later, state.probe_until)
    assert probe(state, NOW + 100 + PROBE_LEASE)  # nobody reported
    assert probe(give_back(state, slot, ONE), NOW + 101)
    served = succeed(state, NOW + 103, slot)
    assert served.cooldown is None
    assert find(served, NOW + 103, ONE, {}, NOW + 103) == Slot(int(NOW * 2) + 206, DAY)


def test_a_refused_probe_rests_twice_as_long_up_to_the_ceiling() -> None:
    state, now, rests = State(), NOW, []
    for _ in range(6):
        state = cool(state, now, "unknown-429", 60, 600)
        assert state.cooldown is not None
        rests.append(state.cooldown.until - now)
        now = state.cooldown.until
        state, _ = probe(state, now)
    assert rests == [60, 120, 240, 480, 600, 600]
    assert cool(state._replace(cooldown=Cooldown(now, "unknown-429", 5000)), now, "unknown-429", 60, 600)
    assert cool(State(), now, "rpm", 900, 600).cooldown == Cooldown(now + 600, "rpm", 1)


def test_without_a_ceiling_nothing_doubles() -> None:
    state = cool(cool(State(), NOW, "rpm", 30), NOW + 31, "rpm", 30)
    assert state.cooldown == Cooldown(NOW + 61, "rpm", 2)


def test_refusals_of_requests_under_way_together_are_one_event() -> None:
    state = cool(State(), NOW, "unknown-429", 60, 600)
    for i in range(10):
        state = cool(state, NOW + i / 10, "unknown-429", 60, 600)
    assert state.cooldown == Cooldown(NOW + 60.9, "unknown-429", 1)


@given(st.lists(st.tuples(st.sampled_from(["rpm", "rpd", "spend"]), st.floats(0, 500), st.floats(0, 30)), max_size=20))
def test_none_shortens_a_rest(refusals: list[tuple[str, float, float]]) -> None:
    state, now, ends = State(), NOW, 0.0
    for reason, seconds, later in refusals:
        state = cool(state, now, reason, seconds, 600)
        assert state.cooldown is not None
        assert state.cooldown.until >= max(ends, now + seconds)
        ends = state.cooldown.until
        now += later


def test_a_success_resets_the_streak_but_not_one_of_before_the_rest() -> None:
    before = Slot(int(NOW * 2) - 20, DAY)
    cooling = cool(State(), NOW, "unknown-429", 60, 600)
    assert succeed(cooling, NOW + 1, before) == cooling
    assert succeed(cooling, NOW + 300, before) == cooling  # a stream that began long ago ends now
    after = Slot(int(NOW * 2) + 200, DAY)
    state = succeed(cooling, NOW + 101, after)
    assert state.cooldown is None
    assert cool(state, NOW + 102, "unknown-429", 60, 600).cooldown == Cooldown(NOW + 162, "unknown-429", 1)


def test_a_late_refusal_does_not_let_a_second_probe_be_booked_ahead() -> None:
    state, slot = probe(cool(State(), NOW, "unknown-429", 10), NOW + 5, patience=60)
    assert slot.start == NOW + 10
    for reason in ("rpm", "unknown-429"):
        late = cool(state, NOW + 6, reason, 1)
        assert late.cooldown == Cooldown(NOW + 10, "unknown-429", 1)
        assert find(late, NOW + 6, ONE, {}, NOW + 60) == Refusal(NOW + 11, Why("unknown-429", "probing"))


def test_giving_back_a_probe_after_its_lease_frees_no_other_lease() -> None:
    state, first = probe(cool(State(), NOW, "unknown-429", 10), NOW + 10)
    state, second = probe(state, NOW + 10 + PROBE_LEASE)
    late = give_back(state, first, ONE)
    assert late.probe_until == second.start + PROBE_LEASE
    assert isinstance(find(late, NOW + 80, ONE, {}, NOW + 999), Refusal)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "back", "refused", "served", "late"]), st.floats(0.5, 40)), max_size=40
    )
)
def test_there_is_one_probe_at_a_time(steps: list[tuple[str, float]]) -> None:
    state, now, under_way = cool(State(), NOW, "unknown-429", 30, 600), NOW, list[Slot]()
    for what, seconds in steps:
        if what == "ask":
            state, found = reserve(state, now, ONE, {}, now + seconds)
            if isinstance(found, Slot) and found.probe:
                under_way = [slot for slot in under_way if slot.start + PROBE_LEASE > now]
                assert not under_way
                under_way.append(found)
        elif what == "back" and under_way:
            state = give_back(state, under_way.pop(), ONE)
        elif what == "refused" and under_way and under_way[0].start <= now:
            under_way.pop()
            state = cool(state, now, "unknown-429", 30, 600)
        elif what == "served" and under_way and under_way[0].start <= now:
            state = succeed(state, now, under_way.pop())
        else:
            now += seconds


def test_limits_learned_come_before_those_declared_for_seven_days() -> None:
    state = learn(State(), NOW, {"rpm": 5}, "free")
    declared = {"rpm": 15, "tpm": 250_000}
    assert effective(state, NOW + LEARNED_FOR - 1, declared, "free") == {"rpm": 5, "tpm": 250_000}
    assert effective(state, NOW + LEARNED_FOR, declared, "free") == declared
    newer = learn(learn(state, NOW + 100, {"rpm": 7}, "free"), NOW + 200, {"tpm": 9}, "free")
    assert effective(newer, NOW + LEARNED_FOR + 150, declared, "free") == {"rpm": 15, "tpm": 9}
    assert effective(newer, NOW + 300, declared, "free") == {"rpm": 7, "tpm": 9}
    assert declared == {"rpm": 15, "tpm": 250_000}


def test_another_tier_forgets_what_was_learned() -> None:
    state = learn(State(), NOW, {"rpm": 5}, "free")
    assert effective(state, NOW + 1, {"rpm": 1000}, "paid-1") == {"rpm": 1000}
    assert effective(state, NOW + 1, {}, None) == {}
    assert learn(state, NOW + 1, {"tpm": 9}, "paid-1").learned == {"tpm": (9, NOW + 1)}


def test_a_contradicted_minute_is_not_trusted_for_a_day() -> None:
    limits = {"rpm": 1}
    number = int(NOW * 2) + 100
    state = State(Slots({number: ONE}))
    at = number / 2 + 1
    assert find(state, at, ONE, limits, at + 90, "minute") == Slot(int(NOW * 2) + 122, DAY)
    wary = distrust_minute(state, NOW)
    assert find(wary, at, ONE, limits, at + 90, "minute") == Slot(number + 123, DAY)
    later = NOW + 86400
    assert find(wary._replace(slots=Slots({int(later * 2): ONE})), later, ONE, limits, later, "minute") == Refusal(
        later + 61, Why("rpm")
    )


def test_a_released_probe_lets_the_next_one_go_at_once_and_stays_counted() -> None:
    state = cool(State(), NOW, "rpd", 60)
    state, first = probe(state, NOW + 60)
    assert isinstance(find(state, NOW + 62, ONE, {}, NOW + 62), Refusal)
    freed = release(state, first)
    assert (freed.slots, freed.days, freed.cooldown) == (state.slots, state.days, state.cooldown)
    freed, second = probe(freed, NOW + 62)
    assert release(freed, first) is freed  # the lease is another's by now
    assert release(freed, second._replace(probe="")) is freed
    refused = cool(freed, NOW + 63, "rpd", 60)
    assert release(refused, second) is refused
