"""The steps of `pollux deploy check`, and what each answer means."""

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx2

from pollux.cli.gateway import http_options, through_proxy
from pollux.gemini.errors import ERRORS
from pollux.gemini.verdict import error_body
from pollux.redaction import clean, without

MOST = 4 << 20
"""Bytes of an answer that are read."""
LONGEST = 300
"""Characters of a detail."""
CHEAP = "draft"
"""The catalog's alias for the cheapest model."""
PLATFORM = (".run.app", ".cloudfunctions.net")

TOGETHER = 0.02
"""Events less than this many seconds apart came together. A model takes ten times as long for an event."""
QUICK = 0.5
"""A whole answer within this many seconds may come at once although nothing buffers it."""
FEWEST = 3
"""Events that are needed to tell."""

PRIVATE = "a private service wants an ID token: IDENTITY_TOKEN=$(gcloud auth print-identity-token) in the environment"
REFUSED_ID = (
    "the ID token is refused: it lasts an hour, and its account needs roles/run.invoker (for a service account: "
    "--audiences=URL)"
)
OPEN = "anybody may spend these quotas: is this Pollux itself, and not an address behind it that adds a token?"
IN_Z = (
    "downloads of files whose name ends in z fail at this address; a custom domain in front of the service does not "
    "reserve such paths"
)
NOT_OURS = "is this the address of a gateway, with its path if it has one?"
STATUS = "`pollux status --url URL` shows it"
BUFFERED = (
    "something on the way collects the answer: turn its response buffering (or compression) off. nginx: "
    "proxy_buffering off; a CDN or load balancer: no caching of this path"
)
ANOTHER_MODEL = "a model that takes longer would show it: --model MODEL"
UNREACHED = "is the address right, and does the gateway run? `pollux serve` starts one here"
CERTIFICATE = (
    "use the name that the certificate is for; a new custom domain gets its certificate within a day; for an "
    "authority of your own: SSL_CERT_FILE=FILE"
)

TROUBLES: Sequence[tuple[type[BaseException], str, str]] = (
    (ssl.SSLCertVerificationError, "its certificate is not accepted: {0.verify_message}", CERTIFICATE),
    (ssl.SSLError, "no TLS is spoken there: {0.reason}", "is it http://, or another port?"),
    (httpx2.ProxyError, "the proxy refused: {0}", "ask who runs the proxy; NO_PROXY=HOST goes around it"),
    (ConnectionRefusedError, "nothing listens there", UNREACHED),
    (httpx2.ConnectTimeout, "no connection in time", UNREACHED),
    (httpx2.ConnectError, "no connection: {0}", UNREACHED),
    (TimeoutError, "no complete answer within {1:g} s", "look at the service's log; a slow model may need --timeout"),
    (httpx2.TransportError, "the connection broke: {0}", "look at the service's log; is it https://?"),
)
"""Why there is no complete answer: detail and hint. The first row whose exception is among the causes counts."""

