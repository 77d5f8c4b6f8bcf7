"""Tables in and out of the command line. F114: no cell of CSV is run as a formula; JSONL and Parquet stay as they are."""

import csv
import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import tables, writing
from jobs.errors import InvalidRequest


def rows(table: tables.Table) -> list[list[Any]]:
    return [row for block in tables.blocks(table) for row in block.rows]


def made(path: Path, content: str | bytes, **options: Any) -> tables.Table:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return tables.open_table(path, **options)


def copied(table: tables.Table, out: Path) -> Path:
    """Write the table with a column that has each row's number, and one of numbers."""
    filled = writing.fill(table, 2, lambda number, _: [f"row {number}", number / 2])
    writing.write(table, out, {"new": str, "half": float}, filled)
    return out


@pytest.mark.parametrize(
    ("name", "content", "columns", "cells"),
    [
        ("a.csv", 'id,text\n1,"a, ""b""\nc"\n\n2,\n', ["id", "text"], [["1", 'a, "b"\nc'], ["2", ""]]),
        ("a.csv", "a;b,c\n1;2\n", ["a;b", "c"], []),
        ("a.csv", "a;b\n1,5;2\n", ["a", "b"], [["1,5", "2"]]),
        ("a.csv", "text,text\nx,y\n", ["text", "text"], [["x", "y"]]),
        ("a.csv", "\ufefftext\r\nx\r\n", ["text"], [["x"]]),
        ("a.csv", "text\nä\n".encode("utf-16"), ["text"], [["ä"]]),
        ("a.csv", "text\n\nx\n", ["text"], [[""], ["x"]]),
        ("a.TSV", "id\ttext\n1\ta,b\n", ["id", "text"], [["1", "a,b"]]),
        ("a.txt", "one\n\nthree", ["text"], [["one"], [""], ["three"]]),
        ("a.jsonl", '{"a": 1}\n\n{"b": [1], "a": null}\n', ["a", "b"], [[1, None], [None, [1]]]),
    ],
)
def test_a_table_is_read(tmp_path: Path, name: str, content: str | bytes, columns: list[str], cells: Any) -> None:
    if content == "a;b,c\n1;2\n":
        # A comma in the header decides; the row is then too short.
        with pytest.raises(InvalidRequest, match="line 2 has 1 cells, the header has 2"):
            rows(made(tmp_path / name, content))
        return
    table = made(tmp_path / name, content)
    assert table.columns == columns
    assert rows(table) == cells


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "", "has no header"),
        ("a.csv", 'id,text\n1,a\n2,"b\nc",d\n', "line 4 has 3 cells, the header has 2"),
        ("a.csv", 'text\n"never closed\n', "line 2 is no CSV"),
        ("a.csv", "id,text\n1,a\n2,\xff\n".encode("latin-1"), "line 3 is not utf-8. Name the encoding"),
        ("a.txt", "a\nb\n\xff\n".encode("latin-1"), "line 3 is not utf-8"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 is no JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a":\n', "line 2 is no JSON object"),
        ("a.parquet", "text\n", "is no Parquet file"),
        ("a.xlsx", "text\n", "ends in none of"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        rows(made(tmp_path / name, content))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    content = "text\ngr\xfcn\n".encode("latin-1")
    assert rows(made(tmp_path / "a.csv", content, encoding="latin-1")) == [["grün"]]
    with pytest.raises(InvalidRequest, match="--encoding latin-99"):
        made(tmp_path / "a.csv", content, encoding="latin-99")


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
@pytest.mark.parametrize("encoding", ["foo", "base64", "a\0"])
def test_an_encoding_that_is_none_of_text_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    with pytest.raises(InvalidRequest, match="--encoding"):
        made(tmp_path / name, "text\nx\n", encoding=encoding)


@pytest.mark.parametrize("delimiter", ["ab", "\n", '"', "\\t"])
def test_a_delimiter_is_one_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(InvalidRequest, match="--delimiter"):
        made(tmp_path / "a.csv", "a,b\n", delimiter=delimiter)


@pytest.mark.parametrize(("encoding", "named"), [("utf-8-sig", "UTF8"), ("utf-16", "utf-16-le"), ("utf-16", "utf-16")])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, encoding: str, named: str) -> None:
    table = made(tmp_path / "a.csv", "text\nä\n".encode(encoding), encoding=named)
    assert (table.columns, table.has_bom, rows(table)) == (["text"], True, [["ä"]])


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=", "+49 30 1", "-", "--1", "1\n=2"]
)
def test_no_cell_of_csv_begins_like_a_formula(cell: str) -> None:
    assert writing.neutral(cell) == (cell if cell[0] == "1" else f"'{cell}")


