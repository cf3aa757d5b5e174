"""What a gateway has started with, in one line without a secret."""

import os
from collections.abc import Sequence
from pathlib import Path

from pollux.auth import LocalTokens
from pollux.keys import Key
from pollux.settings import Settings
from pollux.upstream import way_to


def ready(settings: Settings, keys: Sequence[Key], local: LocalTokens | None) -> str:
    """`local`: the tokens of this machine, if they were taken."""
    emulator = os.environ.get("FIRESTORE_EMULATOR_HOST") if settings.store.startswith("firestore://") else ""
    store = settings.store_url + (f" (emulator {emulator})" if emulator else "")
    projects = len({key.project for key in keys})
    counted = f"{len(keys)} key{'s' * (len(keys) != 1)} of {projects} project{'s' * (projects != 1)}"
    counted = counted if keys else "NO KEY (every request gets 503: add one with `pollux keys add`)"
    files = f"files pooled in {settings.blobs_url}, " if settings.files == "pooled" else ""
    tokens = f"tokens from {_sources(settings, local)}"
    upstream = f"upstream {settings.upstream} ({way_to(settings.upstream, settings.http)})"
    return f"ready: store {store}, {files}{counted}, {tokens}, {upstream}"


def _sources(settings: Settings, local: LocalTokens | None) -> str:
    sources = ["the settings"] if settings.token or settings.admin_token else []
    if settings.secrets:
        sources.append(f"Secret Manager of {settings.secrets}")
    if local is not None:
        sources.append(str(Path(settings.data) / "tokens.json"))
    return " and ".join(sources)