Verdict = Literal["ok", "warn", "FAIL", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    detail: str
    hint: str = ""
    """What to do next; "" if all is well."""
    figures: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    took: float | None = None
    """Seconds; None if nothing was sent."""

    def as_json(self) -> dict[str, Any]:
        ms = None if self.took is None else round(self.took * 1000, 1)
        shown = {"name": self.name, "verdict": self.verdict, "detail": self.detail, "hint": self.hint, "ms": ms}
        return shown | dict(self.figures)


class TroubleError(Exception):
    """There is no complete answer."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(clean(detail, LONGEST))
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    reads: Sequence[tuple[float, bytes]]
    """The pieces of the body, each with the seconds from the request to its arrival."""
    took: float

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads)

    @property
    def json(self) -> Mapping[str, Any]:
        """{} if the body is not a JSON object."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def reason(self) -> str:
        """The code of an error of Pollux; "" for any other answer."""
        return next((reason for reason in error_body.read(self.status, self.body).reasons if reason in ERRORS), "")

    @property
    def summary(self) -> str:
        error = error_body.read(self.status, self.body)
        said = f": {error.message}" if error.whole and error.message else f", {self.header('content-type', 'nothing')}"
        return clean(f"{self.status} {self.reason}".rstrip() + said, LONGEST)

    def header(self, name: str, missing: str = "?") -> str:
        return clean(self.headers.get(name, missing).partition(";")[0], 100)


@dataclass(frozen=True, slots=True)
class Token:
    value: str = field(repr=False)
    source: str


class Check:
    """`tokens`: client, admin and identity. Without an admin token the status is skipped."""

    def __init__(self, url: str, tokens: Mapping[str, Token], *, model: str = CHEAP, within: float = 30.0) -> None:
        self._url, self._tokens, self._model, self._within = url, tokens, model, within
        self._native = f"/v1beta/models/{quote(model, safe='')}"
        self._client = {"x-goog-api-key": tokens["client"].value}
        self._http: httpx2.AsyncClient
        self._took: float | None = None
        self._stream: Answer | None = None

    async def run(self) -> AsyncIterator[Finding]:
        """A finding for each of STEPS, as soon as it is known. If the health fails, no token is sent."""
        skipped: dict[str, str] = {}
        async with self._connected() as self._http:
            for name, step in STEPS.items():
                self._took = None
                try:
                    found = Finding("skipped", skipped[name]) if name in skipped else await step(self)
                except TroubleError as error:
                    found = Finding("FAIL", str(error), error.hint)
                if name == "health" and found.verdict == "FAIL":
                    skipped = dict.fromkeys(STEPS, "no healthy gateway is there")
                if name == "generate" and found.figures.get("status") == 401:
                    skipped = dict.fromkeys(("stream", "one by one", "openai"), "the client token is refused")
                secrets = [token.value for token in self._tokens.values() if token.value]
                detail, hint = without(found.detail, secrets), without(found.hint, secrets)  # an answer may echo them
                yield replace(found, name=name, detail=detail, hint=hint, took=self._took)

    def _connected(self) -> httpx2.AsyncClient:
        headers = {
            "accept-encoding": "identity",
            "connection": "close",  # a reused connection that the server just closed would look like a fault
            "user-agent": "pollux-deploy-check",
            "x-pollux-max-wait": f"{self._within * 2 / 3:g}",
        }
        if identity := self._tokens["identity"].value:
            headers["x-serverless-authorization"] = f"Bearer {identity}"
        return httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(None, connect=10), **http_options(self._url))

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: object = None
    ) -> Answer:
        """Raises TroubleError, also for a redirect: following it would send the tokens to another server."""
        began, before, size = time.monotonic(), self._took or 0.0, 0
        reads: list[tuple[float, bytes]] = []
        request = self._http.stream(method, self._url + path, headers=headers, json=body)
        try:
            async with asyncio.timeout(self._within), request as response:
                async for data in response.aiter_raw():
                    reads.append((time.monotonic() - began, data))
                    size += len(data)
                    if size > MOST:
                        detail = f"{response.status_code}, and the answer is larger than {MOST >> 20} MiB"
                        raise TroubleError(f"{detail}: the rest was not read", NOT_OURS)
        except (TimeoutError, httpx2.TransportError) as error:
            kinds = ((row, cause) for row in TROUBLES for cause in _causes(error) if isinstance(cause, row[0]))
            (_, detail, hint), cause = next(kinds)
            raise TroubleError(detail.format(cause, self._within) + through_proxy(self._url), hint) from None
        finally:
            took = time.monotonic() - began
            self._took = before + took
        if response.is_redirect:
            detail = f"it redirects ({response.status_code}) to {response.headers['location']}"
            raise TroubleError(detail, "if that is the address of your gateway, check it instead")
        return Answer(response.status_code, response.headers, reads, took)

    async def _health(self) -> Finding:
        answer = await self._ask("GET", "/health")
        if answer.status == 200 and answer.json.get("status") == "ok":
            return Finding("ok", "it lives")
        return self._refused(answer, f"this is not Pollux's answer: {answer.summary}")

    async def _no_token(self) -> Finding:
        answer = await self._ask("POST", f"{self._native}:generateContent", body=_prompt("Say hello."))
        if answer.status == 401 and answer.reason == "NO_TOKEN":
            return Finding("ok", "refused with 401, as it should be")
        if answer.status < 300:
            return Finding("FAIL", f"answered {answer.status} without any token", OPEN)
        return self._refused(answer, f"expected Pollux's 401: {answer.summary}")

    async def _generate(self) -> Finding:
        answer = await self._ask("POST", f"{self._native}:generateContent", self._client, _prompt("Say hello."))
        return self._served(answer, "candidates")

    async def _openai(self) -> Finding:
        body = {"model": self._model, "messages": [{"role": "user", "content": "Say hello."}]}
        headers = {"authorization": f"Bearer {self._tokens['client'].value}"}
        return self._served(await self._ask("POST", "/v1beta/openai/chat/completions", headers, body), "choices")

    async def _streamed(self) -> Finding:
        body = _prompt("Count from 1 to 200 in words, one number a line, nothing else.")
        answer = await self._ask("POST", f"{self._native}:streamGenerateContent?alt=sse", self._client, body)
        if answer.status != 200:
            return self._refused(answer)
        first = answer.reads[0][0] if answer.reads else answer.took
        figures = {"first_byte_ms": round(first * 1000, 1), "events": len(event_times(answer.reads))}
        if fault := stream_fault(answer.body):
            hint = f"look for the request in the log: x-pollux-request-id {answer.header('x-pollux-request-id')}"
            return Finding("FAIL", fault, hint, figures)
        self._stream = answer
        return Finding("ok", f"first byte after {_ms(first)}, whole after {_ms(answer.took)}", "", figures)

    async def _one_by_one(self) -> Finding:
        if self._stream is None:
            return Finding("skipped", "there was no whole stream")
        length_known = "content-length" in self._stream.headers
        return judge(event_times(self._stream.reads), self._stream.took, length_known=length_known)

    async def _path_in_z(self) -> Finding:
        """run.app reserves some paths that end in z. No token is sent: it only matters which program answers."""
        file = await self._ask("GET", "/v1beta/files/checkz")
        if file.reason != "NO_TOKEN":
            return Finding("warn", f"/v1beta/files/checkz does not reach Pollux: {file.summary}", IN_Z)
        health = await self._ask("GET", "/healthz")
        if health.reason:
            return Finding("ok", "Pollux answers")
        detail = f"Pollux answers, except for /healthz: {health.summary}"
        if (urlsplit(self._url).hostname or "").endswith(PLATFORM):
            return Finding("ok", f"{detail} (the platform's own)")
        return Finding("warn", detail, "something in front of Pollux answers; probes should ask /health")

    async def _status(self) -> Finding:
        admin = self._tokens["admin"]
        if not admin.value:
            return Finding("skipped", "no admin token", "set POLLUX_ADMIN_TOKEN, or --admin-token-file FILE")
        answer = await self._ask("GET", "/admin/status", {"authorization": f"Bearer {admin.value}"})
        if answer.status == 401:
            return Finding("FAIL", answer.summary, f"the admin token comes from {admin.source}: is it this gateway's?")
        return state(answer.json) if answer.status == 200 else self._refused(answer)

    def _served(self, answer: Answer, member: str) -> Finding:
        if answer.status != 200 or not answer.json.get(member):
            return self._refused(answer)
        waited = answer.header("x-pollux-wait-ms")
        served = f"{answer.header('x-pollux-model')} by key {answer.header('x-pollux-key')}"
        return Finding("ok", served if waited == "0" else f"{served}, waited {waited} ms")

    def _refused(self, answer: Answer, detail: str = "") -> Finding:
        detail = detail or ("200, but no answer of the Gemini API" if answer.status == 200 else answer.summary)
        if answer.reason == "NO_TOKEN":
            hint = f"the client token comes from {self._tokens['client'].source}: is it this gateway's?"
        elif answer.reason:
            hint = ERRORS[answer.reason].remedy
        elif "x-pollux-request-id" in answer.headers:
            hint = "Google refused it: docs/verdicts.md, `pollux judge`; --model MODEL tries another"
        elif answer.status in (401, 403):
            hint = REFUSED_ID if self._tokens["identity"].value else PRIVATE
        else:
            hint = "the service does not start, or too slowly: look at its log" if answer.status >= 500 else NOT_OURS
        return Finding("FAIL", detail, hint, {"status": answer.status})


