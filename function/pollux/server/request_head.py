"""uvicorn's HTTP/1.1 with limits on the size and the time of request heads.

A complete head that is too large is refused by `admission`, in the shape of the API that was called.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pollux.gemini.errors import error_body
from pollux.relay.client import HEAD_MOST

HEAD_WITHIN = 60.0
"""Seconds from the start of a connection, or of a head, until the head must be complete."""
BODY_HELD = 1 << 18
"""Bytes of a body that are held before the app asks for them. The loop reads no larger piece at once."""


class Protocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head = 0
        self._head_open = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        counts = self._head_open or self.cycle is None
        super().data_received(data)
        if not self._head_open:
            return
        # If a request came before this one, where its head begins in the first piece is unknown: that is not counted.
        self._head += len(data) if counts else 0
        if self._head > HEAD_MOST:
            self._refuse()
        elif self._deadline is None:
            self._start_deadline()

    def on_message_begin(self) -> None:
        self._head, self._head_open = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_open = False
        self._end_deadline()
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

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEAD_WITHIN, self.transport.close)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            said = f"the path and the headers are larger than {HEAD_MOST} bytes"
            body = error_body("native", "HEAD_TOO_LARGE", said)
            head = (
                "HTTP/1.1 431 Request Header Fields Too Large\r\n"
                "content-type: application/json; charset=utf-8\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
