"""Lets a request in: who calls, what is asked, may it pass, how large is it. Then the `relay` lives its life."""

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pollux import log as logs
from pollux import reading, wire
from pollux.address import own_base
from pollux.auth import TokenSource
from pollux.callers import Callers
from pollux.exchange import Exchange, conversation, goes_on
from pollux.inbound import (
    HEAD_MOST,
    BodyMemory,
    ClientGoneError,
    PassingBody,
    Receive,
    Scope,
    Send,
    Watch,
    head_size,
    header,
    read_body,
    uncancel,
)
from pollux.journal import Journal, Record
from pollux.outbound import BrokenAnswerError, Reply, api_of
from pollux.pool import StoppingError
from pollux.relay import Relay
from pollux.settings import Settings, in_cloud
from pollux.store import StoreError, StoreUnavailableError
from pollux.uploads import Uploads, is_large
from pollux.wire import Call
from pollux.wire.error import GatewayError

log = logging.getLogger("pollux.request")

SERVER_TIMEOUT_MARGIN = 10.0
IDS_NAMED = 20


class Patience(NamedTuple):
    """After SIGTERM, in seconds: who has its slot within `wait` is still served, what runs after `cut` is told so, and
    after `finish` nothing is waited for any more.
    """

    wait: float
    cut: float
    finish: int


AT_HOME = Patience(5.0, 28.0, 30)
IN_CLOUD = Patience(2.0, 7.0, 8)
"""Cloud Run sends SIGKILL after ten."""


