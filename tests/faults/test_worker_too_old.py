"""F100: the oldest version that may work is raised. A worker that is older gives back what it has, and ends by itself."""

import subprocess
from typing import Any

import services
from clients import User, done
from conftest import migrate
from payloads import numbered
from sqlalchemy import text

from api.stack.program import promptmill


def command(stack: services.Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(promptmill(*arguments), env=stack.environment(), capture_output=True, text=True, check=False)


def query(stack: services.Stack, statement: str) -> list[Any]:
    engine = stack.engine()
    with engine.connect() as connection:
        rows = list(connection.execute(text(statement)))
    engine.dispose()
    return rows


def test_a_worker_that_is_too_old_drains_itself_and_is_not_started_again(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    # Sixteen at a time: the batch takes a minute, so that it is in the middle however slow the command is.
    few = {"PROMPTMILL_WORKER__SCRIPTED_CAPACITY": "16", "PROMPTMILL_WORKER__WAITING_REQUESTS": "1"}
    worker = checked.worker(**services.LONG_LEASES, **few)
    batch = user.submit(numbered(2_000, lambda number: f"SLEEP 0.5 {number}"))
    user.wait_for(batch.id, lambda batch: done(batch) > 0)
    assert command(checked, "workers", "require", "99.1").returncode == 0
    assert worker.popen.wait(60) == 0, worker.tail()
    assert "worker_too_old" in worker.log.read_text()
    reasons = {reason for (reason,) in query(checked, "SELECT end_reason FROM attempts")}
    assert reasons <= {"done", "released"} and "released" in reasons, "nothing is lost, and the rest is given back"
    assert 0 < done(user.batch(batch.id)) < 2_000, "it was in the middle"
    refused = command(checked, "worker")
    assert (refused.returncode, "99.1 is asked for at least" in refused.stderr) == (1, True)
    assert command(checked, "workers", "require", "none").returncode == 0
    checked.worker()
    batch = user.wait(batch.id)
    assert set(user.results(batch)) == {f"row-{number}" for number in range(2_000)}
    listed = command(checked, "workers", "list").stdout
    assert "running" in listed and "stopped" in listed


def test_a_worker_on_tables_that_are_too_old_says_what_to_do(checked: services.Stack) -> None:
    migrate(checked.database_url, "0010")
    refused = command(checked, "worker")
    migrate(checked.database_url)
    assert refused.returncode == 1
    assert "Has `promptmill migrate` been run?" in refused.stderr
