"""Fields that Google does not know are refused in its words; what its own SDKs can send is not."""

from typing import Any

import pytest
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemini_simulator.fields import _FIELDS, ROOTS, check_fields
from tests.simulator.test_api import ASK, CHAT, FLASH, GENERATE, HELLO, STREAM, call, make

COUNT = GENERATE.replace("generateContent", "countTokens")
EMBED = "/v1beta/models/gemini-embedding-001:embedContent"
STRICT = {"name": "f", "strict": True}
PARAMETERS = {"type": "OBJECT", "properties": {"a": {"type": "STRING"}, "b": {"anyOf": [{"const": 1}], "$ref": "#"}}}


@pytest.mark.parametrize(
    ("path", "change", "name", "where"),
    [
        (GENERATE, {"temprature": 1}, "temprature", ""),
        (STREAM + "?alt=sse", {"generationConfig": {"max_tokens": 1}}, "max_tokens", "generation_config"),
        (GENERATE, {"generation_config": {"thinkingConfig": {"x": 1}}}, "x", "generation_config.thinking_config"),
        (GENERATE, {"contents": [{"parts": [{"text": "a"}, {"txt": "b"}]}]}, "txt", "contents[0].parts[1]"),
        (GENERATE, {"contents": {"parts": {"text": "a", "inline-data": {}}}}, "inline-data", "contents.parts"),
        (GENERATE, {"tools": [{"google_serach": {}}]}, "google_serach", "tools[0]"),
        (GENERATE, {"tools": [{"functionDeclarations": [STRICT]}]}, "strict", "tools[0].function_declarations[0]"),
        (COUNT, {"generateContentRequest": {"contents": [], "x": 1}}, "x", "generate_content_request"),
        (EMBED, {"dimensions": 5}, "dimensions", ""),
        (CHAT, {"store": True}, "store", ""),
        (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty", ""),
        (CHAT, {"seed": 5}, "seed", ""),
        (CHAT, {"google": {}}, "google", ""),
        (CHAT, {"extra_body": {"extra_body": {}}}, "extra_body", "extra_body"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_refused_and_costs_no_quota(path: str, change: Any, name: str, where: str) -> None:
    simulator = make({"rpm": 1})
    answer = call(simulator, path, (ASK if path == CHAT else HELLO) | change if path != EMBED else change)
    said = f'Invalid JSON payload received. Unknown name "{name}"' + (f" at '{where}'" if where else "")
    assert answer.status == 400
    assert answer.error["message"] == f"{said}: Cannot find field."
    assert answer.error["status"] == "INVALID_ARGUMENT"
    (detail,) = answer.error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    violation = {"description": f"{said}: Cannot find field."}
    assert detail["fieldViolations"] == [({"field": where} if where else {}) | violation]
    assert not simulator.enforcer.admitted


def test_every_unknown_field_is_named() -> None:
    tools = [{"functionDeclarations": [{"name": "f", "parameters": PARAMETERS | {"additionalProperties": False}}]}]
    error = call(make(), GENERATE, HELLO | {"tools": tools, "extra": 1}).error
    where = "tools[0].function_declarations[0].parameters"
    unknown = "Invalid JSON payload received. Unknown name"
    assert error["message"].split("\n") == [
        f"{unknown} \"const\" at '{where}.properties[1].value.any_of[0]': Cannot find field.",
        f"{unknown} \"$ref\" at '{where}.properties[1].value': Cannot find field.",
        f"{unknown} \"additionalProperties\" at '{where}': Cannot find field.",
        f'{unknown} "extra": Cannot find field.',
    ]  # fmt: skip
    assert len(error["details"][0]["fieldViolations"]) == 4


def test_what_is_free_in_form_is_not_looked_into() -> None:
    function = {"name": "f", "parametersJsonSchema": {"type": "object", "additionalProperties": False, "$defs": {}}}
    document = HELLO | {
        "tools": [{"functionDeclarations": [function]}, {"codeExecution": {}}, {"googleSearch": {}}],
        "generationConfig": {"responseJsonSchema": {"const": 1}, "responseMimeType": "application/json"},
        "contents": [
            {"role": "user", "parts": [{"text": "x", "partMetadata": {"any": "thing"}}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"any": 1}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"any": 1}}}]},
            {"role": "user", "parts": [{"text": "x"}]},
        ],
        "labels": {"any": "thing"},
    }
    assert call(make(), GENERATE, document).status == 200
    properties = {"type": "OBJECT", "properties": {"not_a_field_of_a_schema": {"type": "STRING"}}}
    function = {"name": "f", "parameters": properties}
    assert call(make(), GENERATE, HELLO | {"tools": [{"functionDeclarations": [function]}]}).status == 200


