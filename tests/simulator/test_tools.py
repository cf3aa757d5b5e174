"""Function calls of the simulator: which function, its arguments, results, and signatures that must come back."""

import base64
import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.simulator.test_api import CHAT, FLASH, GENERATE, STREAM, Answer, call, make

OLD = "/v1beta/models/gemini-2.5-flash:generateContent"
CITY = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}, "days": {"type": "INTEGER"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "parameters": CITY}
TIME = {"name": "get_time", "parametersJsonSchema": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}}}
PLAIN = {"name": "now"}
TOOLS = [{"functionDeclarations": [WEATHER, TIME]}, {"function_declarations": [PLAIN]}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "parts": [{"text": text}]}


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"contents": [user(text)], "tools": TOOLS, **more}


def mode(name: str, *allowed: str) -> dict[str, Any]:
    config = {"mode": name} | ({"allowedFunctionNames": list(allowed)} if allowed else {})
    return {"toolConfig": {"functionCallingConfig": config}}


def parts(answer: Answer) -> Any:
    return answer.json["candidates"][0]["content"]["parts"]


def called(document: Any, path: str = GENERATE) -> list[str]:
    return [part["functionCall"]["name"] for part in parts(call(make(), path, document)) if "functionCall" in part]


def response(name: str, **value: Any) -> dict[str, Any]:
    return {"functionResponse": {"name": name, "response": value}}


def text(answer: Answer) -> str:
    return str(parts(answer)[0]["text"])


# Whom it calls


def test_auto_calls_the_functions_that_the_last_text_names_in_that_order() -> None:
    assert called(ask("What is the weather?")) == []
    assert called(ask("Use get_weather, please.")) == ["get_weather"]
    assert called(ask("get_time and then get_weather")) == ["get_time", "get_weather"]
    assert called(ask("get_weather2 or forget_weather or get_weather_now")) == []
    earlier = {"contents": [user("get_weather"), {"role": "model", "parts": [{"text": "no"}]}, user("Hello")]}
    assert called(ask("") | earlier) == []
    assert called(ask("Use get_weather", **mode("VALIDATED"))) == ["get_weather"]
    assert called(ask("Use get_weather", **mode("NONE"))) == []
    assert called(ask("get_weather, get_time", **mode("AUTO", "get_time"))) == ["get_time"]


def test_any_calls_the_first_that_is_allowed() -> None:
    assert called(ask("Hello", **mode("ANY"))) == ["get_weather"]
    assert called(ask("Hello", **mode("ANY", "now", "get_time"))) == ["get_time"]
    snake = {"tool_config": {"function_calling_config": {"mode": "any", "allowed_function_names": ["now"]}}}
    assert called(ask("Hello", **snake)) == ["now"]


def test_arguments_are_valid_for_the_schema_in_either_form() -> None:
    (weather, time) = parts(call(make(), GENERATE, ask("get_weather get_time")))
    args = weather["functionCall"]["args"]
    assert isinstance(args["city"], str)
    assert isinstance(args["days"], int)
    assert time["functionCall"]["args"] == {"zone": "UTC"}
    assert parts(call(make(), GENERATE, ask("now")))[0]["functionCall"]["args"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (mode("MAYBE"), "FunctionCallingConfig.Mode), \"MAYBE\""),
        (mode("ANY", "get_weather", "gone"), "gone is allowed but not declared"),
        ({"tools": [{"functionDeclarations": [WEATHER, WEATHER]}]}, "Duplicate function declaration found"),
        ({"tools": [{"functionDeclarations": [{"name": "not a name"}]}]}, "[0].name: Invalid function name"),
        ({"contents": [{"role": "system", "parts": [{"text": "Hello"}]}]}, "Please use a valid role: user, model."),
    ],
)  # fmt: skip
def test_what_google_refuses_is_refused(change: dict[str, Any], said: str) -> None:
    simulator = make({"rpm": 1})
    answer = call(simulator, GENERATE, ask("Hello") | change)
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    assert said in answer.error["message"]
    assert not simulator.enforcer.admitted


def test_a_streamed_call_comes_whole_and_counts() -> None:
    events = call(make(), STREAM + "?alt=sse", ask("get_weather get_time")).events
    content = [event["candidates"][0]["content"]["parts"] for event in events]
    assert [next(iter(part[0])) for part in content] == ["functionCall", "functionCall", "text"]
    assert content[-1] == [{"text": ""}]
    assert [event["candidates"][0].get("finishReason") for event in events] == [None, None, "STOP"]
    counts = [event["usageMetadata"]["candidatesTokenCount"] for event in events]
    assert 0 < counts[0] < counts[1] == counts[2]
    whole = call(make(), GENERATE, ask("get_weather get_time")).json
    assert whole["candidates"][0]["content"]["parts"] == [part[0] for part in content[:2]]
    assert whole["usageMetadata"] == events[-1]["usageMetadata"]
    assert whole["candidates"][0]["finishReason"] == "STOP"


