"""F36: Redis that may throw hints away is not started with; one that refuses to write is done without until it does."""

import shutil

import services
from brokers import OwnRedis, hints_heard
from clients import User
from payloads import numbered
from redis import Redis
from redis.exceptions import ResponseError

from api.stack.program import Program, promptmill


def test_a_redis_that_evicts_is_refused_at_the_start(checked: services.Stack, own_redis: OwnRedis) -> None:
    with own_redis.client() as broker:
        broker.config_set("maxmemory-policy", "allkeys-lru")
    for name in ("worker", "reconciler"):
        log = checked.home / f"{name}.log"
        process = services.Process.start(Program(name, promptmill(name), environment=checked.environment()), log)
        assert process.popen.wait(60) == 1
        assert "maxmemory-policy allkeys-lru" in log.read_text()
        assert "noeviction" in log.read_text()
    # What the API answers does not depend on Redis.
    checked.api()


def test_a_redis_that_cannot_save_holds_nothing_up(checked: services.Stack, own_redis: OwnRedis) -> None:
    checked.api()
    checked.reconciler()
    worker = checked.worker()
    user = User(checked)
    assert user.wait(user.submit(numbered(3)).id).status == "completed"
    with own_redis.client() as broker:
        shutil.rmtree(own_redis.home)
        broker.config_set("save", "3600 1")
        broker.bgsave()
        services.wait_until(lambda: broker.info("persistence")["rdb_last_bgsave_status"] == "err", "it fails to save")
        assert refuses(broker)
        # By looking into Postgres.
        assert user.wait(user.submit(numbered(600)).id).status == "completed"
        broker.config_set("save", "")
    heard = hints_heard(worker)
    assert user.wait(user.submit(numbered(3)).id).status == "completed"
    services.wait_until(lambda: hints_heard(worker) > heard, "the worker hears hints again")
    assert worker.stop() == 0, worker.tail()


def refuses(broker: Redis) -> bool:
    try:
        broker.lpush("promptmill:x", "x")
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False
