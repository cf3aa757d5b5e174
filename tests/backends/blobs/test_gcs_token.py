"""Google's token: fetched in a thread, kept while it is valid, and every failure in our words."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.auth.exceptions import DefaultCredentialsError, RefreshError

from pollux.backends.blobs.contract import BlobError, BlobUnavailableError
from pollux.backends.blobs.gcs_calls import GoogleToken

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


class TokenService(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["content-length"])).decode())
        answer = json.dumps({"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def token_service() -> Iterator[str]:
    TokenService.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), TokenService)
    thread = threading.Thread(target=lambda: server.serve_forever(0.01))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/token"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_default_credentials_are_looked_up_and_exchanged(
    token_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"type": "service_account", "client_email": "a@example", "private_key": pem, "token_uri": token_service}
    (tmp_path / "account.json").write_text(json.dumps({**account, "project_id": "p"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))

    async def scene() -> None:
        token = GoogleToken()
        assert [await token(), await token()] == [SECRET, SECRET]

    asyncio.run(scene())
    assert len(TokenService.asked) == 1


def test_a_missing_credentials_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(BlobError, match="there are no Google credentials here; run: gcloud auth"):
        asyncio.run(GoogleToken()())
