from hypothesis import given
from hypothesis import strategies as st

from jobs import pgcopy

FIELDS = st.lists(st.none() | st.binary(max_size=50), min_size=1, max_size=5)


@given(st.lists(FIELDS, max_size=20))
def test_what_is_packed_is_unpacked(rows: list[list[bytes | None]]) -> None:
    packed = b"".join(
        pgcopy.row_start(len(row)) + b"".join(pgcopy.NULL if value is None else pgcopy.field(value) for value in row)
        for row in rows
    )
    assert list(pgcopy.unpack(memoryview(pgcopy.HEADER + packed + pgcopy.TRAILER))) == rows


@given(st.lists(st.binary(max_size=30)), st.integers(1, 40))
def test_pieces_are_the_whole(parts: list[bytes], size: int) -> None:
    pieces = list(pgcopy.pieces(parts, size))
    assert b"".join(pieces) == pgcopy.HEADER + b"".join(parts) + pgcopy.TRAILER
