"""Results of any batch, beside the rows of the table that its requests came from."""

import shutil
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch

from client import batches, downloads, results, tables, writing
from client.results import Results
from client.tables import Table
from jobs.errors import InvalidRequest
from jobs.states import TERMINAL

ANSWER, ERROR = "answer", "error"


def download_joined(
    sdk: OpenAI, batch: Batch, table: Table, key: str, out: Path, *, force: bool, partial: bool
) -> dict[str, Any]:
    """Write the table with a column for the answers and one for what went wrong; return where it is.

    What was downloaded lies beside it until then, so that the same call goes on from there, after a kill too.

    Args:
        sdk: the server.
        batch: whose results.
        table: what is read.
        key: its column that has the `custom_id` of each row.
        out: where the table goes.
        force: write over a file that is there.
        partial: take what there is while the batch runs.

    Raises:
        InvalidRequest: the table has no such column or would be written over, a file is there already, or the batch
            has no results yet.
        PromptmillError: the connection broke again and again.
    """
    writing.check_out(out, table)
    if key not in table.columns:
        message = f"{table.path} has no column {key}, it has: {', '.join(table.columns)}."
        raise InvalidRequest(message)
    downloads.require_absent(out, force=force)
    files = batches.require_files(batch, partial=partial)
    folder = out.with_name(f".{out.name}.{batch.id}")
    folder.mkdir(exist_ok=True)
    paths = [_fetch(sdk, batch, file_id, folder / f"{kind}.jsonl") for kind, file_id in files.items()]
    with results.opened(paths) as found:
        _write(table, table.columns.index(key), out, found)
    shutil.rmtree(folder)
    return {"batch": batch.id, "table": str(out)}


def _fetch(sdk: OpenAI, batch: Batch, file_id: str, path: Path) -> Path:
    """Download a file unless it is here; what a batch that runs has by now goes to another one, each time anew."""
    if batch.status not in TERMINAL:
        path = path.with_suffix(".partial.jsonl")
        downloads.fetch_partial(sdk, file_id, path)
    elif not path.exists():
        downloads.fetch(sdk, file_id, path)
    return path


def _write(table: Table, place: int, out: Path, found: Results) -> None:
    def values(_: int, row: list[Any]) -> list[Any]:
        line = found.find(tables.cell_text(row[place]))
        problem = results.failure(line)
        if problem is None and line is not None:
            return [results.text(line), None]
        return [None, problem and f"{problem.code}: {problem.message}"]

    names = writing.free_names(table.columns, (ANSWER, ERROR))
    writing.write(table, out, dict.fromkeys(names, str), writing.fill(table, len(names), values))
