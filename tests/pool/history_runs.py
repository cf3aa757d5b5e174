"""Many histories, over as many processes as there are cores, and what went wrong in which."""

import logging
import math
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from bench.virtual import HangError
from pollux.pool.quota import Slot
from pollux.pool.shared_document import SharedDocument
from pollux.pool.windows import GRANT_SLOTS, WINDOW
from tests.pool.histories import play
from tests.pool.history_checks import fullest, wrong
from tests.pool.history_plans import draw
from tests.pools import changed

BLOCK = 500
SPINS = 3.0
"""No history takes a twentieth of that."""


@dataclass(slots=True)
class Tally:
    histories: int = 0
    sends: int = 0
    commits: int = 0
    full: int = 0
    """Histories in which some minute held all that the limit allows: those in which one more would show."""
    kinds: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        self.histories += other.histories
        self.sends += other.sends
        self.commits += other.commits
        self.full += other.full
        self.kinds += other.kinds
        self.troubles += other.troubles
        self.answers += other.answers
        self.failures |= other.failures

    @property
    def exceeded(self) -> dict[int, list[str]]:
        """Those in which too much was sent, not those that hung or lost count."""
        return {seed: what for seed, what in self.failures.items() if any(": rpm " in w or ": tpm " in w for w in what)}

    def complaint(self, most: int = 20) -> str:
        """Each line ends with the command that plays it again."""
        lines = [
            f"{'; '.join(what)}: python -m bench.histories --seed {seed} --trace"
            for seed, what in sorted(self.failures.items())[:most]
        ]
        return "\n".join([f"{len(self.failures)} of {self.histories} histories went wrong:", *lines])


def one(seed: int, tally: Tally, *, corrected: bool = True) -> None:
    plan = draw(seed)
    plan.corrected = corrected
    tally.histories += 1
    tally.kinds[plan.kind] += 1
    tally.troubles.update(plan.troubles)
    try:
        with watched():
            record = play(plan)
    except Exception as error:  # one that hangs is as wrong as one that exceeds a limit
        tally.failures[seed] = [f"{type(error).__name__}: {error}"]
        return
    tally.sends += len(record.sends)
    tally.commits += record.commits
    tally.full += fullest(plan, record) == 1
    tally.answers.update(record.answers)
    if found := wrong(plan, record):
        tally.failures[seed] = found


@contextmanager
def watched() -> Iterator[None]:
    """Raise HangError if a request runs in a busy loop, so that nothing else can run."""

    def spins(*_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05, 0.05)  # other busy loops end sooner
        raise HangError(f"a request ran in a busy loop for {SPINS:g} s of CPU time, and nothing else could run")

    if not hasattr(signal, "setitimer"):  # not on every system
        yield
        return
    before = signal.signal(signal.SIGVTALRM, spins)
    signal.setitimer(signal.ITIMER_VIRTUAL, SPINS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def block(first: int, count: int, mutation: str = "", *, until_exceeded: bool = False) -> Tally:
    tally, before = Tally(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # stores that fail are what this is about
    try:
        with mutated(mutation):
            for seed in range(first, first + count):
                one(seed, tally, corrected=mutation != "clocks")
                if until_exceeded and tally.exceeded:
                    break
    finally:
        logging.disable(before)
    return tally


def many(first: int, count: int, mutation: str = "", workers: int | None = None) -> Tally:
    tally = Tally()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        ends = first + count
        blocks = [pool.submit(block, begin, min(BLOCK, ends - begin), mutation) for begin in range(first, ends, BLOCK)]
        for done in as_completed(blocks):
            tally.add(done.result())
    return tally


MUTATIONS = {
    "window": "a window of 59 s",
    "late": "what was committed too late is sent all the same",
    "grants": "grants are spent for 3 s in a window that is no longer",
    "clocks": "the store's time corrects no clock",
    "conflicts": "whoever lost a race goes on as if it had won",
}
"""What the histories must notice."""


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The real code with one of its rules broken."""
    with ExitStack() as stack:
        if name == "window" or name.startswith("window="):
            slots = int(name.partition("=")[2] or 118)
            stack.enter_context(changed(WINDOW=slots, LONGEST=slots + GRANT_SLOTS))
        elif name == "late":
            stack.enter_context(patch.object(Slot, "latest", property(lambda slot: math.inf)))
        elif name == "grants":
            stack.enter_context(changed(LONGEST=WINDOW))
        elif name == "conflicts":
            stack.enter_context(patch.object(SharedDocument, "_was_applied", _taken_for_granted))
        yield


async def _taken_for_granted(document: "SharedDocument[object]") -> bool:
    document.load(await document._read())
    return True
