"""One attempt of a request: sent with one key, judged, passed on if it is good. `relay` decides which comes next."""

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
from pollux.relay.request import Exchange
from pollux.relay.send import API_KEY, BEARER, CoveredAnswer, Failure, KeyedUpstream, broken

log = logging.getLogger("pollux.relay")

SETTLE_WITHIN = 0.1
BACKOFF = 0.25
AGAIN_WITHIN = 10.0
"""A request may be sent again until its deadline, or for so long after it was first sent: who does not wait for a slot
should not see each trouble of Google's either."""


class LateError(Exception):
    """The slot was over before the key's value was at hand: nothing was sent, and the slot is given back."""


class Attempts:
    def __init__(self, pool: Pool, upstream: Upstream) -> None:
        self.pool = pool
        self._feedback = Feedback(pool)
        self.upstream = KeyedUpstream(upstream, pool.projects.keyring, pool.now)
        self._keyring = pool.projects.keyring
        self._aliases = pool.projects.catalog.aliases

    async def reserved(self, x: Exchange, reservation: Reservation) -> Failure | None:
        """A call with a slot of its own. None: the client has its answer. Raises LateError."""
        key, model, project = reservation.key, reservation.model, reservation.quota.project
        try:
            sent = await self._send(x, key, model, reservation)
            failure = sent if isinstance(sent, Failure) else await self._served(x, key, model, sent, reservation)
            if failure is not None:
                if failure.unsent:
                    reservation.sent = False
                failure = x.place.judged(failure)
                if failure.verdict.blames != "key":
                    verdict = await self._feedback.failed(reservation, failure.verdict)
                    failure = replace(failure, verdict=verdict)
                verdict = failure.verdict
                attempt = Attempt(model, project, key.id, verdict.cause, failure.status, verdict.message)
                if verdict.cause in verdict.learned:
                    attempt.learned = {name: value for name, value in verdict.learned.items() if value > 0}
                x.record.note(attempt)
            return failure
        finally:
            reservation.let_go()

    async def free(self, x: Exchange, key: Key, model: str | None) -> Failure | None:
        """A call that takes no quota. None: the client has its answer."""
        sent = await self._send(x, key, model)
        return sent if isinstance(sent, Failure) else await self._served(x, key, model or "", sent)

    async def key_changed(self, key: Key, verdict: Verdict, tried: Tried) -> bool:
        """After a refusal of the key: read its source once more, and only once. Unchanged, it is set aside."""
        if verdict.cause == "key-source" and not verdict.cooldown_s:
            return False
        if key.id not in tried.reread and verdict.cause != "key-source":
            tried.reread.add(key.id)
            if await self._keyring.reread(key.id):
                return True
        await self._feedback.set_aside("keys", key.id, verdict)
        return False

    async def give(self, x: Exchange, failure: Failure) -> None:
        """Google's refusal, unchanged but for secrets that it may echo."""
        if failure.problem is not None:
            raise failure.problem
        if failure.verdict.blames == "gateway":
            log.error("Google refused the form of a call, which is ours: %s", failure.verdict.message)
        if failure.status < 300:  # a stream that began with an error
            raise GatewayError("UPSTREAM_ERROR", failure.verdict.message)
        await x.reply.whole(failure.status, failure.headers, x.place.shown(failure.body))

    async def _send(
        self, x: Exchange, key: Key, model: str | None, reservation: Reservation | None = None
    ) -> CoveredAnswer | Failure:
        target, headers, body = x.outgoing(model)
        return await self.upstream.send(
            key,
            x.method,
            target,
            headers,
            body if x.passing is None else x.passing,
            credential=BEARER if x.call.api == "openai" else API_KEY,
            readdress=x.readdress,
            begins=partial(self._begins, x, reservation),
        )

    def _begins(self, x: Exchange, reservation: Reservation | None) -> None:
        """Just before it is sent: the key's value may have had to be fetched first."""
        record = x.record
        if reservation is not None:
            if self.pool.is_late(reservation):
                raise LateError
            key, reservation.sent = reservation.key, True
            record.used, record.key, record.project = reservation.model, key.id, reservation.quota.project
        record.sent += 1

    async def _served(
        self, x: Exchange, key: Key, model: str, answer: CoveredAnswer, reservation: Reservation | None = None
    ) -> Failure | None:
        """Pass a good answer on; give a bad one back for judgement. Up to the first content nothing is lost by it."""
        settle = nothing_to_settle if reservation is None else partial(self._settle, x, reservation)
        body, whole = b"", False
        try:
            if reservation is not None and x.stream != "no":
                reader = StreamReader(x.stream_form)
                first = await self._first_content(answer, reader)
                if reader.error is not None and not reader.content_seen:
                    return answer.refusal(key, first, self.pool.now())
                await self._well(x, key, model, answer, reservation)
                x.record.ended = await pass_stream(x.reply, answer, reader, first, settle)
                return None
            # A stream in a form that is not read here passes as it comes; so do free calls.
            if reservation is not None and x.pass_on is None and not (x.call.verb or "").startswith("stream"):
                body, whole = await collect(answer)
            await self._well(x, key, model, answer, reservation)
            if x.call.kind == "list-models" and x.method == "GET":
                body, whole = with_aliases(await answer.read(), x.call, self._aliases), True
            if x.pass_on is not None:
                await x.pass_on(x, answer, key.project, settle)
            else:
                await pass_on(x.reply, answer, settle, body, whole=whole)
        except UpstreamError as error:
            return broken(key, error, self.pool.now())
        finally:
            answer.close()
        return None

    async def _first_content(self, answer: CoveredAnswer, reader: StreamReader) -> bytes:
        """The bytes up to the first event with content, or up to an error. Raises UpstreamError if neither comes."""
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

    async def _well(
        self, x: Exchange, key: Key, model: str, answer: CoveredAnswer, reservation: Reservation | None
    ) -> None:
        x.record.note(Attempt(model, key.project, key.id, "ok", answer.status))
        if reservation is None:
            self._feedback.took(key.id)
        else:
            self.pool.stick(x.sticky, key.project)
            await self._feedback.served(reservation)

    async def _settle(self, x: Exchange, reservation: Reservation, tokens: int | None) -> None:
        x.record.tokens = tokens
        pending = reservation.settle(tokens)
        if pending is None:
            return
        try:
            async with asyncio.timeout(SETTLE_WITHIN):
                await pending
        except (TimeoutError, StoreError) as error:
            log.warning("tokens of request %s were not settled in time: %s", x.record.id, error)


def backoff(troubles: int, jitter: float) -> float:
    """Seconds until a request is sent again after so many troubles. `jitter`: 0 to 1."""
    return BACKOFF * 2.0 ** (troubles - 1) * (0.5 + jitter)
