"""The store's clock, as well as it can be known here: bounds from the times that its answers carry. Pure."""

import math

DRIFT = 0.0005
"""How far two clocks may drift apart per second. Crystals stay within 0.0001; the rest is a clock that is corrected."""
RESOLUTION = 0.001
"""A store may round its times by so much."""
LONG = 2.5
"""An exchange of so many seconds tells less than that clocks are usually right."""


class StoreClock:
    """Corrects a local clock. One exchange (sent, received, the store's time in between) says that the store's clock
    is ahead of the local one by at least `time - received` and at most `time - sent`. All that is known is where such
    intervals meet, widened as time goes by.

    A narrow one moves the correction to the middle of what is known; a wide one, as of a process that was frozen, only
    as far as it has to. One that contradicts what is known means that a clock was set: the past is forgotten. Unless
    that happened, the time steps back by no more than `error`.
    """

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf
        self._at = 0.0
        self.offset = 0.0
        """What is added to the local clock."""

    @property
    def error(self) -> float:
        """The time is right within so many seconds, as of the last exchange; add DRIFT for each second since."""
        return max(self._high - self.offset, self.offset - self._low)

    def now(self, local: float) -> float:
        return local + self.offset

    def learn(self, sent: float, received: float, time: float) -> None:
        """One exchange: when it was sent and answered by the local clock, and the store's time that it carries."""
        if received < sent:  # the local clock was set back meanwhile: what is known is void, and this tells little
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
