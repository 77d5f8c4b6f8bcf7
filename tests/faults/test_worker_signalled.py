"""F10: a worker whose engine hangs is asked to go, more than once and in other ways. It ends, and its rows run elsewhere."""

import signal

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


def test_a_worker_ends_whatever_it_is_sent_and_its_rows_run_elsewhere(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    batches = []
    for signals in ([TERM], [TERM, TERM], [INT, INT], [INT, INT, INT], [INT, TERM, INT], [QUIT]):
        worker = checked.worker(PROMPTMILL_WORKER__DRAIN_SECONDS="1")
        # Celery has taken the signals over: SIGQUIT, which no supervisor of ours sends, may be lost in that moment.
        log = worker.log
        services.wait_until(lambda log=log: " ready." in log.read_text(), "Celery is ready")  # type: ignore[misc]
        # From now on hints are heard: the shard runs on a thread of Celery's pool, for which Celery waits.
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
