"""PURE. Why there is no slot: the reason as a type, in words, and as the error that a client gets."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from pollux.gemini.errors import GatewayError
from pollux.gemini.verdict import causes
from pollux.gemini.verdict.causes import CAUSES, KEYLESS
from pollux.pool.windows import Limits, Want, day_of

NAMED_MOST = 5
ASKED_WITHIN = 60.0
"""The longest Retry-After while no key is usable: requests then make the gateway probe the keys at least this often."""
_SOONEST_FIRST = ("QUOTA_BUSY", "QUOTA_EXHAUSTED_TODAY", "TOO_LARGE_FOR_QUOTA", "MODEL_NOT_AVAILABLE")
"""If projects refuse for different causes, the client gets the first of these errors: the earlier in this list, the
sooner the cause ends."""

Kind = Literal["", "cooling", "probing", "aside"]


class Why(NamedTuple):
    """`cause`: a name of `causes`. `kind`: "cooling": a quota rests; "probing": one request tries if its rest can end;
    "aside": a key, project, model or `tool` rests; "": the pool's own counts leave no room."""

    cause: str
    kind: Kind = ""
    tool: str = ""

    def __str__(self) -> str:
        """`aside:googleSearch:tool-quota`"""
        return ":".join(part for part in (self.kind, self.tool, self.cause) if part)


BUSY, PAUSED, STORE_DOWN, DISABLED = Why("busy"), Why("paused"), Why("store-down"), Why("disabled")


class Refusal(NamedTuple):
    """There is no slot up to the deadline. `until`: when to ask again, or inf if the want exceeds a limit."""

    until: float
    why: Why


def words(why: Why) -> str:
    text = causes.words(why.cause) + (f" ({why.tool})" if why.tool else "")
    match why.kind:
        case "cooling":
            return f"resting after a refusal: {text}"
        case "probing":
            return f"one request tries whether it works again: {text}"
        case "aside":
            return f"set aside: {text}"
        case _:
            return text


def problem(
    model: str, refusals: Mapping[str, Refusal], now: float, *, want: Want, limits: Collection[Limits] = ()
) -> GatewayError:
    """The client's error when no project has a slot in time. `limits`: the limits of every project for the model."""
    found = {project: refusal.why.cause for project, refusal in refusals.items()}
    until = min((refusal.until for refusal in refusals.values()), default=math.inf)
    wait = max(0.0, until - now)
    live = set(found.values()) - KEYLESS
    if not live:
        return _no_key(found, wait)
    errors = {CAUSES[cause].error if cause in CAUSES else "QUOTA_BUSY" for cause in live}
    error = next((error for error in _SOONEST_FIRST if error in errors), "QUOTA_BUSY")
    if error == "MODEL_NOT_AVAILABLE":
        return GatewayError(
            "MODEL_NOT_AVAILABLE",
            f"limit: 0, model: {model}: {_counted(found)}; choose another model",
            retry_after=wait if wait < math.inf else causes.DAY,
        )
    if error == "TOO_LARGE_FOR_QUOTA":
        return GatewayError(
            "TOO_LARGE_FOR_QUOTA",
            f"the request {_too_large(model, want, limits)}; send less at once, or add a project with a larger limit",
        )
    if error == "QUOTA_EXHAUSTED_TODAY":
        midnight = day_of(now)[2]
        return GatewayError(
            "QUOTA_EXHAUSTED_TODAY",
            f"the day's quota of {model} is spent in every project; it returns at midnight Pacific time",
            retry_after=max(1.0, midnight - now),
        )
    if live == {"tool-quota"}:
        tools = ", ".join(sorted({refusal.why.tool for refusal in refusals.values() if refusal.why.tool}))
        return GatewayError(
            "QUOTA_BUSY",
            f"the quota of {tools} is used up in every project; it is tried again in {math.ceil(wait)} s, and "
            f"requests for {model} without that tool are served meanwhile",
            retry_after=max(1.0, wait),
        )
    reason = words(min(refusals.values()).why)
    return GatewayError(
        "QUOTA_BUSY",
        f"no project has a free slot for {model} in time ({reason}); the next one is free in {math.ceil(wait)} s",
        retry_after=max(1.0, wait),
    )


