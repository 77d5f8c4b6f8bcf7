"""What the running stack tells about itself."""

from typing import Any

import services
from clients import User
from payloads import numbered
from sqlalchemy import text


def loads(stack: services.Stack) -> list[Any]:
    engine = stack.engine()
    with engine.connect() as connection:
        found = list(connection.execute(text("SELECT load FROM workers ORDER BY started_at")).scalars())
    engine.dispose()
    return found


def test_a_heartbeat_says_what_the_engine_is_busy_with(running: services.Stack) -> None:
    user = User(running)
    batch = user.submit(numbered(3, lambda _: "SLEEP 300"))
    busy = {"running": 3, "waiting": 0, "kv_use": None, "preempted": 0, "shards": 1}
    services.wait_until(lambda: loads(running) == [busy], "a heartbeat")
    user.sdk.batches.cancel(batch.id)
    user.wait(batch.id)
    idle = {**busy, "running": 0, "shards": 0}
    services.wait_until(lambda: loads(running) == [idle], "another heartbeat")
