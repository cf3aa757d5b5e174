"""Asks Google about keys with a free call, countTokens. `gemini/verdict` judges the answers; nothing is stored."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from pollux.backends.keys.contract import Secret
from pollux.redaction import redact

if TYPE_CHECKING:
    import httpx2

MODEL = "gemini-3.1-flash-lite"
TIMEOUT_S = 15.0
AT_ONCE = 8
REFUSED = ("invalid", "unreachable", "unclear")
"""After these findings a new value does not replace the old one."""
BODY = b'{"contents":[{"parts":[{"text":"ping"}]}]}'
_LARGEST = 65536


def target(model: str) -> str:
    return f"/v1beta/models/{quote(model.removeprefix('models/'), safe='')}:countTokens"


@dataclass(frozen=True, slots=True)
class Finding:
    """`state`: healthy, invalid, no quota, unreachable, or unclear (the key may be good, but not for this call)."""

    state: str
    reason: str = ""
    tier: str | None = None
    """"free" or "paid", if a refusal named such a quota."""
    cause: str = ""
    """Why a key is invalid: a cause of `gemini/verdict`."""


async def probe(
    secrets: Mapping[str, Secret],
    http: "httpx2.AsyncClient",
    *,
    upstream: str,
    model: str,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Finding]:
    """A finding for each id. Several keys are asked about at once; `done` is called after each."""
    import httpx2  # here: the server needs only the constants above

    turn = asyncio.Semaphore(AT_ONCE)
    url = upstream.rstrip("/") + target(model)

    async def one(secret: Secret) -> Finding:
        async with turn:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return _finding(*await _ask(http, url, secret), secret)
            except (TimeoutError, httpx2.TimeoutException):
                return Finding("unreachable", "no answer in time")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                return Finding("unreachable", _without(secret, _why(error)))
            finally:
                done()

    return dict(zip(secrets, await asyncio.gather(*map(one, secrets.values())), strict=True))


async def _ask(http: "httpx2.AsyncClient", url: str, secret: Secret) -> tuple[int, bytes]:
    headers = {"x-goog-api-key": secret.reveal(), "content-type": "application/json"}
    body = b""
    async with http.stream("POST", url, headers=headers, content=BODY) as answer:
        async for data in answer.aiter_bytes():
            body += data
            if len(body) >= _LARGEST:
                break
    return answer.status_code, body


def _finding(status: int, body: bytes, secret: Secret) -> Finding:
    from pollux.gemini.verdict.rules import judge

    verdict = judge(status, body, now=time.time())
    if verdict.cause == "ok":
        answered = b'"totalTokens"' in body
        return Finding("healthy") if answered else Finding("unclear", "the answer is not one of the Gemini API")
    message = _without(secret, verdict.message)
    reason = f"{verdict.cause}: {message}" if message else f"{verdict.cause} (HTTP {status})"
    if verdict.blames == "key" or verdict.cause == "suspended":
        return Finding("invalid", reason, cause=verdict.cause)
    if verdict.blames in ("quota", "project") and verdict.cause not in ("model-access", "location"):
        return Finding("no quota", reason, verdict.tier)
    return Finding("unreachable" if status >= 500 else "unclear", reason)


def _why(error: Exception) -> str:
    """The text of the system error below, if there is one: httpx2 only says "All connection attempts failed"."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return os.strerror(inner.errno) if inner.errno and inner.errno > 0 else inner.strerror
        inner = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


def _without(secret: Secret, text: str) -> str:
    return redact(text, (secret.reveal(),))
