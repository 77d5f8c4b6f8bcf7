"""Tables as they are read: CSV, TSV, JSONL, Parquet, and text with a row for each line. A block of rows at a time."""

import codecs
import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InvalidRequest

BLOCK_ROWS = 1_000
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
TEXT_COLUMN = "text"
# A cell may be as long as a line of a batch.
csv.field_size_limit(20_000_000)
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True)
class Table:
    """A file of rows. Its columns are known, its rows are read when they are asked for."""

    path: Path
    kind: str
    columns: list[str]
    encoding: str = "utf-8"
    delimiter: str = ","
    has_bom: bool = False
    """Excel takes a CSV file for UTF-8 by it, so that what is made of the file has it too."""


@dataclass
class Block:
    """Rows that follow each other."""

    columns: Sequence[str]
    given: list[list[Any]] = field(default_factory=list)
    """Cells, row by row. Empty where `batch` has them."""
    lines: list[bytes] = field(default_factory=list)
    """Of JSONL: the rows as they were."""
    batch: Any = None
    """Of Parquet: the rows as they were."""

    @cached_property
    def rows(self) -> list[list[Any]]:
        """The cells, row by row, as JSON has them; a key that a JSONL row lacks is None."""
        if self.batch is None:
            return self.given
        columns = [_values(column) for column in self.batch.columns]
        return [list(row) for row in zip(*columns, strict=True)]


def kind_of(path: Path) -> str:
    """Return what a file is by its name.

    Raises:
        InvalidRequest: its suffix says nothing.
    """
    if (kind := KINDS.get(path.suffix.lower())) is None:
        message = f"What is {path}? Its name ends in none of: {' '.join(KINDS)}."
        raise InvalidRequest(message)
    return kind


