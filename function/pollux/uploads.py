"""Uploads: a start gets an address of ours in the place of Google's, and what comes to that address goes on there.

Nothing is kept here: the address carries a sealed token (`upload_token`) that says which session at Google it stands
for. Any instance goes on with any upload. Bodies pass through and are never held.
"""

import asyncio
import json
from collections.abc import Sequence

from pollux import wire
from pollux.address import own_base
from pollux.affinity import Affinity
from pollux.attempts import judged, unanswered
from pollux.exchange import Readdress
from pollux.inbound import PassingBody, Receive, Scope, Watch, body_length, uncancel
from pollux.journal import Attempt, Record
from pollux.keys import Key, KeySourceError, Secret
from pollux.log import guard
from pollux.outbound import Reply, collect, covered, nothing_to_settle, pass_on
from pollux.pool import Pool
from pollux.pooled.receiving import POOLED, Arrival, Receiving
from pollux.pooled.taking import HeldBody
from pollux.settings import in_cloud
from pollux.upload_token import LIFETIME, Session, UploadTokenError, seal
from pollux.upstream import Answer, Upstream, UpstreamError
from pollux.wire import Call
from pollux.wire.error import GatewayError

HELD_MOST = 1 << 20
"""An upload in one request, up to this size, is read whole."""
GO_ON = 308
"""In the older protocol: more is to come."""

RawHeaders = Sequence[tuple[bytes, bytes]]


