"""Values made for a schema, judged by a validator that others wrote, and Google's form of schemas."""

import json
from datetime import datetime
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_simulator.schema import from_google, instance
from gemini_simulator.validation import matches

CHECKER = jsonschema.FormatChecker()


def valid(schema: Any) -> Any:
    """The instance, after a look by the validator. It is JSON, and the same each time."""
    made = instance(schema)
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(made)
    assert instance(schema) == made
    assert json.loads(json.dumps(made)) == made
    return made


STRING = {"type": "string"}
NODE = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}}
TREE = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/Tree"}, "right": {"$ref": "#/$defs/Tree"}},
            "required": ["left", "right"],
            "additionalProperties": False,
        },
        {"type": "object", "properties": {"leaf": {"type": "string"}}, "required": ["leaf"]},
    ]
}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "null"},
        {"type": ["null", "string"]},
        {"const": {"a": [1, None]}},
        {"enum": ["red", 2, None]},
        {"type": "string", "minLength": 100, "maxLength": 120},
        {"type": "string", "maxLength": 0},
        {"type": "string", "pattern": r"^[A-Z]{2}-\d{4}(x|y)?$"},
        {"type": "string", "pattern": r"^(?!$)[^a-z\s]+\.\w*$", "minLength": 2},
        {"type": "string", "pattern": r"^\d+(\.\d{1,2})?$"},
        {"type": "integer", "minimum": 7},
        {"type": "integer", "maximum": -7},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        {"type": "integer", "minimum": 10, "maximum": 20, "multipleOf": 7},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "minimum": 0.25, "maximum": 0.25},
        {"type": "number", "multipleOf": 0.5, "minimum": 3.2},
        {"type": "array", "items": {"type": "integer"}, "minItems": 5},
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True},
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
        {"type": "array", "items": {"format": "uuid", "type": "string"}, "uniqueItems": True, "minItems": 4},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
        {"type": "array", "maxItems": 0, "items": {"type": "string"}},
        {"type": "array", "contains": {"const": 5}, "minContains": 2},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
        {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}, "minProperties": 1},
        {"type": "object", "patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": False},
        {"type": "object", "required": ["a"], "maxProperties": 1, "properties": {"b": {}, "c": {}}},
        {"type": "object", "properties": {"a": False, "b": {"type": "string"}}},
        {"allOf": [{"properties": {"a": {"minimum": 3}}}, {"properties": {"a": {"type": "integer", "maximum": 3}}}]},
        {"allOf": [{"anyOf": [STRING, {"type": "integer"}]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}]},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}, "type": "object"},
        {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}]},
        {"not": {"type": "string"}},
        {"type": "object", "properties": {"k": {"const": 1}}, "if": {"required": ["k"]}, "then": {"required": ["m"]}},
        {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"},
        {"$defs": {"Node": NODE | {"required": ["value"]}}, "type": "array", "items": {"$ref": "#/$defs/Node"}},
        {"$defs": {"Tree": TREE}, "$ref": "#/$defs/Tree"},
        {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},
        {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["n"]},
        {"$defs": {"A/b": {"type": "boolean"}}, "properties": {"x": {"$ref": "#/$defs/A~1b"}}, "required": ["x"]},
    ],
)  # fmt: skip
def test_what_is_made_is_valid(schema: Any) -> None:
    valid(schema)


@pytest.mark.parametrize(
    "name", ["date-time", "date", "time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "duration", "regex"]
)
def test_formats(name: str) -> None:
    text = valid({"type": "string", "format": name})
    if name == "date-time":
        assert datetime.fromisoformat(text).tzinfo is not None
    assert text != instance({"type": "string"})


def test_json_inside_a_text() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text = instance({"type": "string", "contentMediaType": "application/json", "contentSchema": inner})
    jsonschema.validate(json.loads(text), inner)


def test_every_property_is_filled_in_and_in_the_order_that_is_asked_for() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}, "c": {}},
        "required": ["a"],
        "propertyOrdering": ["c", "b", "a"],
    }
    made = valid(schema)
    assert list(made) == ["c", "b", "a"]
    assert made["b"]


