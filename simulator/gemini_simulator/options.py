"""What a request asks for beside its text, read from Google's shape or from OpenAI's into one. PURE."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gemini_simulator.counting import parts_of
from gemini_simulator.errors import bad_request
from gemini_simulator.models import generation_of, modalities
from gemini_simulator.references import field as read
from gemini_simulator.references import snake
from gemini_simulator.schema import described, from_google
from gemini_simulator.tools import Toolbox, Turn, chat_toolbox, chat_turn, native_toolbox, native_turn

_TYPES = ("text/plain", "application/json", "application/xml", "application/yaml", "text/x.enum")
_MOST_CANDIDATES = 8
_BUDGETS = {"none": 0, "minimal": 4, "low": 8, "medium": 16, "high": 32}
"""Level or effort -> the most tokens of thoughts here."""


class Form(NamedTuple):
    """JSON is wanted. `schema`: None if any will do. `bare`: a text without quotation marks, as of an enum."""

    schema: Any = None
    bare: bool = False


@dataclass(slots=True)
class Options:
    most: int | None = None
    """Tokens of output."""
    stops: list[str] = field(default_factory=list)
    count: int = 1
    thinking: int = 0
    """The most tokens of thoughts; 0: it does not think."""
    show_thoughts: bool = False
    form: Form | None = None
    wanted: frozenset[str] = frozenset()
    """TEXT, IMAGE, AUDIO: what an answer may consist of."""
    tools: Toolbox = field(default_factory=Toolbox)
    turn: Turn = field(default_factory=Turn)
    served: Mapping[str, Any] = field(default_factory=dict)
    """Google's own tools that are on: googleSearch, … -> their settings."""


_SERVED = ("googleSearch", "googleSearchRetrieval", "googleMaps", "urlContext", "codeExecution")
_READ = (
    "responseModalities",
    "maxOutputTokens",
    "stopSequences",
    "candidateCount",
    "responseMimeType",
    "responseSchema",
    "responseJsonSchema",
    "responseFormat",
    "thinkingConfig",
)
_SPELT = frozenset({*_READ, *map(snake, _READ), "_responseJsonSchema"})


def native_options(document: Mapping[str, Any], model: str) -> Options:
    """Raises ApiError."""
    options = Options()
    options.turn = native_turn(document.get("contents"), signed=generation_of(model) >= 3)
    if "tools" in document or "toolConfig" in document or "tool_config" in document:
        options.tools = native_toolbox(document)
        tools = document.get("tools")
        for tool in tools if isinstance(tools, list) else [tools]:
            found = {name: read(tool, name) for name in _SERVED}
            options.served = {**options.served, **{name: given for name, given in found.items() if given is not None}}
    config = read(document, "generationConfig")
    if not isinstance(config, dict) or _SPELT.isdisjoint(config):  # most often: this is every request's way
        options.wanted = _modalities(None, model)
        return options
    options.wanted = _modalities(read(config, "responseModalities"), model)
    options.most = _whole(read(config, "maxOutputTokens"), "max_output_tokens")
    options.stops = _texts(read(config, "stopSequences"))
    options.count = _count(read(config, "candidateCount"))
    options.form = _native_form(config)
    if options.form == Form():
        ruled = read(document, "systemInstruction")
        contents = [one for one in (document.get("contents"), ruled) if one and not isinstance(one, str)]
        parts = [part for content in contents for part in parts_of(content, "contents")]
        options.form = Form(described(text for part in reversed(parts) if isinstance(text := part.get("text"), str)))
    _native_thinking(options, read(config, "thinkingConfig"))
    return options


def chat_options(document: Mapping[str, Any], model: str) -> Options:
    """Raises ApiError."""
    options = Options(wanted=frozenset({"TEXT"}))
    options.turn = chat_turn(document.get("messages"), signed=generation_of(model) >= 3)
    options.tools = chat_toolbox(document)
    most = document.get("max_completion_tokens")
    options.most = _whole(document.get("max_tokens") if most is None else most, "max_tokens")
    options.stops = _texts(document.get("stop"))
    options.count = _count(document.get("n"))
    options.form = _chat_form(document.get("response_format"))
    if options.form == Form():
        said = [message.get("content") for message in document["messages"] if isinstance(message, Mapping)]
        parts = [part for content in said for part in (content if isinstance(content, list) else [content])]
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in reversed(parts)]
        options.form = Form(described(text for text in texts if isinstance(text, str)))
    effort = document.get("reasoning_effort")
    if effort is not None:
        if str(effort) not in _BUDGETS:
            raise bad_request(f"Invalid reasoning_effort: {effort}")
        options.thinking = _BUDGETS[str(effort)]
    if (config := read(read(document.get("extra_body"), "google"), "thinkingConfig")) is not None:
        if effort is not None:
            raise bad_request("Cannot specify both reasoning_effort and thinking_config.")
        _native_thinking(options, config)
    return options


