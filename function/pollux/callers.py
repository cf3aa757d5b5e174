"""Who calls: a client by its token, or whoever holds the address of an upload by the token in that."""

import logging
from collections.abc import Callable

from pollux.auth import TokenError, Tokens, TokenSource
from pollux.inbound import RawHeaders
from pollux.keys import Keyring, KeySourceError, Secret
from pollux.upload_token import Session, UploadTokenError, checked, claimed
from pollux.wire.error import GatewayError

log = logging.getLogger("pollux.request")


class Callers:
    def __init__(self, tokens: TokenSource, keyring: Keyring, now: Callable[[], float]) -> None:
        self.tokens = tokens
        self._keyring = keyring
        self._now = now

    async def client(self, headers: RawHeaders, query: bytes) -> str:
        tokens = await self._known()
        client = tokens.check(headers, query)
        if client is not None:
            return client
        if not tokens.complete:
            raise _unreadable()
        raise GatewayError(
            "NO_TOKEN",
            "this gateway needs a client token of its own, as x-goog-api-key or Authorization: Bearer; none "
            "that it knows was sent",
        )

    async def uploader(self, token: str, headers: RawHeaders, query: bytes) -> tuple[Session, Secret]:
        """The upload that goes on, and the value of the key that began it. SDKs send no client token with it; one that
        comes all the same must be of the client who began.
        """
        tokens = await self._known()
        try:
            value = await self._value(claimed(token).key)
            session = checked(token, value.reveal(), self._now())
        except UploadTokenError as error:
            raise GatewayError("BAD_UPLOAD_ID", str(error)) from None
        if not tokens.knows(session.client):
            if not tokens.complete:
                raise _unreadable()
            raise GatewayError("BAD_UPLOAD_ID", "the client that began this upload has no valid token any more")
        if tokens.check(headers, query) not in (None, session.client):
            raise GatewayError("UPLOAD_OF_ANOTHER", "this upload was begun by another client than the one that calls")
        return session, value

    async def _known(self) -> Tokens:
        try:
            return await self.tokens.tokens()
        except (TokenError, KeySourceError) as error:
            log.error("no client can be known: %s", error)
            raise _unreadable() from None

    async def _value(self, key_id: str) -> Secret:
        """Nothing that the token claims is repeated: nobody has looked at its seal yet."""
        if all(key.id != key_id for key in await self._keyring.keys()):
            raise UploadTokenError(
                "the upload_id is none of this gateway's, or the key that began it is gone: begin anew"
            )
        try:
            return await self._keyring.value(key_id)
        except KeySourceError as error:
            log.error("an upload cannot go on: %s", error)
            raise GatewayError(
                "NO_USABLE_KEY", "the key that began this upload cannot be read at the moment", retry_after=5.0
            ) from None


def _unreadable() -> GatewayError:
    return GatewayError("TOKENS_UNREADABLE", "the client tokens cannot be read at the moment", retry_after=5)
