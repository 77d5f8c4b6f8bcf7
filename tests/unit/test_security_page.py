"""docs/security.md has a line for each point of the checklist, and every test that it names is there."""

import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
LINES = dict(re.findall(r"^\| (S\d+) \| (.+) \|$", PAGE, re.MULTILINE))
NAMED = sorted(set(re.findall(r"`((?:\w+/)?test_\w+\.py|hostile/)", PAGE)))


def test_every_point_has_a_line() -> None:
    assert re.findall(r"^\| S(\d+) ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 29)]


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    folder = "" if "/" in name else "integration/"
    assert (ROOT / "tests" / (folder + name)).exists()


@pytest.mark.parametrize("point", LINES)
def test_every_point_is_held_by_a_test(point: str) -> None:
    assert re.search(r"test_\w+\.py", LINES[point].rpartition(" | ")[2])


def test_every_setting_that_is_named_exists() -> None:
    known = (ROOT / "docs" / "settings.md").read_text()
    named = set(re.findall(r"`((?:api|images|worker|webhooks|limits)(?:\.[a-z_]+)+)`", PAGE))
    variables = {"PROMPTMILL_" + name.upper().replace(".", "__") for name in named}
    variables |= set(re.findall(r"`(PROMPTMILL_\w+)`", PAGE)) - {"PROMPTMILL_DATABASE_URL"}
    assert variables
    assert {name for name in variables if f"`{name}`" not in known} == set()