STEPS: Mapping[str, Callable[[Check], Awaitable[Finding]]] = {
    "health": Check._health,
    "no token": Check._no_token,
    "generate": Check._generate,
    "stream": Check._streamed,
    "one by one": Check._one_by_one,
    "openai": Check._openai,
    "path in z": Check._path_in_z,
    "status": Check._status,
}


def event_times(reads: Sequence[tuple[float, bytes]]) -> list[float]:
    """When the end of each event of a stream arrived."""
    times: list[float] = []
    text = b""
    for at, data in reads:
        text += data.replace(b"\r", b"")
        *complete, text = text.split(b"\n\n")
        times += [at for event in complete if event.strip()]
    return times


def judge(times: Sequence[float], total: float, *, length_known: bool) -> Finding:
    """Whether something buffers a stream. `total`: seconds from the request to the end.

    Only the pauses between events tell: a model may think for any time before the first.
    """
    count = len(times)
    if length_known:
        return Finding("FAIL", "the answer came with its length, which is known only when it is complete", BUFFERED)
    if count < FEWEST:
        return Finding("skipped", f"{count} events are too few to tell", ANOTHER_MODEL)
    bursts = 1 + sum(later - earlier >= TOGETHER for earlier, later in itertools.pairwise(times))
    spread = times[-1] - times[0]
    if bursts == 1 and total < QUICK:
        return Finding("skipped", f"the whole answer took {_ms(total)}: too quick to tell", ANOTHER_MODEL)
    if bursts == 1:
        return Finding("FAIL", f"{count} events came all at once, after {total:.1f} s", BUFFERED)
    if 2 * bursts <= count:
        return Finding("warn", f"{count} events came in {bursts} bursts over {spread:.1f} s", BUFFERED)
    return Finding("ok", f"{count} events came at {bursts} moments over {spread:.1f} s")


