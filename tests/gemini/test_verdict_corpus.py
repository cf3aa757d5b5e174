"""The rules against labelled bodies as they came from Google, whole, in other shapes, altered and cut."""

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pollux.gemini.verdict.rules import judge

NOON = datetime(2026, 10, 7, 12, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
ROOT = Path(__file__).parents[2]
CORPUS: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests/data/gemini_errors.jsonl").read_text().splitlines()
]
BY_ID = {entry["id"]: entry for entry in CORPUS}
BLAMES_KEY = {"leaked-key", "suspended", "service-disabled", "referrer-blocked", "invalid-key"}

# (label, sublabel) -> (cause, blames); a label alone where the sublabel changes nothing
EXPECTED = {
    ("rpd", None): ("rpd", "quota"),
    ("tpd", None): ("tpd", "quota"),
    ("rpm", None): ("rpm", "quota"),
    ("tpm", None): ("tpm", "quota"),
    ("unknown", None): ("unknown-429", "quota"),
    ("billing/quota-zero", "limit-0"): ("unsupported", "quota"),
    ("billing/quota-zero", "cached-content-zero"): ("unsupported", "quota"),
    ("billing/quota-zero", "prepay-depleted"): ("prepay", "project"),
    ("billing/quota-zero", "spend-cap"): ("prepay", "project"),
    ("billing/quota-zero", "spend-rate-10min"): ("spend", "project"),
    ("billing/quota-zero", "bare-quota-prose"): ("spend", "project"),
    ("suspended", None): ("suspended", "key"),
    ("leaked-key-403", None): ("leaked-key", "key"),
    ("permission-403", "service-blocked"): ("service-disabled", "key"),
    ("permission-403", "service-disabled"): ("service-disabled", "key"),
    ("permission-403", "referrer-blocked"): ("referrer-blocked", "key"),
    ("permission-403", "auth-key-rejected-401"): ("invalid-key", "key"),
    ("permission-403", "model-access"): ("model-access", "quota"),
    ("permission-403", "file-of-other-project"): ("resource-permission", "client"),
    ("permission-403", "no-key-sent"): ("bad-request", "gateway"),
    ("invalid-key-400", None): ("invalid-key", "key"),
    ("bad-request-400", None): ("bad-request", "client"),
    ("bad-request-400", "multiple-credentials"): ("bad-request", "gateway"),
    ("location-400", None): ("location", "gateway"),
    ("not-found-404", None): ("not-found", "client"),
    ("not-found-404", "model-retired-for-project"): ("model-access", "quota"),
    ("overloaded-503", None): ("overloaded", "model"),
    ("internal-500", None): ("internal", "model"),
    ("deadline-504", None): ("deadline", "model"),
}
EXPECTED_BY_ID = {
    123: ("location", "project")
}  # "free tier is not available in your country": a paid project is served

LEARNED = {
    **{12: {"tpm": 250_000}, 13: {"tpd": 6_000_000}, 14: {"tpm": 1_000_000}, 16: {"tpm": 1_000_000}},
    **{17: {"tpm": 2_000_000}, 23: {"rpd": 100}, 25: {"rpd": 20}, 26: {"rpd": 20}, 27: {"rpd": 20}, 31: {"rpd": 20}},
    **{32: {"rpd": 20}, 38: {"rpd": 70}, 39: {"rpm": 8}, 81: {"rpd": 20}, 82: {"rpd": 20}, 83: {"rpd": 20}},
    **{85: {"rpd": 20}, 86: {"rpm": 5}, 88: {"rpm": 10}, 89: {"rpm": 5}, 91: {"tpm": 250_000}, 98: {"rpd": 250}},
    **{99: {"rpd": 100}, 100: {"rpd": 20}, 101: {"rpd": 1000}, 103: {"rpm": 2}, 104: {"rpm": 2}, 106: {"rpm": 2}},
    **{111: {"rpd": 20}},
}
MINUTE_COOLDOWNS = {
    **{12: 40, 14: 46, 16: 43, 17: 44, 39: 60, 86: 47, 88: 38, 89: 33.645348739, 91: 60, 103: 45.097740004},
    **{104: 1.9002, 106: 55, 107: 2.713267022},
}
FIXED = {"unsupported": 86400, "prepay": 3600, "spend": 60, "unknown-429": 60, "suspended": 600}
FIXED |= dict.fromkeys(("leaked-key", "service-disabled", "referrer-blocked", "invalid-key"), 30)
FIXED["model-access"] = 86400
BUCKETS = {14: "gemini-3.1-pro", 38: "imagen-4.0-generate", 41: "cached-content/gemini-2.5-flash", 93: None, 100: None}
BUCKETS |= {93: "gemini-2.5-flash-preview-image", 98: "gemini-3.1-pro", 23: "gemini-3.1-flash-tts"}


def text_of(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body, indent=2)).encode()


def expected(entry: dict[str, Any]) -> tuple[str, str]:
    label, sublabel = entry["label"], entry["sublabel"]
    general = EXPECTED.get((label, None))
    return EXPECTED_BY_ID.get(entry["id"]) or EXPECTED.get((label, sublabel)) or general or ("", "")


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: f"{entry['id']}-{entry['label']}")
def test_every_labelled_body_is_judged_right(entry: dict[str, Any]) -> None:
    verdict = judge(entry["http_status"], text_of(entry["body"]), now=NOON)
    assert (verdict.cause, verdict.blames) == expected(entry)
    assert verdict.learned == LEARNED.get(entry["id"], {})
    if entry["id"] in BUCKETS:
        assert verdict.bucket == BUCKETS[entry["id"]]
    if verdict.cause in ("rpm", "tpm"):
        assert verdict.cooldown_s == pytest.approx(MINUTE_COOLDOWNS[entry["id"]])
    elif verdict.cause in ("rpd", "tpd"):
        assert verdict.cooldown_s == 3600  # it is noon: midnight, and every delay named, is further away than an hour
    elif verdict.cause == "location":
        assert verdict.cooldown_s == (3600 if verdict.blames == "project" else None)
    else:
        assert verdict.cooldown_s == FIXED.get(verdict.cause)


