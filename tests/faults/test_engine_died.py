"""F11, F12: the engine dies or hangs under a worker that lives. The process ends; the next one goes on."""

import services
from clients import User
from payloads import numbered
from sqlalchemy import text


def test_a_dead_engine_ends_the_worker_and_its_shards_are_free_at_once(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = checked.worker()
    batch = user.submit(numbered(20, lambda number: "FATAL" if number == 19 else "x"))
    assert worker.popen.wait(90) == 70
    engine = checked.engine()
    with engine.connect() as connection:
        assert set(connection.execute(text("SELECT end_reason FROM attempts")).scalars()) == {"died"}
        assert connection.execute(text("SELECT count(*) FROM results")).scalar_one() == 19
        assert set(connection.execute(text("SELECT state FROM shards")).scalars()) == {"queued"}
    engine.dispose()
    assert user.batch(batch.id).status == "in_progress"
    user.sdk.batches.cancel(batch.id)
    assert user.wait(batch.id).status == "cancelled"


def test_a_hung_engine_gives_its_shards_back_too(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = checked.worker(PROMPTMILL_WORKER__STALL_SECONDS="2", **services.LONG_LEASES)
    batch = user.submit(numbered(1, lambda _: "HANG"))
    assert worker.popen.wait(90) == 70
    engine = checked.engine()
    with engine.connect() as connection:
        assert set(connection.execute(text("SELECT end_reason FROM attempts")).scalars()) == {"died"}
    engine.dispose()
    user.sdk.batches.cancel(batch.id)
    assert user.wait(batch.id).status == "cancelled"
