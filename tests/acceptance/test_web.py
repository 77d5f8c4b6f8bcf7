"""People at a real Chromium: the web page on a real API with a worker whose engine does what its prompts say."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import services
from browser import Tab
from clients import User
from payloads import jsonl, parse, request
from playwright.sync_api import Page, ViewportSize, expect

expect.set_options(timeout=1_000 * browser.PATIENCE_SECONDS)
PHONE: ViewportSize = {"width": 360, "height": 740}
DESK: ViewportSize = {"width": 1100, "height": 560}
TALL: ViewportSize = {"width": 1100, "height": 900}


@pytest.fixture
def desk(running: services.Stack, tmp_path: Path) -> Iterator[Tab]:
    with browser.tab(tmp_path / "profile", viewport=DESK) as tab:
        yield tab
        assert tab.errors == []
        assert tab.hosts == {f"127.0.0.1:{running.port}"}, "works without the internet"


def site(stack: services.Stack, path: str = "/") -> str:
    return f"http://127.0.0.1:{stack.port}{path}"


def log_in(page: Page, stack: services.Stack, key: str) -> None:
    page.goto(site(stack))
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()


def written(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def mixed(count: int, seconds: float) -> bytes:
    """Return requests of which some are refused and one is not understood; together they take about `seconds`."""

    def prompt(number: int) -> str:
        if number % 15 == 7:
            return "REJECT this"
        if number % 40 == 21:
            return "ERROR"
        return f"SLEEP {seconds * number / count:.2f} of a translation that has been asked for"

    return jsonl(request(f"text-{number:04}", prompt(number)) for number in range(count))


def upload(page: Page, path: Path) -> None:
    page.get_by_role("navigation").get_by_role("link", name="Files").first.click()
    page.get_by_label("Upload a file of requests").set_input_files(path)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("heading", level=1, name=path.name)).to_be_visible()


@contextlib.contextmanager
def standing_still(stack: services.Stack) -> Iterator[None]:
    """Keep the worker from doing anything within the block."""
    (worker,) = (process for process in stack.processes if process.program.name == "worker")
    worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.signal(signal.SIGCONT)


def test_from_the_log_in_to_the_results(running: services.Stack, desk: Tab, tmp_path: Path) -> None:
    page, user = desk.page, User(running)
    page.goto(site(running))
    log_in(page, running, user.sdk.api_key)
    bad = [*jsonl([request("a"), request("a"), request("b", model="")]).splitlines(), b'{"custom_id": "c"', b"[]"]
    upload(page, written(tmp_path, "bad.jsonl", b"\n".join(bad)))
    lines = page.locator('td[data-label="Line"]')
    assert [text.strip() for text in lines.all_inner_texts()] == ["2", "3", "4", "5"]
    expect(page.get_by_role("button", name="Create the batch")).to_have_count(0)
    desk.picture("web-problems")

    upload(page, written(tmp_path, "reviews.jsonl", mixed(120, 10)))
    with standing_still(running):
        page.get_by_role("button", name="Create the batch").click()
        bar = page.get_by_role("progressbar", name="Progress")
        expect(bar).to_have_attribute("aria-valuenow", "0")
        expect(page.get_by_text("Time left")).to_be_visible()
        page.evaluate("window.sameDocument = true")
    expect(page.locator("figure")).to_have_count(2)
    expect(page.locator("#live")).to_have_attribute("data-status", "completed")
    assert page.evaluate("window.sameDocument"), "nothing was reloaded"

    expect(bar).to_have_attribute("aria-valuenow", "120")
    groups = page.get_by_role("table").get_by_role("row")
    expect(groups.nth(1)).to_contain_text("rejected")
    expect(groups.nth(1)).to_contain_text("The prompt asked to be refused.")
    expect(groups.nth(2)).to_contain_text("engine_error")
    assert "a translation" not in page.content(), "words of requests are shown when they are asked for"
    page.set_viewport_size(TALL)
    desk.picture("web-batch")
    check_downloads(page, user)
    page.get_by_role("link", name="Open the request").first.click()
    expect(page.get_by_text("REJECT this").first).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Run the failed requests again").click()
    expect(page.get_by_text("retry_of")).to_be_visible()
    expect(page.locator("#live")).to_have_attribute("data-status", "completed")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuemax", "11")


def check_downloads(page: Page, user: User) -> None:
    batch = user.sdk.batches.retrieve(page.url.rpartition("/")[2])
    assert batch.output_file_id and batch.error_file_id
    for name, file_id in (("Output", batch.output_file_id), ("Errors", batch.error_file_id)):
        with page.expect_download() as started:
            page.get_by_role("link", name=name, exact=True).click()
        path = started.value.path()
        assert Path(path).read_bytes() == user.sdk.files.content(file_id).content
        assert started.value.suggested_filename.endswith(".jsonl")


def test_a_batch_is_cancelled_and_workers_are_seen(running: services.Stack, desk: Tab) -> None:
    user = User(running)
    rows = [request(f"row-{number:03}", f"SLEEP {number * 0.1} of some words") for number in range(1, 90)]
    waiting = user.submit(jsonl([*rows, *(request(f"long-{number}", "SLEEP 600") for number in range(30))]))
    user.wait(user.submit(mixed(30, 0.5)).id)
    user.submit(jsonl([request("a"), request("a")]))
    page = desk.page
    log_in(page, running, user.sdk.api_key)
    expect(page.get_by_role("progressbar")).to_have_count(2)
    page.get_by_role("link", name=waiting.id).click()
    bar = page.get_by_role("progressbar", name="Progress")
    expect(bar).to_have_attribute("aria-valuenow", re.compile("^[4-9][0-9]$"))
    page.set_viewport_size(TALL)
    desk.picture("web-running")
    page.set_viewport_size(DESK)
    with page.expect_download() as started:
        page.get_by_role("link", name="Output so far").click()
    assert {row["custom_id"] for row in parse(Path(started.value.path()).read_bytes())} > {"row-001", "row-020"}
    expect(bar).to_have_attribute("aria-valuenow", "89")
    page.get_by_role("link", name="Batches").first.click()
    expect(page.get_by_text("89 of 119")).to_be_visible()
    desk.picture("web-batches")
    page.get_by_role("link", name=waiting.id).click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#live")).to_have_attribute("data-status", "cancelled")
    expect(page.get_by_role("row", name="batch_cancelled")).to_contain_text("30")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert user.batch(waiting.id).status == "cancelled"
    page.get_by_role("link", name="Workers").click()
    expect(page.get_by_role("row", name="worker_").first).to_contain_text("scripted")
    expect(page.get_by_text("running").first).to_be_visible()
    desk.picture("web-workers")


def pressed(page: Page, name: str) -> None:
    """Go to what has this name, with the tabulator key only."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if (page.evaluate("document.activeElement.innerText") or "").strip() == name:
            return
    pytest.fail(f"{name} is not reached by the keyboard")


