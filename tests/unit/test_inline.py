import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import inline
from jobs.errors import InvalidRequest, PayloadTooLarge

PARAMS = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}


def element(custom_id: Any = "a", **params: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "params": {**PARAMS, **params}}


def read(body: bytes, chunk: int = 1_000_000, max_bytes: int = 10**9, max_request_bytes: int = 10**6) -> list[bytes]:
    lines: list[bytes] = []

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    asyncio.run(inline.receive(stream(), lines.append, max_bytes=max_bytes, max_request_bytes=max_request_bytes))
    return lines


def refused(body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value.message


def test_each_request_becomes_a_line() -> None:
    requests = [element("a"), element("b", system="s")]
    lines = [json.loads(line) for line in read(json.dumps({"requests": requests}).encode())]
    assert lines == [
        {"custom_id": each["custom_id"], "method": "POST", "url": "/v1/messages", "body": each["params"]}
        for each in requests
    ]


@given(
    contents=st.lists(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5), min_size=1),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_any_json_comes_through_however_it_is_cut(
    contents: list[Any], indent: Any, ascii_only: bool, chunk: int
) -> None:
    requests = [element(str(number), x=content) for number, content in enumerate(contents)]
    body = json.dumps({"requests": requests}, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    splitter = inline.Splitter(10**6)
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    found = [request for piece in pieces for _, request in splitter.feed(piece)]
    assert [json.loads(request) for request in found] == json.loads(body)["requests"]
    assert json.loads(splitter.envelope()) == {"requests": [{}] * len(contents)}


@pytest.mark.parametrize(
    "text", [rb'"\u00e9 \ud83d\ude00 \\ \" ]}"', b"123456789012345678901234567890", b"1.10e400", b'{"a":1,"a":2}']
)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_params_are_passed_on_byte_for_byte(text: bytes, chunk: int) -> None:
    params = b'{"max_tokens": 1, "x": ' + text + b"}"
    (line,) = read(b'{"requests": [{"custom_id": "a", "params": ' + params + b"}]}", chunk)
    assert line == b'{"custom_id":"a","method":"POST","url":"/v1/messages","body":' + params + b"}\n"


def test_a_body_with_line_ends_makes_one_line_each() -> None:
    body = json.dumps({"requests": [element(), element("b")]}, indent=4).replace("\n", "\r\n").encode()
    lines = read(body)
    assert [line.count(b"\n") for line in lines] == [1, 1]
    assert b"\r" not in b"".join(lines)
    assert json.loads(lines[1])["body"] == PARAMS


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body: not valid JSON."),
        (b"{", "The body: not valid JSON."),
        (b"[]", "The body: Expected `object`, got `array`."),
        ({}, "requests: Field required."),
        ({"requests": {}}, "requests: Expected `array`, got `object`."),
        ({"requests": []}, "requests: at least one is needed."),
        ({"requests": [1]}, "requests.0: Expected `object`, got `int`."),
        ({"requests": [element(), []]}, "requests.1: Expected `object`, got `array`."),
        ({"requests": [element()], "more": 1}, "The body: Object contains unknown field `more`."),
        ({"requests": [{}]}, "requests.0.custom_id: Field required."),
        ({"requests": [{"custom_id": "a"}]}, "requests.0.params: Field required."),
        ({"requests": [{**element(), "url": "/x"}]}, "requests.0: Object contains unknown field `url`."),
        ({"requests": [{"custom_id": "a", "params": 1}]}, "requests.0.params: Expected `object`, got `int`."),
        ({"requests": [{"custom_id": "a", "params": {}}]}, "requests.0.params.max_tokens: Field required."),
        ({"requests": [element(), element(3)]}, "requests.1.custom_id: Expected `str`, got `int`."),
        ({"requests": [element(max_tokens=0)]}, "requests.0.params.max_tokens: Expected `int` >= 1."),
        ({"requests": [element(max_tokens="9")]}, "requests.0.params.max_tokens: Expected `int`, got `str`."),
        (b'{"requests": [{"custom_id": "a", "params": {"max_tokens": NaN}}]}', "requests.0: not valid JSON."),
        (b'{"requests": [{"custom_id": "a", "params": {"x": "\n"}}]}', "requests.0: not valid JSON."),
        (b'{"requests": [{"custom_id": "a"]]}', "requests.0: not valid JSON."),
        (b'{"requests": [{"custom_id": "\\ud800", "params": {}}]}', "requests.0: not valid JSON."),
        (json.dumps({"requests": [element()]}).encode() + b"x", "The body: not valid JSON."),
        (json.dumps({"requests": [element()]}).encode()[:-1], "The body: not valid JSON."),
        (json.dumps({"requests": [element()]}).encode()[:-3], "The body: not valid JSON."),
        (b'{"requests": [%b], "requests": []}' % json.dumps(element()).encode(), "requests: at least one is needed."),
        (
            b'{"requests": [%b], "requests": [%b, %b]}' % ((json.dumps(element()).encode(),) * 3),
            "requests: given twice.",
        ),
        (b'{"requests": [' + b"[" * 100_000, "requests.0: Expected `object`, got `array`."),
        (
            b'{"requests": [{"custom_id": "a", "params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
            "requests.0: not valid JSON.",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(body: Any, message: str) -> None:
    assert refused(body) == message


@pytest.mark.parametrize("custom_id", ["", "a b", "é", "x" * 65, "a.b"])
def test_custom_ids_are_those_of_the_contract(custom_id: str) -> None:
    assert refused({"requests": [element(custom_id)]}).startswith("requests.0.custom_id: ")


def test_a_body_too_long_is_refused_while_it_arrives() -> None:
    with pytest.raises(PayloadTooLarge):
        read(json.dumps({"requests": [element()] * 100}).encode(), chunk=50, max_bytes=1_000)


def test_a_request_too_long_is_refused_while_it_arrives() -> None:
    splitter = inline.Splitter(1_000)
    assert list(splitter.feed(b'{"requests": [{}, {"params": "')) == [(0, b"{}")]
    with pytest.raises(InvalidRequest, match=r"requests\.1: longer than 1000 bytes\."):
        for _ in range(100):
            list(splitter.feed(b"x" * 20))


def test_a_body_of_nothing_but_space_is_refused_while_it_arrives() -> None:
    splitter = inline.Splitter(1_000)
    with pytest.raises(InvalidRequest):
        for _ in range(inline.MAX_ENVELOPE_BYTES // 1_000_000 + 1):
            list(splitter.feed(b" " * 1_000_000))
