"""An attempt shows its key nowhere, even if the upstream echoes it."""

import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from pollux.backends.keys.contract import Key, Secret
from tests.gateway import ADMIN, CHAT, COUNT, STREAM, FakeUpstream, Got, Keys, Says, answer, call, event, gateway, play

OPAQUE = "Zx9Quartz-Opaque_Value-77881"  # nothing but its value tells that it is a key
ONE_MODEL = {"x-pollux-fallback": "off"}
TYPE = (b"Content-Type", b"application/json")


class OpaqueKeys(Keys):
    async def value(self, key_id: str) -> Secret:
        return Secret(OPAQUE)


def echo(status: int, message: str = f"no: {OPAQUE}") -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT"}}


def says(body: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> Says:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Says([data], status, (TYPE, *headers), length=len(data))


def ask(*answers: Says, **request: Any) -> tuple[Got, str]:
    """What the client got, and what the journal says of it."""

    async def scene() -> tuple[Got, str]:
        upstream = FakeUpstream(lambda sent: answers[min(len(upstream.sent), len(answers)) - 1])
        async with gateway(upstream, OpaqueKeys([Key("k1", "p1")])) as app:
            got = await call(app, headers=ONE_MODEL, **request)
            path = f"/admin/requests/{got.headers['x-pollux-request-id']}"
            noted = await call(app, "GET", path, headers={"authorization": f"Bearer {ADMIN}"}, token=None)
        assert noted.status == 200
        return got, noted.body.decode()

    return play(scene)


def shows_nothing(got: Got, noted: str) -> None:
    everything = got.body.decode() + json.dumps(got.headers) + noted
    assert OPAQUE[4:] not in everything
    assert OPAQUE[:-4] not in everything


PAGE = f"<html><title>502</title><p>Bad gateway for {OPAQUE}</p></html>".encode()


@pytest.mark.parametrize("path", [None, COUNT, CHAT])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, echo(400)),
        (400, echo(400, "x" * 180 + OPAQUE)),  # where a message is cut
        (403, [echo(403)]),
        (302, f"moved to https://elsewhere.example/?k={OPAQUE}".encode()),
        (502, PAGE),
        (500, echo(500)),
        (429, echo(429)),
    ],
)
def test_a_refusal_does_not_show_the_key(path: str | None, status: int, body: Any) -> None:
    shows_nothing(*ask(says(body, status), **({"path": path} if path else {})))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("path", [None, COUNT])
def test_no_header_shows_the_key(path: str | None, status: int) -> None:
    header = (b"X-Goog-Upload-Status", f"for {OPAQUE}".encode())
    got, noted = ask(says(answer() if status == 200 else echo(400), status, header), **({"path": path} if path else {}))
    assert got.status == status
    assert got.headers["x-goog-upload-status"] == "for [redacted]"
    shows_nothing(got, noted)


@pytest.mark.parametrize("path", [STREAM, STREAM.partition("?")[0]])
@pytest.mark.parametrize("pieces", [1, 9])
def test_no_stream_that_begins_with_an_error_shows_the_key(path: str, pieces: int) -> None:
    error = json.dumps(echo(400)).encode()
    data = b"data: " + error + b"\n\n" if "alt=sse" in path else b"[" + error + b"]"
    size = -(-len(data) // pieces)
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    got, noted = ask(Says(cut), path=path)
    assert got.status >= 400
    assert "[redacted]" in got.body.decode()
    shows_nothing(got, noted)


def test_no_stream_that_breaks_with_an_error_shows_the_key() -> None:
    pieces: Sequence[bytes] = [
        event({"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}),
        json.dumps(echo(500)).encode(),
    ]
    got, noted = ask(Says(pieces), path=STREAM)
    assert b"[redacted]" in got.body
    shows_nothing(got, noted)


@pytest.mark.parametrize(
    ("encoding", "squeeze"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"identity", bytes)]
)
def test_a_compressed_error_is_passed_on_inflated(encoding: bytes, squeeze: Any) -> None:
    packed = squeeze(json.dumps(echo(400)).encode())
    got, noted = ask(says(packed, 400, (b"Content-Encoding", encoding)))
    assert got.status == 400
    assert "content-encoding" not in got.headers
    assert got.message == "no: [redacted]"
    assert got.headers["content-length"] == str(len(got.body))
    shows_nothing(got, noted)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [(b"br", b"opaque"), (b"gzip", b"broken"), (b"gzip", gzip.compress(b"x" * (2 << 20), mtime=0))],
)
def test_an_error_that_cannot_be_inflated_has_no_body(encoding: bytes, packed: bytes) -> None:
    got, _ = ask(says(packed, 400, (b"Content-Encoding", encoding)))
    assert (got.status, got.body) == (400, b"")
    assert "content-encoding" not in got.headers
