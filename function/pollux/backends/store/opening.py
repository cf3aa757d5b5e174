"""Opens the store that a URL names. Imports an implementation only if it is used."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pollux.backends.store.contract import Store, StoreError
from pollux.settings import ENVIRON, quiet_grpc


def open_store(url: str, clock: Callable[[], float] = time.time, environ: Mapping[str, str] = ENVIRON) -> Store:
    """The store that a URL names; `await store.open()` then connects it. StoreError if the URL names none.

    As in SQLAlchemy, what follows the three slashes of `sqlite:///` is the path: `sqlite:////var/lib/pollux.db` (four)
    is absolute, `sqlite:///pollux.db` lies in the working directory, `sqlite:///~/pollux.db` in the home directory. It
    is taken literally: no percent-encoding, no parameters.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory" and not rest:
        from pollux.backends.store.memory import MemoryStore

        return MemoryStore(clock)
    if scheme == "sqlite" and rest.startswith("/") and "\0" not in rest:
        if rest[1:] in ("", ":memory:"):
            raise StoreError(f"store {url} names no file: use sqlite:///PATH, or memory:// for none")
        from pollux.backends.store.sqlite import SqliteStore

        try:
            return SqliteStore(Path(rest[1:]).expanduser(), clock)
        except RuntimeError as error:  # what expanduser says of an unknown ~user
            raise StoreError(f"store {url}: {error}; write the path in full") from None
    if scheme == "firestore":
        return _firestore(url, rest, clock, environ)
    raise StoreError(
        f"store {url!r} is not known: use sqlite:///PATH (four slashes if absolute), firestore://PROJECT[/DATABASE] or "
        "memory://"
    )


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
