"""Makes a gateway from settings: the catalog, the keyring, the tokens, the store, the upstream, the blob store."""

import asyncio
import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from pollux.backends.blobs.contract import BlobError, Blobs
from pollux.backends.blobs.opening import open_blobs
from pollux.backends.keys.contract import Key, Keyring, KeySourceError, Secret
from pollux.backends.keys.tokens import JoinedTokens, LocalTokens, TokenError, Tokens, TokenSource, load_or_make
from pollux.backends.store.contract import Store, StoreError
from pollux.backends.store.opening import open_store
from pollux.backends.transport import open_upstream, transport_for
from pollux.backends.upstream import Upstream
from pollux.gemini.catalog import Catalog, CatalogError, NeverBelowError
from pollux.server.app import App, close
from pollux.settings import Settings, SettingsError

DEMO_KEYS = 4
START_ERRORS = (SettingsError, TokenError, KeySourceError, StoreError)
"""What an operator can mend: one line is enough to say why the gateway does not start."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that has not started yet."""

    app: App
    keys: Sequence[Key]
    local: LocalTokens | None
    """The tokens of this machine, if they are used."""
    simulated: bool

    @property
    def ready(self) -> str:
        return ready(self.app.settings, self.keys, self.local)


async def open_gateway(settings: Settings, stack: contextlib.ExitStack, *, demo: bool = False) -> Gateway:
    """For `pollux serve` and the Functions Framework alike. If it fails, nothing stays open.

    The gateway stands in front of a simulated Gemini if `demo` is set, or if the simulator is installed and neither
    keys nor an upstream are configured (never in the cloud). The simulator runs until the stack ends.
    """
    catalog = load_catalog(settings)
    keyring: Keyring | None = None
    source: TokenSource | None = None
    try:
        keyring = FixedKeyring(()) if demo else open_keyring(settings)
        source = token_source(settings)
        for failure in await asyncio.gather(keyring.keys(), source.tokens(), return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure
        keys = await keyring.keys()
        configured = settings.keys_file or settings.secrets or settings.upstream != Settings().upstream
        simulated = demo or not (keys or configured or settings.in_cloud or not simulator_is_installed())
        if simulated:
            settings, keyring = _simulated(settings, stack)
            keys = await keyring.keys()
        source, local = await with_local_tokens(settings, source)  # last: a new token is shown only once
        app = make_app(settings, source, keyring=keyring, catalog=catalog)
    except BaseException:
        with contextlib.suppress(Exception):
            await close(keyring, source)
        raise
    return Gateway(app, keys, local, simulated)


def make_app(
    settings: Settings,
    tokens: TokenSource,
    *,
    keyring: Keyring,
    store: Store | None = None,
    upstream: Upstream | None = None,
    blobs: Blobs | None = None,
    catalog: Catalog | None = None,
) -> App:
    """Anything not given is made from the settings."""
    if blobs is None and settings.files == "pooled":
        try:
            blobs = open_blobs(settings.blobs_url, settings.environ)
        except BlobError as error:
            raise SettingsError(f"POLLUX_BLOBS: {error}") from None
    return App(
        settings,
        tokens,
        keyring,
        store or open_store(settings.store_url, environ=settings.environ),
        upstream
        or open_upstream(
            settings.upstream, timeout=settings.timeout, connect_timeout=settings.connect_timeout, http=settings.http
        ),
        catalog or load_catalog(settings),
        blobs,
    )


def builtin_catalog() -> str:
    """The text of the catalog that comes with Pollux."""
    return files("pollux.gemini").joinpath("catalog.toml").read_text(encoding="utf-8")


def load_catalog(settings: Settings) -> Catalog:
    own = None
    if settings.catalog:
        try:
            own = Path(settings.catalog).expanduser().read_text()
        except OSError as error:
            raise SettingsError(f"POLLUX_CATALOG={settings.catalog}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"POLLUX_CATALOG={settings.catalog}: not UTF-8 text") from None
    try:
        return Catalog.parse(builtin_catalog(), own, settings.never_below)
    except NeverBelowError as error:
        raise SettingsError(f"POLLUX_NEVER_BELOW={','.join(settings.never_below)}: {error}") from None
    except CatalogError as error:
        raise SettingsError(f"POLLUX_CATALOG={settings.catalog}: {error}") from None


# --- keys ------------------------------------------------------------------------------------------------------------


class FixedKeyring:
    """Keys that never change: those of the demo."""

    simulated = True

    def __init__(self, keys: Sequence[tuple[Key, str]]) -> None:
        self._keys = tuple(key for key, _ in keys)
        self._values = {key.id: Secret(value) for key, value in keys}

    async def keys(self) -> tuple[Key, ...]:
        return self._keys

    async def value(self, key_id: str) -> Secret:
        return self._values[key_id]

    async def reread(self, key_id: str) -> bool:
        return False


def open_keyring(settings: Settings) -> Keyring:
    if settings.secrets:
        from pollux.backends.keys.secret_manager import SecretManagerKeyring

        return SecretManagerKeyring(settings.secrets)
    from pollux.backends.keys.local import open_local

    return open_local(settings)


def simulator_is_installed() -> bool:
    """Neither the zip of the function nor the image has it."""
    return importlib.util.find_spec("gemini_simulator") is not None


def _simulated(settings: Settings, stack: contextlib.ExitStack) -> tuple[Settings, Keyring]:
    """Start a simulated Gemini; the settings and keys for it. If a store is configured, it is used."""
    if not simulator_is_installed():
        raise SettingsError("--demo needs the simulator, which is not installed here: it comes with a checkout")
    from gemini_simulator import DEFAULTS, Simulator, demo_keys, running

    made = demo_keys(DEMO_KEYS)
    keys = [(Key(id_, project, limits={"*": DEFAULTS}), value) for id_, project, value in made]
    url = stack.enter_context(running(Simulator(made, DEFAULTS, keep=0)))
    return replace(settings, upstream=url, store=settings.store or "memory://"), FixedKeyring(keys)


# --- tokens ----------------------------------------------------------------------------------------------------------


def token_source(settings: Settings) -> TokenSource:
    """The tokens of the settings and of Secret Manager."""
    own = Tokens(settings.token, settings.admin_token, query_token=settings.query_token)
    if not settings.secrets:
        return own
    from pollux.backends.keys.secret_manager import SecretManagerTokens

    far = SecretManagerTokens(settings.secrets, query_token=settings.query_token)
    return JoinedTokens(own, far) if own.for_clients or own.for_admin else far


async def with_local_tokens(settings: Settings, source: TokenSource) -> tuple[TokenSource, LocalTokens | None]:
    """Add the tokens of this machine, if `source` has no client token or no admin token.

    On Cloud Run none are made: each instance would make its own, and nobody would see them.
    """
    known = await source.tokens()
    if settings.in_cloud and known.complete and not known.for_clients and not known.for_admin:
        there = f"as a secret pollux-token-NAME of {settings.secrets} " if settings.secrets else ""
        raise TokenError(f"there is no token: add one {there}(pollux tokens add), or set POLLUX_TOKEN")
    if settings.in_cloud or not known.complete or (known.for_clients and known.for_admin):
        return source, None
    local = load_or_make(Path(settings.data))
    clients = () if known.for_clients else (local.client,)
    admins = () if known.for_admin else (local.admin,)
    joined = JoinedTokens(Tokens(clients, admins, query_token=settings.query_token), source)
    return joined, local if clients else replace(local, client="", made=False)


# --- the line that says what a gateway uses --------------------------------------------------------------------------


def ready(settings: Settings, keys: Sequence[Key], local: LocalTokens | None) -> str:
    """One line without a secret."""
    emulator = settings.environ.get("FIRESTORE_EMULATOR_HOST") if settings.store.startswith("firestore://") else ""
    store = settings.store_url + (f" (emulator {emulator})" if emulator else "")
    projects = len({key.project for key in keys})
    counted = f"{len(keys)} key{'s' * (len(keys) != 1)} of {projects} project{'s' * (projects != 1)}"
    counted = counted if keys else "NO KEY (every request gets 503: add one with `pollux keys add`)"
    files = f"files pooled in {settings.blobs_url}, " if settings.files == "pooled" else ""
    tokens = f"tokens from {_sources(settings, local)}"
    upstream = f"upstream {settings.upstream} ({transport_for(settings.upstream, settings.http)})"
    return f"ready: store {store}, {files}{counted}, {tokens}, {upstream}"


def _sources(settings: Settings, local: LocalTokens | None) -> str:
    sources = ["the settings"] if settings.token or settings.admin_token else []
    if settings.secrets:
        sources.append(f"Secret Manager of {settings.secrets}")
    if local is not None:
        sources.append(str(Path(settings.data) / "tokens.json"))
    return " and ".join(sources)
