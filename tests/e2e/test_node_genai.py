"""@google/genai, Google's SDK for Node, against a gateway over four projects: as if they were one."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import nodes
from tests.e2e.conftest import Pair
from tests.e2e.processes import LAST


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    nodes.install()


@pytest.fixture(autouse=True)
def _none_is_left(pair: Pair) -> Iterator[None]:
    yield
    # What was deleted is looked for, by GET, everywhere.
    assert {call.status for call in pair.simulator.calls if call.method != "GET"} == {200}, "asked of another"


def test_a_file_is_uploaded_used_listed_and_deleted(pair: Pair, tmp_path: Path) -> None:
    content = b"hello " * 2_000_000  # more than the SDK's chunk
    path = tmp_path / "hello.txt"
    path.write_bytes(content)
    found = nodes.run(pair.gateway, "files", str(path), "text/plain")
    assert found["file"]["sizeBytes"] == str(len(content))
    assert found["file"]["uri"].startswith(pair.gateway.url + "/v1/files/")
    assert found["file"]["displayName"] == "made by node"
    assert len(found["said"]) == 3
    assert found["file"]["name"] in found["listed"]
    assert found["after"] in (403, 404)
    chunks = [call for call in pair.simulator.calls if call.header("x-goog-upload-offset") is not None]
    assert [call.size for call in chunks] == [8 << 20, len(content) - (8 << 20)]
    assert base64.b64decode(found["file"]["sha256Hash"]).decode() == hashlib.sha256(content).hexdigest()
    assert len({call.project for call in pair.simulator.calls if call.verb == "generateContent"}) == 1


def test_a_cache_is_made_used_renewed_and_deleted(pair: Pair) -> None:
    found = nodes.run(pair.gateway, "caches")
    assert found["cache"]["name"].startswith("cachedContents/")
    assert found["renewed"]["expireTime"] > found["cache"]["expireTime"]
    assert found["cache"]["name"] in found["listed"]
    assert "Hello" in found["text"]


def test_a_batch_runs_to_its_end(pair: Pair) -> None:
    found = nodes.run(pair.gateway, "batches")
    assert found["batch"]["name"] == found["made"]["name"]
    assert "SUCCEEDED" in found["batch"]["state"]
    assert found["made"]["name"] in found["listed"]


def test_interactions_keep_their_chain(pair: Pair) -> None:
    found = nodes.run(pair.gateway, "interactions")
    assert (found["again"], found["previous"]) == (found["second"], found["first"])
    assert len(found["events"]) > 2
    made = [call for call in pair.simulator.calls if call.method == "POST"]
    assert len(made) == 3
    assert len({call.project for call in made}) == 1


def test_an_owner_without_quota_holds_its_files_and_nothing_else(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("a few words")
    found = nodes.run(pair.gateway, "ownerWithoutQuota", str(path), "text/plain", model=LAST)
    assert [found[name]["status"] for name in ("first", "second", "without")] == [200, 429, 200]
    assert found["file"]["name"] in found["second"]["text"]


def test_a_film_is_polled_and_downloaded_where_it_was_begun(pair: Pair) -> None:
    found = nodes.run(pair.gateway, "films", model="veo-3.1-generate-001")
    assert found["name"].startswith("models/veo-3.1-generate-001/operations/")
    assert found["uri"].startswith(pair.gateway.url)
    assert found["status"] == 200
    assert found["bytes"] > 0
    assert len({call.project for call in pair.simulator.calls}) == 1
