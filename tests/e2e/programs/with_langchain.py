"""LangChain with its package for Google."""

from functools import cache
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, message_chunk_to_message
from langchain_core.tools import StructuredTool
from langchain_google_genai import ChatGoogleGenerativeAI

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


@cache
def model(name: str = MODEL, token: str = TOKEN) -> BaseChatModel:
    return ChatGoogleGenerativeAI(model=name, api_key=token, base_url=BASE)


def structured(method: str) -> Any:
    return shown(model().with_structured_output(Order, method=method).invoke(ASKED))


def structured_stream() -> Any:
    """With a schema that is no class, each part is what has come so far."""
    found = list(model().with_structured_output(Order.model_json_schema(), method="json_schema").stream(ASKED))
    return {"parts": len(found), "order": shown(Order.model_validate(found[-1]))}


def text_stream() -> Any:
    return [part.text for part in model().stream(HELLO)]


def tools(asked: str, *, stream: bool = False) -> Any:
    known = Tools()
    offered = {each.name: each for each in map(StructuredTool.from_function, (known.get_weather, known.get_time))}
    bound = model().bind_tools(list(offered.values()))
    texts, messages = list[str](), list[BaseMessage]()

    def ask() -> AIMessage:
        if not stream:
            return bound.invoke(messages)
        first, *rest = bound.stream(messages)
        return message_chunk_to_message(sum(rest, first))

    for text in (asked, NEXT):
        messages.append(HumanMessage(text))
        while True:
            answer = ask()
            messages.append(answer)
            if not answer.tool_calls:
                break
            messages += [offered[call["name"]].invoke(call) for call in answer.tool_calls]
        texts.append(answer.text)
    return {"ran": known.ran, "texts": texts}


run(
    {
        "structured": lambda: structured("json_schema"),
        "structured by tool": lambda: structured("function_calling"),
        "structured stream": structured_stream,
        "text stream": text_stream,
        "one tool": lambda: tools(ONE_TOOL),
        "one tool, streamed": lambda: tools(ONE_TOOL, stream=True),
        "two tools": lambda: tools(TWO_TOOLS),
        "wrong token": lambda: refused(lambda: model(token=WRONG_TOKEN).invoke(HELLO)),
        "wrong model": lambda: refused(lambda: model(WRONG_MODEL).invoke(HELLO)),
    }
)
