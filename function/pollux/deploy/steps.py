"""What is tried against a gateway, one after the other, and what each answer means."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from pollux.deploy import Finding
from pollux.deploy.arrivals import event_times, judge
from pollux.deploy.asking import Endpoint, Said, TroubleError
from pollux.deploy.credentials import Credentials
from pollux.deploy.pool_state import state
from pollux.log_safety import clean
from pollux.wire import ERRORS

NAMES = ("health", "no token", "generate", "stream", "one by one", "openai", "path in z", "status")
CHEAP = "draft"
"""The catalog's alias for the cheapest model."""
SHORT = "Say hello."
LONG = "Count from 1 to 200 in words, one number a line, nothing else."
PLATFORM = (".run.app", ".cloudfunctions.net")

PRIVATE = "a private service wants an ID token: IDENTITY_TOKEN=$(gcloud auth print-identity-token) in the environment"
REFUSED_ID = (
    "the ID token is refused: it lasts an hour, and its account needs roles/run.invoker (for a service account: "
    "--audiences=URL)"
)
DEAD = "the service does not start, or not in time: look at its log"
OPEN = "anybody may spend these quotas: is this Pollux itself, and not an address behind it that adds a token?"
NOT_OURS = "is this the address of a gateway, with its path if it has one?"
IN_Z = (
    "what fetches a file whose name ends in z fails through this address; a custom domain in front of the service "
    "has no such paths"
)


