"""Many gateways on one store, in real time: no limit is broken, the store gets few calls and delays no request.

python -m bench.contention [--minutes 10] [--only slow,fast,choice] [--store sqlite] [--write]

slow: 1, 2 and 4 gateways side by side, each group with 8 projects of 15 requests a minute of its own, at 1.5 times
that. fast: 2 gateways with grants, 4 projects of 1,000 a minute, 50 requests/s; before and after it the same on SQLite.
choice: conditional commits or transactions (bench/choice.py).
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from bench import choice, cost
from bench.fleet import Case, Seen, fast, measure, slow
from bench.processes import show, unpin
from bench.virtual import table
from tools.emulator import VARIABLE, available
from tools.emulator_files import EmulatorError

FIRST_WINDOW = 61.5
FAST_SECONDS = 90.0
INSTANCES = (1, 2, 4)
PAGES = (cost.ROOT / "docs/performance.md", cost.ROOT / "docs/state.md")
Row = tuple[str, str, str]


# --- figures -----------------------------------------------------------------------------------------------------


def commit_ms(seen: Seen, part: str = "median") -> float | None:
    """Of the gateway with the slowest, over its last thousand; None if they do not tell."""
    return max((after["commit_ms"][part] for _, after in seen.store if after.get("commit_ms")), default=None)


def at(ordered: Sequence[float], part: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * part // 100)]


def slow_rows(case: Case, seen: Seen) -> list[Row]:
    alone, limit = case.instances == 1, case.limits["rpm"]
    calls = seen.counted()
    served = sum(status == 200 for _, status in calls)
    refused = sum(status == 429 for _, status in calls)
    nominal = case.per_second * (seen.ended - seen.began)
    name = f"{case.name}: "
    rows = [
        (name + "most calls of a project in any 60 s", str(seen.peak()), f"at most {limit}"),
        (name + "served of the nominal capacity", f"{served / nominal:.3f}", "at least 0.95"),
        (name + "refused upstream", f"{refused / max(1, len(calls)):.4f}", "at most 0.002"),
        (name + "commits a request", f"{seen.per_call('commits'):.3f}", f"at most {1.1 if alone else 2.2}"),
        (name + "reads a request", f"{seen.per_call('reads'):.3f}", f"at most {0.05 if alone else 1.3}"),
        (name + "conflicts a request", f"{seen.per_call('conflicts'):.3f}", ""),
    ]
    return (
        rows
        + [(name + what, value, asked) for what, value, asked in _store_rows(case, seen)]
        + [
            (
                name + "answers neither 200 nor 429",
                str(sum(s not in (200, 429) for s, _, _ in seen.answers)),
                "at most 0",
            ),
        ]
    )


def _store_rows(case: Case, seen: Seen) -> list[Row]:
    commit, waits = commit_ms(seen), seen.waits()
    rows = [("CPU of the gateways a request, ms", f"{1000 * seen.cpu / max(1, len(seen.answers)):.2f}", "")]
    if commit:
        rows.append(("a commit, median ms", f"{commit:.2f}", ""))
        rows.append(("a commit, 99 % ms", f"{commit_ms(seen, 'p99'):.2f}", ""))
    if waits:
        rows += [(f"wait for the store, {n} ms", f"{at(waits, p):.2f}", "") for n, p in (("median", 50), ("99 %", 99))]
    if commit and waits:
        rows.append(("the same in median commits", f"{at(waits, 99) / commit:.2f}", "at most 5"))
    return rows


def fast_rows(case: Case, seen: Seen, plain: Sequence[Seen]) -> list[Row]:
    calls, limit = seen.counted(), case.limits["rpm"]
    refused = sum(status == 429 for found in seen.calls.values() for _, status in found)
    ours, theirs = _median(seen), statistics.median(_median(other) for other in plain)
    name = "fast-2: "
    rows = [
        (name + "requests/s", f"{len(calls) / (seen.ended - seen.began):.1f}", ""),
        (name + "most calls of a project in any 60 s", str(seen.peak()), f"at most {limit}"),
        (name + "refused upstream", str(refused), "at most 0"),
        (name + "commits a request", f"{seen.per_call('commits'):.3f}", "at most 0.1"),
        (name + "reads a request", f"{seen.per_call('reads'):.3f}", ""),
        (name + "conflicts a request", f"{seen.per_call('conflicts'):.3f}", ""),
        (name + "median of an answer, ms", f"{ours:.2f}", ""),
        (name + "median on SQLite, ms", f"{theirs:.2f}", ""),
        (name + "added by the store, median ms", f"{ours - theirs:.2f}", "at most 2"),
        (name + "99 % of answers, ms", f"{_percentile(seen, 99):.2f}", ""),
        (name + "99 % on SQLite, ms", f"{statistics.median(_percentile(p, 99) for p in plain):.2f}", ""),
        (name + "commits a request on SQLite", f"{plain[0].per_call('commits'):.3f}", ""),
    ]
    rows += [(name + what, value, "") for what, value, _ in _store_rows(case, seen)]
    failed = sum(status != 200 for status, _, _ in seen.answers)
    return [*rows, (name + "answers that were not 200", str(failed), "at most 0")]


def _median(seen: Seen) -> float:
    return statistics.median(seconds for _, seconds, _ in seen.answers) * 1000


def _percentile(seen: Seen, part: int) -> float:
    return at(sorted(seconds for _, seconds, _ in seen.answers), part) * 1000


def missed(rows: Sequence[Row]) -> list[Row]:
    """Those that are not what is asked for."""
    return [row for row in rows if not _good(row)]


def _good(row: Row) -> bool:
    _, value, asked = row
    words = asked.split()
    if not words:
        return True
    found, bound = float(value), float(words[-1])
    return found >= bound if "least" in words else found <= bound


# --- the bench ---------------------------------------------------------------------------------------------------


def slow_cases(minutes: float, kind: str, folder: Path, environment: Mapping[str, str]) -> list[tuple[Case, Seen]]:
    cases = [slow(count, kind) for count in INSTANCES]
    return list(zip(cases, measure(cases, minutes * 60, folder, environment, FIRST_WINDOW), strict=True))


def fast_case(seconds: float, kind: str, folder: Path, environment: Mapping[str, str]) -> tuple[Case, Seen, list[Seen]]:
    """SQLite before and after, so that a machine that grows slower does not count as the store's doing."""
    case, plain = fast(kind), fast("sqlite")
    (folder / "before").mkdir()
    (folder / "after").mkdir()
    before = measure([plain], seconds / 3, folder / "before", {}, 10.0)
    seen = measure([case], seconds, folder, environment, FIRST_WINDOW)
    after = measure([plain], seconds / 3, folder / "after", {}, 10.0)
    return case, seen[0], before + after


