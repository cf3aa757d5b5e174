"""PURE. What an upstream answer means: `judge`. The rules are in `rules`, what follows from a cause in `causes`, how an
error is read in `error_body`."""

from pollux.redaction import redact
from pollux.verdict.causes import CAUSES, resting_time, until_midnight
from pollux.verdict.error_body import error_in_stream, retry_delay
from pollux.verdict.rules import RULES, Rule, Verdict, describe, judge, judge_command, verdict_of

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
    "verdict_of",
]
