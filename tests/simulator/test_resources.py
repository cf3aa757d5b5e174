"""What projects own in the simulator, called in-process: files, caches, who may see them, and when they end."""

import base64
import hashlib
import json
from typing import Any

import pytest

from gemini_simulator import Simulator, demo_keys
from gemini_simulator.resources import TIDY, Resources
from gemini_simulator.service import Owning
from tests.simulator.test_api import FLASH, GENERATE, Answer, Clock, call

OTHER = {"x-goog-api-key": "simulated-key-2"}
MINE = {"x-goog-api-key": "simulated-key-1"}
BASE = "https://generativelanguage.googleapis.com"


def make(clock: Clock | None = None, **owning: Any) -> Simulator:
    clock = clock or Clock()
    return Simulator(demo_keys(2), {}, clock=clock, sleep=clock.sleep, owning=Owning(base=BASE, **owning))


def upload(simulator: Simulator, data: bytes = b"some text", given: Any = None, kind: str = "text/plain") -> Any:
    """A file of the first project, in one multipart request; its document."""
    metadata = json.dumps({"file": given or {}}).encode()
    body = (
        b"--limit\r\nContent-Type: application/json\r\n\r\n" + metadata + b"\r\n"
        b"--limit\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + data + b"\r\n--limit--\r\n"
    )
    headers = MINE | {"x-goog-upload-protocol": "multipart", "content-type": "multipart/related; boundary=limit"}
    answer = call(simulator, "/upload/v1beta/files", body=body, headers=headers)
    assert answer.status == 200, answer.body
    return answer.json["file"]


def naming(file: Any, *, snake: bool = False) -> dict[str, Any]:
    part = {"file_data": {"file_uri": file["uri"]}} if snake else {"fileData": {"fileUri": file["uri"]}}
    return {"contents": [{"role": "user", "parts": [{"text": "See"}, part]}]}


def refused(answer: Answer, status: int, name: str, text: str) -> None:
    assert (answer.status, answer.error["status"]) == (status, name)
    assert text in answer.error["message"]


# Files


