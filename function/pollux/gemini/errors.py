"""PURE. Every error that Pollux itself makes, in the shapes of both APIs. docs/errors.md is generated from ERRORS."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    http: int
    status: str
    """Google's name for it."""
    when: str
    remedy: str


ERRORS: Mapping[str, Problem] = {
    "BAD_REQUEST": Problem(
        400,
        "INVALID_ARGUMENT",
        "The path, an `x-pollux-…` header, or the body or its compression is not valid.",
        "Correct what the message names.",
    ),
    "UNKNOWN_KEY": Problem(
        400,
        "INVALID_ARGUMENT",
        "`x-pollux-key` names no key of the pool (the message says which there are), or one that is disabled.",
        "Correct the header, or leave it out.",
    ),
    "TOO_LARGE_FOR_QUOTA": Problem(
        400,
        "INVALID_ARGUMENT",
        "The request has more input tokens than any project may send in one minute, so waiting does not help.",
        "Send less at once, or add a project with a larger limit.",
    ),
    "TWO_OWNERS": Problem(
        400,
        "INVALID_ARGUMENT",
        "The request names resources of two projects, and neither can use what the other owns; the message names them.",
        "Make them in one project (`x-pollux-key: ID` chooses it), or send a request for each.",
    ),
    "NO_TOKEN": Problem(
        401,
        "UNAUTHENTICATED",
        "No token was sent, or none that this gateway knows.",
        "Send a client token as `x-goog-api-key` or `Authorization: Bearer`; `?key=` needs `POLLUX_QUERY_TOKEN`.",
    ),
    "BAD_UPLOAD_ID": Problem(
        401,
        "UNAUTHENTICATED",
        "The `upload_id` in the upload URL is forged, older than a day, or of a key or client that no longer exists.",
        "Begin the upload anew.",
    ),
    "UPLOAD_OF_ANOTHER": Problem(
        403,
        "PERMISSION_DENIED",
        "The upload URL was given to one client, and the request has the token of another.",
        "Begin an upload with this token.",
    ),
    "FILE_OF_ANOTHER": Problem(
        403,
        "PERMISSION_DENIED",
        "A pooled file of another client was named, or a copy of one; or the file was deleted. In Google's words.",
        "Upload the file with this token.",
    ),
    "FORBIDDEN_PATH": Problem(
        403,
        "PERMISSION_DENIED",
        "The path would hand out or bypass what the gateway guards.",
        "If that is wanted, name it in `POLLUX_ALLOW_PATHS`; the message says which name.",
    ),
    "UPLOAD_GONE": Problem(
        404,
        "NOT_FOUND",
        "The upload of a pooled file is not known any more. In Google's words.",
        "Begin the upload anew.",
    ),
    "FILE_EXISTS": Problem(
        409,
        "ALREADY_EXISTS",
        "The name that was chosen for a pooled file is taken. In Google's words.",
        "Choose another name, or none.",
    ),
    "UPLOAD_RACE": Problem(
        409,
        "ABORTED",
        "Two requests of one upload came at once, and the other was faster.",
        "Ask with `query` how much has come, and go on there.",
    ),
    "OWNER_GONE": Problem(
        409,
        "FAILED_PRECONDITION",
        "The request names a resource of a project of which the pool has no key any more; the message names both.",
        "Add a key of that project again, or make the resource anew.",
    ),
    "BODY_STALLED": Problem(
        408,
        "DEADLINE_EXCEEDED",
        "The body stopped coming for a minute before it was complete.",
        "Send it again; look at the network between the client and the gateway.",
    ),
    "BODY_TOO_LARGE": Problem(
        413,
        "INVALID_ARGUMENT",
        "The body, or what it inflates to, is larger than `POLLUX_MAX_BODY`.",
        "Upload large files and refer to them, or raise the setting.",
    ),
    "UNREADABLE_ENCODING": Problem(
        415,
        "INVALID_ARGUMENT",
        "The body must be read here, and its content-encoding is not known.",
        "Send it as gzip, as deflate or uncompressed.",
    ),
    "QUOTA_BUSY": Problem(
        429,
        "RESOURCE_EXHAUSTED",
        "No project has a free slot within the time that the request may wait, or quota for a tool that it asks for.",
        "Try again after `Retry-After`, wait longer (`POLLUX_MAX_WAIT`), or add a project.",
    ),
    "MODEL_NOT_AVAILABLE": Problem(
        429,
        "RESOURCE_EXHAUSTED",
        "The model's limit is 0 in every project, or none of them has access to it.",
        "Choose another model, or add a project on a tier that has it.",
    ),
    "HEAD_TOO_LARGE": Problem(
        431,
        "INVALID_ARGUMENT",
        "The path and the headers together are larger than 64 KiB.",
        "Send fewer or shorter headers; what is large belongs into the body.",
    ),
    "INTERNAL": Problem(
        500,
        "INTERNAL",
        "A fault in Pollux itself.",
        "Read the gateway's log, and report it with the request's id.",
    ),
    "NO_LIVE_API": Problem(
        501,
        "UNIMPLEMENTED",
        "A WebSocket was asked for: the Live API is not served.",
        "Call the Live API at Google itself.",
    ),
    "UPSTREAM_UNREACHABLE": Problem(
        502,
        "UNAVAILABLE",
        "No connection to Gemini, or it broke before an answer began, or the answer was not valid HTTP.",
        "Try again; check `POLLUX_UPSTREAM` and the network.",
    ),
    "UPSTREAM_ERROR": Problem(
        503,
        "UNAVAILABLE",
        "Gemini began a stream with an error in place of content, on every attempt, or an upload without an address.",
        "Try again later, or with another model.",
    ),
    "QUOTA_EXHAUSTED_TODAY": Problem(
        503,
        "UNAVAILABLE",
        "The day's quota of the model is spent in every project.",
        "Wait until midnight Pacific time (`Retry-After`), choose another model, or add a project.",
    ),
    "NO_USABLE_KEY": Problem(
        503,
        "UNAVAILABLE",
        "There is no key, or every key is set aside.",
        "Run `pollux keys check`, then add or mend keys.",
    ),
    "OVERLOADED_GATEWAY": Problem(
        503,
        "UNAVAILABLE",
        "`POLLUX_MAX_CONCURRENT` requests are under way, or their bodies fill `POLLUX_BODY_MEMORY`.",
        "Try again after `Retry-After`, or raise the setting that the message names.",
    ),
    "NOT_STARTED": Problem(
        503,
        "UNAVAILABLE",
        "The gateway could not start: a setting, the keys, the tokens or the store; its log has the reason.",
        "Mend what the log names. Every request starts it again, at most once a second.",
    ),
    "STOPPING": Problem(
        503,
        "UNAVAILABLE",
        "The gateway was told to stop, and the request came, or would have been answered, too late.",
        "Try again after `Retry-After`: another instance, or the gateway once it runs again, will serve it.",
    ),
    "BLOBS_DOWN": Problem(
        503,
        "UNAVAILABLE",
        "The blob store failed while a file was received or copied, and nothing else could take it.",
        "Send the same chunk again after `Retry-After`; the gateway's log says what is wrong with `POLLUX_BLOBS`.",
    ),
    "COPY_PENDING": Problem(
        503,
        "UNAVAILABLE",
        "A pooled file was not copied in time to the project that has room, or no project takes it.",
        "Try again after `Retry-After`: what was copied stays; or wait longer (`POLLUX_MAX_WAIT`).",
    ),
    "STORE_DOWN": Problem(
        503,
        "UNAVAILABLE",
        "The store that counts quotas does not answer; nothing was sent.",
        "Try again after `Retry-After`; the gateway's log says what is wrong with the store.",
    ),
    "TOKENS_UNREADABLE": Problem(
        503,
        "UNAVAILABLE",
        "The client tokens cannot be read, so this one cannot be checked.",
        "Try again after `Retry-After`; the gateway's log says why.",
    ),
    "UPSTREAM_TIMEOUT": Problem(
        504,
        "DEADLINE_EXCEEDED",
        "Gemini did not begin to answer within `POLLUX_TIMEOUT`.",
        "Try again, with a smaller request, or raise the setting.",
    ),
}

