"""How keys stand: what is held against them in the store and in a running gateway, and how commands change that."""

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote as quoted
from urllib.parse import urlencode

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import ConflictError, Store, StoreError, StoreUnavailableError
from pollux.backends.store.opening import open_store
from pollux.pool import health, quota
from pollux.pool import quota_document as packing
from pollux.settings import Settings

T = TypeVar("T")
DOCUMENT = "health"
TRIES = 10
IDS_AT_ONCE = 100
"""In one request to a gateway, which takes them in its address."""

Keys = Mapping[str, str | None]
"""Key -> its project, if what is held against that ends too."""
Open = Callable[[Settings], Store]


def _open(settings: Settings) -> Store:
    return open_store(settings.store_url, environ=settings.environ)


class Lifted(NamedTuple):
    ended: list[str] = []  # noqa: RUF012
    """What was held against the keys, in words."""
    simulated: bool = False
    """The gateway that runs is in front of a simulated Gemini."""
    free: Mapping[str, float] = {}
    """Project -> when a refusal named a quota of the free tier."""


def shares_store(settings: Settings, project: str) -> bool:
    """Whether the store of these settings is that of the gateways whose keys are meant; `project` "": this machine.

    Without POLLUX_STORE it is a file of this machine, which knows of no key of a project that is only named.
    """
    if settings.store_url.startswith("memory:"):
        return False
    if project and settings.secrets:
        return project == settings.secrets
    return bool(settings.store) or not project


# --- the column HEALTH ------------------------------------------------------------------------------------------------


def read_health(settings: Settings, project: str) -> Mapping[str, Any] | None:
    """The health document of the store. None: it is not known."""
    if not shares_store(settings, project):
        return None
    if _unused(settings):
        return {}

    async def read(store: Store) -> Mapping[str, Any]:
        found = await store.read([DOCUMENT])
        return found[DOCUMENT][0] if DOCUMENT in found else {}

    return asyncio.run(_in_store(settings, read, "health is not known"))


def state_of(key: Key, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """How a key stands, as `keys list --json` shows it."""
    if document is None:
        return {"state": "not known"}
    now = time.time()
    for kind, name in (("keys", key.id), ("projects", key.project)):
        aside = document.get(kind, {}).get(name)
        if aside and (aside["until"] > now or (kind == "keys" and health.key_rests(health.Aside(**aside), now))):
            return {"state": "aside"} | {name: aside[name] for name in ("reason", "since", "until")}
    return {"state": "healthy" if key.id in document.get("checked", ()) else "unchecked"}


def in_words(state: Mapping[str, Any], enabled: bool) -> str:
    words = str(state["state"])
    if words == "aside":
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(state["until"]))
        words = f"aside until {until}: {state['reason']}"
    return words if enabled else f"disabled ({words})" if words == "not known" else f"disabled, {words}"


# --- the store --------------------------------------------------------------------------------------------------------


async def lift(settings: Settings, project: str, keys: Keys, *, well: bool, open_: Open = _open) -> Lifted:
    """End what is held against these keys: in the store, for gateways that start later or look again, and in one that
    runs. `well`: Google took them just now; else they count as unchecked.
    """
    if not keys:
        return Lifted()
    told = _told_gateway(settings, project, keys, well=well)
    if not shares_store(settings, project) or (_unused(settings) and not well):
        return told
    failed = f"if {', '.join(keys)} was set aside, it may stay so until it is tried again"
    stored = await _in_store(settings, lambda store: _lifted(store, keys, well=well), failed, open_)
    return told._replace(ended=list(dict.fromkeys(told.ended + (stored or []))))


async def forgive(settings: Settings, project: str, key_id: str, open_: Open = _open, *, well: bool = False) -> Lifted:
    """A key has a new value, or is used again: why it was set aside before says nothing about it now."""
    return await lift(settings, project, {key_id: None}, well=well, open_=open_)


async def leave_aside(settings: Settings, project: str, refused: Mapping[str, str], open_: Open = _open) -> bool:
    """Google refused these keys just now (key -> cause): gateways leave them aside and ask about them again. True: it
    is written in their store, or a gateway was told."""
    if not refused:
        return True
    told = _told_of_refused(settings, project, refused)
    if not shares_store(settings, project):
        return told

    async def write(store: Store) -> bool:
        await _tried(DOCUMENT, lambda: _refused(store, refused))
        return True

    failed = f"that {', '.join(refused)} is refused could not be written"
    return await _in_store(settings, write, failed, open_) or told