def test_recursion_ends_early() -> None:
    made = valid({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"})
    assert len(json.dumps(made)) < 200
    wide = {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(9)}}
    assert len(json.dumps(valid(wide))) < 20_000
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(30):
        deep = {"type": "object", "properties": {"inner": deep}, "required": ["inner"]}
    valid(deep)


def test_a_schema_that_nothing_satisfies_still_gets_an_answer() -> None:
    for schema in (False, {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, {"$ref": "#"}):
        assert json.dumps(instance(schema))
    assert instance({"type": "string", "minLength": 5, "maxLength": 2})
    assert json.dumps(instance({"type": 5, "properties": 7, "enum": 3, "items": "x", "minItems": "y"}))


def test_the_search_for_what_there_is_not_ends() -> None:
    """Each level alone has a dozen ways to be tried."""
    schema: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 0}
    for _ in range(12):
        optional = {f"p{place}": {"anyOf": [{"type": "string"}, {"type": "integer"}]} for place in range(9)}
        schema = {"type": "object", "properties": {"x": schema, **optional}, "required": ["x"]}
    assert json.dumps(instance(schema))


def test_googles_form_becomes_a_json_schema() -> None:
    google = {
        "type": "OBJECT",
        "properties": {
            "any_of": {"type": "STRING", "nullable": True},  # a property may have any name
            "tags": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["x"]}, "minItems": "2"},
            "either": {"any_of": [{"type": "INTEGER"}, {"type": "STRING"}], "nullable": True},
            "kind": {"type": "STRING", "enum": ["one"], "format": "enum", "nullable": True},
        },
        "required": ["any_of", "tags"],
        "propertyOrdering": ["tags", "any_of"],
    }
    schema = from_google(google)
    assert schema["properties"]["any_of"] == {"type": ["string", "null"]}
    assert schema["properties"]["tags"]["minItems"] == 2
    assert schema["properties"]["either"]["anyOf"][-1] == {"type": "null"}
    made = valid(schema)
    assert list(made)[:2] == ["tags", "any_of"]
    assert made["tags"] == ["x", "x"]
    assert made["kind"] == "one"
    assert from_google({"type": "TYPE_UNSPECIFIED"}) == {}


names = st.sampled_from(["a", "b", "c", "long_name"])
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4)
KINDS = ["string", "integer", "number", "boolean", "null"]


def of_number(kind: str, words: tuple[str, str], low: int, span: int) -> dict[str, Any]:
    return {"type": kind, words[0]: low, words[1]: low + span}


def of_string(low: int, span: int) -> dict[str, Any]:
    return {"type": "string", "minLength": low, "maxLength": low + span}


leaves = st.one_of(
    st.builds(of_number, st.just("integer"), st.just(("minimum", "maximum")), st.integers(-99, 99), st.integers(0, 9)),
    st.builds(
        of_number,
        st.just("number"),
        st.just(("exclusiveMinimum", "exclusiveMaximum")),
        st.integers(-9, 9),
        st.integers(1, 9),
    ),
    st.builds(of_string, st.integers(0, 30), st.integers(0, 9)),
    st.sampled_from(KINDS).map(lambda kind: {"type": kind}),
    st.sampled_from(["date", "uuid", "email", "ipv4"]).map(lambda kind: {"type": "string", "format": kind}),
    st.builds(lambda values: {"enum": values}, st.lists(scalars, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, scalars),
    st.just({"$ref": "#/$defs/Item"}),
    st.just({}),
)


def of_object(properties: dict[str, Any], required: set[str], closed: bool) -> dict[str, Any]:
    made = {"type": "object", "properties": properties, "required": sorted(required & {*properties})}
    return made | ({"additionalProperties": False} if closed else {})


def of_array(items: Any, low: int, span: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + span}


def of_tuple(parts: list[Any]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": parts, "minItems": len(parts)}


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(of_object, st.dictionaries(names, inner, max_size=3), st.sets(names), st.booleans()),
        st.builds(of_array, inner, st.integers(0, 3), st.integers(0, 2)),
        st.builds(of_tuple, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"anyOf": [part, {"type": "null"}]}, inner),
        st.builds(lambda part: {"allOf": [part, {"title": "X"}]}, inner),
        st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner),
    )


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