class Uploads:
    def __init__(self, pool: Pool, upstream: Upstream, affinity: Affinity) -> None:
        self._settings = pool.settings
        self._pool = pool
        self._upstream = upstream
        self._affinity = affinity
        self.receiving: Receiving | None = None
        """With POLLUX_FILES=pooled."""

    async def kept_here(
        self,
        scope: Scope,
        call: Call,
        upload: wire.Upload,
        body: bytes,
        passing: PassingBody | None,
        reply: Reply,
        record: Record,
    ) -> bool:
        """Whether the file is pooled: then the client has its answer. `passing`: the body, if it is not held."""
        if self.receiving is None or not await self.receiving.takes(upload, call, scope["headers"]):
            return False
        arrival = self._arrival(scope, call, reply, record)
        if upload.form == "start":
            await self.receiving.start(arrival, body)
        else:
            await self.receiving.once(arrival, passing or HeldBody(body))
        return True

    def _arrival(self, scope: Scope, call: Call, reply: Reply, record: Record) -> Arrival:
        return Arrival(call, scope["headers"], record, reply, self._base(scope))

    def readdress(self, scope: Scope, call: Call, client: str) -> Readdress:
        """What an answer's headers need within an upload: Google's address of the session becomes one of ours."""
        return self._ours(self._base(scope) + call.path, client)

    def _base(self, scope: Scope) -> str:
        return own_base(scope, self._settings.public_url, proxied=in_cloud())

    def _ours(self, address: str, client: str) -> Readdress:
        def ours(raw: RawHeaders, passed: list[tuple[bytes, bytes]], key: Key, value: str) -> list[tuple[bytes, bytes]]:
            kept = [(name, text) for name, text in passed if name not in wire.UPLOAD_ADDRESSES]
            for name, text in raw:
                if (lower := name.lower()) in wire.UPLOAD_ADDRESSES:
                    target = wire.session_target(text, self._settings.upstream)
                    session = Session(target, key.project, key.id, client, self._pool.now() + LIFETIME)
                    kept.append((lower, _at(address, session, value)))
                elif lower == b"range":  # how much has come, in the older protocol
                    kept.append((lower, text))
            return kept

        return ours

    async def go_on(
        self, scope: Scope, receive: Receive, call: Call, session: Session, value: Secret, reply: Reply, record: Record
    ) -> None:
        """A piece of an upload, a question or its end, sent on once, to the address where the upload began.

        No key travels: the address is all that Google asks for, as of its own SDKs. So it does not matter here whether
        the key that began is still in use.
        """
        guard(value.reveal())
        base = self._base(scope)
        watch = Watch(receive, None)
        body = PassingBody(scope["headers"], receive, watch.begin)
        cause, status = "cut-short", None
        try:
            if session.target.startswith(POOLED):
                kept = await self._gone_on_here(scope, call, session, reply, record, body)
                if kept is None:
                    return
                session = kept
                try:
                    value = await self._pool.roster.keyring.value(session.key)
                except KeySourceError as error:
                    raise GatewayError("NO_USABLE_KEY", str(error), retry_after=5.0) from None
                guard(value.reveal())
            record.project, record.key = session.project, session.key
            headers = wire.upstream_headers(scope["headers"], content=body.length != 0)
            record.sent = 1
            answer = await self._upstream.send(scope["method"], session.target, headers, body)
            status = answer.status
            try:
                cause = await self._passed(base, call, session, value.reveal(), answer, reply)
            finally:
                answer.close()
        except UpstreamError as error:
            problem = unanswered(error, value.reveal())
            cause = "timeout" if error.kind == "timeout" else "network"
            raise problem from None
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            uncancel()
            record.status, record.ended = record.status or 499, "client-gone"
        finally:
            watch.stop()
            said = f"{body.passed} bytes passed"
            if record.sent:
                record.attempts.append(Attempt("", session.project, session.key, cause, status, detail=said))

    async def _gone_on_here(
        self, scope: Scope, call: Call, session: Session, reply: Reply, record: Record, body: PassingBody
    ) -> Session | None:
        """None: the client has its answer. Else the session at Google where the upload goes on."""
        if self.receiving is None:
            raise GatewayError("BAD_UPLOAD_ID", "the upload began while POLLUX_FILES was pooled: begin it anew")
        arrival = self._arrival(scope, call, reply, record)
        return await self.receiving.go_on(arrival, session.target.removeprefix(POOLED), body)

    async def _passed(self, base: str, call: Call, session: Session, value: str, answer: Answer, reply: Reply) -> str:
        """Google's answer as it is; what it means for the upload is the client's to judge. Returns its cause."""
        key = Key(session.key, session.project)
        headers = [(name, covered(text, value)) for name, text in wire.client_headers(answer.headers)]
        headers = self._ours(base + call.path, session.client)(answer.headers, headers, key, value)
        if answer.status >= 300 and answer.status != GO_ON:
            verdict, shown, body = judged(answer.status, headers, await answer.read(), value, self._pool.now())
            await reply.whole(answer.status, shown, body)
            return verdict.cause
        body, whole = await collect(answer)
        if whole:
            await reply.whole(answer.status, headers, covered(await self._made(body, base, session), value))
        else:
            await pass_on(reply, answer, headers, nothing_to_settle, body, secret=value)
        return "ok"

    async def _made(self, body: bytes, base: str, session: Session) -> bytes:
        """An answer that names what came of the upload: that is bound, and its URI points to us."""
        try:
            document = json.loads(body) if body else None
        except (ValueError, RecursionError):
            document = None
        upstream = self._settings.upstream
        path, _, query = session.target.partition("?")
        names = wire.answer_names(document, wire.read_target("POST", path, query), (upstream, wire.GOOGLE))
        await self._affinity.bind(names, session.project, session.client)
        return wire.to_client(body, upstream, base) if names else body


def is_large(headers: RawHeaders, most: int) -> bool:
    """Too large to be held, so that it can be sent only once. A smaller one is sent again if its key is refused."""
    length = body_length(headers)
    return length is None or length > min(HELD_MOST, most)


def _at(address: str, session: Session, value: str) -> bytes:
    if not session.target:
        raise GatewayError("UPSTREAM_ERROR", "Gemini began an upload and gave an address that is none")
    try:
        token = seal(session, value)
    except UploadTokenError as error:
        raise GatewayError("UPSTREAM_ERROR", str(error)) from None
    return f"{address}?upload_id={token}&upload_protocol=resumable".encode("latin-1", "replace")
