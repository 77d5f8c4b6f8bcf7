import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import multipart
from jobs.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=frontier"


def body(content: bytes, purpose: bytes = b"batch") -> bytes:
    return (
        b'--frontier\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose + b"\r\n"
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a b.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--frontier--\r\n"
    )


async def pieces(data: bytes, cuts: Iterable[int]) -> AsyncIterator[bytes]:
    last = 0
    for cut in [*sorted(cuts), len(data)]:
        yield data[last:cut]
        last = max(last, cut)


def receive(data: bytes, cuts: Iterable[int] = (), content_type: str = TYPE) -> tuple[multipart.Form, bytes]:
    got: list[bytes] = []
    form = asyncio.run(multipart.receive(pieces(data, cuts), content_type, got.append))
    return form, b"".join(got)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 500), max_size=10))
def test_the_file_arrives_whole_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    form, got = receive(body(content), cuts)
    assert got == content
    assert form == multipart.Form({"purpose": "batch"}, "a b.jsonl")


@pytest.mark.parametrize(
    "data", [body(b"x")[:-10], b"", b"junk", body(b"x", b"y" * 20_000), body(b"x").replace(b'"purpose"', b'"file"')]
)
def test_a_broken_form_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        receive(data)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data"])
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        receive(body(b"x"), content_type=content_type)


def test_headers_of_a_part_are_bounded() -> None:
    with pytest.raises(InvalidRequest):
        receive(b"--frontier\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n")


def test_parts_are_bounded() -> None:
    part = b'--frontier\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
    with pytest.raises(InvalidRequest):
        receive(b"".join(part % number for number in range(30)))


def test_the_part_that_is_streamed_has_any_name_and_learns_what_came_before_it() -> None:
    def field(name: str, value: bytes) -> bytes:
        return f'--frontier\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"

    before: list[dict[str, str]] = []
    got: list[bytes] = []
    data = field("first", b"1") + field("data", b"bytes") + field("file", b"3") + b"--frontier--\r\n"
    stream = pieces(data, range(0, len(data), 7))
    form = asyncio.run(
        multipart.receive(stream, TYPE, got.append, name="data", on_begin=lambda fields: before.append(dict(fields)))
    )
    assert b"".join(got) == b"bytes"
    assert before == [{"first": "1"}]
    assert form.fields == {"first": "1", "file": "3"}
