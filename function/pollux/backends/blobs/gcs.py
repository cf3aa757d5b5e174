"""Blobs as objects of a Cloud Storage bucket, and resumable uploads to it. An object expires at its custom time.

Give the bucket a lifecycle rule too (delete 3 days after creation), for the time when no instance sweeps.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from pollux.backends.blobs.contract import NAMES, BlobError, BlobMissingError, BlobUnavailableError, Writer, checked
from pollux.backends.blobs.gcs_calls import (
    EMULATOR,
    REAL,
    SERVICE,
    GcsCalls,
    GoogleToken,
    Reply,
    Times,
    TransientError,
    no_bucket,
    odd,
    refused,
)
from pollux.backends.upstream import Answer, UpstreamError
from pollux.settings import ENVIRON

PIECE = 8 << 20
"""Bytes of one request of an upload, held in memory while it is sent. The service wants multiples of 256 KiB."""
DROP_S = 2.0
SWEEPERS = 8
"""Deletions of a sweep at once."""
INCOMPLETE = 308
_HAS = re.compile(r"bytes=0-([0-9]+)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


class Upload:
    """A resumable upload: pieces of one object, each taken whole before the next is sent.

    After any trouble it asks the service how much has arrived, and sends the rest. The session's address is a
    credential, because it allows writing: no error and no log names it.
    """

    def __init__(self, calls: GcsCalls, address: str, subject: str) -> None:
        parts = urlsplit(address)
        self._calls = calls
        self._target = f"{parts.path}?{parts.query}"  # at our own address of the service
        self._subject = subject
        self._at = 0
        """Bytes that the service has."""

    async def send(self, data: bytes, *, last: bool) -> dict[str, Any]:
        """Returns the object's description after the last piece. Any other piece has a multiple of 256 KiB."""
        pace = self._calls.pace(self._subject)
        begin, end = self._at, self._at + len(data)
        total = str(end) if last else "*"
        unsure = False
        while True:
            try:
                reply = await self._put(b"" if unsure else data[self._at - begin :], end, total)
            except TransientError as trouble:
                await pace.rest(trouble)
                unsure = True
                continue
            if reply.status < 300:
                if not last:
                    raise self._lost("was ended by another writer")
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
            elif not unsure:  # avoid a busy loop
                await pace.rest(TransientError("Cloud Storage takes no bytes"))
            self._at, unsure = has, False

    async def drop(self) -> None:
        """One try: a session that stays is invisible, and ends within a week."""
        await self._calls.once("DELETE", self._target, self._subject, also=(404, 410, 499))

    async def _put(self, data: bytes, end: int, total: str) -> Reply:
        """Without data it only asks what the service has; if that is everything, this ends the upload."""
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
    """Without the header Range nothing has arrived."""
    found = _HAS.fullmatch(reply.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0


class GcsBlobs:
    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        environ: Mapping[str, str] = ENVIRON,
        token: GoogleToken | None = None,
        times: Times = REAL,
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise BlobError(f"blobs gs://{bucket}: this is not a valid bucket name; use gs://BUCKET[/PREFIX]")
        if not prefix.isprintable():
            raise BlobError(f"blobs gs://{bucket}: the prefix has characters that cannot be printed")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._url = f"gs://{bucket}/{self._prefix}"
        emulator = environ.get(EMULATOR, "")
        base = SERVICE if not emulator else emulator if "://" in emulator else f"http://{emulator}"
        self._calls = GcsCalls(bucket, token or (None if emulator else GoogleToken()), base=base, times=times)
        self._objects = f"/storage/v1/b/{bucket}/o"

    async def open(self) -> None:
        asked = f"{self._objects}?maxResults=1&prefix={quote(self._prefix, safe='')}&fields=items(name)"
        subject = f"blobs {self._url}"
        if (await self._calls.call("GET", asked, subject)).json() is None:
            raise odd(subject)

    async def close(self) -> None:
        await self._calls.close()

    @asynccontextmanager
    async def write(self, name: str, expires: float) -> AsyncIterator[Writer]:
        subject = self._subject(checked(name))
        upload = await self._begun(name, expires, subject)
        md5 = hashlib.md5(usedforsecurity=False)  # the only checksum that both the service and Python know

        def count(data: bytes) -> None:
            writer.digest.update(data)
            md5.update(data)

        async def put(data: bytes) -> None:
            await asyncio.to_thread(count, data)
            await upload.send(data, last=False)

        writer = Writer(PIECE, put)
        try:
            yield writer
            rest = writer.drain()
            await asyncio.to_thread(count, rest)
            made = await upload.send(rest, last=True)
        except BaseException:
            with suppress(TransientError, BlobError, TimeoutError):
                async with asyncio.timeout(DROP_S):
                    await upload.drop()
            raise
        await self._check(name, made, writer.size, base64.b64encode(md5.digest()).decode())

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        subject = self._subject(checked(name))
        at, generation = offset, ""
        while True:
            answer = await self._opened(name, at, generation)
            if answer is None:
                return
            began = at
            generation = generation or _header(answer, b"x-goog-generation")
            try:
                while data := await answer.chunk():
                    at += len(data)
                    yield data
                return
            except UpstreamError as error:  # go on where it broke, with the same generation of the object
                if at == began or not generation:
                    raise BlobUnavailableError(
                        f"{subject}: reading it broke at byte {at} ({error}); try again"
                    ) from None
            finally:
                answer.close()

    async def size(self, name: str) -> int | None:
        reply = await self._found("GET", f"{self._object(name)}?fields=size", name)
        if reply is None:
            return None
        size = str((reply.json() or {}).get("size"))
        if not size.isdigit():
            raise odd(self._subject(name))
        return int(size)

    async def delete(self, name: str) -> bool:
        return await self._found("DELETE", self._object(name), name) is not None

    async def sweep(self, now: float) -> int:
        """Objects of other names, or without a custom time, stay."""
        room = asyncio.Semaphore(SWEEPERS)
        gone, page = 0, ""
        while True:
            found = await self._listed(page)
            old = [item for item in found.get("items", ()) if self._expired(item, now)]

            async def go(item: Mapping[str, Any]) -> bool:
                name = str(item["name"]).removeprefix(self._prefix)
                async with room:  # of this generation only: it may have been replaced
                    target = f"{self._object(name)}?ifGenerationMatch={item['generation']}"
                    return await self._found("DELETE", target, name, also=(412,)) is not None

            gone += sum(await asyncio.gather(*map(go, old)))
            page = str(found.get("nextPageToken", ""))
            if not page:
                return gone

    # --- the calls ---------------------------------------------------------------------------------------------------

    def _subject(self, name: str) -> str:
        return f"blob {self._url}{name}"

    def _object(self, name: str) -> str:
        return f"{self._objects}/{quote(self._prefix + checked(name), safe='')}"

    async def _begun(self, name: str, expires: float, subject: str) -> Upload:
        target = f"/upload{self._objects}?uploadType=resumable&name={quote(self._prefix + name, safe='')}"
        described = {
            "contentType": "application/octet-stream",
            "customTime": datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        headers = [("Content-Type", "application/json; charset=UTF-8")]
        reply = await self._calls.call("POST", target, subject, headers=headers, body=json.dumps(described).encode())
        address = reply.headers.get("location")
        if address is None:
            raise odd(subject)
        return Upload(self._calls, address, subject)

    async def _check(self, name: str, made: Mapping[str, Any], size: int, md5: str) -> None:
        if str(made.get("size")) == str(size) and made.get("md5Hash", md5) == md5:
            return
        if made.get("generation"):
            await self._found(
                "DELETE", f"{self._object(name)}?ifGenerationMatch={made['generation']}", name, also=(412,)
            )
        raise BlobUnavailableError(
            f"{self._subject(name)}: what arrived differs from what was sent and was deleted; send the file again"
        )

    async def _opened(self, name: str, at: int, generation: str) -> Answer | None:
        """None if it ends before that offset."""
        subject = self._subject(name)
        target = f"{self._object(name)}?alt=media" + (f"&generation={generation}" if generation else "")
        headers = [("Range", f"bytes={at}-")] if at else []
        answer = await self._calls.begin("GET", target, subject, headers, also=(404, 416))
        if answer.status == (206 if at else 200):
            return answer
        body = b""
        try:
            if answer.status == 404:
                body = await answer.read()
        except UpstreamError:
            pass
        finally:
            answer.close()
        if answer.status == 416:
            return None
        reply = Reply(answer.status, {}, body)
        if no_bucket(reply):
            raise refused(reply, self._calls.bucket, subject)
        if answer.status == 404 and generation:
            raise BlobUnavailableError(f"{subject}: it was replaced or deleted during reading; read it again")
        if answer.status == 404:
            raise BlobMissingError(f"{subject}: not found")
        raise BlobError(f"{subject}: Cloud Storage answered {answer.status} where a part was asked for")

    async def _found(self, method: str, target: str, name: str, also: tuple[int, ...] = ()) -> Reply | None:
        """None if it does not exist."""
        subject = self._subject(name)
        reply = await self._calls.call(method, target, subject, also=(404, *also))
        if no_bucket(reply):
            raise refused(reply, self._calls.bucket, subject)
        return reply if reply.status < 300 else None

    async def _listed(self, page: str) -> dict[str, Any]:
        asked = f"prefix={quote(self._prefix, safe='')}&fields=items(name,generation,customTime),nextPageToken"
        more = f"&pageToken={quote(page, safe='')}" if page else ""
        subject = f"blobs {self._url}"
        found = (await self._calls.call("GET", f"{self._objects}?{asked}{more}", subject)).json()
        if found is None:
            raise odd(subject)
        return found

    def _expired(self, item: Mapping[str, Any], now: float) -> bool:
        if not NAMES.fullmatch(str(item.get("name")).removeprefix(self._prefix)):
            return False
        try:
            return datetime.fromisoformat(str(item.get("customTime"))).timestamp() <= now
        except ValueError:
            return False


def _header(answer: Answer, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in answer.headers if key.lower() == name), "")
