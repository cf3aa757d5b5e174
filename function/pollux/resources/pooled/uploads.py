"""Clients' uploads of files that are received whole before Google gets them: in sessions like Google's own, or in one
request. The bytes are in the blob store and the upload's document in the store, so that any instance can take the next
chunk.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from pollux.backends.blobs.contract import BlobError, BlobMissingError
from pollux.backends.store.contract import ConflictError, Version
from pollux.gemini import multipart
from pollux.gemini.call import Call
from pollux.gemini.errors import ERRORS, GatewayError, error_body
from pollux.gemini.names import resource_path
from pollux.gemini.rewrite import to_client
from pollux.gemini.upload import Upload
from pollux.pool.pool import Pool
from pollux.pool.reservation import Tried
from pollux.relay.client import PassingBody, header
from pollux.relay.journal import Attempt, Record
from pollux.relay.passing import Reply
from pollux.resources.pooled.contents import Contents
from pollux.resources.pooled.documents import (
    GRANULARITY,
    UPLOAD,
    ChunkError,
    PooledUpload,
    packed,
    unpacked_upload,
)
from pollux.resources.pooled.keep import Keeper
from pollux.resources.pooled.parts import (
    HeldBody,
    PartWriter,
    RawHeaders,
    blobs_down,
    described_by,
    kind_of,
    read_content,
    read_metadata,
)
from pollux.resources.pooled.records import FileRecords
from pollux.resources.pooled.upload_to_google import GoogleFiles, RefusedError
from pollux.resources.upload_token import LIFETIME, Session, UploadTokenError, address_of, sealing_value

log = logging.getLogger("pollux.relay")

POOLED = "pooled:"
"""The target of such a session: this prefix and the name of its document."""
_JSON = (b"content-type", b"application/json; charset=UTF-8")


@dataclass(frozen=True, slots=True)
class UploadRequest:
    call: Call
    headers: RawHeaders
    record: Record
    reply: Reply
    base: str
    """This gateway's address as the client knows it."""

    def header(self, name: bytes) -> str | None:
        return header(self.headers, b"x-goog-upload-" + name)


