"""Whether a value is valid for a JSON schema: the keywords of draft 2020-12 that a generator has to know. PURE."""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeGuard

DEEPEST = 60
"""Levels of schemas inside schemas. What lies deeper counts as valid: a schema may refer to itself for ever."""


class Patience:
    """How much is looked at in all: schemas of a few lines can ask for more steps than there is time."""

    def __init__(self, most: int) -> None:
        self.left = most

    def ends(self) -> bool:
        """One more step. True: no more shall be made."""
        self.left -= 1
        return self.left < 0


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": is_number,
    "integer": lambda value: is_number(value) and (isinstance(value, int) or value.is_integer()),
}


def same(one: Any, other: Any) -> bool:
    """Equality as JSON has it: true is not 1, and 1.0 is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def resolve(reference: Any, root: Any) -> Any:
    """What `#/$defs/Name` points to. None: nothing, or something outside of this document."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for name in reference[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def matches(schema: Any, value: Any, root: Any, depth: int = 0, patience: Patience | None = None) -> bool:
    """`root`: the document in which references are looked up. What is not looked at counts as valid."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if depth > DEEPEST or (patience is not None and patience.ends()):
        return True

    def inner(part: Any, item: Any) -> bool:
        return matches(part, item, root, depth + 1, patience)

    if "$ref" in schema and not inner(resolve(schema["$ref"], root), value):
        return False
    if not _general(schema, value, inner):
        return False
    if is_number(value):
        return _number(schema, value)
    if isinstance(value, str):
        return _string(schema, value)
    if isinstance(value, list):
        return _array(schema, value, inner)
    return _object(schema, value, inner) if isinstance(value, dict) else True


Inner = Callable[[Any, Any], bool]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    return [name for name in _listed(value) if isinstance(name, str)]


def _general(schema: Mapping[str, Any], value: Any, inner: Inner) -> bool:
    kinds = schema.get("type")
    if kinds is not None:
        known = [_TYPES[kind] for kind in (kinds if isinstance(kinds, list) else [kinds]) if str(kind) in _TYPES]
        if known and not any(test(value) for test in known):
            return False
    if "const" in schema and not same(schema["const"], value):
        return False
    if isinstance(schema.get("enum"), list) and not any(same(value, each) for each in schema["enum"]):
        return False
    if not all(inner(part, value) for part in _listed(schema.get("allOf"))):
        return False
    if (branches := schema.get("anyOf")) and not any(inner(part, value) for part in _listed(branches)):
        return False
    if (branches := schema.get("oneOf")) and sum(inner(part, value) for part in _listed(branches)) != 1:
        return False
    if "not" in schema and inner(schema["not"], value):
        return False
    if "if" in schema:
        return inner(schema.get("then" if inner(schema["if"], value) else "else", True), value)
    return True


def _number(schema: Mapping[str, Any], value: float) -> bool:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    step = schema.get("multipleOf")
    return not (
        (is_number(low) and value < low)
        or (is_number(high) and value > high)
        or (is_number(above) and value <= above)
        or (is_number(below) and value >= below)
        or (is_number(step) and step > 0 and Fraction(str(value)) % Fraction(str(step)) != 0)
    )


def _between(schema: Mapping[str, Any], count: int, least: str, most: str) -> bool:
    low, high = schema.get(least), schema.get(most)
    return not ((is_number(low) and count < low) or (is_number(high) and count > high))


def searched(pattern: Any, text: str) -> bool:
    """Whether the pattern is found in the text. One that Python cannot read is found everywhere."""
    try:
        return re.search(pattern, text) is not None
    except (re.error, TypeError, RecursionError, OverflowError):
        return True


def _string(schema: Mapping[str, Any], value: str) -> bool:
    return _between(schema, len(value), "minLength", "maxLength") and (
        "pattern" not in schema or searched(schema["pattern"], value)
    )


def _array(schema: Mapping[str, Any], value: list[Any], inner: Inner) -> bool:
    if not _between(schema, len(value), "minItems", "maxItems"):
        return False
    if schema.get("uniqueItems") is True and any(
        same(one, other) for place, one in enumerate(value) for other in value[:place]
    ):
        return False
    first = _listed(schema.get("prefixItems"))
    if not all(map(inner, first, value)):
        return False
    if "items" in schema and not all(inner(schema["items"], item) for item in value[len(first) :]):
        return False
    if "contains" in schema:
        count = sum(inner(schema["contains"], item) for item in value)
        return _between({"minContains": 1} | dict(schema), count, "minContains", "maxContains")
    return True


def _object(schema: Mapping[str, Any], value: dict[str, Any], inner: Inner) -> bool:
    if not _between(schema, len(value), "minProperties", "maxProperties"):
        return False
    if not all(name in value for name in _names(schema.get("required"))):
        return False
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    patterns = schema.get("patternProperties")
    patterns = patterns if isinstance(patterns, Mapping) else {}
    needed = schema.get("dependentRequired")
    for name, item in value.items():
        known = name in properties
        if known and not inner(properties[name], item):
            return False
        for pattern, part in patterns.items():
            if searched(pattern, name):
                known = True
                if not inner(part, item):
                    return False
        if not known and "additionalProperties" in schema and not inner(schema["additionalProperties"], item):
            return False
        if "propertyNames" in schema and not inner(schema["propertyNames"], name):
            return False
        if isinstance(needed, Mapping) and not all(other in value for other in _names(needed.get(name))):
            return False
    return True
