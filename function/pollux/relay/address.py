"""This gateway's own address, from POLLUX_PUBLIC_URL or the request, and the API's path below it. Pure."""

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

    `proxied`: X-Forwarded-… were set by a proxy, as on Cloud Run; elsewhere a client may have set them. A client that
    makes up a host, there or in Host, changes the addresses in its own answers only.
    """
    if public_url:
        return public_url
    headers = scope["headers"]
    host = (proxied and _forwarded(headers, b"x-forwarded-host")) or header(headers, b"host") or ""
    if _HOST.fullmatch(host) is None:
        raise GatewayError("BAD_REQUEST", "the Host header is not a valid host name")
    scheme = scope.get("scheme", "http")
    prefix = scope.get("root_path", "")
    if proxied:
        scheme = _forwarded(headers, b"x-forwarded-proto") or scheme
        prefix = _forwarded(headers, b"x-forwarded-prefix").rstrip("/") or prefix
    if scheme not in ("http", "https"):
        raise GatewayError("BAD_REQUEST", "X-Forwarded-Proto is neither http nor https")
    prefix = prefix.rstrip("/")
    if _PREFIX.fullmatch(prefix) is None:
        raise GatewayError("BAD_REQUEST", "the prefix under which the gateway is mounted is not a plain path")
    return f"{scheme}://{host}{prefix}"


def _forwarded(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The first of several values: set by the proxy nearest to the client."""
    return (header(headers, name) or "").partition(",")[0].strip()


def inside(scope: Scope, public_url: str) -> Scope:
    """The scope without the prefix under which the gateway is mounted, if its path has it.

    ASGI puts root_path in front of every path. A proxy may have removed the path of POLLUX_PUBLIC_URL already.
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
