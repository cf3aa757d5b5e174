"""through_httpx: proxies, which our own connection does not know. The rest is in test_upstream and test_connection."""

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pollux.backends.connection import HttpUpstream, no_connection
from pollux.backends.through_httpx import HttpxUpstream
from pollux.backends.transport import open_upstream
from pollux.backends.upstream import Upstream, UpstreamError
from tests.backends.servers import OK, ProxyServer, Server, listen, run, server_tls
from tests.backends.test_upstream import HEADERS, Mute, read


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def opened(base: str) -> Upstream:
    return open_upstream(base, timeout=5.0, connect_timeout=1.0)


def through(
    proxy: ProxyServer | Mute, scene: Callable[[Upstream], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, base: str
) -> str:
    """Play it with a proxy that the environment names. Returns the proxy's address."""

    async def play() -> str:
        async with contextlib.AsyncExitStack() as stack:
            place = f"127.0.0.1:{await listen(stack, proxy.serve)}"
            monkeypatch.setenv(f"{base.partition(':')[0].upper()}_PROXY", f"http://someone:a-password@{place}")
            upstream = opened(base)
            try:
                await scene(upstream)
            finally:
                await upstream.close()
            return place

    return run(play())


def test_a_proxy_of_the_environment_is_used_with_its_credentials(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = ProxyServer(), Server(OK)

    async def scene(upstream: Upstream) -> None:
        async with contextlib.AsyncExitStack() as stack:
            proxy.to = ("127.0.0.1", await listen(stack, server.serve, server_tls(certificate)))
            assert await read(upstream) == await read(upstream) == b"{}"

    through(proxy, scene, monkeypatch, "https://gemini.example")
    assert [head.split(b"\r\n")[0] for head in proxy.heads] == [b"CONNECT gemini.example:443 HTTP/1.1"]
    assert b"Proxy-Authorization: Basic c29tZW9uZTphLXBhc3N3b3Jk" in proxy.heads[0]
    assert (len(server.requests), server.connections) == (2, 1)
    assert b"AQ.test-value" not in proxy.heads[0]
    assert b"roxy" not in server.requests[0]
    assert b"\r\nHost: gemini.example\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("https://[2001:db8::5]", b"CONNECT [2001:db8::5]:443 HTTP/1.1"),
        ("http://[2001:db8::5]", b"GET http://[2001:db8::5]:80/ HTTP/1.1"),
    ],
)
def test_an_ipv6_address_is_named_to_a_proxy_in_brackets(
    base: str, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ProxyServer(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async def scene(upstream: Upstream) -> None:
        with contextlib.suppress(UpstreamError):
            await upstream.send("GET", "/", HEADERS, b"")

    through(proxy, scene, monkeypatch, base)
    assert [head.split(b"\r\n")[0] for head in proxy.heads] == [line]


@pytest.mark.parametrize(("address", "trusted"), [("2001:db8::5", True), ("2001:db8::6", False)])
def test_the_certificate_of_an_ipv6_address_is_checked_behind_a_proxy(
    address: str, trusted: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ProxyServer()

    async def scene(upstream: Upstream) -> None:
        async with contextlib.AsyncExitStack() as stack:
            proxy.to = ("127.0.0.1", await listen(stack, Server(OK).serve, server_tls(certificate)))
            with contextlib.nullcontext() if trusted else pytest.raises(UpstreamError, match="CERTIFICATE"):
                assert await read(upstream) == b"{}"

    through(proxy, scene, monkeypatch, f"https://[{address}]")


def test_an_ipv6_address_is_reached_without_a_proxy() -> None:
    server = Server(OK)

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                listener = await asyncio.start_server(server.serve, "::1", 0)
            except OSError:
                pytest.skip("no IPv6 on this machine")
            stack.callback(listener.close)
            port = listener.sockets[0].getsockname()[1]
            upstream = open_upstream(f"http://[::1]:{port}", timeout=5.0, connect_timeout=1.0, http="httpx")
            assert await read(upstream) == b"{}"
            await upstream.close()

    run(scene())


@pytest.mark.parametrize("base", ["https://gemini.example", "http://gemini.example"])
def test_a_proxy_may_want_tls_itself(base: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, server = ProxyServer(), Server(OK)
    tls = server_tls(certificate) if base.startswith("https") else None

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            place = f"127.0.0.1:{await listen(stack, proxy.serve, server_tls(certificate))}"
            monkeypatch.setenv("ALL_PROXY", f"https://{place}")
            proxy.to = ("127.0.0.1", await listen(stack, server.serve, tls))
            upstream = opened(base)
            assert await read(upstream) == await read(upstream) == b"{}"
            await upstream.close()

    run(scene())
    assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("base", ["https://gemini.example", "http://gemini.example"])
@pytest.mark.parametrize(
    ("status", "why"),
    [("407 Proxy Authentication Required", "answered 407: it wants other credentials"), ("403 Forbidden", "403")],
)
def test_a_proxy_that_refuses_is_named(base: str, status: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ProxyServer(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    said: list[UpstreamError] = []

    async def scene(upstream: Upstream) -> None:
        if base.startswith("http:") and "403" in status:  # who answers a plain request cannot be told
            assert (await upstream.send("GET", "/", HEADERS, b"")).status == 403
            return
        with pytest.raises(UpstreamError, match=why) as caught:
            await read(upstream)
        said.append(caught.value)

    place = through(proxy, scene, monkeypatch, base)
    for error in said:
        assert f"the proxy http://{place} " in str(error)
        assert "a-password" not in repr(error)
        assert error.kind == "unreachable"


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("ALL_PROXY", place)

    async def scene() -> None:
        upstream = opened("https://gemini.example")
        with pytest.raises(
            UpstreamError, match=rf"no connection to the proxy http://{place} \(connection refused\)"
        ) as caught:
            await read(upstream)
        assert caught.value.kind == "unreachable"
        await upstream.close()

    run(scene())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", r"the proxy http://[^ ]+ closed the connection"),
        (b"garbage\r\n\r\n", r"the answer of the proxy http://[^ ]+ is not valid HTTP"),
        (b"SSH-2.0-x\r\n", r"the answer of the proxy http://[^ ]+ is not valid HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 17),
            r"the answer of the proxy http://[^ ]+ has a head or trailers of",
        ),
    ],
    ids=["it closes", "garbage", "SSH", "a large head"],
)
def test_a_proxy_that_breaks_off_is_named_in_plain_words(
    said: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ProxyServer):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            writer.close()

    async def scene(upstream: Upstream) -> None:
        with pytest.raises(UpstreamError, match=why) as caught:
            await read(upstream)
        assert caught.value.kind == "unreachable"

    through(Broken(), scene, monkeypatch, "https://gemini.example")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (ConnectionResetError(), "the other end closed the connection"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (UnicodeError(), "UnicodeError"),
    ],
)
def test_why_there_is_no_connection_is_said_without_an_address(error: Exception, why: str) -> None:
    assert str(no_connection("host:1", error)) == f"no connection to host:1 ({why})"


def test_a_proxy_that_says_nothing_is_named_after_the_time_for_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(upstream: Upstream) -> None:
        with pytest.raises(UpstreamError, match=r"no connection to the proxy .* within the time allowed") as caught:
            await read(upstream)
        assert caught.value.kind == "unreachable"

    through(Mute(b""), scene, monkeypatch, "https://gemini.example")


def test_tls_that_fails_behind_a_proxy_names_both(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ProxyServer()

    async def scene(upstream: Upstream) -> None:
        async with contextlib.AsyncExitStack() as stack:
            proxy.to = ("127.0.0.1", await listen(stack, Server(OK).serve, server_tls(certificate)))
            for _ in range(3):
                with pytest.raises(
                    UpstreamError, match=r"no connection to other.example:443 through the proxy .*CERTIFICATE"
                ):
                    await read(upstream)
            await asyncio.wait_for(proxy.left.wait(), 5)

    through(proxy, scene, monkeypatch, "https://other.example")


def test_httpx_is_taken_where_it_is_asked_for_or_a_proxy_is_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    cases = [
        ("https://gemini.example", "auto", HttpxUpstream),
        ("https://gemini.example", "own", HttpUpstream),
        ("http://gemini.example", "auto", HttpUpstream),
        ("http://gemini.example", "httpx", HttpxUpstream),
        ("https://127.0.0.1:8443", "auto", HttpUpstream),
    ]
    for base, http, expected in cases:
        assert type(open_upstream(base, timeout=1.0, connect_timeout=1.0, http=http)) is expected


def test_it_is_imported_only_when_it_is_used() -> None:
    code = "import sys, pollux.server.app; sys.exit(any(name.startswith('httpcore2') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
