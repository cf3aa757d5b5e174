"""The ASGI app: routes, start and stop. It wires the parts together; what they do is theirs."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pollux import admin
from pollux.address import inside
from pollux.affinity import Affinity
from pollux.auth import JoinedTokens, LocalTokens, TokenError, Tokens, TokenSource, load_or_make
from pollux.blobs import Blobs
from pollux.catalog import Catalog, CatalogError, NeverBelowError, builtin_text
from pollux.inbound import HEAD_MOST, Receive, Scope, Send, head_size, header
from pollux.journal import Journal
from pollux.keys import Keyring
from pollux.pool import Pool
from pollux.pooled.pooling import Pooling
from pollux.reception import Reception
from pollux.relay import Relay
from pollux.roster import Roster
from pollux.settings import Settings, SettingsError, in_cloud
from pollux.store import Store, open_store
from pollux.uploads import Uploads
from pollux.upstream import Upstream, open_upstream

log = logging.getLogger("pollux")

CORS_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
CORS_EXPOSED = (
    b", ".join(
        b"x-pollux-" + name
        for name in (b"request-id", b"key", b"model", b"fallback", b"attempts", b"wait-ms", b"not-asked")
    )
    + b", retry-after, "
    + b", ".join(b"x-goog-upload-" + name for name in (b"url", b"status", b"chunk-granularity", b"size-received"))
)


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
        return Catalog.parse(builtin_text(), own, settings.never_below)
    except NeverBelowError as error:
        raise SettingsError(f"POLLUX_NEVER_BELOW={','.join(settings.never_below)}: {error}") from None
    except CatalogError as error:
        raise SettingsError(f"POLLUX_CATALOG={settings.catalog}: {error}") from None


def open_keyring(settings: Settings) -> Keyring:
    if settings.secrets:
        from pollux.keys.secret_manager import SecretManagerKeyring

        return SecretManagerKeyring(settings.secrets)
    from pollux.keys.local import LocalKeyring, home_folder

    keys_file = Path(settings.keys_file).expanduser() if settings.keys_file else None
    data = Path(settings.data)
    return LocalKeyring(keys_file, data=data, folder=Path.cwd(), environ=os.environ, home=home_folder())


async def open_tokens(settings: Settings) -> tuple[TokenSource, LocalTokens | None]:
    """The tokens of the settings and, beside them, those of Secret Manager; where neither has one, this machine's own.

    On Cloud Run there are none of the latter: a token that nobody chose would be known to nobody, or to everybody.
    """
    own = Tokens(settings.token, settings.admin_token, query_token=settings.query_token)
    source: TokenSource = own
    if settings.secrets:
        from pollux.keys.secret_manager import SecretManagerTokens

        far = SecretManagerTokens(settings.secrets, query_token=settings.query_token)
        source = JoinedTokens(own, far) if own.for_clients or own.for_admin else far
    try:
        return await _with_local(settings, source)
    except BaseException:
        await close(source)
        raise


async def _with_local(settings: Settings, source: TokenSource) -> tuple[TokenSource, LocalTokens | None]:
    known = await source.tokens()
    if in_cloud() and known.complete and not known.for_clients and not known.for_admin:
        there = f"as a secret pollux-token-NAME of {settings.secrets} " if settings.secrets else ""
        raise TokenError(f"no token is there: add one {there}(pollux tokens add), or set POLLUX_TOKEN")
    if in_cloud() or not known.complete or (known.for_clients and known.for_admin):
        return source, None
    local = load_or_make(Path(settings.data))
    clients = () if known.for_clients else (local.client,)
    admins = () if known.for_admin else (local.admin,)
    beside = Tokens(clients, admins, query_token=settings.query_token)
    return JoinedTokens(beside, source), local if clients else replace(local, client="", made=False)


async def close(*parts: object) -> None:
    """What has nothing open has no `close`."""
    for part in parts:
        if (ends := getattr(part, "close", None)) is not None:
            await ends()


class App:
    """One gateway. `start` before the first request, `stop` after the last."""

    def __init__(
        self,
        settings: Settings,
        tokens: TokenSource,
        *,
        store: Store | None = None,
        keyring: Keyring | None = None,
        upstream: Upstream | None = None,
        blobs: Blobs | None = None,
        catalog: Catalog | None = None,
    ) -> None:
        self.settings = settings
        self.tokens = tokens
        self.journal = Journal()
        self.store = store or open_store(settings.store_url)
        self.keyring = keyring or open_keyring(settings)
        self.upstream = upstream or open_upstream(
            settings.upstream, timeout=settings.timeout, connect_timeout=settings.connect_timeout, http=settings.http
        )
        self.roster = Roster(self.store, self.keyring, catalog or load_catalog(settings))
        self.pool = Pool(settings, self.roster)
        self.affinity = Affinity(self.roster)
        relay = Relay(self.pool, self.upstream, self.affinity)
        uploads = Uploads(self.pool, self.upstream, self.affinity)
        self.pooling: Pooling | None = None
        if settings.files == "pooled":
            self.pooling = Pooling(self.pool, self.affinity, self.upstream, relay.attempts, relay.questions, blobs)
            relay.owners.pooled, uploads.receiving = self.pooling.using, self.pooling.receiving
        self.reception = Reception(settings, tokens, relay, uploads, self.journal)

    async def start(self) -> None:
        """All that is far is asked at once. What fails leaves nothing open."""
        asked: list[Awaitable[Any]] = [self.store.open(), self.keyring.keys(), self.tokens.tokens()]
        if self.pooling is not None:
            asked.append(self.pooling.open())
        try:
            for failure in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure
            await self.roster.ready()
        except BaseException:
            await self.close()
            raise

    async def stop(self) -> None:
        """Commit what still rides, and give back what was taken ahead."""
        try:
            await self.roster.close()
        finally:
            await self.close()

    async def close(self) -> None:
        await close(self.pool.recovery, self.pooling, self.upstream, self.store, self.keyring, self.tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)
            case "websocket":  # the Live API is not served: refused before it is accepted
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": "the Live API is not served here"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = inside(scope, self.settings.public_url)
        path: str = scope["path"]
        cors = self._cors(scope)
        if is_health(scope):
            await health(send, cors)
        elif (path.startswith("/admin/") or path == "/admin") and head_size(scope) <= HEAD_MOST:
            await admin.serve(self, scope, send)
        elif scope["method"] == "OPTIONS":
            await _plain(send, 204, b"", [(b"allow", CORS_METHODS), *self._preflight(scope, cors)])
        else:
            await self.reception.serve(scope, receive, send, cors)

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Off unless POLLUX_CORS_ORIGINS names the page's origin."""
        allowed = self.settings.cors_origins
        if not allowed:
            return []
        origin = header(scope["headers"], b"origin") or ""
        if "*" not in allowed and origin not in allowed:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1") or b"*"),
            (b"access-control-expose-headers", CORS_EXPOSED),
            (b"vary", b"origin"),
        ]

    def _preflight(self, scope: Scope, cors: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        if len(cors) < 2:
            return list(cors)
        wanted = header(scope["headers"], b"access-control-request-headers") or "*"
        return [
            *cors,
            (b"access-control-allow-methods", CORS_METHODS),
            (b"access-control-allow-headers", wanted.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]


def is_health(scope: Scope) -> bool:
    return scope["path"] == "/health" and scope["method"] in ("GET", "HEAD")


async def health(send: Send, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await _plain(send, 200, b'{"status":"ok"}\n', [(b"content-type", b"application/json"), *extra])


async def _plain(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
