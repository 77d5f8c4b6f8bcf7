"""F27: Redis is killed and comes back empty, five times. Workers hear of shards through it again, each time."""

import services
from brokers import NO_POLLING, OwnRedis, hints_heard
from clients import User
from payloads import numbered


def test_workers_hear_again_after_each_restart(checked: services.Stack, own_redis: OwnRedis) -> None:
    checked.api()
    checked.reconciler()
    worker = checked.worker(**NO_POLLING)
    user = User(checked)
    for turn in range(1, 6):
        own_redis.process.kill()
        own_redis.start()
        batch = user.wait(user.submit(numbered(3)).id)
        assert batch.status == "completed", turn
        assert set(user.results(batch)) == {"row-0", "row-1", "row-2"}
    assert hints_heard(worker) >= 5
    assert worker.stop() == 0, worker.tail()
