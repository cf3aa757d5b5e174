"""Applies verdicts to the pool: lets quotas rest, stores learned limits, sets keys and projects aside."""

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pollux.backends.store.contract import StoreUnavailableError
from pollux.gemini.tools import GROUNDING, TOOLS, URLS
from pollux.gemini.verdict.quota_error import BESIDE
from pollux.gemini.verdict.rules import Verdict
from pollux.pool import health, quota
from pollux.pool.alerts import Alerts
from pollux.pool.pool import Pool
from pollux.pool.quota import State
from pollux.pool.reservation import Reservation
from pollux.pool.windows import MINUTE_LIMITS

PAUSE_EVIDENCE = 5.0
"""Seconds within which all projects must refuse for the whole pool to pause."""
PAUSE = 10.0
PAUSE_MOST = 60.0
"""The pool must serve within two minutes after Google is well again, whatever else rests."""


class Feedback:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._denied: dict[str, float] = {}
        """Project -> when Google last refused it although our counters had room."""
        self._pauses = 0
        """How many pauses in a row, with nothing served in between."""
        self._alerts = Alerts()

    async def served(self, reservation: Reservation) -> None:
        """Record that a request was served. It commits only if that ends a probe or a streak of refusals."""
        health_, slot = self._pool.projects.health, reservation.slot
        reservation.quota.served += 1
        self._pauses = 0
        self._denied.clear()
        if "rpd" in reservation.limits or "tpd" in reservation.limits:
            self._alerts.day(reservation)
        self._prove(reservation)
        if slot.probe or reservation.quota.document.value.cooldown is not None:
            await reservation.quota.document.note(partial(quota.succeed, slot=slot))
        key, project = reservation.key.id, reservation.quota.project
        self.accepted(key)
        aside = health_.value
        if not (aside.keys or aside.projects or aside.models or aside.tools):
            return
        well: list[tuple[health.Kind, str]] = [("keys", key), ("projects", project)]
        well.append(("models", f"{project}/{reservation.model}"))
        well += [("tools", f"{project}/{tool}") for tool in reservation.tools]
        if any(name in getattr(aside, kind) for kind, name in well):
            await health_.note(partial(_healthy, well=well, since=slot.start))

    def accepted(self, key_id: str) -> None:
        """Google accepted the key: write that with the next commit, once for each key."""
        document = self._pool.projects.health
        if key_id not in document.value.checked and not document.is_full:
            document.add_to_next_commit(lambda value, _: health.accepted(value, key_id))

    def _prove(self, reservation: Reservation) -> None:
        """Where no limit is known, write with the next commit how much was served."""
        document, slot = reservation.quota.document, reservation.slot
        if ("rpm" in reservation.limits and "tpm" in reservation.limits) or document.is_full:
            return
        if quota.prove(document.value, slot) is not document.value:
            document.add_to_next_commit(lambda state, _: quota.prove(state, slot))

    async def failed(self, reservation: Reservation, verdict: Verdict) -> Verdict:
        """Set aside the key, project, model, tool or quota that the verdict blames, for as long as it says. Returns the
        verdict, which this may change for a request with tools.
        """
        if verdict.vague and reservation.tools:
            # Google refuses search without naming its counter. If it meant the model or the project, the next request
            # without tools is refused too.
            verdict = replace(verdict, cause="tool-quota", blames="quota")
        if reservation.slot.probe and (verdict.blames != "quota" or verdict.cause == "tool-quota"):
            self._end_probe(reservation, verdict)
        reservation.quota.refused += verdict.blames == "quota"
        if verdict.tier is not None:
            self._seen_tier(reservation.quota.project, verdict.tier)
        if verdict.cooldown_s is None:
            return verdict
        project = reservation.quota.project
        if verdict.cause == "tool-quota":
            for tool in _refused_tools(reservation, verdict):
                await self.set_aside("tools", f"{project}/{tool}", verdict)
        elif verdict.cause == "model-access":
            await self.set_aside("models", f"{project}/{reservation.model}", verdict)
        elif verdict.blames == "quota":
            await self._cool(reservation, verdict)
        elif verdict.blames == "project":
            await self.set_aside("projects", project, verdict)
        elif verdict.blames == "key":
            await self.set_aside("keys", reservation.key.id, verdict)
        return verdict

    async def set_aside(self, kind: health.Kind, name: str, verdict: Verdict) -> None:
        self._alerts.aside(kind, name, verdict.cause, self._pool.now(), verdict.cooldown_s or 0.0)
        await self._pool.projects.set_aside(kind, name, verdict)

    def _seen_tier(self, project: str, tier: str) -> None:
        """Write the tier with the next commit, if it is new."""
        document, now = self._pool.projects.health, self._pool.now()
        if health.seen_tier(document.value, now, project, tier) is not document.value:
            document.add_to_next_commit(partial(health.seen_tier, project=project, tier=tier))

    def _end_probe(self, reservation: Reservation, verdict: Verdict) -> None:
        """End a half-open probe as a success if Google refused only its content, since the quota had room. A
        malformed answer proves nothing, and a "utc" probe only something if it is served."""
        slot = reservation.slot
        refused = verdict.blames == "client" or verdict.action == "to-client"
        if slot.probe == "half-open" and refused and verdict.cause != "malformed":
            reservation.quota.document.submit(partial(quota.succeed, slot=slot))
        reservation.release()

    async def _cool(self, reservation: Reservation, verdict: Verdict) -> None:
        projects, owned = self._pool.projects, reservation.quota
        if verdict.bucket is not None and verdict.bucket != owned.bucket:
            if verdict.bucket.partition("/")[0] in BESIDE:
                return
            await projects.health.note(
                lambda value, _: health.learn_bucket(value, reservation.model, verdict.bucket or "")
            )
            owned = projects.quota(owned.project, verdict.bucket)
            with suppress(StoreUnavailableError):
                await owned.document.refresh(0)
        self._alerts.resting(owned.project, owned.bucket, verdict.cause, self._pool.now(), verdict.cooldown_s or 0.0)
        project = projects.by_name.get(owned.project)
        tier = project.tier if project else None
        await owned.document.note(partial(self._cooled, reservation=reservation, verdict=verdict, tier=tier))
        owned.wake()
        if _is_too_large(reservation, verdict):
            reservation.settle(0)  # Google did not count its tokens, as they exceed the limit
        if not reservation.slot.probe:  # a probe asks whether there is room at all
            self._suspect(reservation, verdict)

    def _cooled(self, state: State, now: float, reservation: Reservation, verdict: Verdict, tier: str | None) -> State:
        learned = {name: value for name, value in verdict.learned.items() if value > 0}
        if learned:
            state = quota.learn(state, now, learned, tier)
        if verdict.cause in MINUTE_LIMITS and self._had_room(reservation, verdict):
            state = quota.distrust_minute(state, now)
        if _is_too_large(reservation, verdict):
            return state
        return quota.cool(state, now, verdict.cause, verdict.cooldown_s or 0.0, verdict.ceiling_s)

    @staticmethod
    def _had_room(reservation: Reservation, verdict: Verdict) -> bool:
        """Whether our counters had room below a known limit, so that the refusal contradicts them."""
        limit = reservation.limits.get(verdict.cause)
        return limit is not None and verdict.learned.get(verdict.cause, limit) >= limit

    def _suspect(self, reservation: Reservation, verdict: Verdict) -> None:
        """Pause the pool if all projects refuse within seconds though they had room: Google then limits our address."""
        pool = self._pool
        now = pool.now()
        if verdict.cause == "tpm":  # the request may be larger than estimated: then all projects refuse it
            return
        if verdict.cause != "unknown-429" and not self._had_room(reservation, verdict):
            return
        self._denied[reservation.quota.project] = now
        recent = {project for project, when in self._denied.items() if now - when <= PAUSE_EVIDENCE}
        able, _ = pool.projects.candidates(reservation.model, (), (), now)
        usable = {project.name for project, _ in able}
        if len(usable) > 1 and recent >= usable and now >= pool.booking.pause_until:
            pool.booking.pause_until = now + min(PAUSE_MOST, PAUSE * 2.0**self._pauses)
            self._pauses += 1


def _is_too_large(reservation: Reservation, verdict: Verdict) -> bool:
    """Whether this request alone exceeds the limit of a minute. Smaller ones can still be served."""
    return verdict.cause == "tpm" and reservation.want.tokens > verdict.learned.get("tpm", math.inf)


def _refused_tools(reservation: Reservation, verdict: Verdict) -> Collection[str]:
    """Returns the tool that the refusal names, or else the request's tools that it may mean."""
    named = (verdict.bucket or "").partition("/")[0]
    if named in TOOLS:
        return (named,)
    meant = reservation.tools - {URLS} if named == GROUNDING else reservation.tools
    return sorted(meant or reservation.tools)


def _healthy(value: health.Health, _: float, well: Sequence[tuple[health.Kind, str]], since: float) -> health.Health:
    """End these rests, except those that began after the served request was sent: it proves nothing about them."""
    for kind, name in well:
        entry = getattr(value, kind).get(name)
        if entry is not None and entry.since <= since:
            value = health.clear(value, kind, name)
    return value
