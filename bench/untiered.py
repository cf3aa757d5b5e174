"""Keys without a known tier: how evenly they are used, and what it costs to learn their limits. The whole gateway
without a network, in virtual time, in front of a Gemini that enforces limits it never told.

The same runs are made with known limits, for comparison. Three measurements of each pool of eight projects:

- spread: 40 different requests one after the other; how many each project gets. With limits that refuse some of them
  the figure is still that of all calls;
- burst: requests that arrive at once, 110 where 120 fit: how many are served, and how many Google refuses. Once on a
  fresh pool, and once on that of the 40, after a minute and a half without requests;
- overload: right after the burst on the fresh pool, requests at random times at 1.5 times the capacity, for ten windows
  after the first one, which the burst has filled. What is served counts in those ten; refusals count from the start.

python -m bench.untiered [--windows 10] [--google 15,5,3,tokens] [--strategies …] [--enforce …] [--limits unknown,known]
    [--seeds 1,2,3] [--write]
"""

import argparse
import asyncio
import itertools
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench import cost
from bench.processes import show
from bench.scheduling import ENFORCEMENTS, FIRST_WINDOW, PAGE
from bench.virtual import table
from gemini_simulator.errors import Case, quota_error
from gemini_simulator.quota import Enforcer
from pollux.backends.upstream import Answer, Streamed
from pollux.pool.strategy import STRATEGIES
from pollux.server.app import App
from tests.gateway import FLASH, FakeAnswer, Got, Keys, answer, call, gateway, now, play, projects, value_of, whole

PROJECTS = 8
TPM = 250_000
ALLOWED = ("15", "5", "3", "tokens")
"""What Google enforces: requests a minute, more than the smallest tier that the catalog has for the model, as many, and
fewer; or tokens a minute, for requests of which 15 fit."""
TOKENS, BIG = 200, 15_900
"""Of a request, by Google's count."""
LOAD = 1.5
IN_TURN = 40
TRANSIT, ANSWER = (0.02, 0.2), (0.2, 1.5)
"""Seconds until Google has a request, and from then until it begins to answer."""
QUIET = 90.0
SEEDS = (1, 2, 3)
OPENING = "You answer questions about a long manual, briefly and by its own words. " * 20


@dataclass(frozen=True, slots=True)
class Sent:
    """A call as Google saw it. `refused`: by which limit."""

    at: float
    project: str
    refused: str = ""


class Google:
    """Google as the gateway's upstream. Every project has the same limits, which only its 429s tell."""

    def __init__(self, scene: "Scene") -> None:
        self._enforcer = Enforcer(scene.enforcement, scene.limits)
        self._rng = random.Random(scene.seed)
        self._tokens = BIG if scene.big else TOKENS
        self._projects = {value_of(key.id): key.project for key in projects(PROJECTS).all}
        self.calls: list[Sent] = []

    async def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes | Streamed
    ) -> Answer:
        project = self._projects[dict(headers)["x-goog-api-key"]]
        await asyncio.sleep(self._rng.uniform(*TRANSIT))
        refusal = self._enforcer.admit(project, FLASH, requests=1, tokens=self._tokens, now=now())
        self.calls.append(Sent(now(), project, refusal.name if refusal else ""))
        if refusal is not None:
            error = quota_error(refusal.broken, refusal.retry_s, Case(model=FLASH, bucket=FLASH))
            return FakeAnswer(whole(error.body, error.status), head=False)
        await asyncio.sleep(self._rng.uniform(*ANSWER))
        return FakeAnswer(whole(answer(self._tokens)), head=False)

    async def close(self) -> None:
        """Nothing is open."""

    def refused(self, since: float = 0.0) -> list[Sent]:
        return [sent for sent in self.calls if sent.refused and sent.at >= since]

    def served(self, since: float, until: float) -> int:
        return sum(not sent.refused and since <= sent.at < until for sent in self.calls)


