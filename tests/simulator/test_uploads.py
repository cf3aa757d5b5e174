"""Uploads to the simulator: sessions, offsets, chunks that come twice or half, the published SDK, bounded memory."""

import asyncio
import hashlib
import io
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from google import genai

from gemini_simulator import Fault, Simulator, demo_keys, running
from gemini_simulator.content import Content
from gemini_simulator.service import Owning
from gemini_simulator.streams import Reply
from tests.simulator.test_api import FLASH, Answer, Clock, call
from tests.simulator.test_resources import BASE, MINE, OTHER, make, naming

START = {
    "x-goog-upload-protocol": "resumable",
    "x-goog-upload-command": "start",
    "x-goog-upload-header-content-type": "text/plain",
    "content-type": "application/json",
}


def open_session(simulator: Simulator, size: int | None = None, query: str = "", **headers: str) -> str:
    """The path and query of a new session."""
    more = {} if size is None else {"x-goog-upload-header-content-length": str(size)}
    body = {"file": {"displayName": "Notes"}}
    answer = call(simulator, f"/upload/v1beta/files{query}", body, headers=MINE | START | more | headers)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["x-goog-upload-status"] == "active"
    url = urlsplit(answer.headers["x-goog-upload-url"])
    assert f"{url.scheme}://{url.netloc}" == BASE
    return f"{url.path}?{url.query}"


def send(simulator: Simulator, session: str, command: str, data: bytes = b"", offset: int = 0) -> Answer:
    headers = {
        "x-goog-upload-command": command,
        "x-goog-upload-offset": str(offset),
        "content-length": str(len(data)),
    }
    return call(simulator, session, body=data, headers=headers, method="POST")


