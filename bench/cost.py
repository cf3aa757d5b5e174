"""What a million requests cost at Google's list prices: pure arithmetic over a dated table. Fills docs/cost.md
and the table in docs/deploy.md.

python -m bench.cost [--check]
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.virtual import table

ROOT = Path(__file__).parent.parent
MEASURED = Path(__file__).with_name("measured.toml")
PAGE = ROOT / "docs" / "cost.md"
DEPLOY = ROOT / "docs" / "deploy.md"

REGION = "us-central1 (Iowa), tier 1"
LOOKED_UP = "2026-11-21"
MILLION = 1_000_000
GIB = 2**30
DAYS = 30


@dataclass(frozen=True, slots=True)
class Price:
    """`usd` for `per` units; `free` units a month, where Google gives them away by the day thirty times that."""

    name: str
    unit: str
    usd: float
    per: int
    free: float
    of: str
    """The newest dated source that was found to say so, or "undated"."""

    @property
    def each(self) -> float:
        return self.usd / self.per

    def cost(self, units: float, *, free: bool = False) -> float:
        return max(0.0, units - (self.free if free else 0.0)) * self.each


CPU = Price("Cloud Run, CPU while a request is open", "vCPU-second", 0.000024, 1, 180_000, "2025-07")
MEMORY = Price("Cloud Run, memory while a request is open", "GiB-second", 0.0000025, 1, 360_000, "2025-07")
REQUESTS = Price("Cloud Run, requests", "request", 0.40, MILLION, 2 * MILLION, "2025-07")
WRITES = Price("Firestore, writes", "document", 0.09, 100_000, 20_000 * DAYS, "2025")
READS = Price("Firestore, reads", "document", 0.03, 100_000, 50_000 * DAYS, "2025")
TTL = Price("Firestore, deletes by TTL", "document", 0.01, 100_000, 0, "2025")
STORED = Price("Firestore, stored", "GiB-month", 0.15, 1, 1, "2025")
ACCESSES = Price("Secret Manager, access operations", "operation", 0.03, 10_000, 10_000, "2026-04")
VERSIONS = Price("Secret Manager, active versions", "version-month", 0.06, 1, 6, "2026-04")
EGRESS = Price("Network, to clients on the internet", "GiB", 0.12, 1, 1, "2024-09")
LOGS = Price("Cloud Logging", "GiB", 0.50, 1, 50, "2024-10")
IMAGE = Price("Artifact Registry, the built image", "GiB-month", 0.10, 1, 0.5, "undated")
PRICES = (CPU, MEMORY, REQUESTS, WRITES, READS, TTL, STORED, ACCESSES, VERSIONS, EGRESS, LOGS, IMAGE)


@dataclass(frozen=True, slots=True)
class Shape:
    """How it is deployed and called; none of it is measured. One line each in docs/cost.md."""

    vcpu: float = 1.0
    memory_gib: float = 0.5
    answer_bytes: int = 8 * 1024
    log_bytes: int = 2 * 1024
    """Our line of a request and Cloud Run's own."""
    secrets: int = 10
    """Eight keys, a client token, the admin token; one active version each."""
    requests_a_start: int = 1_000
    """How many requests an instance lives for."""
    documents: int = 50
    document_bytes: int = 4 * 1024
    image_gib: float = 0.3


SHAPE = Shape()


@dataclass(frozen=True, slots=True)
class Measured:
    """What the store is asked for per answered request, conflicted commits included."""

    what: str
    commits: float
    reads: float
    source: str


def measured(path: Path = MEASURED) -> dict[str, Measured]:
    found = tomllib.loads(path.read_text())
    return {
        name: Measured(entry["what"], entry["commits"], entry["reads"], entry["from"]) for name, entry in found.items()
    }


def write_measured(cases: Mapping[str, Measured], path: Path = MEASURED) -> None:
    """Takes over the cases given, keeps the others and the head of the file."""
    head = path.read_text().partition("\n[")[0].rstrip()
    parts = [
        f'[{name}]\nwhat = "{case.what}"\ncommits = {case.commits:.3f}\nreads = {case.reads:.3f}\n'
        f'from = "{case.source}"'
        for name, case in (measured(path) | dict(cases)).items()
    ]
    path.write_text("\n\n".join([head, *parts]) + "\n")


def instance_seconds(requests: float, seconds: float, concurrency: float) -> float:
    """An instance is billed while at least one request is open; `concurrency` of them share that time."""
    return requests * seconds / concurrency


def items(
    requests: float, seconds: float, concurrency: float, case: Measured, *, free: bool = False, shape: Shape = SHAPE
) -> dict[str, float]:
    """US dollars by what they are paid for. `free`: after a month's free tiers, of which nothing else uses any."""
    time = instance_seconds(requests, seconds, concurrency)
    units = {
        CPU: time * shape.vcpu,
        MEMORY: time * shape.memory_gib,
        REQUESTS: requests,
        WRITES: requests * case.commits,
        READS: requests * case.reads,
        ACCESSES: requests / shape.requests_a_start * shape.secrets,
        EGRESS: requests * shape.answer_bytes / GIB,
        LOGS: requests * shape.log_bytes / GIB,
    }
    return {price.name: price.cost(amount, free=free) for price, amount in units.items()}


