"""Every keyword that is accepted is heeded: xgrammar's own grammars are asked for texts that the schema forbids."""

import json
from typing import Any

import pytest
import xgrammar
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar
from vllm.v1.structured_output.utils import choice_as_grammar
from xgrammar.testing import _is_grammar_accept_string as accepts

from workers.engines import schemas, vllm_parameters, xgrammar_schemas
from workers.engines.vllm_parameters import Rules, VllmChat

Schema = dict[str, Any]
STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def object_(**rest: Any) -> Schema:
    return {"type": "object", **rest}


def array(**rest: Any) -> Schema:
    return {"type": "array", **rest}


def pattern(text: str) -> Schema:
    return STRING | {"pattern": text}


# (what it shows, schema, a value that fits, one that does not)
HEEDED: list[tuple[str, Schema, Any, Any]] = [
    ("type", STRING, "a", 1),
    ("type", {"type": ["string", "null"]}, None, 1),
    ("enum", {"enum": ["a", 1, None]}, None, "b"),
    ("enum", STRING | {"enum": ["a", "b"]}, "b", "c"),
    ("const", {"const": 1}, 1, 2),
    ("const", {"const": "a", "type": "string"}, "a", "b"),
    ("properties", object_(properties={"a": STRING}), {"a": "x"}, {"a": 1}),
    ("properties", {"properties": {"a": STRING}}, {"a": "x"}, {"a": 1}),
    ("required", object_(properties={"a": STRING}, required=["a"]), {"a": "x"}, {}),
    ("required", {"properties": {"a": STRING}, "required": ["a"]}, {"a": "x"}, {}),
    ("additionalProperties", object_(properties={"a": STRING}, additionalProperties=False), {"a": "x"}, {"b": 1}),
    ("additionalProperties", object_(additionalProperties=STRING), {"a": "x"}, {"a": 1}),
    ("additionalProperties", {"additionalProperties": False}, {}, {"a": 1}),
    ("items", array(items=STRING), ["a"], [1]),
    ("items", {"items": STRING}, ["a"], [1]),
    ("items", array(items=False), [], [1]),
    ("prefixItems", array(prefixItems=[STRING], items=INTEGER), ["a", 1], ["a", "b"]),
    ("prefixItems", {"prefixItems": [STRING]}, ["a"], [1]),
    ("minItems", array(items=STRING, minItems=2), ["a", "b"], ["a"]),
    ("minItems", {"items": STRING, "minItems": 2}, ["a", "b"], ["a"]),
    ("minItems", array(prefixItems=[STRING], items=INTEGER, minItems=3), ["a", 1, 1], ["a", 1]),
    ("maxItems", array(items=STRING, maxItems=2), ["a", "b"], ["a", "b", "c"]),
    ("maxItems", array(items=STRING, maxItems=0), [], ["a"]),
    ("minLength", STRING | {"minLength": 2}, "ab", "a"),
    ("minLength", {"type": ["string", "null"], "minLength": 2}, "ab", "a"),
    ("maxLength", STRING | {"maxLength": 2}, "ab", "abc"),
    ("pattern", pattern("^a$"), "a", "b"),
    ("pattern", pattern(r"^\d{2,3}$"), "12", "1"),
    ("pattern", pattern(r"^[^a]\S\w\W$"), "bxy-", "axy-"),
    ("pattern", pattern(r"^(?:ab|c)\.[\w+\-]+$"), "c.x-y", "d.x"),
    ("pattern", pattern("^.$"), "é", "éé"),
    ("anyOf", {"anyOf": [STRING, INTEGER]}, 1, 1.5),
    ("oneOf", {"oneOf": [STRING, INTEGER]}, 1, 1.5),
    ("allOf", {"allOf": [STRING]}, "a", 1),
    ("$ref", {"$ref": "#/$defs/a", "$defs": {"a": STRING}, "description": "x"}, "a", 1),
    ("$defs", {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": STRING}}, ["a"], [1]),
    ("definitions", {"$ref": "#/definitions/a", "definitions": {"a": STRING}}, "a", 1),
    ("minimum", INTEGER | {"minimum": 3}, 3, 2),
    ("maximum", INTEGER | {"maximum": 3}, 3, 4),
    ("exclusiveMinimum", INTEGER | {"exclusiveMinimum": 3}, 4, 3),
    ("exclusiveMaximum", INTEGER | {"exclusiveMaximum": 3}, 2, 3),
    ("exclusiveMinimum", INTEGER | {"minimum": 3, "exclusiveMinimum": 5}, 6, 5),
    ("minimum", INTEGER | {"minimum": 7, "exclusiveMinimum": 5}, 7, 6),
    ("minimum", NUMBER | {"minimum": 3}, 3.5, 2.9),
    ("maximum", NUMBER | {"minimum": 0, "maximum": 1}, 0.5, 1.5),
    ("exclusiveMinimum", NUMBER | {"exclusiveMinimum": 3}, 3.1, 3),
    ("exclusiveMaximum", NUMBER | {"exclusiveMaximum": -0.5}, -0.6, -0.5),
    ("exclusiveMaximum", NUMBER | {"exclusiveMinimum": 0.1, "exclusiveMaximum": 0.10001}, 0.100005, 0.1),
    ("minimum", {"type": ["number", "null"], "minimum": 0}, 1, -1),
]
FORMATS = {
    "date": "2026-11-24",
    "time": "10:00:00Z",
    "date-time": "2026-11-24T10:00:00Z",
    "duration": "P1D",
    "email": "a@b.cd",
    "hostname": "a.b",
    "ipv4": "1.2.3.4",
    "ipv6": "::1",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "uri": "http://a.b/c",
    "uri-reference": "/a",
    "uri-template": "/a/{b}",
    "json-pointer": "/a",
    "relative-json-pointer": "1/a",
}
HEEDED += [("format", STRING | {"format": name}, value, "\\ {{ no") for name, value in FORMATS.items()]


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(("keyword", "schema", "fits", "does_not"), HEEDED)
def test_an_accepted_keyword_is_heeded(keyword: str, schema: Schema, fits: Any, does_not: Any) -> None:
    schemas.check(schema, xgrammar_schemas.PROFILE)
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema))
    assert accepts(grammar, text(fits))
    assert not accepts(grammar, text(does_not))
    assert not accepts(grammar, ""), "nothing is no JSON"


