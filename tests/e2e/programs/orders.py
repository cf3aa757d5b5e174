"""What the programs of this folder ask for, and how they say what came of it.

Each program tries one framework in one process, since importing a framework takes seconds. It prints one JSON object:
for each scenario what it returned, or the traceback with which it failed."""

import contextlib
import io
import json
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

BASE = os.environ["BASE"]
TOKEN = os.environ["TOKEN"]
MODEL = os.environ["MODEL"]
WRONG_TOKEN = "test-token-of-somebody-else"
WRONG_MODEL = "gemini-0-nothing"

HELLO = "Hello there"
ASKED = "Ann ordered two books."
ONE_TOOL = "Call get_weather for Paris."
TWO_TOOLS = "Call get_weather and get_time for Paris."
NEXT = "Now call get_time for Rome."


class Customer(BaseModel):
    name: str
    email: str | None = None


class Item(BaseModel):
    title: str
    kind: Literal["book", "game"]
    count: int


class Order(BaseModel):
    """What a customer ordered."""

    customer: Customer
    items: list[Item]
    paid: bool


class Tools:
    """The two tools, and which of them ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def get_weather(self, city: str, days: int) -> str:
        """The weather in a city."""
        self.ran.append("get_weather")
        return f"18 degrees in {city} for {days} days"

    def get_time(self, city: str) -> str:
        """The local time in a city."""
        self.ran.append("get_time")
        return f"noon in {city}"

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        known: dict[str, Callable[..., str]] = {"get_weather": self.get_weather, "get_time": self.get_time}
        return known[name](**arguments)


def shown(order: BaseModel) -> Any:
    return Order.model_validate(order.model_dump()).model_dump(mode="json")


def parts(streamed: Iterable[BaseModel]) -> Any:
    """Of an order that comes in parts: how many, and the last."""
    found = list(streamed)
    return {"parts": len(found), "order": shown(found[-1])}


def refused(ask: Callable[[], Any]) -> list[str]:
    """The names of the exception's classes, and of those of its causes."""
    try:
        ask()
    except Exception as error:
        names = []
        cause: BaseException | None = error
        while cause is not None:
            names += [f"{each.__module__}.{each.__qualname__}" for each in type(cause).__mro__]
            cause = cause.__cause__ or cause.__context__
        return names
    raise AssertionError("nothing was raised")


def run(scenarios: Mapping[str, Callable[[], Any]]) -> None:
    outcomes = {name: _outcome(scenario) for name, scenario in scenarios.items()}
    print(json.dumps(outcomes | {"example": _outcome(_example)}))


def _example() -> str:
    """Runs the example of docs/clients.md; gives what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(os.environ["EXAMPLE"], {"__name__": "example", "token": TOKEN})  # noqa: S102
    return printed.getvalue()


def _outcome(scenario: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"returned": scenario()}
    except Exception:
        return {"raised": traceback.format_exc()}
