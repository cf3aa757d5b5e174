"""Which headers are passed on, to Gemini and to clients: two allow-lists. And how long a client will wait."""

import math
from collections.abc import Container, Iterable

from pollux.gemini.errors import GatewayError
from pollux.gemini.guard import strip_query

RawHeaders = Iterable[tuple[bytes, bytes]]

# Left out on purpose, besides credentials, cookies and hop-by-hop headers: referer and origin (keys can be restricted
# to some), openai-* (Google takes them for credentials), x-goog-user-project (bills another project),
# x-goog-request-params (names the model, which may change), accept-language (translates the errors that verdicts read),
# conditions such as if-none-match (a 304 would look like a refusal), x-stainless-*, x-forwarded-*, x-pollux-*.
TO_UPSTREAM = {
    name.encode(): name
    for name in (
        "accept",
        "api-revision",
        "content-range",
        "range",
        "user-agent",
        "x-goog-api-client",
        "x-goog-field-mask",
        "x-goog-fieldmask",
        "x-goog-upload-command",
        "x-goog-upload-file-name",
        "x-goog-upload-header-content-length",
        "x-goog-upload-header-content-type",
        "x-goog-upload-offset",
        "x-goog-upload-protocol",
        "x-server-timeout",
    )
}
OF_CONTENT = {name.encode(): name for name in ("content-encoding", "content-type")}
"""Sent only with a body. The body's length is set by the connection."""

# Left out on purpose, besides cookies and hop-by-hop headers: alt-svc (would lead clients around the gateway),
# www-authenticate (names Google's schemes, not ours), location (redirects are not followed), server and date (the
# gateway's own), vary (speaks of headers that never reached Google).
TO_CLIENT = frozenset(
    {
        b"accept-ranges",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-range",
        b"content-type",
        b"etag",
        b"expires",
        b"last-modified",
        b"retry-after",
        b"server-timing",
        b"x-content-type-options",
        b"x-gemini-service-tier",
        b"x-goog-upload-chunk-granularity",
        b"x-goog-upload-control-url",
        b"x-goog-upload-header-content-type",
        b"x-goog-upload-size-received",
        b"x-goog-upload-status",
        b"x-goog-upload-url",
        b"x-guploader-uploadid",
    }
)
SESSION_URLS = (b"x-goog-upload-url", b"x-goog-upload-control-url")
"""Headers that have the URL of an upload's session."""


def upstream_headers(raw: RawHeaders, *, content: bool) -> list[tuple[str, str]]:
    """Those of a client's headers (lower case, as in ASGI) that go upstream. `content`: there is a body.

    Asks for `identity`, so that answers can be read while they pass. The caller adds the credential.
    """
    kept, described = [], []
    for name, value in raw:
        if (known := TO_UPSTREAM.get(name)) is not None:
            kept.append((known, value.decode("latin-1")))
        elif content and (known := OF_CONTENT.get(name)) is not None:
            described.append((known, value.decode("latin-1")))
    return [*kept, *described, ("accept-encoding", "identity")]


def client_headers(raw: RawHeaders, more: Container[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """Those of an answer's headers that go to the client. `more`: names (lower case) that this call needs as well."""
    kept = []
    for name, value in raw:
        if (lower := name.lower()) in TO_CLIENT or lower in more:
            kept.append((lower, _without_credentials(value) if lower in SESSION_URLS else value))
    return kept


def _without_credentials(address: bytes) -> bytes:
    path, mark, query = address.decode("latin-1").partition("?")
    return (path + mark + strip_query(query)).encode("latin-1")


def client_deadline(raw: RawHeaders) -> tuple[float | None, float | None]:
    """(x-pollux-max-wait, X-Server-Timeout) in seconds; None: not sent."""
    own = server = None
    for name, value in raw:
        if name == b"x-pollux-max-wait":
            own = _seconds(value)
            if own is None:
                raise GatewayError("BAD_REQUEST", "x-pollux-max-wait must be a number of seconds, 0 or more")
        elif name == b"x-server-timeout":  # Google's own header: Google judges a wrong value
            server = _seconds(value)
    return own, server


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
