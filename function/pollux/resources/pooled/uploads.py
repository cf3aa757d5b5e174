"""A client's uploads of files, taken in whole before Google gets them: in sessions as Google's own, or in one request.

What has come lies in the blob store, and which parts it has in the store, so that any instance takes the next chunk.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from pollux.backends.blobs.contract import BlobError, BlobMissingError
from pollux.backends.store.contract import ConflictError, Version
from pollux.gemini.call import Call
from pollux.gemini.errors import ERRORS, GatewayError, error_body
from pollux.gemini.multipart import boundary_of, parts
from pollux.gemini.names import below
from pollux.gemini.rewrite import to_client
from pollux.gemini.upload import Upload
from pollux.pool.pool import Pool, Tried
from pollux.relay.client import PassingBody, header
from pollux.relay.journal import Attempt, Record
from pollux.relay.passing import Reply
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.described import Parts, described_by, kind_of
from pollux.resources.pooled.incoming import GRANULARITY, ChunkError, GoogleSession, PooledUpload, packed, unpacked
from pollux.resources.pooled.keep import CompleteUpload, Keeper
from pollux.resources.pooled.records import FileRecords
from pollux.resources.pooled.taking import HeldBody, PartWriter, down
from pollux.resources.pooled.upload_to_google import GoogleFiles, RefusedError
from pollux.resources.upload_token import LIFETIME, Session, address_of, sealing_value

log = logging.getLogger("pollux.relay")

POOLED = "pooled:"
"""What the target of such a session begins with; the rest names its document."""
RawHeaders = Sequence[tuple[bytes, bytes]]
_ACTIVE = (b"x-goog-upload-status", b"active")
_FINAL = (b"x-goog-upload-status", b"final")
_JSON = (b"content-type", b"application/json; charset=UTF-8")


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """A request of an upload."""

    call: Call
    headers: RawHeaders
    record: Record
    reply: Reply
    base: str
    """This gateway's address as the client knows it."""


