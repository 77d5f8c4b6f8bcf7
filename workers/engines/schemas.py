"""What the JSON schema of an answer may be: an allow-list of keywords, with bounds. Pure.

A profile says what one engine heeds of it; the one for xgrammar is in `xgrammar_schemas`.

An engine turns a schema into a grammar before the first token, on the thread that serves everybody. Of what is refused
here, llama.cpp (xllamacpp 2026.10) hangs on `minLength` above `maxLength` and on `^(a?){1,1000}$`, takes 20 to 40
seconds for 3,000 alternatives or 2,500 properties, reads some keywords without heeding them, and writes grammars that
it cannot read to stderr, with the client's words in them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

Schema = dict[str, Any]

# Ours. What they allow together takes the engine two or three seconds at most.
MAX_BYTES, MAX_DEPTH, MAX_ALTERNATIVES, MAX_PROPERTIES = 65_536, 32, 500, 500
# The grammar's own bound on repetitions.
MAX_COUNT = 2_000
# Doubles hold integers up to here without loss.
MAX_NUMBER = 2**53
MAX_PATTERN_CHARS, MAX_PATTERN_COUNTS, MAX_PATTERN_COUNT = 200, 10, 1_000
MAX_QUOTED_CHARS = 64
# With references followed: a reference costs nothing, what it names is counted each time.
MAX_CHOICES, REPETITION_CHOICES = 1_500, 50

TOO_DEEP = f"the schema is nested deeper than {MAX_DEPTH} levels"
# Schemas that are known to pass; 50 MB at most.
REMEMBERED = 256

TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
NOTES = {"$schema", "$id", "$comment"}
LISTS, MAPS = ("anyOf", "oneOf", "allOf", "prefixItems"), ("properties", "$defs", "definitions")
COUNTS = (("minLength", "maxLength"), ("minItems", "maxItems"))
LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
KEYWORDS = (
    {"type", "enum", "const", "required", "items", "additionalProperties", "$ref", "pattern", "format"}
    | ANNOTATIONS
    | NOTES
    | {*LISTS, *MAPS, *LIMITS}
    | {keyword for pair in COUNTS for keyword in pair}
)

ESCAPED_OR_CLASS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_QUANTIFIER = re.compile(r"[*+?]|\{([0-9]*)(,?)([0-9]*)\}")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEATED_REPETITION = re.compile(r"[*+?}][*+?{]")


@dataclass(frozen=True)
class Profile:
    """What one engine heeds."""

    formats: frozenset[str]
    """Values of `format`."""
    check_node: Callable[[Schema, list[str]], None]
    """Raises `ValueError` for what this engine leaves out of a schema, given its types; its parts are checked alone."""


def _check_llamacpp_node(node: Schema, types: list[str]) -> None:
    require("number" not in types or not any(name in node for name in LIMITS), "bounds are heeded for integers only")


LLAMACPP = Profile(frozenset({"date", "time", "date-time", "uuid"}), _check_llamacpp_node)


def check(schema: Schema, profile: Profile = LLAMACPP) -> str:
    """Make sure that an engine can turn the schema into a grammar, soon, and will heed every word of it.

    Rows of a batch have the same few schemas: what passed is known for a while, and the same text is returned.

    Returns:
        The schema as JSON.

    Raises:
        ValueError: it says why not.
    """
    try:
        content = msgspec.json.encode(schema)
    except RecursionError:
        # Far deeper; it is not read twice to say so.
        content = b""
    require(content != b"", TOO_DEEP)
    return _checked(content, profile)


@lru_cache(maxsize=REMEMBERED)
def _checked(content: bytes, profile: Profile) -> str:
    """Return the text; a problem is an exception, and none of those is kept."""
    schema: Schema = msgspec.json.decode(content)
    nodes = list(_nodes(schema, 0))
    require(len(content) <= MAX_BYTES, f"the schema is longer than {MAX_BYTES} bytes")
    _check_nodes(schema, nodes, profile)
    return json.dumps(schema)


def _check_nodes(schema: Schema, nodes: list[Schema], profile: Profile) -> None:
    for node in nodes:
        _check_node(node, profile)
    _check_references(schema, nodes)
    alternatives = sum(len(node.get(name, ())) for node in nodes for name in ("enum", "anyOf", "oneOf"))
    require(
        alternatives <= MAX_ALTERNATIVES,
        f"the schema has more than {MAX_ALTERNATIVES} alternatives (values of 'enum', members of 'anyOf' and 'oneOf')",
    )
    properties = sum(len(node.get("properties", ())) for node in nodes)
    require(properties <= MAX_PROPERTIES, f"the schema has more than {MAX_PROPERTIES} properties")


def require(fits: bool, message: str) -> None:  # noqa: FBT001  reads as an assertion
    """Raise `ValueError` with the message unless it fits."""
    if not fits:
        raise ValueError(message)


def _nodes(node: Any, depth: int) -> Iterator[Schema]:  # noqa: ANN401  any JSON
    """Yield the schema and every schema in it."""
    require(depth <= MAX_DEPTH, TOO_DEEP)
    require(isinstance(node, dict), "every schema in it must be an object")
    yield node
    for child in _children(node):
        yield from _nodes(child, depth + 1)


def _children(node: Schema) -> Iterator[Any]:
    for name in LISTS:
        yield from _typed(node, name, list, "an array", [])
    for name in MAPS:
        yield from _typed(node, name, dict, "an object", {}).values()
    for name in ("items", "additionalProperties"):
        if not isinstance(node.get(name, True), bool):
            yield node[name]


def _typed(node: Schema, name: str, kind: type, words: str, default: Any) -> Any:  # noqa: ANN401  any JSON
    value = node.get(name, default)
    require(isinstance(value, kind), f"'{name}' must be {words}")
    return value


def _check_node(node: Schema, profile: Profile) -> None:
    if unknown := next((name for name in node if name not in KEYWORDS), None):
        require(False, f"'{unknown[:MAX_QUOTED_CHARS]}' is not supported")  # noqa: FBT003
    types = node.get("type", [])
    types = types if isinstance(types, list) else [types]
    require(all(isinstance(each, str) and each in TYPES for each in types), "a 'type' in it is unknown")
    for name in ("enum", "anyOf", "oneOf", "allOf"):
        require(bool(_typed(node, name, list, "an array", [None])), f"'{name}' must not be empty")
    required = _typed(node, "required", list, "an array", [])
    require(all(isinstance(name, str) for name in required), "'required' holds names of properties")
    known = _typed(node, "format", str, "a string", "uuid") in profile.formats
    require(known, f"'format' may be one of {', '.join(sorted(profile.formats))}")
    for low, high in COUNTS:
        _check_counts(node, low, high)
    _check_limits(node)
    if "pattern" in node:
        _check_pattern(_typed(node, "pattern", str, "a string", ""))
    profile.check_node(node, types)


def _check_counts(node: Schema, low: str, high: str) -> None:
    for name in (low, high):
        value = node.get(name, 0)
        require(type(value) is int and 0 <= value <= MAX_COUNT, f"'{name}' must be an integer from 0 to {MAX_COUNT}")
    require(node.get(low, 0) <= node.get(high, MAX_COUNT), f"'{low}' is above '{high}'")


def _check_limits(node: Schema) -> None:
    for name in (name for name in LIMITS if name in node):
        value = node[name]
        fits = type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_NUMBER
        require(fits, f"'{name}' must be a number between -2^53 and 2^53")
    least = max((node[name] for name in LIMITS[:2] if name in node), default=-MAX_NUMBER)
    most = min((node[name] for name in LIMITS[2:] if name in node), default=MAX_NUMBER)
    require(least <= most, "the minimum is above the maximum")


def _check_pattern(pattern: str) -> None:
    """A small part of regular expressions: what is repeated is one character, and not often."""
    require(len(pattern) <= MAX_PATTERN_CHARS, f"a 'pattern' is longer than {MAX_PATTERN_CHARS} characters")
    require(pattern.startswith("^") and pattern.endswith("$"), "a 'pattern' must begin with '^' and end with '$'")
    plain = ESCAPED_OR_CLASS.sub("x", pattern)
    require(not _REPEATED_GROUP.search(plain), "a group of a 'pattern' is repeated")
    require(not _REPEATED_REPETITION.search(plain), "a repetition of a 'pattern' is repeated")
    quantifiers = list(_QUANTIFIER.finditer(plain))
    require(len(quantifiers) <= MAX_PATTERN_COUNTS, f"a 'pattern' has more than {MAX_PATTERN_COUNTS} repetitions")
    for found in quantifiers:
        low, high = int(found[1] or 0), int(found[3] or found[1] or 0)
        require(low <= high or not found[3], "a repetition of a 'pattern' has its numbers the wrong way round")
        require(max(low, high) <= MAX_PATTERN_COUNT, f"a 'pattern' repeats more than {MAX_PATTERN_COUNT} times")


def _check_references(root: Schema, nodes: list[Schema]) -> None:
    """Follow what stands in the place of a node itself: it must be a schema, not lead back, and not be too much."""
    graph = {id(node): [id(each) for each in _in_its_place(root, node)] for node in nodes}
    require(all(place in graph for places in graph.values() for place in places), "a '$ref' names no schema")
    own = {id(node): _own_choices(node) for node in nodes}
    choices: dict[int, int] = {}
    try:
        for place in TopologicalSorter(graph).static_order():
            choices[place] = own[place] + sum(choices[each] for each in graph[place])
            require(choices[place] <= MAX_CHOICES, f"one place of the schema has more than {MAX_CHOICES} alternatives")
    except CycleError:
        message = "a '$ref' leads back to itself"
        raise ValueError(message) from None


def _own_choices(node: Schema) -> int:
    """Count the ways to begin here, which the engine pursues all at once; a repetition is in many places at a time."""
    repetitions = len(_QUANTIFIER.findall(node["pattern"])) if "pattern" in node else 0
    return max(1, len(node.get("enum", ())), REPETITION_CHOICES * repetitions)


def _in_its_place(root: Schema, node: Schema) -> Iterator[Any]:
    for name in LISTS[:3]:
        yield from node.get(name, ())
    if "$ref" in node:
        yield _target(root, node["$ref"])


def _target(root: Schema, reference: Any) -> Any:  # noqa: ANN401  any JSON
    is_local = isinstance(reference, str) and reference.startswith("#/")
    require(is_local, "a '$ref' may only name a place below '#/' in the schema")
    place: Any = root
    for step in reference.removeprefix("#/").split("/"):
        place = place.get(step) if isinstance(place, dict) else None
    return place
