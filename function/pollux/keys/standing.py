"""What is held against keys, in the gateways' store and in a gateway that runs, and how commands end it."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote as quoted
from urllib.parse import urlencode

from pollux import health, packing, quota
from pollux.settings import Settings
from pollux.store import ConflictError, Store, StoreError, StoreUnavailableError, open_store

DOCUMENT = "health"
TRIES = 10
IDS_AT_ONCE = 100
"""In one request to a gateway, which takes them in its address."""

Keys = Mapping[str, str | None]
"""Key -> its project, if what is held against that ends too."""


def shares_store(settings: Settings, project: str) -> bool:
    """Whether the store of these settings is that of the gateways whose keys are meant; `project` "": this machine.

    Without POLLUX_STORE it is a file of this machine, which knows of no key of a project that is only named.
    """
    if settings.store_url.startswith("memory:"):
        return False
    if project and settings.secrets:
        return project == settings.secrets
    return bool(settings.store) or not project


class Lifted(NamedTuple):
    ended: list[str] = []  # noqa: RUF012
    """What was held against the keys, in words."""
    simulated: bool = False
    """The gateway that runs is in front of a simulated Gemini."""
    free: Mapping[str, float] = {}
    """Project -> when a refusal named a quota of the free tier."""


async def lift(
    settings: Settings, project: str, keys: Keys, *, well: bool, open_: Callable[[str], Store] = open_store
) -> Lifted:
    """Nothing is held against these keys any more: in the store, for gateways that start later or look again, and in
    one that runs. `well`: Google took them just now; else they count as unchecked.

    A store or gateway that fails is told and ends nothing: what the command did to the key is done.
    """
    told = _told_gateway(settings, project, keys, well=well) if keys else Lifted()
    if not keys or not shares_store(settings, project) or (_unused(settings) and not well):
        return told
    try:
        store = open_(settings.store_url)
        try:
            await store.open()
            stored = await _lifted(store, keys, well=well)
        finally:
            await store.close()
    except (StoreError, ValueError, OSError) as error:
        print(
            f"pollux keys: if {', '.join(keys)} was set aside, it may stay so until it is tried again: {error}",
            file=sys.stderr,
        )
        stored = []
    return told._replace(ended=list(dict.fromkeys(told.ended + stored)))


async def forgive(
    settings: Settings,
    project: str,
    key_id: str,
    open_: Callable[[str], Store] = open_store,
    *,
    well: bool = False,
) -> Lifted:
    """A key has a new value, or is used again: why it was set aside before says nothing of it."""
    return await lift(settings, project, {key_id: None}, well=well, open_=open_)


async def leave_aside(
    settings: Settings, project: str, refused: Mapping[str, str], open_: Callable[[str], Store] = open_store
) -> bool:
    """Google refused these keys just now (key -> cause): gateways leave them aside and ask about them again. True: it
    is written in their store, or a gateway was told."""
    if not refused:
        return True
    kept = _told_of_refused(settings, project, refused)
    if not shares_store(settings, project):
        return kept
    try:
        store = open_(settings.store_url)
        try:
            await store.open()
            await _tried(DOCUMENT, lambda: _refused(store, refused))
        finally:
            await store.close()
    except (StoreError, ValueError, OSError) as error:
        print(f"pollux keys: that {', '.join(refused)} is refused could not be written: {error}", file=sys.stderr)
        return kept
    return True


async def _refused(store: Store, refused: Mapping[str, str]) -> bool:
    from pollux.verdict.causes import resting_time

    found = (await store.read([DOCUMENT])).get(DOCUMENT)
    document, version = found or ({}, None)
    value = before = health.unpack(document) if found else health.Health()
    for key_id, cause in refused.items():
        value = health.set_aside(value, store.now(), "keys", key_id, cause, *resting_time(cause))
    if value is not before:
        await store.commit(DOCUMENT, dict(document) | health.pack(value), version)
    return True


def _unused(settings: Settings) -> bool:
    """No gateway has run here; nor is its file made for a question."""
    return not settings.store and not Path(settings.store_url.removeprefix("sqlite:///")).exists()


async def _lifted(store: Store, keys: Keys, *, well: bool) -> list[str]:
    """Only what is held against these goes; the rest of the documents, their writers included, stays as it was."""
    ended: list[str] = []
    now = store.now()

    async def health_document() -> bool:
        found = (await store.read([DOCUMENT])).get(DOCUMENT)
        if found is None and not well:
            return True
        document, version = found or ({}, None)
        value = before = health.unpack(document) if found else health.Health()
        held = [words for key_id, owner in keys.items() for words in health.held(value, now, key_id, owner)]
        for key_id, owner in keys.items():
            value = health.lifted(value, key_id, owner, well=well)
        if value is not before:
            await store.commit(DOCUMENT, dict(document) | health.pack(value), version)
        ended.extend(held)
        return True

    await _tried(DOCUMENT, health_document)
    for owner in dict.fromkeys(owner for owner in keys.values() if owner is not None):
        for name in await store.scan(f"quota:{quoted(owner, safe='')}:"):

            async def quota_document(name: str = name) -> bool:
                found = (await store.read([name])).get(name)
                if found is None:
                    return True
                document, version = found
                state = packing.unpack(document)
                tried = quota.try_early(state, now)
                if tried is not state and tried.cooldown is not None:
                    await store.commit(name, dict(document) | {"cooldown": list(tried.cooldown)}, version)
                    ended.append(f"quota {'/'.join(name.split(':')[1:])}")
                return True

            await _tried(name, quota_document)
    return ended


async def _tried(name: str, change: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(TRIES):
        with suppress(ConflictError):
            await change()
            return
    raise StoreUnavailableError(f"document {name!r} changed {TRIES} times meanwhile")


# --- a gateway that runs ----------------------------------------------------------------------------------------------


def _told_gateway(settings: Settings, project: str, keys: Keys, *, well: bool) -> Lifted:
    told = Lifted()
    ids = list(keys)
    for first in range(0, len(ids), IDS_AT_ONCE):
        asked = [("id", key_id) for key_id in ids[first : first + IDS_AT_ONCE]]
        asked += [("well", "1")] * well + [("all", "1")] * any(keys.values())
        found = asked_gateway(settings, project, f"/admin/keys/lift?{urlencode(asked)}", method="POST")
        if found is None:
            break
        told = Lifted(told.ended + found["lifted"], found["simulated"], found["free"])
    return told


def _told_of_refused(settings: Settings, project: str, refused: Mapping[str, str]) -> bool:
    for cause in dict.fromkeys(refused.values()):
        ids = [key_id for key_id, why in refused.items() if why == cause]
        for first in range(0, len(ids), IDS_AT_ONCE):
            asked = [("cause", cause), *(("id", key_id) for key_id in ids[first : first + IDS_AT_ONCE])]
            path = f"/admin/keys/aside?{urlencode(asked)}"
            if asked_gateway(settings, project, path, method="POST") is None:
                return False
    return True


def asked_gateway(settings: Settings, project: str, path: str, *, method: str = "GET") -> dict[str, Any] | None:
    """What the running gateway says: that of POLLUX_URL, or for this machine's keys that of this machine, if there is
    one. One that was named and does not answer is told of."""
    from pollux.cli_watch import AskError, ask, kept_token

    if not settings.url and project:
        return None  # a gateway of this machine need not be that of those keys
    try:
        token = settings.admin_token or kept_token(settings)
        return ask(settings.gateway_url, path, token, method=method)
    except AskError as error:
        if settings.url:
            print(f"pollux keys: the gateway was not told: {error}", file=sys.stderr)
        return None