def state(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.headers.get("x-goog-upload-status")


def received(simulator: Simulator, session: str) -> str:
    return send(simulator, session, "query").headers["x-goog-upload-size-received"]


def test_chunks_need_no_key_and_become_the_file_of_who_started() -> None:
    simulator = make(granularity=4)
    session = open_session(simulator, 10)
    assert "upload_protocol=resumable" in session
    assert state(send(simulator, session, "upload", b"abcd")) == (200, "active")
    assert state(send(simulator, session, "upload", b"efgh", 4)) == (200, "active")
    last = send(simulator, session, "upload, finalize", b"ij", 8)
    assert state(last) == (200, "final")
    file = last.json["file"]
    assert (file["sizeBytes"], file["displayName"], file["mimeType"]) == ("10", "Notes", "text/plain")
    assert simulator.owned()[0]["sha256"] == hashlib.sha256(b"abcdefghij").hexdigest()
    assert call(simulator, f"/v1beta/{file['name']}").status == 200
    assert call(simulator, f"/v1beta/{file['name']}", headers=OTHER).status == 403
    assert [call.verb for call in simulator.calls][:4] == ["upload.start", *["upload.chunk"] * 3]
    assert simulator.calls[-3].project == "simulated-project-1"


def test_a_wrong_offset_is_refused_and_the_session_lives() -> None:
    simulator = make(granularity=4)
    session = open_session(simulator)
    send(simulator, session, "upload", b"abcd")
    for offset in (5, 8):
        answer = send(simulator, session, "upload", b"efgh", offset)
        assert state(answer) == (400, "active")
        assert answer.body == b"Invalid offset %d: 4 bytes have been received." % offset
    assert received(simulator, session) == "4"
    assert state(send(simulator, session, "upload, finalize", b"ef", 4)) == (200, "final")


def test_a_chunk_that_is_sent_again_changes_nothing() -> None:
    simulator = make(granularity=4)
    session = open_session(simulator, 8)
    for _ in range(2):
        assert state(send(simulator, session, "upload", b"abcd")) == (200, "active")
    assert received(simulator, session) == "4"
    answers = [send(simulator, session, "upload, finalize", b"efgh", 4) for _ in range(2)]
    assert [state(answer) for answer in answers] == [(200, "final")] * 2
    assert answers[0].json == answers[1].json
    assert len(simulator.owned()) == 1


def test_finalize_alone_ends_a_session_and_query_then_has_the_answer() -> None:
    simulator = make(granularity=4)
    session = open_session(simulator)
    send(simulator, session, "upload", b"abcd")
    final = send(simulator, session, "finalize", offset=4)
    assert state(final) == (200, "final")
    asked = send(simulator, session, "query")
    assert (state(asked), asked.json) == ((200, "final"), final.json)


def test_chunks_have_a_granularity_and_sizes_are_held_to() -> None:
    simulator = make()
    session = open_session(simulator, 300_000)
    assert state(send(simulator, session, "upload", b"x" * 1000)) == (400, "active")
    assert state(send(simulator, session, "upload", b"x" * 2**19)) == (400, "active")
    assert state(send(simulator, session, "upload, finalize", b"x" * 1000)) == (400, "active")
    assert received(simulator, session) == "0"
    assert state(send(simulator, session, "upload, finalize", b"x" * 300_000)) == (200, "final")


def test_a_session_is_cancelled() -> None:
    simulator = make(granularity=1)
    session = open_session(simulator)
    send(simulator, session, "upload", b"abcd")
    assert state(send(simulator, session, "cancel")) == (200, "cancelled")
    assert state(send(simulator, session, "query")) == (200, "cancelled")
    assert state(send(simulator, session, "upload, finalize", b"x", 4)) == (400, "cancelled")
    assert simulator.owned() == []


def test_sessions_end_and_unknown_ones_are_404() -> None:
    clock = Clock()
    simulator = make(clock)
    session = open_session(simulator)
    assert state(send(simulator, session.replace("upload_id=A", "upload_id=B"), "upload", b"x")) == (404, "final")
    clock.now += 7 * 86_400
    assert state(send(simulator, session, "query")) == (404, "final")


def test_a_start_needs_one_good_key() -> None:
    simulator = make()
    for headers, status in (({}, 403), ({"x-goog-api-key": "wrong"}, 400)):
        assert call(simulator, "/upload/v1beta/files", {}, headers=START | headers).status == status
    assert call(simulator, "/upload/v1beta/files?key=simulated-key-2", {}, headers=MINE | START).status == 400


def test_a_key_in_the_query_of_the_start_comes_back_as_from_google() -> None:
    simulator = make()
    answer = call(simulator, "/upload/v1beta/files?key=simulated-key-1", {}, headers=START)
    assert "key=simulated-key-1&upload_id=" in answer.headers["x-goog-upload-url"]
    shown = call(simulator, "/simulator/log").body
    assert b"simulated-key-1" not in shown


def test_a_key_that_is_sent_with_a_chunk_must_be_good() -> None:
    simulator = make()
    session = open_session(simulator)
    headers = {"x-goog-upload-command": "upload, finalize", "x-goog-api-key": "wrong"}
    assert call(simulator, session, body=b"x", headers=headers).status == 400
    assert call(simulator, session, body=b"x", headers=headers | MINE).status == 200


def test_other_paths_and_commands_are_no_uploads() -> None:
    simulator = make()
    for path in ("/upload/v1beta/models", "/upload/x/files", "/upload/v1beta/files/abc", "/upload/v1beta/files:x"):
        assert call(simulator, path, {}, headers=MINE | START).status == 404
    assert call(simulator, "/upload/v1beta/files", headers=MINE, method="GET").status == 404
    session = open_session(simulator)
    assert state(send(simulator, session, "destroy", b"x")) == (400, "active")


def test_raw_and_broken_multipart() -> None:
    simulator = make()
    headers = MINE | {"x-goog-upload-protocol": "raw", "content-type": "image/png"}
    file = call(simulator, "/upload/v1beta/files", body=b"picture", headers=headers).json["file"]
    assert (file["mimeType"], file["sizeBytes"]) == ("image/png", "7")
    headers["content-type"] = "multipart/related; boundary=b"
    for body in (b"nothing of the kind", b"--b\r\nContent-Type: text/plain\r\n\r\nno end", b"--b\r\n" + b"x" * 20_000):
        assert call(simulator, "/upload/v1beta/files", body=body, headers=headers).status == 400
    headers["content-type"] = "multipart/related"
    assert call(simulator, "/upload/v1beta/files", body=b"--b--", headers=headers).status == 400


def test_faults_meet_chunks() -> None:
    simulator = make(granularity=1)
    session = open_session(simulator, 4)
    simulator.faults.append(Fault(kind="overloaded", verb="upload.chunk", count=1))
    answer = send(simulator, session, "upload", b"ab")
    assert (answer.status, answer.headers.get("x-goog-upload-status")) == (503, None)
    assert received(simulator, session) == "0"
    assert state(send(simulator, session, "upload, finalize", b"abcd")) == (200, "final")


def test_a_last_chunk_that_comes_twice_at_once_makes_one_file() -> None:
    simulator = make()
    session = open_session(simulator)
    uploads = simulator.service.uploads
    opened = next(iter(uploads._sessions.values()))
    headers = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"ab", b"cd"):
            yield piece
            await asyncio.sleep(0)

    async def both() -> list[Reply]:
        return await asyncio.gather(*(uploads.take(opened, headers, pieces()) for _ in range(2)))

    first, second = asyncio.run(both())
    assert first == second
    assert received(simulator, session) == "4"
    assert len(simulator.owned()) == 1