@dataclass(frozen=True, slots=True)
class Scene:
    strategy: str = "earliest"
    enforcement: str = "sliding"
    allowed: str = "15"
    known: bool = False
    """Whether the keys say their limits."""
    windows: int = 10
    seed: int = 1

    @property
    def big(self) -> bool:
        return self.allowed == "tokens"

    @property
    def limits(self) -> dict[str, int]:
        return {"rpm": 1000 if self.big else int(self.allowed), "tpm": TPM}

    @property
    def keys(self) -> Keys:
        return projects(PROJECTS, **(self.limits if self.known else {}))

    @property
    def fit(self) -> int:
        """So many requests are admitted in a minute."""
        return PROJECTS * (TPM // BIG if self.big else int(self.allowed))

    @property
    def measured(self) -> float:
        """Seconds. Whole windows: a pool that is full sends in waves, and ten minutes hold nine or ten of them."""
        return self.windows * FIRST_WINDOW

    @property
    def at_once(self) -> int:
        """110 where 120 fit, and as large a share of what else fits."""
        return self.fit * 110 // 120


@dataclass(slots=True)
class Burst:
    asked: int
    served: int
    refused: int


@dataclass(slots=True)
class Overload:
    served: float
    """Of the capacity, after the first window."""
    calls: int = 0
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(project, limit) -> how often Google refused, since the overload began."""

    @property
    def most_refusals(self) -> int:
        return max(self.refusals.values(), default=0)

    @property
    def refused(self) -> float:
        return self.refusals.total() / max(1, self.calls)


_number = itertools.count(1)


async def _ask(app: App, scene: Scene, opening: str = "") -> Got:
    """A question that was never asked before."""
    text = f"{opening}Question {next(_number)}: why is that so?"
    if scene.big:
        text += " word" * (BIG * 9 // 10)  # a little above what Google counts
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    return await call(app, headers={"x-pollux-fallback": "off"}, body=body)


async def _burst(app: App, google: Google, scene: Scene) -> Burst:
    began = now()
    got = await asyncio.gather(*(_ask(app, scene) for _ in range(scene.at_once)))
    return Burst(scene.at_once, sum(each.status == 200 for each in got), len(google.refused(began)))


def spread_and_burst(scene: Scene, opening: str = "") -> tuple[Counter[str], Burst]:
    """Project -> calls, of 40 different requests one after the other; and the burst after a pause. `opening`: how each
    of the 40 begins."""

    async def played() -> tuple[Counter[str], Burst]:
        google = Google(scene)
        async with gateway(google, scene.keys, strategy=scene.strategy) as app:
            for _ in range(IN_TURN):
                await _ask(app, scene, opening)
            found = Counter({key.project: 0 for key in projects(PROJECTS).all})
            found.update(sent.project for sent in google.calls)
            await asyncio.sleep(QUIET)
            return found, await _burst(app, google, scene)

    return play(played)


def burst_and_overload(scene: Scene) -> tuple[Burst, Overload]:
    async def played() -> tuple[Burst, Overload]:
        google, rng = Google(scene), random.Random(scene.seed)
        async with gateway(google, scene.keys, strategy=scene.strategy) as app:
            burst = await _burst(app, google, scene)
            began, before = now(), len(google.calls)
            counted = began + FIRST_WINDOW
            end = counted + scene.measured
            async with asyncio.TaskGroup() as group:
                moment = began
                while (moment := moment + rng.expovariate(LOAD * scene.fit / 60)) < end:
                    await asyncio.sleep(moment - now())
                    group.create_task(_ask(app, scene))
            served = google.served(counted, end) / (scene.fit * scene.measured / 60)
            refusals = Counter((sent.project, sent.refused) for sent in google.refused(began))
            calls = sum(sent.at < end for sent in google.calls[before:])
        return burst, Overload(served, calls, refusals)

    return play(played)


HEAD = (
    "limits",
    "enforced as",
    "allowed",
    "strategy",
    "40 in turn, a project",
    "at once: served",
    "refused",
    "overload: served",
    "refused",
    "most of one limit",
)


@dataclass(slots=True)
class Found:
    scene: Scene
    spread: Counter[str]
    later: Burst
    burst: Burst
    overload: Overload

    @property
    def bursts(self) -> tuple[Burst, Burst]:
        return self.burst, self.later


def scenes(
    limits: Sequence[str] = ("unknown", "known"),
    allowed: Sequence[str] = ALLOWED,
    enforcements: Sequence[str] = ENFORCEMENTS,
    strategies: Sequence[str] = tuple(STRATEGIES),
    windows: int = 10,
    seeds: Sequence[int] = SEEDS,
) -> list[Scene]:
    """With known limits only the first of what is allowed: bench.scheduling says more of them."""
    return [
        Scene(strategy, enforcement, google, known == "known", windows, seed)
        for known in limits
        for google in (allowed[:1] if known == "known" else allowed)
        for enforcement in enforcements
        for strategy in strategies
        for seed in seeds
    ]


def measure(scenes: Sequence[Scene]) -> list[Found]:
    logging.disable()
    found = []
    for scene in scenes:
        found.append(Found(scene, *spread_and_burst(scene), *burst_and_overload(scene)))
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """A row for each case: the worst of its seeds, and the strategies that gave the same."""
    cases: dict[tuple[str, bool, str, str], list[Found]] = {}
    for each in found:
        scene = each.scene
        cases.setdefault((scene.strategy, scene.known, scene.enforcement, scene.allowed), []).append(each)
    alike: dict[tuple[str, ...], list[str]] = {}
    for (strategy, *_), group in cases.items():
        alike.setdefault(row(group), []).append(strategy)
    strategies = len({each.scene.strategy for each in found})
    named = {cells: ", ".join(names) if len(names) < strategies else "all" for cells, names in alike.items()}
    return [(*cells[:3], name, *cells[3:]) for cells, name in named.items()]


def row(group: Sequence[Found]) -> tuple[str, ...]:
    """All but the strategy, of scenes that differ in their seed."""
    scene, calls = group[0].scene, [count for each in group for count in each.spread.values()]
    fresh, later = ([each.bursts[which] for each in group] for which in (0, 1))
    return (
        "known" if scene.known else "unknown",
        scene.enforcement,
        f"{TPM:,} tokens" if scene.big else f"{scene.allowed} requests",
        f"{min(calls)} to {max(calls)}",
        f"{min(b.served for b in fresh)} and {min(b.served for b in later)} of {scene.at_once}",
        f"{max(b.refused for b in fresh)} and {max(b.refused for b in later)}",
        f"{min(each.overload.served for each in group):.3f}",
        f"{max(each.overload.refused for each in group):.4f}",
        str(max(each.overload.most_refusals for each in group)),
    )


def verdicts(found: Sequence[Found]) -> list[tuple[str, str, str]]:
    """What is asked for. Of limits below the catalog's guess, what a burst costs is told by the table only."""
    unknown = [each for each in found if not each.scene.known]
    known = [each for each in found if each.scene.known]
    roomy = [each for each in unknown if each.scene.fit >= 3 * IN_TURN]
    checks = []
    if roomy:
        calls = [count for each in roomy for count in each.spread.values()]
        short = max(burst.asked - burst.served for each in roomy for burst in each.bursts)
        most = max(burst.refused for each in roomy for burst in each.bursts)
        checks += [
            ("40 in turn: calls of a project", f"{min(calls)} to {max(calls)}", "4 to 8"),
            ("110 at once where 120 fit: not served, most", str(short), "0"),
            ("110 at once where 120 fit: refused, most", str(most), "at most 4"),
        ]
    for name, group in (("unknown", unknown), ("known", known)):
        if group:
            least = min(each.overload.served for each in group)
            checks.append((f"{name} limits, overload: served, least", f"{least:.3f}", "at least 0.95"))
    if unknown:
        most = max(each.overload.most_refusals for each in unknown)
        checks.append(("unknown limits, overload: refused by one limit, most", str(most), "at most 1"))
    if known:
        refused = max(each.overload.refused for each in known)
        checks.append(("known limits, overload: refused upstream, most", f"{refused:.4f}", "at most 0.0020"))
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10, help="of overload, after the first one")
    parser.add_argument("--google", default=",".join(ALLOWED), help="what it allows: requests a minute, or tokens")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--enforce", default=",".join(ENFORCEMENTS))
    parser.add_argument("--limits", default="unknown,known")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="other times at which requests come")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/scheduling.md")
    chosen = parser.parse_args()
    texts = (chosen.limits, chosen.google, chosen.enforce, chosen.strategies)
    limits, allowed, enforcements, strategies = (text.split(",") for text in texts)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    found = measure(scenes(limits, allowed, enforcements, strategies, chosen.windows, seeds))
    checks = verdicts(found)
    lines = table(HEAD, rows(found))
    print(lines)
    show(checks)
    if chosen.write:
        made = {"untiered-figures": table(("figure", "measured", "asked for"), checks), "untiered": lines}
        PAGE.write_text(cost.fill(PAGE.read_text(), made))


if __name__ == "__main__":
    main()
