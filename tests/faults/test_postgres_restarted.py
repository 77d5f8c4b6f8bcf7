"""F43: Postgres is stopped hard and comes back. Nothing that was answered for is lost."""

import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import invariants
import pytest
import services
from clients import User, done
from conftest import migrate
from openai import APIError
from payloads import gated, numbered

from api.stack import postgres
from api.stack.program import free_port


@dataclass
class Crashing:
    """A stack on a Postgres of its own, with fsync."""

    stack: services.Stack
    server: services.Process

    def crash(self) -> None:
        """Stop Postgres at once, as it stands, and start it again."""
        self.server.signal(signal.SIGQUIT)
        self.server.popen.wait()
        self.server = services.Process.start(self.server.program, self.server.log)


@pytest.fixture
def crashing(servers: services.Servers, tmp_path: Path) -> Iterator[Crashing]:
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as home:
        port = free_port()
        postgres.initialise(Path(home) / "postgres", services.PASSWORD)
        program = postgres.program(Path(home) / "postgres", port, services.PASSWORD)
        server = services.Process.start(program, tmp_path / "postgres.log")
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        settings = {**services.SHORT_LEASES, "PROMPTMILL_WORKER__ENGINE": "scripted"}
        made = Crashing(services.Stack(tmp_path, url, servers.redis_url, settings), server)
        try:
            yield made
            invariants.check_stack(made.stack)
        finally:
            made.stack.stop()
            made.server.stop()


def answers(user: User, batch_id: str) -> bool:
    try:
        return bool(user.batch(batch_id))
    except APIError:
        return False


def test_a_batch_goes_on_after_an_immediate_shutdown(crashing: Crashing) -> None:
    stack = crashing.stack
    stack.api()
    stack.reconciler()
    stack.worker()
    user = User(stack)
    gate = stack.home / "gate"
    batch = user.submit(numbered(1_500, gated(gate, 750)))
    user.wait_for(batch.id, lambda batch: done(batch) >= 200)
    crashing.crash()
    services.wait_until(lambda: answers(user, batch.id), "the API answers again")
    assert done(user.batch(batch.id)) < 1_500, "it was in the middle"
    gate.touch()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(1_500)}


def test_a_file_is_whole_after_a_shutdown_in_the_moment_of_its_answer(crashing: Crashing) -> None:
    """F43, F47: its blocks were committed without waiting for the disk; the commit that made it visible did wait."""
    crashing.stack.api()
    user = User(crashing.stack)
    data = numbered(30_000, lambda number: f"text {number} " * 50)
    file = user.upload(data)
    crashing.crash()
    assert user.sdk.files.content(file.id).content == data