def test_a_session_can_end_before_its_time() -> None:
    simulator = make(granularity=1)
    session = open_session(simulator)
    simulator.faults.append(Fault(kind="upload-terminated", verb="upload.chunk", count=1))
    for _ in range(2):
        answer = send(simulator, session, "upload, finalize", b"ab")
        assert state(answer) == (400, "cancelled")
        assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
        assert answer.body == b"Upload has already been terminated."


def test_content_keeps_little_of_much() -> None:
    content = Content(8)
    content.write(0, b"12345678")
    assert content.size == 8
    content.write(4, b"56789")
    assert content.size == 9
    assert content.data is None
    assert content.sha256 == hashlib.sha256(b"123456789").hexdigest()
    with pytest.raises(ValueError, match="3 bytes are missing"):
        content.write(12, b"x")


# Over a socket


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator(demo_keys(2), {}, owning=Owning(keep_content=2**20))
    with running(simulator) as url:
        yield simulator, url


@pytest.fixture
def simulator(served: tuple[Simulator, str]) -> Simulator:
    served[0].faults.clear()
    return served[0]


@pytest.fixture
def url(served: tuple[Simulator, str]) -> str:
    return served[1]


def test_the_sdk_uploads_lists_uses_and_deletes(simulator: Simulator, url: str) -> None:
    data = bytes(range(256)) * 2**16  # two chunks
    with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client:
        file = client.files.upload(file=io.BytesIO(data), config={"mime_type": "video/mp4", "display_name": "Film"})
        assert (file.display_name, file.mime_type, file.size_bytes) == ("Film", "video/mp4", len(data))
        assert file.uri == f"{url}/v1/{file.name}"
        assert file.name is not None
        assert client.files.get(name=file.name) == file
        assert file.name in [other.name for other in client.files.list()]
        assert client.models.generate_content(model=FLASH, contents=["What is it?", file]).text
        chunks = [entry.size for entry in simulator.calls if entry.verb == "upload.chunk"]
        assert chunks[-2:] == [2**23, 2**23]
        with (
            genai.Client(api_key="simulated-key-2", http_options={"base_url": url}) as other,
            pytest.raises(genai.errors.ClientError, match="permission to access the File"),
        ):
            other.models.generate_content(model=FLASH, contents=["What is it?", file])
        client.files.delete(name=file.name)
        with pytest.raises(genai.errors.ClientError, match="it may not exist"):
            client.files.get(name=file.name)


def test_the_sdk_makes_uses_and_changes_caches(url: str) -> None:
    with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client:
        cache = client.caches.create(model=FLASH, config={"contents": "tokens=4096 of something", "ttl": "300s"})
        assert cache.name is not None
        answer = client.models.generate_content(model=FLASH, contents="Well?", config={"cached_content": cache.name})
        assert answer.usage_metadata is not None
        assert answer.usage_metadata.cached_content_token_count == 4096
        longer = client.caches.update(name=cache.name, config={"ttl": "600s"})
        assert longer.expire_time is not None
        assert cache.expire_time is not None
        assert longer.expire_time > cache.expire_time
        assert cache.name in [other.name for other in client.caches.list()]
        client.caches.delete(name=cache.name)
        with pytest.raises(genai.errors.ClientError, match="CachedContent not found"):
            client.caches.get(name=cache.name)


