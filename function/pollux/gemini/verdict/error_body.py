"""Reads an upstream error of any shape into one normal form. `rules` decides what it means.

It may be an object, an array of one, an SSE event, a raw object after SSE events, an error whose message is
the JSON text of another, HTML, a WebSocket close text, JSON that was cut, or nothing. Reading it never raises.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_LONGEST = 2**20  # no error is larger; a larger piece of an answer is not parsed
_DEPTH = 6  # of errors wrapped in the messages of errors

_STATUS = {name: int(member) for name, member in HTTPStatus.__members__.items()} | {
    **dict.fromkeys(("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "INVALID_REQUEST"), 400),
    **dict.fromkeys(("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED", "QUOTA_EXCEEDED", "INSUFFICIENT_QUOTA"), 429),
    **dict.fromkeys(("INTERNAL", "INTERNAL_ERROR", "SERVER_ERROR", "UNKNOWN", "DATA_LOSS"), 500),
    **dict.fromkeys(("UNAVAILABLE", "OVERLOADED"), 503),
    **dict.fromkeys(("ALREADY_EXISTS", "ABORTED"), 409),
    **{"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "CANCELLED": 499, "UNIMPLEMENTED": 501},
    **{"DEADLINE_EXCEEDED": 504, "INVALID_REQUEST_ERROR": 400},
}
_GRPC = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
_CLOSE = {1007: 400, 1008: 400, 1011: 500, 1012: 503, 1013: 503}
_QUOTA_PROSE = re.compile(r"quota|exhausted|spend\w* cap|credits? .{0,20}depleted|rate limit", re.I)
_PREFIX = re.compile(r"(?:APIError:|received|CLOSE)?\s*(\d{3,4})\b(?:\s*\([^)]{0,60}\)|\s+None\.)?\s*")
_WRAPPED = re.compile(r"(?:\[?(?:API ?Error|ApiError):?\s*)?(?:got status:\s*)?(?:\d{3}\b[^{\[]{0,60})?[\[{]")
_UNIT = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SPAN = r"(?:\d+(?:\.\d+)?\s*(?:d|h|ms|us|µs|ns|m|s)(?![a-z]{2}))+"
_WAIT = re.compile(rf"(?:retry|try again|reset)\s+(?:in|after)\s+(\d+(?=\s+seconds)|{_SPAN})", re.I)


@dataclass(frozen=True, slots=True)
class Violation:
    """One quota that was exceeded. `name`: every word that says which one, its id, metric and unit."""

    name: str
    metric: str = ""
    value: int | None = None
    model: str | None = None
    whole: bool = False  # id and metric were given: then a missing value is 0, which protobuf's JSON leaves out


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`code`: an HTTP status; the body's overrides the answer's. None: there was no answer, and the text has none."""

    code: int | None
    message: str = ""
    reasons: tuple[str, ...] = ()
    violations: tuple[Violation, ...] = ()
    delay: float | None = None
    echoes: bool = False  # the details quote fields of the request: the message may have any of the client's words
    html: bool = False
    whole: bool = False  # it came as complete JSON: nothing of its message was cut off


def read(status: int | None, body: bytes | str) -> ErrorBody:
    text = _text(body)[:_LONGEST]
    fields: dict[str, Any] = {}
    for piece in () if _is_html(text) else (text, *_events(text)):
        if found := _fields(_load(piece)):
            fields = found
            break
    message = str(fields.get("message") or "").strip()
    for _ in range(_DEPTH):
        # Only a message that is JSON as a whole: one that quotes the request may have any text of the client
        inner = _fields(_load(message)) if _WRAPPED.match(message) and "details" not in fields else None
        if not inner:
            break
        fields = fields | inner
        message = str(fields.get("message") or "").strip()
    html = _is_html(message or text)
    whole = bool(fields)
    if not html and (not fields or ("details" not in fields and message.startswith(("{", "[")))):
        whole = False
        fields = fields | _scraped(message or text)
        message = str(fields.get("message") or "").strip()
    if html:
        message = _without_tags(message or text)
    return _normal(status, fields, message[:8000], html=html, whole=whole)


def error_in_stream(piece: bytes) -> bytes | None:
    """The error in this piece of a stream, as JSON: an event (with or without `data:`), a raw object, an element.

    None for anything else, also for an answer whose text mentions errors, and for a failed operation, whose "error" is
    part of a good answer.
    """
    if b'"error"' not in piece:
        return None
    text = _text(piece)
    for candidate in list(_events(text)) or [text]:
        if '"error"' not in candidate or len(candidate) > _LONGEST:
            continue
        # the second form: an element of a streamed array, still with its comma or bracket
        for form in (candidate.strip(), candidate.strip("[], \r\n\t")):
            value = _loads(form)
            elements = value if isinstance(value, list) else [value]
            for error in filter(_is_error, elements):
                return (form if len(elements) == 1 else json.dumps(error)).encode("utf-8", "replace")
    return None


