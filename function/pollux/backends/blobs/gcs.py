"""Blobs as objects of a Cloud Storage bucket. An object's custom time is the time at which it expires.

Give the bucket a lifecycle rule too (delete 3 days after creation): it works while nobody sweeps.
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
from urllib.parse import quote

from pollux.backends.blobs.contract import NAMES, BlobError, BlobMissingError, BlobUnavailableError, Writer, checked
from pollux.backends.blobs.gcs_calls import (
    EMULATOR,
    REAL,
    SERVICE,
    GcsCalls,
    PassingError,
    Reply,
    Times,
    Token,
    no_bucket,
    odd,
    refused,
)
from pollux.backends.blobs.gcs_token import GoogleToken, NoToken
from pollux.backends.blobs.gcs_upload import Upload
from pollux.backends.upstream import Answer, UpstreamError
from pollux.settings import ENVIRON

PIECE = 8 << 20
"""One request of an upload, held in memory while it is sent. The service wants multiples of 256 KiB."""
DROP_S = 2.0
SWEEPERS = 8
"""Deletions of a sweep at once."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


class GcsBlobs:
    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        environ: Mapping[str, str] = ENVIRON,
        token: Token | None = None,
        times: Times = REAL,
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise BlobError(f"blobs gs://{bucket}: that is no name of a bucket; use gs://BUCKET[/PREFIX]")
        if not prefix.isprintable():
            raise BlobError(f"blobs gs://{bucket}: the prefix has characters that cannot be printed")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._url = f"gs://{bucket}/{self._prefix}"
        emulator = environ.get(EMULATOR, "")
        base = SERVICE if not emulator else emulator if "://" in emulator else f"http://{emulator}"
        self._calls = GcsCalls(bucket, token or (NoToken() if emulator else GoogleToken()), base=base, times=times)
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
        md5 = hashlib.md5(usedforsecurity=False)  # the only sum that the service makes too and Python has

        def count(data: bytes) -> None:
            writer.digest.update(data)
            md5.update(data)

        async def put(data: bytes) -> None:
            await asyncio.to_thread(count, data)
            await upload.send(data, last=False)

        writer = Writer(PIECE, put)
        try:
            yield writer
            rest = writer.taken()
            await asyncio.to_thread(count, rest)
            made = await upload.send(rest, last=True)
        except BaseException:
            with suppress(PassingError, BlobError, TimeoutError):
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
            except UpstreamError as error:  # goes on where it broke, with the same object: hence the generation
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
        """What is not ours in the bucket, or has no custom time, stays."""
        room = asyncio.Semaphore(SWEEPERS)
        gone, page = 0, ""
        while True:
            found = await self._listed(page)
            old = [item for item in found.get("items", ()) if self._expired(item, now)]

            async def go(item: Mapping[str, Any]) -> bool:
                name = str(item["name"]).removeprefix(self._prefix)
                async with room:  # only the very object that was seen: it may have been replaced since
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
            f"{self._subject(name)}: what arrived is not what was sent, and was deleted; send the file again"
        )

    async def _opened(self, name: str, at: int, generation: str) -> Answer | None:
        """None: it has nothing at that offset."""
        subject = self._subject(name)
        target = f"{self._object(name)}?alt=media" + (f"&generation={generation}" if generation else "")
        headers = [("Range", f"bytes={at}-")] if at else []
        answer = await self._calls.begin("GET", target, subject, headers, also=(404, 416))
        if answer.status == (206 if at else 200):
            return answer
        try:
            reply = Reply(answer.status, {}, await answer.read() if answer.status >= 400 else b"")
        except UpstreamError:
            reply = Reply(answer.status, {}, b"")
        finally:
            answer.close()
        if answer.status == 416:
            return None
        if no_bucket(reply):
            raise refused(reply, self._calls.bucket, subject)
        if answer.status == 404 and generation:
            raise BlobUnavailableError(f"{subject}: it was replaced or deleted while it was read; read it again")
        if answer.status == 404:
            raise BlobMissingError(f"{subject}: there is none")
        raise BlobError(f"{subject}: Cloud Storage answered {answer.status} where a part was asked for")

    async def _found(self, method: str, target: str, name: str, also: tuple[int, ...] = ()) -> Reply | None:
        """None: it is not there, or not any more."""
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
