"""What the simulator answers beside plain texts: JSON, cut texts, thoughts, sources, pictures, speech, vectors."""

import base64
import json
import math
import struct
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.simulator.test_api import ASK, CHAT, FLASH, GENERATE, HELLO, STREAM, Answer, call, make

SAID = f"Simulated answer of {FLASH} to: Hello, wörld"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2},
        "inner": {"$ref": "#/$defs/Inner"},
        "perhaps": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["name", "colours", "inner"],
    "additionalProperties": False,
    "$defs": {"Inner": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}, "required": ["n"]}},
}
GOOGLES = {
    "type": "OBJECT",
    "properties": {
        "name": {"type": "STRING", "minLength": "3"},
        "kinds": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["red"]}, "minItems": 2},
        "none": {"type": "STRING", "nullable": True},
    },
    "required": ["name", "kinds"],
    "propertyOrdering": ["kinds", "name", "none"],
}


def configured(**config: Any) -> dict[str, Any]:
    return HELLO | {"generationConfig": config}


def candidate(answer: Answer, number: int = 0) -> Any:
    return answer.json["candidates"][number]


def text(answer: Answer) -> str:
    return "".join(part["text"] for part in candidate(answer)["content"]["parts"] if not part.get("thought"))


def joined(answer: Answer) -> str:
    events = [event["candidates"][0]["content"].get("parts", ()) for event in answer.events]
    return "".join(part["text"] for parts in events for part in parts if not part.get("thought"))


# JSON


@pytest.mark.parametrize(
    "config",
    [
        {"responseJsonSchema": SCHEMA},
        {"response_json_schema": SCHEMA},
        {"_responseJsonSchema": SCHEMA},
        {"responseFormat": {"text": {"mimeType": "APPLICATION_JSON", "schema": SCHEMA}}},
    ],
)
def test_a_json_schema_is_answered_with_json_that_is_valid(config: dict[str, Any]) -> None:
    document = configured(**{"responseMimeType": "application/json"} | config)
    answer = call(make(), GENERATE, document)
    jsonschema.validate(json.loads(text(answer)), SCHEMA)
    assert joined(call(make(), STREAM + "?alt=sse", document)) == text(answer)


def test_googles_schema_too_in_the_order_that_it_names() -> None:
    answer = call(make(), GENERATE, configured(responseMimeType="application/json", responseSchema=GOOGLES))
    made = json.loads(text(answer))
    assert list(made) == ["kinds", "name", "none"]
    assert made["kinds"] == ["red", "red"]
    assert len(made["name"]) >= 3


def test_json_without_a_schema_an_enum_and_types_that_there_are_not() -> None:
    answer = call(make(), GENERATE, configured(responseMimeType="application/json"))
    assert json.loads(text(answer)) == {"answer": SAID}
    enum = {"type": "STRING", "enum": ["yes", "no"]}
    assert text(call(make(), GENERATE, configured(responseMimeType="text/x.enum", responseSchema=enum))) == "yes"
    assert text(call(make(), GENERATE, configured(responseMimeType="text/plain"))) == SAID
    refused = call(make(), GENERATE, configured(responseMimeType="image/png"))
    assert "allowed mimetypes are `text/plain`" in refused.error["message"]


def test_json_for_a_schema_that_the_prompt_describes() -> None:
    prose = f"Answer {{with}} JSON for this schema:\n{json.dumps(SCHEMA)}\nand nothing else."
    rule = {"systemInstruction": {"parts": [{"text": prose}]}}
    answer = call(make(), GENERATE, configured(responseMimeType="application/json") | rule)
    jsonschema.validate(json.loads(text(answer)), SCHEMA)
    assert text(call(make(), GENERATE, HELLO | rule)) == SAID
    messages = [{"role": "system", "content": prose}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    chat = ASK | {"messages": messages, "response_format": {"type": "json_object"}}
    content = call(make(), CHAT, chat).json["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(content), SCHEMA)


def test_openai_response_formats() -> None:
    def content(response_format: Any) -> Any:
        return call(make(), CHAT, ASK | {"response_format": response_format}).json["choices"][0]["message"]["content"]

    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA, "strict": True}}
    jsonschema.validate(json.loads(content(form)), SCHEMA)
    assert json.loads(content({"type": "json_object"})) == {"answer": SAID}
    assert content({"type": "text"}) == SAID
    assert call(make(), CHAT, ASK | {"response_format": {"type": "xml"}}).status == 400
    streamed = call(make(), CHAT, ASK | {"response_format": form, "stream": True}).events
    assert "".join(event["choices"][0]["delta"]["content"] for event in streamed) == content(form)


