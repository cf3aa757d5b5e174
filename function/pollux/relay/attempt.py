"""One attempt of a request: send it with one key, judge the answer, pass a good one on. `retry` decides the rest."""

import asyncio
import logging
from dataclasses import replace
from functools import partial

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import StoreError
from pollux.backends.upstream import Upstream, UpstreamError
from pollux.gemini.body import with_aliases
from pollux.gemini.errors import GatewayError
from pollux.gemini.stream import StreamReader
from pollux.gemini.verdict.rules import Verdict
from pollux.pool.feedback import Feedback
from pollux.pool.pool import Pool
from pollux.pool.reservation import Reservation, Tried
from pollux.relay.journal import Attempt
from pollux.relay.passing import collect, nothing_to_settle, pass_on, pass_stream
from pollux.relay.request import Request
from pollux.relay.send import API_KEY, BEARER, CoveredAnswer, Failure, KeyedUpstream, broken

log = logging.getLogger("pollux.relay")

SETTLE_WITHIN = 0.1
BACKOFF = 0.25
AGAIN_WITHIN = 10.0
"""Seconds. A request may be sent again until its deadline, or for this long after its first attempt if that is later: a
client that waits for no slot is spared Google's brief errors, too."""


class LateError(Exception):
    """The slot ended before the key's value was read: nothing was sent, and the slot is given back."""


