"""PURE. What must not pass, however it is spelt: paths that lead out or around, parameters that carry credentials."""

import re
from urllib.parse import quote, unquote

from pollux.gemini.errors import GatewayError

# What may stand in front of a path of the API, slashes and matrix parameters included.
_FRONT = r"^(?:/+(?:resumable|upload|download|openai|v\d\w*)(?:;[^/]*)?)*/+"
# What would hand out a credential or bypass the gateway: tokens of one's own, other people's access, calls of Google's
# to somewhere else, and calls wrapped in calls, whose inner paths nobody here would see.
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
"""Query parameters that never travel, with or without $: credentials, and ways to say headers in a query."""

LONGEST_PATH = 8192

_SPACED = re.compile(r"[^!-~]|[#\\]")  # neither is in a raw path or query; # would cut the rest off
_QUERY_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in "#\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?=[/;?#]|$)")


def sound(path: str) -> str:
    """The path, if it stays a path wherever it is appended, and stays below its root however often it is decoded."""
    if not path.startswith("/"):
        raise GatewayError("BAD_REQUEST", "the path does not begin with a slash")
    if len(path) > LONGEST_PATH:
        raise GatewayError("BAD_REQUEST", f"the path has more than {LONGEST_PATH} characters")
    path = _ascii(path)
    decoded = _decoded(path)
    if _SPACED.search(path) or "?" in path or _CONTROL.search(decoded):
        raise GatewayError("BAD_REQUEST", "the path has characters that no path of the API has")
    if _DOTS.search(decoded):
        raise GatewayError("BAD_REQUEST", "the path has a segment . or .., which no path of the API has")
    return path


def _ascii(text: str) -> str:
    """Bytes beyond ASCII, which some clients send raw, as they should have been sent."""
    if text.isascii():
        return text
    try:
        raw = text.encode("latin-1")  # as a server hands over what it read
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)


def _decoded(text: str) -> str:
    """Until nothing is left to decode: what hides behind %252e is seen, however little of it Google would decode."""
    for _ in range(8):
        if "%" not in text or (plain := unquote(text)) == text:
            break
        text = plain
    return text


def guard_of(path: str) -> str:
    """The name under GUARDS, "" for a path that is free."""
    decoded = _decoded(path).lower()
    return next((name for name, pattern in _GUARDS if pattern.search(decoded)), "")


def gated(path: str) -> str:
    """The path, held to what a client's own is held to: for paths that were made here, of a model's name."""
    path = sound(path)
    if guard := guard_of(path):
        raise GatewayError("FORBIDDEN_PATH", f"the model's name makes a path that is closed here: {guard}")
    return path


def strip_query(query: str) -> str:
    """The query without CREDENTIALS. Order and encoding of the rest stay exactly as they are."""
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
