"""What an upstream answer means for quota, key, project and client: a table of rules. The first match wins.

`error_body` reads the body, `quota_error` finds which counter a 429 names, `causes` has what follows from a cause.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from pollux.gemini.verdict.causes import A_DAY, A_MINUTE, CAUSES, HOUR, Action, Blames, Rest, resting_time
from pollux.gemini.verdict.error_body import ErrorBody, error_in_stream, read
from pollux.gemini.verdict.quota_error import QuotaError, refused_by
from pollux.redaction import redact


@dataclass(frozen=True, slots=True)
class Verdict:
    cause: str
    blames: Blames
    action: Action
    cooldown_s: float | None = None  # how long what is blamed rests the first time; None: not at all
    ceiling_s: float | None = None  # while the cause repeats, the cooldown doubles up to this; None: it does not double
    learned: Mapping[str, int] = field(default_factory=dict)
    bucket: str | None = None  # the model that Google counts by; "counter/model" for another counter than generation's
    message: str = ""  # short and redacted
    vague: bool = False  # it names no counter: that of a tool which the request uses may have refused
    tier: str | None = None  # "free" or "paid", if the refusing quota's id says so


@dataclass(frozen=True, slots=True)
class _Case:
    error: ErrorBody
    refused: QuotaError | None  # of a 429


_Test = Callable[[_Case], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    cause: str
    when: _Test
    what: str  # what came, for the docs
    blames: Blames
    action: Action
    rest: Rest | None
    vague: bool


def _rule(
    cause: str,
    when: _Test,
    what: str,
    blames: Blames | None = None,
    action: Action | None = None,
    *,
    rest: Rest | None = None,
    vague: bool = False,
) -> Rule:
    """What the rule does not give comes from the table of causes."""
    of = CAUSES[cause]
    return Rule(cause, when, what, blames or of.blames, action or of.action, rest or of.rest, vague)


# A message may quote the request, in which a client may write anything. So rules that blame a key or a project look at
# the beginning of the message, or at fields that only Google fills.


def _code(*codes: int | None) -> _Test:
    return lambda case: case.error.code in codes


def _says(pattern: str, *codes: int) -> _Test:
    compiled = re.compile(pattern, re.I)
    return lambda case: case.error.code in codes and bool(compiled.search(case.error.message))


def _begins(pattern: str, *codes: int) -> _Test:
    return _says(rf"\A(?:Permission denied: )?(?:{pattern})", *codes)


def _because(pattern: str) -> _Test:
    compiled = re.compile(pattern)
    return lambda case: any(compiled.fullmatch(reason) for reason in case.error.reasons)


def _any(*tests: _Test) -> _Test:
    return lambda case: any(test(case) for test in tests)


def _quota(cause: str) -> _Test:
    return lambda case: case.refused is not None and case.refused.cause == cause


def _tool(*causes: str) -> _Test:
    return lambda case: case.refused is not None and case.refused.tool is not None and case.refused.cause in causes


def _names_no_counter(case: _Case) -> bool:
    return case.refused is not None and case.refused.cause == "unknown-429" and not case.refused.named


def _bare_quota_prose(case: _Case) -> bool:
    """Not if the body was cut: the missing part may have named a counter."""
    return _names_no_counter(case) and case.error.whole and _CHECK_YOUR_PLAN(case)


_CHECK_YOUR_PLAN = _begins(r"[^.\n]{0,60}\bquota\b[^.\n]{0,60}\bplan and billing\b", 429)
_QUOTES = _begins(r"\* |Invalid (?:JSON|value|field)|Unknown name|Unsupported|Proto field", 400)


def _about_a_field(case: _Case) -> bool:
    return case.error.code == 400 and not case.error.reasons and (case.error.echoes or _QUOTES(case))


_AUTH = (400, 401, 403)

# fmt: off
RULES: tuple[Rule, ...] = (
    _rule("ok", lambda c: 200 <= (c.error.code or 0) < 300, "2xx without an error in it"),
    _rule("bad-request", _about_a_field, "400 about a field of the request, unknown or invalid"),
    _rule("thought-signature", _says(r"thought[ _]?signature", 400),
         "400 about a thought signature: once more where the conversation was served"),
    _rule("model-access", _any(
            _says(r"available to new users|not have access to it", 404),
            _begins(r"[\w .-]{1,80} only (?:accessible|available) to (?:billed|paid)", 400, 403)),
         '404 "no longer available to new users", 400 "only accessible to billed users"'),
    _rule("not-found", _code(404, 410), "any other 404"),
    _rule("bad-request", _any(
            _begins(r"Multiple authentication credentials|Method doesn't allow unregistered callers", *_AUTH),
            _begins(r"Request is missing required auth|Missing or invalid Authorization header", *_AUTH)),
         "several credentials, or none: a fault of the gateway", "gateway"),
    _rule("leaked-key", _begins(r"(?:Your|This) API key (?:was|has been) .{0,20}leaked", *_AUTH),
         "403 leaked"),
    _rule("suspended", _any(
            _because("CONSUMER_SUSPENDED"),
            _begins(r"Consumer .{1,120} has been suspended|This service has been disabled in this account", *_AUTH)),
         "403 suspended (can also be a spend cap), or disabled for a violation of terms"),
    _rule("suspended", _begins(r"Your project has been", *_AUTH),
         "403 project denied access", "project", "next-project"),
    _rule("service-disabled", _any(
            _because(r"(?:API_KEY_)?SERVICE_\w+|CONSUMER_\w+|PROJECT_\w+|USER_PROJECT_DENIED|SECURITY_POLICY_\w+"),
            _begins(r"[\w ]{1,60} API has not been used in|Requests to this API .{1,300} are blocked", 403)),
         "403 service disabled, or not allowed for the key"),
    _rule("referrer-blocked", _any(
            _because(r"API_KEY_\w+_BLOCKED"),
            _begins(r"Requests from .{1,300} are blocked|The provided API key has an IP address restriction", 403)),
         "403 referrer, address or app not allowed for the key"),
    _rule("resource-permission", _says(r"permission to access the|or it may not exist|\(or permission denied\)", 403),
         "403 on a file, cache or tuned model of another project"),
    _rule("location", _begins(r"User location is not supported(?!.*billing)", 400, 403),
         "400 location: the gateway's own address is refused"),
    _rule("location", _any(
            _because(r"LOCATION_\w+"),
            _begins(r"User location|Gemini API free tier is not available|Access to \S+ is restricted from", 400, 403)),
         "400 no free tier in this country, 403 billing country: another project may be served",
         "project", "next-project", rest=Rest(HOUR)),
    _rule("invalid-key", _any(
            _because(r"API_KEY_(?:INVALID|EXPIRED)|ACCESS_TOKEN_\w+|ACCOUNT_STATE_INVALID"),
            _begins(r"API key (?:not|expired|is)\b|Invalid (?:API|Auth)[ -]?key|Please \w+ a valid API key", *_AUTH),
            _code(401)),
         "400 `API_KEY_INVALID`, expired; 401"),
    _rule("overloaded", _any(
            _because("MODEL_CAPACITY_EXHAUSTED"),
            _says(r"model is overloaded|experiencing high demand", 429)),
         "429 without capacity: the model is overloaded, or in high demand"),
    _rule("spend", _says(r"spend-based|spending rate", 402, 429),
         "429 spend-based"),
    _rule("prepay", _any(
            _because("BILLING_DISABLED"),
            _says(r"prepay|prepaid|credits? (?:is|are) depleted|monthly spend|spend(?:ing)? cap", 402, 429),
            _begins(r"This API method requires billing|.{0,40}billing (?:account )?.{0,60}(?:disabled|closed)", 403),
            _code(402)),
         "429 or 402 prepaid credit gone or monthly cap reached, 403 billing disabled"),
    _rule("tool-quota", _tool("rpd", "tpd"), "429 of a tool's own counter (search, maps, URL context), per day",
         rest=A_DAY),
    _rule("tool-quota", _tool("rpm", "tpm", "ipm"), "429 of a tool's own counter, per minute", rest=A_MINUTE),
    _rule("tool-quota", _tool("unsupported"), "429 of a tool's own counter, with limit 0", rest=Rest(HOUR)),
    _rule("tool-quota", _tool("unknown-429"),
         "429 of a tool's own counter that names no period; a request with such a tool, refused without details"),
    _rule("spend", _bare_quota_prose,
         '429 "You exceeded your current quota, please check your plan and billing details", which names no counter',
         vague=True),
    _rule("unknown-429", _quota("unknown-429"), '429 without details, also as a page ("Sorry…")',
         vague=True),
    _rule("unsupported", _quota("unsupported"), '429, a violation with limit 0, or "limit: 0" in the message'),
    _rule("rpd", _quota("rpd"), "429, requests per day"),
    _rule("tpd", _quota("tpd"), "429, tokens per day"),
    _rule("rpm", _quota("rpm"), "429, requests per minute"),
    _rule("tpm", _quota("tpm"), "429, tokens per minute"),
    _rule("ipm", _quota("ipm"), "429, images per minute"),
    _rule("network", _code(None), "no answer: reset, timeout"),
    _rule("deadline", _code(408, 499, 502, 504), "502, 504; 408, 499"),
    _rule("overloaded", _code(503, 529), "503"),
    _rule("internal", lambda c: (c.error.code or 0) >= 500, "500, and any other 5xx"),
    _rule("location", lambda c: c.error.code == 403 and c.error.html,
         "403 as a page: the gateway's own address is refused"),
    _rule("model-access", _code(403), '403 "The caller does not have permission", and any other 403'),
    _rule("bad-request", lambda c: True, "other 400, 413, and any other status"),
)
# fmt: on


def judge(status: int | None, body: bytes | str, *, now: float) -> Verdict:
    """What an answer means. `status` None: no answer; `body` is then empty or a WebSocket's close text."""
    if status is not None and 200 <= status < 300:
        found = error_in_stream(body if isinstance(body, bytes) else body.encode("utf-8", "replace"))
        if found is None:
            return Verdict("ok", "none", "none")
        body = found
    error = read(status, body)
    case = _Case(error, refused_by(error) if error.code == 429 else None)
    rule = next(rule for rule in RULES if rule.when(case))
    refused = case.refused if rule.blames == "quota" else None
    return Verdict(
        cause=rule.cause,
        blames=rule.blames,
        action=rule.action,
        cooldown_s=None if rule.rest is None else rule.rest.seconds(error.delay, now),
        ceiling_s=None if rule.rest is None else rule.rest.most,
        learned=refused.learned if refused else {},
        bucket=refused.bucket if refused else None,
        tier=case.refused.tier if case.refused else None,
        message=_short(error.message) or ("no answer" if error.code is None else f"HTTP {error.code}"),
        vague=rule.vague and _names_no_counter(case) and not error.html,
    )


def verdict_of(cause: str, message: str) -> Verdict:
    """The verdict for a cause that is not from an answer."""
    of, (seconds, ceiling) = CAUSES[cause], resting_time(cause)
    return Verdict(cause, of.blames, of.action, seconds if of.rest else None, ceiling, message=message)


def _short(message: str) -> str:
    """One redacted line, without control characters: they would move a terminal's cursor or forge a log line."""
    printable = "".join(c if c.isprintable() else " " for c in redact(message)[:1000])
    line = redact(" ".join(printable.split()))
    return line if len(line) <= 200 else line[:199] + "…"


def judge_command(status: int | None, text: bytes, now: float) -> str:
    """The verdict on a body as JSON, for `pollux judge`."""
    shown = asdict(judge(status, text, now=now))
    for internal in ("ceiling_s", "vague", "tier"):
        del shown[internal]
    if shown["cooldown_s"] is not None:
        shown["cooldown_s"] = round(shown["cooldown_s"], 3)
    return json.dumps(shown, indent=2, ensure_ascii=False)
