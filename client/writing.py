"""Tables as they are written: the rows of another table with columns added. There whole, or not at all."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from client import tables
from client.downloads import replacing
from client.tables import Block, Table
from jobs.errors import InvalidRequest

Filled = Iterable[tuple[Block, list[list[Any]]]]
"""Blocks, and the values of each added column for them."""
# What a spreadsheet runs as a formula (CWE-1236; quotes do not help).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Numbers begin like formulas and are none.
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)*(?:[eE][+-]?[0-9]+)?")
_ARROW = {str: pa.string(), float: pa.float64()}


def neutral(cell: str) -> str:
    """Return a cell that no spreadsheet runs: with an apostrophe before what begins like a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) and not _NUMBER.fullmatch(cell) else cell


def check_out(path: Path, table: Table) -> None:
    """Make sure that this table can be written there, with columns added. Another file that is there is the caller's.

    Raises:
        InvalidRequest: it cannot; the message says why.
    """
    kind = tables.kind_of(path)
    if kind == "text":
        message = f"{path}: a table is written as .csv, .tsv, .jsonl or .parquet."
        raise InvalidRequest(message)
    if not path.absolute().parent.is_dir():
        message = f"There is no folder {path.absolute().parent}."
        raise InvalidRequest(message)
    if path.exists() and path.samefile(table.path):
        message = f"{path} is the table that is read: name another one with --out."
        raise InvalidRequest(message)
    repeated = [name for name, count in Counter(table.columns).items() if count > 1]
    if repeated and kind in ("jsonl", "parquet"):
        message = f"{path}: each column needs a name of its own there, but the table repeats: {', '.join(repeated)}."
        raise InvalidRequest(message)


def write(table: Table, out: Path, added: Mapping[str, type], filled: Filled) -> None:
    """Write the table with its added columns. Cells of CSV and TSV are neutral, JSONL and Parquet unaltered."""
    kind = tables.kind_of(out)
    with replacing(out) as fresh:
        if kind == "parquet":
            _write_parquet(table, fresh, added, filled)
        elif kind == "jsonl":
            _write_jsonl(table, fresh, added, filled)
        else:
            _write_csv(table, fresh, "\t" if kind == "tsv" else _comma(table), added, filled)


class Lines:
    """Ends rows with a line feed.

    Told so itself, Python 3.11's writer puts no quotes around a carriage return in a cell, and what follows it would
    begin a row.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def _comma(table: Table) -> str:
    return table.delimiter if table.kind == "csv" else ","


@contextmanager
def _text(table: Table, path: Path) -> Iterator[TextIO]:
    encoding = "utf-8-sig" if table.has_bom else "utf-8"
    with path.open("w", encoding=encoding, newline="") as file:
        yield file


def _write_csv(table: Table, path: Path, delimiter: str, added: Mapping[str, type], filled: Filled) -> None:
    with _text(table, path) as file:
        writer = csv.writer(Lines(file), delimiter=delimiter)
        writer.writerow(map(neutral, (*table.columns, *added)))
        for block, columns in filled:
            for row, *more in zip(block.rows, *columns, strict=True):
                writer.writerow(neutral(tables.cell_text(cell)) for cell in (*row, *more))


def _write_jsonl(table: Table, path: Path, added: Mapping[str, type], filled: Filled) -> None:
    with path.open("wb") as file:
        for block, columns in filled:
            for begin, values in zip(_objects(table, block), zip(*columns, strict=True), strict=True):
                file.write(_extended(begin, dict(zip(added, values, strict=True))) + b"\n")


def _objects(table: Table, block: Block) -> Iterable[bytes]:
    if block.lines:
        return block.lines
    return (msgspec.json.encode(dict(zip(table.columns, row, strict=True))) for row in block.rows)


def _extended(line: bytes, more: dict[str, Any]) -> bytes:
    """Add keys to a JSON object; what it has stays as it is, byte for byte."""
    begin = line.removeprefix(codecs.BOM_UTF8).rstrip()[:-1].rstrip()
    return begin + (b"" if begin.endswith(b"{") else b",") + msgspec.json.encode(more)[1:]


def _write_parquet(table: Table, path: Path, added: Mapping[str, type], filled: Filled) -> None:
    schema = tables.schema_of(table)
    for name, kind in added.items():
        schema = schema.append(pa.field(name, _ARROW[kind]))
    with pq.ParquetWriter(path, schema) as writer:
        for block, columns in filled:
            new = [pa.array(values, _ARROW[kind]) for values, kind in zip(columns, added.values(), strict=True)]
            writer.write_batch(pa.record_batch([*_arrays(block), *new], schema=schema))


def _arrays(block: Block) -> list[Any]:
    if block.batch is not None:
        return list(block.batch.columns)
    columns = zip(*block.rows, strict=True)
    return [pa.array([None if cell is None else tables.cell_text(cell) for cell in column]) for column in columns]


def free_names(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return names for added columns; one that the table has already gets a number."""
    taken, names = set(columns), []
    for name in wanted:
        names.append(next(each for each in _numbered(name) if each not in taken))
        taken.add(names[-1])
    return names


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


Fill = Callable[[int, list[Any]], list[Any]]


def fill(table: Table, width: int, values: Fill) -> Filled:
    """Yield the blocks of a table with the values that `values` has for each row.

    Args:
        table: it is read once more.
        width: how many columns are added.
        values: gets the number of a row, from 1, and its cells; returns `width` values.
    """
    number = 0
    for block in tables.blocks(table):
        made = [values(number + place, row) for place, row in enumerate(block.rows, 1)]
        number += len(made)
        yield block, [[row[index] for row in made] for index in range(width)]
