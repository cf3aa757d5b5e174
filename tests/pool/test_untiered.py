"""Keys without a known tier, through the whole gateway in virtual time. The scenes are in bench/untiered.py."""

import pytest

from bench.scheduling import ENFORCEMENTS
from bench.untiered import IN_TURN, OPENING, Burst, Scene, burst_and_overload, spread_and_burst
from pollux.pool.strategy import STRATEGIES

ALMOST_ALL = 0.95
REFUSED_MOST = 4


@pytest.mark.parametrize("opening", ["", OPENING], ids=["different from the start", "the same beginning"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_different_requests_are_spread_over_all_projects_and_a_burst_after_them_is_served(
    strategy: str, opening: str
) -> None:
    calls, burst = spread_and_burst(Scene(strategy), opening)
    assert calls.total() == IN_TURN
    assert all(4 <= count <= 8 for count in calls.values()), calls
    assert burst.served == burst.asked == 110
    assert burst.refused <= REFUSED_MOST


def check(scene: Scene) -> Burst:
    """Limits are learned at the price of one refusal each, and then used to the last request."""
    burst, overload = burst_and_overload(scene)
    assert overload.most_refusals <= 1, overload.refusals
    assert overload.served >= ALMOST_ALL
    return burst


@pytest.mark.parametrize("enforcement", ENFORCEMENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_burst_on_a_fresh_pool_is_served_and_overload_teaches_the_limits(strategy: str, enforcement: str) -> None:
    windows = 10 if strategy == "earliest" and enforcement == "sliding" else 2
    burst = check(Scene(strategy, enforcement, windows=windows))
    assert burst.served == burst.asked == 110
    assert burst.refused <= REFUSED_MOST


@pytest.mark.parametrize("seed", range(2, 7))
def test_when_requests_come_changes_nothing_of_that(seed: int) -> None:
    """The limits of all projects are learned within a second: what one refuses goes on to the others."""
    check(Scene(windows=1, seed=seed))


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("allowed", ["5", "3", "tokens"])
def test_limits_are_learned_that_are_smaller_than_the_catalogs_or_of_tokens(allowed: str, seed: int) -> None:
    check(Scene(allowed=allowed, windows=2, seed=seed))


@pytest.mark.parametrize("enforcement", ENFORCEMENTS)
def test_known_limits_are_used_to_the_last_request_without_a_refusal(enforcement: str) -> None:
    burst, overload = burst_and_overload(Scene(enforcement=enforcement, known=True, windows=3))
    assert (burst.served, burst.refused) == (110, 0)
    assert overload.served >= ALMOST_ALL
    assert overload.refused <= 0.002