def _counted(found: Mapping[str, str]) -> str:
    """`2 projects: the limit is 0 …; 1 project: …`"""
    counts = Counter(found.values())
    return "; ".join(f"{n} project{'s' * (n > 1)}: {causes.words(cause)}" for cause, n in counts.most_common())


def of_owner(error: GatewayError, owner: str | None, names: Collection[str]) -> GatewayError:
    """Returns the error with the only project that can serve the request, and what that project owns."""
    if owner is None:
        return error
    said = f"{error.message}; only project {owner} can serve the request"
    shown = sorted(names)[:NAMED_MOST]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    said += f", which owns {', '.join(shown)}{more}" if shown else ""
    return GatewayError(error.code, said, retry_after=error.retry_after)


def busy(attempts: int, owner: str | None = None) -> GatewayError:
    """The client's error when the time is over though a project may have room."""
    were = "1 attempt was" if attempts == 1 else f"{attempts} attempts were"
    then = "another project may serve the next one" if owner is None else f"only project {owner} can serve it"
    message = f"{were} refused; {then}"
    return GatewayError("QUOTA_BUSY", message, retry_after=1.0)


def no_slot(
    model: str, refusals: Mapping[str, Refusal], now: float, deadline: float, want: Want, limits: Collection[Limits]
) -> tuple[str, str]:
    """Returns ("full", "no-key" or "too-large", the details) for the journal. `limits`: the limits of every project, if
    there are no refusals because all projects were asked before."""
    if not refusals:
        if not limits:
            return "no-key", "there is no enabled key in the pool"
        if all(min(known.get("tpm", math.inf), known.get("tpd", math.inf)) < want.tokens for known in limits):
            return "too-large", f"the request {_too_large(model, want, limits)}"
        return "full", "every project that may serve it was asked already"
    first = min(refusals.values())
    found = {refusal.why.cause for refusal in refusals.values()}
    cause = "no-key" if found <= KEYLESS else "too-large" if found == {"too-large"} else "full"
    return cause, words(first.why) + _too_late(first, now, deadline)


def _too_late(refusal: Refusal, now: float, deadline: float) -> str:
    """Says by how much the next slot is too late, or "". A project that is set aside has no next slot."""
    if refusal.why.kind == "aside" or not deadline < refusal.until < math.inf:
        return ""
    patience = max(0.0, deadline - now)
    free = f"; the next slot is free in {refusal.until - now:.1f} s"
    if not patience:
        return f"{free}, and the request may not wait"
    return f"{free}, {refusal.until - deadline:.1f} s later than the request may wait ({patience:.1f} s)"


def unusable(refusals: Mapping[str, Refusal]) -> str:
    """Says to an operator why no project can serve anything."""
    if not refusals:
        return "there is no usable key in the pool, so every request gets 503: add one with `pollux keys add`"
    found = {project: refusal.why.cause for project, refusal in refusals.items()}
    return (
        f"no project may serve at the moment ({_counted(found)}), so requests get 503; "
        "`pollux keys check` tries the keys, `pollux keys add` adds one"
    )


def _too_large(model: str, want: Want, limits: Collection[Limits]) -> str:
    """The request's size and the limit that it exceeds."""
    for name, amount, unit in (
        ("tpm", want.tokens, "input tokens"),
        ("tpd", want.tokens, "input tokens"),
        ("rpm", want.requests, "requests"),
        ("rpd", want.requests, "requests"),
        ("ipm", want.images, "images"),
    ):
        most = max((known[name] for known in limits if name in known), default=0)
        if 0 < most < amount:
            period = "day" if name.endswith("d") else "minute"
            return f"has about {amount} {unit}, and no project may send more than {most} to {model} in one {period}"
    return f"has about {want.tokens} input tokens, more than any project may send to {model} at once"


def _no_key(found: Mapping[str, str], wait: float) -> GatewayError:
    if not found:
        return GatewayError("NO_USABLE_KEY", "there is no usable key in the pool: add one with `pollux keys add`")
    listed = ", ".join(f"{project}: {causes.words(cause)}" for project, cause in sorted(found.items()))
    return GatewayError(
        "NO_USABLE_KEY",
        f"no key of the pool is usable ({listed}); `pollux keys check` tries them, `pollux keys add` adds one",
        retry_after=min(wait, ASKED_WITHIN) if wait < math.inf else None,
    )
