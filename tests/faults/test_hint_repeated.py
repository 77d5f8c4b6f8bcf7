"""F32, F33: the same hint comes twenty times, beside hints that mean nothing. Each request is run once."""

import services
from clients import User
from payloads import numbered
from pydantic import SecretStr
from sqlalchemy import text

from jobs.dispatch import RUN_SHARD, make_celery, queue_for
from jobs.settings import Settings


def test_twenty_hints_are_one_run(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    workers = [checked.worker(**services.LONG_LEASES) for _ in range(2)]
    user = User(checked)
    batch = user.submit(numbered(100, lambda number: f"SLEEP 1 {number}"))
    engine = checked.engine()
    with engine.connect() as connection:
        (shard_id,) = connection.execute(text("SELECT id FROM shards")).scalars()
    celery = make_celery(Settings(redis_url=SecretStr(checked.redis_url)))
    for _ in range(20):
        celery.send_task(RUN_SHARD, args=[shard_id], queue=queue_for("scripted"))  # type: ignore[arg-type]
    celery.send_task(RUN_SHARD, args=["shard_unknown"], queue=queue_for("scripted"))  # type: ignore[arg-type]
    celery.send_task("no.such.task", args=[shard_id], queue=queue_for("scripted"))  # type: ignore[arg-type]
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(100)}
    celery.send_task(RUN_SHARD, args=[shard_id], queue=queue_for("scripted"))  # type: ignore[arg-type]

    def refused() -> int:
        return sum(worker.log.read_text().count("'claimed': False") for worker in workers)

    services.wait_until(lambda: refused() >= 22, "every hint but one was for nothing: 20 repeated, 1 unknown, 1 late")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempts")).scalar_one() == 1
    engine.dispose()
    assert [worker.stop() for worker in workers] == [0, 0]
