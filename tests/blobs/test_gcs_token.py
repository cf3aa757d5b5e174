"""Google's token: fetched in a thread, kept while it is valid, and every failure in our words."""

import asyncio
import threading
from typing import Any

import pytest
from google.auth.exceptions import DefaultCredentialsError, RefreshError

from pollux.blobs import BlobError, BlobUnavailableError
from pollux.blobs.gcs_token import GoogleToken

SECRET = "ya29.never-shown"


class Credentials:
    def __init__(self, trouble: Exception | None = None) -> None:
        self.token: str | None = None
        self.valid = False
        self.refreshed = 0
        self.threads: set[int] = set()
        self.trouble = trouble

    def refresh(self, request: Any) -> None:
        self.threads.add(threading.get_ident())
        if self.trouble is not None:
            raise self.trouble
        self.refreshed += 1
        self.token, self.valid = f"{SECRET}-{self.refreshed}", True


def test_it_is_fetched_once_in_a_thread_while_it_is_valid() -> None:
    async def scene() -> None:
        credentials = Credentials()
        token = GoogleToken(credentials)
        assert set(await asyncio.gather(*(token() for _ in range(10)))) == {f"{SECRET}-1"}
        assert threading.get_ident() not in credentials.threads
        credentials.valid = False
        assert await token() == f"{SECRET}-2"
        token.forget()
        assert [await token(), await token()] == [f"{SECRET}-3"] * 2

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [
        (DefaultCredentialsError, BlobError, "there are no Google credentials here; run: gcloud auth"),
        (RefreshError, BlobUnavailableError, r"no token for the credentials here \(RefreshError\); try again"),
    ],
)
def test_what_goes_wrong_is_said_without_what_was_sent(
    trouble: type[Exception], kind: type[BlobError], said: str
) -> None:
    async def scene() -> None:
        with pytest.raises(BlobError, match=said) as error:
            await GoogleToken(Credentials(trouble(SECRET)))()
        assert type(error.value) is kind
        assert SECRET not in str(error.getrepr(style="native"))
        assert error.value.__context__ is None

    asyncio.run(scene())


def test_after_a_failure_it_is_tried_again() -> None:
    trouble: Exception = RefreshError("once")  # type: ignore[no-untyped-call]

    async def scene() -> None:
        credentials = Credentials(trouble)
        token = GoogleToken(credentials)
        with pytest.raises(BlobUnavailableError):
            await token()
        credentials.trouble = None
        assert await token() == f"{SECRET}-1"

    asyncio.run(scene())