class PooledUploads:
    def __init__(
        self, pool: Pool, records: FileRecords, contents: Contents, keeper: Keeper, google: GoogleFiles
    ) -> None:
        self._pool = pool
        self._records = records
        self._contents = contents
        self._keeper = keeper
        self._google = google
        self._parts = PartWriter(contents)

    async def takes(self, upload: Upload, call: Call, headers: RawHeaders) -> bool:
        """Whether the file is kept here; else the upload passes through to a project, and the file stays there."""
        if call.api != "native" or below(call).rstrip("/") != "files":
            return False
        if upload.form == "start" and (header(headers, b"x-goog-upload-protocol") or "").lower() != "resumable":
            return False
        self._contents.sweep()
        return await self._kept_contents()

    async def _kept_contents(self) -> bool:
        """Whether the blob store can be used. If not, the upload goes on without it, loudly."""
        if await self._contents.usable():
            return True
        self._contents.counts["passed_through"] += 1
        log.error("an upload passes through to one project, where its file stays: there is no blob store")
        return False

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def start(self, a: UploadRequest, body: bytes) -> None:
        described = described_by(body)
        declared = header(a.headers, b"x-goog-upload-header-content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit()):
            raise GatewayError("BAD_REQUEST", "Invalid X-Goog-Upload-Header-Content-Length.")
        key = await self._pool.pick(None, Tried())
        if key is None:
            raise GatewayError("NO_USABLE_KEY", "there is no usable key in the pool: add one with `pollux keys add`")
        value = await sealing_value(self._pool.projects.keyring, key.id)
        name = secrets.token_hex(12)
        upload = PooledUpload(
            a.record.client,
            kind_of(a.headers, described),
            self._pool.now(),
            described,
            int(declared) if declared else None,
        )
        try:
            upload.check_size(upload.declared or 0)
        except ChunkError as error:
            raise GatewayError("BAD_REQUEST", str(error)) from None
        await self._records.put_upload(name, packed(upload), None)
        session = Session(POOLED + name, "", key.id, upload.client, self._pool.now() + LIFETIME)
        address = address_of(a.base + a.call.path, session, value)
        headers = [
            (b"x-goog-upload-url", address),
            (b"x-goog-upload-control-url", address),
            (b"x-goog-upload-chunk-granularity", b"%d" % GRANULARITY),
            (b"x-guploader-uploadid", name.encode()),
            _ACTIVE,
        ]
        await a.reply.whole(200, headers, b"")

    async def go_on(self, a: UploadRequest, name: str, body: PassingBody) -> Session | None:
        """A request within a session. The one at Google, where it goes on there."""
        document, version = await self._records.upload(name)
        upload = unpacked(document, self._pool.now())
        commands = {
            word.strip() for word in (header(a.headers, b"x-goog-upload-command") or "upload").lower().split(",")
        }
        if upload is None:
            await self._refuse(a, "UPLOAD_GONE", "Requested entity was not found.", _FINAL)
            return None
        if upload.passed is None and not upload.received and "upload" in commands and upload.state == "active":
            upload, version = await self._or_passed(name, upload, version)
        if upload.passed is not None:
            return Session(
                upload.passed.target, upload.passed.project, upload.passed.key, upload.client, upload.expires
            )
        try:
            await self._answered(a, name, upload, version, commands, body)
        except ChunkError as error:
            await self._refuse(a, "BAD_REQUEST", str(error), _ACTIVE)
        return None

    async def _answered(
        self,
        a: UploadRequest,
        name: str,
        upload: PooledUpload,
        version: Version | None,
        commands: set[str],
        body: PassingBody,
    ) -> None:
        if commands == {"query"}:
            await self._query(a, upload)
        elif commands == {"cancel"}:
            await self._cancel(a, name, upload, version)
        elif commands - {"upload", "finalize"}:
            raise ChunkError(f"Invalid X-Goog-Upload-Command: {', '.join(sorted(commands))}")
        elif upload.state == "final":
            await self._final(a, upload.answer.encode())
        elif upload.state == "cancelled":
            await self._refuse(a, "BAD_REQUEST", "Upload has already been terminated.", _status("cancelled"))
        else:
            await self._chunk(a, name, upload, version, commands, body)

    async def _query(self, a: UploadRequest, upload: PooledUpload) -> None:
        state = "active" if upload.state == "closing" else upload.state
        received = (b"x-goog-upload-size-received", b"%d" % upload.received)
        body = to_client(upload.answer.encode(), self._pool.settings.upstream, a.base)
        await a.reply.whole(200, [_status(state), received, *([_JSON] if body else [])], body)

    async def _cancel(self, a: UploadRequest, name: str, upload: PooledUpload, version: Version | None) -> None:
        if upload.state == "active":
            await self._put(name, replace(upload, state="cancelled"), version)
            await self._contents.drop(upload.parts)
            upload = replace(upload, state="cancelled")
        await a.reply.whole(200, [_status("active" if upload.state == "closing" else upload.state)], b"")

    async def _chunk(
        self,
        a: UploadRequest,
        name: str,
        upload: PooledUpload,
        version: Version | None,
        commands: set[str],
        body: PassingBody,
    ) -> None:
        final = "finalize" in commands
        begin = upload.place(header(a.headers, b"x-goog-upload-offset") or "0", body.length, final=final)
        part, trouble = await self._parts.take(name, upload, body, upload.received - begin)
        end = upload.received + (part.size if part else 0)
        if trouble is None and (misfit := self._misfit(upload, end, body, final=final)):
            await self._contents.drop([part] if part else [])
            raise ChunkError(misfit)
        upload = upload.with_part(part, "closing" if final and trouble is None else upload.state)
        try:
            version = await self._put(name, upload, version)
        except GatewayError:
            if part is not None:
                await self._contents.drop([part])
            raise
        if trouble is not None:
            raise trouble
        a.record.attempts.append(Attempt("", "", "", "ok", 200, detail=f"{body.passed} bytes received, {end} in all"))
        if not final:
            await a.reply.whole(200, [_ACTIVE], b"")
            return
        answer = await self._kept(a, upload, self._parts.digest(name, end))
        if answer is None:
            return
        with suppress(GatewayError):  # who asked for the end a second time is told the same by the file itself
            await self._put(name, replace(upload, state="final", answer=answer.decode()), version)
        await self._final(a, answer)

    def _misfit(self, upload: PooledUpload, end: int, body: PassingBody, *, final: bool) -> str:
        """What could not be known before a body of unknown length had come."""
        if final and upload.declared not in (None, end):
            return f"Invalid size: {end} bytes, but {upload.declared} were declared."
        if not final and body.length is None and body.passed % GRANULARITY:
            return f"Invalid chunk: {body.passed} bytes are no multiple of {GRANULARITY}."
        return ""

    async def _put(self, name: str, upload: PooledUpload, version: Version | None) -> Version:
        try:
            return await self._records.put_upload(name, packed(upload), version)
        except ConflictError:
            raise GatewayError(
                "UPLOAD_RACE",
                "another request of this upload was faster; ask with `query` what has come, and go on there",
            ) from None

    async def _or_passed(
        self, name: str, upload: PooledUpload, version: Version | None
    ) -> tuple[PooledUpload, Version | None]:
        """Nothing has come yet, and there is no blob store by now: it goes on at a project."""
        if await self._kept_contents():
            return upload, version
        key = await self._pool.pick(None, Tried())
        target = None
        if key is not None:
            target = await self._google.begin(key, upload.described, upload.kind, upload.declared)
        if key is None or not isinstance(target, str):
            raise GatewayError("BLOBS_DOWN", "neither the blob store nor a project takes the upload", retry_after=5.0)
        upload = replace(upload, passed=GoogleSession(target, key.project, key.id))
        return upload, await self._put(name, upload, version)

    # --- in one request ----------------------------------------------------------------------------------------------

    async def once(self, a: UploadRequest, body: PassingBody | HeldBody) -> None:
        kind = header(a.headers, b"content-type") or ""
        raw = (header(a.headers, b"x-goog-upload-protocol") or "").lower() == "raw"
        boundary = None if raw else boundary_of(kind)
        upload = PooledUpload(a.record.client, kind, self._pool.now() - LIFETIME)  # it ends as it begins
        name = secrets.token_hex(12)
        described: dict[str, Any] = {}
        pieces: AsyncIterator[bytes] = aiter(body)
        if boundary is None:
            kind = header(a.headers, b"x-goog-upload-header-content-type") or kind
        else:
            reader = Parts(parts(pieces, boundary))
            described, kind = await reader.head()
            pieces = reader.content()
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                part, trouble = await self._parts.take(name, upload, pieces, 0)
        except ChunkError as error:
            raise GatewayError("BAD_REQUEST", str(error)) from None
        if trouble is not None:
            await self._contents.drop([part] if part else [])
            raise trouble
        upload = PooledUpload(a.record.client, kind or "application/octet-stream", upload.began, described)
        size = part.size if part else 0
        a.record.attempts.append(Attempt("", "", "", "ok", 200, detail=f"{body.passed} bytes received"))
        answer = await self._kept(a, upload.with_part(part, "closing"), self._parts.digest(name, size))
        if answer is not None:
            await self._final(a, answer)

    # --- what becomes of it ------------------------------------------------------------------------------------------

    async def _kept(self, a: UploadRequest, upload: PooledUpload, digest: Any) -> bytes | None:
        """Google's answer for the file; None: the client has Google's refusal."""
        try:
            sha256 = digest.hexdigest() if digest is not None else await self._contents.sha256(upload.parts)
            received = CompleteUpload(upload.client, upload.parts, sha256, upload.kind, upload.described)
            return await self._keeper.keep(received)
        except BlobMissingError as error:
            log.error("what has come of an upload cannot be read: %s", error)
            raise down() from None
        except BlobError:
            raise down() from None
        except RefusedError as error:
            failure = error.failure
            if failure is None:
                raise GatewayError("NO_USABLE_KEY", str(error), retry_after=5.0) from None
            if failure.problem is not None:
                raise failure.problem from None
            headers = [*failure.headers, *([_ACTIVE] if failure.status < 500 else [])]
            await a.reply.whole(failure.status, headers, failure.body)
            return None

    async def _final(self, a: UploadRequest, answer: bytes) -> None:
        body = to_client(answer, self._pool.settings.upstream, a.base)
        await a.reply.whole(200, [_JSON, _FINAL], body)

    async def _refuse(self, a: UploadRequest, reason: str, message: str, status: tuple[bytes, bytes]) -> None:
        """The session lives, or does not: without that header a client would send its chunk again and again."""
        a.record.reason = reason
        body = error_body(a.record.api, reason, message, request_id=a.record.id)
        await a.reply.whole(ERRORS[reason].http, [_JSON, status], body)


def _status(state: str) -> tuple[bytes, bytes]:
    return (b"x-goog-upload-status", state.encode())
