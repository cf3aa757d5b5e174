"""Three ways in which Google may count a minute, written independently of Pollux. Each gives what it would refuse."""

from collections.abc import Callable, Sequence

Send = tuple[float, int]
"""When, and how much."""
MINUTE = 60.0


def sliding(sends: Sequence[Send], limit: int) -> list[Send]:
    accepted: list[Send] = []
    refused = []
    for when, amount in sorted(sends):
        if sum(a for w, a in accepted if w > when - MINUTE) + amount > limit:
            refused.append((when, amount))
        else:
            accepted.append((when, amount))
    return refused


def fixed(sends: Sequence[Send], limit: int, phase: float = 0.0) -> list[Send]:
    minutes: dict[int, int] = {}
    refused = []
    for when, amount in sorted(sends):
        minute = int((when - phase) // MINUTE)
        if minutes.get(minute, 0) + amount > limit:
            refused.append((when, amount))
        else:
            minutes[minute] = minutes.get(minute, 0) + amount
    return refused


def bucket(sends: Sequence[Send], limit: int) -> list[Send]:
    held, last = float(limit), 0.0
    refused = []
    for when, amount in sorted(sends):
        held = min(limit, held + (when - last) * limit / MINUTE)
        last = when
        if amount > held + 1e-6 * limit:
            refused.append((when, amount))
        else:
            held -= amount
    return refused


ENFORCERS: tuple[Callable[[Sequence[Send], int], list[Send]], ...] = (
    sliding,
    bucket,
    fixed,
    lambda sends, limit: fixed(sends, limit, phase=17.3),
    lambda sends, limit: fixed(sends, limit, phase=59.9),
)
