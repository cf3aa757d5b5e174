"""What goes back to the client: Google's bytes as they come, or an error of ours in the shape of the API called."""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from pollux.backends.upstream import UpstreamError
from pollux.gemini.call import read_target
from pollux.gemini.errors import GatewayError, error_body, stream_error
from pollux.gemini.stream import StreamReader
from pollux.gemini.verdict.error_body import read as read_error
from pollux.relay.client import Scope, Send, uncancel
from pollux.relay.journal import Record
from pollux.relay.send import CoveredAnswer

WHOLE_MOST = 1 << 20
"""An answer up to this size is read whole before any of it is sent: if its connection breaks, it can be retried."""
TAIL = 1 << 14
PATH_READ = 256
_TOKENS = re.compile(rb'(?<!\\)"(?:promptTokenCount|prompt_tokens|total_input_tokens)"\s*:\s*(\d{1,15})')

Settle = Callable[[int | None], Awaitable[None]]


class BrokenAnswerError(Exception):
    """The answer broke after it had begun, and its form cannot carry an error: the connection must be cut."""


def prompt_tokens(body: bytes) -> int | None:
    """The input tokens that an answer reports near its end."""
    found = _TOKENS.findall(body[-TAIL:])
    return int(found[-1]) if found else None


class Reply:
    """The answer to a client. Once it has begun, nothing is retried. The server leaves out the body of one to HEAD."""

    def __init__(self, send: Send, record: Record, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._send = send
        self._record = record
        self._extra = list(extra)
        self.begun = False
        self.ending = False
        """Everything was passed on; only the settlement is waited for."""
        self.cut = False
        """The gateway stops: the rest of the answer is not waited for."""

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None = None) -> None:
        """`length`: of the body, if it is known. A Content-Length in `headers` is ignored."""
        self.begun = True
        record = self._record
        record.status = status
        record.first_byte = time.monotonic() - record.started
        sent = self._extra.copy()
        for header in headers:
            if header[0] != b"content-length":
                sent.append(header)
        if length is not None:
            sent.append((b"content-length", b"%d" % length))
        sent.append((b"x-pollux-request-id", record.id.encode()))
        sent.append((b"x-pollux-attempts", b"%d" % record.sent))
        sent.append((b"x-pollux-wait-ms", b"%d" % (record.waited * 1000)))
        if record.key:
            sent.append((b"x-pollux-key", record.key.encode("latin-1", "replace")))
        if record.used:
            sent.append((b"x-pollux-model", record.used.encode("latin-1", "replace")))
        if status < 400 and record.fallback_from:
            sent.append((b"x-pollux-fallback", b"from " + record.fallback_from.encode("latin-1", "replace")))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})

    async def chunk(self, data: bytes) -> None:
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        await self.begin(status, headers, len(body))
        await self.end(body)

    async def error(self, error: GatewayError) -> None:
        """Raises BrokenAnswerError if the answer has begun: then the client cannot be told."""
        if self.begun:
            raise BrokenAnswerError(str(error))
        record, again = self._record, error.retry_after
        record.reason = error.code
        body = error_body(record.api, error.code, error.message, retry_after=again, request_id=record.id)
        headers = [(b"content-type", b"application/json; charset=utf-8")]
        if error.status in (408, 431):  # the rest of the request is not read
            headers.append((b"connection", b"close"))
        if again is not None and again != math.inf:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(again))))
        await self.whole(error.status, headers, body)


def api_of(scope: Scope) -> str:
    """Which API's shape an error gets, while nothing else of the request is read."""
    bearer = any(name == b"authorization" for name, _ in scope["headers"])
    path = scope.get("raw_path") or scope["path"].encode()
    try:
        return read_target(scope["method"], path[:PATH_READ], bearer=bearer).api
    except GatewayError:
        return "native"


async def refuse(scope: Scope, send: Send, error: GatewayError) -> None:
    """Answer with an error while no gateway is running."""
    await Reply(send, Record(api=api_of(scope))).error(error)


async def nothing_to_settle(_: int | None) -> None:
    """For an answer that took no quota."""


async def collect(answer: CoveredAnswer) -> tuple[bytes, bool]:
    """The beginning of an answer, and whether that is all of it. No more than about WHOLE_MOST is read."""
    if answer.length is not None:
        return (await answer.read(), True) if answer.length <= WHOLE_MOST else (b"", False)
    held: list[bytes] = []
    size = 0
    while size <= WHOLE_MOST:
        data = await answer.chunk()
        if not data:
            return b"".join(held), True
        held.append(data)
        size += len(data)
    return b"".join(held), False


async def pass_on(
    reply: Reply, answer: CoveredAnswer, settle: Settle, first: bytes = b"", *, whole: bool = False
) -> None:
    """Pass on a plain answer, of which `first` was read already (all of it, if `whole`), as the rest comes. If the
    length is known, the last piece waits for the settlement.
    """
    if whole:
        reply.ending = True
        await settle(prompt_tokens(first))
        await reply.whole(answer.status, answer.headers, first)
        return
    await reply.begin(answer.status, answer.headers, answer.length)
    tail, missing = b"", answer.length
    try:
        data = first or await answer.chunk()
        while data:
            tail = data[-TAIL:] if len(data) >= TAIL else (tail + data)[-TAIL:]
            if missing is not None and (missing := missing - len(data)) <= 0:
                break
            await reply.chunk(data)
            data = await answer.chunk()
    except UpstreamError as error:
        raise BrokenAnswerError(str(error)) from None
    reply.ending = True
    await settle(prompt_tokens(tail))
    await reply.end(data)


async def pass_stream(reply: Reply, answer: CoveredAnswer, reader: StreamReader, first: bytes, settle: Settle) -> str:
    """Pass on a stream whose first content is in `first`. Returns how it ended; "": as it should."""
    await reply.begin(answer.status, answer.headers)
    ended, data = "", first
    held: list[bytes] = []
    broken = ""
    try:
        while data:
            held.append(data)
            if not reader.error_begun:  # an error may echo the key in another spelling, in two chunks
                text = b"".join(held) if len(held) > 1 else data
                held.clear()
                await reply.chunk(text if reader.error is None else answer.redact(text))
            if data := await answer.chunk():
                reader.feed(data)
        reader.close()
    except UpstreamError as error:
        ended, broken = "broken", f"the stream from Gemini broke: {error}"
    except asyncio.CancelledError:
        if not reply.cut:
            raise
        uncancel()
        ended, broken = "cut", "the gateway stops, and this stream had not ended"
    reply.ending = True
    if held:
        await reply.chunk(answer.redact(b"".join(held)))
    if broken:
        await reply.chunk(stream_error(reader.form, 503, "UNAVAILABLE", broken))
    elif reader.error is not None:
        ended = "error"
        if reader.form.startswith("openai"):  # Google writes a bare list there, which OpenAI's SDKs do not see
            found = read_error(None, reader.error)
            said = answer.redact(found.message)
            await reply.chunk(stream_error(reader.form, found.code or 500, "UNAVAILABLE", said))
    elif not reader.finished:
        ended = "truncated"
    await settle(reader.prompt_tokens)
    await reply.end()
    return ended
