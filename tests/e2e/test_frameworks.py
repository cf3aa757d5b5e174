"""Structured output, tools, streams and errors with the SDKs and frameworks that people use, as they are published."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import frameworks, nodes
from tests.e2e.conftest import Pair
from tests.e2e.frameworks import Ran, Sent

OURS = "ours"
NODE = "node"


@dataclass(frozen=True, slots=True)
class Client:
    program: str
    title: str
    """Of its example in docs/clients.md."""
    environment: str
    """The dependency group, OURS for the environment of the tests, or NODE."""
    wrong_token: str
    """The class of the exception, or its status."""
    wrong_model: str
    prefix: str = ""
    more: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def scenarios(self) -> tuple[str, ...]:
        return (*(name for name in USUAL if name not in self.without), *self.more)


USUAL = (
    "structured",
    "structured stream",
    "text stream",
    "one tool",
    "one tool, streamed",
    "two tools",
    "wrong token",
    "wrong model",
)
NO_TOOLS = ("text stream", "one tool", "one tool, streamed", "two tools")
BY_TOOL = ("structured by tool",)
CLIENTS = {
    "google-genai": Client(
        "with_google_genai.py",
        "google-genai",
        OURS,
        "google.genai.errors.ClientError",
        "google.genai.errors.ClientError",
        more=("structured, JSON schema",),
    ),
    "openai": Client(
        "with_openai.py", "openai", OURS, "openai.AuthenticationError", "openai.NotFoundError", more=BY_TOOL
    ),
    "pydantic-ai (google)": Client(
        "with_pydantic_ai.py",
        "Pydantic AI",
        "pydantic-ai",
        "pydantic_ai.exceptions.ModelAuthenticationError",
        "pydantic_ai.exceptions.ModelNotFoundError",
        prefix="google: ",
        more=(*BY_TOOL, "structured by prompt"),
    ),
    "pydantic-ai (openai)": Client(
        "with_pydantic_ai.py",
        "Pydantic AI",
        "pydantic-ai",
        "pydantic_ai.exceptions.ModelAuthenticationError",
        "pydantic_ai.exceptions.ModelNotFoundError",
        prefix="openai: ",
        more=(*BY_TOOL, "structured by prompt"),
    ),
    "langchain-google-genai": Client(
        "with_langchain.py",
        "LangChain",
        "langchain",
        "langchain_core.exceptions.ModelAuthenticationError",
        "langchain_core.exceptions.ModelNotFoundError",
        more=BY_TOOL,
    ),
    "instructor (google)": Client(
        "with_instructor.py",
        "Instructor",
        "instructor",
        "google.genai.errors.ClientError",
        "google.genai.errors.ClientError",
        prefix="google: ",
        more=(*BY_TOOL, "structured stream by tool", "structured list"),
        without=NO_TOOLS,
    ),
    "instructor (openai)": Client(
        "with_instructor.py",
        "Instructor",
        "instructor",
        "openai.AuthenticationError",
        "openai.NotFoundError",
        prefix="openai: ",
        more=(*BY_TOOL, "structured stream by tool", "structured list"),
        without=NO_TOOLS,
    ),
    "@google/genai": Client("genai_tools.mjs", "@google/genai", NODE, "status 401", "status 404"),
    "ai, @ai-sdk/google": Client("ai_sdk.mjs", "Vercel AI SDK", NODE, "status 401", "status 404"),
}
TWO_TOOLS = b"Call get_weather and get_time for Paris."
NEXT = b"Now call get_time for Rome."


@pytest.fixture(scope="module")
def ran(shared_pair: Pair) -> Callable[[str], Ran]:
    """What a client's program did. It runs once, when the first of its tests asks."""
    done: dict[str, Ran] = {}

    def run(name: str) -> Ran:
        client = CLIENTS[name]
        if client.program not in done:
            python = Path(sys.executable)
            if client.environment == NODE:
                nodes.install()
            elif client.environment != OURS:
                python = frameworks.installed(client.environment)
            done[client.program] = frameworks.run(shared_pair, client.program, client.title, python)
        return done[client.program]

    return run


# --- what each scenario must have come to ----------------------------------------------------------------------------


def an_order(found: Any) -> None:
    assert set(found) >= {"customer", "items", "paid"}
    assert isinstance(found["customer"]["name"], str)
    assert isinstance(found["customer"].get("email"), str | None)
    assert isinstance(found["paid"], bool)
    assert found["items"]
    for item in found["items"]:
        an_item(item)


def an_item(found: Any) -> None:
    assert (type(found["title"]), type(found["count"])) == (str, int)
    assert found["kind"] in {"book", "game"}


def several_items(found: Any) -> None:
    assert found
    for item in found:
        an_item(item)