def test_all_of_it_with_the_keyboard(running: services.Stack, desk: Tab) -> None:
    user, page = User(running), desk.page
    batch = user.submit(jsonl(request(f"row-{number}", "SLEEP 600") for number in range(3)))
    page.goto(site(running))
    page.keyboard.type(user.sdk.api_key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    pressed(page, "Skip to content")
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    pressed(page, batch.id)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(batch.id)
    pressed(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_attribute("data-status", "cancelled")
    pressed(page, "Run the failed requests again")
    page.keyboard.press("Enter")
    expect(page.get_by_text("retry_of")).to_be_visible()
    pressed(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_attribute("data-status", "cancelled")
    pressed(page, "Log out")
    page.keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_be_focused()
    page.go_back()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_small_screen_needs_no_scrolling_to_the_side(running: services.Stack, tmp_path: Path) -> None:
    user = User(running)
    name = "x" * 300
    rows = [request(name, "REJECT it"), request("a", "SLEEP 0.3 of some words")]
    batch = user.wait(user.submit(jsonl(rows), metadata={"team": name}).id)
    bad = user.sdk.files.create(file=("bad.jsonl", jsonl([request("b", model="m" * 300)])), purpose="batch")
    with browser.tab(tmp_path / "profile", viewport=PHONE, color_scheme="dark") as tab:
        check_width(tab, site(running))
        log_in(tab.page, running, user.sdk.api_key)
        places = ("/", "/ui/files", f"/ui/files/{bad.id}", "/ui/workers", f"/ui/batches/{batch.id}/requests/1")
        for path in (*places, "/ui/batches/nope", f"/ui/batches/{batch.id}"):
            check_width(tab, site(running, path))
        tab.picture("web-phone")
        # A page that is not there is said to be missing in the console too.
        assert [said for said in tab.errors if "404" not in said] == []


def check_width(tab: Tab, url: str) -> None:
    tab.page.goto(url)
    widths: Any = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1] == PHONE["width"], url


def test_without_scripts_it_works_too(running: services.Stack, tmp_path: Path) -> None:
    user = User(running)
    batch = user.submit(jsonl(request(f"row-{number}", f"SLEEP {number}") for number in range(5)))
    with browser.tab(tmp_path / "profile", viewport=DESK, java_script_enabled=False) as tab:
        log_in(tab.page, running, user.sdk.api_key)
        tab.page.goto(site(running, f"/ui/batches/{batch.id}"))
        expect(tab.page.locator("#live")).to_have_attribute("data-status", "completed")
        assert tab.errors == []
