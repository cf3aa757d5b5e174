"""What the store and a running gateway hold against keys, and how commands change it."""

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote as quoted
from urllib.parse import urlencode

from pollux.backends.keys.contract import Key
from pollux.backends.store.contract import ConflictError, Store, StoreError, StoreUnavailableError
from pollux.backends.store.opening import open_store
from pollux.pool import health, quota, quota_document
from pollux.settings import Settings

T = TypeVar("T")
DOCUMENT = "health"
TRIES = 10
IDS_AT_ONCE = 100
"""Ids in one request to a gateway, which reads them from the query."""

Keys = Mapping[str, str | None]
"""Key -> its project, or None if only the key itself is meant."""
Open = Callable[[Settings], Store]


def _open(settings: Settings) -> Store:
    return open_store(settings.store_url, environ=settings.environ)


class Lifted(NamedTuple):
    ended: list[str] = []  # noqa: RUF012
    """What was held against the keys, in words."""
    simulated: bool = False
    """The running gateway serves a simulated Gemini."""
    free: Mapping[str, float] = {}
    """Project -> when a refusal named a quota of the free tier."""


def shares_store(settings: Settings, project: str) -> bool:
    """Whether the store of these settings is also that of the gateways that use these keys. `project`: of the Secret
    Manager that holds the keys; "" is this machine.

    Without POLLUX_STORE the store is a file of this machine, which only knows the keys that its own settings name.
    """
    if settings.store_url.startswith("memory:"):
        return False
    if project and settings.secrets:
        return project == settings.secrets
    return bool(settings.store) or not project


# --- reading ----------------------------------------------------------------------------------------------------------


def read_health(settings: Settings, project: str) -> Mapping[str, Any] | None:
    """The health document of the store; None if it is not known."""
    if not shares_store(settings, project):
        return None
    if _unused(settings):
        return {}

    async def read(store: Store) -> Mapping[str, Any]:
        found = await store.read([DOCUMENT])
        return found[DOCUMENT][0] if DOCUMENT in found else {}

    return asyncio.run(_in_store(settings, read, "health is not known"))


def state_of(key: Key, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """The health of a key, as `keys list --json` shows it."""
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


# --- changing ---------------------------------------------------------------------------------------------------------


async def lift(settings: Settings, project: str, keys: Keys, *, well: bool, open_: Open = _open) -> Lifted:
    """End what is held against these keys, in the store and in a running gateway. `well`: Google accepted them just
    now; else they count as unchecked.
    """
    if not keys:
        return Lifted()
    told = Lifted()
    query = [("well", "1")] * well + [("all", "1")] * any(keys.values())
    for found in filter(None, _told(settings, project, "/admin/keys/lift", keys, query)):
        told = Lifted(told.ended + found["lifted"], found["simulated"], found["free"])
    if not shares_store(settings, project) or (_unused(settings) and not well):
        return told
    failed = f"if {', '.join(keys)} was set aside, it may stay so until it is tried again"
    stored = await _in_store(settings, lambda store: _lifted(store, keys, well=well), failed, open_)
    return told._replace(ended=list(dict.fromkeys(told.ended + (stored or []))))


async def leave_aside(settings: Settings, project: str, refused: Mapping[str, str]) -> bool:
    """Google refused these keys just now (key -> cause): gateways set them aside and try them again later. True if the
    store or a running gateway knows it now."""
    if not refused:
        return True
    by_cause: dict[str, list[str]] = {}
    for key_id, cause in refused.items():
        by_cause.setdefault(cause, []).append(key_id)
    told = all(
        answer is not None
        for cause, ids in by_cause.items()
        for answer in _told(settings, project, "/admin/keys/aside", ids, [("cause", cause)])
    )
    if not shares_store(settings, project):
        return told

    async def write(store: Store) -> bool:
        await _tried(DOCUMENT, lambda: _refused(store, refused))
        return True

    failed = f"that {', '.join(refused)} is refused could not be written"
    return await _in_store(settings, write, failed) or told


async def _in_store(
    settings: Settings, use: Callable[[Store], Awaitable[T]], failed: str, open_: Open = _open
) -> T | None:
    """If the store fails, a line on stderr says so and the result is None: the command has done its main work."""
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


def _unused(settings: Settings) -> bool:
    """No gateway has run here. Reading must not make the store's file."""
    return not settings.store and not Path(settings.store_url.removeprefix("sqlite:///")).exists()


async def _refused(store: Store, refused: Mapping[str, str]) -> None:
    from pollux.gemini.verdict.causes import resting_time

    found = (await store.read([DOCUMENT])).get(DOCUMENT)
    document, version = found or ({}, None)
    value = before = health.unpack(document) if found else health.Health()
    for key_id, cause in refused.items():
        value = health.set_aside(value, store.now(), "keys", key_id, cause, *resting_time(cause))
    if value is not before:
        await store.commit(DOCUMENT, dict(document) | health.pack(value), version)


async def _lifted(store: Store, keys: Keys, *, well: bool) -> list[str]:
    """Changes nothing else in the documents."""
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

    async def quota_of(name: str) -> None:
        found = (await store.read([name])).get(name)
        if found is None:
            return
        document, version = found
        state = quota_document.unpack(document)
        tried = quota.try_early(state, now)
        if tried is not state and tried.cooldown is not None:
            await store.commit(name, dict(document) | {"cooldown": list(tried.cooldown)}, version)
            ended.append(f"quota {'/'.join(name.split(':')[1:])}")

    await _tried(DOCUMENT, health_document)
    for owner in dict.fromkeys(owner for owner in keys.values() if owner is not None):
        for name in await store.scan(f"quota:{quoted(owner, safe='')}:"):
            await _tried(name, functools.partial(quota_of, name))
    return ended


async def _tried(name: str, change: Callable[[], Awaitable[None]]) -> None:
    """Make the change, and repeat it after a conflict. `change` reads the document each time."""
    for _ in range(TRIES):
        with suppress(ConflictError):
            return await change()
    raise StoreUnavailableError(f"document {name!r} changed {TRIES} times meanwhile")


def _told(
    settings: Settings, project: str, path: str, ids: Iterable[str], query: list[tuple[str, str]]
) -> Iterator[dict[str, Any] | None]:
    """Sends the ids to a running gateway, in parts. Yields its answers; None, the last, if there is no answer.

    It is the gateway of POLLUX_URL, or for keys of this machine one that runs here. If POLLUX_URL is set and that
    gateway does not answer, a line on stderr says so.
    """
    from pollux.cli.gateway import AskError, admin_token, ask

    if not settings.url and project:  # a gateway of this machine may use other keys
        yield None
        return
    named = [("id", key_id) for key_id in ids]
    for first in range(0, len(named), IDS_AT_ONCE):
        asked = urlencode([*query, *named[first : first + IDS_AT_ONCE]])
        try:
            yield ask(settings.gateway_url, f"{path}?{asked}", admin_token(settings), method="POST")
        except AskError as error:
            if settings.url:
                print(f"pollux keys: the gateway was not told: {error}", file=sys.stderr)
            yield None
            return
