"""Uploads and downloads with Google's SDK and with a plain client, through gateways that are processes of their own."""

import asyncio
import hashlib
import http.client
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from google import genai
from google.genai import _api_client, types

from bench.processes import free_port
from gemini_simulator import Fault
from gemini_simulator.api import Simulator
from tests.e2e.conftest import Pair
from tests.e2e.processes import (
    ADMIN,
    FLASH,
    TOKEN,
    Answered,
    Gateway,
    call,
    environment,
    eventually,
    gateway,
    serving,
    simulated,
    write_keys,
)
from tests.e2e.test_google_genai import AIOHTTP, client

MIB = 2**20
FILES = "/upload/v1beta/files"
BEGIN = {
    "x-goog-upload-protocol": "resumable",
    "x-goog-upload-command": "start",
    "x-goog-upload-header-content-type": "text/plain",
    "content-type": "application/json",
}


def some_bytes(size: int) -> bytes:
    return (b"%08d" % size + bytes(range(256)) * (size // 256 + 1))[:size]


def begin(started: Gateway, path: str = FILES) -> str:
    """The path and query of a new session's address, as an SDK makes them."""
    answer = call(started.url, "POST", path, b"{}", BEGIN | {"x-goog-api-key": TOKEN})
    assert answer.status == 200, answer.body
    return "/" + answer.headers["x-goog-upload-url"].split("/", 3)[3]


def send(url: str, session: str, command: str, data: bytes = b"", offset: int = 0) -> Answered:
    """As the SDK for Python does: without a credential."""
    headers = {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
    return call(url, "POST", session, data, headers)


def state(answer: Answered) -> tuple[int, str | None]:
    return answer.status, answer.headers.get("x-goog-upload-status")


def digests(simulator: Simulator) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in simulator.owned() if file["name"].startswith("files/")}


def memory(started: Gateway, field: str) -> int:
    """MB"""
    lines = Path(f"/proc/{started.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


# --- the SDK ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_the_sdk_uploads_in_chunks(pair: Pair, version: str) -> None:
    data = some_bytes(20 * MIB + 5)  # chunks of 8 MiB
    with client(pair.gateway.url, api_version=version) as made:
        config = types.UploadFileConfig(mime_type="text/plain", display_name="Notes")
        file = made.files.upload(file=io.BytesIO(data), config=config)
    assert file.name
    assert (file.display_name, file.size_bytes) == ("Notes", len(data))
    assert digests(pair.simulator)[file.name] == hashlib.sha256(data).hexdigest()
    assert (file.uri or "").startswith(pair.gateway.url + "/")
    calls = [call for call in pair.simulator.calls if call.verb.startswith("upload")]
    assert [call.verb for call in calls] == ["upload.start", *["upload.chunk"] * 3]
    assert {call.path for call in calls} == {f"/upload/{version}/files"}
    assert [call.header("x-goog-api-key") is None for call in calls] == [False, True, True, True]


@AIOHTTP
def test_the_sdk_uploads_from_async_code(pair: Pair) -> None:
    data = some_bytes(MIB)  # of a larger chunk aiohttp says that it should not be sent like that

    async def upload() -> types.File:
        made = genai.Client(api_key=TOKEN, http_options=types.HttpOptions(base_url=pair.gateway.url)).aio
        try:
            return await made.files.upload(file=io.BytesIO(data), config={"mime_type": "text/plain"})
        finally:
            await made.aclose()

    file = asyncio.run(upload())
    assert digests(pair.simulator)[file.name or ""] == hashlib.sha256(data).hexdigest()


def test_the_sdk_uploads_to_a_store_at_its_owner(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        for _ in range(3):  # not every project that is asked next owns the store
            store = made.file_search_stores.create(config={"display_name": "Notes"})
            operation = made.file_search_stores.upload_to_file_search_store(
                file_search_store_name=store.name or "", file=io.BytesIO(b"a" * MIB), config={"mime_type": "text/plain"}
            )
            assert (operation.name or "").startswith(f"{store.name}/")
            calls = [call for call in pair.simulator.calls if call.verb in ("upload.start", "upload.chunk")][-2:]
            owners = {owned["project"] for owned in pair.simulator.owned() if owned["name"] == store.name}
            assert {call.project for call in calls} == owners
            made.models.count_tokens(model=FLASH, contents="Hello")


def test_below_a_prefix(tmp_path: Path) -> None:
    port = free_port()
    public = f"http://127.0.0.1:{port}/gemini"
    settings = {"store": "memory://", "token": TOKEN, "admin_token": ADMIN, "data": str(tmp_path / "data")}
    settings |= {"keys_file": str(write_keys(tmp_path, [1, 2])), "public_url": public}
    with (
        simulated() as (simulator, url),
        serving(tmp_path, environment(**settings, upstream=url), "--port", str(port)),
        client(public) as made,
    ):
        data = some_bytes(9 * MIB)
        file = made.files.upload(file=io.BytesIO(data), config={"mime_type": "text/plain"})
        assert digests(simulator)[file.name or ""] == hashlib.sha256(data).hexdigest()
        assert file.uri == f"{public}/v1/{file.name}"
        assert made.models.generate_content(model=FLASH, contents="Hello").text


def test_google_is_overloaded_between_two_chunks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_api_client, "INITIAL_RETRY_DELAY", 0.01)
    pair.simulator.faults.append(Fault(kind="overloaded", verb="upload.chunk", count=2))
    data = some_bytes(9 * MIB)
    with client(pair.gateway.url) as made:
        file = made.files.upload(file=io.BytesIO(data), config={"mime_type": "text/plain"})
    assert digests(pair.simulator)[file.name or ""] == hashlib.sha256(data).hexdigest()
    statuses = [call.status for call in pair.simulator.calls if call.verb == "upload.chunk"]
    assert statuses == [503, 503, 200, 200]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_gateway_that_dies_between_two_chunks_and_another_that_goes_on(tmp_path: Path) -> None:
    with simulated() as (simulator, url):
        with gateway(tmp_path / "one", url) as one:
            session = begin(one)
            assert state(send(one.url, session, "upload", b"a" * MIB)) == (200, "active")
            one.kill()
        with gateway(tmp_path / "two", url) as two:
            assert send(two.url, session, "query").headers["x-goog-upload-size-received"] == str(MIB)
            done = send(two.url, session, "upload, finalize", b"b" * MIB, MIB)
            assert state(done) == (200, "final")
            again = send(two.url, session, "upload, finalize", b"b" * MIB, MIB)
            assert (state(again), again.json()) == (state(done), done.json())
        assert digests(simulator) == {done.json()["file"]["name"]: hashlib.sha256(b"a" * MIB + b"b" * MIB).hexdigest()}


def test_a_client_that_leaves_in_the_middle_of_a_chunk_and_comes_back(pair: Pair) -> None:
    session = begin(pair.gateway)
    parts = urlsplit(pair.gateway.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 5) as raw:
        head = f"POST {session} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: {2 * MIB}\r\n"
        head += "x-goog-upload-command: upload, finalize\r\nx-goog-upload-offset: 0\r\n\r\n"
        raw.sendall(head.encode() + b"a" * MIB)
        eventually(5, lambda: pair.simulator.calls[-1].verb == "upload.chunk")
        eventually(5, lambda: send(pair.gateway.url, session, "query").headers["x-goog-upload-size-received"] != "0")
    broken = next(call for call in pair.simulator.calls if call.verb == "upload.chunk")
    assert eventually(5, lambda: broken.disconnected_at)
    received = int(send(pair.gateway.url, session, "query").headers["x-goog-upload-size-received"])
    assert 0 < received <= MIB
    rest = b"a" * (MIB - received) + b"b" * MIB
    assert state(send(pair.gateway.url, session, "upload, finalize", rest, received)) == (200, "final")
    assert eventually(5, lambda: pair.gateway.status()["pool"]["endings"].get("client-gone"))


def test_forged_tokens_and_those_of_others_reach_nobody(pair: Pair) -> None:
    session = begin(pair.gateway)
    seen = len(pair.simulator.calls)
    at = session.index("upload_id=") + 30
    forged = session[:at] + ("A" if session[at] != "A" else "B") + session[at + 1 :]
    for bad in (forged, FILES + "?upload_id=AbCd&upload_protocol=resumable"):
        answer = send(pair.gateway.url, bad, "upload, finalize", b"x" * MIB)
        assert (answer.status, answer.reason) == (401, "BAD_UPLOAD_ID")
    assert len(pair.simulator.calls) == seen
    assert session[at : at + 40] not in pair.gateway.said()


def test_google_refuses_before_the_body_has_come(pair: Pair) -> None:
    session = begin(pair.gateway)
    pair.simulator.faults.append(Fault(kind="overloaded", verb="upload.chunk", count=1, after=0))
    assert state(send(pair.gateway.url, session, "upload, finalize", b"x" * 20 * MIB)) == (503, None)
    assert state(send(pair.gateway.url, session, "upload, finalize", b"x" * MIB)) == (200, "final")


def test_a_connection_that_breaks_in_a_chunk(pair: Pair) -> None:
    session = begin(pair.gateway)
    pair.simulator.faults.append(Fault(kind="mid-reset", verb="upload.chunk", count=1))
    answer = send(pair.gateway.url, session, "upload, finalize", b"x" * 2 * MIB)
    assert (answer.reason, state(answer)) == ("UPSTREAM_UNREACHABLE", (502, None))
    assert send(pair.gateway.url, session, "query").headers["x-goog-upload-size-received"] == str(MIB)
    assert state(send(pair.gateway.url, session, "upload, finalize", b"x" * 2 * MIB)) == (200, "final")


def test_hangs_end(tmp_path: Path) -> None:
    with simulated() as (simulator, url), gateway(tmp_path, url, timeout="0.5") as started:
        session = begin(started)
        simulator.faults.append(Fault(kind="hang", verb="upload.chunk", count=1))
        answer = send(started.url, session, "upload, finalize", b"x" * MIB)
        assert (answer.reason, state(answer)) == ("UPSTREAM_TIMEOUT", (504, None))
        assert state(send(started.url, session, "upload, finalize", b"x" * MIB)) == (200, "final")


# --- all in one, and back --------------------------------------------------------------------------------------------


def test_more_than_a_body_may_have_in_one_request(tmp_path: Path) -> None:
    data = some_bytes(3 * MIB)
    with simulated() as (simulator, url), gateway(tmp_path, url, max_body="1MiB") as started:
        headers = {"x_goog_upload_protocol": "raw", "content_type": "text/plain"}
        answer = started.call("POST", FILES, data, **headers)
        assert answer.status == 200
        assert list(digests(simulator).values()) == [hashlib.sha256(data).hexdigest()]
        assert started.call("POST", "/v1beta/models/gemini-3.8-flash:generateContent", data).status == 413


def _piecewise(started: Gateway, session: str, size: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(started.url).netloc, timeout=60)
    piece = b"x" * MIB

    def body() -> Iterator[bytes]:
        for _ in range(size // MIB):
            yield piece

    try:
        headers = {
            "content-length": str(size),
            "x-goog-upload-command": "upload, finalize",
            "x-goog-upload-offset": "0",
        }
        connection.request("POST", session, body(), headers)
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:8]) == (200, b'{"file":')
    finally:
        connection.close()


def test_memory_stays_where_it_is_whatever_is_uploaded_and_downloaded(tmp_path: Path) -> None:
    size, many = 48 * MIB, 8
    with simulated(1) as (simulator, url), gateway(tmp_path, url, keys=[1]) as started:
        _piecewise(started, begin(started), 8 * MIB)
        before = memory(started, "VmHWM")
        sessions = [begin(started) for _ in range(many)]
        threads = [threading.Thread(target=_piecewise, args=(started, session, size)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert list(digests(simulator).values())[1:] == [hashlib.sha256(b"x" * size).hexdigest()] * many
        made = simulator.service.files.generate("team-1", "video/mp4", some_bytes(size))
        answer = started.call("GET", f"/v1beta/{made.name}:download?alt=media")
        assert answer.body == some_bytes(size)
        assert memory(started, "VmHWM") - before < 40
