"""PURE. The outside of a request: which call it is, what of it travels upstream, and what comes back of an answer.

Bodies are in `wire_body`, errors in `wire_error`, streamed answers in `stream`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from pollux.wire_error import WireError

RawHeaders = Iterable[tuple[bytes, bytes]]

COUNTED = frozenset({"generate", "embed", "predict"})
KINDS = {
    "generateContent": "generate",
    "streamGenerateContent": "generate",
    "generateAnswer": "generate",
    "countTokens": "count",
    "embedContent": "embed",
    "batchEmbedContents": "embed",
    "predict": "predict",
}
OPENAI_KINDS = {
    "chat/completions": "generate",
    "completions": "generate",
    "embeddings": "embed",
    "images/generations": "predict",
}
OPENAI_ALIASES = frozenset({*OPENAI_KINDS, "models"})
GUARDS = (
    ("auth_tokens", re.compile(r"(^|/)auth_?tokens(/|:|$)", re.I)),
    ("permissions", re.compile(r"/permissions(/|:|$)", re.I)),
    ("transferOwnership", re.compile(r":transferownership(/|$)", re.I)),
    ("webhooks", re.compile(r"(^|/)webhooks(/|:|$)", re.I)),
    ("files:register", re.compile(r"(^|/)files:register(/|$)", re.I)),
)
DEFAULT_VERSION = "v1beta"

_VERSION = re.compile(r"v\d[0-9a-z]*$")
_CREDENTIALS = frozenset({"key", "access_token", "oauth_token"})
_PLAIN = re.compile(r"/(?P<version>v\d[0-9a-z]*)/models/(?P<model>[\w.@-]+):(?P<verb>[A-Za-z]+)")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\?#]|[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Call:
    api: str
    """native or openai"""
    path: str
    """Still percent-encoded; what goes upstream."""
    query: str = ""
    """In the client's order and encoding, without credentials."""
    model: str | None = None
    verb: str | None = None
    stream: str = "no"
    """no, sse or array"""
    kind: str = "other"
    """generate, count, embed, predict, list-models, get-model, guarded or other"""
    guard: str = ""

    @property
    def counted(self) -> bool:
        """It takes quota."""
        return self.kind in COUNTED


def read_target(method: str, raw_path: bytes, raw_query: bytes, *, bearer: bool) -> Call:
    """The call that a request line names. `bearer`: the client speaks as OpenAI's clients do, with a Bearer token."""
    path, query = raw_path.decode("latin-1"), strip_query(raw_query.decode("latin-1"))
    if (found := _PLAIN.fullmatch(path)) is not None and method == "POST":
        return _native(path, query, found["model"], found["verb"])
    if _FORBIDDEN.search(path):
        raise WireError(400, "BAD_REQUEST", "the path has characters that no path of the API has")
    segments = [segment for segment in path.split("/") if segment]
    if any(unquote(unquote(segment)).strip() in (".", "..") or _hides_slash(segment) for segment in segments):
        raise WireError(400, "BAD_REQUEST", "the path has segments that no path of the API has")
    plain = "/".join(unquote(segment) for segment in segments)
    for guard, pattern in GUARDS:
        if pattern.search("/" + plain):
            return Call("native", "/" + "/".join(segments), query, kind="guarded", guard=guard)
    if (openai := _openai(method, segments, query, bearer)) is not None:
        return openai
    return _native_segments(method, _collapsed(segments), query)


def _hides_slash(segment: str) -> bool:
    # An encoded slash that an upstream decodes would make two segments of one; names never have any.
    return re.search(r"%(25)*(2f|5c)", segment, re.I) is not None


def _collapsed(segments: list[str]) -> list[str]:
    """One version, the last that was given; `upload` stays in front of it. Without any, the usual one."""
    rest = segments
    upload = bool(rest) and rest[0] == "upload"
    rest = rest[upload:]
    version = DEFAULT_VERSION
    while rest and _VERSION.match(rest[0]):
        version, rest = rest[0], rest[1:]
        if rest and rest[0] == "upload" and not upload:
            upload, rest = True, rest[1:]
    return [*(["upload"] if upload else []), version, *rest]


def _native_segments(method: str, segments: list[str], query: str) -> Call:
    path = "/" + "/".join(segments)
    if segments[0] == "upload":
        return Call("native", path, query)
    match segments[1:]:
        case ["models"] if method in ("GET", "HEAD"):
            return Call("native", path, query, kind="list-models")
        case ["models", name]:
            model, colon, verb = _unescaped(name).partition(":")
            if not colon and method in ("GET", "HEAD"):
                return Call("native", path, query, model=model, kind="get-model")
            if colon and method == "POST":
                return _native(path.replace(name, _unescaped(name)), query, model, verb)
        case ["tunedModels" | "dynamic" as collection, name] if method == "POST":
            model, colon, verb = _unescaped(name).partition(":")
            if colon:
                return _native(path.replace(name, _unescaped(name)), query, f"{collection}/{model}", verb)
    return Call("native", path, query)


def _unescaped(name: str) -> str:
    return re.sub("%3a", ":", name, flags=re.I)


