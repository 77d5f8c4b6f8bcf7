"""F112: Flower as the product starts it. Strangers see nothing, nobody changes anything, and only ids are shown."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import invariants
import pytest
import services
from clients import User
from flower import urls
from payloads import numbered

from api.stack.program import Program, free_port, http_ok, promptmill

CANARY = "CANARY"
OPEN = {"/metrics", "/healthcheck"}
PAGES = {"/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length"}
TABLE = "/tasks/datatable?draw=1&start=0&length=10&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"


@dataclass
class Watched:
    """A stack that has run a batch, its Flower, and ids to ask it for."""

    stack: services.Stack
    http: httpx2.Client
    worker: str = ""
    task: str = ""

    def get(self, path: str, *, login: bool = True) -> httpx2.Response:
        return self.http.get(path, auth=("promptmill", services.PASSWORD) if login else None)

    def paths(self) -> list[str]:
        """Return every path that Flower serves, with an id that it knows where one belongs."""
        patterns = [getattr(handler, "regex", None) or handler[0] for handler in urls.handlers]
        found = [getattr(each, "pattern", each).rstrip("$").removesuffix("/?") for each in patterns]
        return [path.replace("(.+)", self._id(path)).replace("(.*)", self._id(path)) for path in found if path != ".*"]

    def _id(self, path: str) -> str:
        if "static" in path:
            return "js/flower.js"
        return self.worker if "/worker/" in path else self.task


@pytest.fixture(scope="module")
def watched(servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with services.running_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack:
        port = free_port()
        settings = {"PROMPTMILL_FLOWER__PORT": str(port), "PROMPTMILL_FLOWER__PASSWORD": services.PASSWORD}
        environment = stack.environment(**settings)
        ready = lambda: http_ok("127.0.0.1", port, "/healthcheck")  # noqa: E731
        program = Program("flower", promptmill("flower"), ready, environment=environment)
        with (
            services.running(program, stack.home / "flower.log"),
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        ):
            made = Watched(stack, http)
            run_a_batch(made)
            yield made
        invariants.check_stack(stack)


def run_a_batch(watched: Watched) -> None:
    with watched.stack.redis() as broker:
        services.wait_until(lambda: broker.execute_command("PUBSUB NUMPAT"), "Flower listens")
    user = User(watched.stack)
    data = numbered(300, lambda number: f"ERROR {CANARY}-{number}" if number % 50 else f"{CANARY} {number}")
    file = user.upload(data.replace(b"row-", b"CANARY-"), filename=f"{CANARY}.jsonl")
    batch = user.sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={CANARY: CANARY}
    )
    assert user.wait(batch.id).status == "completed"
    user.sdk.close()

    def seen() -> bool:
        tasks = watched.get("/api/tasks").json()
        return [task["state"] for task in tasks.values()].count("SUCCESS") == 2

    services.wait_until(seen, "Flower has seen both shards")
    watched.task, task = next(iter(watched.get("/api/tasks").json().items()))
    watched.worker = task["worker"]
    assert batch.id in task["args"]


def test_strangers_see_nothing(watched: Watched) -> None:
    paths = watched.paths()
    assert len(paths) > 25
    for path in paths:
        for method in ("GET", "POST"):
            answer = watched.http.request(method, path)
            if path in OPEN or path.startswith(("/static", "/login", "/logout")):
                assert CANARY not in answer.text
            else:
                assert answer.status_code in (401, 405), (method, path)
    assert watched.http.get("/tasks", auth=("promptmill", "wrong")).status_code == 401


def test_with_the_password_nothing_can_be_changed(watched: Watched) -> None:
    changes = [path for path in watched.paths() if is_change(path)]
    assert len(changes) >= 14
    for path in changes:
        answer = watched.http.post(path, auth=("promptmill", services.PASSWORD), json={"args": ["shard_x"]})
        assert answer.status_code == 403, path
    # The worker that was told to stop goes on.
    user = User(watched.stack)
    assert user.wait(user.submit(numbered(3)).id).status == "completed"
    user.sdk.close()


def is_change(path: str) -> bool:
    kinds = (
        "shutdown",
        "pool",
        "queue",
        "apply",
        "async-apply",
        "send-task",
        "abort",
        "timeout",
        "rate-limit",
        "revoke",
    )
    return path.startswith(
        tuple(f"/api/{place}/{kind}/" for place, kind in itertools.product(("worker", "task"), kinds))
    )


def test_no_page_shows_more_than_ids(watched: Watched) -> None:
    shown = {path: watched.get(path) for path in [*watched.paths(), TABLE]}
    texts = {path: answer.text for path, answer in shown.items()}
    assert {path for path, answer in shown.items() if answer.status_code == 200} >= {*PAGES, TABLE}
    assert "shards.run" in texts[f"/task/{watched.task}"], "it does show tasks"
    assert watched.task in texts["/api/tasks"]
    assert watched.task in texts[TABLE]
    for path, text in texts.items():
        assert CANARY not in text, path
        assert services.PASSWORD not in text, path
        assert watched.stack.database_url not in text, path
    assert CANARY not in (watched.stack.home / "flower.log").read_text()