class Check:
    """Without a gateway that answers, nothing else is tried, and no token is sent to who is none."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials, model: str = CHEAP) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._model = model
        self._patience = {"x-pollux-max-wait": f"{endpoint.within * 2 / 3:g}"}

    async def run(self) -> AsyncIterator[Finding]:
        """A finding for each of NAMES, as soon as it is there."""
        health = await self._tried("health", self._health)
        yield health
        if health.verdict == "FAIL":
            for name in NAMES[1:]:
                yield Finding(name, "skipped", "no healthy gateway is there")
            return
        yield await self._tried("no token", self._no_token)
        generate = await self._tried("generate", self._generate)
        yield generate
        if generate.figures.get("status") == 401:
            for name in ("stream", "one by one", "openai"):
                yield Finding(name, "skipped", "the client token is refused")
        else:
            for finding in await self._streamed():
                yield finding
            yield await self._tried("openai", self._openai)
        yield await self._tried("path in z", self._path_in_z)
        if self._credentials.admin:
            yield await self._tried("status", self._status)
        else:
            yield Finding("status", "skipped", "no admin token", "set POLLUX_ADMIN_TOKEN, or --admin-token-file FILE")

    async def _tried(self, name: str, step: Callable[[str], Awaitable[Finding]]) -> Finding:
        began = time.monotonic()
        try:
            found = await step(name)
        except TroubleError as error:
            found = Finding(name, "FAIL", str(error), error.hint, time.monotonic() - began)
        return found.safe(self._credentials.secrets)

    async def _health(self, name: str) -> Finding:
        said = await self._endpoint.ask("GET", "/health", {})
        if said.status == 200 and said.json.get("status") == "ok":
            return Finding(name, "ok", "it lives", took=said.took)
        return Finding(name, "FAIL", f"no answer of Pollux's: {said.summary}", self._hint(said), said.took)

    async def _no_token(self, name: str) -> Finding:
        said = await self._endpoint.ask("POST", self._native("generateContent"), {}, _prompt(SHORT))
        if said.status == 401 and said.reason == "NO_TOKEN":
            return Finding(name, "ok", "refused with 401, as it should be", took=said.took)
        if said.status < 300:
            return Finding(name, "FAIL", f"answered {said.status} without any token", OPEN, said.took)
        return Finding(name, "FAIL", f"expected a 401 of Pollux's: {said.summary}", self._hint(said), said.took)

    async def _generate(self, name: str) -> Finding:
        said = await self._endpoint.ask("POST", self._native("generateContent"), self._client(), _prompt(SHORT))
        if said.status == 200 and said.json.get("candidates"):
            return Finding(name, "ok", _served(said), took=said.took)
        return self._refused(name, said)

    async def _streamed(self) -> list[Finding]:
        """Two lines of one request: whether it is whole, and how it came."""
        arrived: list[Finding] = []

        async def step(name: str) -> Finding:
            path = self._native("streamGenerateContent") + "?alt=sse"
            said = await self._endpoint.ask("POST", path, self._client(), _prompt(LONG))
            if said.status != 200:
                return self._refused(name, said)
            times = event_times(said.reads)
            first = said.reads[0][0] if said.reads else said.took
            figures = {"first_byte_ms": round(first * 1000, 1), "events": len(times)}
            if fault := _stream_fault(said):
                hint = "look for the request in the log: x-pollux-request-id " + _header(said, "x-pollux-request-id")
                return Finding(name, "FAIL", fault, hint, said.took, figures)
            verdict, seen, hint = judge(times, said.took, length_known="content-length" in said.headers)
            arrived.append(Finding("one by one", verdict, seen, hint))
            return Finding(
                name, "ok", f"first byte after {_ms(first)}, whole after {_ms(said.took)}", "", said.took, figures
            )

        stream = await self._tried("stream", step)
        return [stream, *(arrived or [Finding("one by one", "skipped", "there was no whole stream")])]

    async def _openai(self, name: str) -> Finding:
        body = {"model": self._model, "messages": [{"role": "user", "content": SHORT}]}
        headers = {"authorization": f"Bearer {self._credentials.client}", **self._patience}
        said = await self._endpoint.ask("POST", "/v1beta/openai/chat/completions", headers, body)
        if said.status == 200 and said.json.get("choices"):
            return Finding(name, "ok", _served(said), took=said.took)
        return self._refused(name, said)

    async def _path_in_z(self, name: str) -> Finding:
        """Without a token: only who answers is asked."""
        file = await self._endpoint.ask("GET", "/v1beta/files/checkz", {})
        if file.reason != "NO_TOKEN":
            detail = f"/v1beta/files/checkz does not reach Pollux: {file.summary}"
            return Finding(name, "warn", detail, IN_Z, file.took)
        health = await self._endpoint.ask("GET", "/healthz", {})
        took = file.took + health.took
        if health.reason:
            return Finding(name, "ok", "Pollux answers", took=took)
        host = urlsplit(self._endpoint.url).hostname or ""
        detail = f"Pollux answers, but for /healthz: {health.summary}"
        if host.endswith(PLATFORM):
            return Finding(name, "ok", f"{detail} (the platform's own)", took=took)
        return Finding(name, "warn", detail, "something in front of Pollux answers; probes should ask /health", took)

    async def _status(self, name: str) -> Finding:
        headers = {"authorization": f"Bearer {self._credentials.admin}"}
        said = await self._endpoint.ask("GET", "/admin/status", headers)
        if said.status == 401:
            hint = f"the admin token comes from {self._credentials.admin_from}: is it this gateway's?"
            return Finding(name, "FAIL", said.summary, hint, said.took)
        if said.status != 200:
            return self._refused(name, said)
        verdict, detail, hint = state(said.json)
        return Finding(name, verdict, detail, hint, said.took)

    def _refused(self, name: str, said: Said) -> Finding:
        detail = "200, but no answer of the Gemini API" if said.status == 200 else said.summary
        return Finding(name, "FAIL", detail, self._hint(said), said.took, {"status": said.status})

    def _hint(self, said: Said) -> str:
        if said.reason == "NO_TOKEN":
            return f"the client token comes from {self._credentials.client_from}: is it this gateway's?"
        if said.reason:
            return ERRORS[said.reason].remedy
        if "x-pollux-request-id" in said.headers:
            return "Google refused it: docs/verdicts.md, `pollux judge`; --model MODEL tries another"
        if said.status in (401, 403):
            return REFUSED_ID if self._credentials.identity else PRIVATE
        return DEAD if said.status >= 500 else NOT_OURS

    def _native(self, verb: str) -> str:
        return f"/v1beta/models/{quote(self._model, safe='')}:{verb}"

    def _client(self) -> Mapping[str, str]:
        return {"x-goog-api-key": self._credentials.client, **self._patience}


def _prompt(text: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


def _served(said: Said) -> str:
    waited = _header(said, "x-pollux-wait-ms")
    return f"{_header(said, 'x-pollux-model')} by key {_header(said, 'x-pollux-key')}" + (
        f", waited {waited} ms" if waited != "0" else ""
    )


def _header(said: Said, name: str) -> str:
    return clean(said.headers.get(name, "?"), 100)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _stream_fault(said: Said) -> str:
    """What a stream lacks; "" if it is whole."""
    finished = False
    for line in said.body.decode("utf-8", "replace").splitlines():
        text = line.removeprefix("data:").strip()
        if not text.startswith("{"):
            continue
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return "the stream has an event that is no JSON"
        if isinstance(event.get("error"), dict):
            return f"the stream ended with an error: {clean(str(event['error'].get('message')), 200)}"
        candidates = event.get("candidates")
        finished |= isinstance(candidates, list) and any(
            isinstance(c, dict) and c.get("finishReason") for c in candidates
        )
    return "" if finished else f"the stream ended before it was complete, after {len(said.body)} bytes"
