"""Uploads: the client gets an address of ours instead of Google's, and what it sends there goes to Google's.

Nothing is stored: the address has a sealed token (`upload_token`) that names the session at Google, so that any
instance can continue any upload. Bodies pass through and are not held. With POLLUX_FILES=pooled, files go to
`pooled.uploads`.
"""

import asyncio
from functools import partial

from pollux.backends.keys.contract import Key
from pollux.backends.upstream import UpstreamError
from pollux.gemini.call import Call, read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import upstream_headers
from pollux.gemini.upload import UPLOAD_ADDRESSES, Upload, session_target
from pollux.pool.pool import Pool
from pollux.relay.address import own_base
from pollux.relay.client import PassingBody, Receive, Scope, Watch, body_length, uncancel
from pollux.relay.journal import Attempt, Record
from pollux.relay.passing import Reply, collect, nothing_to_settle, pass_on
from pollux.relay.send import NO_CREDENTIAL, CoveredAnswer, Failure, Headers, KeyedUpstream, Readdress, broken
from pollux.resources.answers import Answers
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.parts import HeldBody
from pollux.resources.pooled.uploads import POOLED, PooledUploads, UploadRequest, session_address
from pollux.resources.upload_token import LIFETIME, Session

HELD_MOST = 1 << 20
"""An upload in one request is read whole up to this size."""
INCOMPLETE = 308
"""The older protocol's status for a chunk that is not the last."""


class Uploads:
    def __init__(self, pool: Pool, upstream: KeyedUpstream, ownership: Ownership) -> None:
        self._settings = pool.settings
        self._pool = pool
        self._upstream = upstream
        self._answers = Answers(ownership, pool.settings.upstream)
        self.pooled: PooledUploads | None = None
        """With POLLUX_FILES=pooled."""

    async def kept_here(
        self,
        scope: Scope,
        call: Call,
        upload: Upload,
        body: bytes,
        passing: PassingBody | None,
        reply: Reply,
        record: Record,
    ) -> bool:
        """Whether the file is pooled: then the client has its answer. `passing`: the body, if it is not held."""
        if self.pooled is None or not await self.pooled.takes(upload, call, scope["headers"]):
            return False
        request = UploadRequest(call, scope["headers"], record, reply, self._base(scope))
        if upload.form == "start":
            await self.pooled.start(request, body)
        else:
            await self.pooled.once(request, passing or HeldBody(body))
        return True

    def readdress(self, scope: Scope, call: Call, client: str) -> Readdress:
        """Rewrites the headers of an upload's answers: Google's address of the session becomes one of ours."""
        return partial(self._readdressed, self._base(scope) + call.path, client)

    def _base(self, scope: Scope) -> str:
        return own_base(scope, self._settings.public_url, proxied=self._settings.in_cloud)

    async def _readdressed(self, base: str, client: str, headers: Headers, key: Key) -> list[tuple[bytes, bytes]]:
        shown = []
        for name, text in headers:
            if name in UPLOAD_ADDRESSES:
                target = session_target(text, self._settings.upstream)
                if not target:
                    raise GatewayError("UPSTREAM_ERROR", "Gemini began an upload and returned an invalid upload URL")
                session = Session(target, key.project, key.id, client, self._pool.now() + LIFETIME)
                text = await session_address(self._pool, base, session)
            shown.append((name, text))
        return shown

    async def go_on(
        self, scope: Scope, receive: Receive, call: Call, session: Session, reply: Reply, record: Record
    ) -> None:
        """Send a request of an upload's session, once, to the session's address at Google.

        No key is sent, as Google does not ask for one there. So the upload continues even if its key is disabled.
        """
        base = self._base(scope)
        watch = Watch(receive, None)
        body = PassingBody(scope["headers"], receive, watch.begin)
        cause, status = "cut-short", None
        try:
            if session.target.startswith(POOLED):
                if self.pooled is None:
                    raise GatewayError("BAD_UPLOAD_ID", "the upload began while POLLUX_FILES was pooled: begin it anew")
                request = UploadRequest(call, scope["headers"], record, reply, base)
                passed = await self.pooled.go_on(request, session.target.removeprefix(POOLED), body)
                if passed is None:
                    return
                session = passed
            record.project, record.key = session.project, session.key
            answer = await self._upstream.send(
                Key(session.key, session.project),
                scope["method"],
                session.target,
                upstream_headers(scope["headers"], content=body.length != 0),
                body,
                credential=NO_CREDENTIAL,
                readdress=self.readdress(scope, call, session.client),
                begins=partial(setattr, record, "sent", 1),
            )
            status = answer.status or None
            failure = answer if isinstance(answer, Failure) else await self._pass_on(base, session, answer, reply)
            if failure is None or failure.status == INCOMPLETE:
                cause = "ok"
            else:
                cause = "timeout" if failure.timed_out else failure.verdict.cause
            if failure is not None:  # the client decides how its upload continues
                if failure.problem is not None:
                    raise failure.problem
                await reply.whole(failure.status, failure.headers, failure.body)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            uncancel()
            record.status, record.ended = record.status or 499, "client-gone"
        finally:
            watch.stop()
            if record.sent:
                detail = f"{body.passed} bytes passed"
                record.attempts.append(Attempt("", session.project, session.key, cause, status, detail=detail))

    async def _pass_on(self, base: str, session: Session, answer: CoveredAnswer, reply: Reply) -> Failure | None:
        try:
            body, whole = await collect(answer)
            if whole:
                call = read_target("POST", *session.target.partition("?")[::2])
                body = await self._answers.bound(body, call, session.project, session.client, lambda: base)
            await pass_on(reply, answer, nothing_to_settle, body, whole=whole)
        except UpstreamError as error:
            return broken(Key(session.key, session.project), error, self._pool.now())
        finally:
            answer.close()
        return None


def is_large(headers: Headers, most: int) -> bool:
    """Too large to be held, so that it can be sent only once. A smaller upload is sent again if its key is refused."""
    length = body_length(headers)
    return length is None or length > min(HELD_MOST, most)
