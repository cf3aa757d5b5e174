"""Texts that a regular expression accepts. PURE."""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

_SOME: dict[str, str] = {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a"}
_NOT: dict[str, str] = {"CATEGORY_NOT_DIGIT": "a", "CATEGORY_NOT_SPACE": "a", "CATEGORY_NOT_WORD": "-"}
_CHARACTERS = "a0A_-. /:@" + "".join(map(chr, range(33, 127)))


def sample(pattern: str, turn: int = 0) -> Iterator[str]:
    """Some texts that match the pattern. Another `turn` puts another one first, if there are several."""
    try:
        parser: Any = import_module("re._parser")
        parsed = parser.parse(pattern)
        expression = re.compile(pattern)
    except (re.error, ImportError, RecursionError, OverflowError):
        return
    for more in (turn, turn + 1, 0, 1, 2):
        text = _Text(more).of(parsed)
        if expression.search(text):
            yield text


class _Text:
    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._groups: dict[int, str] = {}

    def of(self, parsed: Any) -> str:
        return "".join(self._part(str(name), argument) for name, argument in parsed)

    def _part(self, name: str, argument: Any) -> str:
        if name == "LITERAL":
            return chr(argument)
        if name == "ANY":
            return "a"
        if name == "NOT_LITERAL":
            return next(each for each in _CHARACTERS if ord(each) != argument)
        if name == "IN":
            return self._one_of(argument)
        if name == "CATEGORY":
            return (_SOME | _NOT).get(str(argument), "")
        if name == "BRANCH":
            branches = argument[1]
            return self.of(branches[self._turn % len(branches)])
        if name == "SUBPATTERN":
            text = self.of(argument[-1])
            if argument[0] is not None:
                self._groups[argument[0]] = text
            return text
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = argument
            wanted = min(int(most), max(int(least), min(3, 1 + self._turn)))
            return "".join(self.of(inner) for _ in range(min(wanted, 10_000)))
        if name == "ATOMIC_GROUP":
            return self.of(argument)
        return self._groups.get(argument, "") if name == "GROUPREF" else ""

    def _one_of(self, options: Any) -> str:
        """A character of a set, in brackets."""
        if str(options[0][0]) == "NEGATE":
            return next((each for each in _CHARACTERS if not _within(each, options[1:])), "")
        characters = []
        for name, argument in options:
            if str(name) == "LITERAL":
                characters.append(chr(argument))
            elif str(name) == "RANGE":
                low, high = argument
                characters += [chr(code) for code in range(low, min(high, low + 40) + 1)]
            elif str(name) == "CATEGORY":
                characters.append((_SOME | _NOT).get(str(argument), ""))
        return characters[self._turn % len(characters)]


def _within(character: str, options: Any) -> bool:
    code = ord(character)
    for name, argument in options:
        if str(name) == "LITERAL" and code == argument:
            return True
        if str(name) == "RANGE" and argument[0] <= code <= argument[1]:
            return True
        if str(name) == "CATEGORY":
            kind = str(argument)
            tests = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
            wanted = re.match(tests.get(kind.rpartition("_")[2], "(?!)"), character) is not None
            if wanted != ("_NOT_" in kind):
                return True
    return False
