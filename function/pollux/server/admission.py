"""Lets requests in: who calls, how many at once, how large is the body. And tells clients what went wrong later."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pollux import log as logs
from pollux.backends.keys.tokens import TokenSource
from pollux.backends.store.contract import StoreError, StoreUnavailableError
from pollux.gemini.body import read, read_strictly, with_body
from pollux.gemini.call import INTERACTION, Call, read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import client_deadline, upstream_headers
from pollux.gemini.upload import Upload, read_upload
from pollux.pool.pool import Pool, StoppingError
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
from pollux.relay.request import Exchange, conversation, goes_on
from pollux.resources.uploads import Uploads, is_large
from pollux.server.authenticate import Callers
from pollux.settings import MODES, Settings

if TYPE_CHECKING:
    from pollux.server.routes import ApiRoute

log = logging.getLogger("pollux.request")

SERVER_TIMEOUT_MARGIN = 10.0
IDS_NAMED = 20


class Patience(NamedTuple):
    """Seconds after SIGTERM. Requests that get a slot within `wait` are still served; what still runs after `cut` is
    ended with an error; after `finish` the server waits for nothing more.
    """

    wait: float
    cut: float
    finish: int


AT_HOME = Patience(5.0, 28.0, 30)
IN_CLOUD = Patience(2.0, 7.0, 8)
"""Cloud Run sends SIGKILL after ten."""


@dataclass(slots=True)
class Asked:
    """A request for the Gemini API as it came: its head is read, nothing else."""

    scope: Scope
    receive: Receive
    reply: Reply
    record: Record
    call: Call
    upload: Upload | None
    headers: Mapping[bytes, bytes]
    """By name; of several with one name the first."""


Way = Callable[[Exchange], Awaitable[None]]
"""Answers a request that was let in."""


class Reception:
    def __init__(self, settings: Settings, tokens: TokenSource, pool: Pool, uploads: Uploads, journal: Journal) -> None:
        self._settings = settings
        self.callers = Callers(tokens, pool.projects.keyring, pool.now)
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
        found: Callable[[Asked], "ApiRoute"],
    ) -> None:
        """The error boundary: whatever goes wrong on a way, the client is told, and the request is on record.

        `found` says which way the request goes, once its head is read."""
        record = Record()
        reply = Reply(send, record, head=scope["method"] == "HEAD", extra=cors)
        journal = self._journal
        journal.under_way += 1
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = reply
        try:
            asked = _read_head(scope, receive, reply, record)
            await found(asked).serve(asked)
        except GatewayError as error:
            await _tell(reply, error)
        except StoreError as error:
            if not isinstance(error, StoreUnavailableError):  # the store's watch logs that, once
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

    async def go_on(self, asked: Asked) -> None:
        """More of an upload, at the address that was given out when it began: the token in that is the credential."""
        assert asked.upload is not None
        scope, record = asked.scope, asked.record
        session = await self.callers.uploader(asked.upload.token, scope["headers"], scope.get("query_string", b""))
        record.client = session.client
        if self._journal.under_way > self._settings.max_concurrent:
            raise self._crowded()
        await self._uploads.go_on(scope, asked.receive, asked.call, session, asked.reply, record)

    async def forbid(self, asked: Asked) -> None:
        asked.record.client = await self.callers.client(asked.scope["headers"], asked.scope.get("query_string", b""))
        raise GatewayError(
            "FORBIDDEN_PATH",
            f"{asked.call.guard} is closed here: it would hand out or bypass what this gateway guards; "
            "its owner may name it in POLLUX_ALLOW_PATHS",
        )

    async def let_in(self, asked: Asked, way: Way) -> None:
        """Check who calls, read the body, and go that way, until it ends or the client leaves."""
        scope, receive, call, upload, record = asked.scope, asked.receive, asked.call, asked.upload, asked.record
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        record.client = await self.callers.client(headers, scope.get("query_string", b""))
        if (wanted := asked.headers.get(b"x-pollux-key")) is not None:
            await self._known_key(wanted.decode("latin-1"))
        if self._journal.under_way > self._settings.max_concurrent:
            raise self._crowded()
        passing = None
        if upload is not None and upload.form == "once" and is_large(headers, self._settings.max_body):
            watch = Watch(receive, None)
            body, passing = b"", PassingBody(headers, receive, watch.begin)
        else:
            body = await read_body(headers, receive, self._settings.max_body, self._memory)
            watch = Watch(receive)
        held = len(body)
        try:
            if upload is not None and await self._uploads.kept_here(
                scope, call, upload, body, passing, asked.reply, record
            ):
                return
            x = self._exchange(asked, body)
            x.own_base = partial(own_base, scope, self._settings.public_url, proxied=self._settings.in_cloud)
            if upload is not None:
                x.readdress = self._uploads.readdress(scope, call, record.client)
                x.begins_upload = upload.form == "start"
            if passing is not None:
                x.passing, x.headers = passing, upstream_headers(headers, content=True)
            if len(x.readable) != held:  # it was inflated
                self._memory.hold(len(x.readable) - held)
                held = len(x.readable)
            await way(x)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            uncancel()
            record.status, record.ended = record.status or 499, "client-gone"
        finally:
            watch.stop()
            self._memory.release(held)

    async def _known_key(self, wanted: str) -> None:
        """Whether the header names a key in use. The message does not repeat it: it may be a key's value."""
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

    def _crowded(self) -> GatewayError:
        said = f"{self._settings.max_concurrent} requests are under way already (POLLUX_MAX_CONCURRENT)"
        return GatewayError("OVERLOADED_GATEWAY", said, retry_after=1.0)

    def _exchange(self, asked: Asked, body: bytes) -> Exchange:
        """The request as the relay works on it."""
        call, record, settings = asked.call, asked.record, self._settings
        headers: Sequence[tuple[bytes, bytes]] = asked.scope["headers"]
        names_files = body and settings.files == "pooled" and asked.upload is None and call.kind != "guarded"
        read_it = read_strictly if names_files else read
        readable, parsed = read_it(call, body, asked.headers, settings.max_body)
        if parsed is not None:
            call = with_body(call, parsed)
            record.what = call.verb if call.verb == INTERACTION else record.what
        record.asked = call.model or ""
        own, server = client_deadline(headers)
        waits = [settings.max_wait]
        waits += [] if own is None else [own]
        waits += [] if server is None else [max(0.0, server - SERVER_TIMEOUT_MARGIN)]
        mode = asked.headers.get(b"x-pollux-mode", b"").decode("latin-1") or settings.mode
        if mode not in MODES:
            raise GatewayError("BAD_REQUEST", f"x-pollux-mode must be one of {', '.join(MODES)}")
        fallback = asked.headers.get(b"x-pollux-fallback", b"on").decode("latin-1").lower()
        if fallback not in ("on", "off", ""):
            raise GatewayError("BAD_REQUEST", "x-pollux-fallback must be on or off")
        prefer_key = asked.headers.get(b"x-pollux-key")
        return Exchange(
            call=call,
            method=asked.scope["method"],
            headers=upstream_headers(headers, content=bool(body)),
            body=body,
            readable=readable,
            parsed=parsed,
            record=record,
            reply=asked.reply,
            deadline=self._pool.now() + min(waits),
            patient=own is None and server is None and settings.max_wait > 0,
            stream=call.stream,
            fallback=fallback != "off",
            mode=mode,
            prefer_key=None if prefer_key is None else prefer_key.decode("latin-1"),
            sticky=conversation(record.client, parsed) if settings.sticky else None,
            goes_on=goes_on(parsed),
        )


def _read_head(scope: Scope, receive: Receive, reply: Reply, record: Record) -> Asked:
    if head_size(scope) > HEAD_MOST:
        record.api = api_of(scope)
        raise GatewayError("HEAD_TOO_LARGE", f"the path and the headers are larger than {HEAD_MOST} bytes")
    headers = dict(reversed(scope["headers"]))
    path = scope.get("raw_path") or scope["path"].encode()
    bearer = b"authorization" in headers and b"x-goog-api-key" not in headers
    call = read_target(scope["method"], path, scope.get("query_string", b""), bearer=bearer)
    upload = read_upload(scope["method"], call, scope["headers"]) if call.kind == "other" else None
    record.api = call.api
    record.what = call.verb or call.kind if upload is None else f"upload-{upload.what}"
    return Asked(scope, receive, reply, record, call, upload, headers)


async def _tell(reply: Reply, error: GatewayError) -> None:
    if reply.begun:
        raise BrokenAnswerError(str(error))
    retry_after = error.retry_after
    await reply.error(error.code, error.message, retry_after=None if retry_after == math.inf else retry_after)
