import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import request

from jobs import lines


def problem(content: bytes) -> lines.LineProblem:
    with pytest.raises(lines.LineProblem) as caught:
        lines.parse(content, max_custom_id_chars=64)
    return caught.value


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in request("a").items() if key != name}


def test_a_request_is_read() -> None:
    line = lines.parse(json.dumps(request("a")).encode(), max_custom_id_chars=64)
    assert (line.custom_id, line.url, line.body.model) == ("a", "/v1/chat/completions", "scripted")


@pytest.mark.parametrize("given", ["", None, [], 5, {"a": 1}, "text"])
def test_what_a_prompt_says_is_the_engines_matter(given: Any) -> None:
    asked = {**request("a"), "url": "/v1/completions", "body": {"model": "scripted", "prompt": given}}
    assert lines.parse(json.dumps(asked).encode(), max_custom_id_chars=64).body.prompt == given
    asked["body"] = {"model": "scripted"}
    assert problem(json.dumps(asked).encode()).param == "body.prompt"


def test_a_key_twice_is_found_beside_colons_in_text_and_without_them() -> None:
    for text in ("plain", "a: b"):
        whole = json.dumps(request("a", text)).encode()
        assert lines.parse(whole, max_custom_id_chars=64).custom_id == "a"
        assert "twice" in problem(whole.replace(b'"model"', b'"model": "first", "model"')).message
    # Written as an escape, one colon more in a text is no colon more in the line.
    balanced = json.dumps(request("a", x="COLON")).replace("COLON", r"\u003A")
    assert lines.parse(balanced.encode(), max_custom_id_chars=64).custom_id == "a"
    assert "twice" in problem(balanced.replace('"x"', '"x": 1, "x"').encode()).message


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"a": 1} x', "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_encoding", None),
        (json.dumps(without("custom_id")).encode(), "missing_required_parameter", "custom_id"),
        (json.dumps(without("method")).encode(), "missing_required_parameter", "method"),
        (json.dumps(without("url")).encode(), "missing_required_parameter", "url"),
        (json.dumps(without("body")).encode(), "missing_required_parameter", "body"),
        (json.dumps({**request("a"), "custom_id": None}).encode(), "missing_required_parameter", "custom_id"),
        (json.dumps({**request("a"), "custom_id": 7}).encode(), "invalid_type", "custom_id"),
        (json.dumps({**request("a"), "body": []}).encode(), "invalid_type", "body"),
        (json.dumps({**request("a"), "method": "GET"}).encode(), "invalid_request", "method"),
        (json.dumps(request("")).encode(), "invalid_request", "custom_id"),
        (json.dumps(request("x" * 65)).encode(), "invalid_request", "custom_id"),
        (json.dumps(request("a\x00b")).encode(), "invalid_request", "custom_id"),
        (json.dumps(request("a\nb")).encode(), "invalid_request", "custom_id"),
        (json.dumps(request("a", model=None)).encode(), "invalid_request", "body.model"),
        (json.dumps(request("a", model="")).encode(), "invalid_request", "body.model"),
        (json.dumps(request("a", model=5)).encode(), "invalid_type", "body.model"),
        (json.dumps(request("a", messages=[])).encode(), "invalid_request", "body.messages"),
        (json.dumps(request("a", messages="hi")).encode(), "invalid_type", "body.messages"),
        (json.dumps(request("a", stream=True)).encode(), "streaming_unsupported", "body.stream"),
        (json.dumps(request("a", stream="yes")).encode(), "invalid_type", "body.stream"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, code: str, param: str | None) -> None:
    found = problem(content)
    assert (found.code, found.param) == (code, param)


@pytest.mark.parametrize(
    ("url", "needed", "param"),
    [
        ("/v1/completions", {"prompt": "x"}, "prompt"),
        ("/v1/embeddings", {"input": ["x"]}, "input"),
        ("/v1/responses", {"input": "x"}, "input"),
        ("/v1/messages", {"messages": [{}]}, "messages"),
        ("/v1/score", {"queries": "x", "documents": ["y"]}, "queries"),
        ("/v1/score", {"queries": "x", "items": ["y"]}, "queries"),
        ("/v1/score", {"text_1": "x", "text_2": ["y"]}, "queries"),
        ("/v1/score", {"data_1": "x", "data_2": ["y"]}, "queries"),
    ],
)
def test_each_endpoint_has_parameters_that_it_cannot_do_without(url: str, needed: dict[str, Any], param: str) -> None:
    def line(body: dict[str, Any]) -> bytes:
        return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **body}}).encode()

    lines.parse(line(needed), max_custom_id_chars=64)
    found = problem(line({}))
    assert (found.code, found.param) == ("invalid_request", f"body.{param}")
    if len(needed) > 1:
        found = problem(line(dict(list(needed.items())[:1])))
        assert (found.code, found.param) == ("invalid_request", "body.documents")


