"""One gateway: its parts, start and stop."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from pollux.backends.blobs.contract import Blobs
from pollux.backends.keys.contract import Keyring
from pollux.backends.keys.tokens import TokenSource
from pollux.backends.store.contract import Store
from pollux.backends.upstream import Upstream
from pollux.gemini.catalog import Catalog
from pollux.pool.pool import Pool
from pollux.pool.projects import Projects
from pollux.relay.attempt import Attempts
from pollux.relay.journal import Journal
from pollux.relay.retry import Relay
from pollux.resources.ask import Asker
from pollux.resources.listing import Listing
from pollux.resources.locate import Locator
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.wiring import PooledFiles
from pollux.resources.uploads import Uploads
from pollux.server.admission import Admission
from pollux.server.routes import Routes
from pollux.settings import Settings

if TYPE_CHECKING:
    from pollux.server.admin import Admin


async def close(*parts: object) -> None:
    """Close each part that has a `close`."""
    for part in parts:
        if (ends := getattr(part, "close", None)) is not None:
            await ends()


class App:
    """`start` it before the first request, `stop` it after the last. `routes` is its ASGI app."""

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
            self.pooled_files = PooledFiles(self.pool, self.ownership, asker, blobs)
            locator.pooled, uploads.pooled = self.pooled_files.access, self.pooled_files.uploads
        self.admission = Admission(settings, tokens, self.pool, uploads, self.journal)
        self.routes = Routes(
            settings,
            self.admission,
            self.admin,
            located=locator.serve,
            listed=listing.run,
        )

    def admin(self) -> "Admin":
        from pollux.server.admin import Admin  # imports Starlette

        return Admin(self.pool, self.tokens, self.journal, self.ownership, self.pooled_files)

    async def start(self) -> None:
        """Open the store, and read keys and tokens, all at once. If one fails, nothing stays open."""
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
        """Commit what is not committed yet, give back slots that were reserved ahead, and close everything."""
        try:
            await self.projects.close()
        finally:
            await self.close()

    async def close(self) -> None:
        await close(self.pool.recovery, self.pooled_files, self.upstream, self.store, self.keyring, self.tokens)
