"""F38: Redis comes back from an old copy, with hints of work that is long done. Nothing is run again."""

import services
from brokers import NO_POLLING, QUEUE, UNACKED, UNACKED_INDEX, OwnRedis, rows
from clients import User
from payloads import numbered


def test_hints_that_rise_from_the_dead_run_nothing(checked: services.Stack, own_redis: OwnRedis) -> None:
    checked.api()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(1_000))
    with own_redis.client() as broker:
        services.wait_until(lambda: broker.llen(QUEUE) == 4, "hints are sent")
        # One that a worker had taken and not yet done with, an hour ago.
        broker.eval(
            "local hint = redis.call('LINDEX', KEYS[1], 0) "
            "redis.call('HSET', KEYS[2], 'tag', '[' .. hint .. ', \"\", \"shards.scripted\"]') "
            "redis.call('ZADD', KEYS[3], 1, 'tag')",
            3,
            QUEUE,
            UNACKED,
            UNACKED_INDEX,
        )
        broker.save()
    worker = checked.worker(**services.LONG_LEASES, **NO_POLLING)
    batch = user.wait(batch.id)
    before = user.results(batch)
    own_redis.process.kill()
    own_redis.start()

    def for_nothing() -> int:
        return worker.log.read_text().count("'claimed': False")

    services.wait_until(lambda: for_nothing() >= 5, "every old hint is heard, the one from `unacked` too")
    assert rows(checked, "SELECT end_reason FROM attempts") == ["done"] * 4
    assert user.results(user.batch(batch.id)) == before
    assert user.wait(user.submit(numbered(3)).id).status == "completed"
    assert worker.stop() == 0, worker.tail()