@dataclass(eq=False)
class PooledUploads:
    pool: Pool
    records: FileRecords
    contents: Contents
    keeper: Keeper
    google: GoogleFiles

    def __post_init__(self) -> None:
        self._parts = PartWriter(self.contents)

    async def takes(self, upload: Upload, call: Call, headers: RawHeaders) -> bool:
        """Whether the file is pooled. Otherwise the upload passes to one project, and the file stays there."""
        if call.api != "native" or resource_path(call).rstrip("/") != "files":
            return False
        if upload.form == "start" and (header(headers, b"x-goog-upload-protocol") or "").lower() != "resumable":
            return False
        self.contents.sweep()
        return await self._has_blobs()

    async def _has_blobs(self) -> bool:
        if await self.contents.usable():
            return True
        self.contents.counts["passed_through"] += 1
        log.error("the blob store does not work: an upload passes to one project, and its file stays there")
        return False

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def start(self, request: UploadRequest, body: bytes) -> None:
        described = described_by(body)
        declared = request.header(b"header-content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit()):
            raise GatewayError("BAD_REQUEST", "Invalid X-Goog-Upload-Header-Content-Length.")
        key = await self.pool.pick(None, Tried())
        if key is None:
            raise GatewayError("NO_USABLE_KEY", "there is no usable key in the pool: add one with `pollux keys add`")
        name, now = secrets.token_hex(12), self.pool.now()
        size = int(declared) if declared else None
        upload = PooledUpload(request.record.client, kind_of(request.headers, described), now, described, size)
        try:
            upload.check_size(size or 0)
        except ChunkError as error:
            raise GatewayError("BAD_REQUEST", str(error)) from None
        session = Session(POOLED + name, "", key.id, upload.client, now + LIFETIME)
        address = await session_address(self.pool, request.base + request.call.path, session)
        await self.records.write(UPLOAD + name, packed(upload), None)
        headers = [
            (b"x-goog-upload-url", address),
            (b"x-goog-upload-control-url", address),
            (b"x-goog-upload-chunk-granularity", b"%d" % GRANULARITY),
            (b"x-guploader-uploadid", name.encode()),
            _status("active"),
        ]
        await request.reply.whole(200, headers, b"")

    async def continue_upload(self, request: UploadRequest, name: str, body: PassingBody) -> Session | None:
        """A request within a session. Returns the session at Google if the upload continues there."""
        document, version = await self.records.document(UPLOAD + name)
        upload = unpacked_upload(document, self.pool.now())
        commands = {word.strip() for word in (request.header(b"command") or "upload").lower().split(",")}
        if upload is None:
            await self._refuse(request, "UPLOAD_GONE", "Requested entity was not found.", "final")
            return None
        if upload.passed is None and not upload.received and "upload" in commands and upload.state == "active":
            upload, version = await self._or_passed(name, upload, version)
        if upload.passed is not None:
            return Session(*upload.passed, upload.client, upload.expires)
        state = "active" if upload.state == "closing" else upload.state
        try:
            if commands == {"query"}:
                received = (b"x-goog-upload-size-received", b"%d" % upload.received)
                answer = self._as_client_sees(request, upload.answer.encode())
                await request.reply.whole(200, [_status(state), received, *([_JSON] if answer else [])], answer)
            elif commands == {"cancel"}:
                if upload.state == "active":
                    await self._put(name, replace(upload, state="cancelled"), version)
                    await self.contents.drop(upload.parts)
                    state = "cancelled"
                await request.reply.whole(200, [_status(state)], b"")
            elif commands - {"upload", "finalize"}:
                raise ChunkError(f"Invalid X-Goog-Upload-Command: {', '.join(sorted(commands))}")
            elif upload.state == "final":
                await self._finish(request, upload.answer.encode())
            elif upload.state == "cancelled":
                await self._refuse(request, "BAD_REQUEST", "Upload has already been terminated.", "cancelled")
            else:
                await self._chunk(request, name, upload, version, body, final="finalize" in commands)
        except ChunkError as error:
            await self._refuse(request, "BAD_REQUEST", str(error), "active")
        return None

    async def _chunk(
        self,
        request: UploadRequest,
        name: str,
        upload: PooledUpload,
        version: Version | None,
        body: PassingBody,
        *,
        final: bool,
    ) -> None:
        begin = upload.chunk_offset(request.header(b"offset") or "0", body.length, final=final)
        part, error = await self._parts.write(name, upload, body, upload.received - begin)
        end = upload.received + (part.size if part else 0)
        try:
            if error is None:  # again, as the length of the body may not have been announced
                upload.check_chunk(end, body.passed, final=final)
            upload = upload.with_part(part, "closing" if final and error is None else upload.state)
            version = await self._put(name, upload, version)
        except (ChunkError, GatewayError):
            await self.contents.drop([part] if part else [])
            raise
        if error is not None:
            raise error
        received = f"{body.passed} bytes received, {end} in all"
        request.record.attempts.append(Attempt("", "", "", "ok", 200, detail=received))
        if not final:
            await request.reply.whole(200, [_status("active")], b"")
            return
        answer = await self._kept(request, upload, self._parts.digest(name, end))
        if answer is not None:
            with suppress(GatewayError):  # the client asked for the end twice, and the other request has ended it
                await self._put(name, replace(upload, state="final", answer=answer.decode()), version)
            await self._finish(request, answer)

    async def _put(self, name: str, upload: PooledUpload, version: Version | None) -> Version:
        try:
            return await self.records.write(UPLOAD + name, packed(upload), version)
        except ConflictError:
            raise GatewayError(
                "UPLOAD_RACE",
                "another request changed this upload first; ask with the command `query` how much was received, and "
                "continue there",
            ) from None

    async def _or_passed(
        self, name: str, upload: PooledUpload, version: Version | None
    ) -> tuple[PooledUpload, Version | None]:
        """Before the first byte: if the blob store does not work, the upload continues in a session at Google."""
        if await self._has_blobs():
            return upload, version
        key = await self.pool.pick(None, Tried())
        target = None
        if key is not None:
            target = await self.google.begin(key, upload.described, upload.kind, upload.declared)
        if key is None or not isinstance(target, str):
            raise GatewayError("BLOBS_DOWN", "neither the blob store nor a project takes the upload", retry_after=5.0)
        upload = replace(upload, passed=(target, key.project, key.id))
        return upload, await self._put(name, upload, version)

    # --- in one request ----------------------------------------------------------------------------------------------

    async def once(self, request: UploadRequest, body: PassingBody | HeldBody) -> None:
        kind = header(request.headers, b"content-type") or ""
        raw = (request.header(b"protocol") or "").lower() == "raw"
        boundary = None if raw else multipart.boundary_of(kind)
        described: dict[str, Any] = {}
        pieces: AsyncIterator[bytes] = aiter(body)
        if boundary is None:
            kind = request.header(b"header-content-type") or kind
        else:
            items = multipart.parts(pieces, boundary)
            described, kind = await read_metadata(items)
            pieces = read_content(items)
        name, began = secrets.token_hex(12), self.pool.now() - LIFETIME  # its life as an upload ends at once
        upload = PooledUpload(request.record.client, kind or "application/octet-stream", began, described)
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                part, trouble = await self._parts.write(name, upload, pieces, 0)
        except ChunkError as error:
            raise GatewayError("BAD_REQUEST", str(error)) from None
        if trouble is not None:
            await self.contents.drop([part] if part else [])
            raise trouble
        upload = upload.with_part(part, "closing")
        request.record.attempts.append(Attempt("", "", "", "ok", 200, detail=f"{body.passed} bytes received"))
        answer = await self._kept(request, upload, self._parts.digest(name, upload.received))
        if answer is not None:
            await self._finish(request, answer)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _kept(self, request: UploadRequest, upload: PooledUpload, digest: Any) -> bytes | None:
        """Google's answer for the file. None: Google refused it, and the client has that answer."""
        try:
            sha256 = digest.hexdigest() if digest is not None else await self.contents.sha256(upload.parts)
            return await self.keeper.keep(upload, sha256)
        except BlobError as error:
            if isinstance(error, BlobMissingError):
                log.error("a part of an upload cannot be read: %s", error)
            raise blobs_down() from None
        except RefusedError as error:
            failure = error.failure
            if failure is None:
                raise GatewayError("NO_USABLE_KEY", str(error), retry_after=5.0) from None
            if failure.problem is not None:
                raise failure.problem from None
            headers = [*failure.headers, *([_status("active")] if failure.status < 500 else [])]
            await request.reply.whole(failure.status, headers, failure.body)
            return None

    async def _finish(self, request: UploadRequest, answer: bytes) -> None:
        await request.reply.whole(200, [_JSON, _status("final")], self._as_client_sees(request, answer))

    def _as_client_sees(self, request: UploadRequest, answer: bytes) -> bytes:
        return to_client(answer, self.pool.settings.upstream, request.base)

    async def _refuse(self, request: UploadRequest, code: str, message: str, state: str) -> None:
        """Answer an error with the session's state: without that, clients send their chunk again and again."""
        record = request.record
        record.reason = code
        body = error_body(record.api, code, message, request_id=record.id)
        await request.reply.whole(ERRORS[code].http, [_JSON, _status(state)], body)


async def session_address(pool: Pool, base: str, session: Session) -> bytes:
    """The address that the client gets for a session."""
    try:
        return address_of(base, session, await sealing_value(pool.projects.keyring, session.key))
    except UploadTokenError as error:
        raise GatewayError("UPSTREAM_ERROR", str(error)) from None


def _status(state: str) -> tuple[bytes, bytes]:
    return (b"x-goog-upload-status", state.encode())
