"""Uploads: a start gets an address of ours in the place of Google's, and what comes to that address goes on there.

Nothing is kept here: the address carries a sealed token (`upload_token`) that says which session at Google it stands
for. Any instance goes on with any upload. Bodies pass through and are never held.
"""

import json
from functools import partial

from pollux.backends.keys.contract import Key
from pollux.backends.upstream import UpstreamError
from pollux.gemini.call import read_target
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import upstream_headers
from pollux.gemini.names import GOOGLE, answer_names
from pollux.gemini.rewrite import to_client
from pollux.gemini.upload import UPLOAD_ADDRESSES, session_target
from pollux.pool.pool import Pool
from pollux.relay.address import own_base
from pollux.relay.client import PassingBody, Scope, Watch, body_length
from pollux.relay.journal import Attempt
from pollux.relay.passing import Reply, collect, nothing_to_settle, pass_on
from pollux.relay.request import Incoming
from pollux.relay.send import NO_CREDENTIAL, CoveredAnswer, Failure, Headers, KeyedUpstream, Readdress, broken
from pollux.resources.ownership import Ownership
from pollux.resources.pooled.taking import HeldBody
from pollux.resources.pooled.uploads import POOLED, PooledUploads, UploadRequest
from pollux.resources.upload_token import (
    LIFETIME,
    Session,
    UploadTokenError,
    address_of,
    checked,
    claimed,
    sealing_value,
)

HELD_MOST = 1 << 20
"""An upload in one request, up to this size, is read whole."""
GO_ON = 308
"""In the older protocol: more is to come."""


class Uploads:
    def __init__(self, pool: Pool, upstream: KeyedUpstream, ownership: Ownership) -> None:
        self._settings = pool.settings
        self._pool = pool
        self._upstream = upstream
        self._ownership = ownership
        self.pooled: PooledUploads | None = None
        """With POLLUX_FILES=pooled."""

    async def kept_here(self, incoming: Incoming, body: bytes, passing: PassingBody | None) -> bool:
        """Whether the file is pooled: then the client has its answer. `passing`: the body, if it is not held."""
        upload = incoming.upload
        if self.pooled is None or upload is None:
            return False
        if not await self.pooled.takes(upload, incoming.call, incoming.scope["headers"]):
            return False
        request = self._upload_request(incoming)
        if upload.form == "start":
            await self.pooled.start(request, body)
        else:
            await self.pooled.once(request, passing or HeldBody(body))
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
                text = await self._address(base, session)
            shown.append((name, text))
        return shown

    async def _address(self, base: str, session: Session) -> bytes:
        try:
            return address_of(base, session, await sealing_value(self._pool.projects.keyring, session.key))
        except UploadTokenError as error:
            raise GatewayError("UPSTREAM_ERROR", str(error)) from None

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

    async def go_on(self, incoming: Incoming, session: Session) -> None:
        """Serve a further request of an upload, until it ends or the client leaves."""
        watch = Watch(incoming.receive, None)
        body = PassingBody(incoming.scope["headers"], incoming.receive, watch.begin)
        with watch:
            if session.target.startswith(POOLED):
                if self.pooled is None:
                    raise GatewayError("BAD_UPLOAD_ID", "the upload began while POLLUX_FILES was pooled: begin it anew")
                request, name = self._upload_request(incoming), session.target.removeprefix(POOLED)
                if (at_google := await self.pooled.go_on(request, name, body)) is None:
                    return
                session = at_google
            await self._send_on(incoming, session, body)

    async def _send_on(self, incoming: Incoming, session: Session, body: PassingBody) -> None:
        """Send the request once, to the session's address at Google.

        No key is sent: Google asks for the address only. So the upload goes on even if its key is disabled by now.
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
            refused = answer if isinstance(answer, Failure) else await self._passed(base, session, answer, reply)
            if refused is None or refused.status == GO_ON:
                cause = "ok"
            else:
                cause = "timeout" if refused.timed_out else refused.verdict.cause
            if refused is not None:  # what it means for the upload is the client's to judge
                if refused.problem is not None:
                    raise refused.problem
                await reply.whole(refused.status, refused.headers, refused.body)
        finally:
            if record.sent:
                said = f"{body.passed} bytes passed"
                record.attempts.append(Attempt("", session.project, session.key, cause, status, detail=said))

    async def _passed(self, base: str, session: Session, answer: CoveredAnswer, reply: Reply) -> Failure | None:
        """Pass a good answer on, with our addresses in the place of Google's."""
        try:
            body, whole = await collect(answer)
            body = await self._made(body, base, session) if whole else body
            await pass_on(reply, answer, nothing_to_settle, body, whole=whole)
        except UpstreamError as error:
            return broken(Key(session.key, session.project), error, self._pool.now())
        finally:
            answer.close()
        return None

    async def _made(self, body: bytes, base: str, session: Session) -> bytes:
        """An answer that names what came of the upload: that is bound, and its URI points to us."""
        try:
            document = json.loads(body) if body else None
        except (ValueError, RecursionError):
            document = None
        upstream = self._settings.upstream
        path, _, query = session.target.partition("?")
        names = answer_names(document, read_target("POST", path, query), (upstream, GOOGLE))
        await self._ownership.bind(names, session.project, session.client)
        return to_client(body, upstream, base) if names else body


def is_large(headers: Headers, most: int) -> bool:
    """Too large to be held, so that it can be sent only once. A smaller one is sent again if its key is refused."""
    length = body_length(headers)
    return length is None or length > min(HELD_MOST, most)
