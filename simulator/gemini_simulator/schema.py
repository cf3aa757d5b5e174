"""A value that is valid for a JSON schema, the same one each time, and Google's own form of schemas. PURE.

Optional properties are filled in, too, so that a client sees every field. A schema that refers to itself ends as soon
as it may. What a schema cannot be satisfied by gets the nearest value that was found.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import islice
from typing import Any

from gemini_simulator.pattern import sample
from gemini_simulator.validation import Patience, is_number, matches, resolve, same, searched

DEEPEST = 12
"""Levels of values inside values. Deeper down only what is required is made."""
MOST = 400
"""Values in one instance. Beyond it, too, only what is required is made."""
_LAST = 5_000
"""Values that are searched in total, so that a search for an impossible value ends."""
_STEPS = 100_000
"""Steps in looking for a value. A few references to each other can ask for billions."""
_LONGEST = 2_000
"""Items of an array, however many a schema demands."""
TRIES = 40
"""Values that are tried for one schema."""
_END = 40
"""Levels after which nothing at all is made: a schema that requires itself has no end."""

_FORMATS: Mapping[str, str] = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05",
    "duration": "P1D",
    "email": "someone@example.com",
    "idn-email": "someone@example.com",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "ipvanyaddress": "192.0.2.1",
    "ipv4network": "192.0.2.0/24",
    "ipv6network": "2001:db8::/32",
    "ipvanynetwork": "192.0.2.0/24",
    "ipv4interface": "192.0.2.1/24",
    "ipv6interface": "2001:db8::1/32",
    "ipvanyinterface": "192.0.2.1/24",
    "uri": "https://example.com/simulated",
    "url": "https://example.com/simulated",
    "uri-reference": "/simulated",
    "iri": "https://example.com/simulated",
    "iri-reference": "/simulated",
    "uri-template": "/simulated/{name}",
    "multi-host-uri": "https://example.com/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uuid1": "00000000-0000-1000-8000-000000000000",
    "uuid3": "00000000-0000-3000-8000-000000000000",
    "uuid4": "00000000-0000-4000-8000-000000000000",
    "uuid5": "00000000-0000-5000-8000-000000000000",
    "json-pointer": "/simulated",
    "relative-json-pointer": "0/simulated",
    "regex": "^simulated$",
    "json-string": "{}",
    "byte": "c2ltdWxhdGVk",
    "base64": "c2ltdWxhdGVk",
    "base64url": "c2ltdWxhdGVk",
}
_ORDER = ("string", "object", "array", "integer", "number", "boolean", "null")
_HINTS: Mapping[str, tuple[str, ...]] = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""Keywords that imply a type which a schema does not name."""
_COUNTS = tuple(f"{which}{what}" for which in ("min", "max") for what in ("Length", "Items", "Properties", "Contains"))
_LARGEST = ("minimum", "exclusiveMinimum", *_COUNTS[:4])
_LEAST = ("maximum", "exclusiveMaximum", *_COUNTS[4:])
_NOTHING = object()


def instance(schema: Any, text: str = "simulated") -> Any:
    """A value for a JSON schema. Strings without a format or pattern begin with `text`."""
    schema = _cleaned(schema)
    found = _Maker(schema, text).pick(schema, "", 0, 0)
    return None if found is _NOTHING else found


def described(texts: Iterable[str]) -> Any:
    """The first JSON schema in one of the texts, as some clients write it there to get JSON; or None."""
    decoder = json.JSONDecoder()
    for text in texts:
        start = text.find("{")
        while start >= 0:
            try:
                found, _ = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict) and any(word in found for word in ("properties", "$ref", "anyOf", "$defs")):
                return found
            start = text.find("{", start + 1)
    return None


# Google's own form


_GOOGLE = (
    "anyOf",
    "oneOf",
    "allOf",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "prefixItems",
    "propertyOrdering",
    "additionalProperties",
)
_RENAMED: dict[str, str] = {
    "ref": "$ref",
    "defs": "$defs",
    **{re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name): name for name in _GOOGLE},
}