def retry_delay(value: object) -> float | None:
    """Seconds of a duration in any spelling: "42s", "1h2m3.5s", "8.3ms", {"seconds": …, "nanos": …}."""
    seconds: float | None = None
    if isinstance(value, Mapping):
        parts = [_number(value.get("seconds", 0)), _number(value.get("nanos", 0))]
        seconds = None if None in parts else (parts[0] or 0) + (parts[1] or 0) / 1e9
    elif isinstance(value, str) and len(value) < 60 and re.fullmatch(_SPAN, value.strip(), re.I):
        spans = re.findall(r"([\d.]+)\s*([a-zµ]+)", value.lower())
        seconds = sum(float(amount) * _UNIT[unit] for amount, unit in spans)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            return None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, 7 * 86400.0)


def _normal(status: int | None, fields: Mapping[str, Any], message: str, *, html: bool, whole: bool) -> ErrorBody:
    reasons: list[str] = []
    violations: list[Violation] = []
    delay, echoes = None, False
    for detail in _details(fields):
        metadata = _plain(detail.get("metadata"))
        if isinstance(detail.get("reason"), str):
            reasons.append(detail["reason"])
        violations += _violations(detail, metadata)
        for spelling in (detail.get("retrydelay"), metadata.get("quotaresetdelay")):
            delay = retry_delay(spelling) if delay is None else delay
        echoes |= "fieldviolations" in detail
        for key in ("message", "detail"):  # LocalizedMessage, DebugInfo
            message = message or str(detail.get(key) or "")[:8000]
    if delay is None and (found := _WAIT.search(message)):
        delay = retry_delay(found[1])
    code = _code(fields.get("status")) or _code(fields.get("code")) or status
    if prefix := _PREFIX.match(message):
        message = message[prefix.end() :] or message
        code = code or _CLOSE.get(int(prefix[1]))
    if status is None and (code is None or code in _CLOSE.values()):
        if _QUOTA_PROSE.search(message):
            code = 429
        elif "is not found for API version" in message:
            code = 404
    if fields and code is not None and code < 300:
        code = 500
    if code == 403 and any(re.search(r"rate_?limit|quota_?exceeded|daily_?limit", r, re.I) for r in reasons):
        code = 429
    return ErrorBody(code, message, tuple(reasons), tuple(violations), delay, echoes, html, whole)


def _violations(detail: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[Violation]:
    listed = detail.get("violations")
    for entry in map(_plain, listed[:50] if isinstance(listed, list) else ()):
        identity, metric = str(entry.get("quotaid") or ""), str(entry.get("quotametric") or "")
        description = str(entry.get("description") or "")
        if not (identity or metric or "quotavalue" in entry or "quota" in description.lower()):
            continue  # PreconditionFailure has violations too
        model = _plain(entry.get("quotadimensions")).get("model")
        yield Violation(
            name=f"{identity} {metric}".strip() or description[:500],
            metric=metric,
            value=_number(entry.get("quotavalue")),
            model=model if isinstance(model, str) else None,
            whole=bool(identity and metric) and "scraped" not in entry and not entry.get("quotavalue"),
        )
    if metadata.get("quotalimit") or metadata.get("quotametric"):
        name = " ".join(str(metadata.get(key) or "") for key in ("quotalimit", "quotametric", "quotaunit"))
        yield Violation(name, str(metadata.get("quotametric") or ""), _number(metadata.get("quotalimitvalue")))


def _text(body: bytes | str) -> str:
    return (body.decode("utf-8", "replace") if isinstance(body, bytes) else body).lstrip("\ufeff")


def _events(text: str) -> Iterator[str]:
    """The data of each SSE event, and the text outside of `data:`; nothing if the text is not an event stream."""
    if not re.search(r"^(?:data|event):", text, re.M):
        return
    data: list[str] = []
    raw: list[str] = []
    for line in [*re.split(r"\r\n|\r|\n", text), ""]:  # splitlines() would also cut at U+2028, inside a string
        if line.startswith("data:"):
            data.append(line[5:])
        elif line.strip() and not line.startswith((":", "event:", "id:", "retry:")):
            raw.append(line)
        if not line.strip() and data:
            yield "\n".join(data)
            data = []
    if raw:
        yield "\n".join(raw)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _load(text: str) -> Any:
    """JSON, also with text around it, as in `got status: 429 Too Many Requests. {"error": …}`."""
    value = _loads(text)
    start = re.search(r"[\[{]\s*[{\"]", text) if value is None else None
    if start:
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, start.start())
        except (ValueError, RecursionError):
            return None
    return value


