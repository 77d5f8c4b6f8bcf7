import base64
import json
from typing import Any

import pytest
import redis
import services
from payloads import numbered

from api.stack.program import free_port
from jobs.dispatch import RUN_SHARD, Dispatcher
from jobs.settings import Settings

QUEUE = "promptmill:shards.scripted"


@pytest.fixture
def broker(servers: services.Servers) -> Any:
    client = redis.Redis.from_url(servers.redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def dispatcher(domain: Any, servers: services.Servers) -> Dispatcher:
    return Dispatcher(domain.engine, Settings(redis_url=servers.redis_url))


def test_one_message_for_each_shard_and_an_id_is_all_it_says(domain: Any, dispatcher: Any, broker: Any) -> None:
    batch_id = domain.create(domain.upload(numbered(25, lambda _: "CANARY")))
    dispatcher.hint_batch(batch_id)
    messages = [json.loads(raw) for raw in reversed(broker.lrange(QUEUE, 0, -1))]
    shard_ids = [shard.id for shard in domain.shards(batch_id)]
    assert [json.loads(base64.b64decode(message["body"])) for message in messages] == [
        [[shard_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}] for shard_id in shard_ids
    ]
    for message in messages:
        assert message["content-type"] == "application/json"
        assert message["headers"]["task"] == RUN_SHARD
        assert batch_id in message["headers"]["argsrepr"]
        assert "CANARY" not in json.dumps(message)


def test_a_hint_is_repeated_when_it_seems_lost(domain: Any, dispatcher: Any, broker: Any) -> None:
    dispatcher.hint_batch(domain.new_batch(25))
    assert broker.llen(QUEUE) == 3
    assert dispatcher.hint_overdue(0) == 0, "the messages are still there: nobody was free to take them"
    broker.flushall()
    assert dispatcher.hint_overdue(60) == 0, "too early"
    assert dispatcher.hint_overdue(0) == 3
    assert broker.llen(QUEUE) == 3


def test_a_shard_that_was_given_back_is_announced_behind_those_that_wait(
    domain: Any, dispatcher: Dispatcher, broker: Any
) -> None:
    batch_id = domain.new_batch(25)
    dispatcher.hint_batch(batch_id)
    domain.execute("UPDATE shards SET hinted_at = NULL WHERE number = 1")
    assert dispatcher.hint_overdue(0) == 1
    assert broker.llen(QUEUE) == 4


def test_an_absent_redis_does_not_fail_the_caller(domain: Any) -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    batch_id = domain.new_batch(3)
    Dispatcher(domain.engine, settings).hint_batch(batch_id)
    assert domain.batch(batch_id).status == "in_progress"