def from_google(schema: Any) -> Any:
    """The JSON schema of a Schema: types in capitals, `nullable`, counts as texts, names in either spelling."""
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for given, value in schema.items():
        name = str(_RENAMED.get(given, given))
        if name in ("properties", "$defs", "patternProperties") and isinstance(value, Mapping):
            made[name] = {each: from_google(part) for each, part in value.items()}
        elif name in ("items", "additionalProperties", "not"):
            made[name] = from_google(value)
        elif name in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            made[name] = [from_google(part) for part in value]
        elif name == "type":
            kinds = [str(kind).lower() for kind in (value if isinstance(value, list) else [value])]
            known = [kind for kind in kinds if kind in _ORDER]
            if known:
                made[name] = known if len(known) > 1 else known[0]
        elif name.startswith(("min", "max")) and isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
            made[name] = int(value)
        else:
            made[name] = value
    return _nullable(made) if made.pop("nullable", False) is True else made


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("anyOf"), list):
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]} if "type" not in schema else schema
    kinds = schema.get("type")
    made = dict(schema)
    if kinds is not None:
        made["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
    if isinstance(schema.get("enum"), list):
        made["enum"] = [*schema["enum"], None]
    return made


# Making


def _cleaned(schema: Any) -> Any:
    """Without keywords whose values make no sense, and in today's spelling, so that no other code has to check."""
    if not isinstance(schema, Mapping):
        return schema if isinstance(schema, bool) else {}
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _PARTS and isinstance(value, Mapping | bool):
            made[name] = _cleaned(value)
        elif name in _LISTS and isinstance(value, list):
            made[name] = [_cleaned(part) for part in value]
        elif name in _MAPS and isinstance(value, Mapping):
            made[name] = {each: _cleaned(part) for each, part in value.items()}
        elif name == "items" and isinstance(value, list):  # draft 4
            made["prefixItems"] = [_cleaned(part) for part in value]
        elif name in ("exclusiveMinimum", "exclusiveMaximum") and value is True:
            made[name] = schema.get("m" + name[10:])
        elif name == "type":
            kinds = [kind for kind in (value if isinstance(value, list) else [value]) if kind in _ORDER]
            made |= {"type": kinds if len(kinds) > 1 else kinds[0]} if kinds else {}
        elif name == "required":
            made[name] = [each for each in _listed(value) if isinstance(each, str)]
        elif name not in (*_PARTS, *_LISTS, *_MAPS):
            made[name] = value
    return {name: value for name, value in made.items() if _KINDS.get(name, lambda _: True)(value)}


def _is_count(value: Any) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


_PARTS = ("items", "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_COUNTS, "multipleOf"), _is_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_finite),
    **dict.fromkeys(("pattern", "format", "$ref"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("enum", "propertyOrdering"), lambda value: isinstance(value, list)),
    "dependentRequired": lambda value: isinstance(value, Mapping),
}
"""Further conditions on a value."""


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the demands of both. What cannot be merged stays in allOf."""
    made = dict(one)
    for name, value in other.items():
        had = made.get(name, _NOTHING)
        if had is _NOTHING or same(had, value):
            made[name] = value
        elif name in ("properties", "patternProperties", "$defs", "dependentRequired"):
            both = {each: {"allOf": [had[each], value[each]]} for each in had if each in value}
            made[name] = {**had, **value, **both} if name != "$defs" else {**had, **value}
        elif name == "required":
            made[name] = [*had, *(each for each in value if each not in had)]
        elif name in _LARGEST:
            made[name] = max(had, value)
        elif name in _LEAST:
            made[name] = min(had, value)
        elif name == "enum":
            made[name] = [each for each in had if any(same(each, option) for option in value)]
        elif name == "type":
            made[name] = _common(had, value)
        elif name in ("items", "additionalProperties", "contains", "propertyNames"):
            made[name] = False if had is False or value is False else {"allOf": [had, value]}
        elif name in ("anyOf", "oneOf", "not", "if", "const", "multipleOf", "pattern", "prefixItems", "allOf"):
            made["allOf"] = [*made.get("allOf", ()), {name: value}]
        else:
            made[name] = value
    return made


def _common(one: Any, other: Any) -> list[str]:
    ours = one if isinstance(one, list) else [one]
    theirs = other if isinstance(other, list) else [other]
    both = [kind for kind in ours if kind in theirs]
    if ("integer" in ours and "number" in theirs) or ("number" in ours and "integer" in theirs):
        both.append("integer")
    return both


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapped(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any, otherwise: int) -> int:
    return int(value) if is_number(value) and math.isfinite(value) else otherwise


class _Maker:
    def __init__(self, root: Any, text: str) -> None:
        self._root = root
        self._text = text
        self._made = 0
        self._patience = Patience(_STEPS)
        self._path: list[str] = []
        """The references in which we are."""

    def pick(self, schema: Any, name: str, turn: int, depth: int) -> Any:
        """The first valid value, or _NOTHING. `turn`: the number among several values that must differ."""
        self._made += 1
        if schema is False or depth > _END or self._made > _LAST:
            return _NOTHING
        nearest: Any = _NOTHING
        for value in islice(self._values(schema, name, turn, depth), TRIES):
            if matches(schema, value, self._root, patience=self._patience):
                return value
            if nearest is _NOTHING:
                nearest = value
        return nearest if depth == 0 else _NOTHING

    def _lean(self, depth: int) -> bool:
        return depth > DEEPEST or self._made > MOST or len(self._path) != len(set(self._path))

    def _values(self, schema: Any, name: str, turn: int, depth: int) -> Iterator[Any]:
        if self._patience.ends():
            return
        if not isinstance(schema, Mapping):
            schema = {}
        if "$ref" in schema:
            reference = str(schema["$ref"])
            if self._path.count(reference) > 2 and self._height(schema, ()) == math.inf:
                return
            rest = {each: value for each, value in schema.items() if each != "$ref"}
            target = _cleaned(found) if isinstance(found := resolve(reference, self._root), Mapping | bool) else {}
            if target is False or len(self._path) > 2 * _END:
                return
            self._path.append(reference)
            try:
                yield from self._values(_merged(_mapped(target), rest), name, turn, depth)
            finally:
                self._path.pop()
            return
        if "const" in schema:
            yield schema["const"]
            return
        if options := _listed(schema.get("enum")):
            yield from (options[(turn + place) % len(options)] for place in range(len(options)))
            return
        if "allOf" in schema:
            rest = {each: value for each, value in schema.items() if each != "allOf"}
            for part in _listed(schema["allOf"]):
                if part is False:
                    return
                rest = _merged(rest, _mapped(part))
            if not same(rest, schema):
                yield from self._values(rest, name, turn, depth)
                return
        for word in ("anyOf", "oneOf"):
            if branches := _listed(schema.get(word)):
                rest = {each: value for each, value in schema.items() if each != word}
                for branch in self._ordered(branches, depth):
                    yield from islice(self._values(_merged(rest, branch), name, turn, depth), TRIES // 2)
                return
        if "if" in schema:
            rest = {each: value for each, value in schema.items() if each not in ("if", "then", "else")}
            holds = _merged(_merged(rest, _mapped(schema["if"])), _mapped(schema.get("then")))
            yield from self._values(holds, name, turn, depth)
            yield from self._values(_merged(rest, _mapped(schema.get("else"))), name, turn, depth)
            return
        for kind in self._kinds(schema, depth):
            yield from self._of_kind(kind, schema, name, turn, depth)

    def _ordered(self, branches: list[Any], depth: int) -> list[Mapping[str, Any]]:
        """Null last; where an end must be found, the branch with the nearest one first."""
        usable = [_mapped(branch) for branch in branches if branch is not False]
        if self._lean(depth):
            return sorted(usable, key=lambda branch: self._height(branch, ()))
        return sorted(usable, key=lambda branch: branch.get("type") == "null")

    def _height(self, schema: Any, seen: tuple[str, ...]) -> float:
        """How many levels of values it takes at least; infinite: there is no end."""
        if self._patience.ends():
            return math.inf
        schema = _mapped(schema)
        if "const" in schema or "enum" in schema:
            return 0
        least = 0.0
        if "$ref" in schema:
            reference = str(schema["$ref"])
            if reference in seen:
                return math.inf
            least = self._height(resolve(reference, self._root), (*seen, reference))
        if len(seen) > 20:
            return math.inf
        for part in _listed(schema.get("allOf")):
            least = max(least, self._height(part, seen))
        for word in ("anyOf", "oneOf"):
            if branches := _listed(schema.get(word)):
                least = max(least, min(self._height(branch, seen) for branch in branches))
        kinds = schema.get("type")
        if isinstance(kinds, list) and {*kinds} - {"object", "array"}:
            return least
        properties = _mapped(schema.get("properties"))
        for each in _listed(schema.get("required")):
            least = max(least, 1 + self._height(properties.get(each), seen))
        if _whole(schema.get("minItems"), 0) > 0:
            for part in [*_listed(schema.get("prefixItems")), schema.get("items")]:
                least = max(least, 1 + self._height(part, seen))
        return least

    def _kinds(self, schema: Mapping[str, Any], depth: int) -> Iterable[str]:
        named = schema.get("type")
        if named is None:
            hinted = [kind for kind, words in _HINTS.items() if any(word in schema for word in words)]
            return [*hinted, *(kind for kind in _ORDER if kind not in hinted)]
        kinds = [named] if isinstance(named, str) else _listed(named)
        simple = ("object", "array") if self._lean(depth) else ("null",)
        return sorted((kind for kind in kinds if isinstance(kind, str)), key=lambda kind: kind in simple)

    def _of_kind(self, kind: str, schema: Mapping[str, Any], name: str, turn: int, depth: int) -> Iterator[Any]:
        if kind == "null":
            yield None
        elif kind == "boolean":
            yield from (turn % 2 == 0, turn % 2 == 1)
        elif kind == "string":
            yield from self._strings(schema, name, turn)
        elif kind in ("number", "integer"):
            yield from _numbers(schema, turn, whole=kind == "integer")
        elif kind == "array":
            yield from self._arrays(schema, name, turn, depth)
        elif kind == "object":
            yield from self._objects(schema, turn, depth)

    def _strings(self, schema: Mapping[str, Any], name: str, turn: int) -> Iterator[str]:
        if schema.get("contentMediaType") == "application/json":
            inner = self.pick(_cleaned(schema.get("contentSchema", {})), name, turn, 1)
            if inner is not _NOTHING:
                yield json.dumps(inner)
        if text := _FORMATS.get(str(schema.get("format"))):
            if turn:  # another one: its last figure counts up
                text = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + turn) % 10), text)
            yield text
        if isinstance(pattern := schema.get("pattern"), str):
            yield from sample(pattern, turn)
        least = max(0, _whole(schema.get("minLength"), 0))
        most = _whole(schema.get("maxLength"), max(least, 1 << 20))
        text = f"{self._text} {name}".strip() + (f" {turn + 1}" if turn else "")
        if len(text) > most:  # where it is cut, it shall still differ
            text = (str(turn) if turn else "") + text
        least = min(least, 1 << 20)
        text = text[: max(0, most)]
        yield text + "x" * (least - len(text))

    def _arrays(self, schema: Mapping[str, Any], name: str, turn: int, depth: int) -> Iterator[list[Any]]:
        least = max(0, _whole(schema.get("minItems"), 0))
        most = _whole(schema.get("maxItems"), max(least, 2))
        first = _listed(schema.get("prefixItems"))
        rest = schema.get("items", True if least > len(first) or "contains" in schema else None)
        wanted = least if self._lean(depth) else max(least, min(most, len(first) or 2))
        lengths = [wanted, least] if wanted != least else [least]
        for length in lengths:
            made: list[Any] = []
            if "contains" in schema:
                count = min(max(1, _whole(schema.get("minContains"), 1)), _LONGEST)
                parts = [self.pick(schema["contains"], name, turn + place, depth + 1) for place in range(count)]
                made = [part for part in parts if part is not _NOTHING]
            for place in range(len(made), min(length, _LONGEST)):
                part = first[place] if place < len(first) else rest
                if part is None or part is False:
                    break
                item = self._another(part, name, turn + place, depth, made if schema.get("uniqueItems") is True else [])
                if item is _NOTHING:
                    break
                made.append(item)
            yield made

    def _another(self, schema: Any, name: str, turn: int, depth: int, made: list[Any]) -> Any:
        """An item that is not there yet."""
        for more in range(len(made) + 3):
            item = self.pick(schema, name, turn + more, depth + 1)
            if item is _NOTHING or not any(same(item, other) for other in made):
                return item
        return _NOTHING

    def _objects(self, schema: Mapping[str, Any], turn: int, depth: int) -> Iterator[dict[str, Any]]:
        properties = _mapped(schema.get("properties"))
        required = [each for each in _listed(schema.get("required")) if isinstance(each, str)]
        ordering = [each for each in _listed(schema.get("propertyOrdering")) if isinstance(each, str)]
        ordering = [each for each in ordering if each in properties]
        names = list(dict.fromkeys([*ordering, *properties, *required]))
        most = _whole(schema.get("maxProperties"), 1 << 20)
        optional = [each for each in names if each not in required]
        for kept in ([] if self._lean(depth) else [optional[: max(0, most - len(required))]]) + [[]]:
            made: dict[str, Any] = {}
            for each in names:
                if each in required or each in kept:
                    part = self._property(schema, properties, each)
                    value = self.pick(part, each, turn, depth + 1)
                    if value is not _NOTHING:
                        made[each] = value
            self._fill(schema, made, turn, depth, names, most)
            yield made
        for only in optional[:8]:  # some schemas want one of several
            value = self.pick(self._property(schema, properties, only), only, turn, depth + 1)
            if value is not _NOTHING:
                yield made | {only: value}

    def _property(self, schema: Mapping[str, Any], properties: Mapping[str, Any], name: str) -> Any:
        parts = [part for pattern, part in _mapped(schema.get("patternProperties")).items() if searched(pattern, name)]
        if name in properties:
            parts.insert(0, properties[name])
        if not parts:
            return schema.get("additionalProperties", True)
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def _fill(
        self, schema: Mapping[str, Any], made: dict[str, Any], turn: int, depth: int, names: list[str], most: int
    ) -> None:
        """Properties without a name of their own: of a map, and as many as there must be."""
        least = _whole(schema.get("minProperties"), 0)
        extra = schema.get("additionalProperties")
        is_map = (isinstance(extra, Mapping) or schema.get("patternProperties")) and not names
        wanted = max(least, 1 if is_map and not self._lean(depth) else 0)
        for place in range(min(wanted, most, 200) * 2):
            if len(made) >= min(wanted, most):
                return
            name = self._name(schema, place)
            if name is None or name in made:
                continue
            value = self.pick(self._property(schema, _mapped(schema.get("properties")), name), name, turn, depth + 1)
            if value is not _NOTHING:
                made[name] = value

    def _name(self, schema: Mapping[str, Any], place: int) -> str | None:
        names = schema.get("propertyNames")
        if names is not None:
            found = self.pick(_merged({"type": "string"}, _mapped(names)), "name", place, 1)
            return found if isinstance(found, str) else None
        if schema.get("additionalProperties", True) is False:
            for pattern in _mapped(schema.get("patternProperties")):
                return next(iter(sample(pattern, place)), None)
        return f"key{place + 1}"


def _numbers(schema: Mapping[str, Any], turn: int, *, whole: bool) -> Iterator[Any]:
    low, high = _bound(schema, "minimum", "exclusiveMinimum", max), _bound(schema, "maximum", "exclusiveMaximum", min)
    step = schema.get("multipleOf")
    unit = Fraction(str(step)) if is_number(step) and step > 0 else Fraction(1)
    if whole and unit.denominator != 1:
        unit = Fraction(unit.numerator)
    start = Fraction(1) if low is None and high is None else low if low is not None else high
    assert start is not None
    first = math.ceil(start / unit) if low is not None or high is None else math.floor(start / unit)
    down = low is None and high is not None
    places = [1 + turn] if (low is None or low <= 1) and (high is None or high >= unit) else []
    places += [first + (-offset if down else offset) for offset in (turn, turn + 1, 0, 1, -1)]
    for place in places:
        yield _plain(place * unit, whole)
    if not whole:  # what lies between those
        half = Fraction(1, 2)
        between = [(low + high) / 2, low] if low is not None and high is not None else [start + half, start - half]
        yield from map(float, between)


def _bound(schema: Mapping[str, Any], name: str, exclusive: str, which: Any) -> Fraction | None:
    found = [schema[each] for each in (name, exclusive) if is_number(schema.get(each)) and math.isfinite(schema[each])]
    return Fraction(str(which(found))) if found else None


def _plain(value: Fraction, whole: bool) -> Any:
    if value.denominator == 1:
        return int(value)
    return int(value) if whole else float(value)
