"""F113: each process comes to Redis as a user that may do its own work and no more."""

import httpx2
import pytest
import redis
import services
from brokers import NO_POLLING, QUEUE, UNACKED, UNACKED_INDEX, OwnRedis, hints_heard
from clients import User
from payloads import numbered

from api.stack import redis_users, valkey
from api.stack.program import Program, free_port, http_ok, promptmill
from api.stack.redis_users import ROLES, Role


def as_role(own_redis: OwnRedis, role: Role) -> dict[str, str]:
    return {"PROMPTMILL_REDIS_URL": valkey.url(own_redis.port, services.PASSWORD, role)}


def test_the_product_works_with_a_user_for_each_role(checked: services.Stack, own_redis: OwnRedis) -> None:
    checked.start("serve", wait_for="Uvicorn running on", **as_role(own_redis, "producer"))
    checked.know_model("scripted")
    user = User(checked)
    port = free_port()
    login = {"PROMPTMILL_FLOWER__PORT": str(port), "PROMPTMILL_FLOWER__PASSWORD": services.PASSWORD}
    environment = checked.environment(**login, **as_role(own_redis, "viewer"))
    flower = Program(
        "flower", promptmill("flower"), lambda: http_ok("127.0.0.1", port, "/healthcheck"), environment=environment
    )

    def seen() -> int:
        tasks = httpx2.get(f"http://127.0.0.1:{port}/api/tasks", auth=("promptmill", services.PASSWORD)).json()
        return [task["state"] for task in tasks.values()].count("SUCCESS")

    with own_redis.client() as broker, services.running(flower, checked.home / "flower.log"):
        services.wait_until(broker.pubsub_numpat, "Flower listens")
        batch = user.submit(numbered(600))
        services.wait_until(lambda: broker.llen(QUEUE) == 3, "hints are sent")
        # One that a worker took an hour ago and never did.
        broker.hset(UNACKED, "tag", f'[{broker.rpop(QUEUE)}, "", "shards.scripted"]')
        broker.zadd(UNACKED_INDEX, {"tag": 1})
        worker = checked.start("worker", wait_for="worker_ready", **NO_POLLING, **as_role(own_redis, "worker"))
        assert user.wait(batch.id).status == "completed"
        assert hints_heard(worker) == 3
        # The reconciler sends one again.
        assert worker.stop() == 0, worker.tail()
        later = user.submit(numbered(3))
        services.wait_until(lambda: broker.delete(QUEUE), "the hint is lost")
        checked.start("worker", wait_for="worker_ready", **NO_POLLING, **as_role(own_redis, "worker"))
        checked.start("reconciler", wait_for="reconciler_ready", **as_role(own_redis, "producer"))
        assert user.wait(later.id).status == "completed"
        services.wait_until(lambda: seen() >= 4, "Flower has seen each shard")
    checked.stop()
    with own_redis.client() as broker:
        refused = {(entry["username"], entry["object"]) for entry in broker.acl_log()}
        # kombu would have Flower, too, put old hints back into their queue, and begins with a lock. A viewer does not.
        assert refused <= {("promptmill-viewer", "set")}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_do_harm(own_redis: OwnRedis, role: Role) -> None:
    forbidden = [
        "CONFIG GET *",
        "CONFIG SET maxmemory-policy allkeys-lru",
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "SCAN 0",
        "DEBUG SLEEP 0",
        "REPLICAOF NO ONE",
        "SHUTDOWN",
        "SAVE",
        "MONITOR",
        "ACL LIST",
        "CLIENT KILL TYPE normal",
        "MODULE LIST",
        "EVAL return(1) 0",
        "SET elsewhere 1",
        "LPUSH elsewhere 1",
        "PUBLISH elsewhere 1",
    ]
    forbidden += {"producer": [f"BRPOP {QUEUE} 1", f"DEL {QUEUE}"], "worker": [], "viewer": [f"LPUSH {QUEUE} 1"]}[role]
    with redis.Redis.from_url(valkey.url(own_redis.port, services.PASSWORD, role)) as client:
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.config_get("*")
    with own_redis.client() as administrator:
        for command in forbidden:
            ruling = administrator.execute_command("ACL DRYRUN", redis_users.name(role), *command.split(" "))
            assert "has no permissions" in ruling, command