def test_every_accepted_keyword_is_shown_to_be_heeded() -> None:
    means_nothing = schemas.ANNOTATIONS | schemas.NOTES
    assert {keyword for keyword, *_ in HEEDED} == schemas.KEYWORDS - means_nothing
    assert FORMATS.keys() == xgrammar_schemas.FORMATS


# (schema, a value that it forbids and the grammar lets out)
LEFT_OUT: list[tuple[Schema, Any]] = [
    ({"minLength": 3}, "a"),
    ({"minimum": 3}, 2),
    ({"pattern": "^a$"}, "b"),
    ({"format": "uuid"}, "b"),
    ({"required": ["a"]}, {}),
    ({"minItems": 2}, [1]),
    (object_(required=["b"]), {}),
    (object_(properties={"a": STRING}, required=["b"]), {"a": "x"}),
    ({"additionalProperties": STRING, "required": ["a"]}, {}),
    (STRING | {"enum": ["a", "bbb"], "minLength": 2}, "a"),
    (STRING | {"enum": ["a", 1]}, 1),
    ({"const": 1, "enum": [1, 2], "type": "string"}, 1),
    ({"anyOf": [STRING, INTEGER], "type": "string"}, 1),
    (object_(properties={"a": STRING}, anyOf=[{"properties": {"a": STRING}}], required=["a"]), {}),
    ({"$ref": "#/$defs/a", "$defs": {"a": STRING}, "minLength": 3}, "a"),
    ({"allOf": [STRING, {"type": "string", "minLength": 3}]}, "a"),
    (STRING | {"pattern": "^a*$", "maxLength": 1}, "aa"),
    (STRING | {"format": "email", "maxLength": 1}, "a@b.cd"),
    (pattern("^(?!a)a$"), "a"),
    (pattern("^a$b$"), "ab"),
    (array(items=STRING, uniqueItems=True), ["a", "a"]),
    ({"not": STRING}, "a"),
    (STRING | {"format": "idn-email"}, "no"),
]


