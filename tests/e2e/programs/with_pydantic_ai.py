"""Pydantic AI, through Google's API and through OpenAI's."""

from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic_ai import Agent, NativeOutput, PromptedOutput, Tool, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

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
    parts,
    refused,
    run,
    shown,
)


@cache
def google(name: str = MODEL, token: str = TOKEN) -> Model:
    return GoogleModel(name, provider=GoogleProvider(api_key=token, base_url=BASE))


@cache
def openai(name: str = MODEL, token: str = TOKEN) -> Model:
    return OpenAIChatModel(name, provider=OpenAIProvider(api_key=token, base_url=f"{BASE}/v1beta/openai/"))


def structured(model: Model, kind: Any) -> Any:
    return shown(Agent(model, output_type=kind(Order)).run_sync(ASKED).output)


def structured_stream(model: Model) -> Any:
    agent = Agent(model, output_type=NativeOutput(Order))
    return parts(agent.run_stream_sync(ASKED).stream_output(debounce_by=None))


def text_stream(model: Model) -> Any:
    return list(Agent(model).run_stream_sync(HELLO).stream_text(delta=True, debounce_by=None))


def tools(model: Model, asked: str, *, stream: bool = False) -> Any:
    known = Tools()
    agent = Agent(model, tools=[Tool(known.get_weather), Tool(known.get_time)])
    texts, history = list[str](), list[Any]()
    for text in (asked, NEXT):
        if stream:
            streamed = agent.run_stream_sync(text, message_history=history)
            texts.append(list(streamed.stream_text(debounce_by=None))[-1])
            history = streamed.all_messages()
        else:
            result = agent.run_sync(text, message_history=history)
            texts.append(result.output)
            history = result.all_messages()
    return {"ran": known.ran, "texts": texts}


def scenarios(model: Callable[..., Model]) -> dict[str, Callable[[], Any]]:
    return {
        "structured": lambda: structured(model(), NativeOutput),
        "structured by tool": lambda: structured(model(), ToolOutput),
        "structured by prompt": lambda: structured(model(), PromptedOutput),
        "structured stream": lambda: structured_stream(model()),
        "text stream": lambda: text_stream(model()),
        "one tool": lambda: tools(model(), ONE_TOOL),
        "one tool, streamed": lambda: tools(model(), ONE_TOOL, stream=True),
        "two tools": lambda: tools(model(), TWO_TOOLS),
        "wrong token": lambda: refused(lambda: Agent(model(token=WRONG_TOKEN)).run_sync(HELLO)),
        "wrong model": lambda: refused(lambda: Agent(model(WRONG_MODEL)).run_sync(HELLO)),
    }


run(
    {f"google: {name}": scenario for name, scenario in scenarios(google).items()}
    | {f"openai: {name}": scenario for name, scenario in scenarios(openai).items()}
)
