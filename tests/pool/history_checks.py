"""What must be true of every history, whatever went wrong in it. Written independently of how the pool counts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from tests.pool.histories import Record, Send
from tests.pool.history_plans import Plan

MINUTE = 60.0
PATIENCE = 65.0
SLACK = 40.0
"""A request is answered so long after its deadline at the latest: slow commits, conflicts, an instance that froze."""
SETTLED = 8.0
"""So long after a limit was learned and the last booking made before it was sent, nobody exceeds it any more."""


def most_in_a_minute(sends: Sequence[tuple[float, int]]) -> tuple[int, float]:
    """The most that any sixty seconds hold, and when the last of it came."""
    most, when, first, held = 0, 0.0, 0, 0
    for at, amount in sends:
        held += amount
        while at - sends[first][0] >= MINUTE:
            held -= sends[first][1]
            first += 1
        if held > most:
            most, when = held, at
    return most, when


def by_quota(record: Record) -> dict[tuple[str, str], list[Send]]:
    quotas: dict[tuple[str, str], list[Send]] = defaultdict(list)
    for send in sorted(record.sends, key=lambda send: send.at):
        quotas[send.project, send.bucket].append(send)
    return quotas


def fullest(plan: Plan, record: Record) -> float:
    """The share of the limit of requests that the busiest minute of the busiest quota used."""
    limit = plan.limits.get("rpm", 0)
    used = [most_in_a_minute([(s.at, s.want.requests) for s in sends])[0] for sends in by_quota(record).values()]
    return max(used, default=0) / limit if limit else 0.0


def wrong(plan: Plan, record: Record) -> list[str]:
    """What is not as it must be, each in one line."""
    found = list(_answers(plan, record))
    if not plan.exempt:
        for where, sends in by_quota(record).items():
            name = "/".join(where)
            found += [f"{name}: {what}" for what in (*_minutes(plan, sends), *_days(plan, sends))]
            if where in record.taught and plan.kind == "learn":
                found += [f"{name}: {what}" for what in _taught(plan, sends, record.taught[where])]
        found += _totals(plan, record)
    return found


def _answers(plan: Plan, record: Record) -> Iterator[str]:
    patience = PATIENCE if any(request.patient for request in plan.requests) else 0.0
    if record.slowest > patience + SLACK:
        yield f"a request was answered {record.slowest:.1f} s after its deadline"


def _minutes(plan: Plan, sends: list[Send]) -> Iterator[str]:
    for name, which in (("rpm", 0), ("tpm", 1)):
        if name in plan.limits:
            most, when = most_in_a_minute([(send.at, send.want[which]) for send in sends])
            if most > plan.limits[name]:
                yield f"{name} {most} of {plan.limits[name]} in the minute before {when:.3f}"


def _taught(plan: Plan, sends: list[Send], when: float) -> Iterator[str]:
    since = when + max(request.wait for request in plan.requests) + SETTLED
    most, at = most_in_a_minute([(send.at, send.want.requests) for send in sends if send.at > since])
    if most > (plan.true_rpm or 0):
        yield f"rpm {most} of the learned {plan.true_rpm} in the minute before {at:.3f}"


def _days(plan: Plan, sends: list[Send]) -> Iterator[str]:
    """By the upstream's own calendar. The one call that tries whether a day begins at 00:00 UTC may be too many.

    What an instance had booked when it crashed was never sent, so that the upstream may serve that call out of the old
    day. Days are then counted by UTC until the first refusal, which is the next call: nothing can tell it before.
    """
    if "crash" in plan.troubles and any(send.probe == "utc" for send in sends):
        return
    zone = UTC if plan.zone == "utc" else ZoneInfo("America/Los_Angeles")
    used: dict[tuple[str, str], int] = defaultdict(int)
    for send in sends:
        if send.probe != "utc":
            day = datetime.fromtimestamp(plan.began + send.at, zone).date().isoformat()
            used["rpd", day] += send.want.requests
            used["tpd", day] += send.want.tokens
    for (name, day), amount in used.items():
        if amount > plan.limits.get(name, amount):
            yield f"{name} {amount} of {plan.limits[name]} on {day}"


def _totals(plan: Plan, record: Record) -> Iterator[str]:
    """What the store holds at the end against what was sent: never less, and not more where nothing got lost."""
    if plan.zone or ("rpm" not in plan.limits and not plan.exact):
        return
    metered = "tpm" in plan.limits or "tpd" in plan.limits
    """Else a grant holds no tokens, and what was used of it is told when it ends: not by an instance that crashed."""
    sent: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for send in record.sends:
        total = sent[send.project, send.bucket, send.day]
        total[0] += send.want.requests
        total[1] += send.settled
    for project, bucket in record.stored:
        for day, (requests, tokens) in record.stored[project, bucket].items():
            total = sent[project, bucket, day]
            less = requests < total[0] or (tokens < total[1] and metered)
            if less or (plan.exact and [requests, tokens] != total):
                yield f"{project}/{bucket}: the store has {requests}, {tokens} on {day}, sent were {total}"
    for (project, bucket, day), total in sent.items():
        if day not in record.stored.get((project, bucket), {}) and any(total):
            yield f"{project}/{bucket}: the store has nothing of {day}, sent were {total}"
