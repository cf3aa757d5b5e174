"""docs/cost.md says what bench/cost.py computes from bench/measured.toml, and that arithmetic is right."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cost
from bench.cost import CPU, LOGS, MEMORY, MILLION, READS, REQUESTS, WRITES, Measured

ONE = Measured("a test", commits=1.0, reads=0.5, source="a test")


def test_the_page_is_what_the_arithmetic_makes_of_the_measured_commits_and_reads() -> None:
    text = cost.PAGE.read_text()
    assert text == cost.fill(text, cost.parts(cost.measured())), "run python -m bench.cost"


def test_the_page_about_deploying_has_the_same_figures() -> None:
    text = cost.DEPLOY.read_text()
    assert text == cost.fill(text, cost.deploy_parts(cost.measured())), "run python -m bench.cost"
    shown = text.partition("<!-- deploy -->")[2].partition("<!-- /deploy -->")[0]
    assert [row.split(" | ")[0] for row in shown.strip().splitlines()[2:]] == ["| 0", "| 10,000", "| 1,000,000"]
    [last] = [row for row in cost.PAGE.read_text().splitlines() if row.startswith("| 1,000,000 | ")]
    assert last in shown


def test_the_page_changes_with_a_measurement_and_with_a_price() -> None:
    text, cases = cost.PAGE.read_text(), cost.measured()
    slower = cases | {"slow-4": replace(cases["slow-4"], commits=cases["slow-4"].commits + 1)}
    assert cost.fill(text, cost.parts(slower)) != text


def test_the_cases_that_the_page_speaks_of_are_those_that_the_bench_measures() -> None:
    assert list(cost.measured()) == ["slow-1", "slow-4", "fast-2"]
    assert "`slow-4`, the most expensive" in cost.PAGE.read_text()
    dearest = max(cost.measured().values(), key=lambda case: sum(cost.items(MILLION, 10, 1, case).values()))
    assert dearest == cost.measured()["slow-4"]


@pytest.mark.parametrize(
    ("seconds", "concurrency", "expected"), [(1, 1, 25.25), (10, 1, 252.5), (10, 10, 25.25), (60, 80, 18.9375)]
)
def test_time_costs_what_is_shared_of_it(seconds: float, concurrency: float, expected: float) -> None:
    """1 vCPU and 512 MiB: 0.000024 + 0.5 x 0.0000025 dollars a second."""
    found = cost.items(MILLION, seconds, concurrency, ONE)
    assert found[CPU.name] + found[MEMORY.name] == pytest.approx(expected)


def test_the_store_costs_by_the_request_and_not_by_time() -> None:
    short, long = cost.items(MILLION, 1, 80, ONE), cost.items(MILLION, 60, 1, ONE)
    assert short[WRITES.name] == long[WRITES.name] == pytest.approx(0.90)
    assert short[READS.name] == long[READS.name] == pytest.approx(0.15)
    assert short[REQUESTS.name] == pytest.approx(0.40)


def test_waiting_is_most_of_it_unless_many_requests_share_the_time() -> None:
    """What the page's first lines say."""
    for case in cost.measured().values():
        for seconds in (10, 60):
            found = cost.items(MILLION, seconds, 1, case)
            assert found[CPU.name] + found[MEMORY.name] > 0.9 * sum(found.values())
        shared = cost.items(MILLION, 1, 80, case)
        assert shared[CPU.name] + shared[MEMORY.name] < 0.5 * sum(shared.values())


def test_a_free_tier_is_taken_off_once_and_never_pays_back() -> None:
    assert LOGS.cost(10, free=True) == 0
    assert LOGS.cost(60, free=True) == pytest.approx(5)
    assert LOGS.cost(60) == pytest.approx(30)
    few = cost.items(10_000, 1, 80, ONE, free=True)
    assert sum(few.values()) == 0


def test_when_nobody_calls_only_what_is_kept_costs() -> None:
    assert sum(cost.items(0, 10, 1, ONE).values()) == 0
    kept = cost.standing()
    assert set(kept) == {cost.VERSIONS.name, cost.STORED.name, cost.TTL.name, cost.IMAGE.name}
    assert kept[cost.VERSIONS.name] == pytest.approx(0.60)
    assert cost.standing(free=True)[cost.VERSIONS.name] == pytest.approx(0.24)
    assert cost.month(0, 10, 1, ONE) == pytest.approx(sum(cost.standing(free=True).values()))


def test_prices_have_a_date_and_the_page_says_when_they_were_looked_up() -> None:
    text = cost.PAGE.read_text()
    assert f"looked up on {cost.LOOKED_UP}" in text
    assert cost.REGION in text
    for price in cost.PRICES:
        assert re.fullmatch(r"20\d\d(-\d\d)?|undated", price.of), price.name
        assert price.name in text


def test_a_measurement_replaces_its_own_case_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "measured.toml"
    file.write_text(cost.MEASURED.read_text())
    head = file.read_text().partition("\n[")[0]
    cost.write_measured({"slow-4": Measured("four", 1.5, 0.25, "a test")}, file)
    found = cost.measured(file)
    assert found["slow-4"] == Measured("four", 1.5, 0.25, "a test")
    assert found["fast-2"] == cost.measured()["fast-2"]
    assert file.read_text().startswith(head)


def test_it_says_whether_the_page_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, text = tmp_path / "cost.md", cost.PAGE.read_text()
    page.write_text(text.replace("<!-- time -->", "<!-- time -->\nold"))
    (tmp_path / "deploy.md").write_text(cost.DEPLOY.read_text())
    monkeypatch.setattr(cost, "PAGE", page)
    monkeypatch.setattr(cost, "DEPLOY", tmp_path / "deploy.md")
    with pytest.raises(SystemExit, match=r"docs/cost\.md is not what"):
        cost.main(["--check"])
    for words in ("rewritten", "unchanged"):
        cost.main([])
        assert capsys.readouterr().out == f"docs/cost.md: {words}\ndocs/deploy.md: unchanged\n"
    cost.main(["--check"])
    assert page.read_text() == text


def test_a_page_without_a_place_for_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for 'time'"):
        cost.fill("nothing", {"time": "x"})
