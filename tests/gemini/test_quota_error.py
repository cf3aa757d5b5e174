"""Which counter a 429 speaks of, beyond what the corpus has."""

import json
from typing import Any

import pytest

from pollux.gemini.verdict.error_body import read
from pollux.gemini.verdict.quota_error import QuotaError, refused_by

METRIC = "generativelanguage.googleapis.com/generate_content_free_tier_requests"


def refused(message: str = "", violations: list[dict[str, Any]] | None = None, **details: Any) -> QuotaError:
    error = {"code": 429, "message": message, "details": [{"violations": violations or []}, details]}
    return refused_by(read(429, json.dumps({"error": error})))


def violation(quota: str, value: object = None, metric: str = METRIC, model: str | None = None) -> dict[str, Any]:
    fields = {"quotaId": quota, "quotaMetric": metric, "quotaValue": value}
    return {k: v for k, v in fields.items() if v is not None} | ({"quotaDimensions": {"model": model}} if model else {})


@pytest.mark.parametrize(
    ("limit", "cause"),
    [
        ("limit: 0", "unsupported"),
        ("limit: 0, model: x", "unsupported"),
        ("limit: 0.", "unsupported"),
        ("limit=0, requested=5", "unsupported"),
        ("Limit:0\nPlease retry in 3s", "unsupported"),
        ("limit: 0.5", "unknown-429"),
        ("limit: 05", "unknown-429"),
        ("limit: 250000", "unknown-429"),
        ("limit: 20", "unknown-429"),
        ("the limit is 0 something", "unknown-429"),
        ("Gemini 9 Pro doesn't have a free quota tier. Please use another", "unsupported"),
    ],
)
def test_only_a_zero_is_a_zero(limit: str, cause: str) -> None:
    assert refused(limit).cause == cause


def test_a_missing_value_is_a_zero_only_where_nothing_names_a_limit() -> None:
    whole = violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier")
    assert refused("You exceeded your current quota.", [whole]).cause == "unsupported"
    assert refused("limit: 20, model: x", [whole]) == QuotaError("rpd", {"rpd": 20}, "x", tier="free")
    assert refused("You exceeded your current quota.", [{"quotaId": whole["quotaId"]}]).cause == "rpd"
    assert refused("x", [whole | {"quotaValue": "9223372036854775807"}]).cause == "rpd"  # int64: without limit
    assert refused("x", [whole | {"quotaValue": "0"}]).cause == "unsupported"


def test_the_day_wins_and_every_limit_is_learned() -> None:
    minute, day = violation("GenerateRequestsPerMinute", "5", model="a"), violation("GenerateRequestsPerDay", 20)
    tokens = violation("InputTokensPerModelPerMinute", "250000", metric="x/input_token_count")
    for order in ([minute, day, tokens], [tokens, minute, day], [day, tokens, minute]):
        assert refused("x", order) == QuotaError("rpd", {"rpm": 5, "rpd": 20, "tpm": 250_000}, "a")
    assert refused("x", [tokens, minute]).cause == "rpm"


@pytest.mark.parametrize(
    ("quota", "cause", "tier"),
    [
        ("GenerateContentPaidTier9InputTokensPerModelPerMinute-PaidTier9", "tpm", "paid"),
        ("InputTokensPerModelPerDay-Whatever", "tpd", None),
        ("EmbedContentPerMinutePerProjectPerUserPerModel-PaidTier", "rpm", "paid"),
        ("BatchEmbedContentsRequestsPerDayPerProjectPerModel-FreeTier", "rpd", "free"),
        ("GenerateImagesPerMinutePerProjectPerModel", "ipm", None),
        ("ImagesPerDayPerProject", "rpd", None),
        ("per_day_requests", "rpd", None),
    ],
)
def test_ids_are_read_by_pattern(quota: str, cause: str, tier: str | None) -> None:
    assert refused("x", [violation(quota, "7")]) == QuotaError(cause, {cause: 7}, None, tier=tier)


def test_a_tier_is_known_only_where_all_ids_agree() -> None:
    free, paid = violation("RequestsPerDay-FreeTier", "7"), violation("RequestsPerMinute-PaidTier2", "7")
    assert refused("x", [free, violation("TokensPerDay", "7")]).tier == "free"
    assert refused("x", [free, paid]).tier is None
    assert refused("FreeTier").tier is None  # a message may quote anything


