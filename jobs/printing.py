"""What a command prints on stdout, whoever it is for: a table or a text for people, or one JSON document."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
out = Console()


def as_json(document: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def result(document: dict[str, Any], text: str, *, json: bool) -> None:
    """Print what a command came to: the document, or a text for people."""
    if json:
        as_json(document)
    else:
        sys.stdout.write(text + "\n")


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; into a pipe, lines with tabs. Nothing is cut off."""
    if not out.is_terminal:
        sys.stdout.writelines("\t".join(row) + "\n" for row in (names, *rows))
        return
    shown = Table()
    for name in names:
        shown.add_column(name, overflow="fold", no_wrap=name == "id")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    out.print(shown)