def start(url: str, **headers: str) -> str:
    answer = httpx.post(f"{url}/upload/v1beta/files", headers=MINE | START | headers, json={})
    return str(answer.headers["x-goog-upload-url"])


def ask(session: str) -> int:
    return int(httpx.post(session, headers={"x-goog-upload-command": "query"}).headers["x-goog-upload-size-received"])


def test_what_came_before_a_connection_broke_is_kept(simulator: Simulator, url: str) -> None:
    session = start(url)
    data = b"0123456789abcdef" * 2**15
    simulator.faults.append(Fault(kind="mid-reset", verb="upload.chunk", count=1))
    headers = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
    with pytest.raises(httpx.TransportError):
        httpx.post(session, headers=headers, content=data)
    had = ask(session)
    assert had == len(data) // 2
    headers["x-goog-upload-offset"] = str(had)
    file = httpx.post(session, headers=headers, content=data[had:]).json()["file"]
    assert simulator.owned()[-1]["name"] == file["name"]
    assert simulator.owned()[-1]["sha256"] == hashlib.sha256(data).hexdigest()


def test_an_answer_that_is_lost_leaves_the_file(simulator: Simulator, url: str) -> None:
    session = start(url)
    simulator.faults.append(Fault(kind="reset", verb="upload.chunk", count=1))
    headers = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
    with pytest.raises(httpx.TransportError):
        httpx.post(session, headers=headers, content=b"once")
    count = len(simulator.owned())
    again = httpx.post(session, headers=headers, content=b"once")
    assert again.json()["file"]["sizeBytes"] == "4"
    assert len(simulator.owned()) == count


def test_a_chunk_that_hangs_was_taken(simulator: Simulator, url: str) -> None:
    session = start(url)
    simulator.faults.append(Fault(kind="hang", verb="upload.chunk", count=1))
    headers = {"x-goog-upload-command": "upload", "x-goog-upload-offset": "0"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(session, headers=headers, content=b"x" * 2**18, timeout=0.3)
    assert ask(session) == 2**18


def test_an_error_can_come_before_the_body_has(simulator: Simulator, url: str) -> None:
    session = start(url)
    simulator.faults.append(Fault(kind="overloaded", verb="upload.chunk", after=0, count=1))
    parts = urlsplit(session)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as line:
        head = f"POST {parts.path}?{parts.query} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: 1000000\r\n"
        line.sendall(f"{head}x-goog-upload-command: upload\r\n\r\n".encode() + b"x" * 1000)
        assert line.recv(12) == b"HTTP/1.1 503"


def test_memory_stays_small_however_large_the_file(simulator: Simulator, url: str) -> None:
    piece = b"x" * 2**20

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield piece

    session = start(url)
    headers = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
    tracemalloc.start()
    try:
        file = httpx.post(session, headers=headers, content=pieces()).json()["file"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file["sizeBytes"] == str(100 * 2**20)
    assert peak < 20 * 2**20
    digest = hashlib.sha256()
    for _ in range(100):
        digest.update(piece)
    assert simulator.owned()[-1]["sha256"] == digest.hexdigest()


def test_uploads_with_wrong_documents(url: str) -> None:
    for body in (b"{", b"[]"):
        answer = httpx.post(f"{url}/upload/v1beta/files", headers=MINE | START, content=body)
        assert answer.status_code == 400


def test_a_file_can_be_used_by_its_name_alone(url: str) -> None:
    headers = MINE | {"x-goog-upload-protocol": "raw", "content-type": "text/plain"}
    file = httpx.post(f"{url}/upload/v1beta/files", headers=headers, content=b"x").json()["file"]
    path = f"{url}/v1beta/models/{FLASH}:generateContent"
    body = naming({"uri": file["name"]})
    assert httpx.post(path, headers=MINE, json=body).status_code == 200
    assert httpx.post(path, headers=OTHER, json=body).status_code == 403
