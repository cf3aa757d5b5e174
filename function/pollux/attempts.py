"""One call upstream: send it, judge what comes, pass on what is good. Which call comes next is `relay`'s to decide."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from pollux import wire
from pollux.exchange import Exchange
from pollux.journal import Attempt
from pollux.keys import Key, KeySourceError, Secret
from pollux.log import guard
from pollux.outbound import collect, covered, nothing_to_settle, pass_on, pass_stream, pass_whole
from pollux.outcome import Outcomes
from pollux.pool import Pool, Reservation, Tried
from pollux.redaction import redact, without
from pollux.resources import Resources
from pollux.store import StoreError
from pollux.stream import StreamReader
from pollux.upstream import Answer, Upstream, UpstreamError
from pollux.verdict.causes import OF_RESOURCES
from pollux.verdict.rules import Verdict, judge, verdict_of
from pollux.wire.error import GatewayError

log = logging.getLogger("pollux.relay")

SETTLE_WITHIN = 0.1
BACKOFF = 0.25
AGAIN_WITHIN = 10.0
"""A request may be sent again until its deadline, or for so long after it was first sent: who does not wait for a slot
should not see each trouble of Google's either."""
ERROR_MOST = 1 << 20
"""No error is larger, inflated."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that gave the client nothing, and what Google said to it."""

    verdict: Verdict
    model: str
    key: Key
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    problem: GatewayError | None = None
    """Set when there was no answer to pass on."""

    unsent: bool = False
    """Nothing of the request reached Google."""

    @property
    def timed_out(self) -> bool:
        return self.problem is not None and self.problem.code == "UPSTREAM_TIMEOUT"