@pytest.mark.parametrize("cell", ["-1", "+1", "-1.5", "-1,234.5", "+3e-4", "0", "a=1", " =1", "", "'=1"])
def test_numbers_and_text_stay_as_they_are(cell: str) -> None:
    assert writing.neutral(cell) == cell


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=5))
def test_whatever_cells_hold_they_stay_cells_and_none_is_run(cells: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(writing.Lines(file)).writerows([writing.neutral(cell) for cell in row] for row in cells)
    read = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert read == [[writing.neutral(cell) for cell in row] for row in cells]
    assert not any(cell.startswith(writing.FORMULA) and not cell[1:2].isdigit() for row in read for cell in row)


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_headers_and_cells_of_others_are_neutral_too(tmp_path: Path, suffix: str, mark: str) -> None:
    table = made(tmp_path / "a.jsonl", '{"=cmd": "@x", "n": -5}\n')
    text = copied(table, tmp_path / f"out{suffix}").read_text()
    assert text.splitlines() == [mark.join(("'=cmd", "n", "new", "half")), mark.join(("'@x", "-5", "row 1", "0.5"))]


def test_csv_keeps_its_delimiter_and_the_mark_that_excel_needs(tmp_path: Path) -> None:
    table = made(tmp_path / "a.csv", "\ufeffa;b\nx,y;z\n")
    assert copied(table, tmp_path / "out.csv").read_text(encoding="utf-8") == "\ufeffa;b;new;half\nx,y;z;row 1;0.5\n"


def test_jsonl_is_extended_byte_for_byte(tmp_path: Path) -> None:
    lines = ['{"a":1.0, "big": 12345678901234567890123, "f": "=1"}', "{ }", '{"a": "\\u00e4"} ']
    table = made(tmp_path / "a.jsonl", "\n".join(lines))
    assert copied(table, tmp_path / "out.jsonl").read_bytes().splitlines() == [
        b'{"a":1.0, "big": 12345678901234567890123, "f": "=1","new":"row 1","half":0.5}',
        b'{"new":"row 2","half":1.0}',
        b'{"a": "\\u00e4","new":"row 3","half":1.5}',
    ]


SCHEMA = pa.schema(
    [
        ("text", pa.dictionary(pa.int32(), pa.string())),
        ("at", pa.timestamp("ns", "UTC")),
        ("cost", pa.decimal128(8, 2)),
        ("tags", pa.list_(pa.string())),
        ("raw", pa.binary()),
        ("time", pa.time64("ns")),
    ]
)
ROW = {
    "text": "=x",
    "at": pa.scalar(1_700_000_000_123_456_789, pa.timestamp("ns", "UTC")),
    "cost": Decimal("1.50"),
    "tags": ["a", "b"],
    "raw": b"\xff",
    "time": None,
}


def parquet(path: Path, count: int) -> tables.Table:
    arrays = [
        pa.array([ROW[field.name]] * count).cast(field.type)
        if field.name == "text"
        else pa.array([ROW[field.name]] * count, field.type)
        for field in SCHEMA
    ]
    pq.write_table(pa.table(arrays, schema=SCHEMA), path)
    return tables.open_table(path)


def test_parquet_keeps_types_and_values(tmp_path: Path) -> None:
    table = parquet(tmp_path / "a.parquet", 2_500)
    out = pq.read_table(copied(table, tmp_path / "out.parquet"))
    assert out.drop_columns(["new", "half"]).equals(pq.read_table(tmp_path / "a.parquet"))
    assert out.schema.field("at").type == pa.timestamp("ns", "UTC")
    assert out.column("new").to_pylist() == [f"row {number}" for number in range(1, 2_501)]
    assert out.schema.field("half").type == pa.float64()


def test_parquet_becomes_csv_and_jsonl(tmp_path: Path) -> None:
    table = parquet(tmp_path / "a.parquet", 1)
    (line,) = copied(table, tmp_path / "out.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["text"], row["cost"], row["tags"], row["time"]) == ("=x", "1.50", ["a", "b"], None)
    assert dt.datetime.fromisoformat(row["at"]).timestamp() == pytest.approx(1_700_000_000.123456)
    (cells,) = csv.DictReader(copied(table, tmp_path / "out.csv").read_text().splitlines())
    assert (cells["text"], cells["tags"], cells["new"]) == ("'=x", '["a","b"]', "row 1")


def test_everything_becomes_parquet(tmp_path: Path) -> None:
    table = made(tmp_path / "a.jsonl", '{"a": "x"}\n{"b": [1]}\n')
    assert pq.read_table(copied(table, tmp_path / "out.parquet")).to_pylist() == [
        {"a": "x", "b": None, "new": "row 1", "half": 0.5},
        {"a": None, "b": "[1]", "new": "row 2", "half": 1.0},
    ]


def test_a_column_that_is_there_gets_a_neighbour_with_a_number() -> None:
    assert writing.free_names(["a", "error", "error_2"], ["error", "label"]) == ["error_3", "label"]
    assert writing.free_names([], ["x", "x"]) == ["x", "x_2"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    table = made(tmp_path / "a.csv", "text\na\n")

    def values(number: int, row: list[Any]) -> list[Any]:
        raise InvalidRequest

    with pytest.raises(InvalidRequest):
        writing.write(table, out, {"new": str}, writing.fill(table, 1, values))
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out.csv"]


def read_back(folder: Path, header: str) -> tables.Table:
    """Return a table of the folder that has a header and no rows."""
    path = folder / "source.csv"
    path.write_text(header + "\n")
    return tables.open_table(path)


@pytest.mark.parametrize(
    ("name", "reason"), [("a.txt", "is written as"), ("a.docx", "ends in none"), ("no/a.csv", "no folder")]
)
def test_an_output_that_cannot_be_is_refused_before_anything_runs(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        writing.check_out(tmp_path / name, read_back(tmp_path, "text"))


def test_a_table_is_not_written_over_itself(tmp_path: Path) -> None:
    table = read_back(tmp_path, "text")
    (tmp_path / "link.csv").symlink_to(table.path)
    for name in (table.path.name, "link.csv"):
        with pytest.raises(InvalidRequest, match="is the table that is read"):
            writing.check_out(tmp_path / name, table)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_repeated_names_are_refused_where_a_row_goes_by_them(tmp_path: Path, name: str) -> None:
    table = read_back(tmp_path, "x,text,x")
    writing.check_out(tmp_path / "a.csv", table)
    with pytest.raises(InvalidRequest, match="repeats: x"):
        writing.check_out(tmp_path / name, table)