def open_table(path: Path, *, encoding: str | None = None, delimiter: str | None = None) -> Table:
    """Look at a file and return its columns.

    Args:
        path: the file; its suffix says what it is.
        encoding: of text; None for UTF-8, or UTF-16 if it begins so.
        delimiter: of CSV; None for a comma, or a semicolon if the header has that and no comma.

    Raises:
        InvalidRequest: it cannot be read, the message names the line; or there is no such encoding or delimiter.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return Table(path, kind, list(_parquet(path).schema_arrow.names))
    if kind == "jsonl":
        return Table(path, kind, _keys(path))
    found, has_bom = _encoding(path, encoding)
    if kind == "text":
        return Table(path, kind, [TEXT_COLUMN], found, has_bom=has_bom)
    mark = delimiter or ("\t" if kind == "tsv" else _delimiter(path, found))
    if len(mark) != 1 or mark in '\r\n" ':
        message = f"--delimiter {mark}: it is one character, and no quotation mark, space or line end."
        raise InvalidRequest(message)
    table = Table(path, kind, [], found, mark, has_bom)
    header = next(_csv_rows(table), None)
    if header is None:
        message = f"{path} has no header."
        raise InvalidRequest(message)
    return Table(path, kind, header, found, mark, has_bom)


def blocks(table: Table) -> Iterator[Block]:
    """Yield the rows of a table, `BLOCK_ROWS` at a time.

    Raises:
        InvalidRequest: a row cannot be read; the message names its line.
    """
    if table.kind == "parquet":
        yield from _parquet_blocks(table)
    elif table.kind == "jsonl":
        yield from _jsonl_blocks(table)
    else:
        rows = _text_rows(table) if table.kind == "text" else itertools.islice(_csv_rows(table), 1, None)
        while chunk := list(itertools.islice(rows, BLOCK_ROWS)):
            yield Block(table.columns, chunk)


def _parquet_blocks(table: Table) -> Iterator[Block]:
    try:
        for batch in _parquet(table.path).iter_batches(batch_size=BLOCK_ROWS):
            yield Block(table.columns, batch=batch)
    except pa.ArrowException as error:
        raise InvalidRequest(f"{table.path} cannot be read: {error}") from error


def _encoding(path: Path, named: str | None) -> tuple[str, bool]:
    """Return the encoding of a file, by which a byte order mark is no part of its text, and whether it has one."""
    name = _known(named) if named else None
    with path.open("rb") as file:
        begin = file.read(4)
    if begin.startswith(codecs.BOM_UTF8):
        return "utf-8-sig" if name in (None, "utf-8") else str(named), True
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16" if name in (None, "utf-16-le", "utf-16-be") else str(named), True
    return named or "utf-8", False


def _known(encoding: str) -> str:
    """Return the usual name of an encoding of text."""
    try:
        # Unlike a look-up, this refuses what encodes bytes, like base64.
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InvalidRequest(f"--encoding {encoding}: {error}") from None


def _delimiter(path: Path, encoding: str) -> str:
    with path.open(encoding=encoding, newline="") as file:
        header = _or_bad_line(path, encoding, file.readline)
    return ";" if ";" in header and "," not in header else ","


def _or_bad_line(path: Path, encoding: str, read: Any) -> Any:  # noqa: ANN401  what it reads
    try:
        return read()
    except UnicodeDecodeError as error:
        raise _not_decodable(path, encoding) from error


def _not_decodable(path: Path, encoding: str) -> InvalidRequest:
    """Name the line: decoding works on pieces, whose places say nothing."""
    with path.open("rb") as file:
        number = next((number for number, line in enumerate(file, 1) if not _decodes(line, encoding)), 1)
    return InvalidRequest(f"{path}, line {number} is not {encoding}. Name the encoding: --encoding cp1252, say.")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _csv_rows(table: Table) -> Iterator[list[str]]:
    """Yield header and rows. A blank line is none; in a table of one column it is a row with an empty cell."""
    width = None
    with table.path.open(encoding=table.encoding, newline="") as file:
        reader = csv.reader(file, delimiter=table.delimiter, strict=True)
        while (row := _next_row(table, reader)) is not None:
            if not row and width == 1:
                row = [""]
            if not row:
                continue
            width = width or len(row)
            if len(row) != width:
                message = f"{table.path}, line {reader.line_num} has {len(row)} cells, the header has {width}."
                raise InvalidRequest(message)
            yield row


def _next_row(table: Table, reader: Any) -> list[str] | None:  # noqa: ANN401  csv's reader has no public type
    try:
        return next(reader, None)
    except UnicodeDecodeError as error:
        raise _not_decodable(table.path, table.encoding) from error
    except csv.Error as error:
        raise InvalidRequest(f"{table.path}, line {reader.line_num} is no CSV: {error}") from error


def _text_rows(table: Table) -> Iterator[list[str]]:
    with table.path.open(encoding=table.encoding) as file:
        while line := _or_bad_line(table.path, table.encoding, file.readline):
            yield [line.removesuffix("\n")]


def _objects(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if not content:
                continue
            try:
                yield content, _decode_object(content)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"{path}, line {number} is no JSON object: {error}") from error


def _keys(path: Path) -> list[str]:
    """Return the keys of all rows, in the order in which they are met."""
    keys: dict[str, None] = {}
    for _, row in _objects(path):
        keys.update(dict.fromkeys(row))
    return list(keys)


def _jsonl_blocks(table: Table) -> Iterator[Block]:
    rows = _objects(table.path)
    while chunk := list(itertools.islice(rows, BLOCK_ROWS)):
        cells = [[row.get(name) for name in table.columns] for _, row in chunk]
        yield Block(table.columns, cells, lines=[line for line, _ in chunk])


def _parquet(path: Path) -> Any:  # noqa: ANN401  pyarrow ships no types
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{path} is no Parquet file: {error}") from error


def _values(column: Any) -> list[Any]:  # noqa: ANN401  pyarrow ships no types
    """Return a column as Python has it; Python's times have no nanoseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif pa.types.is_duration(kind) or pa.types.is_time(kind):
        column = column.cast(pa.string()) if pa.types.is_time(kind) else column.cast(pa.int64())
    values: list[Any] = msgspec.to_builtins(column.to_pylist(), builtin_types=())
    return values


def cell_text(value: object) -> str:
    """Return a cell as CSV has it: text as it is, nothing for null, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def schema_of(table: Table) -> Any:  # noqa: ANN401  pyarrow ships no types
    """Return the Arrow schema of a table: its own, or text for each column."""
    if table.kind == "parquet":
        return _parquet(table.path).schema_arrow
    return pa.schema([(name, pa.string()) for name in table.columns])
