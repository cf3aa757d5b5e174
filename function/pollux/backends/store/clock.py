"""Estimates the store's clock, with bounds, from the times in its answers. Pure."""

import math

DRIFT = 0.0005
"""Seconds that two clocks may drift apart per second. Crystals stay within 0.0001; the rest is for corrected clocks."""
RESOLUTION = 0.001
"""Seconds by which a store may round its times."""
LONG = 2.5
"""Seconds. An exchange that takes longer tells less than the assumption that clocks are about right."""


class StoreClock:
    """Corrects a local clock. One exchange (sent, received, the store's time in between) says that the store's clock
    is ahead of the local one by at least `time - received` and at most `time - sent`. The known bounds are the
    intersection of these intervals, widened as time passes.

    A narrow interval moves the correction to the middle of the bounds; a wide one, as of a process that was frozen,
    only as far as necessary. An interval outside the bounds means that a clock was set: earlier exchanges are
    forgotten. Unless that happens, the time steps back by no more than `error`.
    """

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf
        self._at = 0.0
        self.offset = 0.0
        """Seconds to add to the local clock."""

    @property
    def error(self) -> float:
        """Seconds by which the time may be off as of the last exchange; add DRIFT for each second since."""
        return max(self._high - self.offset, self.offset - self._low)

    def now(self, local: float) -> float:
        return local + self.offset

    def learn(self, sent: float, received: float, time: float) -> None:
        """One exchange: when it was sent and received by the local clock, and the store's time in its answer."""
        if received < sent:  # the local clock was set back meanwhile: forget the bounds
            self._low, self._high, self.offset = -math.inf, math.inf, time - received
            return
        low, high = time - received - RESOLUTION, time - sent + RESOLUTION
        drift = DRIFT * abs(received - self._at)
        known_low, known_high = self._low - drift, self._high + drift
        narrow = high - low < LONG
        if low <= known_high and known_low <= high:
            narrow = narrow and high - low < known_high - known_low
            low, high = max(low, known_low), min(high, known_high)
        self._low, self._high, self._at = low, high, received
        self.offset = (low + high) / 2 if narrow else min(max(self.offset, low), high)
