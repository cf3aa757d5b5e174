"""Interactions with the simulator: whole, as events, in the background, continued, and owned."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai

from gemini_simulator import Fault, Simulator, demo_keys, running
from tests.simulator.test_api import FLASH, Answer, Clock, call
from tests.simulator.test_resources import BASE, LONG, OTHER, make, refused, upload

PATH = "/v1beta/interactions"
HELLO: dict[str, Any] = {"model": FLASH, "input": "Hello there"}
SAID = f"Simulated answer of {FLASH} to: Hello there"


def events(answer: Answer) -> list[Any]:
    found = []
    for block in answer.body.decode().split("\n\n"):
        if block and not block.startswith("event: done"):
            name, data = block.split("\n", 1)
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['event_type']}"
    return found


def text_of(interaction: Any) -> str:
    return str(interaction["steps"][-1]["content"][0]["text"])


def test_an_interaction_counts_and_is_kept() -> None:
    simulator = make()
    made = call(simulator, PATH, HELLO).json
    assert (made["status"], made["model"], text_of(made)) == ("completed", FLASH, SAID)
    assert made["usage"]["total_input_tokens"] == 3
    assert call(simulator, f"{PATH}/{made['id']}").json == made
    assert simulator.enforcer.served["simulated-project-1", FLASH].tokens == 3
    refused(call(simulator, f"{PATH}/{made['id']}", headers=OTHER), 404, "NOT_FOUND", "not found")


def test_an_interaction_continues_another_of_the_same_project() -> None:
    simulator = make()
    first = call(simulator, PATH, HELLO).json
    more = HELLO | {"previous_interaction_id": first["id"]}
    second = call(simulator, PATH, more).json
    assert second["previous_interaction_id"] == first["id"]
    assert second["usage"]["total_input_tokens"] == first["usage"]["total_tokens"] + 3
    refused(call(simulator, PATH, more, headers=OTHER), 404, "NOT_FOUND", "not found")
    assert simulator.enforcer.admitted["simulated-project-2", FLASH] == 0


def test_what_an_interaction_names_is_its_projects() -> None:
    simulator = make()
    uri = upload(simulator)["uri"]
    cache = call(simulator, "/v1beta/cachedContents", LONG).json["name"]
    store = call(simulator, "/v1beta/fileSearchStores", {}).json["name"]
    content = [{"type": "text", "text": "See"}, {"type": "document", "uri": uri, "mime_type": "text/plain"}]
    named = [
        {"input": content},
        {"input": [{"type": "user_input", "content": content}]},
        {"cached_content": cache},
        {"tools": [{"type": "file_search", "file_search_store_names": [store]}]},
    ]
    for fields in named:
        assert call(simulator, PATH, HELLO | fields).status == 200
        assert call(simulator, PATH, HELLO | fields, headers=OTHER).status == 403


def test_environments_are_made_and_used_again() -> None:
    simulator = make()
    made = call(simulator, PATH, {"agent": "antigravity", "input": "Go", "environment": {"type": "remote"}}).json
    assert made["agent"] == "antigravity"
    body = HELLO | {"environment": made["environment_id"]}
    assert call(simulator, PATH, body).json["environment_id"] == made["environment_id"]
    assert call(simulator, PATH, body, headers=OTHER).status == 404
    assert call(simulator, f"/v1beta/environments/{made['environment_id']}").status == 200


def test_events() -> None:
    simulator = make()
    found = events(call(simulator, PATH, HELLO | {"stream": True}))
    kinds = [event["event_type"] for event in found]
    assert kinds == ["interaction.created", "step.start", *["step.delta"] * 4, "step.stop", "interaction.completed"]
    assert "".join(event["delta"]["text"] for event in found[2:6]) == SAID
    name = found[0]["interaction"]["id"]
    assert call(simulator, f"{PATH}/{name}").json["usage"] == found[-1]["interaction"]["usage"]
    assert events(call(simulator, f"{PATH}/{name}?stream=true")) == found
    assert events(call(simulator, f"{PATH}/{name}?stream=true&last_event_id=event-5")) == found[5:]
    assert call(simulator, f"{PATH}/{name}?stream=true&last_event_id=x").status == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_film_is_a_file_of_the_same_project(stream: bool) -> None:
    simulator = make()
    answer = call(simulator, PATH, {"model": "veo-3.1-generate-001", "input": "A cat", "stream": stream})
    item = events(answer)[-3]["delta"] if stream else answer.json["steps"][0]["content"][1]
    assert (item["type"], item["mime_type"]) == ("video", "video/mp4")
    path = item["uri"].removeprefix(BASE)
    assert call(simulator, path).body.endswith(b"A cat")
    assert call(simulator, path, headers=OTHER).status == 403


def test_in_the_background_and_cancelled() -> None:
    clock = Clock()
    simulator = make(clock, working=10)
    one, two = (call(simulator, PATH, HELLO | {"background": True}).json for _ in range(2))
    assert (one["status"], "steps" in one) == ("in_progress", False)
    path = f"{PATH}/{one['id']}/cancel"
    refused(call(simulator, path, method="POST", headers=OTHER), 404, "NOT_FOUND", "not found")
    assert call(simulator, path, method="POST").json["status"] == "cancelled"
    clock.now += 10
    assert call(simulator, f"{PATH}/{one['id']}").json["status"] == "cancelled"
    assert text_of(call(simulator, f"{PATH}/{two['id']}").json) == SAID
    refused(call(simulator, f"{PATH}/{two['id']}/cancel", method="POST"), 400, "FAILED_PRECONDITION", "in progress")


def test_not_kept_deleted_or_never_made() -> None:
    simulator = make()
    unkept = call(simulator, PATH, HELLO | {"store": False}).json["id"]
    assert call(simulator, f"{PATH}/{unkept}").status == 404
    made = call(simulator, PATH, HELLO).json["id"]
    assert call(simulator, f"{PATH}/{made}", method="DELETE", headers=OTHER).status == 404
    assert call(simulator, f"{PATH}/{made}", method="DELETE").json == {}
    assert call(simulator, f"{PATH}/{made}").status == 404
    assert call(simulator, PATH, HELLO | {"model": "none"}).status == 404
    assert call(simulator, PATH, {"model": FLASH}).status == 400
    assert len(simulator.owned()) == 0


def test_quotas_and_faults_meet_interactions() -> None:
    simulator = Simulator(demo_keys(1), {"rpm": 3})
    simulator.faults.append(Fault(kind="overloaded", verb="interactions.create", model=FLASH, count=1))
    assert call(simulator, PATH, HELLO).status == 503
    stream = HELLO | {"stream": True}
    simulator.faults.append(Fault(kind="truncate", count=1))
    assert events(call(simulator, PATH, stream))[-1]["event_type"] == "step.stop"
    simulator.faults.append(Fault(kind="mid-error", count=1))
    assert [event["event_type"] for event in events(call(simulator, PATH, stream))] == ["interaction.created", "error"]
    assert call(simulator, PATH, HELLO).status == 200
    assert call(simulator, PATH, HELLO).status == 429


@pytest.fixture(scope="module")
def client() -> Iterator[genai.Client]:
    with (
        running(Simulator(demo_keys(1), {})) as url,
        genai.Client(api_key="simulated-key-1", http_options={"base_url": url}) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore")  # the SDK says of this part of itself that it may change
def test_the_sdk(client: genai.Client) -> None:
    interactions: Any = client.interactions
    first = interactions.create(model=FLASH, input="Hello there")
    assert (first.status, first.output_text) == ("completed", SAID)
    assert first.id is not None
    stream = interactions.create(model=FLASH, input="And?", previous_interaction_id=first.id, stream=True)
    kinds = [event.event_type for event in stream]
    assert (kinds[0], kinds[-1], kinds.count("step.delta")) == ("interaction.created", "interaction.completed", 4)
    assert interactions.get(id=first.id).output_text == SAID
    interactions.delete(id=first.id)
    with pytest.raises(Exception, match="not found"):
        interactions.get(id=first.id)
