"""A process is killed with -9 at each failpoint there is: nothing is lost, nothing is there twice.

F1, F2, F4, F54 and F55 for every commit. The failpoints are read from the source, so that a new one is tested by itself
if one of the tours below comes by; otherwise its test fails, and a tour has to be made longer. Each tour runs one process:

    api          a client calls everything that writes, and repeats what got no answer, with its Idempotency-Key
    worker       runs one batch that it heard of and one that it found, stops one, and drains
    reconciler   takes back, ends, announces and sweeps; its courier sends a message
    command      an operator makes a key
    stack        what `promptmill up` keeps on disk
"""

import contextlib
import queue
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import failpoint_scan
import invariants
import pytest
import services
from killing import SETTINGS, Backstage, Doomed, keep_alive
from openai import APIConnectionError, NotFoundError, OpenAI
from payloads import CHAT, numbered, parse
from receivers import REACHABLE, receiving

from jobs import db, ids, keys, leases, quotas, webhooks
from jobs.failpoints import VARIABLE
from jobs.protocol import WebhookEndpointCreate

Answer = TypeVar("Answer")
Place = tuple[str, str]
Headers = dict[str, str]

PLACES = failpoint_scan.places()
# Each with a database of its own, and one of Valkey's sixteen.
AT_ONCE = 3


@contextlib.contextmanager
def own_stack(servers: services.Servers, template: str, home: Path, number: int) -> Iterator[services.Stack]:
    """Make a stack beside others that run at the same time. What it started is killed at the end."""
    with services.fresh_database(servers, template) as name:
        url = f"{servers.redis_url.rpartition('/')[0]}/{number}"
        stack = services.Stack(home, servers.database(name), url, {**SETTINGS, **REACHABLE})
        with stack.redis() as broker:
            broker.flushdb()
        try:
            yield stack
        finally:
            for process in stack.processes:
                process.kill()


@contextlib.contextmanager
def backstage_of(stack: services.Stack) -> Iterator[Backstage]:
    made = Backstage(stack)
    try:
        yield made
    finally:
        made.close()


# The API.


class Client:
    """Repeats a call that got no answer, as the SDK does, when the server is there again."""

    def __init__(self, api: Doomed, base_url: str, key: str) -> None:
        self._api = api
        self.sdk = OpenAI(base_url=base_url, api_key=key, max_retries=0)

    def call(self, work: Callable[[Headers], Answer]) -> Answer:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        try:
            return work(headers)
        except APIConnectionError:
            services.wait_until(self._api.is_dead, "it died at the failpoint")
            self._api.revive()
            return work(headers)

    def delete(self, work: Callable[[Headers], object]) -> None:
        """Delete something; it may be gone when it is asked for the second time."""
        try:
            self.call(work)
        except NotFoundError:
            assert self._api.deaths


DATA, IN_PARTS = numbered(12), numbered(7)
REQUEST = {
    "custom_id": "a",
    "params": {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]},
}


def tour_of_the_api(stack: services.Stack, point: str) -> None:
    with backstage_of(stack) as backstage:
        limit(backstage)
        api = Doomed(stack, "serve", point, ready="Uvicorn running on")
        api.wait_ready()
        client = Client(api, stack.base_url, backstage.key)
        with client.sdk:
            files = use_files(client)
            use_webhooks(client)
            batch_ids = use_batches(client, backstage, files)
            # Hints are sent after the answer.
            services.wait_until(lambda: api.is_dead() or api.deaths, "it comes by the failpoint")
            api.revive()
            assert api.deaths == 1
            check_the_rest(client, backstage, files, batch_ids)


def limit(backstage: Backstage) -> None:
    """Set quotas, so that all that counts against one is counted."""
    most: dict[str, int | None] = {
        "max_files": 5,
        "max_bytes": 100_000,
        "max_open_batches": 5,
        "calls_per_minute": 100_000,
    }
    with db.transaction(backstage.engine) as connection:
        quotas.change(connection, "p", most)


def use_files(client: Client) -> dict[str, bytes]:
    """Upload a file at once and one in parts, give one up and delete one; return what is there."""
    files = client.sdk.files

    def upload(headers: Headers) -> str:
        return files.create(file=("a.jsonl", DATA), purpose="batch", extra_headers=headers).id

    def upload_twice(headers: Headers) -> tuple[str, str]:
        return upload(headers), upload(headers)

    whole = client.call(upload)
    first, second = client.call(upload_twice)
    assert first == second, "the key says that it is the same"
    client.delete(lambda headers: files.delete(first, extra_headers=headers))
    return {whole: DATA, upload_in_parts(client): IN_PARTS}


