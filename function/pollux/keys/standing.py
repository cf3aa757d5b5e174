"""What the gateways' store holds against keys, for the commands: whose store it is, and what ends with a new value."""

import sys
from collections.abc import Callable
from pathlib import Path

from pollux import health
from pollux.settings import Settings
from pollux.store import ConflictError, Store, StoreError, StoreUnavailableError, open_store

DOCUMENT = "health"
TRIES = 10


def shares_store(settings: Settings, project: str) -> bool:
    """Whether the store of these settings is that of the gateways whose keys are meant; `project` "": this machine.

    Without POLLUX_STORE it is a file of this machine, which knows of no key of a project that is only named.
    """
    if settings.store_url.startswith("memory:"):
        return False
    if project and settings.secrets:
        return project == settings.secrets
    return bool(settings.store) or not project


async def forgive(settings: Settings, project: str, key_id: str, open_: Callable[[str], Store] = open_store) -> None:
    """A key has a new value: why the old one was set aside says nothing of it. Gateways that run find that out
    themselves; those that start later read it. A store that fails is told and ends nothing: the value is in place."""
    if not shares_store(settings, project) or _unused(settings):
        return
    try:
        store = open_(settings.store_url)
        try:
            await store.open()
            await _cleared(store, key_id)
        finally:
            await store.close()
    except (StoreError, ValueError, OSError) as error:
        print(
            f"pollux keys: if {key_id} was set aside, it may stay so until it is tried again: {error}", file=sys.stderr
        )


def _unused(settings: Settings) -> bool:
    """No gateway has run here; nor is its file made for a question."""
    return not settings.store and not Path(settings.store_url.removeprefix("sqlite:///")).exists()


async def _cleared(store: Store, key_id: str) -> None:
    """Only this entry goes; the rest of the document, its writers included, stays as it was read."""
    for _ in range(TRIES):
        found = (await store.read([DOCUMENT])).get(DOCUMENT)
        if found is None or key_id not in health.unpack(found[0]).keys:
            return
        document, version = found
        others = {name: entry for name, entry in document["keys"].items() if name != key_id}
        try:
            await store.commit(DOCUMENT, document | {"keys": others}, version)
        except ConflictError:
            continue
        return
    raise StoreUnavailableError(f"document {DOCUMENT!r} changed {TRIES} times meanwhile")
