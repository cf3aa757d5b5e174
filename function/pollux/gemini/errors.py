"""Every error that Pollux itself makes, in the shapes of both APIs. docs/errors.md shows TABLE."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Google's `status` for an HTTP status. Any other is INVALID_ARGUMENT, unless the error names its own."""


class ErrorKind(NamedTuple):
    code: str
    http: int
    when: str
    remedy: str
    own_status: str = ""

    @property
    def status(self) -> str:
        return self.own_status or _STATUSES.get(self.http, "INVALID_ARGUMENT")


# fmt: off
TABLE = (
    ErrorKind("BAD_REQUEST", 400,
            "The path, an `x-pollux-…` header, the body or its compression is not valid.",
            "Correct what the message names."),
    ErrorKind("UNKNOWN_KEY", 400,
            "`x-pollux-key` names no key of the pool (the message says which there are), or one that is disabled.",
            "Correct the header, or leave it out."),
    ErrorKind("TOO_LARGE_FOR_QUOTA", 400,
            "The request has more input tokens than any project may send in one minute; waiting does not help.",
            "Send less at once, or add a project with a larger limit."),
    ErrorKind("TWO_OWNERS", 400,
            "The request names resources of two projects, and neither can use the other's; the message names them.",
            "Make them in one project (`x-pollux-key: ID` chooses it), or send a request for each."),
    ErrorKind("NO_TOKEN", 401,
            "No Pollux token was sent, or a wrong one.",
            "Send a client token as `x-goog-api-key` or `Authorization: Bearer`; `?key=` needs `POLLUX_QUERY_TOKEN`."),
    ErrorKind("BAD_UPLOAD_ID", 401,
            "The `upload_id` in the upload URL is forged, older than a day, or of a key or client that was removed.",
            "Start the upload again."),
    ErrorKind("UPLOAD_OF_ANOTHER", 403,
            "The upload URL was given to one client, and the request has the token of another.",
            "Start an upload with this token."),
    ErrorKind("FILE_OF_ANOTHER", 403,
            "The request names another client's pooled file, a copy of one, or a deleted file. In Google's words.",
            "Upload the file with this token."),
    ErrorKind("FORBIDDEN_PATH", 403,
            "The path would hand out, or get around, what the gateway protects.",
            "If that is wanted, name it in `POLLUX_ALLOW_PATHS`; the message says which name."),
    ErrorKind("UPLOAD_GONE", 404,
            "The upload of a pooled file is not known any more. In Google's words.",
            "Start the upload again."),
    ErrorKind("FILE_EXISTS", 409,
            "The name chosen for a pooled file is taken. In Google's words.",
            "Choose another name, or none.", "ALREADY_EXISTS"),
    ErrorKind("UPLOAD_RACE", 409,
            "Two requests of one upload came at once, and the other one was faster.",
            "Ask with `query` how much has arrived, and continue there.", "ABORTED"),
    ErrorKind("OWNER_GONE", 409,
            "The request names a resource of a project for which the pool has no key any more; the message names both.",
            "Add a key of that project again, or make the resource again.", "FAILED_PRECONDITION"),
    ErrorKind("BODY_STALLED", 408,
            "The body stopped coming for a minute before it was complete.",
            "Send it again; look at the network between the client and the gateway."),
    ErrorKind("BODY_TOO_LARGE", 413,
            "The body, or what it inflates to, is larger than `POLLUX_MAX_BODY`.",
            "Upload large files and refer to them, or raise the setting."),
    ErrorKind("UNREADABLE_ENCODING", 415,
            "The gateway must read the body, and does not know its content-encoding.",
            "Send it as gzip, as deflate or uncompressed."),
    ErrorKind("QUOTA_BUSY", 429,
            "No project has a free slot within the time that the request may wait, or quota for a tool that it uses.",
            "Try again after `Retry-After`, wait longer (`POLLUX_MAX_WAIT`), or add a project."),
    ErrorKind("MODEL_NOT_AVAILABLE", 429,
            "The model's limit is 0 in every project, or none of them has access to it.",
            "Choose another model, or add a project on a tier that has it."),
    ErrorKind("HEAD_TOO_LARGE", 431,
            "The path and the headers together are larger than 64 KiB.",
            "Send fewer or shorter headers; move large values to the body."),
    ErrorKind("INTERNAL", 500,
            "A fault in Pollux itself.",
            "Read the gateway's log, and report it with the request's id."),
    ErrorKind("NO_LIVE_API", 501,
            "A WebSocket was requested: the Live API is not served.",
            "Call the Live API at Google directly."),
    ErrorKind("UPSTREAM_UNREACHABLE", 502,
            "There is no connection to Gemini, it broke before an answer began, or the answer was not valid HTTP.",
            "Try again; check `POLLUX_UPSTREAM` and the network."),
    ErrorKind("UPSTREAM_ERROR", 503,
            "On every attempt, Gemini began a stream with an error in place of content, or an upload without a URL.",
            "Try again later, or with another model."),
    ErrorKind("QUOTA_EXHAUSTED_TODAY", 503,
            "The model's quota for the day is used up in every project.",
            "Wait until midnight Pacific time (`Retry-After`), choose another model, or add a project."),
    ErrorKind("NO_USABLE_KEY", 503,
            "There is no key, or every key is set aside.",
            "Run `pollux keys check`, then add or repair keys."),
    ErrorKind("OVERLOADED_GATEWAY", 503,
            "`POLLUX_MAX_CONCURRENT` requests are under way, or their bodies fill `POLLUX_BODY_MEMORY`.",
            "Try again after `Retry-After`, or raise the setting that the message names."),
    ErrorKind("NOT_STARTED", 503,
            "The gateway could not start: a setting, the keys, the tokens or the store; its log has the reason.",
            "Correct what the log names. Every request tries the start again, at most once a second."),
    ErrorKind("STOPPING", 503,
            "The gateway is stopping, and this request could not be answered before.",
            "Try again after `Retry-After`: another instance, or the restarted gateway, will serve it."),
    ErrorKind("BLOBS_DOWN", 503,
            "The blob store failed while a file was received or copied.",
            "Send the same chunk again after `Retry-After`; the gateway's log says what is wrong with `POLLUX_BLOBS`."),
    ErrorKind("COPY_PENDING", 503,
            "A pooled file was not copied in time to a project that has room, or no project takes it.",
            "Try again after `Retry-After`: finished copies are kept; or wait longer (`POLLUX_MAX_WAIT`)."),
    ErrorKind("STORE_DOWN", 503,
            "The store that counts quotas does not answer; nothing was sent to Gemini.",
            "Try again after `Retry-After`; the gateway's log says what is wrong with the store."),
    ErrorKind("TOKENS_UNREADABLE", 503,
            "The client tokens cannot be read, so this one cannot be checked.",
            "Try again after `Retry-After`; the gateway's log says why."),
    ErrorKind("UPSTREAM_TIMEOUT", 504,
            "Gemini did not begin to answer within `POLLUX_TIMEOUT`.",
            "Try again, with a smaller request, or raise the setting."),
)
# fmt: on
ERRORS: Mapping[str, ErrorKind] = {kind.code: kind for kind in TABLE}

# OpenAI's `type` of an error.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class GatewayError(Exception):
    """The gateway answers a request with an error of its own. `code` is one of ERRORS."""

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
    """Google's error object for one of ERRORS, with OpenAI's fields added on the OpenAI paths.

    Google's own OpenAI paths answer a list of one, which the openai SDK cannot read: our error is an object.
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
    """The end of a stream that breaks after its start, so that the SDKs raise their own errors. `form`: StreamReader's.

    Native SSE: a raw object of one line, without `data:`. One line feed in front, not two: it ends a half-sent line
    without completing the event, so that google-genai reads the error before it fails on the event. An array gets one
    more element and its end; it stays JSON if it broke between two elements. OpenAI: an event.
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
