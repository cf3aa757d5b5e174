"""Chooses the transport to an upstream: our own connections, or httpx where a proxy or POLLUX_HTTP asks for it."""

from dataclasses import dataclass

from pollux.backends.connection import HttpUpstream
from pollux.backends.upstream import Upstream
from pollux.settings import Proxy, proxy_for


@dataclass(frozen=True, slots=True)
class Transport:
    """Its text is for people and holds no credentials."""

    httpx: bool = False
    proxy: Proxy | None = None

    def __str__(self) -> str:
        if self.proxy is not None:
            return f"httpx through the proxy {self.proxy.url}"
        return "httpx" if self.httpx else "own connections"


def transport_for(base: str, http: str = "auto") -> Transport:
    """`http` is the setting POLLUX_HTTP. Raises SettingsError if the environment names an invalid proxy."""
    if http == "own":
        return Transport()
    proxy = proxy_for(base)
    return Transport(http == "httpx" or proxy is not None, proxy)


def open_upstream(base: str, *, timeout: float, connect_timeout: float, http: str = "auto") -> Upstream:
    chosen = transport_for(base, http)
    if not chosen.httpx:
        return HttpUpstream(base, timeout=timeout, connect_timeout=connect_timeout)
    from pollux.backends.through_httpx import HttpxUpstream

    return HttpxUpstream(base, timeout=timeout, connect_timeout=connect_timeout, proxy=chosen.proxy)