async def _in_store(
    settings: Settings, use: Callable[[Store], Awaitable[T]], failed: str, open_: Open = _open
) -> T | None:
    """If the store fails, the user is told, and it is None: what the command did is done."""
    try:
        store = open_(settings)
        try:
            await store.open()
            return await use(store)
        finally:
            await store.close()
    except (StoreError, ValueError, OSError) as error:
        print(f"pollux keys: {failed}: {error}", file=sys.stderr)
        return None


async def _refused(store: Store, refused: Mapping[str, str]) -> None:
    from pollux.gemini.verdict.causes import resting_time

    found = (await store.read([DOCUMENT])).get(DOCUMENT)
    document, version = found or ({}, None)
    value = before = health.unpack(document) if found else health.Health()
    for key_id, cause in refused.items():
        value = health.set_aside(value, store.now(), "keys", key_id, cause, *resting_time(cause))
    if value is not before:
        await store.commit(DOCUMENT, dict(document) | health.pack(value), version)


def _unused(settings: Settings) -> bool:
    """No gateway has run here; nor is its file made for a question."""
    return not settings.store and not Path(settings.store_url.removeprefix("sqlite:///")).exists()


async def _lifted(store: Store, keys: Keys, *, well: bool) -> list[str]:
    """Only what is held against these goes; the rest of the documents, their writers included, stays as it was."""
    ended: list[str] = []
    now = store.now()

    async def health_document() -> None:
        found = (await store.read([DOCUMENT])).get(DOCUMENT)
        if found is None and not well:
            return
        document, version = found or ({}, None)
        value = before = health.unpack(document) if found else health.Health()
        held = [words for key_id, owner in keys.items() for words in health.held(value, now, key_id, owner)]
        for key_id, owner in keys.items():
            value = health.lifted(value, key_id, owner, well=well)
        if value is not before:
            await store.commit(DOCUMENT, dict(document) | health.pack(value), version)
        ended.extend(held)

    async def quota_document(name: str) -> None:
        found = (await store.read([name])).get(name)
        if found is None:
            return
        document, version = found
        state = packing.unpack(document)
        tried = quota.try_early(state, now)
        if tried is not state and tried.cooldown is not None:
            await store.commit(name, dict(document) | {"cooldown": list(tried.cooldown)}, version)
            ended.append(f"quota {'/'.join(name.split(':')[1:])}")

    await _tried(DOCUMENT, health_document)
    for owner in dict.fromkeys(owner for owner in keys.values() if owner is not None):
        for name in await store.scan(f"quota:{quoted(owner, safe='')}:"):
            await _tried(name, functools.partial(quota_document, name))
    return ended


async def _tried(name: str, change: Callable[[], Awaitable[None]]) -> None:
    for _ in range(TRIES):
        with suppress(ConflictError):
            return await change()
    raise StoreUnavailableError(f"document {name!r} changed {TRIES} times meanwhile")


# --- a gateway that runs ----------------------------------------------------------------------------------------------


def _told_gateway(settings: Settings, project: str, keys: Keys, *, well: bool) -> Lifted:
    told = Lifted()
    for ids in _batches(keys):
        asked = ids + [("well", "1")] * well + [("all", "1")] * any(keys.values())
        found = _asked_gateway(settings, project, f"/admin/keys/lift?{urlencode(asked)}")
        if found is None:
            break
        told = Lifted(told.ended + found["lifted"], found["simulated"], found["free"])
    return told


def _told_of_refused(settings: Settings, project: str, refused: Mapping[str, str]) -> bool:
    for cause in dict.fromkeys(refused.values()):
        for ids in _batches(key_id for key_id, why in refused.items() if why == cause):
            path = f"/admin/keys/aside?{urlencode([('cause', cause), *ids])}"
            if _asked_gateway(settings, project, path) is None:
                return False
    return True


def _batches(keys: Iterable[str]) -> list[list[tuple[str, str]]]:
    asked = [("id", key_id) for key_id in keys]
    return [asked[first : first + IDS_AT_ONCE] for first in range(0, len(asked), IDS_AT_ONCE)]


def _asked_gateway(settings: Settings, project: str, path: str) -> dict[str, Any] | None:
    """The answer of the gateway of POLLUX_URL, or for keys of this machine of a gateway here, if there is one. If
    POLLUX_URL names one that does not answer, the user is told."""
    from pollux.cli.watch import AskError, admin_token, ask

    if not settings.url and project:
        return None  # a gateway of this machine need not be that of those keys
    try:
        return ask(settings.gateway_url, path, admin_token(settings), method="POST")
    except AskError as error:
        if settings.url:
            print(f"pollux keys: the gateway was not told: {error}", file=sys.stderr)
        return None
