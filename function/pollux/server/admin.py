"""The admin API: what an operator reads and changes below /admin, with the admin token. It shows no key's value."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pollux import __version__
from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import TokenError, TokenSource
from pollux.backends.store.contract import StoreError, StoreUnavailableError
from pollux.gemini.tools import TOOLS
from pollux.gemini.verdict import causes
from pollux.gemini.verdict.causes import PROBED, resting_time
from pollux.pool import health, quota, refusals
from pollux.pool.pool import Pool
from pollux.pool.projects import Project, Quota
from pollux.pool.refusals import DISABLED, PAUSED, Refusal, Why
from pollux.pool.windows import MINUTE_LIMITS, Limits, Want, day_of
from pollux.relay.client import Receive, Scope, Send
from pollux.relay.journal import Journal
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.wiring import PooledFiles

LIFT = "/admin/keys/lift"
ASIDE = "/admin/keys/aside"


class Answer(JSONResponse):
    """One line of JSON."""

    media_type = "application/json; charset=utf-8"

    def __init__(self, content: Mapping[str, Any], status: int = 200, **headers: str) -> None:
        super().__init__(content, status, {"cache-control": "no-store"} | headers)

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _error(code: int, status_: str, message: str, **headers: str) -> Answer:
    return Answer({"error": {"code": code, "message": message, "status": status_}}, code, **headers)


class Admin:
    """An ASGI app. It checks the token before it says which paths there are."""

    def __init__(
        self,
        pool: Pool,
        tokens: TokenSource,
        journal: Journal,
        ownership: Ownership,
        pooled_files: PooledFiles | None,
    ) -> None:
        self._pool = pool
        self._projects = pool.projects
        self._keyring = pool.projects.keyring
        self._settings = pool.settings
        self._tokens = tokens
        self._journal = journal
        self._ownership = ownership
        self._pooled_files = pooled_files
        routes = [
            Route("/admin/status", self._status),
            Route("/admin/explain", self._explain),
            Route("/admin/requests/{id:path}", self._request),
            Route(LIFT, self._lift, methods=["POST"]),
            Route(ASIDE, self._set_aside, methods=["POST"]),
        ]
        self._starlette = Starlette(routes=routes, exception_handlers={404: self._unknown, 405: self._unknown})
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (refusal := await self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        await self._starlette({**scope, "path": scope["path"].rstrip("/")}, receive, send)

    async def _refusal(self, scope: Scope) -> Answer | None:
        with suppress(TokenError, KeySourceError):
            tokens = await self._tokens.tokens()
            if tokens.admin(scope["headers"]):
                return None
            if tokens.complete:
                said = "the admin token is needed, as Authorization: Bearer"
                return _error(401, "UNAUTHENTICATED", said, **{"www-authenticate": "Bearer"})
        return _error(503, "UNAVAILABLE", "the admin tokens cannot be read at the moment; the log says why")

    async def _unknown(self, request: Request, _: Exception) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _error(405, "INVALID_ARGUMENT", f"only GET is known here, and POST {LIFT} and {ASIDE}")
        known = "/admin/status, /admin/explain?model=, /admin/requests/ID"
        return _error(404, "NOT_FOUND", f"known are {known}, POST {LIFT}?id= and POST {ASIDE}?id=&cause=")

    async def _status(self, _: Request) -> Answer:
        return Answer(await self.status())

    async def _explain(self, request: Request) -> Answer:
        model, size = request.query_params.get("model"), request.query_params.get("tokens", "0")
        if not model or not (size.isascii() and size.isdigit() and len(size) <= 12):
            return _error(400, "INVALID_ARGUMENT", "expected ?model=NAME and, if wished, &tokens=N")
        return Answer(await self._explained(model, int(size)))

    async def _request(self, request: Request) -> Answer:
        record = self._journal.find(request.path_params["id"])
        if record is None:
            return _error(404, "NOT_FOUND", "this request is not among the last 1000 of this instance")
        return Answer(record.as_json())

    async def _lift(self, request: Request) -> Answer:
        """Let these keys serve again. `well`: Google accepted them just now. `all`: also their projects and models, and
        the next request tries a quota that rests.
        """
        asked = request.query_params
        if not (ids := list(filter(None, asked.getlist("id")))):
            return _error(400, "INVALID_ARGUMENT", "expected ?id=KEY, once for each key")
        projects, well, all_ = self._projects, bool(asked.get("well")), bool(asked.get("all"))
        await projects.ready()
        now, value = self._pool.now(), projects.health.value
        owners = {key.id: key.project for project in projects.by_name.values() for key in project.keys}
        wanted = {key_id: owners.get(key_id) if all_ else None for key_id in ids}
        held = [words for key_id, project in wanted.items() for words in health.held(value, now, key_id, project)]

        def change(value: health.Health, _: float) -> health.Health:
            for key_id, project in wanted.items():
                value = health.lifted(value, key_id, project, well=well)
            return value

        await projects.health.note(change)
        if all_:
            self._pool.booking.pause_until = 0.0
            for owned in [owned for owned in projects.quotas.values() if owned.project in set(wanted.values())]:
                if quota.try_early(owned.document.value, now) is not owned.document.value:
                    await owned.document.note(quota.try_early)
                    held.append(f"quota {owned.project}/{owned.bucket}")
        free = {
            project: when for project, when in projects.health.value.free.items() if project in set(owners.values())
        }
        unknown = [key_id for key_id in ids if key_id not in owners]
        simulated = getattr(self._keyring, "simulated", False)
        return Answer({"lifted": list(dict.fromkeys(held)), "unknown": unknown, "simulated": simulated, "free": free})

    async def _set_aside(self, request: Request) -> Answer:
        """Another program reports that Google refused these keys just now, for this cause."""
        ids, cause = list(filter(None, request.query_params.getlist("id"))), request.query_params.get("cause", "")
        if not ids or cause not in PROBED:
            known = ", ".join(sorted(PROBED))
            return _error(400, "INVALID_ARGUMENT", f"expected ?id=KEY, once for each key, and cause: {known}")
        projects = self._projects
        await projects.ready()
        seconds, ceiling = resting_time(cause)

        def change(value: health.Health, now: float) -> health.Health:
            for key_id in ids:
                value = health.set_aside(value, now, "keys", key_id, cause, seconds, ceiling)
            return value

        await projects.health.note(change)
        return Answer({"aside": sorted(set(ids))})

    async def status(self) -> dict[str, Any]:
        """Keys, projects and quotas as the store and this instance know them."""
        problems = [str(p) for part in (self._keyring, self._tokens) for p in getattr(part, "problems", ())]
        try:
            await self._projects.load_all()
        except StoreUnavailableError:
            pass  # `store` below shows it; the rest is what this instance knows
        except StoreError as error:
            problems.append(str(error))
        paid = {
            project.name: project.tier
            for project in self._projects.by_name.values()
            if project.name in self._projects.health.value.free and project.tier not in (None, "free")
        }
        if paid:
            problems.append(health.free_quota(paid))
        if (instances := self._projects.instances()) > (most := self._settings.most_instances):
            problems.append(
                f"{instances} instances write, POLLUX_MAX_INSTANCES is {most}: without the store they may send too much"
            )
        now = round(self._pool.now(), 3)
        able, refused = self._projects.candidates("", (), (), now)
        if not able:
            problems.append(refusals.unusable(refused))
        quotas = [self._quota(owned, now) for _, owned in sorted(self._projects.quotas.items())]
        return {
            "version": __version__,
            "now": now,
            "day_ends": day_of(now)[2],
            "strategy": self._settings.strategy,
            "window": self._settings.window,
            "upstream": self._settings.upstream,
            "simulated": getattr(self._keyring, "simulated", False),
            "keys": [self._key(key, now) for project in self._projects.by_name.values() for key in project.keys],
            "projects": [self._project(project, now) for project in self._projects.by_name.values()],
            "quotas": [entry for entry in quotas if entry],
            "pool": {
                "waiting": self._pool.waiting,
                "paused_until": self._pool.booking.pause_until if self._pool.booking.pause_until > now else None,
                "suspicion": self._suspicion(now),
                "problems": problems,
                **self._journal.totals(),
            },
            "resources": self._ownership.as_json(),
            "pooled_files": None if self._pooled_files is None else self._pooled_files.as_json(),
            "store": {"url": self._settings.store_url, "instances": instances, **self._projects.store_health.as_json()},
        }

    def _suspicion(self, now: float) -> str | None:
        if self._pool.booking.pause_until > now:
            return "all projects were refused within seconds although they had room: Google may limit this address"
        if self._journal.causes["location"]:
            return "Google refused this gateway's own location"
        return None

    def _key(self, key: Any, now: float) -> dict[str, Any]:
        value = self._projects.health.value
        entry = value.keys.get(key.id)
        shown = _resting(entry if health.key_rests(entry, now) else None, now, late=True)
        if shown["state"] == "healthy" and key.id not in value.checked:
            shown["state"] = "unchecked"
        if not key.enabled:
            shown["state"] = "disabled"
        return {"id": key.id, "project": key.project, "tier": key.tier, **shown}

    def _project(self, project: Project, now: float) -> dict[str, Any]:
        models = {
            name.partition("/")[2]: _resting(entry, now)
            for name, entry in self._projects.health.value.models.items()
            if name.partition("/")[0] == project.name and entry.until > now
        }
        shown = _resting(self._projects.health.value.projects.get(project.name), now)
        free = self._projects.health.value.free.get(project.name)
        return {
            "project": project.name,
            "keys": len(project.keys),
            **shown,
            "models_aside": models,
            "free_quota_seen": free,
            "tools_aside": self._tools_aside(project, now),
        }

    def _tools_aside(self, project: Project, now: float) -> dict[str, Any]:
        aside = self._projects.health.value.tools
        resting = {tool: aside.get(f"{project.name}/{tool}") for tool in TOOLS} if aside else {}
        return {
            tool: _resting(entry, now) for tool, entry in resting.items() if entry is not None and entry.until > now
        }

    def _quota(self, owned: Quota, now: float) -> dict[str, Any] | None:
        project = self._projects.by_name.get(owned.project)
        state = owned.document.value
        if project is None or (not state.slots and not state.days and state.cooldown is None):
            return None
        limits = self._projects.limits(project, owned.bucket)
        used = quota.used(state, now)
        day, _, ends = day_of(now, state.zone)
        requests, tokens = state.days.get(day, (0, 0))
        usage = dict(zip(MINUTE_LIMITS, used, strict=True)) | {"rpd": requests, "tpd": tokens}
        soonest, why_later = self._soonest(project, owned, limits, now)
        cooling = state.cooldown if state.cooldown and state.cooldown.until > now else None
        return {
            "project": owned.project,
            "model": owned.bucket,
            "used": usage,
            "limits": dict(limits),
            "left": {name: max(0, limit - usage.get(name, 0)) for name, limit in limits.items()},
            "learned": {name: value for name, (value, _) in state.learned.items()},
            "cooldown_until": cooling.until if cooling else None,
            "cooldown_why": refusals.words(Why(cooling.reason, "cooling")) if cooling else None,
            "next_slot": soonest,
            "next_slot_why": why_later,
            "day": day,
            "day_ends": ends,
            "served": owned.served,
            "refused_upstream": owned.refused,
            "commits": owned.document.counters.commits,
            "conflicts": owned.document.counters.conflicts,
            "grants": owned.grants_taken,
            "granted": _granted(owned, now),
        }

    def _soonest(self, project: Project, owned: Quota, limits: Limits, now: float) -> tuple[float | None, str | None]:
        """When this quota can be used next (None: never), and why not now, unless its own counts alone say so."""
        key = self._projects.usable_key(project, owned.bucket, (), now)
        if key is None:
            return None, refusals.words(DISABLED)
        if isinstance(key, Refusal):
            return key.until, refusals.words(key.why)
        at = self._pool.booking.earliest(now)
        found = quota.find(owned.document.value, at, Want(), limits, math.inf)
        if isinstance(found, Refusal):
            return None, refusals.words(found.why)
        return max(at, found.start), refusals.words(PAUSED) if at > now else None

    async def _explained(self, model: str, tokens: int) -> dict[str, Any]:
        """For every model of the chain and every project: the earliest slot, and what holds it back."""
        with suppress(StoreError):  # then with what this instance knows
            await self._projects.load_all()
        chain = self._projects.catalog.chain(model, self._settings.mode)
        now = self._pool.now()
        at = self._pool.booking.earliest(now)
        candidates = []
        for name in chain:
            able, refused = self._projects.candidates(name, (), (), at)
            keys = {project.name: key.id for project, key in able}
            for project in self._projects.by_name.values():
                found: quota.Slot | Refusal
                limits: Limits = self._projects.limits(project, name)
                if project.name in keys:
                    owned = self._projects.quota(project.name, self._projects.bucket(name))
                    found = self._pool.booking.look(owned, Want(1, tokens), limits, at, math.inf)
                    held = self._pool.booking.look(owned, Want(1, tokens), limits, at, at)
                    if at > now and not isinstance(held, Refusal):
                        found = held = Refusal(at, PAUSED)
                else:
                    found = held = refused.get(project.name, Refusal(math.inf, DISABLED))
                earliest = found.until if isinstance(found, Refusal) else max(now, found.start)
                never = earliest == math.inf
                candidates.append(
                    {
                        "model": name,
                        "project": project.name,
                        "key": keys.get(project.name),
                        "earliest": None if never else round(earliest, 3),
                        "wait_s": None if never else round(max(0.0, earliest - now), 1),
                        "why": refusals.words(held.why) if isinstance(held, Refusal) else "free now",
                        "limits": dict(limits),
                        "tools_aside": self._tools_aside(project, now),
                    }
                )
        head = {"model": model, "tokens": tokens, "chain": list(chain), "now": round(now, 3)}
        head["floor"] = self._projects.catalog.floor(model)
        head["paused_until"] = self._pool.booking.pause_until if at > now else None
        head["in_catalog"] = chain[0] in self._projects.catalog.models
        return head | {"store": self._projects.store_health.trouble or "ok", "candidates": candidates}


def _resting(entry: Any, now: float, *, late: bool = False) -> dict[str, Any]:
    """`late`: show it as aside after its time is over, too: it serves again only after a free call."""
    if entry is None or (entry.until <= now and not late):
        return {"state": "healthy", "until": None, "why": None}
    return {"state": "aside", "until": entry.until, "why": causes.words(entry.reason), "cause": entry.reason}


def _granted(owned: Quota, now: float) -> int:
    """What this instance may still send without asking the store."""
    grant = owned.grant
    return 0 if grant is None or grant.is_over(now) else grant.booked.requests - grant.used.requests
