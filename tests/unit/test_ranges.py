import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import ranges
from api.ranges import Range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("", None),
        ("bytes=-", None),
        ("items=0-1", None),
        ("bytes=0-1,3-4", None),
        ("bytes=5-2", None),
        ("bytes=" + "0-1," * 10_000, None),
        ("bytes=0-0", Range(0, 1)),
        ("bytes=2-4", Range(2, 3)),
        ("bytes=2-", Range(2, 8)),
        ("bytes=2-99", Range(2, 8)),
        ("bytes=-3", Range(7, 3)),
        ("bytes=-99", Range(0, 10)),
    ],
)
def test_one_range_is_read_and_anything_else_is_all(header: str | None, wanted: Range | None) -> None:
    assert ranges.parse(header, 10) == wanted


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_what_is_not_there_cannot_be_had(header: str) -> None:
    with pytest.raises(ranges.Unsatisfiable):
        ranges.parse(header, 10)


@given(start=st.integers(0, 30), end=st.integers(0, 30), size=st.integers(1, 20))
def test_a_range_is_the_slice(start: int, end: int, size: int) -> None:
    data = bytes(range(size))
    try:
        found = ranges.parse(f"bytes={start}-{end}", size)
    except ranges.Unsatisfiable:
        assert not data[start:]
        return
    if found:
        assert data[found.start : found.start + found.length] == data[start : end + 1]