@pytest.mark.parametrize(
    ("message", "cause", "learned"),
    [
        (f"metric: {METRIC}, limit: 20, model: m\nPlease retry in 10m1s.", "rpd", {"rpd": 20}),
        (f"metric: {METRIC}, limit: 20, model: m\nPlease retry in 59s.", "rpm", {"rpm": 20}),
        (f"metric: {METRIC}, limit: 20, model: m", "rpm", {"rpm": 20}),
        ("metric: x/y_requests_per_model_per_day, limit: 20, model: m", "rpd", {"rpd": 20}),
        ("metric: x/y_input_token_count, limit: 1,000,000, model: m", "tpm", {"tpm": 1_000_000}),
        (f"metric: {METRIC}, limit: 5\n* metric: x/z_token_count, limit: 9", "rpm", {"rpm": 5, "tpm": 9}),
        ("quota metric 'Some Requests' and limit 'Some Requests per day per user per tier' of service", "rpd", {}),
        ("quota metric 'Requests' and limit 'Request limit per minute for a region' of service", "rpm", {}),
        ("Daily limit exceeded", "rpd", {}),
        ("Please retry in 20s", "rpm", {}),
        ("Your quota will reset after 22h.", "rpd", {}),
        ("Individual quota reached.", "unknown-429", {}),
    ],
)
def test_messages_alone(message: str, cause: str, learned: dict[str, int]) -> None:
    found = refused(message)
    assert (found.cause, found.learned) == (cause, learned)


def test_error_info_and_descriptions_are_violations_too() -> None:
    metadata = {"quota_limit": "RequestsPerMinutePerProject", "quota_metric": "x/requests", "quota_limit_value": "60"}
    assert refused("x", metadata=metadata) == QuotaError("rpm", {"rpm": 60}, None)
    assert refused("x", metadata=metadata | {"quota_limit_value": "0"}).cause == "unsupported"
    assert refused("x", metadata={"quota_metric": "x/api", "quota_unit": "1/d/{project}"}).cause == "rpd"
    described = {"subject": "project:1", "description": "Quota exceeded, limit 'GenerateRequestsPerDayPerProject'"}
    assert refused("x", [described]).cause == "rpd"
    assert refused("x", [{"type": "TOS", "subject": "x", "description": "not accepted"}]).cause == "unknown-429"


@pytest.mark.parametrize(
    ("message", "violations", "expected"),
    [
        (
            "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model m: limit=0, requested=7",
            [],
            QuotaError("unsupported", {}, "cached-content/m"),
        ),
        (
            "Quota exceeded for metric: generativelanguage.googleapis.com/file_storage_bytes, limit: 21474836480",
            [],
            QuotaError("unknown-429", {}, "file-storage"),
        ),
        ("x", [violation("BatchEnqueuedTokensPerModel", "3000000", "x/b")], QuotaError("unknown-429", {}, "batch")),
        ("x", [violation("ConcurrentSessionsPerProject", "3", "x/c")], QuotaError("unknown-429", {}, "sessions")),
        (  # beside a counter of generation, that one counts
            "x",
            [violation("SearchGroundingRequestsPerDay", "9", "x/g"), violation("GenerateRequestsPerMinute", "5")],
            QuotaError("rpm", {"rpm": 5}, None),
        ),
    ],
)
def test_what_does_not_count_generation_has_a_bucket_of_its_own(
    message: str, violations: list[dict[str, Any]], expected: QuotaError
) -> None:
    assert refused(message, violations) == expected


GENERATION = violation("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "5")


@pytest.mark.parametrize(
    ("message", "violations", "expected"),
    [
        ("x", [violation("SearchGroundingPerDay", "500", "x/g", "m")], ("rpd", "googleSearch/m", "googleSearch")),
        ("x", [violation("SearchGroundingPerDay", "0", "x/g")], ("unsupported", "googleSearch", "googleSearch")),
        ("x", [violation("GroundingRequestsPerMinute", "5", "x/g")], ("rpm", "grounding", "grounding")),
        ("x", [violation("UsePerDay", "5", "x/google_maps_requests")], ("rpd", "googleMaps", "googleMaps")),
        ("x", [violation("Use", "5", "x/url_context_requests", "m")], ("unknown-429", "urlContext/m", "urlContext")),
        ("Quota exceeded for Google Search grounding.", [], ("unknown-429", "googleSearch", "googleSearch")),
        ("Google Maps requests per day: limit: 500", [], ("rpd", "googleMaps", "googleMaps")),
        ("Grounding quota reached. Please retry in 20s", [], ("rpm", "grounding", "grounding")),
        ("Google Search is not the matter", [GENERATION], ("rpm", None, None)),
        ("x", [violation("SearchGroundingPerDay", "9", "x/g"), GENERATION], ("rpm", None, None)),
        ("x", [violation("BatchEnqueuedTokensPerModel", "3000000", "x/b")], ("unknown-429", "batch", None)),
        ("see https://ai.google.dev/gemini-api/docs/google-search", [], ("unknown-429", None, None)),
    ],
)
def test_the_counter_of_a_tool_is_known_and_teaches_the_model_nothing(
    message: str, violations: list[dict[str, Any]], expected: tuple[str, str | None, str | None]
) -> None:
    found = refused(message, violations)
    assert (found.cause, found.bucket, found.tool) == expected
    assert found.tool is None or found.learned == {}


def test_a_bucket_is_a_models_name_or_nothing() -> None:
    for model, bucket in (("models/a-1.5", "a-1.5"), ("a b", None), ("x" * 200, None), ("../x\n", None), (5, None)):
        assert refused("x", [violation("XPerDay", 1) | {"quotaDimensions": {"model": model}}]).bucket == bucket
