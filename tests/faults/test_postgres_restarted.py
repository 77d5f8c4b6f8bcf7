"""F43: Postgres is stopped hard in the middle of a batch and comes back. Nothing that was answered for is lost."""

import signal
from pathlib import Path

import invariants
import services
from clients import User, done
from conftest import migrate
from openai import APIError
from payloads import numbered

from api.stack import postgres
from api.stack.program import free_port


def answers(user: User, batch_id: str) -> bool:
    try:
        return bool(user.batch(batch_id))
    except APIError:
        return False


def test_a_batch_goes_on_after_an_immediate_shutdown(servers: services.Servers, tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as home:
        port = free_port()
        postgres.initialise(Path(home) / "postgres", services.PASSWORD)
        program = postgres.program(Path(home) / "postgres", port, services.PASSWORD)
        server = services.Process.start(program, tmp_path / "postgres.log")
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        settings = {**services.SHORT_LEASES, "PROMPTMILL_WORKER__ENGINE": "scripted"}
        stack = services.Stack(tmp_path, url, servers.redis_url, settings)
        try:
            stack.api()
            stack.reconciler()
            stack.worker()
            user = User(stack)
            batch = user.submit(numbered(1_500, lambda number: f"SLEEP 1 {number}"))
            user.wait_for(batch.id, lambda batch: done(batch) >= 200)
            server.signal(signal.SIGQUIT)
            server.popen.wait()
            server = services.Process.start(program, tmp_path / "postgres.log")
            services.wait_until(lambda: answers(user, batch.id), "the API answers again", 30)
            assert done(user.batch(batch.id)) < 1_500, "it was in the middle"
            batch = user.wait(batch.id)
            assert batch.status == "completed"
            assert set(user.results(batch)) == {f"row-{number}" for number in range(1_500)}
            engine = stack.engine()
            invariants.check(engine)
            engine.dispose()
        finally:
            stack.stop()
            server.stop()
