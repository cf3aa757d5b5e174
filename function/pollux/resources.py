"""Answers about what projects own: bound before the client has them, and with our addresses in place of Google's."""

import json
import re
from typing import Any

from pollux import wire
from pollux.affinity import Affinity
from pollux.exchange import Exchange
from pollux.outbound import TAIL, BrokenAnswerError, Settle, collect, pass_on, prompt_tokens
from pollux.send import CoveredAnswer
from pollux.upstream import UpstreamError

HELD_MOST = 1 << 16
"""An event as long as this is content, and names nothing."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NAMING = (b'"id"', b"environment_id", b"interaction_id")


class Resources:
    def __init__(self, affinity: Affinity, upstream: str) -> None:
        self.affinity = affinity
        self._upstream = upstream

    async def answered(self, x: Exchange, project: str, body: bytes) -> bytes:
        """The answer as the client gets it, after what it names is bound to the project that gave it."""
        body = x.shown(body)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return body
        await self._bind(x, project, document)
        return wire.to_client(body, self._upstream, x.own_base()) if b"://" in body or b":\\/" in body else body

    async def pass_on(self, x: Exchange, answer: CoveredAnswer, project: str, settle: Settle) -> None:
        """A resource call's good answer. What is neither JSON nor events, or is too long to read, passes unseen."""
        if x.method == "DELETE":
            for name in wire.path_names(x.call):
                if wire.names_exactly(x.call, name):
                    await self.affinity.forget(name)
        kind = next((value for name, value in answer.headers if name == b"content-type"), b"").lower()
        encoded = any(name == b"content-encoding" for name, _ in answer.headers)
        if kind.startswith(b"text/event-stream") and not encoded:
            await self._pass_events(x, answer, project, settle)
            return
        body, whole = await collect(answer) if b"json" in kind and not encoded else (b"", False)
        if whole and x.method != "DELETE":
            body = await self.answered(x, project, body)
        await pass_on(x.reply, answer, settle, body, whole=whole)

    async def _bind(self, x: Exchange, project: str, document: Any) -> None:
        names = wire.answer_names(document, x.call, (wire.GOOGLE, self._upstream))
        if names:
            await self.affinity.bind(names, project, x.record.client)

    async def _pass_events(self, x: Exchange, answer: CoveredAnswer, project: str, settle: Settle) -> None:
        """Byte for byte; but an event passes only when it is complete, and one that names something, once that is
        bound."""
        await x.reply.begin(answer.status, answer.headers)
        held, tail = b"", b""
        try:
            while data := await answer.chunk():
                held += data
                ends = [found.end() for found in _EVENT_END.finditer(held)]
                end = ends[-1] if ends else 0
                if end and any(mark in held[:end] for mark in _NAMING):
                    for event in _EVENT_END.split(held[:end]):
                        if (document := _data_of(event)) is not None:
                            await self._bind(x, project, document)
                if len(held) - end > HELD_MOST:
                    end = len(held)
                if end:
                    await x.reply.chunk(held[:end])
                    tail = (tail + held[:end])[-TAIL:]
                    held = held[end:]
        except UpstreamError as error:
            raise BrokenAnswerError(str(error)) from None
        x.reply.ending = True
        await settle(prompt_tokens(tail + held))
        await x.reply.end(held)


def _data_of(event: bytes) -> Any:
    """The JSON of an event's data, if it is any."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return json.loads(b"\n".join(lines)) if lines else None
    except (ValueError, RecursionError):
        return None