# Results


def conversation(*results: dict[str, Any], path: str = GENERATE, named: str = "get_weather get_time") -> dict[str, Any]:
    asked = ask(named)
    answer = call(make(), path, asked).json
    contents = [*asked["contents"], answer["candidates"][0]["content"], {"role": "user", "parts": list(results)}]
    return asked | {"contents": contents}


def test_results_are_taken_and_mentioned() -> None:
    both = conversation(response("get_weather", sky="blue"), response("get_time", result="noon"))
    answer = call(make(), GENERATE, both)
    assert text(answer) == f'Simulated answer of {FLASH}: get_weather gave {{"sky": "blue"}}; get_time gave noon'
    streamed = call(make(), STREAM + "?alt=sse", both)
    assert "".join(e["candidates"][0]["content"]["parts"][0]["text"] for e in streamed.events) == text(answer)


def test_in_mode_any_each_function_is_called_once_in_a_turn_and_then_there_is_a_text() -> None:
    """A client that runs whatever it is told comes to an end."""
    contents = [user("Hello")]
    seen = []
    for _ in range(4):
        answer = call(make(), GENERATE, ask("") | mode("ANY") | {"contents": contents})
        content = answer.json["candidates"][0]["content"]
        if "functionCall" not in content["parts"][0]:
            break
        seen.append(content["parts"][0]["functionCall"]["name"])
        contents = [*contents, content, {"role": "user", "parts": [response(seen[-1], result="done")]}]
    assert seen == ["get_weather", "get_time", "now"]
    assert text(answer) == f"Simulated answer of {FLASH}: now gave done"
    again = ask("") | mode("ANY") | {"contents": [*contents, content, user("And again")]}
    assert called(again) == ["get_weather"]


def test_a_call_that_failed_is_made_again_in_mode_any() -> None:
    failed = conversation(response("get_weather", error="no such city"), named="get_weather")
    assert called(failed | mode("ANY", "get_weather")) == ["get_weather"]
    assert called(failed) == []


def test_there_are_as_many_results_as_calls() -> None:
    answer = call(make(), GENERATE, conversation(response("get_weather", sky="blue")))
    assert "the number of function response parts is equal" in answer.error["message"]


def test_ids_are_of_new_models_and_differ() -> None:
    new = [part["functionCall"]["id"] for part in parts(call(make(), GENERATE, ask("get_weather get_time")))]
    assert len({*new}) == 2
    assert "id" not in parts(call(make(), OLD, ask("get_weather")))[0]["functionCall"]


# Signatures


def test_the_first_call_of_a_step_is_signed_by_gemini_3_and_newer() -> None:
    first, second = parts(call(make(), GENERATE, ask("get_weather get_time")))
    assert base64.b64decode(first["thoughtSignature"], validate=True)
    assert "thoughtSignature" not in second
    assert "thoughtSignature" not in parts(call(make(), OLD, ask("get_weather")))[0]
    assert "thoughtSignature" in parts(call(make(), GENERATE.replace(FLASH, "gemini-flash-latest"), ask("now")))[0]


def test_a_signature_must_come_back_in_its_turn() -> None:
    results = [response("get_weather", sky="blue"), response("get_time", result="noon")]
    document = conversation(*results)
    signed = document["contents"][1]["parts"][0]
    value = signed.pop("thoughtSignature")
    answer = call(make(), GENERATE, document)
    assert answer.status == 400
    assert answer.error["message"] == (
        "Function call is missing a thought_signature in functionCall parts. This is required for tools to work "
        "correctly, and missing thought_signature may lead to degraded model performance. Additional data, function "
        "call `default_api:get_weather` , position 2. Please refer to "
        "https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
    )
    document["contents"][1]["parts"][1]["thoughtSignature"] = value  # on another part than it came
    assert call(make(), GENERATE, document).status == 400
    document["contents"].append(user("Thanks"))  # a new turn: the old one is not looked at
    assert call(make(), GENERATE, document).status == 200


def test_every_step_of_a_turn_is_looked_at() -> None:
    document = conversation(response("get_weather", sky="blue"), named="get_weather")
    second = {"role": "model", "parts": [{"functionCall": {"name": "get_time", "args": {}}}]}
    document["contents"] += [second, {"role": "user", "parts": [response("get_time", result="noon")]}]
    assert "position 4" in call(make(), GENERATE, document).error["message"]


