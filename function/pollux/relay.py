"""The life of one request: reserve, send, judge, retry or fall back, pass the answer on, settle.

What is chosen and counted is in `pool`; what an answer means, in `verdict`; how bytes reach the client, in `outbound`.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pollux import reasons, wire, wire_body
from pollux.exchange import Exchange
from pollux.inbound import RequestError
from pollux.journal import Attempt
from pollux.keys import Key, KeySourceError
from pollux.outbound import collect, pass_on, pass_stream, pass_whole
from pollux.outcome import Outcomes
from pollux.pool import Ask, Full, Pool, Reservation, Tried
from pollux.store import StoreError
from pollux.stream import StreamReader
from pollux.upstream import Answer, Upstream, UpstreamError
from pollux.verdict import Verdict, judge, redact
from pollux.windows import Want

log = logging.getLogger("pollux.relay")

MOST_TROUBLES = 2
"""How often a model's trouble (503, 500, a broken connection) is tried again on another project."""
FOR_LONG = frozenset({"unsupported", "model-access", "rpd", "tpd"})
"""Refusals that no waiting mends."""
BACKOFF = 0.25
SETTLE_WITHIN = 0.1
UNREADABLE, UNREADABLE_KEY_RESTS = "key-source", 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that gave the client nothing, and what Google said to it."""

    verdict: Verdict
    model: str
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    problem: RequestError | None = None
    """Set when there was no answer to pass on."""


class Relay:
    def __init__(
        self,
        pool: Pool,
        upstream: Upstream,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.pool = pool
        self.outcomes = Outcomes(pool)
        self._upstream = upstream
        self._settings = pool.settings
        self._catalog = pool.roster.catalog
        self._keyring = pool.roster.keyring
        self._sleep = sleep
        self._jitter = jitter

    async def run(self, x: Exchange) -> None:
        if x.call.counted and x.call.model:
            await self._counted(x)
        else:
            await self._uncounted(x)

    # --- calls that take quota ---------------------------------------------------------------------------------------

    async def _counted(self, x: Exchange) -> None:
        chain = self._catalog.chain(x.call.model or "", x.mode)
        chain = chain if x.fallback else chain[:1]
        ask = x.ask(self._catalog.generation(chain[0]), self._catalog.kind(chain[0]))
        ask = await self._sized(x, chain[0], ask)
        x.record.estimated = ask.want.tokens
        failures: list[Failure | Full] = []
        tried = {model: Tried() for model in chain}
        for deadline in self._passes(x, len(chain)):
            for model in chain:
                asked = replace(ask, deadline=deadline)
                if await self._on_model(x, model, asked, tried[model], failures, last=model == chain[-1]):
                    return
                if not x.may_try(self._settings.max_attempts):
                    break
        await self._refuse(x, chain[0], ask, failures)

    def _passes(self, x: Exchange, models: int) -> Sequence[float]:
        """The deadlines to try the chain with: first a short one, if falling back comes before waiting long."""
        after = self._settings.fallback_after
        if after is None or models == 1 or self.pool.now() + after >= x.deadline:
            return (x.deadline,)
        return (self.pool.now() + after, x.deadline)

    async def _on_model(
        self, x: Exchange, model: str, ask: Ask, tried: Tried, failures: list[Failure | Full], *, last: bool
    ) -> bool:
        """True when the client has its answer."""
        troubles = 0
        while x.may_try(self._settings.max_attempts):
            began = self.pool.now()
            found = await self.pool.reserve(model, ask, tried)
            x.record.waited += self.pool.now() - began
            if isinstance(found, Full):
                failures.append(found)
                x.noted(Attempt(model, "", "", "full", None, detail=_said(found)))
                return False
            failure = await self._attempt(x, found)
            if failure is None:
                return True
            failures.append(failure)
            ask = replace(ask, prefer_key=None)
            tried.keys.add(found.key.id)
            match failure.verdict.action:
                case "next-key":
                    if await self._changed(found.key, failure.verdict, tried):
                        tried.keys.discard(found.key.id)
                case "next-project":
                    tried.projects.add(found.quota.project)
                    final = x.record.sent + 1 == self._settings.max_attempts
                    if final and not last and failure.verdict.cause in FOR_LONG:
                        return False  # more projects than attempts: the last one is for a model that may be there
                case "retry":
                    tried.projects.add(found.quota.project)
                    troubles += 1
                    if troubles > MOST_TROUBLES or self.pool.now() > x.deadline:
                        return False
                    await self._sleep(BACKOFF * 2 ** (troubles - 1) * (0.5 + self._jitter()))
                case "same-project" if (owner := self.pool.served_by(x.sticky)) not in (None, found.quota.project):
                    ask = replace(ask, only=owner)
                    tried.projects.discard(owner or "")
                case _:
                    # The refusal of a model that the client never asked for is not its business.
                    if any(earlier.model != model for earlier in failures):
                        return False
                    await self._give(x, failure)
                    return True
        return False

    async def _changed(self, key: Key, verdict: Verdict, tried: Tried) -> bool:
        """After a refusal of the key: read its source once more, and only once. Unchanged, it is set aside."""
        if key.id not in tried.reread and verdict.cause != UNREADABLE:
            tried.reread.add(key.id)
            if await self._keyring.reread(key.id):
                return True
        await self.outcomes.set_aside(key.id, verdict)
        return False

    async def _attempt(self, x: Exchange, reservation: Reservation) -> Failure | None:
        """Send once. None: the client has its answer."""
        key, model, project = reservation.key, reservation.model, reservation.quota.project
        x.record.used, x.record.key, x.record.project = model, key.id, project
        answer = None
        try:
            sent = await self._send(x, key, model, reservation)
            if isinstance(sent, Failure):
                failure: Failure | None = sent
            else:
                answer = sent
                failure = await self._served(x, reservation, answer)
            if failure is not None:
                if failure.verdict.blames != "key":
                    await self.outcomes.failed(reservation, failure.verdict)
                x.noted(Attempt(model, project, key.id, failure.verdict.cause, failure.status, failure.verdict.message))
            return failure
        finally:
            if answer is not None:
                answer.close()
            self.pool.give_back(reservation)

    async def _send(
        self, x: Exchange, key: Key, model: str | None, reservation: Reservation | None = None
    ) -> Answer | Failure:
        try:
            value = await self._keyring.value(key.id)
        except KeySourceError as error:
            verdict = Verdict(UNREADABLE, "key", "next-key", UNREADABLE_KEY_RESTS, message=str(error))
            return Failure(verdict, model or "", 0, (), b"", RequestError("NO_USABLE_KEY", str(error)))
        target, headers, body = x.outgoing(value, model)
        if reservation is not None:
            reservation.sent = True
        x.record.sent += 1
        try:
            return await self._upstream.send(x.method, target, headers, body)
        except UpstreamError as error:
            if reservation is not None and error.kind == "unreachable":
                reservation.sent = False  # nothing reached Google: the slot is given back
            return self._broken(model or "", error)

    async def _served(self, x: Exchange, reservation: Reservation, answer: Answer) -> Failure | None:
        """Pass a good answer on; give a bad one back for judgement. Up to the first content nothing is lost by it."""
        model = reservation.model
        headers = wire.client_headers(answer.headers)
        settle = partial(self._settle, x, reservation)
        try:
            if not 200 <= answer.status < 300:
                return self._judged(model, answer.status, headers, await answer.read())
            if x.stream != "no":
                reader = StreamReader(x.stream_form)
                first = await self._first_content(answer, reader)
                if first is None or (reader.error is not None and not reader.content_seen):
                    return self._judged(model, answer.status, headers, first or b"")
                await self._well(x, reservation)
                x.record.ended = await pass_stream(x.reply, answer, headers, reader, first, settle)
                return None
            streams = (x.call.verb or "").startswith("stream")  # in a form that is not read here: passed as it comes
            body, whole = (b"", False) if streams else await collect(answer)
            await self._well(x, reservation)
            if whole:
                await pass_whole(x.reply, answer.status, headers, body, settle)
            else:
                await pass_on(x.reply, answer, headers, settle, body)
        except UpstreamError as error:
            return self._broken(model, error)
        return None

    async def _first_content(self, answer: Answer, reader: StreamReader) -> bytes | None:
        """The bytes up to the first event with content, or up to an error. None: it ended without either."""
        held: list[bytes] = []
        while not reader.content_seen and reader.error is None:
            data = await answer.chunk()
            if not data:
                reader.close()
                return b"".join(held) if reader.error is not None or reader.finished else None
            held.append(data)
            reader.feed(data)
        return b"".join(held)

    async def _well(self, x: Exchange, reservation: Reservation) -> None:
        x.noted(Attempt(reservation.model, reservation.quota.project, reservation.key.id, "ok", 200))
        self.pool.stick(x.sticky, reservation.quota.project)
        await self.outcomes.served(reservation)

    async def _settle(self, x: Exchange, reservation: Reservation, tokens: int | None) -> None:
        x.record.tokens = tokens
        pending = self.pool.settle(reservation, tokens)
        if pending is None:
            return
        try:
            async with asyncio.timeout(SETTLE_WITHIN):
                await pending
        except (TimeoutError, StoreError) as error:
            log.warning("tokens of request %s were not settled in time: %s", x.record.id, error)

    def _judged(self, model: str, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Failure:
        if 200 <= status < 300 and not body:
            return self._broken(model, UpstreamError("reset", "the stream ended before it began"))
        return Failure(judge(status, body, now=self.pool.now()), model, status, headers, redact(body))

    def _broken(self, model: str, error: UpstreamError) -> Failure:
        verdict = replace(judge(None, b"", now=self.pool.now()), message=str(error))
        reason, setting = "UPSTREAM_UNREACHABLE", ""
        if error.kind == "timeout":
            reason, setting = "UPSTREAM_TIMEOUT", " (POLLUX_TIMEOUT)"
        return Failure(verdict, model, 0, (), b"", RequestError(reason, f"Gemini did not answer: {error}{setting}"))

    async def _give(self, x: Exchange, failure: Failure) -> None:
        """Google's refusal, unchanged but for secrets that it may echo."""
        if failure.problem is not None:
            raise failure.problem
        if failure.verdict.blames == "gateway":
            log.error("Google refused the form of a call, which is ours: %s", failure.verdict.message)
        if failure.status < 300:  # a stream that began with an error
            raise RequestError("UPSTREAM_ERROR", failure.verdict.message)
        await x.reply.whole(failure.status, failure.headers, failure.body)

    async def _refuse(self, x: Exchange, model: str, ask: Ask, failures: Sequence[Failure | Full]) -> None:
        """Nothing is left: the first refusal that says something is the client's."""
        for failure in failures:
            if isinstance(failure, Full):
                break
            if failure.model == model and failure.verdict.blames not in ("key", "project", "quota"):
                await self._give(x, failure)
                return
        full = next((f for f in reversed(failures) if isinstance(f, Full) and f.model == model), None)
        if full is None or len(full.refusals) < len(self.pool.roster.projects):
            full = await self.pool.look(model, ask)
        if full is None:
            raise self._busy(x)
        limits = self.pool.roster.limits_of_all(model)
        raise reasons.problem(model, full.refusals, self.pool.now(), want=ask.want, limits=limits)

    @staticmethod
    def _busy(x: Exchange) -> RequestError:
        message = f"{x.record.sent} attempts were refused (POLLUX_MAX_ATTEMPTS); another project may serve the next one"
        return RequestError("QUOTA_BUSY", message, retry_after=1.0)

    async def _sized(self, x: Exchange, model: str, ask: Ask) -> Ask:
        """Large wants are counted by Google (free) before they are booked."""
        limit = self.pool.roster.smallest_token_limit(model)
        question = x.size_question(model) if limit and ask.want.tokens * 4 > limit else None
        if question is None:
            return ask
        key = await self.pool.pick(model, Tried())
        tokens = None if key is None else await self._count(x, key, *question)
        return ask if tokens is None else replace(ask, want=ask.want._replace(tokens=tokens))

    async def _count(self, x: Exchange, key: Key, target: str, body: bytes) -> int | None:
        """Google's own count; None if it cannot be had, then the estimate stands."""
        try:
            value = await self._keyring.value(key.id)
            headers = [("content-type", "application/json"), ("x-goog-api-key", value.reveal())]
            async with asyncio.timeout(5):
                answer = await self._upstream.send("POST", target, headers, body)
                try:
                    return wire_body.total_tokens(await answer.read()) if answer.status == 200 else None
                finally:
                    answer.close()
        except (UpstreamError, KeySourceError, TimeoutError):
            return None

    # --- calls that take none ----------------------------------------------------------------------------------------

    async def _uncounted(self, x: Exchange) -> None:
        tried = Tried()
        model = self._catalog.resolve(x.call.model) if x.call.model else None
        last: Failure | None = None
        await self.pool.roster.ready()
        while x.may_try(self._settings.max_attempts):
            key = await self.pool.pick(model, tried)
            if key is None:
                break
            x.record.used, x.record.key, x.record.project = model or "", key.id, key.project
            last = await self._free_attempt(x, key, model)
            if last is None:
                return
            x.noted(Attempt(model or "", key.project, key.id, last.verdict.cause, last.status, last.verdict.message))
            tried.keys.add(key.id)
            match last.verdict.action:
                case "next-key":
                    if await self._changed(key, last.verdict, tried):
                        tried.keys.discard(key.id)
                case "next-project":
                    tried.projects.add(key.project)
                case "retry" if x.method in ("GET", "HEAD") or x.call.kind == "count":
                    tried.projects.add(key.project)
                case _:
                    break
        if last is not None and last.verdict.blames != "key":
            await self._give(x, last)
            return
        _, refusals = self.pool.roster.candidates(model or "", (), (), self.pool.now())
        if last is not None and len(refusals) < len(self.pool.roster.projects):
            raise self._busy(x)
        raise reasons.problem(model or "", refusals, self.pool.now(), want=Want())

    async def _free_attempt(self, x: Exchange, key: Key, model: str | None) -> Failure | None:
        sent = await self._send(x, key, model)
        if isinstance(sent, Failure):
            return sent
        try:
            headers = wire.client_headers(sent.headers)
            if sent.status >= 300:
                return self._judged(model or "", sent.status, headers, await sent.read())
            x.noted(Attempt(model or "", key.project, key.id, "ok", sent.status))
            if x.call.kind == "list-models":
                body = wire_body.with_aliases(await sent.read(), x.call, self._catalog.aliases)
                await x.reply.whole(sent.status, headers, body)
            else:
                await pass_on(x.reply, sent, headers, _nothing_to_settle)
        except UpstreamError as error:
            return self._broken(model or "", error)
        finally:
            sent.close()
        return None


async def _nothing_to_settle(_: int | None) -> None:
    return None


def _said(full: Full) -> str:
    if not full.refusals:
        return "no project is left"
    first = min(full.refusals.values())
    return reasons.words(first.why) + ("" if first.until == math.inf else "; later than the request may wait")
