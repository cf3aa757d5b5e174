"""Every cause for which Gemini or the pool refuses a request, and what follows from it: one table.

`rules` finds the cause of an answer. docs/verdicts.md shows the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

_PACIFIC = ZoneInfo("America/Los_Angeles")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
LONG = 600.0
"""A longer delay is never that of a counter per minute."""

Blames = Literal["none", "quota", "key", "project", "model", "client", "gateway"]
Action = Literal["none", "next-project", "next-key", "retry", "to-client", "same-project"]


class Rest(NamedTuple):
    """How long what is blamed rests. `first`: seconds, or a function of the error's delay and the time now. While the
    cause repeats, it doubles up to `most`; None: it does not double.
    """

    first: float | Callable[[float | None, float], float]
    most: float | None = None

    def seconds(self, delay: float | None, now: float) -> float:
        return self.first(delay, now) if callable(self.first) else self.first


def until_midnight(now: float) -> float:
    """Seconds to the next midnight in California, by the calendar: two days of the year have 23 or 25 hours."""
    try:
        day = datetime.fromtimestamp(now, _PACIFIC).date() + timedelta(days=1)
        return datetime(day.year, day.month, day.day, tzinfo=_PACIFIC).timestamp() - now
    except (ValueError, OverflowError, OSError):
        return DAY


def _a_minute(delay: float | None, now: float) -> float:
    """`retryDelay` + 1 s (it is cut to whole seconds), else 60 s"""
    return MINUTE if delay is None else min(delay, LONG) + 1.0


def _a_day(delay: float | None, now: float) -> float:
    """`retryDelay` if above 10 min, else to the Pacific midnight; at most 1 h at a time"""
    return min(max(1.0, delay if delay is not None and delay > LONG else until_midnight(now)), HOUR)


A_MINUTE, A_DAY = Rest(_a_minute), Rest(_a_day)
_UNCLEAR = Rest(MINUTE, 10 * MINUTE)
_SHORTLY = Rest(30.0, HOUR)
"""A refused key is soon tried again with a free call: the fault may have been Google's."""


@dataclass(frozen=True, slots=True)
class Cause:
    name: str
    words: str
    """What logs, errors and `status` say."""
    blames: Blames = "none"
    action: Action = "none"
    rest: Rest | None = None
    probe: Literal["", "free call", "one request"] = ""
    """What must succeed after the rest before other requests follow: a free call with the key, or one request."""
    error: str = ""
    """The gateway's error if every project refuses for this cause; "": no project refuses for it."""
    of_resource: bool = False
    """For a request that names a resource: the project does not have it, or does not show it."""


_BUSY, _SPENT, _NO_MODEL, _NO_KEY = "QUOTA_BUSY", "QUOTA_EXHAUSTED_TODAY", "MODEL_NOT_AVAILABLE", "NO_USABLE_KEY"

