"""PURE. What an upstream answer means: `judge`. The rules are in `rules`, how an error is read in `error_body`."""

from pollux.redaction import redact
from pollux.verdict.error_body import error_in_stream, retry_delay
from pollux.verdict.rules import (
    CAUSES,
    RULES,
    Rule,
    Verdict,
    describe,
    judge,
    judge_command,
    resting_time,
    until_midnight,
)

__all__ = [
    "CAUSES",
    "RULES",
    "Rule",
    "Verdict",
    "describe",
    "error_in_stream",
    "judge",
    "judge_command",
    "redact",
    "resting_time",
    "retry_delay",
    "until_midnight",
]
