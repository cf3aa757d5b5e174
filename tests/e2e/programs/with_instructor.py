"""Instructor, over Google's SDK and over OpenAI's. It makes objects, and runs no tools."""

from collections.abc import Callable
from functools import cache
from typing import Any

import instructor
from google import genai
from instructor import Mode
from openai import OpenAI

from tests.e2e.programs.orders import (
    ASKED,
    BASE,
    MODEL,
    TOKEN,
    WRONG_MODEL,
    WRONG_TOKEN,
    Item,
    Order,
    parts,
    refused,
    run,
    shown,
)


@cache
def google(mode: Mode, token: str = TOKEN) -> Any:
    return instructor.from_genai(genai.Client(api_key=token, http_options={"base_url": BASE}), mode=mode)


@cache
def openai(mode: Mode, token: str = TOKEN) -> Any:
    return instructor.from_openai(OpenAI(api_key=token, base_url=f"{BASE}/v1beta/openai/", max_retries=0), mode=mode)


def asked(model: str = MODEL) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": ASKED}], "max_retries": 0}


def structured(client: Any, model: str = MODEL) -> Any:
    return shown(client.create(response_model=Order, **asked(model)))


def structured_stream(client: Any) -> Any:
    return parts(client.create_partial(response_model=Order, **asked()))


def structured_list(client: Any) -> Any:
    return [each.model_dump(mode="json") for each in client.create_iterable(response_model=Item, **asked())]


def scenarios(client: Callable[..., Any], schema: Mode) -> dict[str, Callable[[], Any]]:
    return {
        "structured": lambda: structured(client(schema)),
        "structured by tool": lambda: structured(client(Mode.TOOLS)),
        "structured stream": lambda: structured_stream(client(schema)),
        "structured stream by tool": lambda: structured_stream(client(Mode.TOOLS)),
        "structured list": lambda: structured_list(client(schema)),
        "wrong token": lambda: refused(lambda: structured(client(schema, WRONG_TOKEN))),
        "wrong model": lambda: refused(lambda: structured(client(schema), WRONG_MODEL)),
    }


run(
    {f"google: {name}": scenario for name, scenario in scenarios(google, Mode.JSON).items()}
    | {f"openai: {name}": scenario for name, scenario in scenarios(openai, Mode.JSON_SCHEMA).items()}
)
