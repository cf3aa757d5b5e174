"""Which counter a 429 names: its period, limit and bucket. Read by pattern, not from a list of ids."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pollux.gemini import tools
from pollux.gemini.verdict.causes import LONG
from pollux.gemini.verdict.error_body import ErrorBody, Violation


@dataclass(frozen=True, slots=True)
class QuotaError:
    """`cause`: "unsupported", "rpd", "tpd", "rpm", "ipm", "tpm" or "unknown-429"."""

    cause: str
    learned: Mapping[str, int]
    bucket: str | None
    named: bool = True
    """Whether the error names a counter or a limit."""
    tool: str | None = None
    """The tool whose own counter refused, or tools.GROUNDING."""
    tier: str | None = None
    """"free" or "paid", if the id of a quota says so."""


_PER_DAY = re.compile(r"per[ _-]?day|daily|\b1/d\b", re.I)
_PER_MINUTE = re.compile(r"per[ _-]?min|\b1/min\b", re.I)
_IMAGES = re.compile(r"images?[ _-]?per|generated[ _-]?images", re.I)
_NO_TIER = re.compile(r"does(?:n't| not) have a free (?:quota )?tier", re.I)
_ORDER = ("rpd", "tpd", "rpm", "ipm", "tpm")  # a day lasts longer than a minute
_TIER = re.compile(r"(Free|Paid)Tier")
_BESIDE = (
    ("cached-content", re.compile(r"cached[ _-]?content", re.I)),
    ("file-storage", re.compile(r"file[ _-]?storage|storage[ _-]?bytes", re.I)),
    *tools.PATTERNS,
    ("batch", re.compile(r"enqueued|batch[ _-]?(?:jobs|tokens)", re.I)),
    ("sessions", re.compile(r"concurrent|sessions", re.I)),
)
BESIDE = frozenset(name for name, _ in _BESIDE)
"""Other counters than generation's. Their bucket is "counter" or "counter/model". Their refusals do not rest the
model's quota, and teach none of its limits.
"""
# "limit: 0.5" and "limit: 05" are not zero.
_LIMIT = re.compile(
    r"(?:metric:\s*(?P<metric>[\w./-]+)[,\s]+)?\blimit\s*[:=]\s*(?P<value>\d{1,18}(?:,\d{3})*)(?![.,]?\d)"
    r"(?:[,\s]+model:\s*(?P<model>[\w./-]+))?",
    re.I,
)
_STATED = re.compile(r"\b[A-Za-z]+Per(?:Model|Project|Day|Minute)[\w-]*|quota metric '[^']*'(?: and limit '[^']*')?")


def _said(message: str) -> list[Violation]:
    """The counters and limits in the message."""
    stated = " ".join(match[0] for match in _STATED.finditer(message))
    for_model = re.search(r"for model ([\w./-]+)", message)
    said = []
    for match in _LIMIT.finditer(message):
        metric, model = match["metric"] or "", match["model"] or (for_model[1] if for_model else None)
        said.append(Violation(metric or stated, metric, int(match["value"].replace(",", "")), model))
    if not said and (stated or (metric_only := re.search(r"\bmetric:\s*([\w./-]+)", message))):
        said.append(Violation(stated or (metric_only[1] if metric_only else "")))
    return said


def _counter(violation: Violation, day: bool | None) -> str | None:
    """rpm, tpm, rpd, tpd or ipm; None if its period is unknown. `day`: the period to assume if the name has none."""
    if _PER_DAY.search(violation.name):
        day = True
    elif _PER_MINUTE.search(violation.name):
        day = False
    if day is None:
        return None
    if "token" in violation.name.lower():
        return "tpd" if day else "tpm"
    return "rpd" if day else "ipm" if _IMAGES.search(violation.name) else "rpm"


def _value(violation: Violation, said: list[Violation]) -> int | None:
    """Its limit, else the only limit in the message that can be its."""
    if violation.value is not None:
        return violation.value
    tokens = "token" in violation.name.lower()
    fits = {
        other.value
        for other in said
        if (not violation.metric or not other.metric or other.metric == violation.metric)
        and (not other.name or ("token" in other.name.lower()) == tokens)
    }
    return fits.pop() if len(fits) == 1 else None


def _beside(violation: Violation) -> str | None:
    return next((name for name, pattern in _BESIDE if pattern.search(violation.name)), None)


def _tool(refused: list[Violation], message: str) -> str | None:
    """The tool whose counter refused; if no violation has a name, the tool that the message mentions."""
    beside = _beside(refused[0]) if any(v.name for v in refused) else tools.named_in(message)
    return beside if beside in (*tools.TOOLS, tools.GROUNDING) else None


def _bucket(refused: list[Violation], everything: list[Violation], tool: str | None) -> str | None:
    models = (v.model.removeprefix("models/").rstrip(".") for v in (*refused, *everything) if v.model)
    model = next((m for m in models if re.fullmatch(r"[\w][\w.:/-]{0,119}", m, re.ASCII)), None)
    counter = tool or (_beside(refused[0]) if refused else None)
    return "/".join(part for part in (counter, model) if part) or None


def refused_by(error: ErrorBody) -> QuotaError:
    """Of a 429: which counter refused, its limit, bucket and tier."""
    tiers = {match[1].lower() for violation in error.violations for match in _TIER.finditer(violation.name)}
    return replace(_refused_by(error), tier=tiers.pop() if len(tiers) == 1 else None)


def _refused_by(error: ErrorBody) -> QuotaError:
    listed, said = list(error.violations), _said(error.message)
    everything = listed + said
    zero = [v for v in everything if v.value == 0]
    if not zero and not any(v.value for v in said):
        zero = [v for v in listed if v.whole and v.value is None]
    zero.sort(key=lambda v: _beside(v) is not None)
    if zero or _NO_TIER.search(error.message):
        tool = _tool(zero, error.message)
        return QuotaError("unsupported", {}, _bucket(zero, everything, tool), tool=tool)
    day = None if error.delay is None else error.delay > LONG
    exact = [v for v in listed if _counter(v, None)] or [v for v in said if _counter(v, None)]
    named = exact or [v for v in everything if v.name] or [v for v in everything if v.value is not None]
    named = [v for v in named if not _beside(v)] or named
    counters: dict[str, list[int]] = {}
    for violation in named:
        beside = _beside(violation)
        counter = _counter(violation, day if day is not None or beside or not violation.name else False)
        if counter:
            limit = None if beside else _value(violation, said)
            counters.setdefault(counter, []).extend([limit] if limit else [])
    learned = {counter: min(limits) for counter, limits in counters.items() if limits}
    cause = next((counter for counter in _ORDER if counter in counters), None)
    if cause is None and not (named and _beside(named[0])):
        cause = _counter(Violation(error.message), day)
    tool = None if error.html else _tool(named, error.message)
    return QuotaError(
        cause or "unknown-429",
        {} if tool else learned,
        _bucket(named, everything, tool),
        bool(cause or everything or tool),
        tool,
    )
