"""Batches, videos, tuned models and stores in the simulator: they take time and belong to one project."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import types
from openai import OpenAI

from gemini_simulator import Simulator, demo_keys, running
from gemini_simulator.service import Owning
from tests.simulator.test_api import FLASH, Answer, Clock, call
from tests.simulator.test_resources import BASE, MINE, OTHER, make, naming, refused, upload

BATCH = f"/v1beta/models/{FLASH}:batchGenerateContent"
EMBED = "/v1beta/models/gemini-embedding-2:asyncBatchEmbedContent"
FILM = "/v1beta/models/veo-3.1-generate-001:predictLongRunning"
GONE = "Requested entity was not found."


def asking(*texts: str) -> list[dict[str, Any]]:
    return [
        {"request": {"contents": [{"parts": [{"text": text}]}]}, "metadata": {"key": str(number)}}
        for number, text in enumerate(texts)
    ]


def inline(*texts: str) -> dict[str, Any]:
    return {"batch": {"displayName": "Several", "inputConfig": {"requests": {"requests": asking(*texts)}}}}


def of_file(name: str) -> dict[str, Any]:
    return {"batch": {"inputConfig": {"fileName": name}}}


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


def text_of(response: Any) -> str:
    return str(response["candidates"][0]["content"]["parts"][0]["text"])


# Batches


def test_a_batch_answers_its_requests_at_its_time() -> None:
    clock = Clock()
    simulator = make(clock, working=10)
    begun = call(simulator, BATCH, inline("One", "Two")).json
    assert begun["metadata"]["state"] == "BATCH_STATE_PENDING"
    assert "done" not in begun
    path = f"/v1beta/{begun['name']}"
    assert call(simulator, path).json["metadata"]["state"] == "BATCH_STATE_RUNNING"
    clock.now += 10
    done = call(simulator, path).json
    assert (done["done"], done["metadata"]["state"]) == (True, "BATCH_STATE_SUCCEEDED")
    assert done["metadata"]["batchStats"]["successfulRequestCount"] == "2"
    results = done["response"]["inlinedResponses"]["inlinedResponses"]
    assert [text_of(result["response"])[-3:] for result in results] == ["One", "Two"]
    assert [result["metadata"] for result in results] == [{"key": "0"}, {"key": "1"}]
    assert simulator.enforcer.admitted.total() == 0


def test_a_batch_of_a_file_has_a_file_of_results() -> None:
    simulator = make()
    asked = [{"key": "a", "request": {"contents": [{"parts": [{"text": "One"}]}]}}, {"key": "b", "request": {"x": 1}}]
    file = upload(simulator, b"\n".join(json.dumps(entry).encode() for entry in asked))
    begun = call(simulator, BATCH, of_file(file["name"])).json
    done = call(simulator, f"/v1beta/{begun['name']}").json
    assert done["metadata"]["batchStats"]["failedRequestCount"] == "1"
    name = done["response"]["responsesFile"]
    assert call(simulator, f"/v1beta/{name}").json["source"] == "GENERATED"
    path = f"/v1beta/{name}:download?alt=media"
    first, second = lines(call(simulator, path))
    assert (first["key"], text_of(first["response"])[-3:]) == ("a", "One")
    assert (second["key"], second["error"]["code"]) == ("b", 400)
    assert call(simulator, path, headers=OTHER).status == 403


def test_a_batch_of_embeddings() -> None:
    simulator = make()
    requests = [{"request": {"content": {"parts": [{"text": text}]}}} for text in ("One", "Two")]
    begun = call(simulator, EMBED, {"batch": {"inputConfig": {"requests": {"requests": requests}}}}).json
    done = call(simulator, f"/v1beta/{begun['name']}").json
    vectors = [
        entry["response"]["embedding"]["values"] for entry in done["response"]["inlinedResponses"]["inlinedResponses"]
    ]
    assert [len(vector) for vector in vectors] == [3072, 3072]
    assert vectors[0] != vectors[1]


def test_only_its_project_sees_a_batch() -> None:
    simulator = make(working=60)
    path = f"/v1beta/{call(simulator, BATCH, inline('One')).json['name']}"
    for method, where in (("GET", path), ("DELETE", path), ("POST", f"{path}:cancel")):
        refused(call(simulator, where, method=method, headers=OTHER), 404, "NOT_FOUND", GONE)
    assert call(simulator, "/v1beta/batches", headers=OTHER).json == {}
    assert [entry["name"] for entry in call(simulator, "/v1beta/batches").json["operations"]] == [path[8:]]


def test_a_batch_cannot_name_the_files_of_others() -> None:
    simulator = make()
    file = upload(simulator)
    inner = {"batch": {"inputConfig": {"requests": {"requests": [{"request": naming(file)}]}}}}
    for body in (of_file(file["name"]), {"batch": {"input_config": {"file_name": file["name"]}}}, inner):
        assert call(simulator, BATCH, body).status == 200
        refused(call(simulator, BATCH, body, headers=OTHER), 403, "PERMISSION_DENIED", "to access the File")


def test_a_batch_is_cancelled_and_deleted() -> None:
    clock = Clock()
    simulator = make(clock, working=10)
    path = f"/v1beta/{call(simulator, BATCH, inline('One')).json['name']}"
    assert call(simulator, f"{path}:cancel", method="POST").json == {}
    clock.now += 20
    assert call(simulator, path).json["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert call(simulator, path, method="DELETE").json == {}
    assert call(simulator, path).status == 404


def test_batches_that_cannot_be_worked_off() -> None:
    clock = Clock()
    simulator = make(clock, working=10)
    wrong: list[dict[str, Any]] = [{}, {"batch": {}}, {"batch": {"inputConfig": {"requests": {}}}}]
    for body in (*wrong, inline(), of_file("nothing")):
        assert call(simulator, BATCH, body).status == 400
    names = [upload(simulator, data)["name"] for data in (b"no JSON", b"\n", b'{"key": 1}', b"x")]
    begun = [call(simulator, BATCH, of_file(name)).json["name"] for name in names]
    call(simulator, f"/v1beta/{names[-1]}", method="DELETE")
    clock.now += 10
    for name in begun:
        answer = call(simulator, f"/v1beta/{name}").json
        assert answer["metadata"]["state"] == "BATCH_STATE_FAILED"
        assert answer["error"]["message"]


# Operations


def test_a_film_is_downloaded_once_it_is_done() -> None:
    clock = Clock()
    simulator = make(clock, working=30)
    body = {"instances": [{"prompt": "A cat"}], "parameters": {"sampleCount": 2}}
    begun = call(simulator, FILM, body).json
    assert begun == {"name": begun["name"]}
    assert begun["name"].startswith("models/veo-3.1-generate-001/operations/")
    path = f"/v1beta/{begun['name']}"
    assert call(simulator, path).json == begun
    clock.now += 30
    done = [call(simulator, path).json for _ in range(2)]
    assert done[0] == done[1]
    samples = done[0]["response"]["generateVideoResponse"]["generatedSamples"]
    uris = [sample["video"]["uri"] for sample in samples]
    assert len(set(uris)) == 2
    assert all(uri.startswith(f"{BASE}/v1beta/files/") for uri in uris)
    film = call(simulator, uris[0].removeprefix(BASE))
    assert (film.headers["content-type"], film.body[-5:]) == ("video/mp4", b"A cat")
    refused(call(simulator, path, headers=OTHER), 404, "NOT_FOUND", GONE)
    assert call(simulator, uris[0].removeprefix(BASE), headers=OTHER).status == 403
    again = f"/v1beta/models/{FLASH}:generateContent"
    assert call(simulator, again, naming({"uri": uris[0]})).status == 200
    assert call(simulator, again, naming({"uri": uris[0]}), headers=OTHER).status == 403
    assert simulator.enforcer.admitted["simulated-project-1", "veo-3.1-generate-001"] == 1


def test_films_that_are_not_made() -> None:
    simulator = make()
    bodies: list[dict[str, Any]] = [{}, {"instances": [{"prompt": "x"}], "parameters": {"sampleCount": 9}}]
    for body in bodies:
        assert call(simulator, FILM, body).status == 400
    assert call(simulator, f"/v1beta/models/{FLASH}:predictLongRunning", {"instances": [{}]}).status == 404


def test_a_tuned_model_answers_its_project_alone() -> None:
    clock = Clock()
    simulator = make(clock, working=5)
    body = {"displayName": "Mine", "baseModel": f"models/{FLASH}"}
    begun = call(simulator, "/v1beta/tunedModels?tunedModelId=my-model", body).json
    assert begun["metadata"]["tunedModel"] == "tunedModels/my-model"
    assert call(simulator, "/v1beta/tunedModels/my-model").json["state"] == "CREATING"
    clock.now += 5
    operation = call(simulator, f"/v1beta/{begun['name']}").json
    assert (operation["done"], operation["response"]["state"]) == (True, "ACTIVE")
    path = "/v1beta/tunedModels/my-model:generateContent"
    hello = {"contents": [{"parts": [{"text": "Hello"}]}]}
    assert text_of(call(simulator, path, hello).json).startswith(f"Simulated answer of {FLASH}")
    refused(call(simulator, path, hello, headers=OTHER), 403, "PERMISSION_DENIED", "tuned model my-model")
    assert call(simulator, "/v1beta/tunedModels", headers=OTHER).json == {}
    renamed = call(simulator, "/v1beta/tunedModels/my-model", {"displayName": "Ours"}, method="PATCH").json
    assert call(simulator, "/v1beta/tunedModels").json["tunedModels"] == [renamed]
    assert call(simulator, "/v1beta/tunedModels/my-model", method="DELETE").json == {}
    assert call(simulator, path, hello).status == 403
    assert call(simulator, "/v1beta/tunedModels", {"baseModel": "models/none"}).status == 400


# File search stores


def test_files_are_imported_into_stores_of_the_same_project() -> None:
    clock = Clock()
    simulator = make(clock, working=5)
    store = call(simulator, "/v1beta/fileSearchStores", {"displayName": "Library"}).json
    path = f"/v1beta/{store['name']}"
    file = upload(simulator, given={"displayName": "Notes"})
    begun = call(simulator, f"{path}:importFile", {"fileName": file["name"]}).json
    assert call(simulator, path).json["pendingDocumentsCount"] == "1"
    clock.now += 5
    done = call(simulator, f"/v1beta/{begun['name']}").json
    document = call(simulator, f"/v1beta/{done['response']['documentName']}").json
    assert (document["displayName"], document["state"], document["sizeBytes"]) == ("Notes", "STATE_ACTIVE", "9")
    assert call(simulator, f"{path}/documents").json == {"documents": [document]}
    assert call(simulator, path).json["activeDocumentsCount"] == "1"
    for where in (path, f"{path}/documents", f"/v1beta/{document['name']}"):
        assert call(simulator, where, headers=OTHER).status == 403
    theirs = call(simulator, "/v1beta/fileSearchStores", {}, headers=OTHER).json["name"]
    assert call(simulator, f"/v1beta/{theirs}:importFile", {"fileName": file["name"]}, headers=OTHER).status == 403
    assert call(simulator, f"{path}:importFile", {}).status == 400


def test_a_store_is_used_by_its_project_alone_and_deleted_when_empty() -> None:
    simulator = make()
    store = call(simulator, "/v1beta/fileSearchStores", {}).json["name"]
    tools = [{"fileSearch": {"fileSearchStoreNames": [store]}}]
    body = {"contents": [{"parts": [{"text": "What?"}]}], "tools": tools}
    path = f"/v1beta/models/{FLASH}:generateContent"
    assert call(simulator, path, body).status == 200
    refused(call(simulator, path, body, headers=OTHER), 403, "PERMISSION_DENIED", "file search store")
    name = upload(simulator)["name"]
    call(simulator, f"/v1beta/{store}:importFile", {"fileName": name})
    refused(call(simulator, f"/v1beta/{store}", method="DELETE"), 400, "FAILED_PRECONDITION", "non-empty")
    assert call(simulator, f"/v1beta/{store}?force=true", method="DELETE").json == {}
    assert call(simulator, "/v1beta/fileSearchStores").json == {}
    assert all(not entry["name"].startswith(store) for entry in simulator.owned())


def test_nothing_is_uploaded_into_the_stores_of_others() -> None:
    simulator = make()
    store = call(simulator, "/v1beta/fileSearchStores", {}).json["name"]
    path = f"/upload/v1beta/{store}:uploadToFileSearchStore"
    start = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    for headers in (start, {"x-goog-upload-protocol": "raw", "content-type": "text/plain"}):
        refused(call(simulator, path, {}, headers=OTHER | headers), 403, "PERMISSION_DENIED", "file search store")
        assert call(simulator, path, {}, headers=MINE | headers).status == 200
    assert call(simulator, f"/v1beta/{store}").json["activeDocumentsCount"] == "1"


# Things that are only kept


@pytest.mark.parametrize("kind", ["corpora", "agents", "environments", "triggers"])
def test_plain_things_are_kept_for_their_project(kind: str) -> None:
    simulator = make()
    made = call(simulator, f"/v1beta/{kind}", {"description": "One"}).json
    name = made["name"] if kind == "corpora" else f"{kind}/{made['id']}"
    assert call(simulator, f"/v1beta/{name}").json == made
    changed = call(simulator, f"/v1beta/{name}", {"description": "Two"}, method="PATCH").json
    assert changed == made | {"description": "Two"}
    assert call(simulator, f"/v1beta/{kind}").json == {kind: [changed]}
    assert call(simulator, f"/v1beta/{kind}", headers=OTHER).json == {}
    assert call(simulator, f"/v1beta/{name}", headers=OTHER).status == (403 if kind == "corpora" else 404)
    assert call(simulator, f"/v1beta/{name}", method="DELETE").json == {}
    assert call(simulator, f"/v1beta/{name}").status == (403 if kind == "corpora" else 404)


def test_a_trigger_is_executed() -> None:
    simulator = make()
    trigger = call(simulator, "/v1beta/triggers", {"schedule": "@daily"}).json["id"]
    path = f"/v1beta/triggers/{trigger}/executions"
    made = call(simulator, path, method="POST").json
    assert (made["trigger_id"], made["status"]) == (trigger, "completed")
    assert call(simulator, path).json == {"trigger_executions": [made]}
    assert call(simulator, path, headers=OTHER).status == 404


# With the published SDKs


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Simulator(demo_keys(2), {})) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[genai.Client]:
    with genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as made:
        yield made


def test_the_sdk_makes_batches(client: genai.Client) -> None:
    requests = [types.InlinedRequest(contents=[types.Content(parts=[types.Part(text="One")])])]
    job = client.batches.create(model=FLASH, src=requests, config={"display_name": "Several"})
    assert (job.display_name, job.state) == ("Several", types.JobState.JOB_STATE_PENDING)
    assert job.name is not None
    done = client.batches.get(name=job.name)
    assert done.state == types.JobState.JOB_STATE_SUCCEEDED
    assert done.dest is not None
    assert done.dest.inlined_responses is not None
    response = done.dest.inlined_responses[0].response
    assert response is not None
    assert response.text == f"Simulated answer of {FLASH} to: One"
    assert job.name in [other.name for other in client.batches.list()]
    client.batches.cancel(name=job.name)
    client.batches.delete(name=job.name)


def test_the_sdk_makes_a_batch_of_a_file_and_downloads_the_results(client: genai.Client) -> None:
    line = {"key": "a", "request": {"contents": [{"parts": [{"text": "One"}]}]}}
    file = client.files.upload(file=io.BytesIO(json.dumps(line).encode()), config={"mime_type": "application/jsonl"})
    assert file.name is not None
    job = client.batches.create(model=FLASH, src=file.name)
    assert job.name is not None
    done = client.batches.get(name=job.name)
    assert done.dest is not None
    assert done.dest.file_name is not None
    result = json.loads(client.files.download(file=done.dest.file_name))
    assert (result["key"], text_of(result["response"])[-3:]) == ("a", "One")


@pytest.mark.filterwarnings("ignore::google.genai.errors.ExperimentalWarning")
def test_the_sdk_makes_a_batch_of_embeddings(client: genai.Client) -> None:
    source = types.EmbeddingsBatchJobSource(inlined_requests=types.EmbedContentBatch(contents=["One", "Two"]))
    job = client.batches.create_embeddings(model="gemini-embedding-2", src=source)
    assert job.name is not None
    done = client.batches.get(name=job.name)
    assert done.dest is not None
    assert len(done.dest.inlined_embed_content_responses or []) == 2


def test_the_sdk_waits_for_a_film_and_downloads_it() -> None:
    # It takes an address apart only if that begins with https://, so this simulator says that it is Google's.
    with (
        running(Simulator(demo_keys(1), {}, owning=Owning(base=BASE))) as url,
        genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client,
    ):
        headers = {"x-goog-api-key": "simulated-key-1"}  # since 3.0 the SDK begins films at Vertex only
        begun = httpx.post(f"{url}{FILM}", json={"instances": [{"prompt": "A cat"}]}, headers=headers).json()
        operation = client.operations.get(types.GenerateVideosOperation.model_validate({"name": begun["name"]}))
        assert operation.done
        assert operation.response is not None
        (video,) = operation.response.generated_videos or []
        assert video.video is not None
        assert client.files.download(file=video.video).endswith(b"A cat")


def test_the_sdk_fills_a_file_search_store(client: genai.Client) -> None:
    store = client.file_search_stores.create(config={"display_name": "Library"})
    assert store.name is not None
    into = client.file_search_stores.upload_to_file_search_store(
        file_search_store_name=store.name,
        file=io.BytesIO(b"words"),
        config={"mime_type": "text/plain", "display_name": "Words"},
    )
    done = client.operations.get(into)
    assert done.done
    assert done.response is not None
    assert (done.response.parent, (done.response.document_name or "").startswith(store.name)) == (store.name, True)
    file = client.files.upload(file=io.BytesIO(b"more"), config={"mime_type": "text/plain", "display_name": "More"})
    assert file.name is not None
    imported = client.operations.get(
        client.file_search_stores.import_file(file_search_store_name=store.name, file_name=file.name)
    )
    assert imported.done
    names = [document.display_name for document in client.file_search_stores.documents.list(parent=store.name)]
    assert names == ["More", "Words"]
    tool = types.Tool(file_search=types.FileSearch(file_search_store_names=[store.name]))
    assert client.models.generate_content(model=FLASH, contents="Well?", config={"tools": [tool]}).text
    client.file_search_stores.delete(name=store.name, config={"force": True})
    with pytest.raises(genai.errors.ClientError, match="file search store"):
        client.file_search_stores.get(name=store.name)


def test_openai_files_and_batches(url: str) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": FLASH, "messages": [{"role": "user", "content": "One"}]},
    }
    with OpenAI(api_key="simulated-key-1", base_url=f"{url}/v1beta/openai/", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        assert (file.filename, file.purpose, file.status) == ("in.jsonl", "batch", "processed")
        assert client.files.retrieve(file.id) == file
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
        )
        done = client.batches.retrieve(batch.id)
        assert (batch.status, done.status, done.metadata) == ("validating", "completed", {"a": "b"})
        assert done.output_file_id is not None
        result = json.loads(client.files.content(done.output_file_id).content)
        assert result["custom_id"] == "a"
        assert result["response"]["body"]["choices"][0]["message"]["content"].endswith("to: One")
        assert file.id in [other.id for other in client.files.list(limit=1)]
        assert done.id in [other.id for other in client.batches.list()]
        assert client.batches.cancel(batch.id).status == "completed"
        assert client.files.delete(file.id).deleted
    headers = {"authorization": "Bearer simulated-key-2"}
    answer = httpx.get(f"{url}/v1beta/openai/batches/{batch.id}", headers=headers)
    assert (answer.status_code, answer.json()[0]["error"]["status"]) == (404, "NOT_FOUND")
