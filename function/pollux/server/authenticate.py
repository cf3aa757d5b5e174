"""Who calls: a client, by its token; or the holder of an upload's address, by the token in the address."""

import logging
from collections.abc import Callable

from pollux.backends.keys.contract import Keyring, KeySourceError, Secret
from pollux.backends.keys.tokens import TokenError, Tokens, TokenSource
from pollux.gemini.errors import GatewayError
from pollux.relay.client import RawHeaders
from pollux.resources.upload_token import Session, UploadTokenError, checked, claimed

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
            "wrong or missing Pollux token: send a client token of this gateway as x-goog-api-key or "
            "Authorization: Bearer",
        )

    async def uploader(self, token: str, headers: RawHeaders, query: bytes) -> Session:
        """The upload that is continued. SDKs send no client token here. If one comes, it must be of the client that
        began the upload.
        """
        tokens = await self._known()
        try:
            session = checked(token, await self._value(claimed(token).key), self._now())
        except UploadTokenError as error:
            raise GatewayError("BAD_UPLOAD_ID", str(error)) from None
        if not tokens.knows(session.client):
            if not tokens.complete:
                raise _unreadable()
            raise GatewayError("BAD_UPLOAD_ID", "the client that began this upload has no valid token any more")
        if tokens.check(headers, query) not in (None, session.client):
            raise GatewayError("UPLOAD_OF_ANOTHER", "this upload was begun by another client than the one that calls")
        return session

    async def _known(self) -> Tokens:
        try:
            return await self.tokens.tokens()
        except (TokenError, KeySourceError) as error:
            log.error("client tokens cannot be loaded: %s", error)
            raise _unreadable() from None

    async def _value(self, key_id: str) -> Secret:
        """No message repeats what the token says: its seal is not verified yet."""
        if all(key.id != key_id for key in await self._keyring.keys()):
            raise UploadTokenError(
                "the upload_id is not of this gateway, or the key that began the upload is gone: begin it anew"
            )
        try:
            return await self._keyring.value(key_id)
        except KeySourceError as error:
            log.error("an upload cannot be continued: %s", error)
            raise GatewayError(
                "NO_USABLE_KEY", "the key that began this upload cannot be read at the moment", retry_after=5.0
            ) from None


def _unreadable() -> GatewayError:
    return GatewayError("TOKENS_UNREADABLE", "the client tokens cannot be read at the moment", retry_after=5)