def _integer(value: Any) -> int | None:
    """A whole number as Google reads one: 5, 5.0 and "5" are the same. None if it is not one."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _whole(value: Any, name: str) -> int | None:
    """A number of tokens. 0 is as if it were not there, as with all numbers of Google's."""
    if value is None:
        return None
    number = _integer(value)
    if number is None or number < 0:
        raise bad_request(f"* GenerateContentRequest.generation_config.{name}: must be a positive number\n")
    return number or None


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]


def _count(value: Any) -> int:
    number = 1 if value is None else _integer(value)
    if number is None or not 0 <= number <= _MOST_CANDIDATES:
        raise bad_request(
            "* GenerateContentRequest.generation_config.candidate_count: "
            f"must be in the range [1, {_MOST_CANDIDATES + 1})\n"
        )
    return number or 1


def _modalities(given: Any, model: str) -> frozenset[str]:
    able = modalities(model)
    asked = frozenset(str(one).upper() for one in given) if isinstance(given, list) else frozenset()
    asked -= {"MODALITY_UNSPECIFIED"}
    if not asked:
        if "TEXT" in able:
            return able
        asked = frozenset({"TEXT"})  # what Google takes for asked, if nothing is
    if not asked <= able:
        lines = "\n".join(f"* {one}" for one in sorted(able, reverse=True))
        raise bad_request(
            f"The requested combination of response modalities ({', '.join(sorted(asked, reverse=True))}) is not "
            f"supported by the model. models/{model} accepts the following combination of response modalities:\n"
            f"{lines}\n"
        )
    return asked


def _native_form(config: Any) -> Form | None:
    text = read(read(config, "responseFormat"), "text")
    kind = read(config, "responseMimeType") or read(text, "mimeType")
    schema = read(config, "responseJsonSchema")
    if schema is None:
        schema = config.get("_responseJsonSchema") if isinstance(config, Mapping) else None
    if schema is None:
        schema = read(text, "schema")
    if schema is None and (given := read(config, "responseSchema")) is not None:
        schema = from_google(given)
    if kind is not None and str(kind).lower() not in _TYPES and str(kind).upper() != "APPLICATION_JSON":
        raise bad_request(
            "* GenerateContentRequest.generation_config.response_mime_type: allowed mimetypes are `text/plain`, "
            "`application/json`, `application/xml`, `application/yaml` and `text/x.enum`.\n"
        )
    if kind == "text/x.enum":
        return Form(schema, bare=True)
    if schema is not None or str(kind).lower() in ("application/json", "application_json"):
        return Form(schema)
    return None


def _chat_form(given: Any) -> Form | None:
    kind = read(given, "type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return Form()
    if kind != "json_schema":
        raise bad_request(f"Invalid response_format.type: {kind}")
    return Form(read(given.get("json_schema"), "schema"))


def _native_thinking(options: Options, config: Any) -> None:
    if config is None:
        return
    budget, level = read(config, "thinkingBudget"), read(config, "thinkingLevel")
    if level == "THINKING_LEVEL_UNSPECIFIED":
        level = None
    if budget is not None and level is not None:
        raise bad_request("You can only set one of thinking budget and thinking level.")
    options.thinking = _BUDGETS["medium"]
    if level is not None:
        if str(level).lower() not in _BUDGETS:
            raise bad_request(
                "Invalid value at 'generation_config.thinking_config.thinking_level' "
                f'(type.googleapis.com/google.ai.generativelanguage.ThinkingConfig.ThinkingLevel), "{level}"'
            )
        options.thinking = _BUDGETS[str(level).lower()]
    elif (number := _integer(budget)) is not None and number >= 0:
        options.thinking = min(number, _BUDGETS["high"])
    options.show_thoughts = read(config, "includeThoughts") is True and options.thinking > 0
