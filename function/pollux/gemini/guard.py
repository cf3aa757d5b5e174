"""Keeps back paths that leave the API or get around the gateway, and query parameters with credentials."""

import re
from urllib.parse import quote, unquote

from pollux.gemini.errors import GatewayError

# What may precede a path of the API, with slashes and matrix parameters.
_FRONT = r"^(?:/+(?:resumable|upload|download|openai|v\d\w*)(?:;[^/]*)?)*/+"
# Paths that would hand out a credential or bypass the gateway: new tokens, access for other people, webhooks, and calls
# wrapped in calls, whose inner paths the gateway would not see.
_GUARDS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("auth_tokens", r"/auth_?tokens(?![\w-])"),
        ("permissions", r"/permissions(?![\w-])"),
        ("transferOwnership", r":transferownership(?![\w-])"),
        ("webhooks", r"/webhooks(?![\w-])"),
        ("files:register", r"/files:register(?![\w-])"),
        ("batch", _FRONT + r"batch(?![\w-])"),
        ("$rpc", r"/\$rpc(?![\w-])|/google\.[\w.]*service/|" + _FRONT + r"google\.\w"),
    )
)
GUARDS = tuple(name for name, _ in _GUARDS)

CREDENTIALS = frozenset(
    {"key", "access_token", "oauth_token", "bearer_token", "userproject", "httpheaders", "httpmethod"}
)
"""Query parameters that never go upstream, with or without $: credentials, and headers written in the query."""

LONGEST_PATH = 8192

_SPACED = re.compile(r"[^!-~]|[#\\]")  # never in a raw path or query; # would cut off the rest
_QUERY_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in "#\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?=[/;?#]|$)")


def safe_path(path: str) -> str:
    """The path, if it stays below its root, wherever it is appended and however often it is decoded."""
    if not path.startswith("/"):
        raise GatewayError("BAD_REQUEST", "the path does not begin with a slash")
    if len(path) > LONGEST_PATH:
        raise GatewayError("BAD_REQUEST", f"the path has more than {LONGEST_PATH} characters")
    path = _ascii(path)
    decoded = _decoded(path)
    if _SPACED.search(path) or "?" in path or _CONTROL.search(decoded):
        raise GatewayError("BAD_REQUEST", "the path has characters that are not allowed in a path")
    if _DOTS.search(decoded):
        raise GatewayError("BAD_REQUEST", "the path has a segment . or .., which is not allowed")
    return path


def _ascii(text: str) -> str:
    """Percent-encodes bytes beyond ASCII, which some clients send raw."""
    if text.isascii():
        return text
    try:
        raw = text.encode("latin-1")  # as an ASGI server passes them
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)


def _decoded(text: str) -> str:
    """Decodes until nothing changes, so that %252e is seen too, even if Google would decode it only once."""
    for _ in range(8):
        if "%" not in text or (plain := unquote(text)) == text:
            break
        text = plain
    return text


def guard_of(path: str) -> str:
    """Which of GUARDS the path falls under; "" for none."""
    decoded = _decoded(path).lower()
    return next((name for name, pattern in _GUARDS if pattern.search(decoded)), "")


def allowed_path(path: str) -> str:
    """The path, checked like a client's own: for paths that the gateway made from a model's name."""
    path = safe_path(path)
    if guard := guard_of(path):
        raise GatewayError("FORBIDDEN_PATH", f"the model's name makes a guarded path: {guard}")
    return path


def strip_query(query: str) -> str:
    """The query without CREDENTIALS. The rest keeps its order and encoding."""
    if query == "alt=sse":
        return query
    query = _ascii(query)
    if _SPACED.search(query):
        query = quote(query, safe=_QUERY_SAFE)
    parts = query.split("&")
    kept = [part for part in parts if _parameter(part) not in CREDENTIALS]
    return query if len(kept) == len(parts) else "&".join(kept)


def _parameter(part: str) -> str:
    return _decoded(part.partition("=")[0].replace("+", " ")).strip().lower().removeprefix("$")
