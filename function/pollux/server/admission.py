"""Admission: the client's token, how many requests at once, the body and its size. And the error boundary: an error
anywhere below reaches the client from here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from pollux import log as logs
from pollux.backends.keys.contract import KeySourceError
from pollux.backends.keys.tokens import TokenError, Tokens, TokenSource
from pollux.backends.store.contract import StoreError, StoreUnavailableError
from pollux.gemini.body import read, read_strictly, with_body
from pollux.gemini.call import INTERACTION, read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import client_deadline, upstream_headers
from pollux.gemini.upload import read_upload
from pollux.pool.pool import Pool
from pollux.pool.reservation import StoppingError
from pollux.relay.address import own_base
from pollux.relay.client import (
    HEAD_MOST,
    BodyMemory,
    ClientGoneError,
    PassingBody,
    Receive,
    Scope,
    Send,
    Watch,
    head_size,
    read_body,
    uncancel,
)
from pollux.relay.journal import Journal, Record
from pollux.relay.passing import BrokenAnswerError, Reply, api_of
from pollux.relay.request import Incoming, Request, conversation, has_history
from pollux.resources.uploads import Uploads, is_large
from pollux.settings import MODES, Settings

log = logging.getLogger("pollux.request")

SERVER_TIMEOUT_MARGIN = 10.0
IDS_NAMED = 20


class Patience(NamedTuple):
    """Seconds after SIGTERM. A request that gets a slot within `wait` is still served; after `cut`, requests still
    running end with an error; after `finish`, the server waits for nothing more.
    """

    wait: float
    cut: float
    finish: int


AT_HOME = Patience(5.0, 28.0, 30)
IN_CLOUD = Patience(2.0, 7.0, 8)
"""Cloud Run sends SIGKILL after ten."""


class Admission:
    def __init__(self, settings: Settings, tokens: TokenSource, pool: Pool, uploads: Uploads, journal: Journal) -> None:
        self.tokens = tokens
        self._settings = settings
        self._pool = pool
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
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        cors: Sequence[tuple[bytes, bytes]],
        handler: Callable[[Incoming], Callable[[Incoming], Awaitable[None]]],
    ) -> None:
        """Read the head, call the handler for it, turn errors into answers, and write the request's record.

        `handler` returns what serves the request.
        """
        record = Record()
        reply = Reply(send, record, cors)
        journal = self._journal
        journal.under_way += 1
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = reply
        try:
            incoming = _read_head(scope, receive, reply, record)
            await handler(incoming)(incoming)
        except GatewayError as error:
            await reply.error(error)
        except StoreError as error:
            if not isinstance(error, StoreUnavailableError):  # StoreHealth has logged that already, once
                log.error("the store failed: %s", error)
            said = "the store that counts quotas does not answer"
            await reply.error(GatewayError("STORE_DOWN", said, retry_after=2.0))
        except StoppingError:
            said = "the gateway stops before a slot is free"
            await reply.error(GatewayError("STOPPING", said, retry_after=1.0))
        except ClientGoneError:
            record.status, record.ended = record.status or 499, "client-gone"
        except asyncio.CancelledError:
            if not reply.cut:
                raise
            uncancel()
            record.ended = "cut" if reply.begun else ""
            said = "the gateway stops before the answer is there"
            await reply.error(GatewayError("STOPPING", said, retry_after=1.0))
        except BrokenAnswerError as error:
            record.ended = "broken"
            log.warning("request %s: the answer broke after it had begun: %s", record.id, error)
            raise
        except Exception:
            log.exception("request %s failed because of a bug in Pollux", record.id)
            await reply.error(GatewayError("INTERNAL", "Pollux itself failed; its log has the reason"))
        finally:
            del self._running[task]
            journal.under_way -= 1
            journal.close(record)
            logs.request_line(record.as_json())

    async def continue_upload(self, incoming: Incoming) -> None:
        """Continue an upload. The credential is the token in its address; SDKs send no client token here. If one comes,
        it must be of the client that began the upload.
        """
        assert incoming.upload is not None
        tokens = await self._known_tokens()
        session = await self._uploads.session(incoming.upload.token)
        if not tokens.knows(session.client):
            if not tokens.complete:
                raise _tokens_unreadable()
            raise GatewayError("BAD_UPLOAD_ID", "the client that began this upload has no valid token any more")
        if tokens.check(incoming.scope["headers"], incoming.query) not in (None, session.client):
            raise GatewayError("UPLOAD_OF_ANOTHER", "this upload was begun by another client than the one that calls")
        incoming.record.client = session.client
        self._check_load()
        await self._uploads.continue_upload(incoming, session)

    async def forbid(self, incoming: Incoming) -> None:
        await self._authenticate(incoming)
        raise GatewayError(
            "FORBIDDEN_PATH",
            f"{incoming.call.guard} is closed here: it would hand out or bypass what this gateway guards; "
            "its owner may name it in POLLUX_ALLOW_PATHS",
        )

    async def let_in(self, incoming: Incoming, serve: Callable[[Request], Awaitable[None]]) -> None:
        """Check the client, read the body, and serve the request until it ends or the client leaves."""
        scope, receive, upload = incoming.scope, incoming.receive, incoming.upload
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        await self._authenticate(incoming)
        if (wanted := incoming.headers.get(b"x-pollux-key")) is not None:
            await self._check_key(wanted.decode("latin-1"))
        self._check_load()
        streamed = None
        if upload is not None and upload.form == "once" and is_large(headers, self._settings.max_body):
            watch = Watch(receive, None)
            body, streamed = b"", PassingBody(headers, receive, watch.begin)
        else:
            body = await read_body(headers, receive, self._settings.max_body, self._memory)
            watch = Watch(receive)
        held = len(body)
        try:
            with watch:
                if upload is not None and await self._uploads.kept_here(incoming, body, streamed):
                    return
                request = self._request(incoming, body)
                if upload is not None:
                    request.readdress = self._uploads.readdress(incoming)
                    request.begins_upload = upload.form == "start"
                if streamed is not None:
                    request.streamed, request.headers = streamed, upstream_headers(headers, content=True)
                if len(request.readable) != held:  # it was inflated
                    self._memory.hold(len(request.readable) - held)
                    held = len(request.readable)
                await serve(request)
        finally:
            self._memory.release(held)

    async def _authenticate(self, incoming: Incoming) -> None:
        tokens = await self._known_tokens()
        client = tokens.check(incoming.scope["headers"], incoming.query)
        if client is None:
            if not tokens.complete:
                raise _tokens_unreadable()
            raise GatewayError(
                "NO_TOKEN",
                "wrong or missing Pollux token: send a client token of this gateway as x-goog-api-key or "
                "Authorization: Bearer",
            )
        incoming.record.client = client

    async def _known_tokens(self) -> Tokens:
        try:
            return await self.tokens.tokens()
        except (TokenError, KeySourceError) as error:
            log.error("client tokens cannot be loaded: %s", error)
            raise _tokens_unreadable() from None

    async def _check_key(self, wanted: str) -> None:
        """Refuse x-pollux-key unless it names a key in use. The message does not repeat it: it may be a key's value."""
        keys = await self._pool.projects.keyring.keys()
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

    def _check_load(self) -> None:
        if self._journal.under_way > (most := self._settings.max_concurrent):
            said = f"{most} requests are under way already (POLLUX_MAX_CONCURRENT)"
            raise GatewayError("OVERLOADED_GATEWAY", said, retry_after=1.0)

    def _request(self, incoming: Incoming, body: bytes) -> Request:
        call, record, settings = incoming.call, incoming.record, self._settings
        headers: Sequence[tuple[bytes, bytes]] = incoming.scope["headers"]
        names_files = body and settings.files == "pooled" and incoming.upload is None and call.kind != "guarded"
        read_it = read_strictly if names_files else read
        readable, parsed = read_it(call, body, incoming.headers, settings.max_body)
        if parsed is not None:
            call = with_body(call, parsed)
            record.what = call.verb if call.verb == INTERACTION else record.what
        record.asked = call.model or ""
        own, server = client_deadline(headers)
        waits = [settings.max_wait]
        waits += [] if own is None else [own]
        waits += [] if server is None else [max(0.0, server - SERVER_TIMEOUT_MARGIN)]
        mode = incoming.headers.get(b"x-pollux-mode", b"").decode("latin-1") or settings.mode
        if mode not in MODES:
            raise GatewayError("BAD_REQUEST", f"x-pollux-mode must be one of {', '.join(MODES)}")
        fallback = incoming.headers.get(b"x-pollux-fallback", b"on").decode("latin-1").lower()
        if fallback not in ("on", "off", ""):
            raise GatewayError("BAD_REQUEST", "x-pollux-fallback must be on or off")
        prefer_key = incoming.headers.get(b"x-pollux-key")
        return Request(
            call=call,
            method=incoming.scope["method"],
            headers=upstream_headers(headers, content=bool(body)),
            body=body,
            readable=readable,
            parsed=parsed,
            record=record,
            reply=incoming.reply,
            deadline=self._pool.now() + min(waits),
            patient=own is None and server is None and settings.max_wait > 0,
            stream=call.stream,
            fallback=fallback != "off",
            mode=mode,
            prefer_key=None if prefer_key is None else prefer_key.decode("latin-1"),
            sticky=conversation(record.client, parsed) if settings.sticky else None,
            has_history=has_history(parsed),
            own_base=partial(own_base, incoming.scope, settings.public_url, proxied=settings.in_cloud),
        )


def _read_head(scope: Scope, receive: Receive, reply: Reply, record: Record) -> Incoming:
    if head_size(scope) > HEAD_MOST:
        record.api = api_of(scope)
        raise GatewayError("HEAD_TOO_LARGE", f"the path and the headers are larger than {HEAD_MOST} bytes")
    headers = dict(reversed(scope["headers"]))
    path, query = scope.get("raw_path") or scope["path"].encode(), scope.get("query_string", b"")
    bearer = b"authorization" in headers and b"x-goog-api-key" not in headers
    call = read_target(scope["method"], path, query, bearer=bearer)
    upload = read_upload(scope["method"], call, scope["headers"]) if call.kind == "other" else None
    record.api = call.api
    record.what = call.verb or call.kind if upload is None else f"upload-{upload.what}"
    return Incoming(scope, receive, reply, record, call, upload, headers, query)


def _tokens_unreadable() -> GatewayError:
    return GatewayError("TOKENS_UNREADABLE", "the client tokens cannot be read at the moment", retry_after=5)
