"""What an operator sees and does over HTTP, below /admin. Only with the admin token; never a key's value."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pollux import __version__
from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import TokenError
from pollux.backends.store.contract import StoreError, StoreUnavailableError
from pollux.gemini.tools import TOOLS
from pollux.gemini.verdict import causes
from pollux.gemini.verdict.causes import PROBED, resting_time
from pollux.pool import health, quota
from pollux.pool import refusals as reasons
from pollux.pool.projects import Project, Projects, Quota
from pollux.pool.refusals import DISABLED, PAUSED, Refusal, Why
from pollux.pool.windows import MINUTE_LIMITS, Limits, Want, day_of
from pollux.relay.client import Receive, Scope, Send

if TYPE_CHECKING:
    from pollux.server.app import App

LIFT = "/admin/keys/lift"
ASIDE = "/admin/keys/aside"


class Answer(JSONResponse):
    """One line of JSON."""

    media_type = "application/json; charset=utf-8"

    def __init__(self, content: Mapping[str, Any], status: int = 200, **headers: str) -> None:
        super().__init__(content, status, {"cache-control": "no-store"} | headers)

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            self.body = b""
        await super().__call__(scope, receive, send)


def _error(code: int, status_: str, message: str, **headers: str) -> Answer:
    return Answer({"error": {"code": code, "message": message, "status": status_}}, code, **headers)


class Admin:
    """An ASGI app. It checks the token before it tells which paths there are."""

    def __init__(self, app: "App") -> None:
        self._app = app
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
        try:
            tokens = await self._app.tokens.tokens()
            if tokens.admin(scope["headers"]):
                return None
            complete = tokens.complete
        except (TokenError, KeySourceError):
            complete = False
        if not complete:
            return _error(503, "UNAVAILABLE", "the admin tokens cannot be read at the moment; the log says why")
        said = "the admin token is needed, as Authorization: Bearer"
        return _error(401, "UNAUTHENTICATED", said, **{"www-authenticate": "Bearer"})

    async def _unknown(self, request: Request, _: Exception) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _error(405, "INVALID_ARGUMENT", f"only GET is known here, and POST {LIFT} and {ASIDE}")
        known = "/admin/status, /admin/explain?model=, /admin/requests/ID"
        return _error(404, "NOT_FOUND", f"known are {known}, POST {LIFT}?id= and POST {ASIDE}?id=&cause=")

    async def _status(self, request: Request) -> Answer:
        return Answer(await status(self._app))

    async def _explain(self, request: Request) -> Answer:
        model, size = request.query_params.get("model"), request.query_params.get("tokens", "0")
        if not model or not (size.isascii() and size.isdigit() and len(size) <= 12):
            return _error(400, "INVALID_ARGUMENT", "expected ?model=NAME and, if wished, &tokens=N")
        return Answer(await explain(self._app, model, int(size)))

    async def _request(self, request: Request) -> Answer:
        record = self._app.journal.find(request.path_params["id"])
        if record is None:
            return _error(404, "NOT_FOUND", "this request is not among the last 1000 of this instance")
        return Answer(record.as_json())

    async def _lift(self, request: Request) -> Answer:
        """End what is held against these keys. `well`: Google took them just now. `all`: end also what is held against
        their projects and models, and let the next request try a quota that rests."""
        asked = request.query_params
        if not (ids := list(filter(None, asked.getlist("id")))):
            return _error(400, "INVALID_ARGUMENT", "expected ?id=KEY, once for each key")
        app, projects, well, all_ = self._app, self._app.projects, bool(asked.get("well")), bool(asked.get("all"))
        await projects.ready()
        now, value = app.pool.now(), projects.health.value
        owners = {key.id: key.project for project in projects.by_name.values() for key in project.keys}
        wanted = {key_id: owners.get(key_id) if all_ else None for key_id in ids}
        held = [words for key_id, project in wanted.items() for words in health.held(value, now, key_id, project)]

        def change(value: health.Health, _: float) -> health.Health:
            for key_id, project in wanted.items():
                value = health.lifted(value, key_id, project, well=well)
            return value

        await projects.health.note(change)
        if all_:
            app.pool.booking.pause_until = 0.0
            for owned in [owned for owned in projects.quotas.values() if owned.project in set(wanted.values())]:
                if quota.try_early(owned.document.value, now) is not owned.document.value:
                    await owned.document.note(quota.try_early)
                    held.append(f"quota {owned.project}/{owned.bucket}")
        free = {
            project: when for project, when in projects.health.value.free.items() if project in set(owners.values())
        }
        unknown = [key_id for key_id in ids if key_id not in owners]
        simulated = getattr(app.keyring, "simulated", False)
        return Answer({"lifted": list(dict.fromkeys(held)), "unknown": unknown, "simulated": simulated, "free": free})

    async def _set_aside(self, request: Request) -> Answer:
        """Google refused these keys just now, for this cause, when another program asked."""
        ids, cause = list(filter(None, request.query_params.getlist("id"))), request.query_params.get("cause", "")
        if not ids or cause not in PROBED:
            known = ", ".join(sorted(PROBED))
            return _error(400, "INVALID_ARGUMENT", f"expected ?id=KEY, once for each key, and cause: {known}")
        projects = self._app.projects
        await projects.ready()
        seconds, ceiling = resting_time(cause)

        def change(value: health.Health, now: float) -> health.Health:
            for key_id in ids:
                value = health.set_aside(value, now, "keys", key_id, cause, seconds, ceiling)
            return value

        await projects.health.note(change)
        return Answer({"aside": sorted(set(ids))})


async def status(app: "App") -> dict[str, Any]:
    """Keys, projects and quotas as the store and this instance know them."""
    projects = app.projects
    problems = [str(p) for part in (app.keyring, app.tokens) for p in getattr(part, "problems", ())]
    try:
        await projects.load_all()
    except StoreUnavailableError:
        pass  # of that the status tells below, and what is known here
    except StoreError as error:
        problems.append(str(error))
    paid = {
        project.name: project.tier
        for project in projects.by_name.values()
        if project.name in projects.health.value.free and project.tier not in (None, "free")
    }
    if paid:
        problems.append(health.free_quota(paid))
    if (instances := projects.instances()) > (most := app.settings.most_instances):
        problems.append(
            f"{instances} instances write, POLLUX_MAX_INSTANCES is {most}: without the store they may send too much"
        )
    now = round(app.pool.now(), 3)
    able, refusals = projects.candidates("", (), (), now)
    if not able:
        problems.append(reasons.unusable(refusals))
    quotas = [_quota(app, owned, now) for _, owned in sorted(projects.quotas.items())]
    return {
        "version": __version__,
        "now": now,
        "day_ends": day_of(now)[2],
        "strategy": app.settings.strategy,
        "window": app.settings.window,
        "upstream": app.settings.upstream,
        "simulated": getattr(app.keyring, "simulated", False),
        "keys": [_key(projects, key, now) for project in projects.by_name.values() for key in project.keys],
        "projects": [_project(projects, project, now) for project in projects.by_name.values()],
        "quotas": [entry for entry in quotas if entry],
        "pool": {
            "waiting": app.pool.waiting,
            "paused_until": app.pool.booking.pause_until if app.pool.booking.pause_until > now else None,
            "suspicion": _suspicion(app, now),
            "problems": problems,
            **app.journal.totals(),
        },
        "resources": app.ownership.as_json(),
        "pooled_files": None if app.pooled_files is None else app.pooled_files.as_json(),
        "store": {"url": app.settings.store_url, "instances": instances, **projects.store_health.as_json()},
    }


def _suspicion(app: "App", now: float) -> str | None:
    if app.pool.booking.pause_until > now:
        return "all projects were refused within seconds although they had room: Google may limit this address"
    if app.journal.causes["location"]:
        return "Google refused this gateway's own location"
    return None


def _resting(entry: Any, now: float, *, late: bool = False) -> dict[str, Any]:
    """`late`: its time is over, but it rests until it was asked about."""
    if entry is None or (entry.until <= now and not late):
        return {"state": "healthy", "until": None, "why": None}
    return {"state": "aside", "until": entry.until, "why": causes.words(entry.reason), "cause": entry.reason}


def _key(projects: Projects, key: Any, now: float) -> dict[str, Any]:
    value = projects.health.value
    entry = value.keys.get(key.id)
    shown = _resting(entry if health.key_rests(entry, now) else None, now, late=True)
    if shown["state"] == "healthy" and key.id not in value.checked:
        shown["state"] = "unchecked"
    if not key.enabled:
        shown["state"] = "disabled"
    return {"id": key.id, "project": key.project, "tier": key.tier, **shown}


def _project(projects: Projects, project: Project, now: float) -> dict[str, Any]:
    models = {
        name.partition("/")[2]: _resting(entry, now)
        for name, entry in projects.health.value.models.items()
        if name.partition("/")[0] == project.name and entry.until > now
    }
    shown = _resting(projects.health.value.projects.get(project.name), now)
    free = projects.health.value.free.get(project.name)
    return {
        "project": project.name,
        "keys": len(project.keys),
        **shown,
        "models_aside": models,
        "free_quota_seen": free,
        "tools_aside": _tools_aside(projects, project, now),
    }


def _tools_aside(projects: Projects, project: Project, now: float) -> dict[str, Any]:
    aside = projects.health.value.tools
    resting = {tool: aside.get(f"{project.name}/{tool}") for tool in TOOLS} if aside else {}
    return {tool: _resting(entry, now) for tool, entry in resting.items() if entry is not None and entry.until > now}


def _quota(app: "App", owned: Quota, now: float) -> dict[str, Any] | None:
    projects = app.projects
    project = projects.by_name.get(owned.project)
    state = owned.document.value
    if project is None or (not state.slots and not state.days and state.cooldown is None):
        return None
    limits = projects.limits(project, owned.bucket)
    used = quota.used(state, now)
    day, _, ends = day_of(now, state.zone)
    requests, tokens = state.days.get(day, (0, 0))
    usage = dict(zip(MINUTE_LIMITS, used, strict=True)) | {"rpd": requests, "tpd": tokens}
    soonest, why_later = _soonest(app, project, owned, limits, now)
    cooling = state.cooldown if state.cooldown and state.cooldown.until > now else None
    return {
        "project": owned.project,
        "model": owned.bucket,
        "used": usage,
        "limits": dict(limits),
        "left": {name: max(0, limit - usage.get(name, 0)) for name, limit in limits.items()},
        "learned": {name: value for name, (value, _) in state.learned.items()},
        "cooldown_until": cooling.until if cooling else None,
        "cooldown_why": reasons.words(Why(cooling.reason, "cooling")) if cooling else None,
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


def _soonest(app: "App", project: Project, owned: Quota, limits: Limits, now: float) -> tuple[float | None, str | None]:
    """When this quota can be used next (None: never), and why not now, if anything beside the quota is in the way."""
    key = app.projects.usable_key(project, owned.bucket, (), now)
    if key is None:
        return None, reasons.words(DISABLED)
    if isinstance(key, Refusal):
        return key.until, reasons.words(key.why)
    at = app.pool.booking.earliest(now)
    found = quota.find(owned.document.value, at, Want(), limits, math.inf)
    if isinstance(found, Refusal):
        return None, reasons.words(found.why)
    return max(at, found.start), reasons.words(PAUSED) if at > now else None


def _granted(owned: Quota, now: float) -> int:
    """What this instance may still send without asking the store."""
    grant = owned.grant
    return 0 if grant is None or grant.is_over(now) else grant.booked.requests - grant.used.requests


async def explain(app: "App", model: str, tokens: int) -> dict[str, Any]:
    """For every model of the chain and every project: the earliest slot, and what holds it back."""
    projects = app.projects
    with suppress(StoreError):  # then by what is known here
        await projects.load_all()
    chain = projects.catalog.chain(model, app.settings.mode)
    now = app.pool.now()
    at = app.pool.booking.earliest(now)
    candidates = []
    for name in chain:
        able, refusals = projects.candidates(name, (), (), at)
        keys = {project.name: key.id for project, key in able}
        for project in projects.by_name.values():
            found: quota.Slot | Refusal
            limits: Limits = projects.limits(project, name)
            if project.name in keys:
                owned = projects.quota(project.name, projects.bucket(name))
                found = app.pool.booking.look(owned, Want(1, tokens), limits, at, math.inf)
                held = app.pool.booking.look(owned, Want(1, tokens), limits, at, at)
                if at > now and not isinstance(held, Refusal):
                    found = held = Refusal(at, PAUSED)
            else:
                found = held = refusals.get(project.name, Refusal(math.inf, DISABLED))
            earliest = found.until if isinstance(found, Refusal) else max(now, found.start)
            never = earliest == math.inf
            candidates.append(
                {
                    "model": name,
                    "project": project.name,
                    "key": keys.get(project.name),
                    "earliest": None if never else round(earliest, 3),
                    "wait_s": None if never else round(max(0.0, earliest - now), 1),
                    "why": reasons.words(held.why) if isinstance(held, Refusal) else "free now",
                    "limits": dict(limits),
                    "tools_aside": _tools_aside(projects, project, now),
                }
            )
    head = {"model": model, "tokens": tokens, "chain": list(chain), "now": round(now, 3)}
    head["floor"] = projects.catalog.floor(model)
    head["paused_until"] = app.pool.booking.pause_until if at > now else None
    head["in_catalog"] = chain[0] in projects.catalog.models
    return head | {"store": projects.store_health.trouble or "ok", "candidates": candidates}
