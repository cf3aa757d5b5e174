"""Faults of the simulator: which call they hit, and for how long. The bodies of errors are in `errors`."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from gemini_simulator.errors import ABOUT_QUOTA, NAMES

STREAM_ONLY = frozenset({"drip", "truncate", "mid-error", "first-event-error", "split-chunks"})
BROKEN = frozenset({"reset", "hang", "slow", "mid-reset"}) | STREAM_ONLY
"""Kinds that are no error body. The call is admitted and counted first; with an error body it is not."""
KINDS = (*NAMES, *sorted(BROKEN))
TOOLS = ("googleSearch", "googleMaps", "urlContext")
SECONDS = {"hang": 3600.0, "slow": 1.0, "drip": 0.2}


class FaultError(ValueError):
    """An invalid fault: names the field and what was expected."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """Every field that is set must match the call. It ends after `count` times; without one it lasts.

    key: the key's id. verb: generateContent, …, chat/completions, embeddings, models.list, models.get, other.
    tool: one that the call asks for.
    seconds: how long `hang` and `slow` last, and the pause between the chunks of `drip`. after: chunks that pass before
    `mid-error` and `mid-reset`. error: the error that a stream ends or begins with. limit, retry_s: what a 429 names.
    """

    kind: str
    key: str | None = None
    project: str | None = None
    model: str | None = None
    verb: str | None = None
    tool: str | None = None
    count: int | None = None
    probability: float = 1.0
    seconds: float | None = None
    after: int = 1
    error: str = "overloaded"
    limit: int | None = None
    retry_s: float | None = None
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FaultError(f"{self.kind!r} is no kind of fault; expected one of {', '.join(KINDS)}")
        if self.error not in NAMES:
            raise FaultError(f"error: {self.error!r} is not known; expected one of {', '.join(NAMES)}")
        if self.tool not in (None, *TOOLS):
            raise FaultError(f"tool: {self.tool!r} is not known; expected one of {', '.join(TOOLS)}")
        if not 0 <= self.probability <= 1:
            raise FaultError(f"probability: expected a number from 0 to 1, not {self.probability}")
        for name in ("count", "seconds", "after", "limit", "retry_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise FaultError(f"{name}: expected a number, 0 or more, not {value}")

    @property
    def pause(self) -> float:
        return SECONDS.get(self.kind, 0.0) if self.seconds is None else self.seconds

    def meets(
        self,
        *,
        key: str,
        project: str,
        model: str | None,
        verb: str,
        stream: bool,
        spends: bool,
        rng: Random,
        tools: Collection[str] = (),
    ) -> bool:
        """Whether the fault applies to this call. If so, count it. `rng` is used only for calls that match."""
        if self.count is not None and self.fired >= self.count:
            return False
        wanted = (self.key, key), (self.project, project), (self.model, model), (self.verb, verb)
        if any(mine is not None and mine != theirs for mine, theirs in wanted):
            return False
        if self.tool is not None and self.tool not in tools:
            return False
        if (self.kind in STREAM_ONLY and not stream) or (self.kind in ABOUT_QUOTA and not spends):
            return False
        if self.probability < 1 and rng.random() >= self.probability:
            return False
        self.fired += 1
        return True


_TYPES: dict[str, type] = {
    "count": int,
    "after": int,
    "limit": int,
    "probability": float,
    "seconds": float,
    "retry_s": float,
}
_FIELDS = {f.name for f in fields(Fault)} - {"fired"}


def from_json(value: Any) -> Fault:
    """A fault as POST /simulator/faults takes it: an object with the fields of Fault."""
    if not isinstance(value, Mapping) or "kind" not in value:
        raise FaultError("expected an object with a kind, or a list of such")
    if unknown := sorted(set(value) - _FIELDS):
        raise FaultError(f"{unknown[0]!r} is no field of a fault; expected {', '.join(sorted(_FIELDS))}")
    for name, given in value.items():
        expected = (int,) if _TYPES.get(name) is int else (int, float) if name in _TYPES else (str,)
        if not isinstance(given, expected) or isinstance(given, bool):
            raise FaultError(f"{name}: expected {expected[-1].__name__}, not {given!r}")
    return Fault(**value)


def from_text(text: str) -> Fault:
    """A fault as the command line takes it: KIND[:PROBABILITY][,FIELD=VALUE…]."""
    head, *rest = text.split(",")
    kind, _, probability = head.partition(":")
    values: dict[str, Any] = {"kind": kind}
    pairs = [("probability", probability)] if probability else []
    for item in rest:
        name, mark, given = item.partition("=")
        if not mark:
            raise FaultError(f"{item!r}: expected FIELD=VALUE")
        pairs.append((name, given))
    for name, given in pairs:
        try:
            values[name] = _TYPES.get(name, str)(given)
        except ValueError:
            raise FaultError(f"{name}: expected a number, not {given!r}") from None
    return from_json(values)