def upload_in_parts(client: Client) -> str:
    uploads, half = client.sdk.uploads, len(IN_PARTS) // 2

    def create(headers: Headers) -> str:
        asked: Any = {"filename": "b.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
        return uploads.create(bytes=len(IN_PARTS), **asked, extra_headers=headers).id

    given_up = client.call(create)
    client.call(lambda headers: uploads.cancel(given_up, extra_headers=headers))
    upload_id = client.call(create)
    part_ids = [
        client.call(lambda headers, piece=piece: uploads.parts.create(upload_id, data=piece, extra_headers=headers)).id  # type: ignore[misc]
        for piece in (IN_PARTS[:half], IN_PARTS[half:])
    ]
    done = client.call(lambda headers: uploads.complete(upload_id, part_ids=part_ids, extra_headers=headers))
    assert done.file
    return done.file.id


def use_webhooks(client: Client) -> None:
    hooks: Any = client.sdk.webhooks
    asked = {"url": "http://127.0.0.1:9999/hook", "name": "", "event_types": ["batch.completed"]}
    made = client.call(lambda headers: hooks.create(**asked, extra_headers=headers))
    client.call(lambda headers: hooks.update(made.id, name="mine", extra_headers=headers))
    rotated = client.call(lambda headers: hooks.rotate_secret(made.id, extra_headers=headers))
    assert rotated.signing_secret != made.signing_secret
    (listed,) = hooks.list()
    assert (listed.id, listed.name) == (made.id, "mine")
    client.delete(lambda headers: hooks.delete(made.id, extra_headers=headers))
    assert list(hooks.list()) == []


def use_batches(client: Client, backstage: Backstage, files: dict[str, bytes]) -> dict[str, str]:
    """Create batches, cancel some, and delete what belongs to one; return how each is to end."""
    sdk: Any = client.sdk

    def create(file_id: str) -> str:
        asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        return str(client.call(lambda headers: sdk.batches.create(**asked, extra_headers=headers)).id)

    kept, cancelled = (create(file_id) for file_id in files)
    client.call(lambda headers: sdk.batches.cancel(cancelled, extra_headers=headers))
    return {kept: "completed", cancelled: "cancelled", other_door(client, backstage): "cancelled"}


def other_door(client: Client, backstage: Backstage) -> str:
    """Create, cancel and delete a message batch; return its id behind the first door, where it stays."""

    def post(path: str, **body: Any) -> Any:
        return client.call(
            lambda headers: client.sdk.post(
                f"/messages/batches{path}", body=body, cast_to=object, options={"headers": headers}
            )
        )

    message_batch_id = post("", requests=[REQUEST])["id"]
    post(f"/{message_batch_id}/cancel")
    backstage.sweep()
    client.delete(
        lambda headers: client.sdk.delete(
            f"/messages/batches/{message_batch_id}", cast_to=object, options={"headers": headers}
        )
    )
    batch_id = ids.parse_message_batch_id(message_batch_id)
    assert batch_id
    return batch_id


def check_the_rest(client: Client, backstage: Backstage, files: dict[str, bytes], batch_ids: dict[str, str]) -> None:
    """Each object is there once, whole, and what was left half done goes away."""
    assert {file.id for file in client.sdk.files.list(purpose="batch")} == set(files)
    backstage.sweep()
    backstage.work()
    assert {batch.id: batch.status for batch in client.sdk.batches.list()} == batch_ids
    kept = next(iter(batch_ids))
    output = client.sdk.files.content(ids.result_file_id(kept, "output")).content
    assert {row["custom_id"] for row in parse(output)} == {f"row-{number}" for number in range(12)}
    backstage.execute("UPDATE files SET created_at = created_at - interval '1 day' WHERE status = 'uploading'")
    backstage.sweep()
    assert backstage.execute("SELECT count(*) FROM uploads")[0].count == 2
    assert {row.file_id for row in backstage.execute("SELECT DISTINCT file_id FROM lines")} == set(files)
    invariants.check(backstage.engine, acknowledged=files, settled=True)


# A worker.


def tour_of_a_worker(stack: services.Stack, point: str) -> None:
    with backstage_of(stack) as backstage:
        found, stopped = backstage.submit(numbered(3)), backstage.submit(numbered(2, lambda _: "SLEEP 600"))
        worker = Doomed(stack, "worker", point, ready="worker_ready")
        queued, running = (f"SELECT FROM shards WHERE state = '{state}'" for state in ("queued", "running"))
        services.wait_until(lambda: worker.is_dead() or not backstage.execute(queued), "it finds them by itself")
        heard = backstage.submit(numbered(12))
        backstage.hint(heard)
        is_stopped = f"{running} AND batch_id = :id"
        keep_alive(worker, backstage, lambda: backstage.execute(is_stopped, id=stopped), "what is to be stopped runs")
        backstage.cancel(stopped)
        wanted = {heard: "completed", found: "completed", stopped: "cancelled"}

        def is_over() -> bool:
            are = {each: backstage.status(each) for each in wanted}
            # A worker looks into Postgres before it listens; what it has not heard yet it hears for nothing.
            return are == wanted and backstage.hints() == 0

        keep_alive(worker, backstage, is_over, "the batches end")
        drain(worker)
        assert worker.deaths == 1, "it comes by the failpoint"
        invariants.check(backstage.engine, settled=True)
        open_attempts = backstage.execute("SELECT FROM attempts WHERE ended_at IS NULL")
        assert open_attempts == [], "no lease is left"


def drain(worker: Doomed) -> None:
    """Ask the worker to go; it may die on that way too."""
    worker.wait_ready()
    worker.process.signal(signal.SIGTERM)
    services.wait_until(worker.is_dead, "it goes")
    if worker.process.popen.returncode:
        worker.bury()


# The reconciler.


def tour_of_the_reconciler(stack: services.Stack, point: str) -> None:
    with backstage_of(stack) as backstage, receiving() as receiver:
        with db.transaction(backstage.engine) as connection:
            asked = WebhookEndpointCreate(url=receiver.url, event_types=["batch.cancelled"])
            webhooks.create(connection, backstage.project_id, asked, backstage.settings.webhooks)
        taken_back = backstage.submit(numbered(3))
        assert backstage.claim(seconds=0.001), "its worker is dead already"
        blamed = backstage.submit(numbered(3))
        assert (lease := backstage.claim(seconds=0.001)), "so is this one's, and it had rows aboard"
        with db.transaction(backstage.engine) as connection:
            assert leases.mark(connection, {lease.held: lease.last_line})
        hinted, ended = backstage.submit(numbered(3)), backstage.submit(numbered(3))
        backstage.cancel(ended)
        unfinished(backstage)
        reconciler = Doomed(stack, "reconciler", point, ready="reconciler_ready")

        def is_done() -> bool:
            reconciler.revive()
            if reconciler.deaths:
                # The lease of a courier that died lasts for longer than a test should.
                backstage.execute("UPDATE webhook_endpoints SET free_at = app_now()")
            states = {backstage.status(each) for each in (taken_back, blamed, hinted)}
            delivered = backstage.execute("SELECT FROM webhook_deliveries WHERE delivered_at IS NOT NULL")
            lines = backstage.execute("SELECT FROM lines WHERE file_id = 'file-unfinished'")
            return bool(
                reconciler.deaths and states == {"in_progress"} and delivered and not lines and backstage.hints() >= 2
            )

        services.wait_until(is_done, "all that is due is done")
        assert backstage.status(ended) == "cancelled"
        assert len({message.id for message in receiver.messages}) == 1
        backstage.work()
        assert {backstage.status(each) for each in (taken_back, blamed, hinted)} == {"completed"}
        invariants.check(backstage.engine, settled=True)


def unfinished(backstage: Backstage) -> None:
    """Leave what an upload of yesterday left."""
    backstage.execute(
        "INSERT INTO files (id, project_id, purpose, filename, status, created_at) "
        "VALUES ('file-unfinished', :project_id, '', '', 'uploading', app_now() - interval '1 day')",
        project_id=backstage.project_id,
    )
    backstage.execute("INSERT INTO lines (file_id, line_no, content) VALUES ('file-unfinished', 1, 'x')")


# What an operator runs.


def tour_of_a_command(stack: services.Stack, point: str) -> None:
    command = [sys.executable, "-m", "api", "keys", "create"]
    killed = subprocess.run(command, env=stack.environment(**armed(point)), check=False, capture_output=True)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, b"")
    made = subprocess.run(command, env=stack.environment(), check=True, capture_output=True, text=True)
    engine = stack.engine()
    with db.transaction(engine) as connection:
        assert keys.authenticate(connection, made.stdout.strip())
    invariants.check(engine)
    engine.dispose()


