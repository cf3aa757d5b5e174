"""PURE. Where a client finds this gateway: the address that stands in what it is told, and the path below it.

POLLUX_PUBLIC_URL says it; else the request itself does.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pollux.gemini.errors import GatewayError
from pollux.relay.client import Scope, header

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII
)
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,64}){0,8}", re.ASCII)


def own_base(scope: Scope, public_url: str, *, proxied: bool) -> str:
    """The base URL of this gateway as the client knows it, without a slash at its end.

    `proxied`: what X-Forwarded-… say is a proxy's word, as on Cloud Run; elsewhere anybody could have written it. A
    client that names a host of its own choice there, or in Host, gets an answer that points there, and nobody else.
    """
    if public_url:
        return public_url
    headers = scope["headers"]
    host = (proxied and _forwarded(headers, b"x-forwarded-host")) or header(headers, b"host") or ""
    if _HOST.fullmatch(host) is None:
        raise GatewayError("BAD_REQUEST", "the Host header names no host, so no address can be made of it")
    scheme = scope.get("scheme", "http")
    prefix = scope.get("root_path", "")
    if proxied:
        scheme = _forwarded(headers, b"x-forwarded-proto") or scheme
        prefix = _forwarded(headers, b"x-forwarded-prefix").rstrip("/") or prefix
    if scheme not in ("http", "https"):
        raise GatewayError("BAD_REQUEST", "X-Forwarded-Proto is neither http nor https")
    prefix = prefix.rstrip("/")
    if _PREFIX.fullmatch(prefix) is None:
        raise GatewayError("BAD_REQUEST", "the prefix under which the gateway is mounted is no plain path")
    return f"{scheme}://{host}{prefix}"


def _forwarded(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The first of several proxies' values: that of the one nearest to the client."""
    return (header(headers, name) or "").partition(",")[0].strip()


def inside(scope: Scope, public_url: str) -> Scope:
    """The scope with the path as the API has it: without the prefix under which the gateway is mounted, if it is there.

    A server's root_path stands in front of every path; the path of POLLUX_PUBLIC_URL may be taken off on the way.
    """
    prefixes = [
        found for found in (scope.get("root_path", ""), urlsplit(public_url).path if public_url else "") if found
    ]
    if not prefixes:
        return scope
    path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
    for prefix in prefixes:
        prefix = prefix.rstrip("/")
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            path = path[len(prefix) :] or "/"
            if raw.startswith(prefix.encode()):
                raw = raw[len(prefix.encode()) :] or b"/"
    return scope if path == scope["path"] else {**scope, "path": path, "raw_path": raw}