def test_a_file_says_what_it_is() -> None:
    file = upload(make(), b"some text", {"displayName": "Notes"})
    assert file == {
        "name": file["name"],
        "displayName": "Notes",
        "mimeType": "text/plain",
        "sizeBytes": "9",
        "createTime": "2026-09-21T14:13:20.000000Z",
        "updateTime": "2026-09-21T14:13:20.000000Z",
        "expirationTime": "2026-09-23T14:13:20.000000Z",
        "sha256Hash": base64.b64encode(hashlib.sha256(b"some text").hexdigest().encode()).decode(),
        "uri": f"{BASE}/v1beta/{file['name']}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }


def test_without_a_base_the_address_is_the_one_that_the_caller_used() -> None:
    simulator = Simulator(demo_keys(1), {})
    headers = MINE | {"host": "[::1]:9", "x-goog-upload-protocol": "raw", "content-type": "text/plain"}
    answer = call(simulator, "/upload/v1/files", body=b"bytes", headers=headers)
    assert answer.json["file"]["uri"] == f"http://[::1]:9/v1/{answer.json['file']['name']}"


def test_only_its_project_sees_a_file() -> None:
    simulator = make()
    file = upload(simulator)
    path = f"/v1beta/{file['name']}"
    assert call(simulator, path).json == file
    said = f"You do not have permission to access the File {file['name'][6:]} or it may not exist."
    for method in ("GET", "DELETE"):
        refused(call(simulator, path, headers=OTHER, method=method), 403, "PERMISSION_DENIED", said)
    refused(call(simulator, "/v1beta/files/nothing"), 403, "PERMISSION_DENIED", "the File nothing or it may not exist")
    assert call(simulator, "/v1beta/files", headers=OTHER).json == {}
    assert call(simulator, path, method="DELETE").json == {}
    assert call(simulator, path).status == 403
    assert call(simulator, "/v1beta/files").json == {}


@pytest.mark.parametrize("snake", [False, True])
def test_only_its_project_can_use_a_file(snake: bool) -> None:
    simulator = make()
    document = naming(upload(simulator), snake=snake)
    for verb in ("generateContent", "streamGenerateContent", "countTokens"):
        path = f"/v1beta/models/{FLASH}:{verb}"
        assert call(simulator, path, document).status == 200
        refused(call(simulator, path, document, headers=OTHER), 403, "PERMISSION_DENIED", "to access the File")
    assert simulator.enforcer.admitted["simulated-project-2", FLASH] == 0


def test_files_are_found_wherever_a_body_can_name_them() -> None:
    simulator = make()
    uri = upload(simulator)["uri"]
    text = {"parts": [{"text": "Hello"}]}
    part = {"parts": [{"fileData": {"fileUri": uri}}]}
    inside = {"parts": [{"functionResponse": {"name": "f", "response": {}, "parts": part["parts"]}}]}
    count = f"/v1beta/models/{FLASH}:countTokens"
    bodies = [
        (GENERATE, {"contents": [text], "systemInstruction": part}),
        (GENERATE, {"contents": [text, inside]}),
        (count, {"generateContentRequest": {"model": f"models/{FLASH}", "contents": [part]}}),
        ("/v1beta/models/gemini-embedding-2:embedContent", {"content": part}),
        ("/v1beta/models/gemini-embedding-2:batchEmbedContents", {"requests": [{"content": text}, {"content": part}]}),
    ]
    for path, body in bodies:
        assert call(simulator, path, body).status == 200
        assert call(simulator, path, body, headers=OTHER).status == 403


def test_what_only_looks_like_a_file_name_is_no_resource() -> None:
    simulator = make()
    uris = ["https://www.youtube.com/watch?v=x", "gs://bucket/files/abc", "https://example.com/files/abc"]
    for uri in uris:
        assert call(simulator, GENERATE, naming({"uri": uri}), headers=OTHER).status == 200
    talk = {"contents": [{"parts": [{"text": f"fileData fileUri {BASE}/v1beta/files/abc"}]}]}
    assert call(simulator, GENERATE, talk, headers=OTHER).status == 200


def test_the_address_of_a_file_must_be_its_own() -> None:
    simulator = make()
    name = upload(simulator)["name"]
    assert call(simulator, GENERATE, naming({"uri": name})).status == 200
    for root in ("http://127.0.0.1:3145", "https://gateway.example/some/path"):
        answer = call(simulator, GENERATE, naming({"uri": f"{root}/v1beta/{name}"}))
        refused(answer, 400, "INVALID_ARGUMENT", f"Unsupported file URI: {root}")


def test_a_file_ends_after_48_hours() -> None:
    clock = Clock()
    simulator = make(clock)
    file = upload(simulator)
    clock.now += 48 * 3600 - 1
    assert call(simulator, GENERATE, naming(file)).status == 200
    clock.now += 1
    assert call(simulator, f"/v1beta/{file['name']}").status == 403
    assert call(simulator, GENERATE, naming(file)).status == 403
    assert simulator.owned() == []


def test_a_file_is_processed_before_it_can_be_used() -> None:
    clock = Clock()
    simulator = make(clock, processing=5)
    file = upload(simulator)
    assert file["state"] == "PROCESSING"
    refused(call(simulator, GENERATE, naming(file)), 400, "FAILED_PRECONDITION", "not in an ACTIVE state")
    clock.now += 5
    assert call(simulator, f"/v1beta/{file['name']}").json["state"] == "ACTIVE"
    assert call(simulator, GENERATE, naming(file)).status == 200


def test_a_client_may_name_its_file_once() -> None:
    simulator = make()
    assert upload(simulator, given={"name": "files/my-file"})["name"] == "files/my-file"
    headers = OTHER | {"x-goog-upload-protocol": "multipart", "content-type": "multipart/related; boundary=b"}
    for name, status in (("files/my-file", 409), ("files/Mine", 400), ("files/a/b", 400), ("other/a", 400)):
        body = (
            b"--b\r\nContent-Type: application/json\r\n\r\n"
            + json.dumps({"file": {"name": name}}).encode()
            + b"\r\n--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--"
        )
        assert call(simulator, "/upload/v1beta/files", body=body, headers=headers).status == status


def test_uploaded_files_cannot_be_downloaded() -> None:
    simulator = make()
    file = upload(simulator)
    answer = call(simulator, f"/v1beta/{file['name']}:download?alt=media")
    refused(answer, 400, "INVALID_ARGUMENT", "only generated files can be downloaded")


def test_pages_of_files() -> None:
    simulator = make()
    names = [upload(simulator)["name"] for _ in range(5)][::-1]
    seen, token = [], ""
    for size in (2, 2, 1):
        page = call(simulator, f"/v1beta/files?pageSize=2&pageToken={token}").json
        assert len(page["files"]) == size
        seen += [file["name"] for file in page["files"]]
        token = page.get("nextPageToken", "")
    assert (seen, token) == (names, "")
    assert call(simulator, "/v1beta/files?pageToken=elsewhere").status == 400
    assert call(simulator, "/v1beta/files?pageSize=x").status == 400


def test_who_owns_what_is_told_to_tests() -> None:
    simulator = make()
    file = upload(simulator)
    (owned,) = call(simulator, "/simulator/resources").json
    assert (owned["name"], owned["project"], owned["size"]) == (file["name"], "simulated-project-1", 9)
    assert owned["sha256"] == hashlib.sha256(b"some text").hexdigest()
    assert call(simulator, "/simulator/resources", {}).status == 405


def test_what_has_ended_is_thrown_away() -> None:
    clock = Clock()
    resources = Resources(clock)
    for _ in range(TIDY):
        resources.add("files", "p", life=10)
    clock.now += 10
    kept = [resources.add("files", "p", life=10).name for _ in range(2)]
    assert [resource.name for resource in resources] == kept
    assert len(resources) == 2


# Caches

LONG: dict[str, Any] = {"model": f"models/{FLASH}", "contents": [{"parts": [{"text": "tokens=5000 and so on"}]}]}


def with_cache(name: str) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": "x" * 40}]}], "cachedContent": name}


def test_a_cache_counts_in_the_requests_that_use_it() -> None:
    simulator = make()
    cache = call(simulator, "/v1beta/cachedContents", LONG | {"displayName": "Long", "ttl": "60s"}).json
    assert cache["usageMetadata"] == {"totalTokenCount": 5000}
    assert (cache["model"], cache["displayName"]) == (f"models/{FLASH}", "Long")
    assert cache["expireTime"] == "2026-09-21T14:14:20.000000Z"
    usage = call(simulator, GENERATE, with_cache(cache["name"])).json["usageMetadata"]
    assert (usage["promptTokenCount"], usage["cachedContentTokenCount"]) == (5010, 5000)


def test_only_its_project_and_model_can_use_a_cache() -> None:
    simulator = make()
    name = call(simulator, "/v1beta/cachedContents", LONG).json["name"]
    said = "CachedContent not found (or permission denied)"
    refused(call(simulator, GENERATE, with_cache(name), headers=OTHER), 403, "PERMISSION_DENIED", said)
    refused(call(simulator, f"/v1beta/{name}", headers=OTHER), 403, "PERMISSION_DENIED", said)
    elsewhere = "/v1beta/models/gemini-3.6-flash:generateContent"
    refused(call(simulator, elsewhere, with_cache(name)), 400, "INVALID_ARGUMENT", "has to be the same")


def test_a_cache_is_given_another_end_and_ends() -> None:
    clock = Clock()
    simulator = make(clock)
    name = call(simulator, "/v1beta/cachedContents", LONG).json["name"]
    path = f"/v1beta/{name}"
    clock.now += 3599
    changed = call(simulator, f"{path}?updateMask=ttl", {"ttl": "7200s"}, method="PATCH").json
    assert changed["expireTime"] == "2026-09-21T17:13:19.000000Z"
    clock.now += 7199
    assert call(simulator, path).status == 200
    body = {"expireTime": "2026-09-21T18:00:00+00:00"}
    assert call(simulator, path, body, method="PATCH").json["expireTime"] == "2026-09-21T18:00:00.000000Z"
    assert call(simulator, path, {"ttl": "soon"}, method="PATCH").status == 400
    assert call(simulator, path, {"expireTime": "2026-09-21"}, method="PATCH").status == 400
    assert call(simulator, path, {"model": "x"}, method="PATCH").status == 400
    clock.now += 3600
    assert call(simulator, GENERATE, with_cache(name)).status == 403


def test_caches_are_listed_and_deleted() -> None:
    simulator = make()
    names = [call(simulator, "/v1beta/cachedContents", LONG).json["name"] for _ in range(3)]
    page = call(simulator, "/v1beta/cachedContents?pageSize=2").json
    assert [cache["name"] for cache in page["cachedContents"]] == names[:0:-1]
    rest = call(simulator, f"/v1beta/cachedContents?pageSize=2&pageToken={page['nextPageToken']}").json
    assert [cache["name"] for cache in rest["cachedContents"]] == names[:1]
    assert call(simulator, f"/v1beta/{names[0]}", method="DELETE").json == {}
    assert len(call(simulator, "/v1beta/cachedContents").json["cachedContents"]) == 2
    assert call(simulator, "/v1beta/cachedContents", headers=OTHER).json == {}


def test_a_cache_needs_a_model_and_files_of_its_own() -> None:
    simulator = make()
    assert call(simulator, "/v1beta/cachedContents", LONG | {"model": "models/none"}).status == 400
    file = upload(simulator)
    document = LONG | naming(file)
    assert call(simulator, "/v1beta/cachedContents", document).status == 200
    assert call(simulator, "/v1beta/cachedContents", document, headers=OTHER).status == 403
