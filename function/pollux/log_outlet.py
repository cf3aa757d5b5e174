"""The one handler of all log records. It never lets a slow reader of the log hold up a request."""

import contextlib
import logging
import os
import select
import time
from collections import deque
from typing import TextIO

PIECE = 4096
"""A pipe that is ready takes so much without blocking (PIPE_BUF)."""
WAITING_MOST = 1 << 20
CLOSE_WITHIN = 1.0


class Outlet(logging.Handler):
    """Writes to the stream's file descriptor while it is ready. What it does not take waits, up to a megabyte, for the
    next record; beyond that records are dropped, and it is said how many. No thread: it would not run on Cloud Run,
    where the CPU sleeps between requests.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self.dropped = 0
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._poll = None
        try:
            self._fd = stream.fileno()
        except (OSError, AttributeError, ValueError):
            self._fd = -1  # a stream in memory
        if self._fd >= 0 and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # logging's own way to tell would print the arguments
            line = f"a log record of {record.name} could not be written: {type(error).__name__}"
        self.say(line)

    def say(self, line: str) -> None:
        try:
            self._write(line + "\n")
        except (OSError, ValueError):  # closed, or nobody reads: there is nobody to tell
            self._forget()

    def _write(self, text: str) -> None:
        if self._fd < 0:
            self.stream.write(text)
            self.stream.flush()
            return
        data = text.encode("utf-8", "backslashreplace")
        if self._size + len(data) > WAITING_MOST:
            self._drain(0)
        if self._size + len(data) > WAITING_MOST:
            self.dropped += 1
            return
        if self.dropped:
            data = f"{self.dropped} log lines were dropped: their reader was too slow\n".encode() + data
            self.dropped = 0
        self._waiting.append(data)
        self._size += len(data)
        self._drain(0)

    def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds if seconds else 0.0
        while self._waiting:
            wait = max(0.0, until - time.monotonic()) if seconds else 0.0
            if self._poll is not None and not self._poll.poll(wait * 1000):
                return
            data = self._waiting.popleft()
            try:
                written = os.write(self._fd, data if len(data) <= PIECE else data[:PIECE])
            except BlockingIOError:
                written = 0
            self._size -= written
            if written < len(data):
                self._waiting.appendleft(data[written:])
            if not written:
                return

    def _forget(self) -> None:
        self._waiting.clear()
        self._size = 0

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            self._drain(CLOSE_WITHIN)

    def close(self) -> None:
        self.flush()
        self._forget()
        super().close()
