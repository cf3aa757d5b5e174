"""Logs: JSON lines for the cloud, aligned lines for people. `redaction` takes secrets out of them."""

import contextlib
import json
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, TextIO

from pollux.redaction import LONGEST, clean, clean_lines, redact_known
from pollux.settings import ENVIRON

LONG_LINE = 16 * 1024
PIECE = 4096
"""The bytes that a ready pipe accepts without blocking (PIPE_BUF)."""
WAITING_MOST = 1 << 20
CLOSE_WITHIN = 1.0
_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_PLAIN = "\x1b[0m"
TELL_STORE_MS = 10
"""A line for people shows the time spent on the store from here on; JSON lines always do."""
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "fields", "color_message"}
_requests = logging.getLogger("pollux.request")
_handler: "LogHandler | None" = None
_tracebacks = logging.Formatter()


def configure(
    form: str = "text",
    level: str = "info",
    stream: TextIO | None = None,
    *,
    environ: Mapping[str, str] = ENVIRON,
) -> None:
    """Send all records, also those of libraries, through one handler. `form`: json or text."""
    global _handler
    stream = stream if stream is not None else sys.stderr
    _handler = LogHandler(stream)
    colours = stream.isatty() and not environ.get("NO_COLOR")
    _handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(colours=colours))
    _handler.addFilter(_worth_logging)
    root = logging.getLogger()
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            logger.propagate = True
    root.addHandler(_handler)
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)
    logging.getLogger("pollux").setLevel(level.upper())
    logging.captureWarnings(True)


def _worth_logging(record: logging.LogRecord) -> bool:
    """Not uvicorn's report of a BrokenAnswerError: Pollux raises it to cut an answer that failed after it had begun."""
    cause = record.exc_info[0] if record.exc_info else None
    return cause is None or cause.__name__ != "BrokenAnswerError" or record.name.startswith("pollux")


def request_line(fields: Mapping[str, Any]) -> None:
    """Log the one line of a request. Not through logging's records, which would cost more than all the rest of it.

    `fields`: the journal's record; its texts may come from anywhere.
    """
    level = logging.WARNING if (fields.get("status") or 0) >= 500 else logging.INFO
    if _handler is not None and _requests.isEnabledFor(level):
        formatter = _handler.formatter
        if isinstance(formatter, JsonFormatter | TextFormatter):
            _handler.write_line(formatter.request(fields, logging.getLevelName(level), time.time()))