def _native(path: str, query: str, model: str, verb: str) -> Call:
    stream = "no"
    if verb == "streamGenerateContent":
        stream = "sse" if re.search(r"(^|&)(\$|%24)?alt=sse(&|$)", query, re.I) else "array"
    return Call("native", path, query, unquote(model), verb, stream, KINDS.get(verb, "other"))


def _openai(method: str, segments: list[str], query: str, bearer: bool) -> Call | None:
    """`/{version}/openai/…`, its aliases without `openai`, and any doubled version in between."""
    rest = segments
    version = DEFAULT_VERSION
    named = False
    first = True
    while rest and (_VERSION.match(rest[0]) or rest[0] == "openai"):
        if rest[0] == "openai":
            named = True
        elif first and not (bearer and rest[0] == "v1"):
            version, first = rest[0], False
        rest = rest[1:]
    what = "/".join(rest)
    if not named and (what not in OPENAI_ALIASES or (what == "models" and not bearer)):
        if not (bearer and len(rest) == 2 and rest[0] == "models" and ":" not in _unescaped(rest[1])):
            return None
        if method not in ("GET", "HEAD"):
            return None
    if not named and version == "v1":
        version = DEFAULT_VERSION  # Google has the OpenAI surface under v1beta only
    path = f"/{version}/openai/{what}"
    if what == "models" and method in ("GET", "HEAD"):
        return Call("openai", path, query, verb=what, kind="list-models")
    if len(rest) == 2 and rest[0] == "models" and method in ("GET", "HEAD"):
        return Call("openai", path, query, model=unquote(rest[1]), verb="models", kind="get-model")
    kind = OPENAI_KINDS.get(what, "other") if method == "POST" else "other"
    return Call("openai", path, query, verb=what, kind=kind)


def with_body(call: Call, parsed: Mapping[str, Any]) -> Call:
    """An OpenAI-shaped call names its model and its stream in its body."""
    model = parsed.get("model")
    if not isinstance(model, str) or not model:
        return call
    stream = "sse" if parsed.get("stream") is True else "no"
    return replace(call, model=model.removeprefix("models/"), stream=stream)


def path_for(call: Call, model: str) -> str:
    """The same native path with another model."""
    head, _, last = call.path.rpartition("/")
    if "/" in (call.model or ""):
        head = head.rpartition("/")[0] + "/models"
    _, colon, verb = last.partition(":")
    return f"{head}/{quote(model, safe='')}{colon}{verb}"


def strip_query(query: str) -> str:
    """Without credentials; order and encoding of the rest stay."""
    if "=" not in query and "&" not in query:
        return "" if unquote(query).lower() in _CREDENTIALS else query
    kept = [part for part in query.split("&") if unquote(part.partition("=")[0]).lower() not in _CREDENTIALS]
    return "&".join(kept)


# What travels upstream: an allow-list. Credentials, cookies, origins and whatever speaks of the caller stay here.
TO_UPSTREAM = frozenset(
    (
        b"accept accept-language api-revision content-encoding content-language content-range content-type "
        b"if-match if-modified-since if-none-match range user-agent x-goog-api-client x-goog-fieldmask "
        b"x-goog-field-mask x-goog-request-params x-goog-upload-command x-goog-upload-file-name "
        b"x-goog-upload-header-content-length x-goog-upload-header-content-type x-goog-upload-offset "
        b"x-goog-upload-protocol x-server-timeout"
    ).split()
)
# What comes back: an allow-list too. Cookies, alternative services and authentication schemes are Google's with us.
TO_CLIENT = frozenset(
    (
        b"accept-ranges cache-control content-disposition content-encoding content-language content-length "
        b"content-range content-type etag expires last-modified retry-after server-timing x-gemini-service-tier "
        b"x-goog-upload-chunk-granularity x-goog-upload-control-url x-goog-upload-header-content-type "
        b"x-goog-upload-size-received x-goog-upload-status x-goog-upload-url x-guploader-uploadid"
    ).split()
)


def upstream_headers(raw: RawHeaders, *, content: bool) -> list[tuple[str, str]]:
    """The client's headers that travel. Answers are asked for uncompressed, so that they can be read as they pass."""
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in raw
        if name in TO_UPSTREAM and (content or name not in (b"content-type", b"content-encoding"))
    ]
    kept.append(("accept-encoding", "identity"))
    return kept


def client_headers(raw: RawHeaders) -> list[tuple[bytes, bytes]]:
    return [(lower, value) for name, value in raw if (lower := name.lower()) in TO_CLIENT]


def client_deadline(raw: RawHeaders) -> tuple[float | None, float | None]:
    """(x-pollux-max-wait, X-Server-Timeout) in seconds, None where not sent."""
    own = server = None
    for name, value in raw:
        if name == b"x-pollux-max-wait":
            own = _seconds(value)
            if own is None:
                raise WireError(400, "BAD_REQUEST", "x-pollux-max-wait must be a number of seconds, 0 or more")
        elif name == b"x-server-timeout":
            server = _seconds(value)
    return own, server


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
