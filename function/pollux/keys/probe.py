"""Asks Google about each key with a free call, countTokens. What the answer means is `verdict`'s; nothing is kept."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from pollux.connection import UpstreamError
from pollux.keys import Secret

if TYPE_CHECKING:
    from pollux.upstream import Upstream

MODEL = "gemini-3.1-flash-lite"
TIMEOUT_S = 15.0
AT_ONCE = 8
REFUSED = ("invalid", "unreachable", "unclear")
"""The findings after which a new value does not take the old one's place."""
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
    """Of an invalid key: why, in the verdict's words."""


async def probe(
    secrets: Mapping[str, Secret], *, upstream: str, model: str, timeout_s: float = TIMEOUT_S
) -> dict[str, Finding]:
    """A finding for each id, asked side by side."""
    from pollux.upstream import open_upstream  # here, so that commands without a network start fast

    turn = asyncio.Semaphore(AT_ONCE)
    google = open_upstream(upstream, timeout=timeout_s, connect_timeout=timeout_s)

    async def one(secret: Secret) -> Finding:
        async with turn:
            try:
                async with asyncio.timeout(timeout_s):
                    status, body = await _ask(google, target(model), secret)
            except TimeoutError:
                return Finding("unreachable", "no answer in time")
            except UpstreamError as error:
                return Finding("unreachable", str(error))
        return _finding(status, body, secret)

    try:
        return dict(zip(secrets, await asyncio.gather(*map(one, secrets.values())), strict=True))
    finally:
        await google.close()


async def _ask(google: "Upstream", where: str, secret: Secret) -> tuple[int, bytes]:
    headers = [("x-goog-api-key", secret.reveal()), ("content-type", "application/json")]
    answer = await google.send("POST", where, headers, BODY)
    try:
        body = b""
        while len(body) < _LARGEST and (data := await answer.chunk()):
            body += data
        return answer.status, body
    finally:
        answer.close()


def _finding(status: int, body: bytes, secret: Secret) -> Finding:
    from pollux.redaction import redact
    from pollux.verdict.rules import judge

    verdict = judge(status, body, now=time.time())
    if verdict.cause == "ok":
        answered = b'"totalTokens"' in body
        return Finding("healthy") if answered else Finding("unclear", "the answer is not one of the Gemini API")
    message = redact(verdict.message, (secret.reveal(),))
    reason = f"{verdict.cause}: {message}" if message else f"{verdict.cause} (HTTP {status})"
    if verdict.blames == "key" or verdict.cause == "suspended":
        return Finding("invalid", reason, cause=verdict.cause)
    if verdict.blames in ("quota", "project") and verdict.cause not in ("model-access", "location"):
        return Finding("no quota", reason, verdict.tier)
    return Finding("unreachable" if status >= 500 else "unclear", reason)