class Attempts:
    def __init__(self, pool: Pool, upstream: Upstream, resources: Resources) -> None:
        self.pool = pool
        self._resources = resources
        self._outcomes = Outcomes(pool)
        self._upstream = upstream
        self._keyring = pool.roster.keyring
        self._aliases = pool.roster.catalog.aliases
        self._guarded: set[Secret] = set()

    async def in_time(self, reservation: Reservation) -> bool:
        """Whether the slot is still good when the key's value is at hand, which may have to be fetched first."""
        try:
            with suppress(KeySourceError):  # of that the attempt itself tells
                await self._keyring.value(reservation.key.id)
        except BaseException:  # the client left
            reservation.let_go()
            raise
        if not self.pool.is_late(reservation):
            return True
        reservation.let_go()
        return False

    async def reserved(self, x: Exchange, reservation: Reservation) -> Failure | None:
        """A call with a slot of its own. None: the client has its answer."""
        key, model, project = reservation.key, reservation.model, reservation.quota.project
        x.record.used, x.record.key, x.record.project = model, key.id, project
        answer = None
        try:
            sent = await self._send(x, key, model, reservation)
            if isinstance(sent, Failure):
                failure: Failure | None = sent
            else:
                answer, secret = sent
                failure = await self._served(x, reservation, answer, secret)
            if failure is not None:
                failure = self.of_resources(x, failure)
                if failure.verdict.blames != "key":
                    verdict = await self._outcomes.failed(reservation, failure.verdict)
                    failure = replace(failure, verdict=verdict)
                verdict = failure.verdict
                attempt = Attempt(model, project, key.id, verdict.cause, failure.status, verdict.message)
                if verdict.cause in verdict.learned:
                    attempt.learned = {name: value for name, value in verdict.learned.items() if value > 0}
                x.noted(attempt)
            return failure
        finally:
            if answer is not None:
                answer.close()
            reservation.let_go()

    async def free(self, x: Exchange, key: Key, model: str | None) -> Failure | None:
        """A call that takes no quota. None: the client has its answer."""
        sent = await self._send(x, key, model)
        if isinstance(sent, Failure):
            return sent
        answer, secret = sent
        try:
            headers = _client_headers(answer, secret)
            if x.readdress is not None:
                headers = x.readdress(answer.headers, headers, key, secret)
            if answer.status >= 300:
                return self._judged(model or "", key, secret, answer.status, headers, await answer.read())
            x.noted(Attempt(model or "", key.project, key.id, "ok", answer.status))
            self._outcomes.took(key.id)
            if x.call.kind == "list-models" and x.method == "GET":
                body = wire.with_aliases(await answer.read(), x.call, self._aliases)
                await pass_whole(x.reply, answer.status, headers, body, nothing_to_settle, secret=secret)
            elif wire.is_resource_call(x.call):
                await self._resources.pass_on(x, answer, headers, key.project, nothing_to_settle, secret=secret)
            else:
                await pass_on(x.reply, answer, headers, nothing_to_settle, secret=secret)
        except UpstreamError as error:
            return self._broken(model or "", key, secret, error)
        finally:
            answer.close()
        return None

    def of_resources(self, x: Exchange, failure: Failure) -> Failure:
        """A resource that its owner does not know, or does not show: the client's matter, whatever the words are, and
        no reason to rest anything."""
        if not x.names or failure.verdict.cause not in OF_RESOURCES:
            return failure
        for name in x.names:
            self._resources.affinity.drop(name)
        if failure.verdict.cause != "model-access":
            return failure
        return replace(failure, verdict=verdict_of("resource-permission", failure.verdict.message))

    async def key_changed(self, key: Key, verdict: Verdict, tried: Tried) -> bool:
        """After a refusal of the key: read its source once more, and only once. Unchanged, it is set aside."""
        if verdict.cause == "key-source" and not verdict.cooldown_s:
            return False
        if key.id not in tried.reread and verdict.cause != "key-source":
            tried.reread.add(key.id)
            if await self._keyring.reread(key.id):
                return True
        await self._outcomes.set_aside(key.id, verdict)
        return False

    async def give(self, x: Exchange, failure: Failure) -> None:
        """Google's refusal, unchanged but for secrets that it may echo."""
        if failure.problem is not None:
            raise failure.problem
        if failure.verdict.blames == "gateway":
            log.error("Google refused the form of a call, which is ours: %s", failure.verdict.message)
        if failure.status < 300:  # a stream that began with an error
            raise GatewayError("UPSTREAM_ERROR", failure.verdict.message)
        await x.reply.whole(failure.status, failure.headers, x.shown(failure.body))

    async def _send(
        self, x: Exchange, key: Key, model: str | None, reservation: Reservation | None = None
    ) -> tuple[Answer, str] | Failure:
        """The answer, and the value that was used: neither may show the other to the client."""
        try:
            value = await self._keyring.value(key.id)
        except KeySourceError as error:
            return unreadable(model or "", key, error)
        if value not in self._guarded:
            self._guarded.add(value)
            guard(value.reveal())
        target, headers, body = x.outgoing(value, model)
        if reservation is not None:
            reservation.sent = True
        x.record.sent += 1
        try:
            sent = body if x.passing is None else x.passing
            return await self._upstream.send(x.method, target, headers, sent), value.reveal()
        except UpstreamError as error:
            if reservation is not None and error.kind == "unreachable":
                reservation.sent = False  # nothing reached Google: the slot is given back
            return self._broken(model or "", key, value.reveal(), error)

    async def _served(self, x: Exchange, reservation: Reservation, answer: Answer, secret: str) -> Failure | None:
        """Pass a good answer on; give a bad one back for judgement. Up to the first content nothing is lost by it."""
        model, key = reservation.model, reservation.key
        headers = _client_headers(answer, secret)
        settle = partial(self._settle, x, reservation)
        try:
            if not 200 <= answer.status < 300:
                return self._judged(model, key, secret, answer.status, headers, await answer.read())
            if x.stream != "no":
                reader = StreamReader(x.stream_form)
                first = await self._first_content(answer, reader)
                if first is None or (reader.error is not None and not reader.content_seen):
                    return self._judged(model, key, secret, answer.status, headers, first or b"")
                await self._well(x, reservation)
                x.record.ended = await pass_stream(x.reply, answer, headers, reader, first, settle, secret=secret)
                return None
            if wire.is_resource_call(x.call):
                await self._well(x, reservation)
                await self._resources.pass_on(x, answer, headers, key.project, settle, secret=secret)
                return None
            streams = (x.call.verb or "").startswith("stream")  # in a form that is not read here: passed as it comes
            body, whole = (b"", False) if streams else await collect(answer)
            await self._well(x, reservation)
            if whole:
                await pass_whole(x.reply, answer.status, headers, body, settle, secret=secret)
            else:
                await pass_on(x.reply, answer, headers, settle, body, secret=secret)
        except UpstreamError as error:
            return self._broken(model, key, secret, error)
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
        await self._outcomes.served(reservation)

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

    def _judged(
        self, model: str, key: Key, secret: str, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> Failure:
        if 200 <= status < 300 and not body:
            return self._broken(model, key, secret, UpstreamError("reset", "the stream ended before it began"))
        verdict, headers, body = judged(status, headers, body, secret, self.pool.now())
        return Failure(verdict, model, key, status, headers, body)

    def _broken(self, model: str, key: Key, secret: str, error: UpstreamError) -> Failure:
        failure = unreached(model, key, error, secret, self.pool.now())
        return replace(failure, verdict=replace(failure.verdict, message=redact(str(error), [secret])))


def backoff(troubles: int, jitter: float) -> float:
    """Seconds until a request is sent again after so many troubles. `jitter`: 0 to 1."""
    return BACKOFF * 2.0 ** (troubles - 1) * (0.5 + jitter)


def unreadable(model: str, key: Key, error: KeySourceError) -> Failure:
    verdict = verdict_of("key-source", str(error))
    if error.passing:  # trouble of this instance: others may hold the value, and go on with the key
        verdict = replace(verdict, cooldown_s=0.0)
    return Failure(verdict, model, key, 0, (), b"", GatewayError("NO_USABLE_KEY", str(error)))


def judged(
    status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, secret: str, now: float
) -> tuple[Verdict, Sequence[tuple[bytes, bytes]], bytes]:
    """What a refusal means, and its headers and body as a client may see them."""
    headers, body = _inflated(headers, body)
    # Before it is judged: a message is cut, and half a key would not be known as one. After: it is unescaped then.
    body = without(body, [secret])
    verdict = judge(status, body, now=now)
    return replace(verdict, message=redact(verdict.message, [secret])), headers, redact(body)


def unreached(model: str, key: Key, error: UpstreamError, secret: str, now: float) -> Failure:
    """No answer came, or none that could be read."""
    verdict, unsent = judge(None, b"", now=now), error.kind == "unreachable"
    return Failure(verdict, model, key, 0, (), b"", unanswered(error, secret), unsent)


def unanswered(error: UpstreamError, secret: str) -> GatewayError:
    """What the client is told when no answer came."""
    reason, setting = "UPSTREAM_UNREACHABLE", ""
    if error.kind == "timeout":
        reason, setting = "UPSTREAM_TIMEOUT", " (POLLUX_TIMEOUT)"
    return GatewayError(reason, f"Gemini did not answer: {redact(str(error), [secret])}{setting}")


def _client_headers(answer: Answer, secret: str) -> list[tuple[bytes, bytes]]:
    return [(name, covered(value, secret)) for name, value in wire.client_headers(answer.headers)]


def _inflated(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[Sequence[tuple[bytes, bytes]], bytes]:
    """An error as it reads. What cannot be inflated is left out: nobody could tell whether it holds the key."""
    encoding = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
    if not encoding:
        return headers, body
    headers = [(name, value) for name, value in headers if name != b"content-encoding"]
    try:
        return headers, wire.inflate(body, encoding, ERROR_MOST)
    except wire.GatewayError:
        return headers, b""