class Reception:
    def __init__(
        self, settings: Settings, tokens: TokenSource, relay: Relay, uploads: Uploads, journal: Journal
    ) -> None:
        self._settings = settings
        self.callers = Callers(tokens, relay.pool.roster.keyring, relay.pool.now)
        self._relay = relay
        self._uploads = uploads
        self._journal = journal
        self._memory = BodyMemory(settings.body_memory)
        self._running: dict[asyncio.Task[None], Reply] = {}

    def cut(self) -> None:
        """The process must end now: unanswered requests get a 503, and streams end with an error event."""
        for task, reply in self._running.items():
            if not reply.ending:
                reply.cut = True
                task.cancel()

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, extra: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        record = Record()
        reply = Reply(send, record, head=scope["method"] == "HEAD", extra=extra)
        journal = self._journal
        journal.under_way += 1
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = reply
        try:
            await self._serve(scope, receive, reply, record)
        except GatewayError as error:
            await _tell(reply, error)
        except StoreError as error:
            if not isinstance(error, StoreUnavailableError):  # of that the store's watch tells, once
                log.error("the store failed: %s", error)
            await _tell(
                reply, GatewayError("STORE_DOWN", "the store that counts quotas does not answer", retry_after=2.0)
            )
        except StoppingError:
            await _tell(reply, GatewayError("STOPPING", "the gateway stops before a slot is free", retry_after=1.0))
        except ClientGoneError:
            record.status, record.ended = 499, "client-gone"
        except asyncio.CancelledError:
            if not reply.cut:
                raise
            uncancel()
            record.ended = "cut" if reply.begun else ""
            await _tell(reply, GatewayError("STOPPING", "the gateway stops before the answer is there", retry_after=1))
        except BrokenAnswerError as error:
            record.ended = "broken"
            log.warning("request %s: the answer broke after it had begun: %s", record.id, error)
            raise
        except Exception:
            log.exception("request %s failed by a fault in Pollux", record.id)
            await _tell(reply, GatewayError("INTERNAL", "Pollux itself failed; its log has the reason"))
        finally:
            del self._running[task]
            journal.under_way -= 1
            journal.close(record)
            logs.request_line(record.as_json())

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply, record: Record) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        query: bytes = scope.get("query_string", b"")
        path = scope.get("raw_path") or scope["path"].encode()
        if head_size(scope) > HEAD_MOST:
            record.api = api_of(scope)
            raise GatewayError("HEAD_TOO_LARGE", f"the path and the headers are larger than {HEAD_MOST} bytes")
        bearer = header(headers, b"authorization") is not None and header(headers, b"x-goog-api-key") is None
        call = wire.read_target(scope["method"], path, query, bearer=bearer)
        record.api, record.what = call.api, call.verb or call.kind
        if scope["method"] == "GET" and (header(headers, b"upgrade") or "").lower() == "websocket":
            raise GatewayError("NO_LIVE_API", "the Live API is not served here: call it at Google itself")
        upload = wire.read_upload(scope["method"], call, headers)
        if upload is not None:
            record.what = f"upload-{upload.what}"
        if upload is not None and upload.form == "session":
            session, value = await self.callers.uploader(upload.token, headers, query)
            record.client = session.client
            self._crowded()
            await self._uploads.go_on(scope, receive, call, session, value, reply, record)
            return
        record.client = await self.callers.client(headers, query)
        if call.kind == "guarded" and call.guard not in self._settings.allow_paths:
            raise GatewayError(
                "FORBIDDEN_PATH",
                f"{call.guard} is closed here: it would hand out or bypass what this gateway guards; "
                "its owner may name it in POLLUX_ALLOW_PATHS",
            )
        if (wanted := header(headers, b"x-pollux-key")) is not None:
            await self._known_key(wanted)
        self._crowded()
        await self._take_in(scope, receive, call, upload, reply, record)

    async def _take_in(
        self, scope: Scope, receive: Receive, call: Call, upload: wire.Upload | None, reply: Reply, record: Record
    ) -> None:
        """Its body, and then its life, which ends if the client leaves."""
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        passing = None
        if upload is not None and upload.form == "once" and is_large(headers, self._settings.max_body):
            watch = Watch(receive, None)
            body, passing = b"", PassingBody(headers, receive, watch.begin)
        else:
            body = await read_body(headers, receive, self._settings.max_body, self._memory)
            watch = Watch(receive)
        held = len(body)
        try:
            if upload is not None and await self._uploads.kept_here(scope, call, upload, body, passing, reply, record):
                return
            x = self._read(
                scope["method"], call, headers, body, reply, record, pooled=self._may_name_pooled(call, upload)
            )
            x.own_base = partial(own_base, scope, self._settings.public_url, proxied=in_cloud())
            if wire.is_resource_call(call):
                x.own_base()  # a Host that is none is refused before anything is made
            if upload is not None:
                x.readdress = self._uploads.readdress(scope, call, record.client)
                x.begins_upload = upload.form == "start"
            if passing is not None:
                x.passing, x.headers = passing, wire.upstream_headers(headers, content=True)
            self._memory.hold(len(x.readable) - held)  # what it was inflated to
            held = len(x.readable)
            await self._relay.run(x)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            uncancel()
            record.status, record.ended = record.status or 499, "client-gone"
        finally:
            watch.stop()
            self._memory.release(held)

    async def _known_key(self, wanted: str) -> None:
        """The header names a key of the pool that is in use. What else it says is not repeated: it may be a value."""
        keys = await self._relay.pool.roster.keyring.keys()
        if (named_key := next((key for key in keys if key.id == wanted), None)) is not None:
            if named_key.enabled:
                return
            raise GatewayError(
                "UNKNOWN_KEY",
                f"x-pollux-key names {wanted}, which is disabled; its owner may use it again with: pollux keys enable",
            )
        ids = sorted(key.id for key in keys if key.enabled)
        named = ", ".join(ids[:IDS_NAMED]) + (f" and {len(ids) - IDS_NAMED} more" if len(ids) > IDS_NAMED else "")
        raise GatewayError("UNKNOWN_KEY", f"x-pollux-key names no key of this pool; there are: {named or 'none'}")

    def _may_name_pooled(self, call: Call, upload: wire.Upload | None) -> bool:
        """Whether its body could name a file that only one client may see."""
        return self._settings.files == "pooled" and upload is None and call.kind != "guarded"

    def _crowded(self) -> None:
        if self._journal.under_way > self._settings.max_concurrent:
            most = self._settings.max_concurrent
            raise GatewayError(
                "OVERLOADED_GATEWAY", f"{most} requests are under way already (POLLUX_MAX_CONCURRENT)", retry_after=1.0
            )

    def _read(
        self,
        method: str,
        call: Call,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        reply: Reply,
        record: Record,
        *,
        pooled: bool,
    ) -> Exchange:
        readable, parsed, stream = body, None, call.stream
        if pooled and body:
            readable, parsed = reading.wholly(call, headers, body, self._settings.max_body)
        elif reading.is_read(call, headers, body):
            readable, parsed = reading.as_it_is(call, headers, body, self._settings.max_body)
        if parsed is not None:
            call = wire.with_body(call, parsed)
            record.what = call.verb if call.verb == wire.INTERACTION else record.what
            stream = call.stream
        record.asked = call.model or ""
        own, server = wire.client_deadline(headers)
        waits = [self._settings.max_wait]
        waits += [] if own is None else [own]
        waits += [] if server is None else [max(0.0, server - SERVER_TIMEOUT_MARGIN)]
        mode = header(headers, b"x-pollux-mode") or self._settings.mode
        if mode not in ("both", "pro_only", "flash_only", "flash_lite_only"):
            raise GatewayError("BAD_REQUEST", "x-pollux-mode must be both, pro_only, flash_only or flash_lite_only")
        fallback = (header(headers, b"x-pollux-fallback") or "on").lower()
        if fallback not in ("on", "off"):
            raise GatewayError("BAD_REQUEST", "x-pollux-fallback must be on or off")
        return Exchange(
            call=call,
            method=method,
            headers=wire.upstream_headers(headers, content=bool(body)),
            body=body,
            readable=readable,
            parsed=parsed,
            record=record,
            reply=reply,
            deadline=self._relay.pool.now() + min(waits),
            patient=own is None and server is None and self._settings.max_wait > 0,
            stream=stream,
            fallback=fallback == "on",
            mode=mode,
            prefer_key=header(headers, b"x-pollux-key"),
            sticky=conversation(record.client, parsed) if self._settings.sticky else None,
            goes_on=goes_on(parsed),
        )


async def _tell(reply: Reply, error: GatewayError) -> None:
    if reply.begun:
        raise BrokenAnswerError(str(error))
    retry_after = error.retry_after
    await reply.error(error.code, error.message, retry_after=None if retry_after == math.inf else retry_after)
