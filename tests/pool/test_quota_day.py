"""The day of a quota: Pacific midnights, also on the two odd days, and the probe that asks whether it ends in UTC."""

import math
from collections import Counter
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.pool.quota import Slot, State, book, cool, find, give_back, reserve, succeed, tidy
from pollux.pool.refusals import Refusal, Why
from pollux.pool.windows import Limits, Slots, Want

LOS_ANGELES = ZoneInfo("America/Los_Angeles")
HOUR = 3600.0
ODD_DAYS = ["2026-03-08", "2026-03-09", "2026-11-01", "2026-11-02", "2026-07-04"]


def pacific(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=LOS_ANGELES).timestamp()


def utc(text: str) -> float:
    return datetime.fromisoformat(text + "+00:00").timestamp()


def taken(state: State, now: float, limits: Limits, patience: float = 0.0) -> tuple[State, Slot]:
    state, found = reserve(state, now, Want(), limits, now + patience)
    assert isinstance(found, Slot), found
    return state, found


def spent(at: float, limits: Limits) -> State:
    """Every request of the day has been made, by then."""
    state = State()
    for i in range(limits["rpd"]):
        state, _ = taken(state, at + i, {"rpd": limits["rpd"]})
    return state


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(ODD_DAYS),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["take", "take", "late", "back", "tidy"]), st.floats(0, 5 * HOUR)), max_size=30),
    st.sampled_from(["sliding", "minute"]),
)
def test_no_pacific_date_ever_has_more_than_its_requests(
    day: str, rpd: int, steps: list[tuple[str, float]], window: str
) -> None:
    now = pacific(day) - 30
    state, limits, sent = State(), {"rpd": rpd, "rpm": 5}, list[tuple[Slot, float]]()
    for what, seconds in steps:
        if what == "back" and sent and sent[-1][1] > now:
            state = give_back(state, sent.pop()[0], Want())
        elif what == "tidy":
            state = tidy(state, now)
        elif what == "late":
            now += seconds
        else:
            state, found = reserve(state, now, Want(), limits, now + seconds / 100, window)
            if isinstance(found, Slot) and found.probe != "utc":
                start = max(now, found.start)
                sent.append((found, start + (found.latest - start) * (seconds / HOUR % 1)))
    dates: Counter[str] = Counter()
    for slot, when in sent:
        moment = datetime.fromtimestamp(when, LOS_ANGELES)
        dates[moment.date().isoformat()] += 1
        assert slot.day == moment.date().isoformat()
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).timestamp()
        assert when - midnight >= 1.0
        assert datetime.fromtimestamp(when + 0.999, LOS_ANGELES).date() == moment.date()
    assert max(dates.values(), default=0) <= rpd


@pytest.mark.parametrize("day", ODD_DAYS)
def test_a_spent_day_ends_with_the_right_midnight(day: str) -> None:
    """Counted from noon of the day before; 23 and 25 hours make no difference to it."""
    limits = {"rpd": 3}
    now = pacific(day) - 1800
    state = spent(now, limits)
    assert find(state, now + 5, Want(), limits, now + 60) == Refusal(pacific(day) + 1, Why("rpd"))
    assert find(state, pacific(day) + 1, Want(), limits, 0) == Slot(int(pacific(day) * 2) + 2, day)
    end = pacific(day + "T12:00")
    full = spent(end, limits)
    refused = find(full, end + 60, Want(), limits, end + 61)
    assert isinstance(refused, Refusal)
    assert datetime.fromtimestamp(refused.until - 1, LOS_ANGELES).strftime("%H:%M:%S") == "00:00:00"
    assert 11 * HOUR < refused.until - end <= 12 * HOUR + 1


def test_a_slot_after_midnight_counts_for_its_own_date() -> None:
    limits = {"rpm": 2, "rpd": 3}
    now = pacific("2026-11-02") - 20
    state, today = taken(state=State(), now=now, limits=limits)
    state, _ = taken(state, now, limits)
    state, tomorrow = taken(state, now, limits, patience=90)
    assert (today.day, tomorrow.day) == ("2026-11-01", "2026-11-02")
    assert state.days == {"2026-11-01": (2, 0), "2026-11-02": (1, 0)}
    after = pacific("2026-11-02") + 120
    for _ in range(2):
        state, _ = taken(state, after, limits)
    assert find(state, after + 70, Want(), limits, after + 100) == Refusal(pacific("2026-11-03") + 1, Why("rpd"))


