"""PURE. Why there is no slot, in words for people, and the error that a client gets for it."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pollux.quota import DAY, Refusal
from pollux.windows import Limits, Want, day_of
from pollux.wire.error import GatewayError

WORDS = {
    "busy": "no slot is free",
    "rpm": "the requests per minute are used up",
    "tpm": "the tokens per minute are used up",
    "ipm": "the images per minute are used up",
    "rpd": "the requests of the day are spent",
    "tpd": "the tokens of the day are spent",
    "midnight": "the Pacific midnight is a second away",
    "too-large": "the request is larger than the limit",
    "unsupported": "the limit is 0: this model is not on the project's tier",
    "unknown-429": "Google refused without saying why",
    "spend": "the spend-based limit was reached",
    "prepay": "the prepaid credit is gone",
    "invalid-key": "Google says that the key is not valid",
    "leaked-key": "Google blocked the key as leaked",
    "suspended": "Google suspended the key's project",
    "service-disabled": "the Gemini API is disabled or blocked for the key",
    "referrer-blocked": "the key is restricted to certain referrers",
    "tool-quota": "the tool's own quota is used up",
    "model-access": "the project has no access to this model",
    "key-source": "the key's value cannot be read",
    "location": "Google does not serve the project in this country",
    "store-down": "the store does not answer, and the share that is safe without it is used up",
    "disabled": "all keys of the project are disabled",
    "paused": "all projects were refused at once, so that the whole pool rests",
}
NAMED_MOST = 5
ASKED_WITHIN = 60.0
"""While no key is usable, requests make the gateway ask about them at least so often: no client should stay away for
longer."""
SPENT = frozenset({"rpd", "tpd"})
KEYLESS = frozenset(
    {
        "invalid-key",
        "leaked-key",
        "suspended",
        "service-disabled",
        "referrer-blocked",
        "key-source",
        "prepay",
        "location",
    }
)


def cause_of(why: str) -> str:
    """`cooling:rpd` -> `rpd`"""
    return why.rpartition(":")[2]


def tool_of(why: str) -> str:
    """`aside:googleSearch:tool-quota` -> `googleSearch`; "" where no tool rests."""
    return why.rpartition(":")[0].partition(":")[2]


def words(why: str) -> str:
    state, tool = why.partition(":")[0], tool_of(why)
    text = WORDS.get(cause_of(why), cause_of(why)) + (f" ({tool})" if tool else "")
    match state:
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
    """The client's error when no project has a slot in time. `limits`: those of every project for the model."""
    causes = {project: cause_of(refusal.why) for project, refusal in refusals.items()}
    until = min((refusal.until for refusal in refusals.values()), default=math.inf)
    wait = max(0.0, until - now)
    if not causes or set(causes.values()) <= KEYLESS:
        return _no_key(causes, wait)
    live = {cause for cause in causes.values() if cause not in KEYLESS}
    if live <= {"unsupported", "model-access"}:
        return GatewayError(
            "MODEL_NOT_AVAILABLE",
            f"limit: 0, model: {model}: {_counted(causes)}; choose another model",
            retry_after=wait if wait < math.inf else DAY,
        )
    if live <= {"too-large", "unsupported", "model-access"}:
        return GatewayError(
            "TOO_LARGE_FOR_QUOTA",
            f"the request {_too_large(model, want, limits)}; send less at once, or add a project with a larger limit",
        )
    if live <= SPENT | {"too-large", "unsupported", "model-access"}:
        midnight = day_of(now)[2]
        return GatewayError(
            "QUOTA_EXHAUSTED_TODAY",
            f"the day's quota of {model} is spent in every project; it returns at midnight Pacific time",
            retry_after=max(1.0, midnight - now),
        )
    if live == {"tool-quota"}:
        tools = ", ".join(sorted({tool for refusal in refusals.values() if (tool := tool_of(refusal.why))}))
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


