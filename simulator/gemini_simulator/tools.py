"""Function calls: what is declared, what is called, what came back, and the signatures that must come back. PURE."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gemini_simulator.errors import bad_request, error
from gemini_simulator.references import field as read
from gemini_simulator.schema import from_google, instance

ACCEPTED = frozenset({"skip_thought_signature_validator", "context_engineering_is_the_way_to_go"})
"""What Google documents to be taken for a signature, for calls that no model made."""
_NAME = re.compile(r"[A-Za-z_][\w.:-]{0,63}", re.ASCII)
_MARK = b"simulated thought "
_MODES = ("AUTO", "ANY", "NONE", "VALIDATED")


class Function(NamedTuple):
    name: str
    schema: Any
    """A JSON schema of its arguments."""


class Result(NamedTuple):
    name: str
    value: Any


@dataclass(slots=True)
class Toolbox:
    """What may be called: `mode` is AUTO, ANY or NONE. `allowed`: names; empty: all."""

    functions: list[Function] = field(default_factory=list)
    mode: str = "AUTO"
    allowed: frozenset[str] = frozenset()
    parallel: bool = True


@dataclass(slots=True)
class Turn:
    """Where the conversation stands: the results that came last, and what was called since the user's last text."""

    results: list[Result] = field(default_factory=list)
    called: set[str] = field(default_factory=set)

    @property
    def done(self) -> set[str]:
        """The functions that were called and whose last result is not an error."""
        wrong = {name for name, value in self.results if isinstance(value, Mapping) and value.get("error")}
        return self.called - wrong


def choose(tools: Toolbox, turn: Turn, text: str) -> list[Function]:
    """Returns the functions that the model calls now.

    In mode AUTO: those that the last text names, until their results arrive. In mode ANY: the first that is allowed;
    after results, the first that is not done yet in this turn. When all are done, it is none: otherwise a client that
    runs each call would never finish.
    """
    if tools.mode == "NONE":
        return []
    open_to = [one for one in tools.functions if not tools.allowed or one.name in tools.allowed]
    if tools.mode == "ANY":
        return [one for one in open_to if not (turn.results and one.name in turn.done)][:1]
    if turn.results:
        return []
    places = {one.name: re.search(rf"(?<!\w){re.escape(one.name)}(?!\w)", text) for one in open_to}
    found = sorted((place.start(), name) for name, place in places.items() if place)
    named = [one for _, name in found for one in open_to if one.name == name]
    return named if tools.parallel else named[:1]


def arguments(function: Function) -> dict[str, Any]:
    """Arguments that are valid for the function's schema."""
    made = instance(function.schema) if function.schema is not None else {}
    return made if isinstance(made, dict) else {}


# Signatures


def signature(name: str, serial: str) -> str:
    """What goes with a call, opaque to clients."""
    digest = hashlib.sha256(f"{name} {serial}".encode()).hexdigest()[:24]
    data = _MARK + f"{digest} {name}".encode()
    data += b" " * (-len(data) % 3)
    return base64.b64encode(data + hashlib.sha256(data).digest()[:12]).decode()


def check_signature(name: str, given: Any, position: int) -> None:
    """Raises ApiError if it is missing, or was never handed out."""
    if not given or not isinstance(given, str):
        raise bad_request(
            "Function call is missing a thought_signature in functionCall parts. This is required for tools to work "
            "correctly, and missing thought_signature may lead to degraded model performance. Additional data, "
            f"function call `default_api:{name}` , position {position}. Please refer to "
            "https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
        )
    if given in ACCEPTED:
        return
    try:  # clients write base64 in either alphabet, with or without its end
        text = given.replace("-", "+").replace("_", "/").rstrip("=")
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(
            f"Invalid value at 'contents[{position - 1}].parts[0].thought_signature' (TYPE_BYTES), Base64 decoding "
            f'failed for "{given[:40]}"'
        ) from None
    if data in {word.encode() for word in ACCEPTED}:
        return
    if not data.startswith(_MARK) or hashlib.sha256(data[:-12]).digest()[:12] != data[-12:]:
        raise error("thought-signature")


# Google's own shape


def native_toolbox(document: Mapping[str, Any]) -> Toolbox:
    """Raises ApiError."""
    functions = []
    for place, tool in enumerate(_listed(document.get("tools"))):
        for number, given in enumerate(_listed(read(tool, "functionDeclarations"))):
            where = f"GenerateContentRequest.tools[{place}].function_declarations[{number}].name"
            schema = read(given, "parametersJsonSchema")
            if schema is None:
                schema = from_google(read(given, "parameters"))
            functions.append(Function(_name(read(given, "name"), where), schema))
    tools = Toolbox(_distinct(functions))
    config = read(read(document, "toolConfig"), "functionCallingConfig")
    mode = read(config, "mode")
    if mode in (None, 0, "MODE_UNSPECIFIED"):
        mode = "AUTO"
    if str(mode).upper() not in _MODES:
        raise bad_request(
            "Invalid value at 'tool_config.function_calling_config.mode' "
            f'(type.googleapis.com/google.ai.generativelanguage.FunctionCallingConfig.Mode), "{mode}"'
        )
    tools.mode = "AUTO" if str(mode).upper() == "VALIDATED" else str(mode).upper()
    tools.allowed = _allowed(_listed(read(config, "allowedFunctionNames")), tools.functions)
    return tools


