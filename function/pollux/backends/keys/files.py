"""The formats keys are written in: one key a line, variables as in a .env, keys.json. Text in, entries out."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from pollux.backends.keys.contract import Secret
from pollux.backends.keys.entries import ID_PATTERN, Entry, Parsed, Problem, clean, id_fault, value_fault
from pollux.backends.keys.keys_json import parse_document

LISTS = {"GEMINI_API_KEYS": "gemini", "GOOGLE_API_KEYS": "google", "POLLUX_KEYS": "key"}
"""Variables that hold several keys, separated by commas, and what the ids of these begin with."""
VARIABLES = ("GEMINI_API_KEY", "GEMINI_API_KEY_<n>", "GEMINI_KEY_<name>", *LISTS)
ROOT = "GEMINI_KEY_POOL_ROOT"
"""A folder with a keys.json and a .env. Not a key, although its name looks like GEMINI_KEY_<name>."""

_LINES = re.compile(r"\r\n|\r|\n")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
_NAMED_LINE = re.compile(rf"({ID_PATTERN}):\s+(.*)")
_COMMENT = re.compile(r"\s+#.*")
_SEPARATOR = re.compile(r"[,;\s]")
_ASSIGNED = re.compile(r"(export\s+)?[A-Z][A-Z0-9_]*\s*=\s*[^=\s]")  # not the padding at the end of base64


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable and where it was set. Its value may be a key, so repr does not show it."""

    name: str
    value: str = field(repr=False)
    file: str = "environment"
    line: int = 0


def recognise(text: str, file: str) -> Literal["json", "env", "list"]:
    """By content more than by name: a .txt with JSON is JSON, and assignments in a key.txt are a .env."""
    start = text.lstrip("\ufeff \t\r\n")[:1]
    name = PurePath(file).name.lower()
    if start in ("{", "[") or name.endswith(".json"):
        return "json"
    if name.startswith(".env.") or name.endswith(".env"):
        return "env"
    written = [line for _, line in _written(text)]
    return "env" if written and all(_ASSIGNED.match(line) for line in written) else "list"


def parse(text: str, file: str, variables: Mapping[str, Variable]) -> Parsed:
    """The keys of a file of any format. `variables` resolve env:NAME. Raises KeyFileError if nothing can be read."""
    match recognise(text, file):
        case "json":
            return parse_document(text, file, {name: variable.value for name, variable in variables.items()})
        case "env":
            return parse_variables(parse_env(text, file).values())
        case "list":
            return _parse_list(text, file)


def _parse_list(text: str, file: str) -> Parsed:
    """One key a line, `VALUE` or `id: VALUE`; # starts a comment. A key without an id is key-N, N by its position."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, (line, written) in enumerate(_written(text), 1):
        content = _COMMENT.sub("", written, count=1)
        named = _NAMED_LINE.fullmatch(content)
        if named and id_fault(named[1]):
            named = None
        value = clean(named[2] if named else content)
        if fault := value_fault(value):
            several = "; write one key a line, as VALUE or as id: VALUE" if _SEPARATOR.search(value) else ""
            problems.append(Problem(file, line, fault + several))
        elif _ASSIGNED.match(content):
            problems.append(Problem(file, line, "NAME=VALUE among plain keys; put variables into a .env file"))
        else:
            key_id = named[1] if named else f"key-{number}"
            entries.append(Entry(key_id, Secret(value), file, line, positional=not named))
    return Parsed(tuple(entries), tuple(problems))


def parse_env(text: str, file: str) -> dict[str, Variable]:
    """All variables of a .env; of a repeated name the last counts. Lines without an assignment are ignored."""
    found = {}
    for line, content in _written(text):
        if assignment := _ASSIGNMENT.fullmatch(content):
            found[assignment[1]] = Variable(assignment[1], _unquoted(assignment[2]), file, line)
    return found


def parse_variables(variables: Iterable[Variable]) -> Parsed:
    """The keys among variables: those with a name in VARIABLES."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for variable in variables:
        for key_id, text, positional in _candidates(variable):
            value = clean(text)
            if fault := (None if positional else id_fault(key_id)) or value_fault(value):
                if variable.name in LISTS and _SEPARATOR.search(value):
                    fault += "; separate keys by commas, with nothing else between them"
                elif variable.name not in LISTS and re.search("[,;]", value):
                    fault += "; put several keys into GEMINI_API_KEYS, separated by commas"
                problems.append(Problem(variable.file, variable.line, f"{_shown(variable.name)}: {fault}"))
                continue
            source = (variable.file, variable.line)
            entries.append(Entry(key_id, Secret(value), *source, variable=variable.name, positional=positional))
    return Parsed(tuple(entries), tuple(problems))


def is_read(name: str) -> bool:
    """Whether a variable of this name holds keys."""
    return bool(re.fullmatch(r"GEMINI_API_KEY(_[0-9]+)?", name)) or name.startswith("GEMINI_KEY_") or name in LISTS


def _candidates(variable: Variable) -> Iterator[tuple[str, str, bool]]:
    """Id, value, and whether the id was made from a position."""
    name, value = variable.name, variable.value
    if not clean(value):
        return  # an empty variable is switched off
    if name == "GEMINI_API_KEY":
        yield "gemini", value, False
    elif name.startswith("GEMINI_KEY_") and name != ROOT:
        own = name.removeprefix("GEMINI_KEY_").lower().replace("_", "-")
        yield (f"gemini-{own}" if own.isdigit() else own), value, False
    elif (number := name.removeprefix("GEMINI_API_KEY_")).isdecimal() and number.isascii():
        yield f"gemini-{number}", value, True
    elif name in LISTS:
        parts = [part for part in clean(value).split(",") if clean(part)]
        yield from ((f"{LISTS[name]}-{number}", part, True) for number, part in enumerate(parts, 1))


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[A-Z0-9_]{1,40}", name) else "a GEMINI_KEY_… variable"


def _written(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is neither empty nor a comment."""
    for number, line in enumerate(_LINES.split(text), 1):
        content = line.strip("\ufeff \t")
        if content and not content.startswith("#"):
            yield number, content


def _unquoted(text: str) -> str:
    quote = text[:1]
    if quote in ('"', "'") and (end := text.find(quote, 1)) > 0:
        return text[1:end]
    return "" if text.startswith("#") else _COMMENT.sub("", text, count=1)
