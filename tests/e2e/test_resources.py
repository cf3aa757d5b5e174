"""What projects own, with the published SDKs, as if the pool were one project: made, used, listed, deleted."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types
from openai import OpenAI

from gemini_simulator import Simulator
from tests.e2e.conftest import Pair
from tests.e2e.processes import FLASH, LAST, TOKEN, Gateway, environment, gateway, serving, simulated, write_keys
from tests.e2e.test_google_genai import client

LONG = "This sentence is of the book that we cache for many questions. " * 600
TEXT = types.UploadFileConfig(mime_type="text/plain")


def owners(simulator: Simulator, kind: str) -> dict[str, str]:
    return {thing["name"]: thing["project"] for thing in simulator.owned() if thing["name"].startswith(kind + "/")}


def upload(made: genai.Client, data: bytes = b"Hello in a file") -> types.File:
    return made.files.upload(file=io.BytesIO(data), config=TEXT)


def cache(made: genai.Client) -> types.CachedContent:
    config = types.CreateCachedContentConfig(contents=LONG, ttl="3600s", display_name="The book")
    return made.caches.create(model=FLASH, config=config)


def projects_called(simulator: Simulator, since: int = 0) -> list[str]:
    return [str(call.key).replace("key", "team") for call in list(simulator.calls)[since:]]


@contextmanager
def everywhere(url: str) -> Iterator[list[genai.Client]]:
    """A client for each of the four projects: what it makes goes there."""
    with ExitStack() as stack:
        keys = [{"x-pollux-key": f"key-{number}"} for number in range(1, 5)]
        yield [stack.enter_context(client(url, headers=headers)) for headers in keys]


def test_what_one_client_makes_can_be_used_together(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        files = [upload(made, b"file %d" % number) for number in range(3)]
        answer = made.models.generate_content(model=FLASH, contents=[*files, "Compare them."])
        assert answer.text
        store = made.file_search_stores.create(config={"display_name": "Library"})
        made.file_search_stores.import_file(file_search_store_name=str(store.name), file_name=str(files[0].name))
        assert {*owners(pair.simulator, "fileSearchStores").values()} == {
            owners(pair.simulator, "files")[str(file.name)] for file in files
        }
        made.file_search_stores.delete(name=str(store.name), config={"force": True})
        for file in files:
            made.files.delete(name=str(file.name))


def test_caches(pair: Pair) -> None:
    with client(pair.gateway.url) as made, everywhere(pair.gateway.url) as each:
        caches = [cache(one) for one in each]
        kept = owners(pair.simulator, "cachedContents")
        assert len(set(kept.values())) == 4
        seen = len(pair.simulator.calls)
        for one in caches:
            assert one.name is not None
            config = types.GenerateContentConfig(cached_content=one.name)
            answer = made.models.generate_content(model=FLASH, contents="And?", config=config)
            assert answer.usage_metadata is not None
            assert (answer.usage_metadata.cached_content_token_count or 0) > 1000
            assert made.caches.get(name=one.name).name == one.name
            assert (
                made.caches.update(name=one.name, config=types.UpdateCachedContentConfig(ttl="7200s")).name == one.name
            )
        expected = [kept[str(one.name)] for one in caches for _ in range(3)]
        assert projects_called(pair.simulator, seen) == expected, "one call each, at the owner"
        listed = {one.name for one in made.caches.list(config={"page_size": 3})}
        assert {one.name for one in caches} <= listed
        for one in caches:
            made.caches.delete(name=str(one.name))
        assert not owners(pair.simulator, "cachedContents")
        with pytest.raises(errors.ClientError) as caught:
            made.caches.get(name=str(caches[0].name))
        assert caught.value.code == 403


def test_files_are_listed_over_all_projects_and_used_by_either_address(pair: Pair) -> None:
    with client(pair.gateway.url) as made, everywhere(pair.gateway.url) as each:
        files = [upload(each[number % 4], b"file %d" % number) for number in range(6)]
        kept = owners(pair.simulator, "files")
        assert len({kept[str(file.name)] for file in files}) == 4
        assert {str(file.uri).rpartition("/")[0] for file in files} == {pair.gateway.url + "/v1/files"}
        pages = made.files.list(config={"page_size": 2})
        assert len(pages.page) <= 2
        assert {file.name for file in pages} >= {file.name for file in files}
        for file in files:
            seen = len(pair.simulator.calls)
            answer = made.models.generate_content(model=FLASH, contents=[file, "What is it?"])
            assert answer.text
            assert projects_called(pair.simulator, seen) == [kept[str(file.name)]]
        google = types.Part.from_uri(
            file_uri=f"https://generativelanguage.googleapis.com/v1beta/{files[0].name}", mime_type="text/plain"
        )
        assert made.models.generate_content(model=FLASH, contents=[google, "And this?"]).text
        strangers = [file for file in files if kept[str(file.name)] != kept[str(files[0].name)]]
        with pytest.raises(errors.ClientError, match="several projects"):
            made.models.generate_content(model=FLASH, contents=[files[0], strangers[0], "Compare."])
        for file in files:
            made.files.delete(name=str(file.name))
        assert not set(owners(pair.simulator, "files")) & {str(file.name) for file in files}


def test_an_owner_without_quota_holds_its_files_and_nothing_else(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        file = upload(made)
        once = types.GenerateContentConfig(http_options=types.HttpOptions(headers={"x-pollux-max-wait": "0"}))
        assert made.models.generate_content(model=LAST, contents=[file, "One"], config=once).text
        with pytest.raises(errors.ClientError) as caught:
            made.models.generate_content(model=LAST, contents=[file, "Two"], config=once)
        assert caught.value.code == 429
        assert str(file.name) in str(caught.value)
        assert made.models.generate_content(model=LAST, contents="Without it", config=once).text


def test_batches(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        requests = [types.InlinedRequest(contents=[types.Content(role="user", parts=[types.Part(text="One")])])]
        jobs = [made.batches.create(model=FLASH, src=requests) for _ in range(3)]
        kept = owners(pair.simulator, "batches")
        assert len({kept[str(job.name)] for job in jobs}) == 3
        for job in jobs:
            done = made.batches.get(name=str(job.name))
            assert done.state == types.JobState.JOB_STATE_SUCCEEDED
        assert {job.name for job in made.batches.list(config={"page_size": 2})} >= {job.name for job in jobs}
        line = {"key": "a", "request": {"contents": [{"parts": [{"text": "One"}]}]}}
        file = upload(made, json.dumps(line).encode())
        job = made.batches.create(model=FLASH, src=str(file.name))
        assert owners(pair.simulator, "batches")[str(job.name)] == owners(pair.simulator, "files")[str(file.name)]
        done = made.batches.get(name=str(job.name))
        assert done.dest is not None
        assert done.dest.file_name is not None
        seen = len(pair.simulator.calls)
        result = json.loads(made.files.download(file=done.dest.file_name))
        assert result["key"] == "a"
        assert len(projects_called(pair.simulator, seen)) == 1, "the batch's answer told whose the results are"
        made.batches.cancel(name=str(job.name))
        made.batches.delete(name=str(job.name))


def test_long_running_operations_and_the_film_they_make(pair: Pair) -> None:
    headers = {"x-goog-api-key": TOKEN}
    with httpx.Client(base_url=pair.gateway.url, headers=headers) as plain:
        path = "/v1beta/models/veo-3.1-generate-001:predictLongRunning"
        begun = plain.post(path, json={"instances": [{"prompt": "A cat"}]}).json()
        owner = pair.simulator.calls[-1].key
        for _ in range(3):
            done = plain.get(f"/v1beta/{begun['name']}").json()
        (sample,) = done["response"]["generateVideoResponse"]["generatedSamples"]
        uri = sample["video"]["uri"]
        assert uri.startswith(pair.gateway.url)
        assert plain.get(uri).content.endswith(b"A cat")
        assert {call.key for call in list(pair.simulator.calls)[-4:]} == {owner}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_interactions_go_on_where_they_began(pair: Pair) -> None:
    with client(pair.gateway.url) as made:
        interactions: Any = made.interactions
        chains = [interactions.create(model=FLASH, input="Hello there") for _ in range(3)]
        kept = owners(pair.simulator, "interactions")
        assert len({kept[f"interactions/{first.id}"] for first in chains}) == 3
        for first in chains:
            owner = kept[f"interactions/{first.id}"]
            seen = len(pair.simulator.calls)
            second = interactions.create(model=FLASH, input="And?", previous_interaction_id=first.id)
            events = list(
                interactions.create(model=FLASH, input="More", previous_interaction_id=second.id, stream=True)
            )
            streamed = next(event.interaction.id for event in events if event.event_type == "interaction.created")
            assert interactions.get(id=streamed).output_text
            assert set(projects_called(pair.simulator, seen)) == {owner}
            assert len(projects_called(pair.simulator, seen)) == 3
            interactions.delete(id=first.id)
        assert not {f"interactions/{first.id}" for first in chains} & set(owners(pair.simulator, "interactions"))


def test_file_search_stores(pair: Pair) -> None:
    with client(pair.gateway.url) as made, everywhere(pair.gateway.url) as each:
        stores = [each[n].file_search_stores.create(config={"display_name": f"Library {n}"}) for n in range(3)]
        assert len(set(owners(pair.simulator, "fileSearchStores").values())) == 3
        assert {s.name for s in made.file_search_stores.list(config={"page_size": 2})} >= {s.name for s in stores}
        store = stores[1]
        into = made.file_search_stores.upload_to_file_search_store(
            file_search_store_name=str(store.name), file=io.BytesIO(b"words"), config={"mime_type": "text/plain"}
        )
        assert made.operations.get(into).done
        (document,) = list(made.file_search_stores.documents.list(parent=str(store.name)))
        assert str(document.name).startswith(str(store.name))
        tool = types.Tool(file_search=types.FileSearch(file_search_store_names=[str(store.name)]))
        config = types.GenerateContentConfig(tools=[tool])
        assert made.models.generate_content(model=FLASH, contents="Where?", config=config).text
        for one in stores:
            made.file_search_stores.delete(name=str(one.name), config={"force": True})
        assert not owners(pair.simulator, "fileSearchStores")


def test_openai_s_batches(pair: Pair) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": FLASH, "messages": [{"role": "user", "content": "One"}]},
    }
    with OpenAI(api_key=TOKEN, base_url=f"{pair.gateway.url}/v1beta/openai/", max_retries=0) as made:
        data = ("in.jsonl", json.dumps(line).encode())
        files = [
            made.files.create(file=data, purpose="batch", extra_headers={"x-pollux-key": f"key-{number}"})
            for number in range(1, 4)
        ]
        batches = [
            made.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
            for file in files
        ]
        assert (
            len({owners(pair.simulator, "batches")[f"batches/{b.id.removeprefix('batches/')}"] for b in batches}) == 3
        )
        for batch in batches:
            done = made.batches.retrieve(batch.id)
            assert done.output_file_id is not None
            assert json.loads(made.files.content(done.output_file_id).read())["custom_id"] == "a"
        assert {batch.id for batch in made.batches.list(limit=2)} >= {batch.id for batch in batches}


# --- two gateways on one store ---------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path, firestore_emulator: str) -> Iterator[tuple[Simulator, Gateway, Gateway]]:
    settings = {"store": f"firestore://pollux-resources-{os.getpid()}", "token": TOKEN, "admin_token": "test-admin"}
    settings["keys_file"] = str(write_keys(tmp_path, [1, 2, 3, 4]))
    with simulated() as (simulator, url):
        environ = environment(**settings, upstream=url) | {"FIRESTORE_EMULATOR_HOST": firestore_emulator}
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        with serving(folders[0], environ) as one, serving(folders[1], environ) as other:
            yield simulator, one, other


def test_made_by_one_used_by_the_other_even_after_the_first_died(two: tuple[Simulator, Gateway, Gateway]) -> None:
    simulator, one, other = two
    with client(one.url) as made:
        with everywhere(one.url) as each:
            caches = [cache(client_of_one) for client_of_one in each[:3]]
        file = upload(made)
        requests = [types.InlinedRequest(contents=[types.Content(role="user", parts=[types.Part(text="One")])])]
        job = made.batches.create(model=FLASH, src=requests)
    one.kill()
    seen = len(simulator.calls)
    with client(other.url) as made:
        for known in caches:
            config = types.GenerateContentConfig(cached_content=known.name)
            assert made.models.generate_content(model=FLASH, contents="And?", config=config).text
        assert made.models.generate_content(model=FLASH, contents=[google_uri(file), "It?"]).text
        assert made.batches.get(name=str(job.name)).state == types.JobState.JOB_STATE_SUCCEEDED
        expected = [owners(simulator, "cachedContents")[str(known.name)] for known in caches]
        expected += [owners(simulator, "files")[str(file.name)], owners(simulator, "batches")[str(job.name)]]
        assert projects_called(simulator, seen) == expected, "at once at the owner: nobody was asked"
        made.caches.delete(name=str(caches[0].name))
        assert str(caches[0].name) not in owners(simulator, "cachedContents")


def google_uri(file: types.File) -> types.Part:
    """As a client writes it that got the name only."""
    uri = f"https://generativelanguage.googleapis.com/v1beta/{file.name}"
    return types.Part.from_uri(file_uri=uri, mime_type="text/plain")


def test_a_gateway_that_forgot_everything_looks_for_what_it_is_asked_for(tmp_path: Path) -> None:
    with simulated() as (simulator, url):
        with gateway(tmp_path / "one", url) as one, client(one.url) as made:
            known = cache(made)
        with gateway(tmp_path / "two", url) as two, client(two.url) as made:
            config = types.GenerateContentConfig(cached_content=known.name)
            assert made.models.generate_content(model=FLASH, contents="And?", config=config).text
            seen = len(simulator.calls)
            assert made.models.generate_content(model=FLASH, contents="More?", config=config).text
            assert projects_called(simulator, seen) == [owners(simulator, "cachedContents")[str(known.name)]]
            answer = two.generate()
            assert two.status()["resources"]["searches"] == 1
            assert "owner" not in two.record(answer)