# Where an answer ends


def test_an_answer_is_cut_at_the_most_tokens() -> None:
    answer = call(make(), GENERATE, configured(maxOutputTokens=3))
    assert text(answer) == SAID[:12]
    assert candidate(answer)["finishReason"] == "MAX_TOKENS"
    assert answer.json["usageMetadata"]["candidatesTokenCount"] == 3
    events = call(make(), STREAM + "?alt=sse", configured(max_output_tokens=3)).events
    assert [event["candidates"][0].get("finishReason") for event in events] == [None, None, None, "MAX_TOKENS"]
    assert candidate(call(make(), GENERATE, configured(maxOutputTokens=500)))["finishReason"] == "STOP"
    for name in ("max_tokens", "max_completion_tokens"):
        choice = call(make(), CHAT, ASK | {name: 3}).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (SAID[:12], "length")
    for wrong in (-1, 2.5, "many", True):
        assert call(make(), GENERATE, configured(maxOutputTokens=wrong)).status == 400
    for same in (3.0, "3"):  # as protobuf reads JSON
        assert text(call(make(), GENERATE, configured(maxOutputTokens=same))) == SAID[:12]


def test_an_answer_ends_before_a_stop_sequence() -> None:
    answer = call(make(), GENERATE, configured(stopSequences=["Hello", "answer"]))
    assert (text(answer), candidate(answer)["finishReason"]) == ("Simulated ", "STOP")
    for stop in ("answer", ["nowhere", "answer"]):
        choice = call(make(), CHAT, ASK | {"stop": stop}).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Simulated ", "stop")
    empty = call(make(), GENERATE, configured(stopSequences=["Simulated"]))
    assert candidate(empty)["content"] == {"role": "model"}


def test_several_candidates() -> None:
    one = call(make(), GENERATE, HELLO).json["usageMetadata"]["candidatesTokenCount"]
    answer = call(make(), GENERATE, configured(candidateCount=3))
    assert [each["index"] for each in answer.json["candidates"]] == [0, 1, 2]
    assert len({each["content"]["parts"][0]["text"] for each in answer.json["candidates"]}) == 3
    assert answer.json["usageMetadata"]["candidatesTokenCount"] > 3 * one
    events = call(make(), STREAM + "?alt=sse", configured(candidateCount=2)).events
    assert [len(event["candidates"]) for event in events] == [2] * 4
    assert [each["finishReason"] for each in events[-1]["candidates"]] == ["STOP", "STOP"]
    assert call(make(), GENERATE, configured(candidateCount=9)).status == 400
    assert len(call(make(), CHAT, ASK | {"n": 2.0}).json["choices"]) == 2
    assert [each["index"] for each in call(make(), CHAT, ASK | {"n": 2}).json["choices"]] == [0, 1]
    streamed = call(make(), CHAT, ASK | {"n": 2, "stream": True}).events
    assert sum("finish_reason" in event["choices"][0] for event in streamed) == 2


# Thoughts


