"""Many small batches keep the engine as busy as one large one, and a large one is left to others where there is no room."""

import services
from clients import User
from payloads import numbered
from sqlalchemy import text


def running_shards(stack: services.Stack) -> int:
    engine = stack.engine()
    with engine.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM shards WHERE state = 'running'")).scalar_one()
    engine.dispose()
    return int(count)


def test_thirty_small_batches_run_at_once(stack: services.Stack) -> None:
    stack.api()
    stack.reconciler()
    stack.worker()
    user = User(stack)
    batches = [user.submit(numbered(4, lambda number: f"SLEEP 8 {number}")) for _ in range(30)]
    services.wait_until(lambda: running_shards(stack) == 30, "thirty shards of four rows")
    for batch in batches:
        assert user.wait(batch.id).status == "completed"


def test_of_a_large_batch_a_worker_takes_what_its_engine_needs(stack: services.Stack) -> None:
    stack.api()
    stack.reconciler()
    worker = stack.worker()
    user = User(stack)
    batch = user.submit(numbered(256 * 20, lambda number: f"SLEEP 300 {number}"))
    services.wait_until(lambda: running_shards(stack) == 8, "eight shards of 256 rows")
    with stack.redis() as broker:
        assert broker.llen("promptmill:shards.scripted") >= 11, "the other hints are there for other workers"
    assert running_shards(stack) == 8
    worker.kill()
    user.sdk.batches.cancel(batch.id)
