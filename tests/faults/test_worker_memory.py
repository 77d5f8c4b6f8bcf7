"""F23, F25: a worker's memory ends, and an answer that is too large."""

import resource
from pathlib import Path

import services
from clients import User
from payloads import numbered
from sqlalchemy import text

MEGABYTE = 2**20


def limit_memory(process: services.Process, more: int) -> None:
    """Let a process have no more than `more` bytes of address space beyond what it has."""
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.prlimit(process.popen.pid, resource.RLIMIT_AS, (most, most))


def test_a_worker_that_has_no_memory_left_fails_no_row(checked: services.Stack) -> None:
    """F23."""
    checked.api()
    checked.reconciler()
    user = User(checked)
    poor = checked.worker()
    limit_memory(poor, 256 * MEGABYTE)
    batch = user.submit(numbered(20, lambda number: f"TAKE {512 * MEGABYTE}" if number == 10 else f"text {number}"))
    services.wait_until(lambda: poor.popen.poll() is not None, "it ends")
    assert poor.popen.returncode == 70, poor.tail()
    checked.worker()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts and batch.request_counts.failed == 0
    assert len(user.results(batch)) == 20
    engine = checked.engine()
    with engine.connect() as connection:
        # Its last words need a little memory, too.
        assert set(connection.execute(text("SELECT end_reason FROM attempts")).scalars()) & {"died", "lost"}
    engine.dispose()


def test_an_answer_that_is_too_large_costs_its_row(checked: services.Stack) -> None:
    """F25."""
    checked.api()
    checked.reconciler()
    checked.worker(PROMPTMILL_WORKER__MAX_ANSWER_BYTES="100000")
    user = User(checked)
    batch = user.wait(user.submit(numbered(5, lambda number: "x" * 100_000 if number == 2 else "x" * 90_000)).id)
    assert batch.status == "completed"
    results = user.results(batch)
    assert len(results) == 5
    (failed,) = user.rows(batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["body"]["error"]["code"]) == ("row-2", "answer_too_large")