@pytest.mark.parametrize(("schema", "forbidden"), LEFT_OUT)
def test_what_xgrammar_leaves_out_is_refused(schema: Schema, forbidden: Any) -> None:
    assert accepts(xgrammar.Grammar.from_json_schema(json.dumps(schema)), text(forbidden)), "it is heeded by now"
    with pytest.raises(ValueError, match=r"\w"):
        schemas.check(schema, xgrammar_schemas.PROFILE)


@pytest.mark.parametrize(("written", "broken"), [('^"$', '"""'), (r"^\\$", '"\\"'), (r"^\n$", '"\n"')])
def test_a_pattern_that_would_break_the_answer_is_refused(written: str, broken: str) -> None:
    assert accepts(xgrammar.Grammar.from_json_schema(json.dumps(pattern(written))), broken), "it is escaped by now"
    with pytest.raises(ValueError, match="may not name"):
        schemas.check(pattern(written), xgrammar_schemas.PROFILE)


def test_a_range_without_a_value_is_refused() -> None:
    schema = NUMBER | {"exclusiveMinimum": 1, "exclusiveMaximum": 1.0000001}
    assert accepts(xgrammar.Grammar.from_json_schema(json.dumps(schema)), ""), "it is an error by now"
    with pytest.raises(ValueError, match="decimals"):
        schemas.check(schema, xgrammar_schemas.PROFILE)


# What vLLM looks for when it admits a request, in 0.26 and in 0.33.
UNSUPPORTED: list[Schema] = [
    INTEGER | {"multipleOf": 3},
    array(items=STRING, uniqueItems=True),
    array(contains=STRING),
    array(minContains=1),
    STRING | {"format": "iri"},
    STRING | {"pattern": "^a$", "maxLength": 3},
    STRING | {"format": "date", "minLength": 3},
    {"type": ["string", "null"], "format": "date", "minLength": 3},
    object_(patternProperties={"^a$": STRING}),
    object_(patternProperties={"^a$": STRING}, properties={"a": STRING}),
    object_(propertyNames={"pattern": "^a$"}),
    object_(propertyNames={"pattern": "^a$", "maxLength": 3}),
    object_(propertyNames={"maxLength": 3}, properties={"a": STRING}),
    {"allOf": [STRING, {"enum": ["a"]}]},
    {"properties": {"a": {"items": INTEGER | {"multipleOf": 2}}}},
]


@pytest.mark.parametrize("schema", UNSUPPORTED)
def test_what_vllm_refuses_is_refused_with_a_reason(schema: Schema) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        schemas.check(schema, xgrammar_schemas.PROFILE)


@pytest.mark.parametrize("schema", [schema for _, schema, *_ in HEEDED])
def test_what_is_accepted_is_accepted_by_vllm(schema: Schema) -> None:
    validate_xgrammar_grammar(SamplingParams(structured_outputs=StructuredOutputsParams(json=schema)))


def test_choices_make_the_same_grammar() -> None:
    choices = ["a", 'say "b"', "c\\d", "é", "[x] | y"]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "structured_outputs": {"choice": choices}}
    (found,) = vllm_parameters.constraints(vllm_parameters.check(VllmChat, body, Rules()))
    assert found.text == choice_as_grammar(choices)


def test_a_forced_call_is_compiled_from_the_schema_that_vllm_makes_of_tools() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.utils import get_json_schema_from_tools

    given = object_(properties={"a": {"$ref": "#/$defs/s"}}, **{"$defs": {"s": STRING}})
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (("f", given), ("g", None))
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": "required"}
    taken = vllm_parameters.check(VllmChat, body, Rules(tools=True))
    (found,) = vllm_parameters.constraints(taken)
    request = ChatCompletionRequest(**vllm_parameters.request(taken))
    assert json.loads(found.text) == get_json_schema_from_tools(request.tool_choice, request.tools)
