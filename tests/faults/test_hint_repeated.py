"""F32, F33: the same hint comes a hundred times, beside hints that mean nothing. Each request is run once."""

import services
from brokers import QUEUE, rows
from clients import User
from payloads import numbered
from pydantic import SecretStr

from jobs.dispatch import RUN_SHARD, make_celery, queue_for
from jobs.settings import Settings

REPEATED = 100


def test_a_hundred_hints_are_one_run(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    cancelled = cancel_unclaimed(checked, user)
    workers = [checked.worker(**services.LONG_LEASES) for _ in range(2)]
    batch = user.submit(numbered(100, lambda number: f"SLEEP 1 {number}"))
    (shard_id,) = rows(checked, f"SELECT id FROM shards WHERE batch_id = '{batch.id}'")
    celery = make_celery(Settings(redis_url=SecretStr(checked.redis_url)))

    def send(*hinted: str, task: str = RUN_SHARD) -> None:
        for each in hinted:
            celery.send_task(task, args=[each], queue=queue_for("scripted"))  # type: ignore[arg-type]

    def refused() -> int:
        return sum(worker.log.read_text().count("'claimed': False") for worker in workers)

    send(*[shard_id] * REPEATED)
    send(shard_id, task="no.such.task")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(100)}
    services.wait_until(lambda: refused() >= REPEATED, "every hint but one was for nothing")
    for_nothing = ["shard_unknown", cancelled, shard_id]
    for number, each in enumerate(for_nothing, start=1):
        send(each)
        services.wait_until(lambda number=number: refused() >= REPEATED + number, "it is for nothing")  # type: ignore[misc]
    celery.close()
    assert rows(checked, "SELECT shard_id FROM attempts") == [shard_id]
    assert [worker.stop() for worker in workers] == [0, 0]


def cancel_unclaimed(stack: services.Stack, user: User) -> str:
    """Have a batch cancelled before anybody works; return its shard. Its own hint is lost."""
    batch = user.submit(numbered(3))
    with stack.redis() as broker:
        services.wait_until(lambda: broker.llen(QUEUE) == 1, "the hint is sent")
        user.sdk.batches.cancel(batch.id)
        assert user.wait(batch.id).status == "cancelled"
        broker.delete(QUEUE)
    return str(rows(stack, "SELECT id FROM shards")[0])
