"""The documentation as a site, built as `make site` does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", home)
    subprocess.run([sys.executable, ROOT / "docs" / "site.py", home / "build" / "pages"], check=True)
    subprocess.run([Path(sys.executable).with_name("zensical"), "build", "--strict"], check=True, cwd=home)
    return home / "site"


def test_nothing_of_a_page_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?([^\"' >]+)", page.read_text())
        assert loaded
        assert [address for address in loaded if re.match(r"(?:https?:)?//", address)] == [], page


def test_the_readme_is_the_first_page_and_leads_to_the_others(site: Path) -> None:
    first = (site / "index.html").read_text()
    for page in ("docs/quickstart.html", "docs/reference.html", "docs/guides/openai-sdk.html", "CONTRIBUTING.html"):
        assert page in first
        assert (site / page).exists()