# fmt: off
TABLE: tuple[Cause, ...] = (
    Cause("ok", "it was served"),

    # Gemini refuses, and a quota is to blame
    Cause("rpm", "the requests per minute are used up", "quota", "next-project", A_MINUTE, error=_BUSY),
    Cause("tpm", "the tokens per minute are used up", "quota", "next-project", A_MINUTE, error=_BUSY),
    Cause("ipm", "the images per minute are used up", "quota", "next-project", A_MINUTE, error=_BUSY),
    Cause("rpd", "the requests of the day are spent", "quota", "next-project", A_DAY, "one request", _SPENT),
    Cause("tpd", "the tokens of the day are spent", "quota", "next-project", A_DAY, "one request", _SPENT),
    Cause("unsupported", "the limit is 0: this model is not on the project's tier",
          "quota", "next-project", Rest(DAY), "one request", _NO_MODEL),
    Cause("unknown-429", "Google refused without saying why",
          "quota", "next-project", _UNCLEAR, "one request", _BUSY),
    Cause("tool-quota", "the tool's own quota is used up", "quota", "next-project", _UNCLEAR, error=_BUSY),
    Cause("model-access", "the project has no access to this model",
          "quota", "next-project", Rest(DAY), error=_NO_MODEL, of_resource=True),

    # … a project
    Cause("spend", "the spend-based limit was reached", "project", "next-project", _UNCLEAR, error=_BUSY),
    Cause("prepay", "the prepaid credit is gone", "project", "next-project", Rest(HOUR), error=_NO_KEY),

    # … a key
    Cause("invalid-key", "Google says that the key is not valid", "key", "next-key", _SHORTLY, "free call", _NO_KEY),
    Cause("leaked-key", "Google blocked the key as leaked", "key", "next-key", _SHORTLY, "free call", _NO_KEY),
    Cause("suspended", "Google suspended the key's project",
          "key", "next-key", Rest(10 * MINUTE, DAY), "free call", _NO_KEY),
    Cause("service-disabled", "the Gemini API is disabled or blocked for the key",
          "key", "next-key", _SHORTLY, "free call", _NO_KEY),
    Cause("referrer-blocked", "the key is restricted to certain referrers",
          "key", "next-key", _SHORTLY, "free call", _NO_KEY),
    Cause("key-source", "the key's value cannot be read", "key", "next-key", Rest(MINUTE), error=_NO_KEY),

    # … the model, the request or the gateway
    Cause("network", "Gemini could not be reached, or did not answer", "model", "retry"),
    Cause("malformed", "the answer was not valid HTTP, and the request may have been served", "none", "to-client"),
    Cause("deadline", "Gemini did not answer in time", "model", "retry"),
    Cause("overloaded", "the model is overloaded", "model", "retry"),
    Cause("internal", "Gemini failed", "model", "retry"),
    Cause("bad-request", "Google cannot accept the request", "client", "to-client"),
    Cause("not-found", "Google does not know what the request names", "client", "to-client", of_resource=True),
    Cause("resource-permission", "the resource belongs to another project", "client", "to-client", of_resource=True),
    Cause("thought-signature", "a thought signature of another project is not accepted", "none", "same-project"),
    Cause("location", "Google does not serve the project in this country", "gateway", "to-client", error=_NO_KEY),

    # The pool refuses
    Cause("busy", "no slot is free", error=_BUSY),
    Cause("midnight", "the Pacific midnight is a second away", error=_BUSY),
    Cause("paused", "all projects were refused at once, so that the whole pool rests", error=_BUSY),
    Cause("too-large", "the request is larger than the limit", error="TOO_LARGE_FOR_QUOTA"),
    Cause("store-down", "the store does not answer, and the share that is safe without it is used up",
          error="STORE_DOWN"),
    Cause("disabled", "all keys of the project are disabled", error=_NO_KEY),
)
# fmt: on

CAUSES: Mapping[str, Cause] = {cause.name: cause for cause in TABLE}


def _of(has: Callable[[Cause], bool]) -> frozenset[str]:
    return frozenset(cause.name for cause in TABLE if has(cause))


PROBED = _of(lambda cause: cause.probe == "free call")
"""A key set aside for one of these serves again only after a free call with it succeeded; the rest says when to try."""
HALF_OPEN = _of(lambda cause: cause.probe == "one request")
"""After a rest for one of these one request goes first; the others follow when it was served."""
KEYLESS = _of(lambda cause: cause.error == _NO_KEY)
"""The project has no usable key."""
SPENT = _of(lambda cause: cause.error == _SPENT)
"""A day's quota is used up."""
LASTING = _of(lambda cause: cause.error in (_SPENT, _NO_MODEL, "TOO_LARGE_FOR_QUOTA"))
"""If the pool refuses by its own counts for one of these, trying again does not help soon."""
OF_RESOURCES = _of(lambda cause: cause.of_resource)


def words(cause: str) -> str:
    """The store may have a cause of another version, which has no words."""
    return CAUSES[cause].words if cause in CAUSES else cause


def resting_time(cause: str) -> tuple[float, float | None]:
    """(first, most) of the rest for this cause, if no answer says how long. Zero for rests that an answer decides."""
    rest = CAUSES[cause].rest
    return (0.0, None) if rest is None or callable(rest.first) else (rest.first, rest.most)