# What OpenAI's clients find as `type`.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class GatewayError(Exception):
    """A request ends with an error of the gateway's own. `code` is one of ERRORS, which has its HTTP status."""

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return ERRORS[self.code].http


def error_body(
    api: str, code: str, message: str, *, retry_after: float | None = None, request_id: str | None = None
) -> bytes:
    """Google's error object for one of ERRORS; OpenAI's clients find the fields that they look for in it as well.

    Google's own OpenAI paths answer a list of one, which the openai SDK cannot read: an error of ours is an object.
    """
    kind = ERRORS[code]
    info: dict[str, Any] = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "pollux"}
    if request_id:
        info["metadata"] = {"request_id": request_id}
    details = [info]
    if retry_after is not None and math.isfinite(retry_after):
        delay = f"{max(1, math.ceil(retry_after))}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": kind.http, "message": message, "status": kind.status, "details": details}
    if api.startswith("openai"):
        error |= _for_openai(kind.http, code)
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def stream_error(form: str, http: int, status: str, message: str, *, begun: bool = True) -> bytes:
    """What ends a stream that breaks after its start, so that the SDKs raise their own errors. `form`: StreamReader's.

    Native SSE: a raw object of one line, without `data:`. One line feed in front, not two: it ends a half-sent line
    without completing the event, so that google-genai reads the error before it stumbles over the event. An array gets
    one element more and its end; it stays JSON if it broke between two elements. OpenAI: an event.
    """
    error: dict[str, Any] = {"code": http, "message": message, "status": status}
    if form.startswith("openai"):
        error |= _for_openai(http, status)
    text = json.dumps({"error": error}).encode()
    if form == "array":
        return (b"\n,\n" if begun else b"[") + text + b"\n]"
    if form.startswith("openai"):
        return (b"\n\n" if begun else b"") + b"data: " + text + b"\n\n"
    return (b"\n" if begun else b"") + text + b"\n"


def _for_openai(http: int, code: str) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(http, "server_error" if http >= 500 else "invalid_request_error")
    return {"code": code, "type": kind, "param": None}


def describe() -> str:
    """ERRORS as a Markdown table: docs/errors.md holds it."""
    rows = [f"| `{name}` | {p.http} `{p.status}` | {p.when} | {p.remedy} |" for name, p in ERRORS.items()]
    return "\n".join(["| reason | status | when | what to do |", "|---|---|---|---|", *rows]) + "\n"
