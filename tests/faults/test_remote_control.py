"""F40: whoever can write to Redis tells the workers to stop, by Celery's remote control. They do not listen."""

import services
from brokers import NO_POLLING, hints_heard
from clients import User
from payloads import numbered
from pydantic import SecretStr

from jobs.dispatch import make_celery
from jobs.settings import Settings


def test_orders_to_workers_are_not_heard(checked: services.Stack) -> None:
    checked.api()
    worker = checked.worker(**NO_POLLING)
    celery = make_celery(Settings(redis_url=SecretStr(checked.redis_url)))
    for order, arguments in (
        ("cancel_consumer", {"queue": "shards.scripted"}),
        ("rate_limit", {"task_name": "shards.run", "rate_limit": "1/h"}),
        ("pool_shrink", {"n": 64}),
        ("revoke", {"task_id": "x", "terminate": True, "signal": "SIGKILL"}),
        ("shutdown", {}),
    ):
        assert celery.control.broadcast(order, arguments=arguments, reply=True, timeout=0.1) == []
    celery.close()
    user = User(checked)
    assert user.wait(user.submit(numbered(600)).id).status == "completed"
    assert hints_heard(worker) == 3
    assert worker.popen.poll() is None
    assert worker.stop() == 0, worker.tail()
