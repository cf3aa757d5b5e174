"""The rules: bodies of every kind, hostile ones, time, output, and anything at all."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.gemini.verdict import causes
from pollux.gemini.verdict.causes import CAUSES, until_midnight
from pollux.gemini.verdict.rules import RULES, Verdict, judge, judge_command
from pollux.redaction import redact
from tools import tables

NOON = datetime(2026, 10, 7, 12, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
ROOT = Path(__file__).parents[2]
CORPUS: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests/data/gemini_errors.jsonl").read_text().splitlines()
]
BY_ID = {entry["id"]: entry for entry in CORPUS}
ACTIONS = {"none", "next-project", "next-key", "retry", "to-client", "same-project"}
QUOTA = {"unsupported", "rpd", "tpd", "rpm", "tpm", "ipm"}
BLAMES = {"none", "quota", "key", "project", "model", "client", "gateway"}


def text_of(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def body(message: str = "", code: int | None = None, status: str | None = None, **more: Any) -> bytes:
    error = {"code": code, "message": message, "status": status} | more
    return json.dumps({"error": {key: value for key, value in error.items() if value not in (None, "")}}).encode()


def reason(name: str) -> list[dict[str, str]]:
    return [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": name, "domain": "googleapis.com"}]


SIGNATURE = "Function call is missing a thought_signature in functionCall parts. This is required for tools to work."
FORBIDDEN_PAGE = "<!DOCTYPE html>\n<html lang=en><title>Error 403 (Forbidden)!!1</title><p>Your client does not have"

# (cause, blames) -> bodies, each with its HTTP status; None: no answer, or a WebSocket's close text
OTHERS: dict[tuple[str, str], list[tuple[int | None, bytes]]] = {
    ("invalid-key", "key"): [
        (400, body("API Key not found. Please pass a valid API key.", 400)),
        (400, body("expired", 400, details=reason("API_KEY_EXPIRED"))),
        (401, b""),
        (None, b"1007 None. API key not valid. Please pass a valid API key."),
    ],
    ("bad-request", "gateway"): [
        (401, body("Request is missing required authentication credential. Expected OAuth 2 access token", 401)),
        (401, body("Missing or invalid Authorization header.", 401, "UNAUTHENTICATED")),
    ],
    ("referrer-blocked", "key"): [
        (403, body("x", 403, details=reason("API_KEY_IP_ADDRESS_BLOCKED"))),
        (403, body("Requests from this Android client application <empty> are blocked.", 403)),
    ],
    ("service-disabled", "key"): [
        (403, body("Requests to this API x method a.b.ListModels are blocked.", 403)),
        (403, body("Gemini API has not been used in project 123 before or it is disabled. Enable it", 403)),
        (403, body("Permission denied (or it may not exist)", 403, details=reason("CONSUMER_INVALID"))),
    ],
    ("suspended", "project"): [
        (403, body("Your project has been denied access. Please contact support.", 403)),
        (None, b"APIError: 1008 None. Your project has been denied access. Please contact support."),
    ],
    ("resource-permission", "client"): [
        (403, body("CachedContent not found (or permission denied)", 403, "PERMISSION_DENIED")),
        (403, body("You do not have permission to access tuned model tunedModels/x or it may not exist.", 403)),
    ],
    ("prepay", "project"): [
        (402, body("Your prepayment credits are depleted.", 402, "RESOURCE_EXHAUSTED")),
        (402, b""),
        (403, body("x", 403, details=reason("BILLING_DISABLED"))),
        (403, body("This API method requires billing to be enabled. Please enable", 403)),
        (429, body("Your project has exceeded its monthly spending cap. Please go to AI Studio", 429)),
        (None, b"1011 None. Your prepayment credits are depleted."),
    ],
    ("location", "gateway"): [(403, FORBIDDEN_PAGE.encode()), (403, body(FORBIDDEN_PAGE, 403))],
    ("location", "project"): [
        (400, body("User location is not supported for the API use without a billing account linked.", 400)),
        (403, body("Access to x.googleapis.com is restricted from your billing country and was denied", 403)),
    ],
    ("model-access", "quota"): [
        (400, body("Imagen API is only accessible to billed users at this time.", 400)),
        (403, body("something new", 403, "PERMISSION_DENIED")),
        (404, body("Publisher Model `x` was not found or your project does not have access to it.", 404)),
    ],
    ("thought-signature", "none"): [
        (400, body(SIGNATURE, 400, "INVALID_ARGUMENT")),
        (400, body("Unable to submit request because Thought signature is not valid", 400)),
    ],
    ("bad-request", "client"): [
        (400, body("Invalid value at 'contents[1].parts[0].thought_signature' (TYPE_BYTES), Base64", 400)),
        (400, body("Precondition check failed.", 400, "FAILED_PRECONDITION")),
        (413, b"<html><title>413 Request Entity Too Large</title>"),
        (302, b""),
    ],
    ("not-found", "client"): [
        (404, body("This model models/x is no longer available. Please update your code", 404)),
        (404, b"<html><title>Error 404 (Not Found)!!1</title>"),
        (None, b"1008 None. models/x is not found for API version v1alpha, or is not supported"),
    ],
    ("unknown-429", "quota"): [
        (429, b""),
        (429, b"<html><head><title>Sorry...</title></head><body>automated queries"),
        (403, body("Quota exceeded", 403, errors=[{"reason": "rateLimitExceeded"}])),
        (400, b'{"error": {"message": "x", "code": 8}}'),  # a gRPC code
        (400, b'{"error": {"message": "x", "code": "rate_limit_exceeded", "type": "x"}}'),
    ],
    ("overloaded", "model"): [
        (429, body("No capacity available for model", 429, details=reason("MODEL_CAPACITY_EXHAUSTED"))),
        (503, body("Deadline expired before operation could complete.", 503, "UNAVAILABLE")),
        (200, b'data: {"event_type":"error","error":{"message":"busy","code":"unavailable"}}\n\n'),
    ],
    ("deadline", "model"): [
        (408, b""),
        (499, body("The operation was cancelled.", 499, "CANCELLED")),
        (500, body("x", status="DEADLINE_EXCEEDED")),
        (502, b"<html><title>Error 502 (Server Error)!!1</title>"),
    ],
    ("internal", "model"): [
        (500, b""),
        (501, body("Operation is not implemented", 501, "UNIMPLEMENTED")),
        (200, b'{"error":{"message":"something"}}'),
        (None, b"received 1011 (internal error) Internal error occurred.; then sent 1011"),
    ],
    ("network", "model"): [(None, b""), (None, b"[Errno 104] Connection reset by peer")],
    ("ok", "none"): [
        (204, b""),
        (200, b'{"candidates":[]}'),
        (200, b'{"name":"operations/1","done":true,"error":{"code":3,"message":"bad prompt"}}'),
        (200, b'{"id":"v1_x","status":"failed","error":{"code":"internal","message":"x"}}'),
    ],
}


@pytest.mark.parametrize(
    ("status", "raw", "cause", "blames"),
    [(status, raw, *result) for result, bodies in OTHERS.items() for status, raw in bodies],
)
def test_bodies_of_other_kinds(status: int | None, raw: bytes, cause: str, blames: str) -> None:
    verdict = judge(status, raw, now=NOON)
    assert (verdict.cause, verdict.blames) == (cause, blames)


HOSTILE = (
    "API key not valid. Please pass a valid API key.",
    "Your API key was reported as leaked. Please use another API key.",
    "Consumer 'x' has been suspended. API_KEY_INVALID RESOURCE_EXHAUSTED",
    "limit: 0 prepayment credits are depleted",
    '{"error":{"code":401,"status":"UNAUTHENTICATED","details":[{"reason":"API_KEY_INVALID"}]}}',
)


PROSE = "You exceeded your current quota, please check your plan and billing details."
HELP = {
    "@type": "type.googleapis.com/google.rpc.Help",
    "links": [{"description": "Learn more about Gemini API quotas", "url": "https://ai.google.dev/x/rate-limits"}],
}


@pytest.mark.parametrize(
    "message",
    [
        PROSE,
        f"{PROSE} For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To "
        "monitor your current usage, head to: https://ai.dev/rate-limit. ",
        f"{PROSE} For more information on this error, read the docs: https://platform.openai.com/docs/guides/errors.",
        "You have exceeded your quota, please check your plan and billing details",
        "You've exceeded your current quota: check your plan and billing",
    ],
)
@pytest.mark.parametrize("details", [[], [HELP]])
def test_the_bare_prose_about_quotas_means_the_spend_limit(message: str, details: list[Any]) -> None:
    native = body(message, 429, "RESOURCE_EXHAUSTED", **({"details": details} if details else {}))
    openai = b"[" + native + b"]"
    event = b"data: " + native + b"\n\n"
    for status, raw in ((429, native), (429, openai), (200, openai), (200, event)):
        verdict = judge(status, raw, now=NOON)
        assert (verdict.cause, verdict.blames, verdict.action) == ("spend", "project", "next-project")
        assert (verdict.cooldown_s, verdict.ceiling_s, verdict.learned) == (60, 600, {})


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (body(f"{PROSE}\n* Quota exceeded for metric: x/generate_content_requests, limit: 20", 429), "rpm"),
        (body(f"{PROSE}\n* Quota exceeded for metric: x/file_storage_bytes, limit: 20", 429), "unknown-429"),
        (body(f"{PROSE}\nPlease retry in 20s.", 429), "rpm"),
        (body(f"{PROSE} limit: 0", 429), "unsupported"),
        (body(f"{PROSE} limit: 7", 429), "unknown-429"),
        (body("You exceeded your current quota.", 429), "unknown-429"),
        (body(PROSE, 429, details=[{"violations": [{"quotaId": "ConcurrentSessions"}]}]), "unknown-429"),
        (body(PROSE, 429)[:-2], "unknown-429"),  # what was cut off may have named the counter
        (f"1011 None. {PROSE}".encode(), "unknown-429"),  # a WebSocket's close text ends after 123 bytes
        (body(f"Invalid value: {PROSE}", 400), "bad-request"),
    ],
)
def test_prose_that_names_a_counter_or_may_have_been_cut_does_not(raw: bytes, cause: str) -> None:
    assert judge(429, raw, now=NOON).cause == cause


@pytest.mark.parametrize(
    ("quota_id", "value", "seconds", "ceiling"),
    [
        ("GroundingWithGoogleSearchRequestsPerDayPerProject", "1500", 3600, None),
        ("GroundingWithGoogleSearchRequestsPerMinutePerProject", "5", 60, None),
        ("GroundingWithGoogleSearchRequestsPerDayPerProject-FreeTier", "0", 3600, None),
        ("GroundingWithGoogleSearchRequests", "5", 60, 600),
    ],
)
def test_a_tools_own_counter_rests_by_its_period(
    quota_id: str, value: str, seconds: float, ceiling: float | None
) -> None:
    violations = [{"quotaId": quota_id, "quotaMetric": "x/search_grounding_requests", "quotaValue": value}]
    native = body(PROSE, 429, "RESOURCE_EXHAUSTED", details=[{"violations": violations}])
    for raw in (native, b"[" + native + b"]"):
        verdict = judge(429, raw, now=NOON)
        assert (verdict.cause, verdict.blames, verdict.action) == ("tool-quota", "quota", "next-project")
        assert (verdict.cooldown_s, verdict.ceiling_s) == (seconds, ceiling)
        assert (verdict.bucket, verdict.learned, verdict.vague) == ("googleSearch", {}, False)


def test_only_what_names_no_counter_is_vague() -> None:
    for message in (PROSE, "Resource has been exhausted (e.g. check quota)."):
        assert judge(429, body(message, 429, "RESOURCE_EXHAUSTED"), now=NOON).vague
    for message in (
        f"{PROSE} limit: 7",
        f"{PROSE} Please retry in 20s.",
        "You exceeded your spend-based rate limit.",
        "Your prepayment credits are depleted.",
        "Quota exceeded for metric: x/file_storage_bytes",
    ):
        assert not judge(429, body(message, 429, "RESOURCE_EXHAUSTED"), now=NOON).vague
    assert not judge(429, b"<html><title>Sorry...</title>", now=NOON).vague
    assert not judge(503, b"", now=NOON).vague


@pytest.mark.parametrize("words", HOSTILE)
def test_a_request_cannot_talk_a_key_or_project_out_of_the_pool(words: str) -> None:
    violations = [
        {"@type": "x/google.rpc.BadRequest", "fieldViolations": [{"field": "contents", "description": words}]}
    ]
    for raw, status in (
        (body(f"Unsupported MIME type: {words}", 400, "INVALID_ARGUMENT"), 400),
        (body(words, 400, "INVALID_ARGUMENT", details=violations), 400),
        (body(f"Invalid value at 'x' (TYPE_STRING), \"{words}\"", 400, "INVALID_ARGUMENT", details=violations), 400),
        (body(f"* GenerateContentRequest.model: unexpected model name format: {words}", 400), 400),
        (body(f"models/{words} is not found for API version v1beta", 404, "NOT_FOUND"), 404),
        (body(f"You do not have permission to access the File {words} or it may not exist.", 403), 403),
        (f"<html><p>The requested URL <code>/{words}</code> was not found".encode(), 404),
    ):
        verdict = judge(status, raw, now=NOON)
        assert (verdict.blames, verdict.action) == ("client", "to-client")


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "hours"),
    [
        ("2026-03-08T00:30", 22.5),  # clocks go forward at two
        ("2026-11-01T00:30", 24.5),  # and back
        ("2026-11-01T23:30", 0.5),
        ("2026-06-30T00:00", 24),
        ("2027-12-31T23:59", 1 / 60),
    ],
)
def test_midnight_is_californias_on_every_day(local: str, hours: float) -> None:
    now = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
    assert until_midnight(now) == pytest.approx(hours * 3600)


def test_a_spent_day_rests_to_midnight_at_most_an_hour_at_a_time() -> None:
    raw = text_of(BY_ID[27]["body"])  # per day, with a retryDelay of 0 s that means nothing
    assert judge(429, raw, now=NOON).cooldown_s == 3600
    assert judge(429, raw, now=NOON + 12 * 3600 - 900).cooldown_s == pytest.approx(900)
    assert judge(429, raw, now=NOON + 12 * 3600 - 0.25).cooldown_s == 1
    eleven_minutes = raw.replace(b'"0s"', b'"660s"')
    assert judge(429, eleven_minutes, now=NOON).cooldown_s == 660


@pytest.mark.parametrize("delay", ["9999999s", "1e999s", {"seconds": 10**15}, "100h"])
def test_an_absurd_delay_of_a_minutes_quota_is_capped(delay: object) -> None:
    raw = text_of(BY_ID[88]["body"]).replace(b'"37s"', json.dumps(delay).encode())
    assert judge(429, raw, now=NOON).cooldown_s in (601, pytest.approx(38.4))


def test_what_doubles_and_up_to_what() -> None:
    doubling = {rule.cause: rule.rest.most for rule in RULES if rule.rest and rule.rest.most}
    probed = dict.fromkeys(("invalid-key", "leaked-key", "service-disabled", "referrer-blocked"), 3600)
    assert doubling == {"suspended": 86400, "spend": 600, "unknown-429": 600, "tool-quota": 600} | probed


# --- output ----------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_verdict_as_json() -> None:
    shown = json.loads(judge_command(429, text_of(BY_ID[14]["body"]), NOON))
    assert shown.pop("message").startswith("You exceeded your current quota")
    assert shown == {
        "cause": "tpm",
        "blames": "quota",
        "action": "next-project",
        "cooldown_s": 46.0,
        "learned": {"tpm": 1_000_000},
        "bucket": "gemini-3.1-pro",
    }
    assert json.loads(judge_command(None, b"", NOON))["cause"] == "network"


def test_messages_hold_no_key_and_one_line() -> None:
    for entry in CORPUS:
        message = judge(entry["http_status"], text_of(entry["body"]), now=NOON).message
        assert "AIza" not in message
        assert message.isprintable()
        assert len(message) <= 200
    assert judge(500, body("a\n\x1b[2Jb\u2028c"), now=NOON).message == "a [2Jb c"


def test_the_page_holds_both_tables() -> None:
    page = (ROOT / "docs/verdicts.md").read_text()
    assert tables.rules_table() in page, "run python -m tools.tables"
    assert tables.causes_table() in page, "run python -m tools.tables"


def test_every_cause_stands_once_in_the_table_and_every_cause_of_an_answer_has_a_rule() -> None:
    assert len(CAUSES) == len(causes.TABLE)
    of_the_gateway = {cause.name for cause in causes.TABLE if cause.blames == "none"} | {"key-source"}
    of_answers = {rule.cause for rule in RULES}
    assert of_answers == {cause for cause, _ in OTHERS} | QUOTA | {"spend", "leaked-key", "tool-quota"}
    assert set(CAUSES) == of_answers | of_the_gateway
    assert {rule.action for rule in RULES} == ACTIONS
    assert {rule.blames for rule in RULES} == BLAMES


def test_who_looks_up_a_cause_does_not_load_the_rules() -> None:
    """Their patterns take long to compile, and commands such as `pollux keys list` need none of them."""
    code = "import sys, pollux.pool.health; print('pollux.gemini.verdict.rules' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- anything at all -------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    (
        *("error", "code", "message", "status", "details", "violations", "quotaId", "quotaValue", "quotaMetric"),
        *("reason", "retryDelay", "metadata", "model", "quotaDimensions", "API_KEY_INVALID", "PerDay", "429"),
        *("RESOURCE_EXHAUSTED", "<html>", '{"error":', '[{"', "data:", "\n\ndata: ", "limit: 0"),
        *("AIza" + "x" * 35, "AQ.test-" + "x" * 30, "Please retry in 1h2m3.5s.", "api_key:"),
    )
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=6)
)
BODIES = (
    st.binary(max_size=300)
    | st.lists(WORDS | st.text(max_size=5), max_size=12).map(lambda parts: "".join(parts).encode("utf-8", "replace"))
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"error": value}).encode())
    | JSON.map(lambda value: json.dumps({"error": {"code": 429, "details": [{"violations": value}]}}).encode())
)


def check(verdict: Verdict) -> None:
    assert verdict.cause in CAUSES
    assert verdict.blames in BLAMES
    assert verdict.action in ACTIONS
    assert verdict.cooldown_s is None or 0 <= verdict.cooldown_s <= 86400
    assert verdict.ceiling_s is None or verdict.ceiling_s >= (verdict.cooldown_s or 0)
    assert (verdict.cooldown_s is None) == (verdict.blames in ("none", "client", "gateway", "model"))
    assert all(name in ("rpm", "tpm", "rpd", "tpd", "ipm") and value > 0 for name, value in verdict.learned.items())
    assert verdict.bucket is None or verdict.blames == "quota"
    assert redact(verdict.message) == verdict.message


@settings(max_examples=600, deadline=None)
@given(st.none() | st.integers(100, 599) | st.integers(), BODIES, st.floats())
def test_anything_is_judged(status: int | None, raw: bytes, now: float) -> None:
    check(judge(status, raw, now=now))
    check(judge(status, raw.decode("latin-1"), now=now))
    json.loads(judge_command(status, raw, now))


def test_depth_and_size_do_no_harm() -> None:
    deep = b'{"error":' * 100_000
    for raw in (deep, b"[" * 100_000, deep + b"1" + b"}" * 100_000, b'{"error":{"code":' + b"9" * 10_000 + b"}}"):
        for status in (200, 429, 500, None):
            check(judge(status, raw, now=NOON))
    wrapped = body("x", 429)
    for _ in range(12):
        wrapped = body(wrapped.decode(), 400)
    began = perf_counter()
    check(judge(400, wrapped, now=NOON))
    for piece in (b"limit: 0 ", b"\\", b"<style>", b'"message":"', b"retry in 1", b"[ ", b"1h", b"data: \n"):
        check(judge(429, piece * 100_000, now=NOON))
    assert perf_counter() - began < 10  # no pattern grows with the square of a body: that would be minutes