def armed(point: str) -> dict[str, str]:
    return {VARIABLE: f"{point}:kill9"}


# What `promptmill up` does before it starts anything, and in between.
UP = """
import asyncio, os, subprocess, sys, time
from pathlib import Path
from api.stack import credentials, postgres, up
from api.stack.program import free_port, promptmill
from jobs import settings

home, port = Path(sys.argv[1]), free_port()
made = credentials.load(home)
postgres.initialise(home / "postgres", made.postgres)
program = postgres.program(home / "postgres", port, made.postgres)
with subprocess.Popen(program.command(os.getpid()), env=dict(program.environment), cwd="/") as server:
    try:
        while not asyncio.run(program.ready()):
            time.sleep(0.05)
        postgres.ensure_database(port, made.postgres)
        if "users" in sys.argv:
            url = postgres.url(port, made.postgres)
            subprocess.run(promptmill("migrate"), env={**os.environ, "PROMPTMILL_DATABASE_URL": url}, check=True)
            postgres.ensure_users(url, {"api": "secret"})
    finally:
        server.send_signal(program.stop_signal)
stack = up.Stack(settings.load(), print)
stack._credentials = made
stack._seal_secrets()
print(stack._api_key())
"""


def tour_of_the_stack(stack: services.Stack, point: str) -> None:
    home = stack.home / "data"
    home.mkdir()
    command = [sys.executable, "-c", UP, str(home), *(["users"] if point.startswith("ensure_users") else [])]
    environment = {"PROMPTMILL_DATA_DIR": str(home)}
    killed = subprocess.run(
        command, env=stack.environment(**environment, **armed(point)), check=False, capture_output=True
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, b"")
    done = subprocess.run(command, env=stack.environment(**environment), check=True, capture_output=True, text=True)
    engine = stack.engine()
    with db.transaction(engine) as connection:
        assert keys.authenticate(connection, done.stdout.split()[-1])
    invariants.check(engine)
    engine.dispose()


