"""How well a pool is used: the real pool and store, against a Gemini that enforces quotas, in virtual time.

python -m bench.scheduling [--minutes 10] [--write]
"""

import argparse
import asyncio
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench import cost
from bench.plot import bars
from bench.virtual import run, table
from gemini_simulator.quota import Enforcer
from pollux.backends.keys.contract import Key, Secret
from pollux.backends.store.memory import MemoryStore
from pollux.gemini.catalog import Catalog
from pollux.gemini.verdict.rules import Verdict
from pollux.pool.feedback import Feedback
from pollux.pool.pool import Pool
from pollux.pool.projects import Projects
from pollux.pool.reservation import Ask, Full, Tried
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import Want
from pollux.server.wiring import builtin_catalog
from pollux.settings import Settings

PAGE = cost.ROOT / "docs/scheduling.md"
BEGAN = 1_790_000_000.0
MODEL = "gemini-2.5-flash"
PROJECTS = 8
RPM = 15
TPM = 250_000
MAX_WAIT = 60.0
FIRST_WINDOW = 61.5
ATTEMPTS = 4
ENFORCEMENTS = ("sliding", "minute", "bucket")
BIG = 200_000
"""80 % of the token limit."""


@dataclass(slots=True)
class Tally:
    """What happened to the requests that arrived after the first window."""

    offered: int = 0
    served: int = 0
    """Of those that arrived after the first window, however late."""
    in_time: int = 0
    """Served within the minutes measured, whenever they arrived."""
    given_up: int = 0
    calls: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    big_offered: int = 0
    big_served: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    enforcement: str
    load: float
    minutes: float = 10.0
    strategy: str = "earliest"
    window: str = "sliding"
    limits: tuple[tuple[str, int], ...] = (("rpm", RPM), ("tpm", TPM))
    small: int = 500
    big_every: int = 0
    """Every so many requests one is of BIG tokens."""

    @property
    def measured(self) -> tuple[float, float]:
        return FIRST_WINDOW, FIRST_WINDOW + self.minutes * 60

    def within(self, moment: float) -> bool:
        return self.measured[0] <= moment < self.measured[1]

    def arrivals(self, rng: random.Random) -> Sequence[tuple[float, int]]:
        """(second, tokens): as calls of many programs come, at random times."""
        limits = dict(self.limits)
        per_minute = PROJECTS * min(limits["rpm"], limits["tpm"] / self._mean_tokens())
        moment = 0.0
        found: list[tuple[float, int]] = []
        for number in itertools.count(1):
            moment += rng.expovariate(self.load * per_minute / 60)
            if moment >= self.measured[1]:
                return found
            found.append((moment, BIG if self.big_every and number % self.big_every == 0 else self.small))
        raise AssertionError

    def _mean_tokens(self) -> float:
        return self.small if not self.big_every else (self.small * (self.big_every - 1) + BIG) / self.big_every


class FixedKeys:
    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys

    async def keys(self) -> tuple[Key, ...]:
        return self._keys

    async def value(self, key_id: str) -> Secret:
        return Secret(key_id)

    async def reread(self, key_id: str) -> bool:
        return False


async def pollux(scene: Scene, seed: int = 1) -> Tally:
    """The real pool. Only the network is imagined: a call takes 20 to 200 ms to reach Google."""
    loop, rng, tally = asyncio.get_running_loop(), random.Random(seed), Tally()
    store = MemoryStore(lambda: BEGAN + loop.time())
    await store.open()
    keys = tuple(Key(f"k{i}", f"p{i}", limits={"*": dict(scene.limits)}) for i in range(PROJECTS))
    settings = Settings(strategy=scene.strategy, window=scene.window, max_wait=MAX_WAIT)
    pool = Pool(settings, Projects(store, FixedKeys(keys), Catalog.parse(builtin_catalog())))
    outcomes = Feedback(pool)
    google = Enforcer(scene.enforcement, dict(scene.limits))

    async def client(tokens: int) -> None:
        began, counted = loop.time(), scene.within(loop.time())
        tally.offered += counted
        tally.big_offered += counted and tokens == BIG
        tried = Tried()
        for _ in range(ATTEMPTS):
            ask = Ask(Want(1, tokens), BEGAN + began + MAX_WAIT)
            found = await pool.reserve(MODEL, ask, tried)
            if isinstance(found, Full):
                break
            found.sent = True
            await asyncio.sleep(rng.uniform(0.02, 0.2))
            refusal = google.admit(found.quota.project, MODEL, requests=1, tokens=tokens, now=pool.now())
            tally.calls += counted
            if refusal is None:
                await outcomes.served(found)
                tally.in_time += scene.within(loop.time())
                tally.served += counted
                tally.big_served += counted and tokens == BIG
                if counted:
                    tally.waits.append(loop.time() - began)
                return
            tally.refused += counted
            cooldown = math.floor(refusal.retry_s) + 1
            verdict = Verdict(refusal.name, "quota", "next-project", cooldown, learned={refusal.name: refusal.limit})
            await outcomes.failed(found, verdict)
            tried.projects.add(found.quota.project)
        tally.given_up += counted

    async with asyncio.TaskGroup() as group:
        for moment, tokens in scene.arrivals(rng):
            await asyncio.sleep(max(0.0, moment - loop.time()))
            group.create_task(client(tokens))
    return tally


