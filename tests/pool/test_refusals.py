import math
from typing import get_args

import pytest

from pollux.gemini.errors import ERRORS, GatewayError
from pollux.gemini.verdict.causes import CAUSES, TABLE, Cause
from pollux.pool.refusals import Kind, Refusal, Why, no_slot, problem, words
from pollux.pool.windows import Want, day_of

NOW = 1_790_000_000.0
MIDNIGHT = day_of(NOW)[2]


def _why(text: str) -> Why:
    """`aside:googleSearch:tool-quota`, the way refusals are shown."""
    kind, _, cause = text.rpartition(":")
    kind, _, tool = kind.partition(":")
    for known in get_args(Kind):
        if known == kind:
            return Why(cause, known, tool)
    raise AssertionError(text)


def _problem(*refusals: tuple[float, str], tokens: int = 10) -> GatewayError:
    found = {f"p{number}": Refusal(until, _why(why)) for number, (until, why) in enumerate(refusals)}
    limits = [{"rpm": 5, "tpm": 1000}] * len(found)
    return problem("a-model", found, NOW, want=Want(1, tokens), limits=limits)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_words_tell_the_kind_and_the_cause(kind: Kind) -> None:
    told = words(Why("rpd", kind))
    assert CAUSES["rpd"].words in told
    assert (told == CAUSES["rpd"].words) == (not kind)
    assert "something-new" in words(Why("something-new", kind))


@pytest.mark.parametrize("text", ["rpd", "cooling:rpm", "probing:tpd", "aside:spend", "aside:googleSearch:tool-quota"])
def test_a_reason_is_shown_as_its_kind_tool_and_cause(text: str) -> None:
    assert str(_why(text)) == text


@pytest.mark.parametrize("cause", [cause for cause in TABLE if cause.error and cause.name != "store-down"])
def test_where_all_projects_refuse_for_one_cause_the_client_gets_the_error_of_the_table(cause: Cause) -> None:
    found = {"a": Refusal(NOW + 5, Why(cause.name)), "b": Refusal(NOW + 9, Why(cause.name))}
    assert problem("a-model", found, NOW, want=Want()).code == cause.error


def test_a_cause_of_another_version_means_to_try_again() -> None:
    assert _problem((NOW + 5, "cooling:something-new"), (NOW + 9, "rpd")).code == "QUOTA_BUSY"


@pytest.mark.parametrize(
    ("limits", "cause", "detail"),
    [
        ([], "no-key", "there is no enabled key in the pool"),
        ([{"tpm": 9}, {"tpm": 7}], "too-large", "the request has about 10 input tokens, and no project may send more"),
        ([{"tpm": 9}, {}], "full", "every project that may serve it was asked already"),
    ],
)
def test_without_refusals_the_journal_says_why_no_project_was_left(
    limits: list[dict[str, int]], cause: str, detail: str
) -> None:
    found, words = no_slot("a-model", {}, NOW, NOW, Want(1, 10), limits)
    assert found == cause
    assert words.startswith(detail)


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
    assert CAUSES["rpm"].words in error.message
    assert "42 s" in error.message


@pytest.mark.parametrize("why", ["busy", "tpm", "midnight", "paused", "cooling:unknown-429", "aside:spend"])
def test_retry_after_is_never_zero(why: str) -> None:
    error = _problem((NOW - 5, why))
    assert error.code == "QUOTA_BUSY"
    assert error.retry_after == 1
    assert words(_why(why)) in error.message


def test_every_reason_is_one_that_wire_knows() -> None:
    cases = [(), ((NOW, "rpm"),), ((NOW, "rpd"),), ((math.inf, "too-large"),), ((math.inf, "unsupported"),)]
    assert {_problem(*case).code for case in cases} <= set(ERRORS)
