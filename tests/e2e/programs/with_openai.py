"""OpenAI's SDK."""

import json
from typing import Any

from openai import OpenAI, pydantic_function_tool

from tests.e2e.programs.orders import (
    ASKED,
    BASE,
    HELLO,
    MODEL,
    NEXT,
    ONE_TOOL,
    TOKEN,
    TWO_TOOLS,
    WRONG_MODEL,
    WRONG_TOKEN,
    Order,
    Tools,
    refused,
    run,
    shown,
)


def client(token: str = TOKEN) -> OpenAI:
    return OpenAI(api_key=token, base_url=f"{BASE}/v1beta/openai/", max_retries=0)


def messages(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def structured() -> Any:
    answer = made.chat.completions.parse(model=MODEL, messages=messages(ASKED), response_format=Order)
    found = answer.choices[0].message.parsed
    assert found is not None
    return shown(found)


def structured_stream() -> Any:
    with made.chat.completions.stream(model=MODEL, messages=messages(ASKED), response_format=Order) as stream:
        count = sum(event.type == "content.delta" for event in stream)
        found = stream.get_final_completion().choices[0].message.parsed
    assert found is not None
    return {"parts": count, "order": shown(found)}


def structured_by_tool() -> Any:
    answer = made.chat.completions.parse(
        model=MODEL, messages=messages(ASKED), tools=[pydantic_function_tool(Order)], tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls or []
    found = calls[0].function.parsed_arguments
    assert isinstance(found, Order)
    return shown(found)


def text_stream() -> Any:
    stream = made.chat.completions.create(model=MODEL, messages=messages(HELLO), stream=True)
    return [each.choices[0].delta.content or "" for each in stream if each.choices]


def function(name: str, properties: dict[str, Any]) -> Any:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


CITY = {"type": "string"}
FUNCTIONS = [
    function("get_weather", {"city": CITY, "days": {"type": "integer"}}),
    function("get_time", {"city": CITY}),
]


def tools(asked: str, *, stream: bool = False) -> Any:
    known, texts, conversation = Tools(), list[str](), list[Any]()
    for text in (asked, NEXT):
        conversation += messages(text)
        while calls := (answer := completed(conversation, stream=stream)).tool_calls:
            conversation.append(answer)
            for call in calls:
                content = known.call(call.function.name, json.loads(call.function.arguments))
                conversation.append({"role": "tool", "tool_call_id": call.id, "content": content})
        conversation.append(answer)
        texts.append(answer.content or "")
    return {"ran": known.ran, "texts": texts}


def completed(conversation: list[Any], *, stream: bool) -> Any:
    if not stream:
        return made.chat.completions.create(model=MODEL, messages=conversation, tools=FUNCTIONS).choices[0].message
    with made.chat.completions.stream(model=MODEL, messages=conversation, tools=FUNCTIONS) as events:
        return events.get_final_completion().choices[0].message


with client() as made:
    run(
        {
            "structured": structured,
            "structured stream": structured_stream,
            "structured by tool": structured_by_tool,
            "text stream": text_stream,
            "one tool": lambda: tools(ONE_TOOL),
            "one tool, streamed": lambda: tools(ONE_TOOL, stream=True),
            "two tools": lambda: tools(TWO_TOOLS),
            "wrong token": lambda: refused(
                lambda: client(WRONG_TOKEN).chat.completions.create(model=MODEL, messages=messages(HELLO))
            ),
            "wrong model": lambda: refused(
                lambda: made.chat.completions.create(model=WRONG_MODEL, messages=messages(HELLO))
            ),
        }
    )
