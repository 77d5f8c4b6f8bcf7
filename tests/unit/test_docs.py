"""What the documentation names is there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"`((?:tests|bench)/[\w./]+)`", page.read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_pages_that_a_page_links_to_are_there(page: Path) -> None:
    linked = set(re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()))
    assert {link for link in linked if not (page.parent / link).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_are_run_or_it_is_said_why_not(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    if name not in (*documented.RUN, *documented.RUN_ELSEWHERE):
        assert documented.runnable(name) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_is_run(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    assert bool(documented.blocks(name, "python")) == (name in documented.PYTHON)
    if name in documented.PYTHON:
        assert page.name in (ROOT / documented.PYTHON[name]).read_text()


@pytest.mark.parametrize("page", documented.NOT_RUN)
def test_what_is_said_not_to_be_run_is_there(page: str) -> None:
    blocks = documented.blocks(page)
    assert [start for start in documented.NOT_RUN[page] if not any(block.startswith(start) for block in blocks)] == []


def pages_of(navigation: list[dict[str, Any]]) -> Iterator[str]:
    for entry in navigation:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else pages_of(target)


def test_every_page_is_in_the_navigation_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    named = list(pages_of(project["nav"]))
    assert len(named) == len(set(named))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} == set(named)


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(page.name for page in folder.glob("0*.md"))


FAULTS = dict(re.findall(r"^\| F(\d+) \| [^|]+ \| (.+) \|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE))
TESTS_OF_FAULTS = [
    pytest.param(number, *named.split("::"), id=f"F{number}-{named}")
    for number, cell in FAULTS.items()
    for named in re.findall(r"`([\w/]+\.py::\w+)`", cell)
]


def test_every_fault_has_a_line() -> None:
    assert [int(number) for number in FAULTS] == list(range(1, 118))


def test_every_fault_has_a_test_or_a_reason() -> None:
    assert [number for number, cell in FAULTS.items() if ".py::" not in cell and "Not applicable" not in cell] == []


@pytest.mark.parametrize(("number", "path", "name"), TESTS_OF_FAULTS)
def test_the_test_of_a_fault_is_there_and_has_its_number(number: str, path: str, name: str) -> None:
    module = ast.parse((ROOT / "tests" / path).read_text())
    (test,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    said = f"{ast.get_docstring(module)} {name.upper().replace('_', ' ')} {ast.get_docstring(test)}"
    assert re.search(rf"\bF{number}\b", said)