def _plain(value: object) -> dict[str, Any]:
    """Keys without case, underscores, `@` and blanks, so that `quota_id` and `quotaId` are the same."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key).strip().lstrip("@").replace("_", "").lower(): item for key, item in value.items()}


def _fields(value: object) -> dict[str, Any] | None:
    for element in value[:20] if isinstance(value, list) else [value]:
        outer = _plain(element)
        error = outer.get("error")
        if isinstance(error, str) and error:
            return {"message": outer.get("errordescription") or outer.get("message") or error}
        if fields := _plain(error) or (outer if {"message", "details"} & outer.keys() else None):
            return fields
    return None


def _is_error(value: object) -> bool:
    """An error and nothing else. Operations and interactions have an "error" beside their name: they are answers."""
    if not isinstance(value, dict) or not value.keys() <= {"error", "event_type", "event_id", "type"}:
        return False
    error = value.get("error")
    return isinstance(error, (dict, str)) and bool(error)


def _details(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key in ("details", "errors"):
        listed = fields.get(key)
        for entry in listed[:50] if isinstance(listed, list) else [listed]:
            if plain := _plain(entry):
                yield plain


def _number(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18 else None


def _code(value: object) -> int | None:
    """400 to 599 from a number, a digit string, a gRPC code or a status name; None for anything else."""
    number = _number(value)
    if number is not None:
        number = _GRPC[number] if number < len(_GRPC) else number
    elif isinstance(value, str):
        number = _STATUS.get(re.sub(r"[\s-]+", "_", value.strip()).upper())
    return number if number is not None and 400 <= number < 600 else None


# --- HTML, prose, and JSON that was cut ------------------------------------------------------------------------------


def _is_html(text: str) -> bool:
    return bool(re.match(r"\s*<(?:!doctype|html|head|body|p|title)\b", text, re.I))


def _without_tags(text: str) -> str:
    text = re.sub(r"<(style|script)\b[^<>]*>.*?</\1>", " ", text[:8192], flags=re.I | re.S)
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def _scraped(text: str) -> dict[str, Any]:
    """An error's fields from JSON that was cut, from Python's repr of it, or from prose."""
    text = text[:65536]
    flat = re.sub(r"\\{1,16}(?=[\"'])", "", text)

    def all_of(pattern: str) -> list[str]:
        return re.findall(pattern, flat, re.I)[:50]

    message = re.search(r"""["']message\\?["']\s*:\s*\\?(["'])((?:(?!\\?\1\s*[,}])(?:\\.|[^\\]))*)""", text, re.S)
    said = re.sub(r"\\{1,16}n", "\n", message[2]) if message else text
    if message and message.end() == len(text):
        said = re.sub(r"\S+\Z", "", said)  # the cut may be in a number: "limit: 2" may have been 250000
    ids, values = all_of(r"quota_?id\W{1,8}([\w-]+)"), all_of(r"quota_?value\W{1,8}(\d{1,18})(?=\W)")
    metrics, models = all_of(r"quota_?metric\W{1,8}([\w./-]+)"), all_of(r"[\"']model[\"']\W{1,4}([\w.-]+)(?=[\"'])")
    limits = [*values] if len(values) == max(len(ids), len(metrics)) else []
    violations = [
        {
            "scraped": True,
            "quotaId": ids[n] if n < len(ids) else "",
            "quotaMetric": metrics[n] if n < len(metrics) else "",
            "quotaValue": limits[n] if n < len(limits) else None,
            "quotaDimensions": {"model": models[0]} if models else {},
        }
        for n in range(max(len(ids), len(metrics)))
    ]
    reasons = all_of(r"[\"']reason[\"']\s*:\s*[\"'](\w+)") + re.findall(r"\bAPI_KEY_[A-Z_]+", text)[:5]
    delays = all_of(r"retry_?delay\W{1,8}([\d.]+m?s)\b")
    fields: dict[str, Any] = {
        "message": said,
        "details": [
            {"violations": violations},
            *({"reason": r} for r in reasons),
            *({"retryDelay": d} for d in delays),
        ],
    }
    if codes := all_of(r"[\"']code[\"']\s*:\s*[\"']?(\d{3})\b"):
        fields["code"] = codes[0]
    known = [name for name in re.findall(r"\b[A-Z]{4,}(?:_[A-Z]+)*\b", text)[:200] if name in _STATUS]
    if known:
        fields["status"] = known[0]
    return fields
