"""F89: schemas that would stall an engine, or lead it astray, are refused in words; those of everyday life are not."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from workers.engines import schemas, xgrammar_schemas

STRING = {"type": "string"}


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chain(length: int, end: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose references double at each of `length` steps."""
    steps = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, length)}
    return {"$defs": {"a0": end, **steps}, "$ref": f"#/$defs/a{length - 1}"}


BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "deep": (nested(33), "nested deeper"),
    "very deep": (nested(500), "nested deeper"),
    "long": ({"description": "x" * 70_000}, "longer than"),
    "large enum": ({"enum": list(range(501))}, "500 alternatives"),
    "enums that are large together": ({"anyOf": [{"enum": list(range(200))}] * 3}, "500 alternatives"),
    "many members": ({"oneOf": [{"const": n} for n in range(501)]}, "500 alternatives"),
    "many properties": ({"properties": {f"p{n}": STRING for n in range(501)}}, "500 properties"),
    "reference to itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "leads back"),
    "reference to the root": ({"$ref": "#"}, "below '#/'"),
    "two that name each other": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "leads back",
    ),
    "back through alternatives": (
        {"$defs": {"a": {"anyOf": [STRING, {"anyOf": [{"$ref": "#/$defs/a"}]}]}}, "$ref": "#/$defs/a"},
        "leads back",
    ),
    "references that double": (chain(200, STRING), "one place"),
    "a large enum many times": (
        {"$defs": {"a0": {"enum": list(range(400))}}, "anyOf": [{"$ref": "#/$defs/a0"}] * 9},
        "one place",
    ),
    "many patterns in one place": ({"anyOf": [pattern("^a{0,9}$")] * 40}, "one place"),
    "a place that is no schema": ({"properties": {"a": STRING}, "$ref": "#/properties"}, "no schema"),
    "a number": ({"default": 5, "$ref": "#/default"}, "no schema"),
    "remote": ({"$ref": "https://127.0.0.1/schema.json"}, "below '#/'"),
    "a file": ({"$ref": "file:///etc/passwd"}, "below '#/'"),
    "nowhere": ({"$ref": "#/$defs/nope"}, "no schema"),
    "no text": ({"$ref": 5}, "below '#/'"),
    "false": ({"properties": {"a": False}}, "must be an object"),
    "empty string": ({"items": ""}, "must be an object"),
    "counts the wrong way round": ({"type": "string", "minLength": 5, "maxLength": 2}, "is above"),
    "items the wrong way round": ({"type": "array", "minItems": 5, "maxItems": 2}, "is above"),
    "many repetitions": ({"type": "array", "minItems": 100_000}, "0 to 2000"),
    "endless text": ({"type": "string", "maxLength": 10**9}, "0 to 2000"),
    "less than nothing": ({"type": "array", "minItems": -1}, "0 to 2000"),
    "count is a number": ({"type": "array", "minItems": 1.5}, "0 to 2000"),
    "count is true": ({"type": "array", "minItems": True}, "0 to 2000"),
    "limits the wrong way round": ({"type": "integer", "minimum": 5, "maximum": 2}, "above the maximum"),
    "huge limit": ({"type": "integer", "maximum": 10**40}, "2^53"),
    "endless limit": ({"type": "integer", "maximum": float("inf")}, "2^53"),
    "limit of a fraction": ({"type": "number", "minimum": 0}, "integers only"),
    "nested repetition": (pattern("^(a+)+$"), "a group"),
    "nested counts": (pattern("^((a{1,100}){1,100}){1,100}$"), "a group"),
    "optional many times": (pattern("^(a?){1,1000}$"), "a group"),
    "counts of counts": (pattern("^a{1,100}{1,100}$"), "repeated"),
    "many repetitions in a pattern": (pattern("^a{1,100000}$"), "more than 1000"),
    "pattern the wrong way round": (pattern("^a{5,2}$"), "wrong way round"),
    "many stars": (pattern("^" + ".*" * 50 + "$"), "more than 10"),
    "many options": (pattern("^" + "a?" * 90 + "$"), "more than 10"),
    "long pattern": (pattern("^" + "a" * 200 + "$"), "longer than"),
    "pattern without an end": (pattern("a"), "begin with"),
    "pattern is a number": ({"pattern": 5}, "must be a string"),
    "unknown keyword": ({"not": STRING}, "'not' is not supported"),
    "long keyword": ({"x" * 1_000: 1}, "is not supported"),
    "unknown type": ({"type": "frob"}, "unknown"),
    "type is a list of lists": ({"type": [["string"]]}, "unknown"),
    "unknown format": ({"format": "iri"}, "one of"),
    "format is a list": ({"format": ["uuid"]}, "must be a string"),
    "properties are a list": ({"properties": []}, "must be an object"),
    "enum is text": ({"enum": "abc"}, "must be an array"),
    "no alternative": ({"anyOf": []}, "must not be empty"),
    "required is numbers": ({"required": [1]}, "names of properties"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_f89_a_schema_bomb_is_refused_in_words(name: str) -> None:
    schema, words = BOMBS[name]
    with pytest.raises(ValueError, match=words.replace("^", r"\^")) as caught:
        schemas.check(schema)
    assert len(str(caught.value)) < 300


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(min_length=1, max_length=200)
    number: int = Field(ge=1, le=9_999)
    code: str = Field(pattern="^[A-Z]{2}-[0-9]{4,6}$")


class Person(BaseModel):
    name: str
    age: int | None = None
    addresses: list[Address] = Field(max_length=5)
    kind: str = Field("a", json_schema_extra={"enum": ["a", "b"]})
    parent: "Person | None" = None


@pytest.mark.parametrize(
    "schema",
    [
        {},
        Person.model_json_schema(),
        {"type": "object", "properties": {"not": STRING, "enum": STRING}, "additionalProperties": False},
        {"type": ["string", "null"], "format": "date-time"},
        {"type": "array", "prefixItems": [STRING], "items": {"type": "number"}},
        pattern(r"^(\d{3}-)?[a-z(+*)]+\.(com|org)$"),
    ],
)
def test_schemas_of_everyday_life_are_taken(schema: dict[str, Any]) -> None:
    schemas.check(schema)


# What xgrammar would leave out, or break; tests/vllm_engine asks xgrammar itself.
NOT_FOR_XGRAMMAR: dict[str, tuple[dict[str, Any], str]] = {
    "length without a type": ({"minLength": 3}, "'minLength' is only heeded beside 'type'"),
    "required alone": ({"required": ["a"]}, "'required' is only heeded"),
    "required and unknown": ({"type": "object", "required": ["b"]}, "only name what is in 'properties'"),
    "beside a reference": ({"$ref": "#/$defs/a", "$defs": {"a": STRING}, "minLength": 3}, "not heeded beside"),
    "beside an enum": ({"enum": ["a"], "minLength": 3}, "not heeded beside 'enum'"),
    "beside alternatives": ({"anyOf": [STRING], "type": "string"}, "'type' is not heeded beside 'anyOf'"),
    "enum and const": ({"enum": [1], "const": 1}, "not heeded beside 'const'"),
    "enum of another type": (STRING | {"enum": ["a", 1]}, "not of the 'type'"),
    "true is no integer": ({"type": "integer", "enum": [True]}, "not of the 'type'"),
    "several of all": ({"allOf": [STRING, STRING]}, "one member"),
    "length and pattern": (pattern("^a$") | {"maxLength": 3}, "'maxLength' is not heeded beside 'pattern'"),
    "length and format": (STRING | {"format": "email", "minLength": 3}, "'minLength' is not heeded beside 'format'"),
    "format and pattern": (pattern("^a$") | {"format": "email"}, "'format' is not heeded beside 'pattern'"),
    "a format that is not known": (STRING | {"format": "iri"}, "one of"),
    "quotes": (pattern('^"$'), "may not name quotes"),
    "backslash": (pattern(r"^\\$"), "may not name quotes"),
    "quotes by number": (pattern(r"^\u0022$"), "may not name quotes"),
    "line feed": (pattern(r"^\n$"), "may not name quotes"),
    "word boundary": (pattern(r"^\ba$"), "may not name quotes"),
    "reference": (pattern(r"^(a)\1$"), "may not name quotes"),
    "look ahead": (pattern("^(?!a)b$"), "no group that begins with"),
    "end in the middle": (pattern("^a$b$"), "at its ends only"),
    "class in a class": (pattern("^[[:alpha:]]$"), "between brackets"),
    "six decimals": ({"type": "number", "minimum": 0.000001}, "5 decimals"),
    "no number between": ({"type": "number", "minimum": 1, "maximum": 1}, "below the maximum"),
}


@pytest.mark.parametrize("name", NOT_FOR_XGRAMMAR)
def test_what_xgrammar_would_leave_out_is_refused_in_words(name: str) -> None:
    schema, words = NOT_FOR_XGRAMMAR[name]
    with pytest.raises(ValueError, match=words.replace("$", r"\$")):
        schemas.check(schema, xgrammar_schemas.PROFILE)


@pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"limit of a fraction"}))
def test_f89_a_schema_bomb_is_refused_for_xgrammar_too(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        schemas.check(BOMBS[name][0], xgrammar_schemas.PROFILE)


class Reading(BaseModel):
    value: float = Field(ge=-273.15, le=1e6)
    mail: str = Field(json_schema_extra={"format": "email"})
    by_name: dict[str, int] = {}


@pytest.mark.parametrize(
    "schema", [Person.model_json_schema(), Reading.model_json_schema(), pattern(r"^[a-z.]+@x\.(de|com)$")]
)
def test_schemas_of_everyday_life_are_taken_for_xgrammar(schema: dict[str, Any]) -> None:
    schemas.check(schema, xgrammar_schemas.PROFILE)


def test_what_passed_is_known_to_the_rows_that_follow() -> None:
    """And their text is one object: the sandbox finds its verdict without reading it."""
    first, again = ({"type": "string", "title": "Ä", "default": None} for _ in range(2))
    text = schemas.check(first, xgrammar_schemas.PROFILE)
    assert json.loads(text) == first
    assert schemas.check(again, xgrammar_schemas.PROFILE) is text
    assert schemas.check(again) is not text, "another engine heeds something else"
    turned = {"properties": {"b": STRING, "a": STRING}}
    assert list(json.loads(schemas.check(turned))["properties"]) == ["b", "a"], "answers come in this order"


def test_what_is_too_deep_to_be_read_is_too_deep() -> None:
    with pytest.raises(ValueError, match="nested deeper"):
        schemas.check(nested(20_000))
