"""The ASGI app: its parts, start and stop."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from pollux.backends.blobs.contract import Blobs
from pollux.backends.keys.contract import Keyring
from pollux.backends.keys.tokens import TokenSource
from pollux.backends.store.contract import Store
from pollux.backends.upstream import Upstream
from pollux.gemini.catalog import Catalog
from pollux.pool.pool import Pool
from pollux.pool.projects import Projects
from pollux.relay.attempt import Attempts
from pollux.relay.client import Receive, Scope, Send
from pollux.relay.journal import Journal
from pollux.relay.retry import Relay
from pollux.resources.ask import Asker
from pollux.resources.listing import Listing
from pollux.resources.locate import Locator
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.wiring import PooledFiles
from pollux.resources.uploads import Uploads
from pollux.server.admission import Reception
from pollux.server.routes import Routes
from pollux.settings import Settings


async def close(*parts: object) -> None:
    """What has nothing open has no `close`."""
    for part in parts:
        if (ends := getattr(part, "close", None)) is not None:
            await ends()


class App:
    """One gateway. `start` before the first request, `stop` after the last. `wiring` makes its parts."""

    def __init__(
        self,
        settings: Settings,
        tokens: TokenSource,
        keyring: Keyring,
        store: Store,
        upstream: Upstream,
        catalog: Catalog,
        blobs: Blobs | None = None,
    ) -> None:
        """`blobs`: with POLLUX_FILES=pooled."""
        self.settings = settings
        self.tokens = tokens
        self.keyring = keyring
        self.store = store
        self.upstream = upstream
        self.journal = Journal()
        self.projects = Projects(store, keyring, catalog)
        self.pool = Pool(settings, self.projects)
        self.ownership = Ownership(self.projects)
        attempts = Attempts(self.pool, upstream)
        asker = Asker(attempts)
        self.pool.recovery.free_call = asker.test_key
        locator = Locator(Relay(attempts, asker.count_tokens), self.ownership, asker)
        listing = Listing(attempts, asker, locator, self.ownership)
        uploads = Uploads(self.pool, attempts.upstream, self.ownership)
        self.pooled_files: PooledFiles | None = None
        if blobs is not None:
            self.pooled_files = PooledFiles(self.pool, self.ownership, attempts, asker, blobs)
            locator.pooled, uploads.pooled = self.pooled_files.access, self.pooled_files.uploads
        self.reception = Reception(settings, tokens, self.pool, uploads, self.journal)
        self.routes = Routes(self, counted=locator.counted, listed=listing.run, free=locator.free)

    async def start(self) -> None:
        """Ask all that is far away at once. A failure leaves nothing open."""
        asked: list[Awaitable[Any]] = [self.store.open(), self.keyring.keys(), self.tokens.tokens()]
        if self.pooled_files is not None:
            asked.append(self.pooled_files.open())
        try:
            for failure in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure
            await self.projects.ready()
        except BaseException:
            await self.close()
            raise

    async def stop(self) -> None:
        """Commit what is not committed yet, and give back what was reserved ahead."""
        try:
            await self.projects.close()
        finally:
            await self.close()

    async def close(self) -> None:
        await close(self.pool.recovery, self.pooled_files, self.upstream, self.store, self.keyring, self.tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self.routes.serve(scope, receive, send)
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
