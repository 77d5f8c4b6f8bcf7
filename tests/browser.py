"""A real browser for tests of pages: the machine's Chromium, driven by Playwright.

Without Chromium such a test is skipped and says so, unless `PROMPTMILL_TEST_CHROMIUM=required`: then it fails.
`PROMPTMILL_TEST_SCREENSHOTS` names a folder for pictures of what the tests see; the docs have theirs from there.

Playwright keeps an event loop in the thread of the test. Start processes before a tab is opened: `Process.start` needs
a loop of its own.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

REQUIRED_VARIABLE, SCREENSHOTS_VARIABLE = "PROMPTMILL_TEST_CHROMIUM", "PROMPTMILL_TEST_SCREENSHOTS"
# Root has no sandbox, and a test asks nobody but the server that it started.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# For a machine that does much else.
PATIENCE_SECONDS = 60


def chromium() -> str:
    """Return the path of Chromium; skip the test, or fail it where one is required, if there is none."""
    if found := shutil.which("chromium"):
        return found
    reason = "There is no Chromium on this machine: apt-get install chromium."
    if os.environ.get(REQUIRED_VARIABLE) == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Tab:
    """An open page, and what went on behind it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """What the page complained about in its console, and what it failed to load."""
    hosts: set[str] = field(default_factory=set)
    """Hosts with ports that the page asked for anything."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(1_000 * PATIENCE_SECONDS)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self._note(asked.url))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.netloc)

    def picture(self, name: str) -> None:
        """Write a picture of the page, if pictures are asked for."""
        if folder := os.environ.get(SCREENSHOTS_VARIABLE):
            self.page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")


@contextlib.contextmanager
def tab(profile: Path, **options: Any) -> Iterator[Tab]:
    """Open an empty page of a browser that knows nothing; `profile` is a folder for what it learns.

    `options` are Playwright's: `viewport={"width": 360, "height": 740}`, `color_scheme="dark"`, `http_credentials=...`.
    """
    executable = chromium()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=list(ARGUMENTS), accept_downloads=True, **options
        )
        try:
            yield Tab(context.pages[0])
        finally:
            context.close()
