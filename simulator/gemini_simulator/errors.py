"""Error bodies as Google's Gemini API sends them, PURE: a name for each error. `faults` says which calls get one.

Texts, reasons and the order of the details follow bodies seen in 2025 and 2026. Project numbers are zeros.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SERVICE = "generativelanguage.googleapis.com"
_WORD = re.compile(r"\{(\w+)\}")
_CONSUMER = "projects/000000000000"
_TYPE = "type.googleapis.com/google.rpc."
_PROSE = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_HELP: dict[str, Any] = {
    "@type": _TYPE + "Help",
    "links": [
        {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
    ],
}
TIERS = ("free", "tier1", "tier2", "tier3")
QUOTA_KINDS = ("unsupported", "rpm", "tpm", "rpd", "tpd", "ipm")
"""Errors with QuotaFailure details."""
TYPICAL_LIMITS = {"rpm": 5, "tpm": 250_000, "rpd": 20, "tpd": 6_000_000, "ipm": 2}

# (HTTP status, status): name -> message. {…} are filled from the Case.
_MESSAGES: dict[tuple[int, str], dict[str, str]] = {
    (429, "RESOURCE_EXHAUSTED"): {
        "prepay": "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to "
        "manage your project and billing.",
        "spend": "You exceeded your spend-based rate limit. Your spending rate has exceeded the allowed limit for your "
        "account's billing history and tier.",
        "spend-cap": "Your billing account has exceeded its monthly spending cap",
        "unknown-429": "Resource has been exhausted (e.g. check quota).",
        "bare-quota": _PROSE,
    },
    (400, "INVALID_ARGUMENT"): {
        "invalid-key": "API key not valid. Please pass a valid API key.",
        "expired-key": "API key expired. Please renew the API key.",
        "thought-signature": "Thought signature is not valid.",
        "multiple-credentials": "Multiple authentication credentials received. Please pass only one.",
        "missing-authorization": "Missing or invalid Authorization header.",
        "bad-request": "Request contains an invalid argument.",
    },
    (400, "FAILED_PRECONDITION"): {"location": "User location is not supported for the API use."},
    (401, "UNAUTHENTICATED"): {
        "unauthenticated": "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential. See "
        "https://developers.google.com/identity/sign-in/web/devconsole-project.",
    },
    (403, "PERMISSION_DENIED"): {
        "leaked-key": "Your API key was reported as leaked. Please use another API key.",
        "suspended": "Permission denied: Consumer 'api_key:{key}' has been suspended.",
        "service-disabled": "Generative Language API has not been used in project 000000000000 before or it is "
        "disabled. Enable it by visiting https://console.developers.google.com/apis/api/"
        "generativelanguage.googleapis.com/overview?project=000000000000 then retry. If you enabled this API "
        "recently, wait a few minutes for the action to propagate to our systems and retry.",
        "service-blocked": "Requests to this API generativelanguage.googleapis.com method {method} are blocked.",
        "referrer-blocked": "Requests from referer <empty> are blocked.",
        "model-access": "The caller does not have permission",
        "resource-permission": "You do not have permission to access the File simulated0 or it may not exist.",
        "no-key": "Method doesn't allow unregistered callers (callers without established identity). Please use API "
        "Key or other form of API consumer identity to call this API.",
    },
    (404, "NOT_FOUND"): {
        "retired-model": "This model models/{model} is no longer available to new users. Please update your code to "
        "use models/gemini-3.8-flash for the latest features and improvements.",
        "not-found": "models/{model} is not found for API version {version}, or is not supported for {verb}. Call "
        "ListModels to see the list of available models and their supported methods.",
        "no-such-path": "The requested URL {path} was not found on this server.",
    },
    (500, "INTERNAL"): {
        "internal": "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
    },
    (503, "UNAVAILABLE"): {
        "overloaded": "This model is currently experiencing high demand. Spikes in demand are usually temporary. "
        "Please try again later.",
    },
    (504, "DEADLINE_EXCEEDED"): {"deadline": "Deadline expired before operation could complete."},
}
_PLAIN = {name: (*code, text) for code, messages in _MESSAGES.items() for name, text in messages.items()}
_REASONS = {
    "invalid-key": "API_KEY_INVALID",
    "expired-key": "API_KEY_INVALID",
    "unauthenticated": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
    "suspended": "CONSUMER_SUSPENDED",
    "service-disabled": "SERVICE_DISABLED",
    "service-blocked": "API_KEY_SERVICE_BLOCKED",
    "referrer-blocked": "API_KEY_HTTP_REFERRER_BLOCKED",
}
HTML: dict[str, tuple[int, str]] = {
    "html-429": (
        429,
        "<html><head><title>Sorry...</title></head><body><h1>We're sorry...</h1><p>... but your computer or network "
        "may be sending automated queries. To protect our users, we can't process your request right now.</p></body>"
        "</html>",
    ),
    "bad-gateway": (
        502,
        "<!DOCTYPE html><html lang=en><title>Error 502 (Server Error)!!1</title><p><b>502.</b> <ins>That’s an error."
        "</ins><p>The server encountered a temporary error and could not complete your request.<p>Please try again in "
        "30 seconds. <ins>That’s all we know.</ins></html>",
    ),
}
TEXT: dict[str, tuple[int, str]] = {"upload-terminated": (400, "Upload has already been terminated.")}
"""Errors that are plain text, as in the upload protocol."""
NAMES = (*QUOTA_KINDS, *_PLAIN, *HTML, *TEXT)
ABOUT_QUOTA = frozenset({*QUOTA_KINDS, *(name for name, row in _PLAIN.items() if row[0] == 429)})
"""Faults that only hit calls that use quota."""


@dataclass(slots=True, kw_only=True)
class Case:
    """What an error speaks about. `key` is the caller's own value: Google echoes it in full, so this does too."""

    version: str = "v1beta"
    model: str = ""
    bucket: str = ""
    verb: str = "generateContent"
    path: str = "/"
    key: str = field(default="", repr=False)
    tier: str = "free"
    limit: int | None = None
    retry_s: float | None = None

    @property
    def method(self) -> str:
        return f"google.ai.generativelanguage.{self.version}.GenerativeService.{self.verb[:1].upper()}{self.verb[1:]}"