class Attempts:
    def __init__(self, pool: Pool, upstream: Upstream) -> None:
        self.pool = pool
        self._feedback = Feedback(pool)
        self.upstream = KeyedUpstream(upstream, pool.projects.keyring, pool.now)
        self._keyring = pool.projects.keyring
        self._aliases = pool.projects.catalog.aliases

    async def reserved(self, request: Request, reservation: Reservation) -> Failure | None:
        """A call that uses a reservation. None: the client has its answer. Raises LateError."""
        key, model, project = reservation.key, reservation.model, reservation.quota.project
        try:
            sent = await self._send(request, key, model, reservation)
            failure = sent if isinstance(sent, Failure) else await self._served(request, key, model, sent, reservation)
            if failure is not None:
                if failure.unsent:
                    reservation.sent = False
                failure = request.placement.judged(failure)
                if failure.verdict.blames != "key":
                    verdict = await self._feedback.failed(reservation, failure.verdict)
                    failure = replace(failure, verdict=verdict)
                verdict = failure.verdict
                attempt = Attempt(model, project, key.id, verdict.cause, failure.status, verdict.message)
                if verdict.cause in verdict.learned:
                    attempt.learned = {name: value for name, value in verdict.learned.items() if value > 0}
                request.record.note(attempt)
            return failure
        finally:
            reservation.let_go()

    async def free(self, request: Request, key: Key, model: str | None) -> Failure | None:
        """A call that takes no quota. None: the client has its answer."""
        sent = await self._send(request, key, model)
        return sent if isinstance(sent, Failure) else await self._served(request, key, model or "", sent)

    async def key_changed(self, key: Key, verdict: Verdict, tried: Tried) -> bool:
        """After a refusal of the key: read its source again, once. If the value is the same, the key is set aside."""
        if verdict.cause == "key-source" and not verdict.cooldown_s:
            return False
        if key.id not in tried.reread and verdict.cause != "key-source":
            tried.reread.add(key.id)
            if await self._keyring.reread(key.id):
                return True
        await self._feedback.set_aside("keys", key.id, verdict)
        return False

    async def give(self, request: Request, failure: Failure) -> None:
        """Answer the client with the failure: Google's own body, with secrets replaced, or an error of ours."""
        if failure.problem is not None:
            raise failure.problem
        if failure.verdict.blames == "gateway":
            log.error("Google refused a call because of how the gateway sent it: %s", failure.verdict.message)
        if failure.status < 300:  # a stream that began with an error
            raise GatewayError("UPSTREAM_ERROR", failure.verdict.message)
        await request.reply.whole(failure.status, failure.headers, request.placement.shown(failure.body))

    async def _send(
        self, request: Request, key: Key, model: str | None, reservation: Reservation | None = None
    ) -> CoveredAnswer | Failure:
        target, headers, body = request.outgoing(model)
        return await self.upstream.send(
            key,
            request.method,
            target,
            headers,
            body if request.streamed is None else request.streamed,
            credential=BEARER if request.call.api == "openai" else API_KEY,
            readdress=request.readdress,
            begins=partial(self._begins, request, reservation),
        )

    def _begins(self, request: Request, reservation: Reservation | None) -> None:
        """Called just before sending: fetching the key's value may have taken longer than the slot lasts."""
        record = request.record
        if reservation is not None:
            if self.pool.is_late(reservation):
                raise LateError
            key, reservation.sent = reservation.key, True
            record.used, record.key, record.project = reservation.model, key.id, reservation.quota.project
        record.sent += 1

    async def _served(
        self, request: Request, key: Key, model: str, answer: CoveredAnswer, reservation: Reservation | None = None
    ) -> Failure | None:
        """Pass a good answer on. Returns a failure if it is bad before its first content: then nothing has reached the
        client.
        """
        settle = nothing_to_settle if reservation is None else partial(self._settle, request, reservation)
        body, whole = b"", False
        try:
            if reservation is not None and request.stream != "no":
                reader = StreamReader(request.stream_form)
                first = await self._first_content(answer, reader)
                if reader.error is not None and not reader.content_seen:
                    return answer.refusal(key, first, self.pool.now())
                await self._succeeded(request, key, model, answer, reservation)
                request.record.ended = await pass_stream(request.reply, answer, reader, first, settle)
                return None
            # A stream in a form that is not read here passes as it comes; so do free calls.
            if (
                reservation is not None
                and request.pass_on is None
                and not (request.call.verb or "").startswith("stream")
            ):
                body, whole = await collect(answer)
            await self._succeeded(request, key, model, answer, reservation)
            if request.call.kind == "list-models" and request.method == "GET":
                body, whole = with_aliases(await answer.read(), request.call, self._aliases), True
            if request.pass_on is not None:
                await request.pass_on(request, answer, key.project, settle)
            else:
                await pass_on(request.reply, answer, settle, body, whole=whole)
        except UpstreamError as error:
            return broken(key, error, self.pool.now())
        finally:
            answer.close()
        return None

    async def _first_content(self, answer: CoveredAnswer, reader: StreamReader) -> bytes:
        """The bytes up to the first event with content or an error. Raises UpstreamError if neither comes."""
        held: list[bytes] = []
        while not reader.content_seen and reader.error is None:
            data = await answer.chunk()
            if not data:
                reader.close()
                if reader.error is None and not reader.finished:
                    raise UpstreamError("reset", "the stream ended before it began")
                break
            held.append(data)
            reader.feed(data)
        return b"".join(held)

    async def _succeeded(
        self, request: Request, key: Key, model: str, answer: CoveredAnswer, reservation: Reservation | None
    ) -> None:
        request.record.note(Attempt(model, key.project, key.id, "ok", answer.status))
        if reservation is None:
            self._feedback.accepted(key.id)
        else:
            self.pool.stick(request.sticky, key.project)
            await self._feedback.served(reservation)

    async def _settle(self, request: Request, reservation: Reservation, tokens: int | None) -> None:
        request.record.tokens = tokens
        pending = reservation.settle(tokens)
        if pending is None:
            return
        try:
            async with asyncio.timeout(SETTLE_WITHIN):
                await pending
        except (TimeoutError, StoreError) as error:
            log.warning("tokens of request %s were not settled in time: %s", request.record.id, error)


def backoff(troubles: int, jitter: float) -> float:
    """Seconds to wait before the next attempt, after that many troubles. `jitter`: 0 to 1."""
    return BACKOFF * 2.0 ** (troubles - 1) * (0.5 + jitter)