def native_turn(contents: Any, *, signed: bool) -> Turn:
    """`signed`: whether the model wants its signatures back. Raises ApiError."""
    contents = [content for content in _listed(contents) if isinstance(content, Mapping)]
    for content in contents:
        if content.get("role") not in (None, "", "user", "model", "function", "tool"):
            raise bad_request("Please use a valid role: user, model.")
    turn = Turn()
    start = max((place for place, content in enumerate(contents) if _is_asked(content)), default=0)
    calls = 0
    for place, content in enumerate(contents):
        parts = _listed(content.get("parts"))
        made = [part for part in parts if read(part, "functionCall") is not None]
        answers = [found for part in parts if (found := read(part, "functionResponse")) is not None]
        if answers:
            turn.results += [Result(str(read(found, "name")), read(found, "response")) for found in answers]
            continue
        _check_number(turn.results, calls)
        turn.results = []
        calls = len(made)
        if made and place >= start:
            names = [str(read(read(part, "functionCall"), "name")) for part in made]
            turn.called.update(names)
            if signed:
                check_signature(names[0], read(made[0], "thoughtSignature"), place + 1)
    _check_number(turn.results, calls)
    return turn


def _is_asked(content: Mapping[str, Any]) -> bool:
    """Whether a turn of the user begins here: results do not begin one."""
    parts = _listed(content.get("parts"))
    return content.get("role") in (None, "", "user") and not any(
        read(part, "functionResponse") is not None for part in parts
    )


def _check_number(results: Sequence[Result], calls: int) -> None:
    if results and calls and len(results) != calls:
        raise bad_request(
            "Please ensure that the number of function response parts is equal to the number of function call parts "
            "of the function call turn."
        )


# OpenAI's shape


def chat_toolbox(document: Mapping[str, Any]) -> Toolbox:
    """Raises ApiError."""
    functions = []
    for place, tool in enumerate(_listed(document.get("tools"))):
        if isinstance(given := read(tool, "function"), Mapping):
            where = f"GenerateContentRequest.tools[0].function_declarations[{place}].name"
            functions.append(Function(_name(given.get("name"), where), given.get("parameters")))
    tools = Toolbox(_distinct(functions), parallel=document.get("parallel_tool_calls") is not False)
    choice = document.get("tool_choice")
    if isinstance(choice, str) and choice:
        modes = {"none": "NONE", "auto": "AUTO", "required": "ANY", "any": "ANY"}
        if choice not in modes:
            raise bad_request(f"Invalid tool_choice: {choice}")
        tools.mode = modes[choice]
    elif isinstance(choice, Mapping):
        tools.mode, names = "ANY", [read(choice.get("function"), "name")]
        if isinstance(some := choice.get("allowed_tools"), Mapping):
            tools.mode = "ANY" if some.get("mode") == "required" else "AUTO"
            names = [read(read(tool, "function"), "name") for tool in _listed(some.get("tools"))]
        tools.allowed = _allowed(names, tools.functions)
    return tools


def chat_turn(messages: Any, *, signed: bool) -> Turn:
    """Raises ApiError."""
    messages = [message for message in _listed(messages) if isinstance(message, Mapping)]
    start = max((place for place, message in enumerate(messages) if message.get("role") == "user"), default=0)
    turn = Turn()
    names: dict[str, str] = {}
    position = 0
    for place, message in enumerate(messages):
        position += message.get("role") not in ("system", "developer")
        if message.get("role") in ("tool", "function"):
            name = names.get(str(message.get("tool_call_id"))) or message.get("name") or "function"
            turn.results.append(Result(str(name), _text_of(message.get("content"))))
            continue
        turn.results = []
        calls = [call for call in _listed(message.get("tool_calls")) if isinstance(call, Mapping)]
        for number, call in enumerate(calls):
            name = str(read(call.get("function"), "name"))
            names[str(call.get("id"))] = name
            if place >= start:
                turn.called.add(name)
                if signed and number == 0:
                    extra = read(call.get("extra_content"), "google")
                    check_signature(name, read(extra, "thought_signature"), position)
    return turn


def _text_of(content: Any) -> Any:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content


# Both


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(
            f"* {where}: Invalid function name. Must start with a letter or an underscore. Must be alphameric (a-z, "
            "A-Z, 0-9), underscores (_), dots (.), colons (:), or dashes (-), with a maximum length of 64.\n"
        )
    return name


def _distinct(functions: list[Function]) -> list[Function]:
    seen: set[str] = set()
    for one in functions:
        if one.name in seen:
            raise bad_request(f"Duplicate function declaration found: {one.name}")
        seen.add(one.name)
    return functions


def _allowed(names: Iterable[Any], functions: Sequence[Function]) -> frozenset[str]:
    found = frozenset(str(name) for name in names if name is not None)
    if unknown := found - {one.name for one in functions}:
        raise bad_request(f"Function {min(unknown)} is allowed but not declared.")
    return found


def mentioned(results: Iterable[Result]) -> Iterator[str]:
    """Each result as the answer speaks of it."""
    for name, value in results:
        inner = value
        if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("result", "output"):
            inner = next(iter(value.values()))
        text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
        yield f"{name} gave {text[:200]}"
