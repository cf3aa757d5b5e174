"""The way to Gemini: what every transport offers, and which one is taken. What an answer means is not known here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pollux.backends.connection import HttpUpstream, Streamed, UpstreamError
from pollux.settings import Proxy, proxy_for

__all__ = ["Answer", "HttpUpstream", "Streamed", "Upstream", "UpstreamError", "Way", "open_upstream", "way_to"]


class Answer(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def length(self) -> int | None:
        """Content-Length, if it was sent."""

    async def read(self) -> bytes:
        """All of the rest, if that is no more than READ_MOST. Raises UpstreamError."""

    async def chunk(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises UpstreamError."""

    def close(self) -> None:
        """Stop reading: the connection is closed unless the answer was read to its end."""


class Upstream(Protocol):
    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        """`target` is the raw path and query. Nothing is sent twice, and nothing is added but Host and the length.

        Raises UpstreamError when no answer begins, and what a body raises that is streamed. An answer may begin before
        such a body has ended: the rest of it is not asked for then.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Way:
    """How an upstream is reached. Its text is for people and holds no credentials."""

    httpx: bool = False
    proxy: Proxy | None = None

    def __str__(self) -> str:
        if self.proxy is not None:
            return f"httpx through the proxy {self.proxy.url}"
        return "httpx" if self.httpx else "own connections"


def way_to(base: str, http: str = "auto") -> Way:
    """`http`: the setting POLLUX_HTTP. Raises SettingsError if the environment names a proxy that is none."""
    if http == "own":
        return Way()
    proxy = proxy_for(base)
    return Way(http == "httpx" or proxy is not None, proxy)


def open_upstream(base: str, *, timeout: float, connect_timeout: float, http: str = "auto") -> Upstream:
    way = way_to(base, http)
    if not way.httpx:
        return HttpUpstream(base, timeout=timeout, connect_timeout=connect_timeout)
    from pollux.backends.through_httpx import HttpxUpstream

    return HttpxUpstream(base, timeout=timeout, connect_timeout=connect_timeout, proxy=way.proxy)