def standing(*, free: bool = False, shape: Shape = SHAPE) -> dict[str, float]:
    """US dollars a month without calls: what is stored, and one deletion by TTL of every document."""
    units = {
        VERSIONS: shape.secrets,
        STORED: shape.documents * shape.document_bytes / GIB,
        TTL: shape.documents,
        IMAGE: shape.image_gib,
    }
    return {price.name: price.cost(amount, free=free) for price, amount in units.items()}


def month(requests: float, seconds: float, concurrency: float, case: Measured) -> float:
    """A month's bill after the free tiers, with what stands."""
    return sum(items(requests, seconds, concurrency, case, free=True).values()) + sum(standing(free=True).values())


DURATIONS = (1, 10, 60)
CONCURRENCIES = (1, 10, 80)
MONTHS = (10_000, 100_000, MILLION, 10 * MILLION)
DEPLOYED = (0, 10_000, MILLION)


def _usd(amount: float) -> str:
    if 0 < amount < 0.005:
        return "< 0.01"
    return f"{amount:,.2f}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def prices_table() -> str:
    rows = [
        (p.name, f"{p.usd:.7f}".rstrip("0"), f"{p.per:,} {p.unit}{_s(p.per)}", f"{p.free:,.10g}", p.of) for p in PRICES
    ]
    return table(("what", "US dollars", "for", "free a month", "newest date found"), rows)


def time_table() -> str:
    """Cloud Run's time alone, for a million requests."""
    rows = []
    for seconds in DURATIONS:
        found = [instance_seconds(MILLION, seconds, c) for c in CONCURRENCIES]
        costs = [CPU.cost(t * SHAPE.vcpu) + MEMORY.cost(t * SHAPE.memory_gib) for t in found]
        rows.append((f"open for {seconds} s", *map(_usd, costs)))
    return table(("a million requests, each", *(f"{c} at once" for c in CONCURRENCIES)), rows)


def rest_table(cases: Mapping[str, Measured]) -> str:
    """What does not depend on how long a request takes."""
    found = {name: items(MILLION, 0, 1, case) for name, case in cases.items()}
    names = [p.name for p in PRICES if p not in (CPU, MEMORY) and p.name in next(iter(found.values()))]
    rows = [(n, *(_usd(costs[n]) for costs in found.values())) for n in names]
    rows.append(("**together**", *(f"**{_usd(sum(costs.values()))}**" for costs in found.values())))
    return table(("for a million requests", *cases), rows)


def measured_table(cases: Mapping[str, Measured]) -> str:
    rows = [(f"`{name}`", c.what, f"{c.commits:.3f}", f"{c.reads:.3f}", c.source) for name, c in cases.items()]
    return table(("case", "what", "commits a request", "reads a request", "from"), rows)


def total_table(cases: Mapping[str, Measured]) -> str:
    rows = []
    for name, case in cases.items():
        for seconds in DURATIONS:
            found = [items(MILLION, seconds, c, case) for c in CONCURRENCIES]
            rows.append(
                (f"`{name}`, {seconds} s", *(f"{_usd(sum(costs.values()))} ({_share(costs)})" for costs in found))
            )
    return table(("a million requests", *(f"{c} at once" for c in CONCURRENCIES)), rows)


def _share(costs: Mapping[str, float]) -> str:
    return f"{(costs[CPU.name] + costs[MEMORY.name]) / sum(costs.values()):.0%}"


def standing_table() -> str:
    full, left = standing(), standing(free=True)
    rows = [("Cloud Run, Firestore operations, network, logs", "0", "0")]
    rows += [(name, _usd(full[name]), _usd(left[name])) for name in full]
    rows.append(("**together**", f"**{_usd(sum(full.values()))}**", f"**{_usd(sum(left.values()))}**"))
    return table(("a month in which nobody calls", "at list price", "after the free tiers"), rows)


def months_table(case: Measured, months: Sequence[int] = MONTHS) -> str:
    rows = [(f"{requests:,}", *(_usd(month(requests, 10, c, case)) for c in CONCURRENCIES)) for requests in months]
    return table(("requests a month, each open for 10 s", *(f"{c} at once" for c in CONCURRENCIES)), rows)


def parts(cases: Mapping[str, Measured]) -> dict[str, str]:
    return {
        "prices": f"{REGION}; looked up on {LOOKED_UP}.\n\n{prices_table()}",
        "time": time_table(),
        "measured": measured_table(cases),
        "rest": rest_table(cases),
        "total": total_table(cases),
        "standing": standing_table(),
        "months": months_table(cases["slow-4"]),
    }


def deploy_parts(cases: Mapping[str, Measured]) -> dict[str, str]:
    return {"deploy": months_table(cases["slow-4"], DEPLOYED)}


def fill(text: str, made: Mapping[str, str]) -> str:
    """The page with each `<!-- NAME -->` … `<!-- /NAME -->` holding what was made for it."""
    for name, content in made.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = marks.subn(lambda found, content=content: f"{found[1]}\n{content}\n\n{found[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page has {count} places for {name!r}, expected one")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    chosen = parser.parse_args(arguments)
    for page, made in ((PAGE, parts(measured())), (DEPLOY, deploy_parts(measured()))):
        before = page.read_text()
        after = fill(before, made)
        if chosen.check and before != after:
            sys.exit(f"docs/{page.name} is not what bench/cost.py makes: python -m bench.cost")
        if not chosen.check:
            page.write_text(after)
            print(f"docs/{page.name}: {'unchanged' if before == after else 'rewritten'}")


if __name__ == "__main__":
    main()