def test_signatures_are_taken_in_any_alphabet_and_so_are_the_documented_words() -> None:
    document = conversation(response("get_weather", sky="blue"), named="get_weather")
    part = document["contents"][1]["parts"][0]
    value = part["thoughtSignature"]
    good = [value, base64.urlsafe_b64encode(base64.b64decode(value)).decode(), "skip_thought_signature_validator"]
    good += ["context_engineering_is_the_way_to_go", base64.b64encode(b"skip_thought_signature_validator").decode()]
    for given in good:
        part["thoughtSignature"] = given
        assert call(make(), GENERATE, document).status == 200
    part["thought_signature"] = part.pop("thoughtSignature")
    assert call(make(), GENERATE, document).status == 200
    for given in ("claude#signature", base64.b64encode(b"of somebody else").decode(), value[:-8] + "AAAAAAAA"):
        part["thought_signature"] = given
        assert call(make(), GENERATE, document).status == 400


def test_older_models_want_no_signature() -> None:
    document = conversation(response("get_weather", sky="blue"), path=OLD, named="get_weather")
    assert call(make(), OLD, document).status == 200
    assert call(make(), GENERATE, document).status == 400


# OpenAI's shape


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "parameters": PARAMETERS}
CHAT_TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "get_time", "strict": True, "parameters": {"type": "object"}}},
]


def chat(content: str, **more: Any) -> dict[str, Any]:
    return {"model": FLASH, "messages": [{"role": "user", "content": content}], "tools": CHAT_TOOLS, **more}


def chat_calls(document: Any) -> list[str]:
    message = call(make(), CHAT, document).json["choices"][0]["message"]
    return [one["function"]["name"] for one in message.get("tool_calls", ())]


def test_openai_tool_choice() -> None:
    assert chat_calls(chat("Hello")) == []
    assert chat_calls(chat("get_time, then get_weather")) == ["get_time", "get_weather"]
    assert chat_calls(chat("get_time, then get_weather", parallel_tool_calls=False)) == ["get_time"]
    assert chat_calls(chat("get_weather", tool_choice="none")) == []
    assert chat_calls(chat("Hello", tool_choice="required")) == ["get_weather"]
    assert chat_calls(chat("Hello", tool_choice={"type": "function", "function": {"name": "get_time"}})) == ["get_time"]
    some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    assert chat_calls(chat("Hello", tool_choice={"type": "allowed_tools", "allowed_tools": some})) == ["get_time"]
    assert call(make(), CHAT, chat("Hello", tool_choice="perhaps")).status == 400
    wrong = {"type": "function", "function": {"name": "gone"}}
    assert call(make(), CHAT, chat("Hello", tool_choice=wrong)).status == 400


def test_openai_calls_whole_and_streamed() -> None:
    asked = chat("get_weather get_time")
    choice = call(make(), CHAT, asked).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert "content" not in choice["message"]
    first, second = choice["message"]["tool_calls"]
    assert first["type"] == "function"
    jsonschema.validate(json.loads(first["function"]["arguments"]), PARAMETERS)
    assert first["id"] != second["id"]
    assert first["extra_content"]["google"]["thought_signature"]
    assert "extra_content" not in second
    events = call(make(), CHAT, asked | {"stream": True, "stream_options": {"include_usage": True}}).events
    deltas = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:-1]]
    assert [delta.pop("index") for delta in deltas] == [0, 1]
    assert deltas == [first, second]
    assert [event["choices"][0].get("finish_reason") for event in events[:-1]] == [None, "tool_calls"]
    assert events[-1]["usage"] == call(make(), CHAT, asked).json["usage"]
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_openai_results_and_signatures() -> None:
    asked = chat("get_weather get_time")
    message = call(make(), CHAT, asked).json["choices"][0]["message"]
    first, second = message["tool_calls"]
    results = [
        {"role": "tool", "tool_call_id": first["id"], "content": "blue"},
        {"role": "tool", "tool_call_id": second["id"], "content": [{"type": "text", "text": "noon"}]},
    ]
    system = {"role": "system", "content": "Be kind"}
    document = asked | {"messages": [system, *asked["messages"], message, *results]}
    answer = call(make(), CHAT, document).json["choices"][0]
    said = f"Simulated answer of {FLASH}: get_weather gave blue; get_time gave noon"
    assert (answer["message"]["content"], answer["finish_reason"]) == (said, "stop")
    extra = first.pop("extra_content")
    refused = call(make(), CHAT, document)
    assert (refused.status, type(refused.json)) == (400, list)
    assert "call `default_api:get_weather` , position 2." in refused.error["message"]
    assert call(make(), CHAT, document | {"model": "gemini-2.5-flash"}).status == 200
    again = {"messages": [*document["messages"], {"role": "user", "content": "Thanks"}]}
    assert call(make(), CHAT, document | again).status == 200
    first["extra_content"] = extra
    first["extra_content"]["google"]["thought_signature"] = "skip_thought_signature_validator"
    assert call(make(), CHAT, document).status == 200
