"""What holds for every command."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from conftest import ROOT

from api import cli, extras

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


# What a distribution is imported as, where that is another name.
IMPORTED = {
    "pyyaml": "yaml",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}


def test_every_library_of_an_extra_is_known() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[^\w-]", each)[0] for each in libraries} for extra, libraries in declared.items()}
    imported = {
        extra: {IMPORTED.get(name, name.replace("-", "_")) for name in libraries} for extra, libraries in names.items()
    }
    assert imported == extras.MODULES


@pytest.mark.parametrize(
    ("arguments", "without", "extra"),
    [
        (("translate", "pyproject.toml", "--to", "de", "--out", "b.csv"), "pyarrow", "client"),
        (("label", "pyproject.toml", "--labels", "a,b", "--out", "b.csv"), "yaml", "client"),
        (("status",), "openai", "client"),
        (("doctor",), "openai", "client"),
        (("download", "batch_x", "--join", "pyproject.toml", "--key", "id"), "pyarrow", "client"),
        (("serve",), "fastapi", "api"),
        (("migrate",), "alembic", "api"),
        (("demo",), "openai", "api"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    arguments: tuple[str, ...], without: str, extra: str
) -> None:
    # None in its place is how Python is told that there is no such module.
    code = f"import sys; sys.modules[{without!r}] = None; from api.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "pm_x", "PATH": "/usr/bin"}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    said = (
        f"promptmill: {without} is not installed: this needs the extra `{extra}`: uv sync --inexact --extra {extra}\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)


def test_a_module_that_no_extra_has_is_a_mistake_of_ours() -> None:
    assert extras.missing(ModuleNotFoundError("no", name="api.nowhere")) is None
