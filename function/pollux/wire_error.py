"""PURE. Every error that Pollux itself makes, in the shapes of the two APIs. docs/errors.md is made from this list."""

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    http: int
    status: str
    """Google's name for it."""
    openai: str
    """What OpenAI's clients find as `type`."""
    when: str
    remedy: str


ERRORS: dict[str, Kind] = {
    "BAD_REQUEST": Kind(
        400,
        "INVALID_ARGUMENT",
        "invalid_request_error",
        "A path or an x-pollux header makes no sense.",
        "Correct what the message names.",
    ),
    "TOO_LARGE_FOR_QUOTA": Kind(
        400,
        "INVALID_ARGUMENT",
        "invalid_request_error",
        "The request has more input tokens than any project may send in one minute: it could never be served.",
        "Send less at once, or add a project with a larger limit.",
    ),
    "NO_TOKEN": Kind(
        401,
        "UNAUTHENTICATED",
        "authentication_error",
        "No client token that the gateway knows was sent.",
        "Send one of POLLUX_TOKEN as x-goog-api-key or as Authorization: Bearer.",
    ),
    "FORBIDDEN_PATH": Kind(
        403,
        "PERMISSION_DENIED",
        "permission_error",
        "The path would hand out or bypass what the gateway guards.",
        "If that is wanted, name it in POLLUX_ALLOW_PATHS.",
    ),
    "BODY_TOO_LARGE": Kind(
        413,
        "INVALID_ARGUMENT",
        "invalid_request_error",
        "The body, or what it inflates to, is above POLLUX_MAX_BODY.",
        "Send less at once; upload files through the Files API.",
    ),
    "UNREADABLE_ENCODING": Kind(
        415,
        "INVALID_ARGUMENT",
        "invalid_request_error",
        "The body is compressed in a way that the gateway cannot read, and it must be read here.",
        "Send it as gzip, deflate or uncompressed.",
    ),
    "QUOTA_BUSY": Kind(
        429,
        "RESOURCE_EXHAUSTED",
        "rate_limit_error",
        "No project has a free slot within the time that the request may wait.",
        "Try again after Retry-After, wait longer (POLLUX_MAX_WAIT), or add a project.",
    ),
    "MODEL_NOT_AVAILABLE": Kind(
        429,
        "RESOURCE_EXHAUSTED",
        "rate_limit_error",
        "The model's limit is 0 in every project, or none has access to it.",
        "Choose another model, or a project on another tier.",
    ),
    "INTERNAL": Kind(
        500,
        "INTERNAL",
        "server_error",
        "A fault in Pollux itself.",
        "Read the gateway's log; report it with the request id.",
    ),
    "UPSTREAM_UNREACHABLE": Kind(
        502,
        "UNAVAILABLE",
        "server_error",
        "No connection to Gemini, or it broke before an answer began.",
        "Try again; check POLLUX_UPSTREAM and the network.",
    ),
    "UPSTREAM_ERROR": Kind(
        503,
        "UNAVAILABLE",
        "server_error",
        "Gemini began a stream with an error instead of content, on every attempt.",
        "Try again later, or another model.",
    ),
    "QUOTA_EXHAUSTED_TODAY": Kind(
        503,
        "UNAVAILABLE",
        "server_error",
        "The day's quota is spent in every project.",
        "Wait until midnight Pacific time (Retry-After), or add a project.",
    ),
    "NO_USABLE_KEY": Kind(
        503,
        "UNAVAILABLE",
        "server_error",
        "There is no key, or every key is set aside.",
        "Run `pollux keys check`, then add or mend keys.",
    ),
    "OVERLOADED_GATEWAY": Kind(
        503,
        "UNAVAILABLE",
        "server_error",
        "POLLUX_MAX_CONCURRENT or POLLUX_BODY_MEMORY is reached.",
        "Try again after Retry-After.",
    ),
    "STORE_DOWN": Kind(
        503,
        "UNAVAILABLE",
        "server_error",
        "The store that counts quotas does not answer; nothing was sent.",
        "Try again after Retry-After; the gateway's log names the store.",
    ),
    "UPSTREAM_TIMEOUT": Kind(
        504,
        "DEADLINE_EXCEEDED",
        "server_error",
        "Gemini did not answer within POLLUX_TIMEOUT.",
        "Try again, or raise it.",
    ),
}


class WireError(Exception):
    """A request that cannot be understood. `code` is one of ERRORS."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def error_body(
    api: str,
    http: int,
    status: str,
    message: str,
    *,
    reason: str,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> bytes:
    """Google's shape, with what OpenAI's clients look for beside it where theirs is the API that was called."""
    return json.dumps({"error": _fields(api, http, status, message, reason, retry_after, request_id)}).encode() + b"\n"


def _fields(
    api: str, http: int, status: str, message: str, reason: str, retry_after: float | None, request_id: str | None
) -> dict[str, Any]:
    info: dict[str, Any] = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "pollux"}
    if request_id:
        info["metadata"] = {"request_id": request_id}
    details = [info]
    if retry_after is not None and math.isfinite(retry_after):
        delay = f"{max(1, math.ceil(retry_after))}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    fields: dict[str, Any] = {"code": http, "message": message, "status": status, "details": details}
    if api == "openai":
        fields |= {
            "code": reason.lower(),
            "type": ERRORS[reason].openai if reason in ERRORS else "server_error",
            "param": None,
        }
    return fields


def stream_error(form: str, http: int, status: str, message: str) -> bytes:
    """What is said when a stream that has begun breaks, so that the SDKs raise an error of theirs.

    Native SSE: a raw object on a line of its own without `data:`, as Google does. An array's element ends the array.
    """
    fields = {"code": http, "message": message, "status": status}
    text = json.dumps({"error": fields}).encode()
    match form:
        case "openai-sse":
            return b"\n\ndata: " + text + b"\n\n"
        case "array":
            return b"\n,\n" + text + b"]"
        case _:
            return b"\n" + text + b"\n"


def markdown() -> str:
    """The table of docs/errors.md."""
    rows = [
        f"| `{reason}` | {kind.http} `{kind.status}` | {kind.when} | {kind.remedy} |" for reason, kind in ERRORS.items()
    ]
    return "\n".join(["| reason | status | when | what to do |", "|---|---|---|---|", *rows])