def test_thoughts_are_shown_when_asked_for_and_counted_when_had() -> None:
    answer = call(make(), GENERATE, configured(thinkingConfig={"includeThoughts": True}))
    thought, said = candidate(answer)["content"]["parts"]
    assert thought["thought"] is True
    assert said == {"text": SAID}
    usage = answer.json["usageMetadata"]
    assert usage["thoughtsTokenCount"] > 0
    assert usage["totalTokenCount"] == sum(
        usage[name] for name in ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    )
    hidden = call(make(), GENERATE, configured(thinkingConfig={"thinkingLevel": "HIGH"}))
    assert candidate(hidden)["content"]["parts"] == [{"text": SAID}]
    assert hidden.json["usageMetadata"]["thoughtsTokenCount"] > 0
    off = call(make(), GENERATE, configured(thinking_config={"thinking_budget": 0, "include_thoughts": True}))
    assert "thoughtsTokenCount" not in off.json["usageMetadata"]
    small = call(make(), GENERATE, configured(thinkingConfig={"thinkingBudget": 2}))
    assert small.json["usageMetadata"]["thoughtsTokenCount"] == 2
    both = call(make(), GENERATE, configured(thinkingConfig={"thinkingBudget": 2, "thinkingLevel": "LOW"}))
    assert "only set one of thinking budget and thinking level" in both.error["message"]
    events = call(make(), STREAM + "?alt=sse", configured(thinkingConfig={"includeThoughts": True})).events
    assert [event["candidates"][0]["content"]["parts"][0].get("thought") for event in events] == [True, *[None] * 4]
    assert {event["usageMetadata"]["thoughtsTokenCount"] for event in events} == {usage["thoughtsTokenCount"]}


def test_thoughts_use_up_the_tokens_of_the_answer() -> None:
    answer = call(make(), GENERATE, configured(thinkingConfig={"includeThoughts": True}, maxOutputTokens=4))
    (thought,) = candidate(answer)["content"]["parts"]
    assert thought["thought"] is True
    assert candidate(answer)["finishReason"] == "MAX_TOKENS"
    hidden = call(make(), GENERATE, configured(thinkingConfig={"thinkingLevel": "HIGH"}, maxOutputTokens=4))
    assert candidate(hidden)["content"] == {"role": "model"}


