"""What holds for every command."""

import re
from collections.abc import Iterator
from typing import Any

import typer
from conftest import ROOT

from api import cli

# And why.
WITHOUT_JSON = {
    "up": "runs until it is stopped",
    "serve": "runs until it is stopped",
    "reconciler": "runs until it is stopped",
    "flower": "runs until it is stopped",
    "demo": "a show for people",
    "conformance": "its output is pytest's, its result a report in Markdown",
}


def commands() -> Iterator[tuple[str, Any]]:
    cli._add_other_commands()
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        for below, each in getattr(command, "commands", {"": command}).items():
            yield f"{name} {below}".strip(), each


def test_every_command_that_has_a_result_prints_it_as_json() -> None:
    known = dict(commands())
    assert len(known) > 30
    without = {name for name, command in known.items() if not any("--json" in each.opts for each in command.params)}
    assert without == set(WITHOUT_JSON)


def test_the_page_names_those_that_do_not() -> None:
    page = " ".join((ROOT / "docs" / "cli.md").read_text().split())
    (said,) = re.findall(r"Every command has it.*?An error is one line", page)
    assert {name for name in dict(commands()) if f"`{name}`" in said} == {*WITHOUT_JSON, "worker"}
