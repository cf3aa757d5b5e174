"""The ASGI app: routes, start and stop. It wires the parts together; what they do is theirs."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pollux import admin
from pollux.auth import Tokens
from pollux.catalog import Catalog, CatalogError, builtin_text
from pollux.inbound import Receive, Scope, Send, header
from pollux.journal import Journal
from pollux.keys import Keyring
from pollux.pool import Pool
from pollux.reception import Reception
from pollux.relay import Relay
from pollux.roster import Roster
from pollux.settings import Settings, SettingsError
from pollux.store import Store, open_store
from pollux.upstream import HttpUpstream, Upstream

log = logging.getLogger("pollux")

CORS_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
CORS_EXPOSED = b"x-pollux-request-id, x-pollux-key, x-pollux-model, x-pollux-attempts, x-pollux-wait-ms, retry-after"


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
        return Catalog.parse(builtin_text(), own)
    except CatalogError as error:
        raise SettingsError(f"POLLUX_CATALOG={settings.catalog}: {error}") from None


def open_keyring(settings: Settings) -> Keyring:
    from pollux.keys.local import LocalKeyring

    if settings.secrets:
        raise SettingsError(
            "POLLUX_SECRETS: keys in Secret Manager come with the cloud deployment; not available in this version"
        )
    keys_file = Path(settings.keys_file).expanduser() if settings.keys_file else None
    return LocalKeyring(keys_file, data=Path(settings.data), folder=Path.cwd(), environ=os.environ)


class App:
    """One gateway. `start` before the first request, `stop` after the last."""

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        *,
        store: Store | None = None,
        keyring: Keyring | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        self.settings = settings
        self.tokens = tokens
        self.journal = Journal()
        self.store = store or open_store(settings.store_url)
        self.keyring = keyring or open_keyring(settings)
        self.upstream = upstream or HttpUpstream(
            settings.upstream, timeout=settings.timeout, connect_timeout=settings.connect_timeout
        )
        self.roster = Roster(self.store, self.keyring, load_catalog(settings))
        self.pool = Pool(settings, self.roster)
        self.reception = Reception(settings, tokens, Relay(self.pool, self.upstream), self.journal)

    async def start(self) -> None:
        await self.store.open()
        await self.roster.ready()

    async def stop(self) -> None:
        await self.roster.close()
        await self.upstream.close()
        await self.store.close()

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
        path: str = scope["path"]
        cors = self._cors(scope)
        if path == "/health" and scope["method"] in ("GET", "HEAD"):
            await _plain(send, 200, b'{"status":"ok"}\n', [(b"content-type", b"application/json"), *cors])
        elif path.startswith("/admin/") or path == "/admin":
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


async def _plain(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