def _measured(seen: Seen, what: str) -> cost.Measured:
    where = f"{date.today()}, {platform.system()}, Firestore emulator, {len(seen.counted()):,} requests"
    return cost.Measured(what, seen.per_call("commits"), seen.per_call("reads"), where)


def bench(
    minutes: float, fast_seconds: float, only: str = "slow,fast,choice", kind: str = "firestore", write: bool = False
) -> list[Row]:
    """Prints tables; gives what is not as it is asked for."""
    unpin()
    try:
        with available() as host, tempfile.TemporaryDirectory() as name:
            folder, environment, wanted = Path(name), {VARIABLE: host}, only.split(",")
            found, rows = _gateways(minutes, fast_seconds, wanted, kind, folder, environment)
            bad, made = missed(rows), {"contention": pivot(rows)} if rows else {}
            if "choice" in wanted:
                print("Each request by a transaction, or conditional commits in groups (bench/choice.py):", flush=True)
                lines, wrong = choice.measure(8.0, environment, f"sqlite:///{folder}/c.db" if kind == "sqlite" else "")
                made["choice"] = table(choice.HEAD, lines)
                print(made["choice"])
                bad += [("choice", text, "") for text in wrong]
    except EmulatorError as error:
        raise SystemExit(f"the benchmark needs the Firestore emulator: {error}") from None
    if write:
        _write(found, made)
    for row in bad:
        print("NOT REACHED: " + ", ".join(part for part in row if part))
    return bad


def _gateways(
    minutes: float, fast_seconds: float, wanted: Sequence[str], kind: str, folder: Path, environment: Mapping[str, str]
) -> tuple[dict[str, Seen], list[Row]]:
    found, rows = {}, []
    if "slow" in wanted:
        print(f"Slow projects, overload, {minutes:g} minutes after the first window:", flush=True)
        for case, seen in slow_cases(minutes, kind, folder, environment):
            show(lines := slow_rows(case, seen))
            found[case.name] = seen
            rows += lines
    if "fast" in wanted:
        print(f"Fast projects, {fast_seconds:g} s after the first window:", flush=True)
        case, seen, plain = fast_case(fast_seconds, kind, folder, environment)
        show(lines := fast_rows(case, seen, plain))
        found["fast-2"] = seen
        rows += lines
    return found, rows


def pivot(rows: Sequence[Row], mark: str = ": ") -> str:
    """A line for each figure, a column for each case; after a value what is asked of it. `mark`: between the two."""
    cases: list[str] = []
    values: dict[str, dict[str, str]] = {}
    for name, value, asked in rows:
        case, _, what = name.partition(mark)
        cases += [] if case in cases else [case]
        shown = asked.replace("at least", "≥").replace("at most", "≤")
        values.setdefault(what, {})[case] = f"{value} ({shown})" if asked else value
    return table(("figure", *cases), [(what, *(found.get(c, "") for c in cases)) for what, found in values.items()])


def _write(found: Mapping[str, Seen], made: Mapping[str, str]) -> None:
    """Figures go where they are read: bench/measured.toml, and the pages that have a place for them."""
    cases = cost.measured()
    cost.write_measured({n: _measured(seen, cases[n].what) for n, seen in found.items() if n in cases})
    for page in PAGES:
        text = page.read_text()
        page.write_text(cost.fill(text, {n: part for n, part in made.items() if f"<!-- {n} -->" in text}))
    cost.main([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the slow cases, after the first window")
    parser.add_argument("--fast-seconds", type=float, default=FAST_SECONDS)
    parser.add_argument("--only", default="slow,fast,choice")
    parser.add_argument("--store", choices=("firestore", "sqlite"), default="firestore", help="sqlite: to try it")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/measured.toml and docs/")
    chosen = parser.parse_args()
    sys.exit(bool(bench(chosen.minutes, chosen.fast_seconds, chosen.only, chosen.store, chosen.write)))


if __name__ == "__main__":
    main()