def an_order_in_parts(found: Any) -> None:
    assert found["parts"] > 1
    an_order(found["order"])


def an_order_at_last(found: Any) -> None:
    """Google sends a call's arguments whole."""
    an_order(found["order"])


def text_in_parts(found: Any) -> None:
    assert len(found) > 1
    assert "Hello there" in "".join(found)


def weather_then_time(found: Any) -> None:
    assert found["ran"] == ["get_weather", "get_time"]
    assert "18 degrees" in found["texts"][0]
    assert "noon in" in found["texts"][1]


def both_then_time(found: Any) -> None:
    assert sorted(found["ran"][:2]) == ["get_time", "get_weather"]
    assert found["ran"][2:] == ["get_time"]
    assert "18 degrees" in found["texts"][0]
    assert "noon in" in found["texts"][0]
    assert "noon in" in found["texts"][1]


CHECKS: dict[str, Callable[[Any], None]] = {
    "structured": an_order,
    "structured by tool": an_order,
    "structured by prompt": an_order,
    "structured, JSON schema": an_order,
    "structured list": several_items,
    "structured stream": an_order_in_parts,
    "structured stream by tool": an_order_at_last,
    "text stream": text_in_parts,
    "one tool": weather_then_time,
    "one tool, streamed": weather_then_time,
    "two tools": both_then_time,
}


@pytest.mark.parametrize(
    ("name", "scenario"),
    [(name, each) for name, client in CLIENTS.items() for each in client.scenarios if each in CHECKS],
)
def test_served(ran: Callable[[str], Ran], name: str, scenario: str) -> None:
    CHECKS[scenario](ran(name).returned(CLIENTS[name].prefix + scenario))


@pytest.mark.parametrize("name", {client.program: name for name, client in CLIENTS.items()}.values())
def test_the_example_of_the_page_runs(ran: Callable[[str], Ran], name: str) -> None:
    printed = ran(name).returned("example")
    assert "customer" in printed
    assert "18 degrees in" in printed or "one tool" not in CLIENTS[name].scenarios


@pytest.mark.parametrize("name", CLIENTS)
def test_a_wrong_token_raises_what_a_wrong_key_would(ran: Callable[[str], Ran], name: str) -> None:
    assert CLIENTS[name].wrong_token in ran(name).returned(CLIENTS[name].prefix + "wrong token")


@pytest.mark.parametrize("name", CLIENTS)
def test_a_model_that_google_does_not_have_raises_what_it_would_there(ran: Callable[[str], Ran], name: str) -> None:
    assert CLIENTS[name].wrong_model in ran(name).returned(CLIENTS[name].prefix + "wrong model")


WITH_TOOLS = [name for name, client in CLIENTS.items() if "two tools" in client.scenarios]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_both_tools_are_called_at_once_and_signatures_come_back(ran: Callable[[str], Ran], name: str) -> None:
    """Four requests: both calls, their results; one more call, its result, with the signatures of both turns."""
    bodies = [each.body for each in conversation(ran(name), name)]
    assert [NEXT in body for body in bodies] == [False, False, True, True]
    assert [len(signatures(json.loads(body))) for body in bodies] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_conversation_with_tools_stays_with_its_project(ran: Callable[[str], Ran], name: str) -> None:
    assert len({each.project for each in conversation(ran(name), name)}) == 1


def conversation(ran: Ran, name: str) -> list[Sent]:
    """What the scenario with two tools sent, through the one API of two that a program may try."""
    theirs = b'"messages"' if "openai" in name else b'"contents"'
    return [each for each in ran.sent if TWO_TOOLS in each.body and theirs in each.body]


def signatures(value: Any) -> list[str]:
    """All thought signatures in a body, in either spelling."""
    if isinstance(value, dict):
        own = [value[name] for name in ("thoughtSignature", "thought_signature") if value.get(name)]
        return own + [found for each in value.values() for found in signatures(each)]
    return [found for each in value for found in signatures(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", CLIENTS)
def test_each_scenario_of_a_program_is_looked_at(ran: Callable[[str], Ran], name: str) -> None:
    client = CLIENTS[name]
    found = {each.removeprefix(client.prefix) for each in ran(name).outcomes if each.startswith(client.prefix)}
    assert found - {"example"} == set(client.scenarios)


@pytest.mark.parametrize("name", CLIENTS)
def test_nothing_is_refused_upstream_but_the_wrong_model(ran: Callable[[str], Ran], name: str) -> None:
    wrong = "gemini-0-nothing"
    found = {(wrong in each.path or wrong.encode() in each.body, each.status) for each in ran(name).sent}
    assert found == {(False, 200), (True, 404)}
