"""Makes the parts of POLLUX_FILES=pooled, opens and closes them."""

import secrets
from typing import Any

from pollux.backends.blobs.contract import Blobs
from pollux.pool.pool import Pool
from pollux.resources.ask import Asker
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.copies import Copies
from pollux.resources.pooled.keep import Keeper
from pollux.resources.pooled.placement import FileAccess
from pollux.resources.pooled.records import FileRecords
from pollux.resources.pooled.upload_to_google import GoogleFiles
from pollux.resources.pooled.uploads import PooledUploads


class PooledFiles:
    def __init__(self, pool: Pool, ownership: Ownership, asker: Asker, blobs: Blobs) -> None:
        instance = secrets.token_hex(6)
        # A bucket deletes expired blobs by its lifecycle, a folder does not.
        self._contents = Contents(blobs, pool.now, sweeps=pool.settings.blobs_url.startswith("file:"))
        records = FileRecords(pool.projects.store_health)
        google = GoogleFiles(asker)
        self._copies = Copies(records, self._contents, google, instance, lingers=not pool.settings.in_cloud)
        self._keeper = Keeper(pool, ownership, records, self._contents, google, instance)
        self.uploads = PooledUploads(pool, records, self._contents, self._keeper, google)
        self.access = FileAccess(pool, ownership, records, self._contents, self._copies, google)

    async def open(self) -> None:
        await self._contents.open()

    async def close(self) -> None:
        await self._copies.close()
        await self._contents.close()

    def as_json(self) -> dict[str, Any]:
        """For `status`: what this instance did with files, and the blob store's health."""
        counts = {"uploaded": self._keeper.uploaded, "known_again": self._keeper.found, "copied": self._copies.made}
        return {**counts, **self._contents.as_json()}