def stream_fault(body: bytes) -> str:
    """Why a stream is not whole; "" if it is."""
    finished = False
    for line in body.decode("utf-8", "replace").splitlines():
        text = line.removeprefix("data:").strip()
        if not text.startswith("{"):
            continue
        try:
            event = json.loads(text)
            if error := event.get("error"):
                return f"the stream ended with an error: {clean(str(error['message']), LONGEST)}"
            finished |= any(candidate.get("finishReason") for candidate in event.get("candidates") or ())
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return "the stream has an event that is no JSON of the Gemini API"
    return "" if finished else f"the stream ended before it was complete, after {len(body)} bytes"


def state(found: Mapping[str, Any]) -> Finding:
    """What /admin/status says about a gateway."""
    try:
        projects = {project["project"]: project for project in found["projects"]}
        enabled = [key for key in found["keys"] if key["state"] != "disabled"]
        aside = {
            key["id"]: str(entry["why"])
            for key in enabled
            for entry in (projects[key["project"]], key)
            if entry["state"] not in ("healthy", "unchecked")
        }
        pool, store = found["pool"], found["store"]
        trouble = [*pool["problems"], *filter(None, [pool["suspicion"]])]
        if store["state"] != "ok":
            trouble.append(f"{store['url']} is {store['state']}: {store['why']}")
        well = f"Pollux {found['version']}, {len(enabled)} keys of {len(projects)} projects, store ok"
    except (KeyError, TypeError, AttributeError):
        return Finding("FAIL", "200, but not the status of a Pollux gateway", NOT_OURS)
    if len(aside) == len(enabled):
        why = "; ".join(sorted(set(aside.values()))) or "there is none"
        detail = f"none of {len(enabled)} keys is usable: {why}"
        return Finding("FAIL", clean(detail, LONGEST), f"`pollux keys add`; {STATUS}")
    trouble += [f"key {name} is set aside: {why}" for name, why in aside.items()]
    if trouble:
        return Finding("warn", clean("; ".join(map(str, trouble)), LONGEST), STATUS)
    return Finding("ok", clean(well))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _prompt(text: str) -> Mapping[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
