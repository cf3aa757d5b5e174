"""uvicorn's HTTP/1.1 with limits on request heads: how large one may grow, and how long it may take.

A complete head that is too large is refused by `reception`, in the shape of the API that was called.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pollux.gemini.errors import ERRORS, error_body
from pollux.relay.client import HEAD_MOST

HEAD_WITHIN = 60.0
BODY_HELD = 1 << 18
"""Bytes of a body that are held before the app asks for them. The loop reads no larger piece at once."""
REASON = "HEAD_TOO_LARGE"


class Protocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head = 0
        self._head_open = False
        self._impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        counts = self._head_open or self.cycle is None
        super().data_received(data)
        if not self._head_open:
            return
        # Behind another request it is unknown where in its first piece a head begins: that piece is not counted.
        self._head += len(data) if counts else 0
        if self._head > HEAD_MOST:
            self._refuse()
        elif self._impatience is None:
            self._hurry()

    def on_message_begin(self) -> None:
        self._head, self._head_open = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_open = False
        self._calm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As in uvicorn, but without a second copy of a single piece, and one piece alone does not stop the reading."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body = cycle.body + body if cycle.body else body  # type: ignore[assignment]
        if len(cycle.body) > BODY_HELD:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _hurry(self) -> None:
        self._impatience = self.loop.call_later(HEAD_WITHIN, self.transport.close)

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            kind = ERRORS[REASON]
            said = f"the path and the headers are larger than {HEAD_MOST} bytes"
            body = error_body("native", REASON, said)
            head = (
                f"HTTP/1.1 {kind.http} Request Header Fields Too Large\r\n"
                "content-type: application/json; charset=utf-8\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
