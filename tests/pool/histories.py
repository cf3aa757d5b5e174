"""Random histories of several instances over one store: drawn from a seed, played in virtual time.

`Plan` is what a seed draws, `Play` runs it over the real pool, `Record` is what was really sent. Whether that was right
is told by `tests.pool.history_checks`.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bench.virtual import run_pure
from pollux.backends.store.clock import StoreClock
from pollux.backends.store.contract import StoreUnavailableError
from pollux.backends.store.memory import MemoryStore
from pollux.gemini.verdict.causes import Action, Blames
from pollux.gemini.verdict.rules import Verdict
from pollux.pool.windows import Want
from tests.pool.history_plans import TRANSIT, UTC_MIDNIGHT, Body, Plan, Request, body
from tests.pools import Ask, FaultyStore, Full, House, Reservation, StoppingError, Tried, keys_of

Note = Callable[[float, str], None]


@dataclass(slots=True)
class Send:
    """One call as the upstream sees it."""

    at: float
    project: str
    bucket: str
    want: Want
    day: str
    probe: str
    settled: int
    """Its true tokens, once the pool was told of them; before that what was booked."""


@dataclass(slots=True)
class Record:
    sends: list[Send] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    """How long after its deadline the last request was answered."""
    taught: dict[tuple[str, str], float] = field(default_factory=dict)
    """(project, bucket) -> since when its true limit stands in the store."""
    stored: dict[tuple[str, str], dict[str, tuple[int, int]]] = field(default_factory=dict)
    """What the store says of the days at the end."""
    commits: int = 0


class Instance:
    """One process of the gateway, with what it works on."""

    def __init__(self, play: "Play", number: int, how: Body) -> None:
        self.number = number
        clock = StoreClock() if play.plan.corrected else None
        rng, step = play.rng, how.steady
        store = FaultyStore(
            play.inner,
            lambda: how.there * rng.uniform(step, 1),
            how.offset,
            back=lambda: how.back * rng.uniform(step, 1),
            drift=how.drift,
            clock=clock,
        )
        keys = keys_of(play.plan.projects, **play.plan.limits)
        self.store = store
        self.house = House(store, keys, **play.plan.settings)
        if play.plan.seed % 3 == 0:  # as in a pool that is too large to look at all of it
            self.house.pool.candidates.look_at = 1
        self.clients: set[asyncio.Task[None]] = set()


class Play:
    def __init__(self, plan: Plan, note: Note | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(f"play {plan.seed}")
        self.record = Record()
        self.loop = asyncio.get_running_loop()
        self.inner = MemoryStore(lambda: plan.began + self.loop.time())
        self.note = note
        self.instances: list[Instance] = []
        self.made = 0
        self.clients: list[asyncio.Task[None]] = []
        self.stops: list[asyncio.Task[None]] = []

    def say(self, text: str) -> None:
        if self.note is not None:
            self.note(self.loop.time(), text)

    def _instance(self) -> Instance:
        how = self.plan.bodies[self.made] if self.made < len(self.plan.bodies) else body(self.rng)
        self.made += 1
        self.say(f"i{self.made} begins: {how}")
        return Instance(self, self.made, how)

    async def run(self) -> Record:
        await self.inner.open()
        plan = self.plan
        self.instances = [self._instance() for _ in range(plan.instances)]
        for request in plan.requests:
            self.loop.call_at(request.at, self._arrives, request)
        for at, what, which in plan.events:
            self.loop.call_at(at, self._happens, what, which % plan.instances)
        await asyncio.sleep(plan.seconds + 0.001)  # after the last of them
        for task in (*self.clients, *self.stops):
            try:
                await task
            except asyncio.CancelledError:
                self._count("cancelled")
        for instance in self.instances:
            await instance.house.projects.close()
            self.record.commits += instance.store.commits
        await self._read_days()
        return self.record

    def _arrives(self, request: Request) -> None:
        instance = self.instances[request.instance % len(self.instances)]
        if request.fault:
            instance.store.faults.append(request.fault)
        if request.read_fault:
            instance.store.read_faults.append(request.read_fault)
        task = self.loop.create_task(self._client(instance, request))
        self.clients.append(task)
        instance.clients.add(task)
        task.add_done_callback(instance.clients.discard)
        if request.leaves:
            self.loop.call_later(request.leaves, task.cancel)

    def _happens(self, what: str, which: int) -> None:
        instance = self.instances[which]
        self.say(f"i{instance.number} {what}")
        match what:
            case "crash":
                instance.store.dead = True
                for task in instance.clients:
                    task.cancel()
                self.instances[which] = self._instance()
            case "stop":
                self.instances[which] = self._instance()
                self.stops.append(self.loop.create_task(self._stop(instance)))
            case "freeze":
                instance.store.frozen_until = self.loop.time() + self.rng.uniform(0.3, 8)
            case "wipe":
                self.stops.append(self.loop.create_task(self._wipe()))
            case "outage":
                for each in self.instances:
                    each.store.out_until = self.loop.time() + 10

    async def _stop(self, instance: Instance) -> None:
        instance.house.pool.end(self.rng.uniform(0, 8))
        while instance.clients:
            await asyncio.wait(set(instance.clients))
        await instance.house.projects.close()
        self.record.commits += instance.store.commits

    async def _wipe(self) -> None:
        for name, (_, version) in (await self.inner.scan("")).items():
            await self.inner.delete(name, version)

    async def _client(self, instance: Instance, request: Request) -> None:
        """As `relay` does it, with one retry."""
        await instance.store.awake()
        ask = Ask(request.want, instance.house.pool.now() + request.wait, patient=request.patient)
        tried = Tried()
        due = self.loop.time() + request.wait
        for _ in range(2):
            try:
                found = await instance.house.pool.reserve(request.model, ask, tried)
            except StoreUnavailableError:
                return self._answered("unavailable", due)
            except StoppingError:
                return self._answered("stopping", due)
            if isinstance(found, Full):
                return self._answered("refused", due)
            self._answered("reserved", due)
            tried.projects.add(found.quota.project)
            try:
                if await self._sent(instance, request, found):
                    return None
            except StoreUnavailableError:  # what the answer means could not be written
                return None
            finally:
                found.let_go()
        return None

    def _answered(self, how: str, due: float) -> None:
        self._count(how)
        self.record.slowest = max(self.record.slowest, self.loop.time() - due)

    def _count(self, how: str) -> None:
        self.record.answers[how] = self.record.answers.get(how, 0) + 1

    async def _sent(self, instance: Instance, request: Request, found: Reservation) -> bool:
        """True if it was served; else it may be tried elsewhere."""
        found.sent = True
        owned, now = found.quota, self.loop.time()
        want = Want(request.want.requests, request.true_tokens)
        send = Send(
            now + self.rng.uniform(0, TRANSIT), owned.project, owned.bucket, want, found.slot.day, found.slot.probe, 0
        )
        send.settled = request.want.tokens
        self.say(
            f"i{instance.number} sends to {owned.project}/{owned.bucket} {tuple(want)} of slot "
            f"{found.slot.start - self.plan.began:.1f}{found.slot.probe and ' as a probe'}, its clock is "
            f"{instance.store.now() - self.inner.now():+.3f} off"
        )
        self.record.sends.append(send)
        verdict = self._judged(send, request)
        await instance.store.sleep(request.takes)
        if verdict is None:
            await instance.house.feedback.served(found)
            if request.settles:
                send.settled = request.true_tokens
                pending = found.settle(request.true_tokens)
                if pending is not None:
                    with suppress(StoreUnavailableError):
                        await pending
            return True
        self.say(
            f"i{instance.number} learns of {owned.project}/{owned.bucket}: {verdict.cause} {dict(verdict.learned)}"
        )
        await instance.house.feedback.failed(found, verdict)
        if verdict.learned:
            self.record.taught.setdefault((owned.project, owned.bucket), self.loop.time())
        return False

    def _judged(self, send: Send, request: Request) -> Verdict | None:
        """What the upstream says: its own limit, if that is another one than was declared; or a passing trouble."""
        if self.plan.true_rpm is not None:
            held = sum(s.want.requests for s in self._before(send) if s.at > send.at - 60)
            if held > self.plan.true_rpm:
                return Verdict("rpm", "quota", "next-project", 5.0, learned={"rpm": self.plan.true_rpm})
        if self.plan.zone and self._of_this_day(send) > self.plan.limits["rpd"]:
            return Verdict("rpd", "quota", "next-project", 3600.0)
        if request.refusal:
            return partial(Verdict, *REFUSALS[request.refusal])()
        return None

    def _before(self, send: Send) -> Iterator[Send]:
        return (s for s in self.record.sends if (s.project, s.bucket) == (send.project, send.bucket))

    def _of_this_day(self, send: Send) -> int:
        if self.plan.zone == "utc":
            began = UTC_MIDNIGHT - self.plan.began
            return sum(s.want.requests for s in self._before(send) if s.at >= began or send.at < began)
        return sum(s.want.requests for s in self._before(send))

    async def _read_days(self) -> None:
        observer = House(FaultyStore(self.inner), keys_of(self.plan.projects, **self.plan.limits))
        await observer.projects.load_all()
        for where, owned in observer.projects.quotas.items():
            self.record.stored[where] = dict(owned.document.value.days)


REFUSALS: dict[str, tuple[str, Blames, Action, float | None, float | None]] = {
    "rpm": ("rpm", "quota", "next-project", 8.0, None),
    "unknown-429": ("unknown-429", "quota", "next-project", 5.0, 600.0),
    "rpd": ("rpd", "quota", "next-project", 20.0, None),
    "overloaded": ("overloaded", "model", "retry", None, None),
    "suspended": ("suspended", "key", "next-key", 10.0, 86400.0),
    "spend": ("spend", "project", "next-project", 6.0, 600.0),
}


def play(plan: Plan, note: Note | None = None) -> Record:
    async def scene() -> Record:
        return await Play(plan, note).run()

    return run_pure(scene())
