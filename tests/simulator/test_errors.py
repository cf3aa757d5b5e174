"""Error bodies: in the shapes that were seen from Google."""

import json
import re

import pytest

from gemini_simulator.errors import HTML, NAMES, QUOTA_KINDS, TEXT, TIERS, Case, error, go_duration, quota_error
from pollux.gemini.verdict.rules import judge

CASE = Case(model="gemini-3.1-pro-preview", bucket="gemini-3.1-pro", key="AIza" + "x" * 35)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HTML and name not in TEXT])
def test_every_json_error_has_code_status_and_message(name: str) -> None:
    trouble = error(name, CASE)
    kind, data = trouble.encode()
    body = json.loads(data)["error"]
    assert kind == b"application/json; charset=UTF-8"
    assert body["code"] == trouble.status
    assert re.fullmatch(r"[A-Z_]+", body["status"])
    assert body["message"]
    assert "{" not in body["message"]
    assert json.loads(trouble.encode(array=True)[1]) == [{"error": body}]
    assert trouble.status == 429 or all("QuotaFailure" not in d["@type"] for d in body.get("details", []))


@pytest.mark.parametrize("name", HTML)
def test_pages_of_html_are_no_json_even_as_an_array(name: str) -> None:
    kind, data = error(name).encode(array=True)
    assert kind.startswith(b"text/html")
    assert data.startswith(b"<")


def test_a_quota_error_names_metric_limit_bucket_and_a_delay_cut_to_seconds() -> None:
    body = error("rpm", CASE).body
    assert isinstance(body, dict)
    message = body["error"]["message"]
    assert (
        "generate_content_free_tier_requests, limit: 5, model: gemini-3.1-pro\nPlease retry in 42.921954507s."
        in message
    )
    help_, failure, retry = body["error"]["details"]
    assert help_["links"]
    assert failure["violations"] == [
        {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": "gemini-3.1-pro"},
            "quotaValue": "5",
        }
    ]
    assert retry["retryDelay"] == "42s"


def test_limit_0_shows_in_the_text_only() -> None:
    body = error("unsupported", CASE).body
    assert isinstance(body, dict)
    violations = body["error"]["details"][1]["violations"]
    assert len(violations) == 4
    assert not any("quotaValue" in violation for violation in violations)
    assert body["error"]["message"].count("limit: 0, model: gemini-3.1-pro") == 4


@pytest.mark.parametrize(
    ("name", "tier", "verb", "metric", "quota_id"),
    [
        ("rpd", "free", "", "generate_content_free_tier_requests", "GenerateRequestsPerDayPerProjectPerModel-FreeTier"),
        ("rpm", "tier1", "", "generate_requests_per_model", "GenerateRequestsPerMinutePerProjectPerModel"),
        ("rpd", "tier1", "", "generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel"),
        (
            "tpm",
            "tier1",
            "",
            "generate_content_paid_tier_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
        ),
        (
            "rpm",
            "tier2",
            "",
            "generate_content_paid_tier_2_requests",
            "GenerateRequestsPerMinutePerProjectPerModel-PaidTier2",
        ),
        (
            "tpm",
            "tier3",
            "",
            "generate_content_paid_tier_3_input_token_count",
            "GenerateContentInputTokensPerModelPerMinute-PaidTier3",
        ),
        (
            "tpd",
            "free",
            "",
            "generate_content_free_tier_input_token_count",
            "GenerateContentInputTokensPerModelPerDay-FreeTier",
        ),
        (
            "rpm",
            "free",
            "batchEmbedContents",
            "embed_content_free_tier_requests",
            "EmbedContentRequestsPerMinutePerProjectPerModel-FreeTier",
        ),
    ],
)
def test_each_tier_has_its_own_names(name: str, tier: str, verb: str, metric: str, quota_id: str) -> None:
    body = quota_error([(name, 7)], 3.0, Case(bucket="m", tier=tier, verb=verb)).body
    assert isinstance(body, dict)
    violation = body["error"]["details"][1]["violations"][0]
    assert violation["quotaMetric"].removeprefix("generativelanguage.googleapis.com/") == metric
    assert violation["quotaId"] == quota_id


def test_a_suspension_echoes_the_whole_key_but_no_repr_does() -> None:
    trouble = error("suspended", CASE)
    assert isinstance(trouble.body, dict)
    assert trouble.body["error"]["message"] == f"Permission denied: Consumer 'api_key:{CASE.key}' has been suspended."
    assert trouble.body["error"]["details"][0]["metadata"]["containerInfo"] == f"api_key:{CASE.key}"
    assert CASE.key not in repr(trouble) + str(trouble)
    assert CASE.key not in repr(CASE)


def test_names_of_the_caller_are_no_formats() -> None:
    body = error("not-found", Case(model="{key}{verb}", key="AQ.test-secret", verb="generateContent")).body
    assert isinstance(body, dict)
    assert "AQ.test" not in body["error"]["message"]
    assert body["error"]["message"].startswith("models/{key}{verb} is not found")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.008386476, "8.386476ms"),
        (17.156209832, "17.156209832s"),
        (475.9, "7m55.9s"),
        (6776.409571576, "1h52m56.409571576s"),
        (80309.5, "22h18m29.5s"),
        (3600, "1h0m0s"),
        (0.9999999999, "1000ms"),
    ],
)
def test_durations_are_written_as_in_the_messages(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


# Where the verdict's word for it is not the name of the error.
CAUSES = {
    "upload-terminated": "bad-request",
    "spend-cap": "prepay",
    "bare-quota": "spend",
    "html-429": "unknown-429",
    "expired-key": "invalid-key",
    "unauthenticated": "invalid-key",
    "service-blocked": "service-disabled",
    "retired-model": "model-access",
    "multiple-credentials": "bad-request",
    "missing-authorization": "bad-request",
    "no-key": "bad-request",
    "no-such-path": "not-found",
    "bad-gateway": "deadline",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_gateway_understands_each_of_them(name: str) -> None:
    trouble = error(name, CASE)
    for array in (False, True):
        assert judge(trouble.status, trouble.encode(array=array)[1], now=1.79e9).cause == CAUSES.get(name, name)


@pytest.mark.parametrize("verb", ["generateContent", "batchEmbedContents"])
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", [name for name in QUOTA_KINDS if name != "unsupported"])
def test_the_gateway_learns_limit_and_bucket_from_every_tier(name: str, tier: str, verb: str) -> None:
    trouble = quota_error([(name, 123)], 12.5, Case(bucket="gemini-3.1-pro", tier=tier, verb=verb))
    verdict = judge(trouble.status, trouble.encode()[1], now=1.79e9)
    assert (verdict.cause, verdict.learned, verdict.bucket) == (name, {name: 123}, "gemini-3.1-pro")
