"""Results of any batch, beside the rows of the table that its requests came from."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI
from openai.types import Batch

from client import batches, results, tables, writing
from client.results import Results
from jobs.errors import InvalidRequest

ANSWER, ERROR = "answer", "error"


def download_joined(sdk: OpenAI, batch: Batch, source: Path, key: str, out: Path, *, partial: bool) -> dict[str, Any]:
    """Write the table with a column for the answers and one for what went wrong; return where it is.

    Args:
        sdk: the server.
        batch: whose results.
        source: the table.
        key: its column that has the `custom_id` of each row.
        out: where the table goes.
        partial: take what there is while the batch runs.

    Raises:
        InvalidRequest: the table has no such column, or the batch has no results yet.
    """
    writing.check_out(out)
    table = tables.open_table(source)
    if key not in table.columns:
        message = f"{source} has no column {key}, it has: {', '.join(table.columns)}."
        raise InvalidRequest(message)
    with TemporaryDirectory(prefix=".promptmill-", dir=out.absolute().parent) as folder:
        raw = Path(folder) / "results.jsonl"
        got = batches.download(sdk, batch, raw, None, partial=partial)
        paths = [Path(got[kind]) for kind in ("output", "errors") if kind in got]
        with results.opened(paths) as found:
            _write(table, table.columns.index(key), out, found)
    return {"batch": batch.id, "table": str(out)}


def _write(table: tables.Table, place: int, out: Path, found: Results) -> None:
    def values(_: int, row: list[Any]) -> list[Any]:
        line = found.find(tables.cell_text(row[place]))
        problem = results.failure(line)
        if problem is None and line is not None:
            return [results.text(line), None]
        return [None, problem and f"{problem.code}: {problem.message}"]

    names = writing.free_names(table.columns, (ANSWER, ERROR))
    writing.write(table, out, dict.fromkeys(names, str), writing.fill(table, len(names), values))
