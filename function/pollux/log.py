"""Structured logs that cannot hold a secret: JSON where the cloud reads them, aligned lines where people do."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from pollux.redaction import redact

LONGEST = 4000
SEVERITIES = {"WARNING": "WARNING", "ERROR": "ERROR", "CRITICAL": "CRITICAL", "DEBUG": "DEBUG"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_requests = logging.getLogger("pollux.request")


def configure(kind: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """One handler for everything, also for what libraries say. `kind`: json, text, or auto."""
    stream = stream or sys.stderr
    if kind == "auto":
        kind = "json" if "K_SERVICE" in os.environ else "text"
    handler = logging.StreamHandler(stream)
    colours = stream.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter(colours=colours))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pollux").setLevel(level.upper())
    # uvicorn reports as its own failure what we do on purpose: cutting an answer that broke after it had begun.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def request_line(fields: Mapping[str, Any]) -> None:
    """The one line of a request."""
    if _requests.isEnabledFor(logging.INFO):
        _requests.info("request", extra={"fields": fields})


def clean(text: str) -> str:
    """Nothing key-shaped, no line of its own making, no endless text."""
    text = redact(text)
    if _CONTROL.search(text):
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _said(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    return clean(text)


class JsonFormatter(logging.Formatter):
    """Cloud Logging reads `severity`, `message` and `time`; all else is a field of the entry."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Any] | None = getattr(record, "fields", None)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        entry: dict[str, Any] = {"severity": SEVERITIES.get(record.levelname, "INFO"), "time": moment}
        if fields is not None:
            entry["message"] = _summary(fields)
            entry["request"] = fields
            return redact(json.dumps(entry, ensure_ascii=False, default=str))
        entry |= {"message": _said(self, record), "logger": record.name}
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Any] | None = getattr(record, "fields", None)
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        if fields is not None:
            return f"{moment} {clean(_line(fields))}"
        text = f"{moment} {record.levelname.lower()}: {_said(self, record)}"
        colour = _COLOURS.get(record.levelname) if self._colours else None
        return f"{colour}{text}\x1b[0m" if colour else text


def _summary(fields: Mapping[str, Any]) -> str:
    return f"{fields['status']} {fields['call']} {fields['model_used'] or fields['model']}"


def _line(fields: Mapping[str, Any]) -> str:
    """`200 generateContent gemini-2.5-flash  key-1 (team-a)  812 ms (first byte 790, waited 0)  57 tokens  4f1d…`"""
    asked, used = fields["model"], fields["model_used"]
    model = f"{asked} -> {used}" if used and asked != used else asked or "-"
    where = f"{fields['key']} ({fields['project']})" if fields["key"] else "-"
    first = fields["first_byte_ms"]
    parts = [
        f"{fields['status']} {fields['call']} {model}",
        where,
        f"{fields['total_ms']:.0f} ms (first {'-' if first is None else round(first)}, waited {fields['waited_ms']})",
        f"{fields['tokens'] if fields['tokens'] is not None else '~' + str(fields['tokens_estimated'])} tokens",
    ]
    causes = [attempt["cause"] for attempt in fields["attempts"]]
    if causes not in ([], ["ok"]):
        parts.append("attempts: " + ", ".join(causes))
    if fields["reason"] or fields["ended"]:
        parts.append(fields["reason"] or fields["ended"])
    return "  ".join([*parts, fields["client"] or "-", fields["id"]])
