"""POLLUX_FILES=pooled: its parts put together, opened and closed."""

import secrets
from typing import Any

from pollux.backends.blobs.contract import Blobs
from pollux.pool.pool import Pool
from pollux.relay.attempt import Attempts
from pollux.resources.ask import Questions
from pollux.resources.ownership import Affinity
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.copies import Copies
from pollux.resources.pooled.keep import Keeping
from pollux.resources.pooled.placement import Using
from pollux.resources.pooled.records import Shelf
from pollux.resources.pooled.upload_to_google import Sender
from pollux.resources.pooled.uploads import Receiving


class Pooling:
    def __init__(
        self,
        pool: Pool,
        affinity: Affinity,
        attempts: Attempts,
        questions: Questions,
        blobs: Blobs,
    ) -> None:
        instance = secrets.token_hex(6)
        # A bucket has a lifecycle of its own; a folder has nobody else.
        self._contents = Contents(blobs, pool.now, sweeps=pool.settings.blobs_url.startswith("file:"))
        shelf = Shelf(pool.projects.store_health)
        sender = Sender(attempts, questions)
        self._copies = Copies(shelf, self._contents, sender, instance, lingers=not pool.settings.in_cloud)
        self._keeping = Keeping(pool, affinity, shelf, self._contents, sender, instance)
        self.receiving = Receiving(pool, shelf, self._contents, self._keeping, sender)
        self.using = Using(pool, affinity, shelf, self._contents, self._copies, sender)

    async def open(self) -> None:
        await self._contents.open()

    async def close(self) -> None:
        await self._copies.close()
        await self._contents.close()

    def as_json(self) -> dict[str, Any]:
        """For an operator: what this instance did with files, and how the blob store does."""
        counts = {"uploaded": self._keeping.uploaded, "known_again": self._keeping.found, "copied": self._copies.made}
        return {**counts, **self._contents.as_json()}