class ApiError(Exception):
    """An error as an answer: JSON, an HTML page, or plain text. Its repr shows no body, since that can hold a key."""

    def __init__(self, status: int, body: dict[str, Any] | str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers: list[tuple[bytes, bytes]] = []
        self.early = False
        """Whether it is sent before the body of an upload has come."""

    def encode(self, *, array: bool = False) -> tuple[bytes, bytes]:
        """(content type, bytes): JSON over several lines, as Google writes it; `array`: as a list of one."""
        if isinstance(self.body, str):
            kind = b"text/html" if self.body.startswith("<") else b"text/plain"
            return kind + b"; charset=UTF-8", self.body.encode()
        body = [self.body] if array else self.body
        text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
        return b"application/json; charset=UTF-8", text.encode("utf-8", "replace")


def error(name: str, case: Case | None = None) -> ApiError:
    """The error of that name. KeyError if there is none."""
    case = case or Case()
    if name in QUOTA_KINDS:
        return _quota_fault(name, case)
    if name in HTML:
        return ApiError(*HTML[name])
    if name in TEXT:
        return ApiError(*TEXT[name])
    code, status, message = _PLAIN[name]
    message = _WORD.sub(lambda word: str(getattr(case, word[1])), message)  # in one go: what is put in is no format
    details = _reason_details(_REASONS[name], message, case) if name in _REASONS else ()
    return _error(code, status, message, [_HELP] if name == "bare-quota" else details)


def bad_request(message: str) -> ApiError:
    return _error(400, "INVALID_ARGUMENT", message)


def unknown_fields(fields: Sequence[tuple[str, str]]) -> ApiError:
    """The 400 for unknown fields: (name, path of the object that has it; empty for the request itself)."""
    violations = []
    for name, path in fields:
        where = f" at '{path}'" if path else ""
        text = f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
        violations.append(({"field": path} if path else {}) | {"description": text})
    message = "\n".join(violation["description"] for violation in violations)
    details = [{"@type": _TYPE + "BadRequest", "fieldViolations": violations}]
    return _error(400, "INVALID_ARGUMENT", message, details)


def said(code: int, status: str, message: str) -> ApiError:
    """An error with a text of its own."""
    return _error(code, status, message)


def _error(code: int, status: str, message: str, details: Sequence[dict[str, Any]] = ()) -> ApiError:
    body: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        body["details"] = list(details)
    return ApiError(code, {"error": body})


def _reason_details(reason: str, message: str, case: Case) -> list[dict[str, Any]]:
    metadata = {"service": SERVICE}
    if reason == "CONSUMER_SUSPENDED":
        metadata |= {"consumer": _CONSUMER, "containerInfo": f"api_key:{case.key}"}
    elif reason == "SERVICE_DISABLED":
        metadata |= {"serviceTitle": "Generative Language API", "consumer": _CONSUMER, "containerInfo": "000000000000"}
    elif reason == "API_KEY_SERVICE_BLOCKED":
        metadata |= {"consumer": _CONSUMER, "apiName": SERVICE, "methodName": case.method}
    elif reason == "ACCESS_TOKEN_TYPE_UNSUPPORTED":
        metadata |= {"method": case.method}
    return [
        {"@type": _TYPE + "ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata},
        {"@type": _TYPE + "LocalizedMessage", "locale": "en-US", "message": message},
    ]


def _quota_fault(name: str, case: Case) -> ApiError:
    if name == "unsupported":
        broken = [("tpm", 0), ("rpm", 0), ("rpd", 0), ("tpd", 0)]
    else:
        broken = [(name, TYPICAL_LIMITS[name] if case.limit is None else case.limit)]
    retry_s = case.retry_s if case.retry_s is not None else 40_000.5 if name in ("rpd", "tpd") else 42.921954507
    return quota_error(broken, retry_s, case)


def quota_error(broken: Sequence[tuple[str, int]], retry_s: float, case: Case) -> ApiError:
    """The 429 of a quota: a line and a violation for each limit; RetryInfo is cut to whole seconds, the text is not."""
    lines, violations = [], []
    for name, limit in broken:
        metric, quota_id = _quota_names(name, case)
        lines.append(f"* Quota exceeded for metric: {SERVICE}/{metric}, limit: {limit}, model: {case.bucket}")
        violation: dict[str, Any] = {
            "quotaMetric": f"{SERVICE}/{metric}",
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": case.bucket},
        }
        if limit:  # a limit of 0 has no quotaValue: only the text shows it
            violation["quotaValue"] = str(limit)
        violations.append(violation)
    message = "\n".join(
        [
            f"{_PROSE} To monitor your current usage, head to: https://ai.dev/rate-limit. ",
            *lines,
            f"Please retry in {go_duration(retry_s)}.",
        ]
    )
    details = [
        _HELP,
        {"@type": _TYPE + "QuotaFailure", "violations": violations},
        {"@type": _TYPE + "RetryInfo", "retryDelay": f"{int(retry_s)}s"},
    ]
    return _error(429, "RESOURCE_EXHAUSTED", message, details)


def _quota_names(name: str, case: Case) -> tuple[str, str]:
    """(metric, quota id) as each tier has them. Tier 1 has names without a tier, and odd ones."""
    period = "Day" if name.endswith("d") else "Minute"
    embeds = "mbed" in case.verb
    number = case.tier.removeprefix("tier")
    word = "free_tier" if case.tier == "free" else "paid_tier" if number == "1" else f"paid_tier_{number}"
    end = "-FreeTier" if case.tier == "free" else "" if number == "1" else f"-PaidTier{number}"
    if name == "ipm":
        return f"generated_images_{word}_per_model", f"GenerateImagesPerMinutePerProjectPerModel{end}"
    family, title = ("embed_content", "EmbedContent") if embeds else ("generate_content", "GenerateContent")
    if name.startswith("t"):
        paid = "PaidTier" if number == "1" else ""
        return f"{family}_{word}_input_token_count", f"{title}{paid}InputTokensPerModelPer{period}{end}"
    if embeds:
        return f"embed_content_{word}_requests", f"EmbedContentRequestsPer{period}PerProjectPerModel{end}"
    if number == "1":
        metric = "generate_requests_per_model" + ("_per_day" if period == "Day" else "")
    else:
        metric = f"generate_content_{word}_requests"
    return metric, f"GenerateRequestsPer{period}PerProjectPerModel{end}"


def go_duration(seconds: float) -> str:
    """As the messages write it: 8.386476ms, 17.156209832s, 7m55.9s, 22h18m29.29s."""
    if seconds < 1:
        return f"{_trim(seconds * 1000, 6)}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{_trim(rest, 9)}s"


def _trim(value: float, places: int) -> str:
    return f"{value:.{places}f}".rstrip("0").rstrip(".")