def test_nothing_is_booked_within_a_second_of_midnight() -> None:
    midnight = pacific("2026-03-08")
    slots = [find(State(), midnight + i / 8, Want(), {"rpm": 5}, midnight + 9) for i in range(-32, 32)]
    for slot in slots:
        assert isinstance(slot, Slot)
        assert slot.latest <= midnight - 1 or slot.start >= midnight + 1
    assert find(State(), midnight - 1.5, Want(), {}, midnight - 1) == Refusal(midnight + 1, Why("midnight"))


def test_yesterday_today_and_tomorrow() -> None:
    state = State(days={"2026-10-31": (7, 7), "2026-11-01": (1, 1)})
    now = pacific("2026-11-01T23:59:58.600")
    state, slot = taken(state, now, {"rpd": 5}, patience=10)
    assert slot.day == "2026-11-02"
    assert state.days == {"2026-11-01": (1, 1), "2026-11-02": (1, 0)}


def test_tokens_of_the_day() -> None:
    now = pacific("2026-11-01T12:00")
    state, found = reserve(State(), now, Want(1, 900), {"tpd": 1000}, now)
    assert isinstance(found, Slot)
    assert find(state, now, Want(1, 101), {"tpd": 1000}, now) == Refusal(pacific("2026-11-02") + 1, Why("tpd"))
    state, found = reserve(state, now, Want(1, 100), {"tpd": 1000}, now)
    assert isinstance(found, Slot)
    assert state.spent_at == now


LIMITS = {"rpd": 3}
BEFORE, AFTER = utc("2026-11-20T20:00"), utc("2026-11-21T00:00:01")
TODAY, LATER = "2026-11-20", pacific("2026-11-21")


def test_a_spent_day_gets_one_probe_after_midnight_in_utc() -> None:
    state = spent(BEFORE, LIMITS)
    assert find(state, AFTER - 0.1, Want(), LIMITS, AFTER) == Refusal(LATER + 1, Why("rpd"))
    probing, slot = taken(state, AFTER, LIMITS)
    assert slot == Slot(int(AFTER * 2), TODAY, "utc")
    for now in (AFTER, AFTER + 59, AFTER + 61, LATER - 60):
        assert find(probing, now, Want(), LIMITS, now) == Refusal(LATER + 1, Why("rpd"))
    assert give_back(probing, slot, Want()).utc_probe_at == 0.0
    assert taken(give_back(probing, slot, Want()), AFTER + 5, LIMITS)[1].probe == "utc"


def test_a_served_probe_teaches_that_days_end_in_utc() -> None:
    state, slot = taken(spent(BEFORE, LIMITS), AFTER, LIMITS)
    state = succeed(state, AFTER + 2, slot)
    assert (state.zone, state.days["2026-11-21Z"]) == ("utc", (1, 0))
    state, slot = taken(state, LATER + 0.5, LIMITS)  # the Pacific midnight is an hour like any other now
    assert slot == Slot(int(LATER * 2) + 1, "2026-11-21Z")
    state, _ = taken(state, LATER + 5, LIMITS)
    assert find(state, LATER + 9, Want(), LIMITS, LATER + 9) == Refusal(utc("2026-11-22T00:00:01"), Why("rpd"))
    assert succeed(state, LATER + 9, Slot(slot.number, slot.day, "utc")) == state  # learned once, counted once


def test_a_refused_probe_leaves_the_pacific_day() -> None:
    state, _ = taken(spent(BEFORE, LIMITS), AFTER, LIMITS)
    state = cool(state, AFTER + 1, "rpd", HOUR)
    assert state.zone == "pacific"
    for now in (AFTER + 2, AFTER + HOUR + 2, AFTER + 2 * HOUR):
        found = find(state, now, Want(), LIMITS, now)
        assert found == Refusal(LATER + 1, Why("rpd", "cooling" if now < AFTER + HOUR else ""))


def test_a_refusal_takes_back_what_was_learned_and_the_pacific_counts_are_still_there() -> None:
    state, slot = taken(spent(BEFORE, LIMITS), AFTER, LIMITS)
    state = cool(succeed(state, AFTER + 2, slot), AFTER + 60, "rpd", 600)
    assert state.zone == "pacific"
    assert state.days[TODAY] == (4, 0)
    assert find(state, AFTER + 1000, Want(), LIMITS, AFTER + 1000) == Refusal(LATER + 1, Why("rpd"))