class LogHandler(logging.Handler):
    """Writes to the stream's file descriptor while it takes data. What it does not take waits, up to a megabyte, for
    the next record; beyond that records are dropped, and the next line says how many. So a slow reader of the log
    delays no request. It uses no thread: on Cloud Run the CPU sleeps between requests.
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
        except Exception as error:  # logging's own report of it would print the arguments
            line = f"a log record of {record.name} could not be written: {type(error).__name__}"
        self.write_line(line)

    def write_line(self, line: str) -> None:
        try:
            self._write(line + "\n")
        except (OSError, ValueError):  # closed, or its reader is gone
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
                written = os.write(self._fd, data[:PIECE])
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


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # the arguments do not fit the message
        text = str(record.msg)
    return clean(text)


def _traceback(record: logging.LogRecord) -> list[str]:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(_tracebacks.formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return clean_lines("\n".join(parts)) if parts else []


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _KNOWN}


@lru_cache(maxsize=4)
def _second(form: str, second: int, local: bool) -> str:
    return time.strftime(form, time.localtime(second) if local else time.gmtime(second))


def _utc(moment: float) -> str:
    return f"{_second('%Y-%m-%dT%H:%M:%S', int(moment), False)}.{int(moment * 1000) % 1000:03d}Z"


def _local(moment: float) -> str:
    return f"{_second('%H:%M:%S', int(moment), True)}.{int(moment * 1000) % 1000:03d}"


class JsonFormatter(logging.Formatter):
    """Cloud Logging reads `severity`, `time` and `message`; the rest are fields of the entry."""

    def format(self, record: logging.LogRecord) -> str:
        severity = record.levelname if record.levelname in _COLOURS else "INFO"
        entry: dict[str, Any] = {"severity": severity, "time": _utc(record.created), "message": _message(record)}
        entry["logger"] = record.name
        if extras := _extras(record):
            entry["fields"] = extras
        if trace := _traceback(record):
            entry["stack_trace"] = "\n".join(trace)
        return self._line(entry)

    def request(self, fields: Mapping[str, Any], severity: str, moment: float) -> str:
        entry = {"severity": severity, "time": _utc(moment), "message": _summary(fields), "logger": _requests.name}
        return self._line(entry | {"request": fields})

    @staticmethod
    def _line(entry: Mapping[str, Any]) -> str:
        line = _encode(entry)
        if len(line) > LONG_LINE:
            line = _encode(_cut(entry))
        safe = redact_known(line)
        return safe if safe == line else _still_json(safe, entry)


_encode = json.JSONEncoder(default=str, skipkeys=True).encode


def _still_json(line: str, entry: Mapping[str, Any]) -> str:
    """Log the line as a message if redaction broke its JSON, which happens if a number contained a secret of digits."""
    try:
        json.loads(line)
    except ValueError:
        return _encode({"severity": entry["severity"], "time": entry["time"], "message": clean(line)})
    return line


def _cut(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(name)[:LONGEST]: _cut(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_cut(inner) for inner in value[:100]]
        case int() | float() | None:
            return value
        case _:
            return clean(str(value))


class TextFormatter(logging.Formatter):
    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f"  {name}={value}" for name, value in _extras(record).items())
        text = f"{record.levelname.lower():<8} {_message(record)}{extras and '  ' + clean(extras)}"
        lines = [f"{_local(record.created)}  {text}", *(f"    | {line}" for line in _traceback(record))]
        return "\n".join(self._coloured(line, record.levelname) for line in lines)

    def request(self, fields: Mapping[str, Any], severity: str, moment: float) -> str:
        return self._coloured(f"{_local(moment)}  {clean(_line(fields))}", severity)

    def _coloured(self, line: str, level: str) -> str:
        colour = _COLOURS.get(level) if self._colours else None
        return f"{colour}{line}{_PLAIN}" if colour else line


def _summary(fields: Mapping[str, Any]) -> str:
    return f"{fields.get('status', 0)} {fields.get('call', '')} {fields.get('model_used') or fields.get('model') or ''}"


def _line(fields: Mapping[str, Any]) -> str:
    """`200  generateContent         gemini-2.5-flash             812 ms  key-1 (team-a)  first 790  57 tokens  …`"""
    get = fields.get
    asked, used = get("model") or "-", get("model_used")
    model = f"{asked} -> {used}" if used and used != asked else asked
    parts = [f"{get('status') or 0:>3}  {get('call') or '-':<22}  {model:<28} {get('total_ms') or 0:>7.0f} ms"]
    if get("fallback_from"):  # an alias is another name too
        parts.append("fallback")
    if key := get("key"):
        parts.append(f"{key} ({get('project') or '-'})")
    if (first := get("first_byte_ms")) is not None:
        parts.append(f"first {first:.0f}")
    if waited := get("waited_ms"):
        parts.append(f"waited {waited:.0f}")
    if (store := get("store_ms") or 0) >= TELL_STORE_MS:
        parts.append(f"store {store:.0f}")
    if (tokens := get("tokens")) is not None:
        parts.append(f"{tokens} tokens")
    elif estimated := get("tokens_estimated"):
        parts.append(f"~{estimated} tokens")
    causes = [_attempt(attempt) for attempt in get("attempts") or ()]
    if causes and not (len(causes) == 1 and causes[0].startswith("ok")):
        more = [f"{count} more {cause}" for cause, count in (get("attempts_left_out") or {}).items()]
        half = len(causes) // 2
        runs = [(cause, len(list(same))) for cause, same in groupby(causes[:half] + more + causes[half:])]
        parts.append("tried " + ", ".join(cause if times == 1 else f"{times} x {cause}" for cause, times in runs))
    parts += [str(word) for name in ("reason", "ended", "client", "id") if (word := get(name))]
    return "  ".join(parts)


def _attempt(attempt: Any) -> str:
    if not isinstance(attempt, Mapping):
        return str(attempt)
    where = attempt.get("key") or attempt.get("project")
    return f"{attempt.get('cause')} ({where})" if where else str(attempt.get("cause"))