OF_VERTEX = {
    "GenerationConfig": "modelSelectionConfig audioTimestamp routingConfig",
    "FunctionCall": "partialArgs willContinue",
    "FunctionCallingConfig": "streamFunctionCallArguments",
    "Tool": "retrieval enterpriseWebSearch parallelAiSearch exaAiSearch",
    "GoogleSearch": "blockingConfidence excludeDomains",
    "GoogleMaps": "groundingTypes",
    "SafetySetting": "method",
    "Schema": "additionalProperties defs ref",
    "ImageConfig": "personGeneration prominentPeople outputMimeType outputCompressionQuality imageOutputOptions",
}
"""Fields that the SDK has and refuses itself to send to the Gemini API."""


@pytest.mark.parametrize(
    ("message", "name"),
    [
        *((name, name) for name in _FIELDS if hasattr(types, name)),
        ("Blob", "FunctionResponseBlob"),
        ("FileData", "FunctionResponseFileData"),
    ],
)
def test_all_that_googles_sdk_can_send_is_known(message: str, name: str) -> None:
    sent = {field.alias or each for each, field in getattr(types, name).model_fields.items()}
    assert sent - {*OF_VERTEX.get(message, "").split()} <= {*_FIELDS[message]}


def test_both_spellings_are_known() -> None:
    both = {"generationConfig": {"max_output_tokens": 5, "stopSequences": []}, "safety_settings": []}
    check_fields("generateContent", HELLO | both)
    check_fields("models.get", {"anything": 1})


@pytest.mark.parametrize("levels", [50, 200, 900])
def test_a_schema_that_is_nested_too_deeply_is_a_400_at_most(levels: int) -> None:
    schema: dict[str, Any] = {"type": "STRING"}
    for _ in range(levels):
        schema = {"type": "ARRAY", "items": schema, "minItems": 1}
    tools = [{"functionDeclarations": [{"name": "f", "parameters": schema}]}]
    anyway = {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}
    body = HELLO | {"generationConfig": {"responseSchema": schema}}
    assert call(make(), GENERATE, body).status in (200, 400)
    assert call(make(), GENERATE, HELLO | {"tools": tools} | anyway).status in (200, 400)


oddities = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 5, 2.5, "", "x", "ANY", "application/json", "user", "model", "IMAGE", "STRING"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "type", "text"]), inner),
    max_leaves=4,
)


def of_message(name: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """Something with fields that there are, whatever stands in them."""
    optional = {}
    for each, field in _FIELDS[name].items():
        if field.message and depth < 4:
            inner = of_message(field.message, depth + 1)
            several = st.dictionaries(st.sampled_from("ab"), inner) if field.is_map else st.lists(inner, max_size=2)
            optional[each] = st.one_of(inner, several, oddities)
        else:
            optional[each] = oddities
    return st.fixed_dictionaries({}, optional=optional)


@pytest.mark.parametrize(("verb", "path"), [("generateContent", GENERATE), ("chat/completions", CHAT)])
def test_no_values_of_known_fields_break_the_simulator(verb: str, path: str) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
    @given(document=of_message(ROOTS[verb]))
    def look(document: dict[str, Any]) -> None:
        document |= {"model": FLASH} if path == CHAT else {}
        answer = call(make(), path, document)
        assert answer.status in (200, 400, 403, 404)
        assert answer.complete

    look()
