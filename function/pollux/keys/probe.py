"""Asks Google about each key with a free call, countTokens. What the answer means is `verdict`'s; nothing is kept."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pollux.keys import Secret

if TYPE_CHECKING:
    import aiohttp

MODEL = "gemini-3.1-flash-lite"
TIMEOUT_S = 15.0
AT_ONCE = 8
_BODY = b'{"contents":[{"parts":[{"text":"ping"}]}]}'
_LARGEST = 65536


@dataclass(frozen=True, slots=True)
class Finding:
    """`state`: healthy, invalid, no quota, unreachable, or unclear (the key may be good, but not for this call)."""

    state: str
    reason: str = ""


async def probe(
    secrets: Mapping[str, Secret], *, upstream: str, model: str, timeout_s: float = TIMEOUT_S
) -> dict[str, Finding]:
    """A finding for each id, asked side by side."""
    import aiohttp  # here, so that commands without a network start fast

    turn = asyncio.Semaphore(AT_ONCE)
    url = f"{upstream}/v1beta/models/{model.removeprefix('models/')}:countTokens"
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def one(secret: Secret) -> Finding:
            async with turn:
                status, body, fault = await _ask(session, url, secret)
            return _finding(status, body, secret) if status is not None else Finding("unreachable", fault)

        return dict(zip(secrets, await asyncio.gather(*map(one, secrets.values())), strict=True))


async def _ask(session: "aiohttp.ClientSession", url: str, secret: Secret) -> tuple[int | None, bytes, str]:
    import aiohttp

    headers = {"x-goog-api-key": secret.reveal(), "content-type": "application/json"}
    try:
        # A redirect could carry the key to another host.
        async with session.post(url, data=_BODY, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.content.read(_LARGEST), ""
    except TimeoutError:
        return None, b"", "no answer in time"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return None, b"", type(error).__name__


def _finding(status: int, body: bytes, secret: Secret) -> Finding:
    from pollux.verdict import judge, redact

    verdict = judge(status, body, now=time.time())
    if verdict.cause == "ok":
        answered = b'"totalTokens"' in body
        return Finding("healthy") if answered else Finding("unclear", "the answer is not one of the Gemini API")
    message = redact(verdict.message, (secret.reveal(),))
    reason = f"{verdict.cause}: {message}" if message else f"{verdict.cause} (HTTP {status})"
    if verdict.blames == "key" or verdict.cause == "suspended":
        return Finding("invalid", reason)
    if verdict.blames in ("quota", "project") and verdict.cause not in ("model-access", "location"):
        return Finding("no quota", reason)
    return Finding("unreachable" if status >= 500 else "unclear", reason)
