"""F10: a worker whose engine hangs is asked to go, more than once and in other ways. It ends, and its rows run elsewhere."""

import contextlib
import signal
import subprocess
import time

import services
from clients import User
from payloads import numbered
from sqlalchemy import text

TERM, INT, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT
RUNNING = text("SELECT count(*) FROM shards WHERE state = 'running'")


def runs(stack: services.Stack) -> bool:
    engine = stack.engine()
    with engine.connect() as connection:
        found = connection.execute(RUNNING).scalar_one()
    engine.dispose()
    return bool(found)


def hearing_worker(stack: services.Stack, **settings: str) -> services.Process:
    """Start a worker; it hears hints, and runs their shards on threads of Celery's pool, for which Celery waits.

    Celery has taken the signals over: SIGQUIT, which no supervisor of ours sends, may be lost in that moment.
    """
    worker = stack.worker(**settings)
    services.wait_until(lambda: " ready." in worker.log.read_text(), "Celery is ready")
    return worker


def test_a_worker_ends_whatever_it_is_sent_and_its_rows_run_elsewhere(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    batches = []
    for signals in ([TERM], [TERM, TERM], [INT, INT], [INT, INT, INT], [INT, TERM, INT], [QUIT]):
        worker = hearing_worker(checked, PROMPTMILL_WORKER__DRAIN_SECONDS="1")
        batches.append(user.submit(numbered(2, lambda _: "HANG")))
        services.wait_until(lambda: runs(checked), "it runs")
        for number in signals:
            worker.signal(number)
        worker.popen.wait(60)
        services.wait_until(lambda: not runs(checked), "its leases end")
    checked.worker(PROMPTMILL_WORKER__REQUEST_TIMEOUT_SECONDS="1")
    for batch in batches:
        ended = user.wait(batch.id)
        errors = user.rows(ended.error_file_id)
        assert [row["response"]["body"]["error"]["code"] for row in errors] == ["request_timeout"] * 2


def completed(user: User, batch_id: str) -> int:
    counts = user.sdk.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def ends_when_asked_again(worker: services.Process) -> bool:
    time.sleep(3)
    worker.signal(INT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.popen.wait(5)
    return worker.popen.returncode is not None


def test_a_second_ctrl_c_gives_back_at_once_what_still_runs(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = hearing_worker(checked, PROMPTMILL_WORKER__DRAIN_SECONDS="100", **services.LONG_LEASES)
    batch = user.submit(numbered(2, lambda number: "HANG" if number else "Hello"))
    services.wait_until(lambda: completed(user, batch.id) == 1, "the other row ends")
    worker.signal(INT)
    services.wait_until(lambda: "worker_draining" in worker.log.read_text(), "it drains")
    # Celery looks once a second whether it is to stop, and waits for its threads then.
    services.wait_until(lambda: ends_when_asked_again(worker), "it ends", 40)
    assert "worker_stopped" in worker.log.read_text()
    # Its lease would have gone on for two minutes.
    assert not runs(checked)
    checked.worker(PROMPTMILL_WORKER__REQUEST_TIMEOUT_SECONDS="1")
    user.wait(batch.id)
    assert completed(user, batch.id) == 1
