"""Google's SDK."""

from typing import Any

from google import genai
from google.genai import types

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

ORDER = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Order)
ORDER_AS_JSON_SCHEMA = types.GenerateContentConfig(
    response_mime_type="application/json", response_json_schema=Order.model_json_schema()
)


def client(token: str = TOKEN) -> genai.Client:
    return genai.Client(api_key=token, http_options=types.HttpOptions(base_url=BASE))


def structured(config: types.GenerateContentConfig) -> Any:
    answer = made.models.generate_content(model=MODEL, contents=ASKED, config=config)
    return shown(answer.parsed if isinstance(answer.parsed, Order) else Order.model_validate_json(answer.text or ""))


def structured_stream() -> Any:
    texts = [each.text or "" for each in made.models.generate_content_stream(model=MODEL, contents=ASKED, config=ORDER)]
    return {"parts": len(texts), "order": shown(Order.model_validate_json("".join(texts)))}


def text_stream() -> Any:
    return [each.text or "" for each in made.models.generate_content_stream(model=MODEL, contents=HELLO)]


def tools(asked: str, *, stream: bool = False) -> Any:
    """The SDK runs the functions by itself. A chat sends the whole conversation each time, signatures too."""
    known = Tools()
    chat = made.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[known.get_weather, known.get_time]))
    texts = [
        "".join(each.text or "" for each in chat.send_message_stream(text)) if stream else chat.send_message(text).text
        for text in (asked, NEXT)
    ]
    return {"ran": known.ran, "texts": texts}


with client() as made, client(WRONG_TOKEN) as other:
    run(
        {
            "structured": lambda: structured(ORDER),
            "structured, JSON schema": lambda: structured(ORDER_AS_JSON_SCHEMA),
            "structured stream": structured_stream,
            "text stream": text_stream,
            "one tool": lambda: tools(ONE_TOOL),
            "one tool, streamed": lambda: tools(ONE_TOOL, stream=True),
            "two tools": lambda: tools(TWO_TOOLS),
            "wrong token": lambda: refused(lambda: other.models.generate_content(model=MODEL, contents=HELLO)),
            "wrong model": lambda: refused(lambda: made.models.generate_content(model=WRONG_MODEL, contents=HELLO)),
        }
    )