def test_a_day_that_google_called_spent_gets_the_probe_too() -> None:
    """Nothing is known of the limit: only the refusal says it, and for no longer than an hour."""
    for seconds in (600.0, 5 * HOUR):
        state = cool(State(), BEFORE, "rpd", seconds)
        assert taken(state, AFTER, {})[1].probe == "utc"
        state, slot = taken(state, AFTER, {})
        assert succeed(state, AFTER + 1, slot).cooldown is None
    cooling = cool(State(), BEFORE, "rpm", 5 * HOUR)
    assert find(cooling, AFTER, Want(), {}, AFTER) == Refusal(BEFORE + 5 * HOUR, Why("rpm", "cooling"))


def test_others_ask_again_soon_while_the_probe_is_under_way() -> None:
    state, _ = taken(cool(State(), BEFORE, "rpd", 5 * HOUR), AFTER, {})
    assert find(state, AFTER, Want(), {}, AFTER) == Refusal(AFTER + 1, Why("rpd", "probing"))


def test_no_probe_beside_another_that_is_under_way() -> None:
    before = utc("2026-11-20T23:59:30")
    state, found = reserve(cool(State(), before - 60, "rpd", 60), before, Want(), {}, before)
    assert isinstance(found, Slot)
    assert found.probe == "half-open"
    assert find(state, AFTER, Want(), {}, AFTER) == Refusal(AFTER + 1, Why("rpd", "probing"))


def test_a_day_spent_by_bookings_of_the_day_before_gets_its_probe() -> None:
    midnight = pacific(TODAY)
    state, slot = taken(State(), midnight - 1, {"rpd": 1}, patience=10)
    assert slot.start == midnight + 1
    assert taken(state, AFTER, {"rpd": 1})[1].probe == "utc"


def test_a_day_with_room_again_is_not_probed() -> None:
    """What is served then would prove nothing, and yet be learned."""
    state = State()
    for i in range(3):
        state, slot = taken(state, BEFORE + i, LIMITS)
    state = give_back(state, slot, Want())
    assert taken(state, AFTER, LIMITS)[1] == Slot(int(AFTER * 2), TODAY)
    assert taken(spent(BEFORE, LIMITS), AFTER, {"rpd": 10})[1].probe == ""


def test_a_probe_that_falls_into_the_next_day_is_not_sent() -> None:
    now = LATER - 0.5
    state = spent(BEFORE, LIMITS)
    assert find(state, now, Want(), LIMITS, now + 60) == Slot(int(LATER * 2) + 2, "2026-11-21")
    assert find(state, now, Want(), LIMITS, now) == Refusal(LATER + 1, Why("midnight"))


def test_a_probe_that_finds_its_window_full_waits_for_it() -> None:
    limits = {"rpd": 3, "rpm": 1}
    state = spent(BEFORE, limits)
    number = int(AFTER * 2)
    state = state._replace(slots=Slots({number - 2: Want()}))
    assert find(state, AFTER, Want(), limits, AFTER) == Refusal(AFTER + 60.5, Why("rpm"))
    assert find(state, AFTER, Want(), limits, AFTER + 90) == Slot(number + 121, TODAY, "utc")


def test_what_was_booked_behind_a_probe_counts_for_the_day_it_opened() -> None:
    state, slot = taken(spent(BEFORE, LIMITS), AFTER, LIMITS)
    state = book(state, AFTER, Slot(slot.number + 4, TODAY), Want(2, 70), {})
    assert succeed(state, AFTER + 9, slot).days["2026-11-21Z"] == (3, 70)
    late = succeed(tidy(state, AFTER + 300), AFTER + 300, slot)
    assert late.days["2026-11-21Z"] == (1, 0)


@pytest.mark.parametrize("first", [0.0, 12 * HOUR])
def test_without_traffic_no_day_is_probed(first: float) -> None:
    state = State()
    for hour in range(48):
        now = BEFORE + first + hour * HOUR
        found = find(state, now, Want(), LIMITS, math.inf)
        assert isinstance(found, Slot)
        assert found.probe == ""


def test_a_refusal_names_the_slot_there_is_when_the_next_day_begins_full() -> None:
    limits = {"rpm": 1, "rpd": 1}
    now, midnight = pacific("2026-11-20T23:59"), pacific("2026-11-21")
    state = State(Slots({int(midnight * 2) + 10: Want()}), {TODAY: (1, 0)})
    assert find(state, now, Want(), limits, now) == Refusal(midnight + 5 + 61.5, Why("rpd"))
