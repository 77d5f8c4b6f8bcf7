"""What the documentation names is there."""

import ast
import re
from pathlib import Path

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