def test_openai_thoughts() -> None:
    answer = call(make(), CHAT, ASK | {"reasoning_effort": "low"}).json
    assert answer["choices"][0]["message"]["content"] == SAID
    usage = answer["usage"]
    thoughts = usage["completion_tokens_details"]["reasoning_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] + thoughts
    assert "completion_tokens_details" not in call(make(), CHAT, ASK | {"reasoning_effort": "none"}).json["usage"]
    assert call(make(), CHAT, ASK | {"reasoning_effort": "immense"}).status == 400
    extra = {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}
    shown = call(make(), CHAT, ASK | extra).json["choices"][0]["message"]["content"]
    assert shown.startswith("<thought>Simulated thought")
    assert shown.endswith(f"</thought>{SAID}")
    first = call(make(), CHAT, ASK | extra | {"stream": True}).events[0]["choices"][0]["delta"]
    assert first["extra_content"] == {"google": {"thought": True}}
    assert call(make(), CHAT, ASK | extra | {"reasoning_effort": "low"}).status == 400


# Google's own tools


def test_search_and_maps_give_their_sources() -> None:
    tools = [{"googleSearch": {}}, {"google_maps": {"enable_widget": True}}]
    answer = call(make(), GENERATE, HELLO | {"tools": tools})
    found = candidate(answer)["groundingMetadata"]
    assert found["webSearchQueries"] == ["Hello, wörld"]
    assert found["searchEntryPoint"]["renderedContent"]
    assert [[*chunk] for chunk in found["groundingChunks"]] == [["web"], ["maps"]]
    (support,) = found["groundingSupports"]
    segment = support["segment"]
    assert text(answer).encode()[: segment["endIndex"]].decode() == segment["text"] == SAID
    assert support["groundingChunkIndices"] == [0, 1]
    assert found["googleMapsWidgetContextToken"]
    events = call(make(), STREAM + "?alt=sse", HELLO | {"tools": tools}).events
    assert ["groundingMetadata" in event["candidates"][0] for event in events] == [False, False, False, True]
    assert "groundingMetadata" not in candidate(call(make(), GENERATE, HELLO))


def test_pages_are_read_and_counted() -> None:
    asked = {"contents": [{"parts": [{"text": "Read https://example.com/a, then (https://example.org/b)."}]}]}
    answer = call(make(), GENERATE, asked | {"tools": [{"urlContext": {}}]})
    read = candidate(answer)["urlContextMetadata"]["urlMetadata"]
    assert [page["retrievedUrl"] for page in read] == ["https://example.com/a", "https://example.org/b"]
    assert read[0]["urlRetrievalStatus"] == "URL_RETRIEVAL_STATUS_SUCCESS"
    usage = answer.json["usageMetadata"]
    assert usage["toolUsePromptTokenCount"] == sum(d["tokenCount"] for d in usage["toolUsePromptTokensDetails"]) > 0
    assert usage["totalTokenCount"] == (
        usage["promptTokenCount"] + usage["candidatesTokenCount"] + usage["toolUsePromptTokenCount"]
    )


def test_code_is_run_when_the_text_speaks_of_it() -> None:
    asked = {"contents": [{"parts": [{"text": "Run some code"}]}], "tools": [{"code_execution": {}}]}
    answer = call(make(), GENERATE, asked)
    assert [next(iter(part)) for part in candidate(answer)["content"]["parts"]] == [
        "executableCode",
        "codeExecutionResult",
        "text",
    ]
    kinds = [
        next(iter(e["candidates"][0]["content"]["parts"][0])) for e in call(make(), STREAM + "?alt=sse", asked).events
    ]
    assert kinds == ["executableCode", "codeExecutionResult", *["text"] * 4]
    assert text(call(make(), GENERATE, asked | HELLO)) == SAID


# Pictures and speech


@pytest.mark.parametrize(
    "model", ["gemini-3.1-flash-image", "gemini-3-pro-image", "gemini-2.5-flash-image", "gemini-nano-banana-2.1"]
)
def test_pictures_and_their_tokens(model: str) -> None:
    path = GENERATE.replace(FLASH, model)
    answer = call(make(), path, HELLO).json
    assert [next(iter(part)) for part in answer["candidates"][0]["content"]["parts"]] == ["text", "inlineData"]
    (detail,) = answer["usageMetadata"]["candidatesTokensDetails"]
    assert detail["modality"] == "IMAGE"
    assert answer["usageMetadata"]["candidatesTokenCount"] > detail["tokenCount"] > 1000
    only = call(make(), path, configured(responseModalities=["IMAGE"], imageConfig={"aspectRatio": "16:9"})).json
    assert [next(iter(part)) for part in only["candidates"][0]["content"]["parts"]] == ["inlineData"]
    simulator = make({"ipm": 1})
    assert call(simulator, path, configured(responseModalities=["TEXT"])).status == 200
    assert [call(simulator, path, HELLO).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("model", ["gemini-3.8-flash-tts", "gemini-3.8-flash-lite-tts", "gemini-3.1-flash-tts"])
def test_speech_is_sound_and_must_be_asked_for(model: str) -> None:
    path = GENERATE.replace(FLASH, model)
    voice = {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}}
    answer = call(make(), path, configured(responseModalities=["AUDIO"], speechConfig=voice)).json
    (part,) = answer["candidates"][0]["content"]["parts"]
    assert part["inlineData"]["mimeType"] == "audio/L16;codec=pcm;rate=24000"
    sound = base64.b64decode(part["inlineData"]["data"], validate=True)
    assert len(sound) % 2 == 0
    assert len(sound) > 1000
    assert answer["usageMetadata"]["candidatesTokensDetails"][0]["modality"] == "AUDIO"
    refused = call(make(), path, HELLO)
    assert "(TEXT) is not supported by the model" in refused.error["message"]
    assert refused.error["message"].endswith("combination of response modalities:\n* AUDIO\n")


def test_a_model_of_texts_gives_no_pictures() -> None:
    assert call(make(), GENERATE, configured(responseModalities=["TEXT", "IMAGE"])).status == 400
    assert call(make(), GENERATE, configured(responseModalities=["TEXT"])).status == 200


# Counting


def test_media_are_counted_by_modality_and_count_tokens_agrees() -> None:
    def medium(kind: str) -> dict[str, Any]:
        return {"inlineData": {"mimeType": kind, "data": "AAAA"}}

    parts = [medium("image/png"), medium("image/jpeg"), medium("video/mp4"), medium("audio/wav"), {"text": "x" * 8}]
    document = {"contents": [{"parts": [*parts, medium("application/pdf")]}], "tools": [{"googleSearch": {}}]}
    document["systemInstruction"] = {"parts": [{"text": "y" * 40}]}
    usage = call(make(), GENERATE, document).json["usageMetadata"]
    details = {detail["modality"]: detail["tokenCount"] for detail in usage["promptTokensDetails"]}
    assert details == {"TEXT": details["TEXT"], "IMAGE": 516, "VIDEO": 258, "AUDIO": 258, "DOCUMENT": 258}
    assert sum(details.values()) == usage["promptTokenCount"]
    inner = {"generateContentRequest": {"model": f"models/{FLASH}", **document}}
    counted = call(make(), GENERATE.replace("generateContent", "countTokens"), inner).json
    assert counted["totalTokens"] == usage["promptTokenCount"]
    assert counted["promptTokensDetails"] == usage["promptTokensDetails"]


def test_the_answer_repeats_what_was_asked_not_the_system_instruction() -> None:
    assert text(call(make(), GENERATE, HELLO | {"systemInstruction": {"parts": [{"text": "Be kind"}]}})) == SAID


# Vectors


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2"])
def test_vectors_have_3072_values_and_length_1(model: str) -> None:
    def values(text: str, **more: Any) -> list[float]:
        document = {"content": {"parts": [{"text": text}]}, **more}
        found: list[float] = call(make(), f"/v1beta/models/{model}:embedContent", document).json["embedding"]["values"]
        return found

    one = values("one")
    assert len(one) == 3072
    assert len({*one}) > 2900
    assert math.isclose(math.hypot(*one), 1, rel_tol=1e-4)
    assert one == values("one") != values("two")
    short = values("one", output_dimensionality=768)
    assert len(short) == 768
    assert math.isclose(math.hypot(*short), 1, rel_tol=1e-4)
    assert math.isclose(short[5] / short[0], one[5] / one[0], rel_tol=1e-3)  # a shorter one is a longer one, cut
    batch = {"requests": [{"content": {"parts": [{"text": "one"}]}}, {"content": {"parts": [{"text": "two"}]}}]}
    listed = call(make(), f"/v1beta/models/{model}:batchEmbedContents", batch).json["embeddings"]
    assert [entry["values"] for entry in listed] == [one, values("two")]


def test_openai_vectors_as_numbers_and_in_base64() -> None:
    asked = {"model": "gemini-embedding-001", "input": ["one", "two"]}
    plain = call(make(), "/v1beta/openai/embeddings", asked).json["data"]
    assert [len(entry["embedding"]) for entry in plain] == [3072, 3072]
    packed = call(make(), "/v1beta/openai/embeddings", asked | {"encoding_format": "base64", "dimensions": 8}).json
    data = base64.b64decode(packed["data"][0]["embedding"], validate=True)
    short = call(make(), "/v1beta/openai/embeddings", asked | {"dimensions": 8}).json["data"][0]["embedding"]
    assert struct.unpack("<8f", data) == pytest.approx(short, abs=1e-6)
    assert call(make(), "/v1beta/openai/embeddings", asked | {"encoding_format": "hex"}).status == 400


def test_a_batch_answers_as_a_single_request_does() -> None:
    request = {"request": configured(responseMimeType="application/json", responseSchema=GOOGLES)}
    batch = {"batch": {"inputConfig": {"requests": {"requests": [request]}}}}
    simulator = make()
    begun = call(simulator, GENERATE.replace("generateContent", "batchGenerateContent"), batch).json
    done = call(simulator, f"/v1beta/{begun['name']}").json
    (entry,) = done["response"]["inlinedResponses"]["inlinedResponses"]
    made = json.loads(entry["response"]["candidates"][0]["content"]["parts"][0]["text"])
    assert made["kinds"] == ["red", "red"]