def test_bytes_that_are_no_text_are_found_where_nobody_looks() -> None:
    content = json.dumps(request("a", prompt="PLACE")).encode()
    assert problem(content.replace(b"PLACE", b"\xff\xfe")).code == "invalid_encoding"
    assert problem(content.replace(b"PLACE", b"\\ud800")).code == "invalid_json_line"


def nested(depth: int) -> bytes:
    # The line itself and its body are two levels.
    return json.dumps(request("a", x="DEEP")).encode().replace(b'"DEEP"', b"[" * (depth - 2) + b"]" * (depth - 2))


def test_nesting_is_bounded() -> None:
    """A line of 990 levels once passed here and ended every worker that decoded it."""
    lines.parse(nested(64), max_custom_id_chars=64)
    for depth in (65, 990, 100_000):
        assert problem(nested(depth)).code == "invalid_json_line"
    lines.parse(json.dumps(request("a", prompt="[{" * 500)).encode(), max_custom_id_chars=64)


@pytest.mark.parametrize("value", ["x" * 257, "a\x00b", "a\nb"])
def test_names_are_bounded(value: str) -> None:
    """A model's name is repeated in messages, and goes into the database."""
    assert problem(json.dumps(request("a", model=value)).encode()).param == "body.model"
    assert problem(json.dumps({**request("a"), "url": value}).encode()).param == "url"


def test_a_problem_keeps_no_line_alive() -> None:
    """One exception object raised for every bad line once held all of them by its traceback."""
    assert problem(b"{") is not problem(b"{")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=64))
def test_any_text_may_be_a_custom_id(custom_id: str) -> None:
    content = json.dumps(request(custom_id), ensure_ascii=False).encode()
    assert lines.parse(content, max_custom_id_chars=64).custom_id == custom_id


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    problem(content)


NAMES = st.sampled_from(["a", "b", ":", '"', '":', "\\", "é", "", "k", "K", "k" * 300, "K" * 300])
VALUES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", ":", '":', '\\": ', "{a: 1}", "COLON"]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=3).map(tuple),
    max_leaves=12,
)


def written(value: Any, space: str) -> str:
    """Write JSON whose objects, given as tuples of pairs, may have a key twice. `K` is another spelling of `k`."""
    if isinstance(value, tuple):
        pairs = (
            f"{json.dumps(key).replace('K', chr(92) + 'u006b')}{space}:{space}{written(child, space)}"
            for key, child in value
        )
        return "{" + f",{space}".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(child, space) for child in value) + "]"
    return json.dumps(value).replace("COLON", r"\u003a")


def has_a_key_twice(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = [key.replace("K", "k") for key, _ in value]
        return len(set(keys)) < len(keys) or any(has_a_key_twice(child) for _, child in value)
    return isinstance(value, list) and any(has_a_key_twice(child) for child in value)


@given(VALUES, st.sampled_from(["", " ", "\t"]), st.sampled_from([10, 1_000_000]))
def test_f77_a_key_that_is_there_twice_is_found_wherever_it_is(value: Any, space: str, long: int) -> None:
    line = json.dumps(request("a", x="PLACE")).replace('"PLACE"', written(value, space)).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lines, "LONG_LINE_BYTES", long)
        try:
            lines.parse(line, max_custom_id_chars=64)
            found = False
        except lines.LineProblem as caught:
            found = "twice" in caught.message
    assert found == has_a_key_twice(value)


@pytest.mark.parametrize("size", [1, 60, 100, 300])
def test_f77_a_key_twice_is_found_in_long_lines_however_it_is_spelt(size: int) -> None:
    line = json.dumps(request("a", "x: " * 400_000, x={"PLACE": 1}))
    spelt = line.replace('"PLACE"', f'"{"k" * size}": 1, "{chr(92)}u006b{"k" * (size - 1)}"')
    assert f"'{'k' * min(size, 64)}' twice" in problem(spelt.encode()).message
    other = line.replace('"PLACE"', f'"{"k" * size}": 1, "{"k" * size}l"')
    assert lines.parse(other.encode(), max_custom_id_chars=64).custom_id == "a"


def test_nothing_of_a_long_line_that_is_no_request_is_kept() -> None:
    # An error may live long: it is the cause of the answer's. Letters beyond Latin take four bytes each in memory.
    content = json.dumps(request("a", "\N{GRINNING FACE}" + "x" * 1_000_000, model=None), ensure_ascii=False).encode()
    tracemalloc.start()
    found = problem(content)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.param == "body.model"
    assert kept < 100_000
    assert peak < 12_000_000
