"""Uploads: the client gets an address of ours instead of Google's, and what it sends there goes to Google's.

Nothing is stored: the address has a sealed token (`upload_token`) that names the session at Google, so that any
instance can continue any upload. Bodies pass through and are not held. With POLLUX_FILES=pooled, files go to
`pooled.uploads`.
"""

from functools import partial

from pollux.backends.keys.contract import Key
from pollux.backends.upstream import UpstreamError
from pollux.gemini.call import read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import upstream_headers
from pollux.gemini.upload import UPLOAD_ADDRESSES, session_target
from pollux.pool.pool import Pool
from pollux.relay.address import own_base
from pollux.relay.client import PassingBody, Scope, Watch, body_length
from pollux.relay.journal import Attempt
from pollux.relay.passing import Reply, collect, nothing_to_settle, pass_on
from pollux.relay.request import Incoming
from pollux.relay.send import NO_CREDENTIAL, CoveredAnswer, Failure, Headers, KeyedUpstream, Readdress, broken
from pollux.resources.answers import Answers
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.parts import HeldBody
from pollux.resources.pooled.uploads import POOLED, PooledUploads, UploadRequest, session_address
from pollux.resources.upload_token import LIFETIME, Session, UploadTokenError, checked, claimed, sealing_value

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

    async def kept_here(self, incoming: Incoming, body: bytes, streamed: PassingBody | None) -> bool:
        """Whether the file is pooled: then the client has its answer. `streamed`: the body, if it is not held."""
        upload = incoming.upload
        if self.pooled is None or upload is None:
            return False
        if not await self.pooled.takes(upload, incoming.call, incoming.scope["headers"]):
            return False
        request = self._upload_request(incoming)
        if upload.form == "start":
            await self.pooled.start(request, body)
        else:
            await self.pooled.once(request, streamed or HeldBody(body))
        return True

    def _upload_request(self, incoming: Incoming) -> UploadRequest:
        headers = incoming.scope["headers"]
        return UploadRequest(incoming.call, headers, incoming.record, incoming.reply, self._base(incoming.scope))

    def readdress(self, incoming: Incoming) -> Readdress:
        """Rewrites the headers of an upload's answers: Google's address of the session becomes one of ours."""
        return partial(self._readdressed, self._base(incoming.scope) + incoming.call.path, incoming.record.client)

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

    async def session(self, token: str) -> Session:
        """The upload that is continued. No message repeats what the token says before its seal is checked."""
        keyring = self._pool.projects.keyring
        try:
            key_id = claimed(token).key
            if all(key.id != key_id for key in await keyring.keys()):
                raise UploadTokenError(
                    "the upload_id is not of this gateway, or the key that began the upload is gone: begin it anew"
                )
            return checked(token, await sealing_value(keyring, key_id), self._pool.now())
        except UploadTokenError as error:
            raise GatewayError("BAD_UPLOAD_ID", str(error)) from None

    async def continue_upload(self, incoming: Incoming, session: Session) -> None:
        """Serve a further request of an upload, until it ends or the client leaves."""
        watch = Watch(incoming.receive, None)
        body = PassingBody(incoming.scope["headers"], incoming.receive, watch.begin)
        with watch:
            if session.target.startswith(POOLED):
                if self.pooled is None:
                    raise GatewayError("BAD_UPLOAD_ID", "the upload began while POLLUX_FILES was pooled: begin it anew")
                request, name = self._upload_request(incoming), session.target.removeprefix(POOLED)
                if (at_google := await self.pooled.continue_upload(request, name, body)) is None:
                    return
                session = at_google
            await self._send_on(incoming, session, body)

    async def _send_on(self, incoming: Incoming, session: Session, body: PassingBody) -> None:
        """Send the request once, to the session's address at Google.

        No key is sent, as Google does not ask for one there. So the upload continues even if its key is disabled.
        """
        scope, record, reply = incoming.scope, incoming.record, incoming.reply
        record.project, record.key = session.project, session.key
        cause, status = "cut-short", None
        try:
            answer = await self._upstream.send(
                Key(session.key, session.project),
                scope["method"],
                session.target,
                upstream_headers(scope["headers"], content=body.length != 0),
                body,
                credential=NO_CREDENTIAL,
                readdress=self.readdress(incoming),
                begins=partial(setattr, record, "sent", 1),
            )
            status = answer.status or None
            base = self._base(scope)
            failure = answer if isinstance(answer, Failure) else await self._pass_on(base, session, answer, reply)
            if failure is None or failure.status == INCOMPLETE:
                cause = "ok"
            else:
                cause = "timeout" if failure.timed_out else failure.verdict.cause
            if failure is not None:  # the client decides how its upload continues
                if failure.problem is not None:
                    raise failure.problem
                await reply.whole(failure.status, failure.headers, failure.body)
        finally:
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
