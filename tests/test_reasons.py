import math

import pytest

from pollux import verdict
from pollux.quota import Refusal
from pollux.reasons import KEYLESS, WORDS, cause_of, no_slot, problem, words
from pollux.windows import Want, day_of
from pollux.wire.error import ERRORS, GatewayError

NOW = 1_790_000_000.0
MIDNIGHT = day_of(NOW)[2]


def _problem(*refusals: tuple[float, str], tokens: int = 10) -> GatewayError:
    found = {f"p{number}": Refusal(until, why) for number, (until, why) in enumerate(refusals)}
    limits = [{"rpm": 5, "tpm": 1000}] * len(found)
    return problem("a-model", found, NOW, want=Want(1, tokens), limits=limits)


def test_every_cause_that_lets_something_rest_has_words() -> None:
    resting = {rule.cause for rule in verdict.RULES if rule.cooldown is not None}
    assert resting <= set(WORDS)
    assert {rule.cause for rule in verdict.RULES if rule.blames == "key"} <= KEYLESS


@pytest.mark.parametrize("state", ["", "cooling:", "probing:", "aside:"])
def test_words_tell_the_state_and_the_cause(state: str) -> None:
    assert cause_of(f"{state}rpd") == "rpd"
    told = words(f"{state}rpd")
    assert WORDS["rpd"] in told
    assert (told == WORDS["rpd"]) == (not state)
    assert "something-new" in words(f"{state}something-new")


@pytest.mark.parametrize(
    ("limits", "cause", "detail"),
    [
        ([], "no-key", "there is no enabled key in the pool"),
        ([{"tpm": 9}, {"tpm": 7}], "too-large", "the request has about 10 input tokens, and no project may send more"),
        ([{"tpm": 9}, {}], "full", "every project that may serve it was asked already"),
    ],
)
def test_where_nobody_refused_it_says_why_nobody_was_left(
    limits: list[dict[str, int]], cause: str, detail: str
) -> None:
    said = no_slot("a-model", {}, NOW, NOW, Want(1, 10), limits)
    assert said.cause == cause
    assert said.detail.startswith(detail)


def test_without_any_key_the_client_hears_how_to_add_one() -> None:
    error = _problem()
    assert error.code == "NO_USABLE_KEY"
    assert "pollux keys add" in error.message
    assert error.retry_after is None


def test_if_every_key_is_set_aside_it_says_why_and_until_when() -> None:
    error = _problem((NOW + 50, "aside:invalid-key"), (NOW + 20, "aside:suspended"))
    assert error.code == "NO_USABLE_KEY"
    assert error.retry_after == 20
    assert "p0: Google says that the key is not valid" in error.message
    assert "p1: Google suspended" in error.message


def test_a_model_of_no_projects_tier_is_not_a_matter_of_waiting() -> None:
    error = _problem((NOW + 500, "cooling:unsupported"), (NOW + 90, "aside:model-access"), (NOW + 5, "aside:suspended"))
    assert error.code == "MODEL_NOT_AVAILABLE"
    assert "limit: 0" in error.message
    assert _problem((math.inf, "unsupported")).retry_after == 86400


def test_what_is_too_large_everywhere_names_its_size_and_the_limit() -> None:
    error = _problem((math.inf, "too-large"), (math.inf, "unsupported"), tokens=5000)
    assert error.code == "TOO_LARGE_FOR_QUOTA"
    assert "5000" in error.message
    assert "1000" in error.message
    assert error.retry_after is None


@pytest.mark.parametrize("why", ["rpd", "tpd", "cooling:rpd", "probing:tpd"])
def test_a_spent_day_returns_at_midnight(why: str) -> None:
    error = _problem((NOW + 60, why), (math.inf, "too-large"), (NOW + 9, "aside:invalid-key"))
    assert error.code == "QUOTA_EXHAUSTED_TODAY"
    assert error.retry_after == pytest.approx(MIDNIGHT - NOW)


def test_if_one_project_returns_sooner_it_is_a_matter_of_waiting() -> None:
    error = _problem((NOW + 3600, "cooling:rpd"), (NOW + 41.2, "rpm"))
    assert error.code == "QUOTA_BUSY"
    assert error.retry_after == pytest.approx(41.2)
    assert WORDS["rpm"] in error.message
    assert "42 s" in error.message


@pytest.mark.parametrize("why", ["busy", "tpm", "midnight", "paused", "cooling:unknown-429", "aside:spend"])
def test_nobody_is_told_to_come_back_at_once(why: str) -> None:
    error = _problem((NOW - 5, why))
    assert error.code == "QUOTA_BUSY"
    assert error.retry_after == 1
    assert words(why) in error.message


def test_every_reason_is_one_that_wire_knows() -> None:
    cases = [(), ((NOW, "rpm"),), ((NOW, "rpd"),), ((math.inf, "too-large"),), ((math.inf, "unsupported"),)]
    assert {_problem(*case).code for case in cases} <= set(ERRORS)
