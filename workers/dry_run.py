"""`promptmill worker --dry-run`: shows what the settings come to, as tables or as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workers.engines.kv import Pool, Slots
from workers.estimate import Report, Rows, gib


def as_json(made: Report) -> str:
    """Return the report as a JSON object; bytes are numbers."""
    document = asdict(made)
    document["gpu"] = {"bytes": made.memory.gpu_bytes, "source": made.gpu}
    if isinstance(made.memory, Pool):
        document["memory"] |= {
            "reported_tokens": made.memory.reported_tokens,
            "short_row_tokens": made.memory.short_row_tokens,
            "short_token_bytes": made.memory.short_token_bytes,
            "long_token_bytes": made.memory.long_token_bytes,
        }
    return json.dumps(document, indent=2)


def show(made: Report, console: Console) -> None:
    """Print the report as tables."""
    console.print(_table("argument", "value", made.arguments.items()))
    if made.command:
        console.print(f"\n{made.command}\n", markup=False, highlight=False, soft_wrap=True)
    console.print(_table("memory of one GPU", made.gpu, _memory(made.memory)))
    console.print(_rows_table(made.rows))
    for note in (f"Shape of the model: {made.shape.source}.", *made.notes):
        console.print(f"- {note}", markup=False, highlight=False)
    for warning in made.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)


def _memory(memory: Pool | Slots) -> Iterable[tuple[str, str]]:
    yield "all", gib(memory.gpu_bytes)
    if isinstance(memory, Slots):
        yield "weights", gib(memory.weight_bytes)
        yield f"keys and values of {memory.slots} requests", gib(memory.slots * memory.slot_bytes)
        yield "a step", gib(memory.step_bytes)
        yield "left", gib(memory.left_bytes)
        return
    yield "for the engine", gib(memory.engine_bytes)
    yield "weights", gib(memory.weight_bytes)
    yield "a step", gib(memory.step_bytes)
    yield "left for keys and values", gib(memory.kv_bytes)
    yield "a token in every layer", _kb(memory.token_bytes)
    yield "as vLLM groups layers", _kb(memory.short_token_bytes)
    yield "a token beyond the window", _kb(memory.long_token_bytes)
    yield "tokens in short rows", f"{memory.short_row_tokens:,}"
    yield "tokens as vLLM logs them", f"{memory.reported_tokens:,}"


def _rows_table(rows: list[Rows]) -> Table:
    table = Table("prompt / answer, tokens", "rows that fit at their ends", "on average")
    for row in rows:
        cells = ["longer than the context" if value is None else str(value) for value in (row.at_end, row.on_average)]
        table.add_row(f"{row.prompt} / {row.answer}", *cells)
    return table


def _table(name: str, value: str, lines: Iterable[tuple[str, object]]) -> Table:
    table = Table(name, value)
    for key, content in lines:
        table.add_row(escape(key), escape(str(content)))
    return table


def _kb(size: int) -> str:
    return f"{size / 1000:.0f} KB"
