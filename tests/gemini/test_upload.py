"""Which request of an upload this is, and where a session's URL leads."""

import pytest

from pollux.gemini.call import read_target
from pollux.gemini.upload import Upload, read_upload, session_target

TOKEN = "abc.def"


def read(method: str, target: str, **headers: str) -> Upload | None:
    path, _, query = target.partition("?")
    raw = [(f"x-goog-upload-{name}".encode(), value.encode()) for name, value in headers.items()]
    return read_upload(method, read_target(method, path, query), raw)


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
@pytest.mark.parametrize("tail", ["files", "fileSearchStores/s-1:uploadToFileSearchStore"])
def test_a_start_in_every_version(version: str, tail: str) -> None:
    target = f"/upload/{version}/{tail}"
    assert read("POST", target, protocol="resumable", command="start") == Upload("start", "start")
    assert read("POST", target, protocol="Resumable", command=" START ") == Upload("start", "start")
    assert read("POST", target + "?uploadType=resumable") == Upload("start", "start")


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("upload", "chunk"),
        ("upload, finalize", "chunk"),
        ("query", "query"),
        ("cancel", "cancel"),
        ("finalize", "finalize"),
        ("whatever" * 9, "other"),
    ],
)
def test_what_comes_to_an_address(command: str, first: str) -> None:
    target = f"/upload/v1beta/files?upload_id={TOKEN}&upload_protocol=resumable"
    for method in ("POST", "PUT"):
        assert read(method, target, command=command) == Upload("session", first, TOKEN)


def test_the_older_protocol_names_no_command() -> None:
    assert read("PUT", f"/upload/v1beta/files?uploadType=resumable&upload_id={TOKEN}") == Upload(
        "session", "chunk", TOKEN
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"protocol": "multipart"},
        {"protocol": "raw"},
        {"command": "upload, finalize"},
        {},
        {"protocol": "resumable", "command": "start, upload, finalize"},
    ],
)
def test_all_in_one(headers: dict[str, str]) -> None:
    assert read("POST", "/upload/v1beta/files", **headers) == Upload("once", "whole")


def test_openais_files() -> None:
    assert read("POST", "/v1beta/openai/files") == Upload("once", "whole")
    assert read("GET", "/v1beta/openai/files") is None
    assert read("POST", f"/v1beta/openai/files?upload_id={TOKEN}") == Upload("once", "whole"), (
        "by a client's token only"
    )


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", f"/v1beta/models/gemini-3.8-flash:generateContent?upload_id={TOKEN}"),
        ("GET", f"/v1beta/files?upload_id={TOKEN}"),
        ("POST", f"/upload/v1beta/files:register?upload_id={TOKEN}"),
        ("POST", f"/upload/batch?upload_id={TOKEN}"),
        ("GET", "/upload/v1beta/files"),
        ("POST", f"/upload?upload_id={TOKEN}"),
    ],
)
def test_nothing_else_is_an_upload(method: str, target: str) -> None:
    assert read(method, target) is None


@pytest.mark.parametrize(
    ("address", "upstream", "target"),
    [
        (b"https://google.test/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable", "https://google.test",
         "/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable"),
        (b"https://google.test/upload/v1beta/files?key=AQ.secret&upload_id=x", "https://google.test",
         "/upload/v1beta/files?upload_id=x"),
        (b"http://g.test:1/front/upload/v1/files?upload_id=x", "http://g.test:1/front", "/upload/v1/files?upload_id=x"),
        (b"https://elsewhere.test/upload/v1/files?upload_id=x", "https://google.test", "/upload/v1/files?upload_id=x"),
        (b"/upload/v1/files?upload_id=x", "https://google.test", "/upload/v1/files?upload_id=x"),
        (b"", "https://google.test", ""),
        (b"https://[", "https://google.test", ""),
        (b"https://google.test/a b", "https://google.test", ""),
        (b"https://x.test/upload/../v1beta/files?upload_id=u", "https://x.test", ""),
        (b"https://x.test/upload/%2e%2E/files?upload_id=u", "https://x.test", ""),
        (b"https://x.test/upload/a\\b?upload_id=u", "https://x.test", ""),
    ],
)  # fmt: skip
def test_an_address_is_a_path_below_the_upstream(address: bytes, upstream: str, target: str) -> None:
    assert session_target(address, upstream) == target
