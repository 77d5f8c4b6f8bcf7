"""docs/security.md has a line for each point of the checklist, and every test that it names is there."""

import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:\w+/)?test_\w+\.py|hostile/)", PAGE)))


def test_every_point_has_a_line() -> None:
    assert re.findall(r"^\| S(\d+) ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 29)]


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    folder = "" if "/" in name else "integration/"
    assert (ROOT / "tests" / (folder + name)).exists()
