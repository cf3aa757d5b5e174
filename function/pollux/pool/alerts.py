"""Logs for an operator what rests, is set aside, or is nearly spent for the day. Alerts find the lines by `event`."""

import logging

from pollux.gemini.verdict.causes import words
from pollux.pool.health import Kind
from pollux.pool.reservation import Reservation

log = logging.getLogger("pollux.pool")

NEARLY = 0.9
"""The used part of a day's requests or tokens from which on a warning is logged."""
DAY_LIMITS = (("rpd", "requests"), ("tpd", "tokens"))
MOST = 4000
"""Clients may invent names of models."""


class Alerts:
    """Logs each event once per instance, because many parallel requests get the same refusal."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, ...], float | str] = {}

    def resting(self, project: str, bucket: str, cause: str, now: float, seconds: float) -> None:
        if self._is_news(("rests", project, bucket), now, seconds):
            log.warning(
                "the quota of %s for %s rests for %.0f s: %s",
                project,
                bucket,
                seconds,
                words(cause),
                extra={"event": "cooldown", "project": project, "quota": bucket, "cause": cause},
            )

    def aside(self, kind: Kind, subject: str, cause: str, now: float, seconds: float) -> None:
        if self._is_news(("aside", kind, subject), now, seconds):
            log.warning(
                "the %s %s is set aside for %.0f s: %s",
                kind.removesuffix("s"),
                subject,
                seconds,
                words(cause),
                extra={"event": "set-aside", "kind": kind.removesuffix("s"), "subject": subject, "cause": cause},
            )

    def day(self, reservation: Reservation) -> None:
        """Log a warning if most of the day is used, by the last seen state."""
        owned, day, limits = reservation.quota, reservation.slot.day, reservation.limits
        for (limit, what), used in zip(DAY_LIMITS, owned.document.value.days.get(day, ()), strict=False):
            most = limits.get(limit)
            said = ("day", owned.project, owned.bucket, limit)
            if most and used >= NEARLY * most and self._said.get(said) != day:
                self._remember(said, day)
                log.warning(
                    "%d of %d %s of the day are used in %s for %s",
                    used,
                    most,
                    what,
                    owned.project,
                    owned.bucket,
                    extra={"event": "day-nearly-spent", "project": owned.project, "quota": owned.bucket},
                )

    def _is_news(self, said: tuple[str, ...], now: float, seconds: float) -> bool:
        until = self._said.get(said, now)
        if isinstance(until, float) and until > now:
            return False
        self._remember(said, now + seconds)
        return True

    def _remember(self, said: tuple[str, ...], value: float | str) -> None:
        if len(self._said) >= MOST:
            self._said.clear()
        self._said[said] = value