schemas = st.recursive(leaves, composed, max_leaves=8)
items = st.recursive(leaves.filter(lambda leaf: "$ref" not in leaf), composed, max_leaves=3)
values = st.recursive(scalars, nested, max_leaves=5)


@settings(max_examples=200, deadline=None)
@given(schema=schemas, item=items)
def test_any_schema_that_can_be_satisfied_is(schema: dict[str, Any], item: dict[str, Any]) -> None:
    valid({"$defs": {"Item": {"type": ["object", "null"], "properties": {"of": item}}}, **schema})


@settings(max_examples=200, deadline=None)
@given(schema=schemas, value=values)
def test_our_own_judgement_is_the_validators(schema: dict[str, Any], value: Any) -> None:
    schema = {"$defs": {"Item": {"type": "object", "required": ["a"]}}, **schema}
    assert matches(schema, value, schema) == jsonschema.Draft202012Validator(schema).is_valid(value)


WORDS = (
    "type properties required items prefixItems enum const anyOf oneOf allOf not if then else $ref $defs format "
    "pattern minimum maximum exclusiveMinimum multipleOf minLength maxLength minItems maxItems uniqueItems contains "
    "nullable minProperties maxProperties additionalProperties patternProperties propertyNames propertyOrdering "
    "contentMediaType any_of a b"
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 50)
    | st.floats()
    | st.sampled_from(["#", "#/$defs/a", "#/properties/a", "string", "OBJECT", "array", "^a{3}$", "(", "uuid", "7"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS.split()), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(schema=anything)
def test_no_schema_whatever_breaks_it(schema: Any) -> None:
    assert len(json.dumps(instance(schema))) < 1_000_000
    json.dumps(instance(from_google(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}, "propertyOrdering": [["a"], {}, "a"]},
        {"type": "array", "items": {}, "prefixItems": [{"$ref": "#/prefixItems/\u00b2"}]},
        {"const": {"a": [1]}, "dependentRequired": {"a": [[1], {}]}},
        {"$ref": "#/default", "default": {"type": "object", "required": [["a"], {}]}},
    ],
    ids=["an order of lists", "a place that only looks like a figure", "names needed beside", "names that are lists"],
)
def test_a_schema_with_invalid_names_is_still_answered(schema: Any) -> None:
    json.dumps(instance(schema))


def _next(number: int, branches: int) -> Any:
    return {"anyOf": [{"$ref": f"#/$defs/s{number + 1}"}] * branches}


def _all_of_all(count: int) -> Any:
    properties = {f"p{number}": {"$ref": f"#/$defs/s{number}"} for number in range(count)}
    one = {"type": "object", "properties": properties, "required": list(properties)}
    return {"$defs": {f"s{number}": one for number in range(count)}, "$ref": "#/$defs/s0"}


NOWHERE = {"$defs": {f"s{number}": _next(number, 3) for number in range(30)}, "$ref": "#/$defs/s0"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "contains": {"type": "string"}, "minContains": 10**12},
        NOWHERE,
        {"not": NOWHERE, "type": "string"},
        {"$defs": NOWHERE["$defs"], "const": 1, "allOf": [{"$ref": "#/$defs/s0"}]},
        _all_of_all(12),
    ],
    ids=["contains", "nothing at the end of all ways", "not that", "a constant that all ways refuse", "all of all"],
)
def test_a_few_lines_of_schema_do_not_take_for_ever(schema: Any) -> None:
    """Each would take hours: the test would be ended from outside."""
    json.dumps(instance(schema))