def test_the_corpus_is_whole() -> None:
    assert len(CORPUS) == 82
    assert all(id_ in BY_ID for id_ in (*LEARNED, *MINUTE_COOLDOWNS, *BUCKETS))


# --- variations ------------------------------------------------------------------------------------------------------


def errors() -> list[dict[str, Any]]:
    return [entry for entry in CORPUS if not isinstance(entry["body"], str)]


def error_of(entry: dict[str, Any]) -> dict[str, Any]:
    body = json.loads(json.dumps(entry["body"]))
    error: dict[str, Any] = (body[0] if isinstance(body, list) else body)["error"]
    return error


def same(entry: dict[str, Any], status: int | None, body: bytes) -> None:
    plain = judge(entry["http_status"], text_of(entry["body"]), now=NOON)
    verdict = judge(status, body, now=NOON)
    assert (verdict.cause, verdict.blames, verdict.action) == (plain.cause, plain.blames, plain.action)
    assert (verdict.cooldown_s, verdict.learned, verdict.bucket) == (plain.cooldown_s, plain.learned, plain.bucket)


@pytest.mark.parametrize("entry", errors(), ids=lambda entry: str(entry["id"]))
def test_shape_and_order_change_nothing(entry: dict[str, Any]) -> None:
    shuffled = random.Random(entry["id"])
    for respelt in (
        lambda t: t,
        lambda t: t.removeprefix("type.googleapis.com/"),
        lambda t: "odd/" + t,
        lambda t: None,
    ):
        error = error_of(entry)
        details = error.get("details", [])
        shuffled.shuffle(details)
        for detail in details:
            shuffled.shuffle(detail.get("violations", []))
            if "@type" in detail and (kind := respelt(detail.pop("@type"))) is not None:
                detail["  @type"] = kind
        status = entry["http_status"]
        for body in ({"error": error}, [{"error": error}]):
            same(entry, status, json.dumps(body).encode())
            same(entry, 200, json.dumps(body).encode())
            same(entry, status, b"\xef\xbb\xbf\r\n" + json.dumps(body, indent=4).encode())


@pytest.mark.parametrize("entry", errors(), ids=lambda entry: str(entry["id"]))
def test_errors_inside_streams_and_other_errors(entry: dict[str, Any]) -> None:
    compact, pretty = json.dumps({"error": error_of(entry)}), json.dumps({"error": error_of(entry)}, indent=2)
    good = 'data: {"candidates": [{"content": {"parts": [{"text": "an \\"error\\": none"}]}}]}\r\n\r\n'
    for stream in (f"data: {compact}\n\n", f"data:{compact}", f"event: error\ndata: {compact}\n\n"):
        same(entry, 200, stream.encode())
        same(entry, 200, (good + stream).encode())
    for raw in (pretty, f"[{pretty}]", f"\n{compact}\n"):
        same(entry, 200, (good + raw).encode())
    wrapped = pretty
    for _ in range(3):
        wrapped = json.dumps({"error": {"message": wrapped, "code": entry["http_status"], "status": "Some Reason"}})
        same(entry, entry["http_status"], wrapped.encode())
        same(entry, 200, wrapped.encode())
    same(entry, entry["http_status"], f"got status: {entry['http_status']} Too Many Requests. {compact}".encode())


@pytest.mark.parametrize("entry", [e for e in errors() if e["http_status"] == 429], ids=lambda entry: str(entry["id"]))
def test_new_models_tiers_and_numbers_are_judged_alike(entry: dict[str, Any]) -> None:
    plain = judge(429, text_of(entry["body"]), now=NOON)
    text = text_of(entry["body"]).decode()
    for old, new in (
        ("gemini-2.5-flash", "gemini-7.25-ultra-preview"),
        ("gemini-", "quasar-"),
        ("free_tier_requests", "paid_tier_9_requests_prio"),
        ("generate_content_free_tier", "make_things_tier_7"),
        ("-FreeTier", "-PaidTier9"),
        ("GenerateRequests", "ComposeRequests"),
        ("generativelanguage.googleapis.com/", "elsewhere.googleapis.com/"),
        ("PerModel", "PerModelPerRegion"),
    ):
        verdict = judge(429, text.replace(old, new).encode(), now=NOON)
        assert (verdict.cause, verdict.learned, verdict.cooldown_s) == (plain.cause, plain.learned, plain.cooldown_s)
    more = judge(429, text.replace("250000", "777000").replace('"20"', '"33"').encode(), now=NOON)
    assert more.cause == plain.cause
    assert more.learned in (
        plain.learned,
        {k: {250_000: 777_000, 20: 33}.get(v, v) for k, v in plain.learned.items()},
    )


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: str(entry["id"]))
def test_a_body_that_was_cut_blames_no_wrong_part(entry: dict[str, Any]) -> None:
    raw = text_of(entry["body"])
    whole = judge(entry["http_status"], raw, now=NOON)
    for cut in range(0, len(raw), 11):
        verdict = judge(entry["http_status"], raw[:cut], now=NOON)
        if verdict.cause in BLAMES_KEY | {"unsupported", "prepay", "spend"}:
            assert verdict.cause == whole.cause, cut
        if whole.cause in ("rpd", "tpd") and verdict.cause == whole.cause:
            assert all(whole.learned.get(name) == value for name, value in verdict.learned.items()), cut
