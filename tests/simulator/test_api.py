"""The simulated API, called in-process: routes, credentials, answers, quotas, faults."""

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_simulator import Fault, FaultError, Simulator, demo_keys
from gemini_simulator.errors import NAMES
from gemini_simulator.exchange import BrokenConnectionError

FLASH = "gemini-3.8-flash"
GENERATE = f"/v1beta/models/{FLASH}:generateContent"
STREAM = f"/v1beta/models/{FLASH}:streamGenerateContent"
CHAT = "/v1beta/openai/chat/completions"
KEY = "simulated-key-1"
HELLO: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello, wörld"}]}]}
ASK: dict[str, Any] = {"model": FLASH, "messages": [{"role": "user", "content": "Hello, wörld"}]}


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        value = self.json
        return (value[0] if isinstance(value, list) else value)["error"]

    @property
    def events(self) -> list[Any]:
        texts = [text for text in self.body.decode().replace("\r\n", "\n").split("\n\n") if text.startswith("data: ")]
        return [json.loads(text[6:]) for text in texts if text != "data: [DONE]"]


def call(
    simulator: Simulator,
    path: str,
    document: Any = None,
    *,
    method: str = "",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    gone_after: int | None = None,
) -> Answer:
    """`gone_after`: the client leaves once it has that many pieces."""
    path, _, query = path.partition("?")
    if headers is None:
        headers = {"authorization": f"Bearer {KEY}"} if "/openai/" in path else {"x-goog-api-key": KEY}
    data = body if body is not None else json.dumps(document).encode() if document is not None else b""
    scope = {
        "type": "http",
        "method": method or ("POST" if data else "GET"),
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    answer = Answer()

    async def talk() -> None:
        gone = asyncio.Event()
        inbox = [data[:7], data[7:]]

        async def receive() -> dict[str, Any]:
            if inbox:
                return {"type": "http.request", "body": inbox.pop(0), "more_body": bool(inbox)}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.pieces.append(message.get("body", b""))
                answer.complete = not message.get("more_body")
            if answer.complete or len(answer.pieces) == gone_after:
                gone.set()
            await asyncio.sleep(0)

        if gone_after == 0:
            gone.set()
        await simulator(scope, receive, send)

    asyncio.run(asyncio.wait_for(talk(), 5))
    return answer


class Clock:
    """A clock that its own sleep moves."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def make(limits: Any = None, *faults: Fault, **options: Any) -> Simulator:
    clock = options.pop("clock", None) or Clock()
    simulator = Simulator(demo_keys(3), limits or {}, clock=clock, sleep=clock.sleep, **options)
    simulator.faults += faults
    return simulator


# Credentials


def test_exactly_one_credential_is_taken_and_it_must_be_known() -> None:
    simulator = make()
    key = {"x-goog-api-key": KEY}
    bearer = {"authorization": f"Bearer {KEY}"}
    assert call(simulator, GENERATE, HELLO, headers=key).status == 200
    assert call(simulator, f"{GENERATE}?key={KEY}", HELLO, headers={}).status == 200
    assert call(simulator, CHAT, ASK, headers=bearer).status == 200
    for headers, path in ((key | bearer, GENERATE), (key, f"{GENERATE}?key={KEY}"), (key | bearer, CHAT)):
        error = call(simulator, path, ASK if path == CHAT else HELLO, headers=headers).error
        assert (error["code"], error["message"][:39]) == (400, "Multiple authentication credentials rec")
    assert call(simulator, CHAT, ASK, headers=bearer | {"openai-project": "p"}).status == 400
    error = call(simulator, GENERATE, HELLO, headers={}).error
    assert (error["code"], error["message"][:14]) == (403, "Method doesn't")
    error = call(simulator, GENERATE, HELLO, headers={"x-goog-api-key": "AQ.test-unknown"}).error
    assert (error["code"], error["details"][0]["reason"]) == (400, "API_KEY_INVALID")
    assert call(simulator, GENERATE, HELLO, headers=bearer).error["code"] == 401
    assert "Authorization" in call(simulator, CHAT, ASK, headers=key).error["message"]


def test_keys_may_be_a_mapping_of_value_to_project() -> None:
    simulator = Simulator({"AQ.test-one": "p", "AQ.test-two": "p"}, {"rpm": 1})
    assert call(simulator, GENERATE, HELLO, headers={"x-goog-api-key": "AQ.test-one"}).status == 200
    assert call(simulator, GENERATE, HELLO, headers={"x-goog-api-key": "AQ.test-two"}).status == 429
    assert [(c.key, c.project) for c in simulator.calls] == [("key-1", "p"), ("key-2", "p")]


# Answers


def test_a_plain_answer_has_googles_shape_and_is_the_same_each_time() -> None:
    simulator = make()
    answer = call(simulator, GENERATE, HELLO)
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    assert int(answer.headers["content-length"]) == len(answer.body)
    (candidate,) = answer.json["candidates"]
    assert candidate["content"]["role"] == "model"
    assert candidate["content"]["parts"] == [{"text": f"Simulated answer of {FLASH} to: Hello, wörld"}]
    assert candidate["finishReason"] == "STOP"
    usage = answer.json["usageMetadata"]
    assert usage["promptTokenCount"] == 3  # twelve characters
    assert usage["totalTokenCount"] == 3 + usage["candidatesTokenCount"]
    assert usage["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": 3}]
    assert answer.json["modelVersion"] == FLASH
    again = call(simulator, GENERATE, HELLO).json
    assert again.pop("responseId") != answer.json["responseId"]
    assert again == {name: value for name, value in answer.json.items() if name != "responseId"}


def test_sse_has_googles_line_ends_and_cumulative_usage() -> None:
    answer = call(make(), STREAM + "?alt=sse", HELLO)
    assert answer.headers["content-type"] == "text/event-stream"
    assert "content-length" not in answer.headers
    assert answer.body.count(b"\r\n\r\n") == 4
    assert answer.body.endswith(b"\r\n\r\n")
    said = [event["usageMetadata"]["candidatesTokenCount"] for event in answer.events]
    assert said == sorted(said)
    assert {event["usageMetadata"]["promptTokenCount"] for event in answer.events} == {3}
    assert [event["candidates"][0].get("finishReason") for event in answer.events] == [None, None, None, "STOP"]
    text = "".join(event["candidates"][0]["content"]["parts"][0]["text"] for event in answer.events)
    assert text == f"Simulated answer of {FLASH} to: Hello, wörld"
    assert len({event["responseId"] for event in answer.events}) == 1


def test_without_alt_sse_a_stream_is_an_array_element_by_element() -> None:
    answer = call(make(chunks=3), STREAM + "?alt=json", HELLO)
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    assert len(answer.json) == 3
    assert [piece[:1] for piece in answer.pieces] == [b"[", b",", b",", b"]"]
    assert call(make(chunks=3), STREAM + "?%24alt=sse", HELLO).body.startswith(b"data: {")


def test_openai_answers_plain_and_streamed() -> None:
    simulator = make()
    plain = call(simulator, CHAT, ASK).json
    assert plain["object"] == "chat.completion"
    assert plain["choices"][0]["message"]["content"].endswith("Hello, wörld")
    assert plain["choices"][0]["finish_reason"] == "stop"
    assert plain["usage"]["prompt_tokens"] == 3
    streamed = call(simulator, CHAT, ASK | {"stream": True})
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert not any("usage" in event for event in streamed.events)
    assert [event["choices"][0].get("finish_reason") for event in streamed.events] == [None, None, None, "stop"]
    with_usage = call(simulator, CHAT, ASK | {"stream": True, "stream_options": {"include_usage": True}})
    assert with_usage.events[-1]["choices"] == []
    assert with_usage.events[-1]["usage"] == plain["usage"]
    assert call(simulator, CHAT, ASK | {"model": f"models/{FLASH}"}).status == 200


def test_tokens_are_counted_simply_or_set_by_the_first_text() -> None:
    simulator = make()

    def tokens(document: Any) -> int:
        usage = call(simulator, GENERATE, document).json["usageMetadata"]
        return int(usage["promptTokenCount"])

    image = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    assert tokens({"contents": [{"parts": [{"text": "x" * 9}, image, {"inline_data": {}}]}]}) == 3 + 2 * 258
    assert tokens(HELLO | {"systemInstruction": {"parts": [{"text": "x" * 40}]}}) == 13
    assert tokens(HELLO | {"system_instruction": {"parts": {"text": "x" * 40}}}) == 13
    assert tokens(HELLO | {"tools": [{"googleSearch": {}}]}) > 3
    assert tokens({"contents": [{"parts": [{"text": "tokens=12345 and more"}, image]}]}) == 12345
    assert tokens({"contents": {"parts": {"text": "tokens=7"}}}) == 7
    chat = ASK | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 8}, {"type": "image_url"}]}]}
    assert call(simulator, CHAT, chat).json["usage"]["prompt_tokens"] == 2 + 258
    forced = ASK | {"messages": [{"role": "user", "content": "tokens=99 x"}]}
    assert call(simulator, CHAT, forced).json["usage"]["prompt_tokens"] == 99


def test_count_tokens_is_free_and_sees_the_system_instruction_only_inside_a_request() -> None:
    simulator = make({"rpm": 0})
    path = GENERATE.replace("generateContent", "countTokens")
    system = {"systemInstruction": {"parts": [{"text": "x" * 40}]}}
    assert call(simulator, path, HELLO | system).json["totalTokens"] == 3
    inner = {"generateContentRequest": {"model": f"models/{FLASH}", **HELLO, **system}}
    assert call(simulator, path, inner).json["totalTokens"] == 13


def test_embeddings_cost_a_request_for_each_text() -> None:
    model = "gemini-embedding-001"
    simulator = make({"rpm": 100})
    one = {"content": {"parts": [{"text": "tokens=5 x"}]}, "outputDimensionality": 8}
    single = call(simulator, f"/v1beta/models/{model}:embedContent", one).json
    assert len(single["embedding"]["values"]) == 8
    batch = f"/v1beta/models/{model}:batchEmbedContents"
    many = call(simulator, batch, {"requests": [one, one | {"content": {"parts": [{"text": "other"}]}}]}).json
    assert many["embeddings"][0] == single["embedding"] != many["embeddings"][1]
    listed = call(simulator, "/v1beta/openai/embeddings", {"model": model, "input": ["a", "b", "c"]}).json
    assert [entry["index"] for entry in listed["data"]] == [0, 1, 2]
    assert simulator.enforcer.served["simulated-project-1", "gemini-embedding-1.0"].requests == 1 + 2 + 3
    assert "at most 100" in call(simulator, batch, {"requests": [one] * 101}).error["message"]
    full = call(simulator, batch, {"requests": [one] * 95})
    assert "embed_content_free_tier_requests, limit: 100" in full.error["message"]


def test_images_are_a_counter_of_their_own() -> None:
    simulator = make({"ipm": 3})
    predict = "/v1beta/models/imagen-4.0-generate-001:predict"
    asked = {"instances": [{"prompt": "a fish"}], "parameters": {"sampleCount": 2}}
    assert len(call(simulator, predict, asked).json["predictions"]) == 2
    assert "generated_images_free_tier_per_model, limit: 3" in call(simulator, predict, asked).error["message"]
    drawn = call(simulator, "/v1beta/models/gemini-2.5-flash-image:generateContent", HELLO).json
    picture = drawn["candidates"][0]["content"]["parts"][1]["inlineData"]
    assert picture["mimeType"] == "image/png"
    data = base64.b64decode(picture["data"], validate=True)
    header = data[12:29]
    assert (data[1:4], int.from_bytes(data[29:33])) == (b"PNG", zlib.crc32(header))
    assert simulator.enforcer.served["simulated-project-1", "gemini-2.5-flash-preview-image"].images == 1


def test_models_are_listed_in_pages_and_described() -> None:
    simulator = make(models=[f"gemini-{i}" for i in range(5)])
    first = call(simulator, "/v1beta/models?pageSize=3").json
    second = call(simulator, f"/v1/models?pageSize=3&pageToken={first['nextPageToken']}").json
    assert [m["name"] for m in first["models"] + second["models"]] == [f"models/gemini-{i}" for i in range(5)]
    assert "nextPageToken" not in second
    one = call(simulator, "/v1beta/models/gemini-1").json
    assert "generateContent" in one["supportedGenerationMethods"]
    assert call(simulator, "/v1beta/models?pageSize=many").status == 400
    assert len(call(simulator, "/v1beta/openai/models").json["data"]) == 5
    for name in ("gemini-1", "models/gemini-1"):
        assert call(simulator, f"/v1beta/openai/models/{name}").json["id"] == "models/gemini-1"


def test_paths_and_models_that_do_not_exist_are_404_in_shape() -> None:
    simulator = make()
    for path in ("/v1beta/voices", "/v1beta/models/x:generateContent", "/nothing", GENERATE, "/v1beta/models/x"):
        answer = call(simulator, path)
        assert (answer.status, answer.error["status"]) == (404, "NOT_FOUND")
    assert (
        "not supported for generateContent"
        in call(simulator, GENERATE.replace(FLASH, "gemini-1"), HELLO).error["message"]
    )
    assert call(simulator, "/v1beta/models/gemini-embedding-001:generateContent", HELLO).status == 404
    assert call(simulator, CHAT, ASK | {"model": "gpt-4"}).error["code"] == 404
    assert call(simulator, "/v1beta/files", method="DELETE").status == 404


def test_head_and_options_behave() -> None:
    simulator = make()
    head = call(simulator, "/v1beta/models", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(call(simulator, "/v1beta/models").body))
    options = call(simulator, GENERATE, method="OPTIONS", headers={})
    assert (options.status, options.body) == (200, b"")
    assert "POST" in options.headers["allow"]


def test_the_echo_shows_what_came_but_no_credential() -> None:
    shown = call(make(), f"/v1alpha/simulator:echo?b=2&a=%2f&key={KEY}", headers={"x-one": "1"}, method="PUT")
    assert shown.json["method"] == "PUT"
    assert shown.json["query"] == "b=2&a=%2f&key=<simulated-1 of simulated-project-1>"
    assert shown.json["headers"] == [["x-one", "1"]]
    assert KEY.encode() not in shown.body


# What is wrong with a body


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"contents": []}',
        b'{"contents": "text"}',
        b'{"contents": [{"parts": ["text"]}]}',
        b'{"contents": [{"parts": []}]}',
    ],
)
@pytest.mark.parametrize("stream", ["", "sse", "array"])
def test_a_body_that_makes_no_sense_is_a_400_and_costs_no_quota(body: bytes, stream: str) -> None:
    simulator = make({"rpm": 1})
    path = {"": GENERATE, "sse": STREAM + "?alt=sse", "array": STREAM}[stream]
    answer = call(simulator, path, body=body)
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    assert isinstance(answer.json, list) == (stream == "array")
    assert not simulator.enforcer.admitted


@pytest.mark.parametrize(
    "body", [{}, {"messages": [1], "model": FLASH}, {"messages": [], "model": FLASH}, {"model": 5}]
)
def test_openai_errors_are_a_list_of_one(body: Any) -> None:
    answer = call(make(), CHAT, body)
    assert answer.status == 400
    assert [list(entry) for entry in answer.json] == [["error"]]


NAMES_IN_BODIES = (
    "contents parts text inlineData systemInstruction tools generateContentRequest requests content "
    "outputDimensionality instances parameters sampleCount model messages input stream stream_options dimensions "
    "role functionDeclarations name parametersJsonSchema toolConfig functionCallingConfig mode allowedFunctionNames "
    "functionCall functionResponse response thoughtSignature generationConfig responseSchema responseMimeType "
    "stopSequences candidateCount maxOutputTokens thinkingConfig thinkingBudget responseModalities googleMaps "
    "tool_calls function tool_choice type response_format json_schema schema extra_body google n stop max_tokens "
    "extra_content encoding_format"
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800") | st.just(FLASH),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES_IN_BODIES.split()), inner, max_size=4)
    ),
    max_leaves=12,
)
ROUTES = [
    GENERATE,
    STREAM,
    GENERATE.replace("generateContent", "countTokens"),
    "/v1beta/models/gemini-embedding-001:embedContent",
    "/v1beta/models/gemini-embedding-001:batchEmbedContents",
    "/v1beta/models/imagen-4.0-generate-001:predict",
    CHAT,
    "/v1beta/openai/embeddings",
]


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=40, deadline=None)
@given(document=json_values)
def test_no_body_whatever_breaks_the_simulator(path: str, document: Any) -> None:
    answer = call(make(), path, document)
    assert answer.status in (200, 400, 404)
    assert answer.complete


def test_compressed_bodies_are_read() -> None:
    data = gzip.compress(json.dumps(HELLO).encode())
    headers = {"x-goog-api-key": KEY, "content-encoding": "gzip"}
    assert call(make(), GENERATE, body=data, headers=headers).status == 200
    assert call(make(), GENERATE, body=data[:-9], headers=headers).status == 400


# Quotas


@pytest.mark.parametrize("kind", ["sliding", "minute", "bucket"])
def test_a_limit_is_enforced_per_project_and_bucket_until_it_is_free_again(kind: str) -> None:
    clock = Clock()
    simulator = make({"rpm": 2}, kind=kind, clock=clock)
    pro, custom = "gemini-3.1-pro-preview", "gemini-3.1-pro-preview-customtools"
    assert [call(simulator, GENERATE.replace(FLASH, name), HELLO).status for name in (pro, custom)] == [200, 200]
    refused = call(simulator, GENERATE.replace(FLASH, custom), HELLO)
    assert (refused.status, refused.error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "model: gemini-3.1-pro\n" in refused.error["message"]
    assert refused.error["details"][1]["violations"][0]["quotaDimensions"]["model"] == "gemini-3.1-pro"
    assert call(simulator, GENERATE, HELLO).status == 200
    other = {"x-goog-api-key": "simulated-key-2"}
    assert call(simulator, GENERATE.replace(FLASH, pro), HELLO, headers=other).status == 200
    clock.now += int(refused.error["details"][2]["retryDelay"][:-1]) + 1
    assert call(simulator, GENERATE.replace(FLASH, pro), HELLO).status == 200


def test_streams_and_openai_calls_meet_the_same_quota_and_refusals_come_as_lists() -> None:
    simulator = make({"rpm": 2}, tiers={"simulated-project-1": "tier2"})
    assert call(simulator, STREAM + "?alt=sse", HELLO).status == 200
    assert call(simulator, CHAT, ASK).status == 200
    for path, document in ((CHAT, ASK | {"stream": True}), (STREAM, HELLO)):
        refused = call(simulator, path, document)
        assert (refused.status, type(refused.json)) == (429, list)
        assert "generate_content_paid_tier_2_requests" in refused.error["message"]
    assert "error" in call(simulator, STREAM + "?alt=sse", HELLO).json


def test_a_request_above_the_token_limit_never_passes_but_names_a_short_delay() -> None:
    clock = Clock()
    simulator = make({"tpm": 1000}, clock=clock)
    for _ in range(3):
        error = call(simulator, GENERATE, {"contents": [{"parts": [{"text": "tokens=1001 "}]}]}).error
        assert error["details"][1]["violations"][0]["quotaValue"] == "1000"
        assert int(error["details"][2]["retryDelay"][:-1]) <= 60
        clock.now += 61


# Faults


@pytest.mark.parametrize("name", NAMES)
def test_every_named_error_can_be_had_and_costs_no_quota(name: str) -> None:
    simulator = make({"rpm": 5}, Fault(kind=name, count=1))
    answer = call(simulator, GENERATE, HELLO)
    assert answer.status >= 400
    assert simulator.calls[-1].fault == name
    assert not simulator.enforcer.admitted
    assert call(simulator, GENERATE, HELLO).status == 200


def test_a_suspension_echoes_the_key_as_google_does() -> None:
    answer = call(make(None, Fault(kind="suspended")), GENERATE, HELLO)
    assert f"api_key:{KEY}'" in answer.error["message"]


def test_faults_strike_what_they_match_as_often_as_they_shall() -> None:
    simulator = make(
        None,
        Fault(kind="invalid-key", key="simulated-2"),
        Fault(kind="internal", project="simulated-project-1", verb="streamGenerateContent", count=2),
        Fault(kind="overloaded", model="gemini-3.6-flash"),
        Fault(kind="rpd", limit=20, retry_s=12265.5, verb="countTokens"),
    )
    second = {"x-goog-api-key": "simulated-key-2"}
    assert call(simulator, GENERATE, HELLO, headers=second).error["code"] == 400
    assert [call(simulator, STREAM + "?alt=sse", HELLO).status for _ in range(3)] == [500, 500, 200]
    assert call(simulator, GENERATE.replace(FLASH, "gemini-3.6-flash"), HELLO).status == 503
    assert call(simulator, CHAT, ASK | {"model": "gemini-3.6-flash"}).status == 503
    assert call(simulator, GENERATE, HELLO).status == 200
    # A quota is nothing that a free call could exceed.
    assert call(simulator, GENERATE.replace("generateContent", "countTokens"), HELLO).status == 200
    simulator.faults[:] = [Fault(kind="rpd", limit=20, retry_s=12265.5)]
    error = call(simulator, GENERATE, HELLO).error
    assert error["details"][1]["violations"][0]["quotaValue"] == "20"
    assert error["details"][2]["retryDelay"] == "12265s"
    assert "Please retry in 3h24m25.5s." in error["message"]


def test_a_fault_of_a_tool_meets_only_calls_that_ask_for_it() -> None:
    simulator = make(None, Fault(kind="bare-quota", tool="googleSearch"))
    native: list[Any] = [[{"googleSearch": {}}], [{"google_search": {}}]]
    assert [call(simulator, GENERATE, HELLO | {"tools": tools}).status for tools in native] == [429, 429]
    interaction = {"model": FLASH, "input": "x", "tools": [{"type": "google_search"}]}
    assert call(simulator, "/v1beta/interactions", interaction).status == 429
    function = {"functionDeclarations": [{"name": "googleSearch"}]}
    others: list[Any] = [[{"urlContext": {}}], [function], "googleSearch", None]
    for tools in others:
        assert call(simulator, GENERATE, HELLO | {"tools": tools}).status == 200
    assert call(simulator, GENERATE, HELLO).status == 200
    assert call(simulator, CHAT, ASK).status == 200
    said = call(simulator, GENERATE, HELLO | {"tools": native[0]}).error
    assert said["message"].startswith("You exceeded your current quota, please check your plan and billing details.")
    assert [detail["@type"].rpartition(".")[2] for detail in said["details"]] == ["Help"]


def test_a_probability_is_kept_about_and_by_the_seed() -> None:
    def run(seed: int) -> list[int]:
        simulator = make(None, Fault(kind="overloaded", probability=0.3), seed=seed)
        return [call(simulator, GENERATE, HELLO).status for _ in range(60)]

    assert 8 <= run(1).count(503) <= 28
    assert run(1) == run(1) != run(2)


def test_waiting_faults_wait_in_the_given_time() -> None:
    clock = Clock()
    simulator = make(None, Fault(kind="slow", seconds=7, count=1), clock=clock, latency=0.5)
    call(simulator, GENERATE, HELLO)
    call(simulator, GENERATE, HELLO)
    assert clock.naps == [7.5, 0.5]
    clock.naps.clear()
    simulator.latency, simulator.chunk_delay = 0.0, 0.1
    call(simulator, STREAM + "?alt=sse", HELLO)
    simulator.faults.append(Fault(kind="drip", seconds=3))
    call(simulator, STREAM + "?alt=sse", HELLO)
    assert clock.naps == [0.1] * 3 + [3] * 3


@pytest.mark.parametrize(("kind", "naps"), [("reset", []), ("hang", [30])])
def test_a_connection_without_an_answer(kind: str, naps: list[float]) -> None:
    clock = Clock()
    simulator = make({"rpm": 5}, Fault(kind=kind, seconds=30), clock=clock)
    with pytest.raises(BrokenConnectionError):
        call(simulator, GENERATE, HELLO)
    assert clock.naps == naps
    assert simulator.calls[-1].status is None
    assert simulator.enforcer.admitted.total() == 1  # Google had it


def test_streams_that_go_wrong() -> None:
    simulator = make()

    def broken(path: str, document: Any, **fault: Any) -> Answer:
        simulator.faults[:] = [Fault(**fault)]
        return call(simulator, path, document)

    sse, chat = STREAM + "?alt=sse", ASK | {"stream": True}
    cut = broken(sse, HELLO, kind="truncate")
    assert len(cut.events) == 4
    assert not any("finishReason" in event["candidates"][0] for event in cut.events)
    assert not any(word in broken(CHAT, chat, kind="truncate").body for word in (b"DONE", b"finish_reason"))
    with pytest.raises(ValueError, match="Expecting"):
        _ = broken(STREAM, HELLO, kind="truncate").json

    raw = broken(sse, HELLO, kind="mid-error", after=2)
    assert len(raw.events) == 2
    assert json.loads(raw.body.split(b"\r\n\r\n")[-1])["error"]["code"] == 503
    assert b'\r\n\r\n{\n  "error": {\n' in raw.body
    listed = broken(CHAT, chat, kind="mid-error", error="internal")
    assert json.loads(listed.body.split(b"\n\n")[-1])[0]["error"]["code"] == 500
    assert [list(entry) for entry in broken(STREAM, HELLO, kind="mid-error", after=0).json] == [["error"]]
    assert "error" in broken(STREAM, HELLO, kind="mid-error").json[1]

    first = broken(sse, HELLO, kind="first-event-error", error="rpm")
    assert (first.status, first.events[0]["error"]["code"]) == (200, 429)
    assert broken(CHAT, chat, kind="first-event-error").events[0]["error"]["code"] == 503

    whole = broken(sse, HELLO, kind="slow", seconds=0)
    pieces = broken(sse, HELLO, kind="split-chunks")
    assert len(pieces.pieces) > 6
    assert len(pieces.events) == 4
    assert len(pieces.body) == len(whole.body)
    # None of these meets a plain answer.
    assert broken(GENERATE, HELLO, kind="truncate").json["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize(("path", "pieces"), [(GENERATE, 1), (STREAM + "?alt=sse", 2)])
def test_a_connection_that_dies_midway(path: str, pieces: int) -> None:
    simulator = make(None, Fault(kind="mid-reset", after=2))
    with pytest.raises(BrokenConnectionError):
        call(simulator, path, HELLO)
    assert simulator.calls[-1].status == 200


# Clients that leave


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_a_client_that_leaves_midway_is_noticed(delay: float) -> None:
    simulator = make(chunks=20, chunk_delay=delay)
    answer = call(simulator, STREAM + "?alt=sse", HELLO, gone_after=2)
    assert len(answer.pieces) < 8
    assert simulator.calls[-1].disconnected_at is not None
    assert simulator.calls[-1].finished_at is None


def test_a_client_that_leaves_before_the_answer_is_noticed_and_one_that_stays_is_not() -> None:
    simulator = Simulator(demo_keys(1), {}, latency=60)  # really asleep
    assert call(simulator, GENERATE, HELLO, gone_after=0).status == 0
    assert simulator.calls[-1].disconnected_at is not None
    simulator = make()
    call(simulator, STREAM + "?alt=sse", HELLO)
    assert simulator.calls[-1].disconnected_at is None


# What tests may ask


def test_the_log_has_everything_but_credentials_and_bodies() -> None:
    simulator = make()
    call(simulator, f"{GENERATE}?x=1", HELLO, headers={"x-goog-api-key": KEY, "x-other": "seen"})
    call(simulator, GENERATE, HELLO, headers={"authorization": "Bearer AQ.test-stray"})
    shown = call(simulator, "/simulator/log", headers={})
    assert KEY.encode() not in shown.body
    assert b"AQ.test" not in shown.body
    entry, stray = shown.json
    assert (entry["method"], entry["path"], entry["query"], entry["status"]) == ("POST", GENERATE, "x=1", 200)
    assert entry["headers"] == [["x-goog-api-key", "<simulated-1 of simulated-project-1>"], ["x-other", "seen"]]
    assert (entry["size"], len(entry["sha256"])) == (len(json.dumps(HELLO)), 64)
    assert stray["headers"] == [["authorization", "<unknown>"]]
    assert simulator.calls[0].body == json.dumps(HELLO).encode()
    assert simulator.calls[0].header("X-Other") == "seen"
    assert KEY not in repr(list(simulator.calls))


def test_bodies_and_calls_are_kept_only_as_far_as_wanted() -> None:
    lean = make(keep_bodies=False)
    call(lean, GENERATE, HELLO)
    assert (lean.calls[-1].body, len(lean.calls[-1].sha256)) == (b"", 64)
    none = make(keep=0)
    assert call(none, GENERATE, HELLO).status == 200
    assert not none.calls


def test_faults_and_counts_over_http() -> None:
    simulator = make({"rpm": 1})

    def control(path: str, document: Any = None, method: str = "") -> Answer:
        return call(simulator, f"/simulator/{path}", document, method=method, headers={})

    assert control("faults", {"kind": "overloaded", "count": 1}).json[0]["kind"] == "overloaded"
    assert len(control("faults", [{"kind": "slow", "seconds": 0.5}, {"kind": "rpm", "key": "simulated-2"}]).json) == 3
    assert [call(simulator, GENERATE, HELLO).status for _ in range(3)] == [503, 200, 429]
    counts = control("counts").json
    assert counts["statuses"] == {"503": 1, "200": 1, "429": 1}
    assert counts["refusals"] == {"rpm": 1}
    assert counts["quotas"] == [
        {
            "project": "simulated-project-1",
            "model": FLASH,
            "admitted": 1,
            "refused": 1,
            "served": {"requests": 1, "tokens": 3, "images": 0},
            "peak_in_60s": {"requests": 1, "tokens": 3, "images": 0},
        }
    ]
    assert [fault["fired"] for fault in counts["faults"]] == [1, 1, 0]  # no refused call was slowed down
    assert control("faults", method="DELETE").json == control("faults").json == []
    for wrong in ({"kind": "sulking"}, {"kind": "slow", "second": 1}, {"kind": "slow", "seconds": "1"}, 5, {}):
        assert control("faults", wrong).status == 400
    assert control("faults", {"kind": "slow", "probability": 2}).status == 400
    assert (control("nothing").status, control("log", method="DELETE").status) == (404, 405)


@pytest.mark.parametrize(
    "make_fault",
    [
        lambda: Fault(kind="nothing"),
        lambda: Fault(kind="mid-error", error="nothing"),
        lambda: Fault(kind="rpm", probability=1.5),
        lambda: Fault(kind="rpm", count=-1),
        lambda: Fault(kind="rpm", tool="google_search"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make_fault: Callable[[], Fault]) -> None:
    with pytest.raises(FaultError):
        make_fault()


def test_unknown_tiers_are_refused() -> None:
    with pytest.raises(ValueError, match="no such tier: gold"):
        Simulator(demo_keys(1), {}, tiers={"simulated-project-1": "gold"})
