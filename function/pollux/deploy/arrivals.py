"""PURE. Whether a stream came chunk by chunk, told by when its events arrived."""

import itertools
from collections.abc import Sequence

from pollux.deploy import Verdict

TOGETHER = 0.02
"""What comes within so many seconds of the last came together with it. A model takes ten times as long for an event."""
QUICK = 0.5
"""An answer that is complete so soon may come at once without anybody having held it back."""
FEWEST = 3

HOLDS = (
    "something on the way collects the answer: turn its response buffering (or compression) off. nginx: "
    "proxy_buffering off; a CDN or load balancer: no caching of this path"
)
NOT_TOLD = "a model that takes longer would show it: --model MODEL"


def event_times(reads: Sequence[tuple[float, bytes]]) -> list[float]:
    """When the end of each event arrived."""
    times: list[float] = []
    text = b""
    for at, data in reads:
        text += data.replace(b"\r", b"")
        *complete, text = text.split(b"\n\n")
        times += [at] * sum(1 for event in complete if event.strip())
    return times


def judge(times: Sequence[float], total: float, *, length_known: bool) -> tuple[Verdict, str, str]:
    """Verdict, what was seen, what to do. `times`: of the events; `total`: seconds from the request to the end.

    How long the first event took says nothing: a model may think. Only the pauses between events do.
    """
    count = len(times)
    if length_known:  # who writes the length first has the whole answer first
        return "FAIL", "the whole answer came with its length, which nobody knows before it is complete", HOLDS
    if count < FEWEST:
        return "skipped", f"{count} events are too few to tell", NOT_TOLD
    bursts = 1 + sum(later - earlier >= TOGETHER for earlier, later in itertools.pairwise(times))
    spread = times[-1] - times[0]
    if bursts == 1 and total < QUICK:
        return "skipped", f"the whole answer took {total * 1000:.0f} ms: too quick to tell", NOT_TOLD
    if bursts == 1:
        return "FAIL", f"{count} events came all at once, after {total:.1f} s", HOLDS
    if 2 * bursts <= count:
        return "warn", f"{count} events came in {bursts} bursts over {spread:.1f} s", HOLDS
    return "ok", f"{count} events came at {bursts} moments over {spread:.1f} s", ""
