"""Writes the generated parts of the documentation; `--check` fails when they are not up to date.

Run from the repository's root: `python docs/generate.py [--check]`. Checks on the way that no page links to a file that
is not there, and that every `make` target that a page names exists.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import reference
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

import api.metrics
from jobs import census, metrics, profiles, settings
from workers import estimate, reconciler_metrics, worker_metrics
from workers.engines.kv import GIB, Pool

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
PROFILES_PAGE = ROOT / "docs" / "profiles.md"
REFERENCE_PAGE, OPENAPI_DOCUMENT = ROOT / "docs" / "reference.md", ROOT / "docs" / "openapi.json"
PROFILES_BEGIN, PROFILES_END = "<!-- profiles -->\n", "<!-- /profiles -->\n"
MONITORING_PAGE = ROOT / "docs" / "monitoring.md"
FIGURES_BEGIN, FIGURES_END = "<!-- figures -->\n", "<!-- /figures -->\n"
FIGURES_OF = (
    ("Every process", metrics),
    ("API", api.metrics),
    ("Worker", worker_metrics),
    ("Reconciler, of itself", reconciler_metrics),
    ("Reconciler, of the whole queue", census),
)
HEAD = """\
# Settings

Every setting of every process, read from the environment and from a [profile](profiles.md), a TOML file in which
`worker.engine` stands for `PROMPTMILL_WORKER__ENGINE`. Generated from `jobs/settings.py` by `make docs`; do not edit. A
variable that begins with `PROMPTMILL_` and is not listed here stops the process that reads it (the tests' own,
`PROMPTMILL_TEST_...`, aside).

A secret may stand in a file, which the same variable with `_FILE` behind names: {secrets}. Where both are set the
variable without `_FILE` wins.
"""


def settings_page() -> str:
    """Return the page with one table for each section of the tree."""
    secrets = ", ".join(f"`{name}{settings.FILE_SUFFIX}`" for name in settings.secrets())
    return "\n".join(
        (HEAD.format(secrets=secrets), *_sections(settings.Settings, settings.PREFIX, "Shared by all processes"))
    )


def _sections(section: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    fields = section.model_fields.items()
    yield f"## {title}\n\n| variable | default | what it is |\n| --- | --- | --- |"
    for name, field in fields:
        if _subsection(field) is None:
            yield f"| `{prefix}{name.upper()}` | {_default(field)} | {_words(field)} |"
    yield ""
    for name, field in fields:
        if child := _subsection(field):
            yield from _sections(child, f"{prefix}{name.upper()}{settings.DELIMITER}", _title(child))


def _subsection(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _title(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").splitlines()[0].rstrip(".")


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None:
        return "not set"
    return f"`{value.get_secret_value() if isinstance(value, SecretStr) else value}`"


def _words(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def profiles_page() -> str:
    """Return the page with the table of what is estimated for each shipped profile."""
    head, rest = PROFILES_PAGE.read_text().split(PROFILES_BEGIN)
    tail = rest.split(PROFILES_END)[1]
    table = "\n".join(_profiles_table())
    return f"{head}{PROFILES_BEGIN}\n{table}\n\n{PROFILES_END}{tail}"


def _profiles_table() -> Iterator[str]:
    yield "| profile | weights | for keys and values | pool as vLLM logs it | rows of 150/95 | 1155/211 | most rows |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in profiles.names():
        worker = settings.load(name).worker
        made = estimate.report(worker, lengths="150/95,1155/211")
        if isinstance(made.memory, Pool):
            kv, most = made.memory.kv_bytes, worker.vllm.max_sequences
            pool = f"{made.memory.reported_tokens:,} tokens"
        else:
            kv, most = made.memory.slots * made.memory.slot_bytes, made.memory.slots
            pool = ""
        sizes = f"{made.memory.weight_bytes / GIB:.1f} GiB | {kv / GIB:.1f} GiB"
        rows = " | ".join(str(row.at_end) for row in made.rows)
        yield f"| `{name.rpartition('/')[2]}` | {sizes} | {pool} | {rows} | {most} |"


def monitoring_page() -> str:
    """Return the page with a table of the figures of each kind of process."""
    head, rest = MONITORING_PAGE.read_text().split(FIGURES_BEGIN)
    tail = rest.split(FIGURES_END)[1]
    tables = "\n".join(line for title, module in FIGURES_OF for line in _figures_table(title, module))
    return f"{head}{FIGURES_BEGIN}\n{tables}\n{FIGURES_END}{tail}"


def _figures_table(title: str, module: ModuleType) -> Iterator[str]:
    yield f"**{title}**\n\n| figure | kind | labels | what it is |\n| --- | --- | --- | --- |"
    for name, kind, labels, words in figures(module):
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {words} |"
    yield ""


def figures(module: ModuleType) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield name, kind, labels and meaning of each figure that a module defines."""
    for value in vars(module).values():
        if isinstance(value, MetricWrapperBase):
            (described,) = value.describe()
            end = {"counter": "_total", "info": "_info"}.get(described.type, "")
            # The library has no public name for them.
            yield described.name + end, described.type, tuple(value._labelnames), described.documentation  # noqa: SLF001
    for figure in getattr(module, "FIGURES", ()):
        yield figure.name, figure.kind, figure.labels, figure.help


def broken_references() -> Iterator[str]:
    """Yield what pages point to and is not there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            if not (page.parent / link).exists():
                yield f"{page.relative_to(ROOT)} links to {link}, which is not there"
        for target in re.findall(r"`make ([a-z-]+)`", text):
            if target not in targets:
                yield f"{page.relative_to(ROOT)} names `make {target}`, which is not there"


def _generated() -> Iterator[tuple[Path, str]]:
    document = reference.document()
    yield SETTINGS_PAGE, settings_page()
    yield PROFILES_PAGE, profiles_page()
    yield MONITORING_PAGE, monitoring_page()
    yield REFERENCE_PAGE, reference.page(document)
    yield OPENAPI_DOCUMENT, reference.document_page(document)


def main() -> int:
    """Return the exit status: 1 when something is not up to date or points nowhere."""
    problems = list(broken_references())
    for page, fresh in _generated():
        if "--check" not in sys.argv:
            page.write_text(fresh)
        elif not page.exists() or page.read_text() != fresh:
            problems.append(f"docs/{page.name} is out of date: run `make docs`")
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
