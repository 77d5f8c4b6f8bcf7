"""Flower as a person sees it: the real page in Chromium, while a batch runs."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import httpx2
import pytest
import services
from browser import Tab
from clients import User
from payloads import numbered

from api.stack.program import Program, free_port, http_ok, promptmill

ROWS, SHARD = 60, 20
SETTINGS = {
    **services.LONG_LEASES,
    # One hint for each shard, however long it waits on a slow machine: no second one, and no shard without.
    "PROMPTMILL_RECONCILER__HINT_SECONDS": "600",
    "PROMPTMILL_WORKER__POLL_SECONDS": "600",
    "PROMPTMILL_WORKER__ENGINE": "scripted",
    # Each shard runs for some seconds, so that it is seen on its way.
    "PROMPTMILL_WORKER__SCRIPTED_CAPACITY": "2",
    "PROMPTMILL_WORKER__MAX_SHARDS": "2",
    "PROMPTMILL_SHARDS__MAX_REQUESTS": str(SHARD),
}
LOGIN = {"username": "promptmill", "password": services.PASSWORD}
CHANGES = (
    "worker/shutdown/{worker}",
    "worker/pool/restart/{worker}",
    "task/revoke/{task}",
    "task/send-task/shards.run",
)


@dataclass
class Shown:
    """A stack with a worker, and its Flower."""

    stack: services.Stack
    url: str
    user: User


@pytest.fixture(scope="module")
def shown(servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    browser.chromium()
    home = tmp_path_factory.mktemp("stack")
    with services.fresh_stack(servers, template, home, SETTINGS) as stack:
        stack.api()
        stack.reconciler()
        port = free_port()
        settings = {"PROMPTMILL_FLOWER__PORT": str(port), "PROMPTMILL_FLOWER__PASSWORD": services.PASSWORD}
        ready = lambda: http_ok("127.0.0.1", port, "/healthcheck")  # noqa: E731
        program = Program("flower", promptmill("flower"), ready, environment=stack.environment(**settings))
        with services.running(program, stack.home / "flower.log"):
            with stack.redis() as broker:
                services.wait_until(lambda: broker.execute_command("PUBSUB NUMPAT"), "Flower listens")
            stack.worker()
            yield Shown(stack, f"http://127.0.0.1:{port}", User(stack))


def test_a_shard_goes_from_received_to_succeeded_before_ones_eyes(shown: Shown, tmp_path: Path) -> None:
    with browser.tab(tmp_path, http_credentials=LOGIN, viewport={"width": 1500, "height": 640}) as tab:
        tab.page.goto(f"{shown.url}/tasks")
        batch = shown.user.submit(numbered(ROWS, lambda number: f"SLEEP 1 CANARY {number}"))
        sights = watch(tab)
        rows = read(tab)
        assert tab.hosts == {shown.url.removeprefix("http://")}, "nothing comes from elsewhere"
        assert tab.errors == []
    states = {row["state"] for sight in sights for row in sight}
    assert {"PROGRESS", "SUCCESS"} <= states <= {"PENDING", "RECEIVED", "STARTED", "PROGRESS", "SUCCESS"}
    progress = {row["result"] for sight in sights for row in sight if row["state"] == "PROGRESS"}
    assert progress <= {f"{number} of {SHARD} rows" for number in range(SHARD + 1)}
    assert progress - {f"0 of {SHARD} rows"}, "it grows while the shard runs"
    for row in rows:
        assert row["state"] == "SUCCESS"
        assert row["received"] <= row["started"] and row["received"].startswith("20"), "times, one after the other"
        assert row["name"] == "shards.run"
        ours = rf"\({SHARD} rows, attempt 1, {batch.id}, shard_\w+, lines \d+-\d+\)"
        assert re.fullmatch(ours, row["args"])
        assert row["result"].startswith("{'claimed': True, 'ending': 'done', 'rows': 20, 'attempt': 1, ")
        assert "CANARY" not in str(row)


def watch(tab: Tab) -> list[list[dict[str, str]]]:
    """Look again and again, as a person would, until all shards have succeeded; return what was seen."""
    seen: list[list[dict[str, str]]] = []

    def is_over() -> bool:
        # The table asks for its lines by itself, after the page is there.
        tab.page.reload(wait_until="networkidle")
        seen.append(read(tab))
        states = [row["state"] for row in seen[-1]]
        if "PROGRESS" in states:
            tab.picture("flower")
        return states == ["SUCCESS"] * (ROWS // SHARD)

    services.wait_until(is_over, "all shards have succeeded", 120)
    return seen


def read(tab: Tab) -> list[dict[str, str]]:
    """Return the table of tasks as it is shown, by the names of its columns."""
    shown: list[dict[str, str]] = tab.page.evaluate(
        """() => {
            const names = [...document.querySelectorAll('th[data-column]')].map(th => th.dataset.column);
            const cells = [...document.querySelectorAll('#tasks-table tbody tr')].map(tr => [...tr.cells]);
            return cells.filter(row => row.length > 1).map(row =>
                Object.fromEntries(row.map((cell, i) => [names[i], cell.innerText.trim()])));
        }"""
    )
    return shown


def test_the_worker_is_listed_as_online(shown: Shown, tmp_path: Path) -> None:
    with browser.tab(tmp_path, http_credentials=LOGIN, viewport={"width": 1200, "height": 500}) as tab:
        tab.page.goto(f"{shown.url}/workers")
        worker = tab.page.locator("#workers-table tbody tr")
        worker.get_by_text("Online").wait_for()
        assert worker.count() == 1
        assert "worker_" in worker.inner_text()
        tab.picture("flower-workers")


def test_without_the_password_nothing_is_seen(shown: Shown, tmp_path: Path) -> None:
    for number, login in enumerate((None, {**LOGIN, "password": "wrong"})):
        with browser.tab(tmp_path / str(number), **({"http_credentials": login} if login else {})) as tab:
            for page in ("/", "/tasks", "/workers", "/broker", "/api/tasks"):
                answer = tab.page.request.get(f"{shown.url}{page}")
                assert answer.status == 401, page
                assert "shard" not in answer.text()


def test_a_page_of_flower_cannot_stop_or_start_anything(shown: Shown, tmp_path: Path) -> None:
    assert shown.user.wait(shown.user.submit(numbered(3)).id).status == "completed"
    services.wait_until(lambda: tasks(shown), "Flower has seen it")
    task, seen = next(iter(tasks(shown).items()))
    # Flower's API does not ask for a password as its pages do, so that the browser must send it unasked.
    known = base64.b64encode(":".join(LOGIN.values()).encode()).decode()
    with browser.tab(tmp_path, extra_http_headers={"Authorization": f"Basic {known}"}) as tab:
        tab.page.goto(f"{shown.url}/task/{task}")
        assert tab.page.locator("#task-page").count() == 1
        for path in CHANGES:
            answer = post(tab, f"/api/{path.format(task=task, worker=seen['worker'])}")
            assert answer == {"status": 403, "text": "Read only mode is enabled"}, path
    assert shown.user.wait(shown.user.submit(numbered(3)).id).status == "completed", "the worker goes on"


def tasks(shown: Shown) -> dict[str, Any]:
    answer = httpx2.get(f"{shown.url}/api/tasks", auth=(LOGIN["username"], LOGIN["password"]))
    found: dict[str, Any] = answer.raise_for_status().json()
    return {task: seen for task, seen in found.items() if seen["worker"]}


def post(tab: Tab, path: str) -> dict[str, object]:
    """POST as the page's own buttons would, with its token against forgery."""
    answer: dict[str, object] = tab.page.evaluate(
        """path => new Promise(done => $.ajax({type: 'POST', url: path, data: {}}).always((answer, _, other) => {
            const xhr = answer.status ? answer : other;
            done({status: xhr.status, text: xhr.responseText});
        }))""",
        path,
    )
    return answer
