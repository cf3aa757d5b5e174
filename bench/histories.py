"""Random histories of several instances over one store: `python -m bench.histories --seed N --count M`.

Plays as many as asked, from a seed on, and says which of them went wrong. With --trace one seed is told step by step.
"""

import argparse
import sys
import time
from dataclasses import fields

from tests.pool.histories import play
from tests.pool.history_checks import wrong
from tests.pool.history_plans import draw
from tests.pool.history_runs import MUTATIONS, Tally, many, mutated, watched


def trace(seed: int, mutation: str) -> int:
    plan = draw(seed)
    plan.corrected = mutation != "clocks"
    for each in fields(plan):
        if each.name != "requests":
            print(f"{each.name:>10}: {getattr(plan, each.name)}")
    for request in plan.requests:
        print(f"{request.at:10.3f}  asked: {request}")
    with mutated(mutation), watched():
        record = play(plan, lambda when, text: print(f"{when:10.3f}  {text}"))
    print(f"answers: {record.answers}; in the store: {record.stored}")
    found = wrong(plan, record)
    print("\n".join(f"WRONG: {what}" for what in found) or "all is as it must be")
    return len(found)


def show(tally: Tally, seconds: float) -> int:
    each = 1000 * seconds / max(1, tally.histories)
    print(
        f"{tally.histories:,} histories in {seconds:.0f} s, {each:.1f} ms each: {tally.sends:,} calls sent, "
        f"{tally.commits:,} commits; {tally.full:,} histories used a limit to the last request"
    )
    for name in ("kinds", "troubles", "answers"):
        print(f"{name}: {', '.join(f'{what} {count:,}' for what, count in getattr(tally, name).most_common())}")
    print(tally.complaint() if tally.failures else "none went wrong")
    return len(tally.failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=1, help="how many")
    parser.add_argument("--workers", type=int, default=None, help="processes; one a core, if not said")
    parser.add_argument("--trace", action="store_true", help="tell this one step by step")
    parser.add_argument(
        "--mutation",
        default="",
        help="with a rule broken, to see that it is noticed: window=SLOTS, "
        + ", ".join(f"{name} ({what})" for name, what in MUTATIONS.items()),
    )
    chosen = parser.parse_args()
    if chosen.trace:
        return 1 if trace(chosen.seed, chosen.mutation) else 0
    began = time.monotonic()
    tally = many(chosen.seed, chosen.count, chosen.mutation, chosen.workers)
    return 1 if show(tally, time.monotonic() - began) else 0


if __name__ == "__main__":
    sys.exit(main())
