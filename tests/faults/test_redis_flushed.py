"""F26, F28: Redis is emptied while shards are queued, or is not there at all. Nothing is lost; it takes a little longer."""

import services
from clients import User
from payloads import numbered

from api.stack.program import free_port


def test_shards_queued_in_an_emptied_redis_are_run(checked: services.Stack) -> None:
    checked.api()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(1_000))
    services.wait_until(lambda: checked.redis().llen("promptmill:shards.scripted") == 4, "hints are sent")
    checked.redis().flushall()
    checked.reconciler()
    checked.worker()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(1_000)}


def test_a_batch_runs_without_any_redis(checked: services.Stack) -> None:
    checked.redis_url = f"redis://127.0.0.1:{free_port()}/0"
    checked.api()
    checked.reconciler()
    worker = checked.worker()
    user = User(checked)
    batch = user.wait(user.submit(numbered(1_000)).id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(1_000)}
    assert worker.stop() == 0, worker.tail()
