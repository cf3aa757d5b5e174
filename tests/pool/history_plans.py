"""What a seed draws: how many instances with which clocks and ways to the store, who asks when, what goes wrong."""

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pollux.pool.windows import PACIFIC, Want
from tests.pools import BEGAN, MODEL

TRANSIT = 0.1
"""From the pool's decision to the upstream's count."""
OTHER = "another-model"
MINUTE = 60.0
MIDNIGHTS = tuple(
    datetime(*date, tzinfo=PACIFIC).timestamp()
    for date in ((2026, 11, 1), (2026, 11, 2), (2026, 3, 8), (2026, 3, 9), (2026, 9, 22))
)
"""Before and after a day of 25 hours, before and after one of 23, and an ordinary one."""
UTC_MIDNIGHT = datetime(2026, 9, 22, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Body:
    """How one instance is off: its clock, and its way to the store and back, each up to so many seconds."""

    offset: float
    drift: float
    there: float
    back: float
    steady: float
    """The least part of these that every call takes."""


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    instance: int
    model: str
    want: Want
    true_tokens: int
    wait: float
    patient: bool
    takes: float
    settles: bool = False
    leaves: float = 0.0
    fault: str = ""
    read_fault: str = ""
    refusal: str = ""


@dataclass(slots=True)
class Plan:
    seed: int
    kind: str
    instances: int
    projects: int
    models: tuple[str, ...]
    limits: dict[str, int]
    seconds: float
    began: float
    bodies: tuple[Body, ...]
    true_rpm: int | None = None
    """The upstream's own limit, where it is not the declared one."""
    requests: tuple[Request, ...] = ()
    events: tuple[tuple[float, str, int], ...] = ()
    troubles: frozenset[str] = field(default_factory=frozenset)
    zone: str = ""
    """How the upstream ends a day, where the history tells: near 00:00 UTC."""
    corrected: bool = True
    """Whether the store's answers put the clocks right."""

    @property
    def settings(self) -> dict[str, str]:
        """An instance that goes on without the store may exceed a limit by its safe share, if others go on with it."""
        return {"store_down": "closed"} if self.troubles & {"faults", "read_faults"} and not self.exempt else {}

    @property
    def exempt(self) -> bool:
        """More than the limit may be sent: the store forgot, or does not answer for long."""
        return bool(self.troubles & {"wipe", "outage"})

    @property
    def exact(self) -> bool:
        """Nothing got lost on the way: the store must know of every call, and of no other. An instance that is frozen
        while it should write its last counts has no time for that."""
        return not self.troubles & {"faults", "read_faults", "crash", "wipe", "outage", "freeze"}


def body(rng: random.Random) -> Body:
    total = rng.choice([0.0, rng.uniform(0, 0.2), rng.uniform(0, 1), 0.999])
    there = total * rng.choice([0.5, rng.random(), rng.choice([0.0, 1.0])])
    offset = rng.choice([rng.uniform(-1, 1), rng.choice([-1.0, 1.0])])
    return Body(offset, rng.uniform(-5e-4, 5e-4), there, total - there, rng.choice([0.0, 0.0, 0.5, 1.0]))


KINDS = {"plain": 60, "day": 12, "learn": 10, "unlimited": 4, "medium": 8, "fast": 6}
TROUBLES = {
    "faults": 0.35,
    "read_faults": 0.1,
    "crash": 0.2,
    "stop": 0.2,
    "freeze": 0.15,
    "leavers": 0.3,
    "settle": 0.4,
    "refusals": 0.2,
    "wipe": 0.02,
    "outage": 0.02,
}


REFUSED = ("rpm", "unknown-429", "rpd", "overloaded", "suspended", "spend")
"""The first two, told by every project within seconds, make the whole pool pause."""


def draw(seed: int) -> Plan:
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    troubles = frozenset(name for name, share in TROUBLES.items() if rng.random() < share)
    instances = rng.choice([1, 2, 2, 3, 4])
    plan = Plan(
        seed=seed,
        kind=kind,
        instances=instances,
        projects=rng.choice([1, 1, 1, 2]),
        models=rng.choice([(MODEL,), (MODEL,), (MODEL,), (MODEL, OTHER)]),
        limits=_limits(rng, kind),
        seconds=rng.uniform(62, 135),
        began=BEGAN + rng.random(),
        bodies=tuple(body(rng) for _ in range(instances)),
        troubles=troubles,
    )
    if kind == "learn":
        plan.true_rpm = rng.randint(1, 4)
        plan.seconds += 40
    if kind == "unlimited":
        plan.true_rpm = rng.randint(1, 4)
    if kind == "day":
        midnight = rng.choice([*MIDNIGHTS, UTC_MIDNIGHT])
        plan.began = midnight - rng.uniform(0, plan.seconds)
        plan.zone = rng.choice(["utc", "pacific"]) if midnight == UTC_MIDNIGHT else ""
    plan.requests = tuple(_requests(rng, plan))
    plan.events = tuple(
        (rng.uniform(0, plan.seconds), name, rng.randrange(instances))
        for name in sorted(troubles & {"crash", "stop", "freeze", "wipe", "outage"})
        for _ in range(rng.choice([1, 1, 2]))
    )
    return plan


def _limits(rng: random.Random, kind: str) -> dict[str, int]:
    if kind == "unlimited":
        return {}
    rpm = rng.randint(61, 300) if kind == "fast" else rng.randint(7, 60) if kind == "medium" else rng.randint(1, 6)
    limits = {"rpm": rpm}
    if rng.random() < 0.5:
        limits["tpm"] = 1000 * rpm
    if kind == "day":
        limits["rpd"] = rng.randint(1, 2 * rpm)
        if rng.random() < 0.3:
            limits["tpd"] = 1000 * rng.randint(1, 2 * rpm)
    return limits


def _requests(rng: random.Random, plan: Plan) -> list[Request]:
    rpm = plan.limits.get("rpm", 4)
    chunk = 1 if rpm <= 6 else max(1, rpm // 8)
    """Where the limit is high, a call takes several requests, as a batch of texts does: fewer calls fill the window."""
    load = rng.choice([0.7, 1.2, 2.0])
    share = chunk if chunk == 1 else (chunk + 1) / 2
    many = load * rpm / share * plan.projects * len(plan.models) * plan.seconds / MINUTE
    edges = [edge for edge in (0.0, MINUTE, 2 * MINUTE) if edge < plan.seconds]
    wait = rng.choice([0.0, 5.0, 30.0, 61.0])
    bursts = rng.choice([0.2, 0.5, 0.8])
    requests = []
    for _ in range(max(2, round(many))):
        at = rng.uniform(0, plan.seconds)
        if rng.random() < bursts:
            edge = rng.choice(edges)
            at = min(plan.seconds, edge + rng.uniform(-1, 3) if edge else rng.uniform(0, 2))
        requests.append(_request(rng, plan, max(0.0, at), chunk, wait))
    return sorted(requests, key=lambda request: request.at)


def _request(rng: random.Random, plan: Plan, at: float, chunk: int, wait: float) -> Request:
    tpm = plan.limits.get("tpm")
    tokens = rng.randint(0, 2000 * chunk) if tpm or rng.random() < 0.5 else 0
    if tpm and rng.random() < 0.1:
        tokens = rng.randint(0, tpm)
    settles = "settle" in plan.troubles and rng.random() < 0.8
    request = Request(
        at=at,
        instance=rng.randrange(4),
        model=rng.choice(plan.models),
        want=Want(rng.randint(1, chunk), tokens),
        true_tokens=round(tokens * rng.uniform(0.2, 1)) if settles else tokens,
        wait=wait,
        patient=plan.kind not in ("learn", "unlimited") and rng.random() < 0.8,
        takes=rng.choice([0.0, rng.uniform(0, 3)]),
        settles=settles,
    )
    if "faults" in plan.troubles and rng.random() < 0.15:
        request = replace(request, fault=rng.choice(["down", "lost", "conflict", "late", "spurious"]))
    if "read_faults" in plan.troubles and rng.random() < 0.1:
        request = replace(request, read_fault="down")
    if "leavers" in plan.troubles and rng.random() < 0.3:
        request = replace(request, leaves=rng.expovariate(rng.choice([0.2, 3])))
    if "refusals" in plan.troubles and rng.random() < 0.1:
        request = replace(request, refusal=rng.choice(REFUSED))
    return request
