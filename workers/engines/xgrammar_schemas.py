"""What xgrammar heeds of a JSON schema, so that what it would leave out is refused. Pure.

Found by asking the grammars of xgrammar 0.2.7 for texts that a schema forbids (`test_schema_keywords.py`).
It leaves out, without an error: what stands beside `$ref`, `const`, `enum`, `anyOf`, `oneOf` and `allOf`; bounds whose
`type` is not given; names in `required` that are not in `properties`; lengths beside `pattern` or `format`. Characters
of a `pattern` that JSON writes with a backslash come out bare, and break the answer. A range between two numbers that
has no value of six decimals in it lets nothing out. vLLM 0.26 to 0.33 refuses some of this too
(`v1/structured_output/backend_xgrammar.py`); whatever it refuses is refused here.
"""

import math
import re
from typing import Any

from workers.engines import schemas
from workers.engines.schemas import Schema, require

FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
    | {"uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"}
)
# xgrammar writes six; one more digit for the values between two bounds.
MAX_DECIMALS = 5

_WITHOUT_MEANING = schemas.ANNOTATIONS | schemas.NOTES | {"$defs", "definitions"}
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_NEEDS_TYPE = {*schemas.LIMITS, "minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "required"}
_IMPLIES_TYPE = {"properties", "additionalProperties", "items", "prefixItems"}
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
# What a JSON text writes with a backslash: quotes, backslashes, control characters.
_NEEDS_ESCAPE = re.compile(r'["\x00-\x1f\x7f]|\\[^dDwWsS./$^*+?()\[\]{}|\-_@#%&=:;,<>~`!\' ]')
_BRACKET_IN_CLASS = re.compile(r"\[[^\]\\]*(?:\\.[^\]\\]*)*\[")
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)")


def _check_node(node: Schema, types: list[str]) -> None:
    meant = node.keys() - _WITHOUT_MEANING
    if alone := next((name for name in _ALONE if name in node), None):
        _check_alone(node, alone, types, meant)
        return
    untyped = meant & _NEEDS_TYPE if not types and not meant & _IMPLIES_TYPE else set()
    require(not untyped, f"'{min(untyped, default='')}' is only heeded beside 'type'")
    unknown = set(node.get("required", ())) - node.get("properties", {}).keys()
    require(not unknown, "'required' may only name what is in 'properties' beside it")
    _check_text(node)
    if "number" in types:
        _check_numbers(node)


def _check_alone(node: Schema, alone: str, types: list[str], meant: set[str]) -> None:
    """Check what stands beside a keyword that is heeded alone: nothing, but for the type of given values."""
    beside = meant - {alone} - ({"type"} if alone in ("const", "enum") else set())
    require(not beside, f"'{min(beside, default='')}' is not heeded beside '{alone}'")
    require(alone != "allOf" or len(node["allOf"]) == 1, "'allOf' is heeded with one member only")
    values = [node["const"]] if alone == "const" else node.get("enum", [])
    fit = not types or all(any(_is_of(value, name) for name in types) for value in values)
    require(fit, f"'{alone}' has a value that is not of the 'type'")


def _is_of(value: Any, name: str) -> bool:  # noqa: ANN401  any JSON
    if isinstance(value, bool):
        return name == "boolean"
    whole = isinstance(value, float) and name == "integer" and value.is_integer()
    return whole or isinstance(value, _KINDS[name])


def _check_text(node: Schema) -> None:
    form = next((name for name in ("pattern", "format") if name in node), None)
    if form is None:
        return
    beside = ({"minLength", "maxLength", "format"} - {form}) & node.keys()
    require(not beside, f"'{min(beside, default='')}' is not heeded beside '{form}'")
    if form == "pattern":
        _check_pattern(node["pattern"])


def _check_pattern(pattern: str) -> None:
    require(
        not _NEEDS_ESCAPE.search(pattern),
        "a 'pattern' may not name quotes, backslashes, control characters, or characters by number or name",
    )
    require(not _SPECIAL_GROUP.search(pattern), "a 'pattern' may have no group that begins with '(?', but for '(?:'")
    require(not _BRACKET_IN_CLASS.search(pattern), "a 'pattern' may have no '[' between brackets, but for '\\['")
    within = schemas.ESCAPED_OR_CLASS.sub("x", pattern)[1:-1]
    require("^" not in within and "$" not in within, "a 'pattern' may have '^' and '$' at its ends only")


def _check_numbers(node: Schema) -> None:
    given = [node[name] for name in schemas.LIMITS if name in node]
    exact = all(round(value, MAX_DECIMALS) == value for value in given)
    require(exact, f"bounds of numbers may have {MAX_DECIMALS} decimals")
    least = max((node[name] for name in schemas.LIMITS[:2] if name in node), default=-math.inf)
    most = min((node[name] for name in schemas.LIMITS[2:] if name in node), default=math.inf)
    require(least < most, "the minimum of a number must be below the maximum")


PROFILE = schemas.Profile(FORMATS, _check_node)
