"""The yardstick: an ASGI app that passes requests on with httpx's transport API over aiohttp, and does nothing else.

SSL_CERT_FILE names the certificate of an upstream that speaks TLS, as for the gateway.
"""

import os
import ssl
from collections.abc import MutableMapping
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport

UPSTREAM = os.environ["BENCH_UPSTREAM"]
_transport: AiohttpTransport | None = None


async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    global _transport
    if scope["type"] != "http":
        return
    if _transport is None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        _transport = AiohttpTransport(verify=ssl.create_default_context(), limits=limits)
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    query = scope["query_string"].decode()
    url = UPSTREAM + scope["raw_path"].decode() + (f"?{query}" if query else "")
    headers = [("content-type", "application/json"), ("x-goog-api-key", "bench")]
    answer = await _transport.handle_async_request(httpx.Request(scope["method"], url, headers=headers, content=body))
    passed = [(k, v) for k, v in answer.headers.raw if k.lower() in (b"content-type", b"content-length")]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": passed})
    async for chunk in answer.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    await answer.aclose()
