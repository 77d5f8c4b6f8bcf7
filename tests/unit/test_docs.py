"""What the documentation names is there."""

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