# An engine that does not start.


def tour_of_a_broken_engine(stack: services.Stack, point: str) -> None:
    with backstage_of(stack) as backstage:
        batch_id = backstage.submit(numbered(3))
        broken = replace(stack, settings={**stack.settings, "PROMPTMILL_WORKER__SCRIPTED_FAULT": "start"})
        Doomed(broken, "worker", point, ready="worker_ready").bury()
        noted = [row.failures for row in backstage.execute("SELECT failures FROM breakers")]
        assert noted == ([1] if point.endswith("after_commit") else [])
        stack.worker()
        services.wait_until(lambda: backstage.status(batch_id) == "completed", "one that starts runs it")
        assert not backstage.execute("SELECT FROM breakers"), "it works"
        invariants.check(backstage.engine, settled=True)


TOURS = {
    "api": tour_of_the_api,
    "worker": tour_of_a_worker,
    "reconciler": tour_of_the_reconciler,
    "command": tour_of_a_command,
    "stack": tour_of_the_stack,
}


def tour_of(process: str, point: str) -> Callable[[services.Stack, str], None]:
    return tour_of_a_broken_engine if point.startswith("note_breaker.") else TOURS[process]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Place, "Future[None]"]]:
    """Run the tours of all tests that were asked for, some at a time: they wait for most of it."""
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(1, AT_ONCE + 1):
        numbers.put(number)

    def run(place: Place) -> None:
        process, point = place
        number = numbers.get()
        try:
            with own_stack(servers, template, tmp_path_factory.mktemp(process), number) as stack:
                tour_of(process, point)(stack, point)
        finally:
            numbers.put(number)

    asked = [item for item in request.session.items if isinstance(item, pytest.Function)]
    places: list[Any] = [item.callspec.params["place"] for item in asked if item.originalname == TEST]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {place: pool.submit(run, place) for place in places}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("place", PLACES, ids=["-".join(place) for place in PLACES])
def test_nothing_is_lost_when_a_process_is_killed_there(place: Place, outcomes: dict[Place, "Future[None]"]) -> None:
    outcomes[place].result()


TEST = test_nothing_is_lost_when_a_process_is_killed_there.__name__
