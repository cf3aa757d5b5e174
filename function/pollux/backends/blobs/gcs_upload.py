"""A resumable upload to Cloud Storage: pieces of one object, each taken whole before the next is sent.

After any trouble the service is asked how much it has, and is sent the rest; nothing is guessed.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from pollux.backends.blobs.contract import BlobUnavailableError
from pollux.backends.blobs.gcs_calls import GcsCalls, PassingError, Reply, no_bucket, odd, refused

INCOMPLETE = 308
_HAS = re.compile(r"bytes=0-([0-9]+)")


class Upload:
    """Its session's address is a credential: whoever has it may write. No error and no log names it."""

    def __init__(self, calls: GcsCalls, address: str, subject: str) -> None:
        parts = urlsplit(address)
        self._calls = calls
        self._target = f"{parts.path}?{parts.query}"  # at our own address for the service, wherever it points
        self._subject = subject
        self._at = 0
        """What the service has."""

    async def send(self, data: bytes, *, last: bool) -> dict[str, Any]:
        """The object's description after the last piece. Any other has a multiple of 256 KiB."""
        pace = self._calls.pace(self._subject)
        begin, end = self._at, self._at + len(data)
        total = str(end) if last else "*"
        unsure = False
        while True:
            try:
                reply = await self._put(b"" if unsure else data[self._at - begin :], end, total)
            except PassingError as trouble:
                await pace.rest(trouble)
                unsure = True
                continue
            if reply.status < 300:
                if not last:
                    raise self._lost("was ended by somebody else")
                made = reply.json()
                if made is None:
                    raise odd(self._subject)
                return made
            has = _persisted(reply)
            if not begin <= has <= end:
                raise self._lost(f"has {has} bytes, where {begin} to {end} were sent")
            if has == end and not last:
                self._at = has
                return {}
            if has > self._at:
                pace = self._calls.pace(self._subject)
            elif not unsure:  # else this would go round without end
                await pace.rest(PassingError("Cloud Storage takes nothing"))
            self._at, unsure = has, False

    async def drop(self) -> None:
        """One try: a session that stays is seen by nobody, and ends within a week."""
        await self._calls.once("DELETE", self._target, self._subject, also=(404, 410, 499))

    async def _put(self, data: bytes, end: int, total: str) -> Reply:
        """Without data, only asks what the service has; if that is all of it, it ends the upload."""
        span = f"{end - len(data)}-{end - 1}" if data else "*"
        headers = [("Content-Range", f"bytes {span}/{total}")]
        also = (INCOMPLETE, 404, 410)
        reply = await self._calls.once("PUT", self._target, self._subject, headers=headers, body=data, also=also)
        if no_bucket(reply):
            raise refused(reply, self._calls.bucket, self._subject)
        if reply.status in (404, 410):
            raise self._lost("is gone")
        return reply

    def _lost(self, why: str) -> BlobUnavailableError:
        return BlobUnavailableError(f"{self._subject}: its upload session {why}; send the file again")


def _persisted(reply: Reply) -> int:
    """No header Range: nothing yet."""
    found = _HAS.fullmatch(reply.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0
