"""Postgres' binary COPY format, as far as it is needed here. Pure.

Source: PostgreSQL documentation, "COPY", section "Binary Format". Packing rows ourselves is faster than psycopg's
`write_row` and much faster than text (docs/decisions/0002).
"""

import struct
from collections.abc import Iterable, Iterator

HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
NULL = struct.pack(">i", -1)
# What is handed to the driver at once.
PIECE_BYTES = 262_144

_int16 = struct.Struct(">h")
_int32 = struct.Struct(">i")
pack_length = _int32.pack


def pieces(rows: Iterable[bytes], size: int = PIECE_BYTES) -> Iterator[bytes]:
    """Yield a whole COPY in pieces of `size` to twice `size` bytes: the driver keeps room for the longest."""
    small: list[bytes] = [HEADER]
    small_bytes = 0
    for part in rows:
        if len(part) > size:
            yield b"".join(small)
            yield from (part[start : start + size] for start in range(0, len(part), size))
            small, small_bytes = [], 0
            continue
        small.append(part)
        small_bytes += len(part)
        if small_bytes >= size:
            yield b"".join(small)
            small, small_bytes = [], 0
    yield b"".join((*small, TRAILER))


def row_start(fields: int) -> bytes:
    return _int16.pack(fields)


def field(value: bytes) -> bytes:
    """Pack text (as UTF-8) or bytea."""
    return _int32.pack(len(value)) + value


def int4(value: int | None) -> bytes:
    return NULL if value is None else struct.pack(">ii", 4, value)


def int2(value: int | None) -> bytes:
    return NULL if value is None else struct.pack(">ih", 2, value)


def int8(value: int) -> bytes:
    return struct.pack(">iq", 8, value)


def boolean(value: bool) -> bytes:  # noqa: FBT001  the value is the argument
    return struct.pack(">i?", 1, value)


def unpack(data: memoryview) -> Iterator[list[memoryview | None]]:
    """Yield the fields of each row of a whole COPY answer, undecoded and uncopied; null is None."""
    position = len(HEADER)
    while (fields := _int16.unpack_from(data, position)[0]) >= 0:
        position += 2
        row: list[memoryview | None] = []
        for _ in range(fields):
            length = _int32.unpack_from(data, position)[0]
            position += 4
            row.append(None if length < 0 else data[position : position + length])
            position += max(length, 0)
        yield row
