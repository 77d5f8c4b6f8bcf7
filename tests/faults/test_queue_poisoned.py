"""F37: somebody who can write to Redis puts into the queue what no hint is: nothing of it is run, quoted or fatal."""

import json

import services
from brokers import CANARY, NO_POLLING, QUEUE, body, envelope, hints_heard, poison, rows
from clients import User
from payloads import numbered


def test_what_is_no_hint_is_refused_counted_and_not_quoted(checked: services.Stack) -> None:
    checked.api()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(3))
    (shard_id,) = rows(checked, "SELECT id FROM shards")
    messages = poison(shard_id)
    with checked.redis() as broker:
        services.wait_until(lambda: broker.llen(QUEUE) == 1, "the hint is sent")
        broker.delete(QUEUE)
        worker = checked.worker(**NO_POLLING)
        for message in messages:
            broker.lpush(QUEUE, message)
        services.wait_until(lambda: f'"refused": {len(messages)}' in worker.log.read_text(), "all are refused")
        assert rows(checked, "SELECT count(*) FROM attempts") == [0]
        assert hints_heard(worker) == 0
        # The same worker still takes a hint.
        broker.lpush(QUEUE, json.dumps(envelope(body(shard_id))))
        assert user.wait(batch.id).status == "completed"
        services.wait_until(lambda: not broker.exists(QUEUE, "promptmill:unacked"), "nothing comes back")
    assert worker.stop() == 0, worker.tail()
    assert CANARY not in worker.log.read_text()