def _counted(causes: Mapping[str, str]) -> str:
    """`2 projects: the limit is 0 …; 1 project: …`"""
    counts = Counter(causes.values())
    return "; ".join(f"{n} project{'s' * (n > 1)}: {WORDS.get(cause, cause)}" for cause, n in counts.most_common())


def of_owner(error: GatewayError, owner: str | None, names: Collection[str]) -> GatewayError:
    """The same, where only one project may serve the request: others would have had room."""
    if owner is None:
        return error
    said = f"{error.message}; only project {owner} can serve the request"
    shown = sorted(names)[:NAMED_MOST]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    said += f", which owns {', '.join(shown)}{more}" if shown else ""
    return GatewayError(error.code, said, retry_after=error.retry_after)


def busy(attempts: int, owner: str | None = None) -> GatewayError:
    """No time is left for another attempt, though a project may have room."""
    were = "1 attempt was" if attempts == 1 else f"{attempts} attempts were"
    then = "another project may serve the next one" if owner is None else f"only project {owner} can serve it"
    message = f"{were} refused; {then}"
    return GatewayError("QUOTA_BUSY", message, retry_after=1.0)


class NoSlot(NamedTuple):
    """Why a search for a slot found none, for the journal. `cause`: full, no-key or too-large."""

    cause: str
    detail: str


def no_slot(
    model: str, refusals: Mapping[str, Refusal], now: float, deadline: float, want: Want, limits: Collection[Limits]
) -> NoSlot:
    """`limits`: those of every project, given where nobody refused because all were asked before."""
    if not refusals:
        if not limits:
            return NoSlot("no-key", "there is no enabled key in the pool")
        if all(_never_fits(want, known) for known in limits):
            return NoSlot("too-large", f"the request {_too_large(model, want, limits)}")
        return NoSlot("full", "every project that may serve it was asked already")
    first = min(refusals.values())
    causes = {cause_of(refusal.why) for refusal in refusals.values()}
    cause = "no-key" if causes <= KEYLESS else "too-large" if causes == {"too-large"} else "full"
    return NoSlot(cause, words(first.why) + _too_late(first, now, deadline))


def _too_late(refusal: Refusal, now: float, deadline: float) -> str:
    """A key or project that is set aside has no next slot."""
    if refusal.why.startswith("aside:") or not deadline < refusal.until < math.inf:
        return ""
    patience = max(0.0, deadline - now)
    free = f"; the next slot is free in {refusal.until - now:.1f} s"
    if not patience:
        return f"{free}, and the request may not wait"
    return f"{free}, {refusal.until - deadline:.1f} s later than the request may wait ({patience:.1f} s)"


def _never_fits(want: Want, known: Limits) -> bool:
    return any(name in known and known[name] < amount for name, amount in (("tpm", want.tokens), ("tpd", want.tokens)))


def unusable(refusals: Mapping[str, Refusal]) -> str:
    """For an operator, when no project may serve anything."""
    if not refusals:
        return "there is no usable key in the pool, so every request gets 503: add one with `pollux keys add`"
    causes = {project: cause_of(refusal.why) for project, refusal in refusals.items()}
    return (
        f"no project may serve at the moment ({_counted(causes)}), so requests get 503; "
        "`pollux keys check` tries the keys, `pollux keys add` adds one"
    )


def _too_large(model: str, want: Want, limits: Collection[Limits]) -> str:
    """Its size and the largest limit, which no waiting makes larger."""
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


def _no_key(causes: Mapping[str, str], wait: float) -> GatewayError:
    if not causes:
        return GatewayError("NO_USABLE_KEY", "there is no usable key in the pool: add one with `pollux keys add`")
    listed = ", ".join(f"{project}: {WORDS.get(cause, cause)}" for project, cause in sorted(causes.items()))
    return GatewayError(
        "NO_USABLE_KEY",
        f"no key of the pool is usable ({listed}); `pollux keys check` tries them, `pollux keys add` adds one",
        retry_after=min(wait, ASKED_WITHIN) if wait < math.inf else None,
    )
