"""What the contention bench computes from what it saw, and that its parts run: on SQLite, for a second."""

import asyncio
import json
from pathlib import Path

import pytest

from bench import admission, choice, contention, cost, fleet
from bench.admission import Told, Way
from bench.choice import LOADS
from bench.fleet import Seen, peak
from pollux.pool.quota import Slot, State


@pytest.mark.parametrize(
    ("times", "expected"),
    [([], 0), ([1.0], 1), ([0.0, 59.9], 2), ([0.0, 60.0], 1), ([0.0, 30.0, 59.0, 61.0, 100.0], 3), ([5.0, 5.0], 2)],
)
def test_the_most_in_any_minute(times: list[float], expected: int) -> None:
    assert peak(times) == expected
    assert peak(times[::-1]) == expected


def seen(status: int = 200, calls: int = 300) -> Seen:
    """Five minutes of one project at its limit of a second case: 60 calls a minute."""
    found = Seen(began=100.0, ended=400.0)
    found.calls = {"p": [(100.0 + number, status) for number in range(-50, calls + 50)]}
    found.answers = [(status, 0.002, 0.0)] * calls
    before = {"commits": 5, "reads": 7, "conflicts": 1}
    times = {"commit_ms": {"median": 2.0, "p99": 9.0}}
    found.requests = [{"status": 200, "store_ms": 11.0 if n >= 95 else 3.0} for n in range(100)]
    found.requests += [{"status": 429, "store_ms": 99.0}, {"status": 200}]
    found.store = [(before, {"commits": 5 + calls, "reads": 7, "conflicts": 1 + calls // 10} | times)]
    return found


def test_only_what_came_in_the_time_measured_counts_but_every_call_for_the_peak() -> None:
    found = seen()
    assert len(found.counted()) == 300
    assert found.per_call("commits") == 1.0
    assert found.per_call("reads") == 0.0
    found.calls["q"] = [(20.0, 200)] * 77
    assert found.peak() == 77


def test_verdicts_tell_what_is_missed() -> None:
    case = fleet.Case("slow-1", 1, 1, {"rpm": 60}, 1.5, "sqlite")
    rows = contention.slow_rows(case, seen())
    assert [row[0] for row in contention.missed(rows)] == ["slow-1: the same in median commits"]  # 11 / 2 > 5
    refused = contention.missed(contention.slow_rows(case, seen(status=429)))
    assert {"slow-1: refused upstream", "slow-1: served of the nominal capacity"} <= {row[0] for row in refused}


def test_a_gateway_that_does_not_tell_of_its_store_is_no_failure() -> None:
    case, found = fleet.slow(4, "sqlite"), seen()
    found.store, found.requests = [({}, {"commits": 3})], [{"status": 200}]
    rows = contention.slow_rows(case, found)
    assert not [row for row in rows if "wait for the store" in row[0]]
    assert contention.commit_ms(found) is None


def test_the_wait_for_the_store_is_that_of_requests_that_were_served() -> None:
    waits = seen().waits()
    assert (len(waits), contention.at(waits, 50), contention.at(waits, 99), waits[-1]) == (100, 3.0, 11.0, 11.0)


def test_fast_projects_are_compared_with_sqlite() -> None:
    case, ours, plain = fleet.fast("firestore"), seen(), seen()
    plain.answers = [(200, 0.0015, 0.0)] * 10
    rows = {name: value for name, value, _ in contention.fast_rows(case, ours, [plain, plain])}
    assert rows["fast-2: added by the store, median ms"] == "0.50"
    assert "fast-2: commits a request" in {
        name for name, _, _ in contention.missed(contention.fast_rows(case, ours, [plain]))
    }


def test_figures_of_several_cases_stand_side_by_side() -> None:
    rows = [("a: x y", "1", "at most 2"), ("a: z", "5", ""), ("b: x y", "3", "at least 2")]
    assert contention.pivot(rows).splitlines() == [
        "| figure | a | b |",
        "| --- | --- | --- |",
        "| x y | 1 (≤ 2) | 3 (≥ 2) |",
        "| z | 5 |  |",
    ]


def test_no_two_figures_of_a_case_have_one_name() -> None:
    for rows in (
        contention.slow_rows(fleet.slow(1, "sqlite"), seen()),
        contention.fast_rows(fleet.fast("sqlite"), seen(), [seen()]),
    ):
        assert len({name for name, _, _ in rows}) == len(rows)


def test_what_is_written_are_the_cases_of_the_cost_page() -> None:
    names = {case.name for case in (fleet.slow(count, "firestore") for count in contention.INSTANCES)}
    assert set(cost.measured()) - names == {"fast-2"}


def test_admitting_books_and_never_refuses() -> None:
    state, told = State(), []
    for moment in range(200):
        state, slot = admission.admit(state, 1_800_000_000.0 + moment / 10)
        told.append(slot)
    assert all(isinstance(slot, Slot) for slot in told)
    assert sum(requests for requests, _ in state.days.values()) == 200


def test_driving_counts_what_failed_and_what_came_too_late() -> None:
    async def one(number: int) -> None:
        if number:
            raise ValueError("no")

    told = asyncio.run(admission.drive(Way(one, lambda: 7), 2, 0.05, 0.0, 3, 1))
    assert told.admitted == len(told.seconds) > 0
    assert told.failed > 0
    assert told.why == "ValueError: no"
    assert told.tried == 0
    assert Told(**json.loads(json.dumps({"admitted": 3}))).admitted == 3


def test_conditional_commits_of_two_processes_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'choice.db'}"
    told, off = choice.run("commits", url, LOADS[2], 2, 0.3, {})
    assert told.admitted > 50
    assert told.tried > 0
    assert (off, told.failed) == (0, 0)


def test_gateways_under_load_are_measured(tmp_path: Path) -> None:
    case = fleet.Case("tiny", 2, 2, {"rpm": 600}, 20.0, "sqlite")
    (found,) = fleet.measure([case], 1.0, tmp_path, {}, 0.3)
    assert {status for status, _, _ in found.answers} == {200}
    assert len(found.calls) == 2
    assert found.asked("commits") > 0
    # A call may begin in the measured time and come to the simulator after it: so many as are under way at once.
    crossing = 2 + 20.0 * max(seconds for _, seconds, _ in found.answers)
    assert abs(len(found.counted()) - len(found.answers)) <= crossing
    assert abs(len(found.waits()) - len(found.answers)) <= crossing
