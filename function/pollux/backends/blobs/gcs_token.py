"""The token of Google's default credentials, fetched in a thread and kept while it is valid."""

import asyncio
from typing import Any

from pollux.backends.blobs.contract import BlobError, BlobUnavailableError

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
LOGIN = "run: gcloud auth application-default login"


class GoogleToken:
    """`credentials`: those of google.auth, for tests; unset, the default ones are looked up by the first call."""

    def __init__(self, credentials: Any = None) -> None:
        self._credentials = credentials
        self._refused = False
        self._fetching = asyncio.Lock()

    async def __call__(self) -> str:
        async with self._fetching:
            if self._credentials is None or self._refused or not self._credentials.valid:
                await self._fetch()
            return str(self._credentials.token)

    def forget(self) -> None:
        self._refused = True

    async def _fetch(self) -> None:
        try:
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        except ModuleNotFoundError:
            raise BlobError("blobs in gs:// need Google's libraries: pip install 'pollux-gateway[cloud]'") from None
        failure: BlobError
        try:
            await asyncio.to_thread(self._refresh)  # may ask the metadata server, and waits for it
            self._refused = False
            return
        except DefaultCredentialsError:
            failure = BlobError(f"Cloud Storage: there are no Google credentials here; {LOGIN}")
        except GoogleAuthError as error:
            failure = BlobUnavailableError(
                f"Cloud Storage: no token for the credentials here ({type(error).__name__}); try again, or {LOGIN}"
            )
        raise failure  # outside of the handlers: what a library says of credentials stays out of a traceback

    def _refresh(self) -> None:
        import google.auth
        from google.auth.transport.requests import Request

        if self._credentials is None:
            self._credentials, _ = google.auth.default(scopes=[SCOPE])
        self._credentials.refresh(Request())


class NoToken:
    """For an emulator, which must never be shown a real one."""

    async def __call__(self) -> str:
        return ""

    def forget(self) -> None:
        pass
