"""The store's clock, as well as it can be known here: bounds from the times that its answers carry. Pure."""

import math

DRIFT = 0.0002
"""How far two clocks may drift apart per second. Crystals stay within 0.0001; the rest is a clock being slewed."""
RESOLUTION = 0.001
"""A store may round its times by so much."""


class StoreClock:
    """Corrects a local clock. One exchange (sent, received, the store's time in between) says that the store's clock
    is ahead of the local one by at least `time - received` and at most `time - sent`. All that is known is where such
    intervals meet, widened as time goes by; the middle of it is taken, and half its width bounds the error.

    An exchange that took long, in a frozen process, is a wide interval: it adds nothing and spoils nothing. One that
    contradicts what is known means that a clock was set: the past is forgotten. The time steps back by less than the
    former `error` unless a clock was set.
    """

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf
        self._at = 0.0
        self.offset = 0.0
        """What is added to the local clock."""

    @property
    def error(self) -> float:
        """The offset is right within so many seconds, as of the last exchange; it grows by DRIFT a second since."""
        return (self._high - self._low) / 2

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
        if low <= known_high and known_low <= high:
            low, high = max(low, known_low), min(high, known_high)
        self._low, self._high, self._at = low, high, received
        self.offset = (low + high) / 2