@dataclass(slots=True)
class FieldPool:
    """As the field does it: pick a key, cool it for a fixed time after a 429, try another, wait if all are cooling."""

    pick: Callable[[list[int], list[float], random.Random], int]
    cooldown: float

    async def run(self, scene: Scene, seed: int = 1) -> Tally:
        loop, rng, tally = asyncio.get_running_loop(), random.Random(seed), Tally()
        google = Enforcer(scene.enforcement, dict(scene.limits))
        cooling = [0.0] * PROJECTS
        used = [0.0] * PROJECTS

        async def client(tokens: int) -> None:
            began, counted = loop.time(), scene.within(loop.time())
            tally.offered += counted
            attempts = 0
            while attempts < ATTEMPTS and loop.time() - began <= MAX_WAIT:
                able = [i for i in range(PROJECTS) if cooling[i] <= loop.time()]
                if not able:
                    await asyncio.sleep(min(cooling) - loop.time() + rng.random())
                    continue
                chosen = self.pick(able, used, rng)
                used[chosen] = loop.time() + 1e-6 * next(ticks)
                attempts += 1
                await asyncio.sleep(rng.uniform(0.02, 0.2))
                tally.calls += counted
                now = BEGAN + loop.time()
                if google.admit(f"p{chosen}", MODEL, requests=1, tokens=tokens, now=now) is None:
                    tally.in_time += scene.within(loop.time())
                    tally.served += counted
                    if counted:
                        tally.waits.append(loop.time() - began)
                    return
                tally.refused += counted
                cooling[chosen] = loop.time() + self.cooldown
            tally.given_up += counted

        ticks = itertools.count()
        async with asyncio.TaskGroup() as group:
            for moment, tokens in scene.arrivals(rng):
                await asyncio.sleep(max(0.0, moment - loop.time()))
                group.create_task(client(tokens))
        return tally


_turn = itertools.count()
FIELD = {
    "round robin, 60 s": FieldPool(lambda able, used, rng: able[next(_turn) % len(able)], 60),
    "least recently used, 90 s": FieldPool(lambda able, used, rng: min(able, key=used.__getitem__), 90),
    "random, 5 s": FieldPool(lambda able, used, rng: rng.choice(able), 5),
}


def row(name: str, scene: Scene, tally: Tally) -> tuple[str, ...]:
    share = tally.in_time / (PROJECTS * RPM * scene.minutes) if scene.load > 1 else tally.served / tally.offered
    waits = sorted(tally.waits) or [0.0]
    return (
        name,
        scene.enforcement,
        f"{scene.load:g}",
        f"{share:.3f}",
        f"{tally.refused / max(1, tally.calls):.4f}",
        f"{statistics.median(waits):.1f}",
        f"{waits[int(0.95 * (len(waits) - 1))]:.1f}",
    )


HEAD = ("pool", "enforced as", "load", "served", "refused upstream", "median wait, s", "95 % wait, s")


def measure(minutes: float) -> list[tuple[str, ...]]:
    rows = []
    for load in (1.5, 0.9):
        for enforcement in ENFORCEMENTS:
            scene = Scene(enforcement, load, minutes)
            for strategy in STRATEGIES:
                rows.append(row(f"Pollux, {strategy}", scene, run(pollux(replace(scene, strategy=strategy)))))
            if enforcement == "minute":
                rows.append(row("Pollux, window=minute", scene, run(pollux(replace(scene, window="minute")))))
            for name, field_pool in FIELD.items():
                rows.append(row(name, scene, run(field_pool.run(scene))))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def big_wants(minutes: float) -> Tally:
    """Overload by tokens: many requests of 10,000, every hundredth one of 80 % of the limit."""
    return run(
        pollux(Scene("sliding", 1.5, minutes, limits=(("rpm", 1000), ("tpm", TPM)), small=10_000, big_every=100))
    )


def verdicts(rows: Sequence[Sequence[str]], big: Tally) -> list[tuple[str, str, str]]:
    ours = [r for r in rows if r[0].startswith("Pollux") and "minute" not in r[0]]
    high = [r for r in ours if r[2] == "1.5"]
    low = [r for r in ours if r[2] == "0.9"]
    return [
        ("served of the nominal capacity at 1.5, least", min(r[3] for r in high), "at least 0.95"),
        ("refused upstream at 1.5, most", max(r[4] for r in high), "at most 0.0020"),
        ("served of the offered at 0.9, least", min(r[3] for r in low), "1.000"),
        ("wants of 80 % of the token limit served", f"{big.big_served} of {big.big_offered}", "all"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--write", action="store_true", help="put the figures into docs/scheduling.md and its plot")
    chosen = parser.parse_args()
    rows = measure(chosen.minutes)
    checks = verdicts(rows, big_wants(chosen.minutes))
    if chosen.write:
        figures = table(("figure", "measured", "asked for"), checks)
        PAGE.write_text(cost.fill(PAGE.read_text(), {"scheduling-figures": figures, "scheduling": table(HEAD, rows)}))
        high = [(r[0], r[1], float(r[3]), float(r[4])) for r in rows if r[2] == "1.5"]
        PAGE.with_suffix(".svg").write_text(bars(high))
    for what, value, asked in checks:
        print(f"  {what:<48} {value:>12}  {asked}")


if __name__ == "__main__":
    main()
