"""Opens the store that a URL names. Imports an implementation only if it is used."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pollux.backends.store.contract import Store, StoreError
from pollux.settings import ENVIRON, STORES, quiet_grpc


def open_store(url: str, clock: Callable[[], float] = time.time, environ: Mapping[str, str] = ENVIRON) -> Store:
    """Raises StoreError if the URL names no store. `await store.open()` then connects it.

    As in SQLAlchemy, the path follows the three slashes of `sqlite:///`: `sqlite:////var/lib/pollux.db` (four) is
    absolute, `sqlite:///pollux.db` is in the working directory, `sqlite:///~/pollux.db` in the home directory. It is
    taken literally: no percent-encoding, no parameters.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory" and not rest:
        from pollux.backends.store.memory import MemoryStore

        return MemoryStore(clock)
    if scheme == "sqlite" and rest.startswith("/") and "\0" not in rest:
        if rest[1:] in ("", ":memory:"):
            raise StoreError(f"store {url} names no file: use sqlite:///PATH, or memory://")
        from pollux.backends.store.sqlite import SqliteStore

        try:
            return SqliteStore(Path(rest[1:]).expanduser(), clock)
        except RuntimeError as error:  # from expanduser, for an unknown ~user
            raise StoreError(f"store {url}: {error}; write the whole path") from None
    if scheme == "firestore":
        return _firestore(url, rest, clock, environ)
    raise StoreError(f"store {url!r} is not known: use {STORES}; an absolute path has four slashes")


def _firestore(url: str, rest: str, clock: Callable[[], float], environ: Mapping[str, str]) -> Store:
    quiet_grpc()
    try:
        from pollux.backends.store.firestore import FirestoreStore
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("google", "grpc"):
            raise
        raise StoreError(f"store {url} needs Google's libraries: pip install 'pollux-gateway[cloud]'") from error
    project, slash, database = rest.partition("/")
    return FirestoreStore(
        project, database if slash else "(default)", clock, emulator=environ.get("FIRESTORE_EMULATOR_HOST", "")
    )
